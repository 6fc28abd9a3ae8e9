//! Requests to the API server: how long each took to be answered, and how it ended; a layer around the client.
//!
//! A request is known by its verb as in RBAC and its resource (`deployments`, `modeldeployments/status`), never by the
//! names in its path. The time of a watch is that to its first byte: it goes on as long as it can.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Instant,
};

use http::{Method, Request, Response};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};
use tower::{Layer, Service};
use tracing::{Instrument, Span, field::Empty};

use crate::trace_span;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Call {
    verb: &'static str,
    resource: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Ended {
    verb: &'static str,
    resource: String,
    code: String,
}

/// Clones share it.
#[derive(Clone, Debug)]
pub struct ApiMetrics {
    requests: Family<Ended, Counter>,
    duration: Family<Call, Histogram, fn() -> Histogram>,
}

impl ApiMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let duration = || Histogram::new(exponential_buckets(0.002, 2.0, 13));
        let metrics = Self { requests: Family::default(), duration: Family::new_with_constructor(duration) };
        let help = "Requests to the API server by verb, resource and the answer's code; `error`: no answer came";
        registry.register("api_requests", help, metrics.requests.clone());
        let help = "From sending a request to the API server to the first byte of the answer";
        registry.register_with_unit("api_request_duration", help, Unit::Seconds, metrics.duration.clone());
        metrics
    }

    fn ended(&self, call: Call, code: String, seconds: f64) {
        self.duration.get_or_create(&call).observe(seconds);
        self.requests.get_or_create(&Ended { verb: call.verb, resource: call.resource, code }).inc();
    }
}

impl Call {
    fn of<B>(request: &Request<B>) -> Self {
        let query = request.uri().query().unwrap_or_default();
        let (resource, named) = resource(request.uri().path());
        let watches = query.split('&').any(|part| part == "watch=true" || part == "watch=1");
        let verb = match *request.method() {
            Method::GET if watches => "watch",
            Method::GET if named => "get",
            Method::GET => "list",
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE if named => "delete",
            Method::DELETE => "deletecollection",
            _ => "other",
        };
        Self { verb, resource }
    }

    /// The span of a request that a reconcile makes. Watches and the election go on for ever and are no part of a trace.
    fn span(&self) -> Span {
        if Span::current().is_none() {
            return Span::none();
        }
        trace_span!("request", verb = self.verb, resource = self.resource, otel.kind = "client", code = Empty)
    }
}

/// The resource of a path with its subresource, and whether the path names one object.
fn resource(path: &str) -> (String, bool) {
    let parts: Vec<_> = path.split('/').filter(|part| !part.is_empty()).collect();
    // api/VERSION/… or apis/GROUP/VERSION/…
    let skipped = match parts.first() {
        Some(&"api") => 2,
        Some(&"apis") => 3,
        _ => return ("none".to_owned(), false),
    };
    let rest = parts.get(skipped..).unwrap_or_default();
    match rest {
        [] => ("none".to_owned(), false),
        ["namespaces", _, resource, _, subresource, ..] => (format!("{resource}/{subresource}"), true),
        ["namespaces", _, resource] | [resource] => ((*resource).to_owned(), false),
        ["namespaces", _, resource, _] | [resource, ..] => ((*resource).to_owned(), true),
    }
}

impl<S> Layer<S> for ApiMetrics {
    type Service = Measured<S>;

    fn layer(&self, inner: S) -> Measured<S> {
        Measured { metrics: self.clone(), inner }
    }
}

/// Measures each request.
#[derive(Clone, Debug)]
pub struct Measured<S> {
    metrics: ApiMetrics,
    inner: S,
}

impl<S, B, A> Service<Request<B>> for Measured<S>
where
    S: Service<Request<B>, Response = Response<A>>,
    S::Future: Send + 'static,
{
    type Response = Response<A>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<A>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (call, metrics) = (Call::of(&request), self.metrics.clone());
        let span = call.span();
        let sending = self.inner.call(request);
        let sent = async move {
            // Not before: a watch may wait for its turn.
            let started = Instant::now();
            let result = sending.await;
            let code =
                result.as_ref().map_or_else(|_| "error".to_owned(), |answer| answer.status().as_str().to_owned());
            Span::current().record("code", &*code);
            metrics.ended(call, code, started.elapsed().as_secs_f64());
            result
        };
        Box::pin(sent.instrument(span))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_known_by_verb_and_resource_and_never_by_a_name() {
        for (method, uri, verb, resource) in [
            (Method::GET, "/api/v1/pods?&labelSelector=a", "list", "pods"),
            (Method::GET, "/api/v1/pods?watch=true&x=y", "watch", "pods"),
            (Method::GET, "/apis/apps/v1/namespaces/ns/deployments/name", "get", "deployments"),
            (Method::PATCH, "/apis/apps/v1/namespaces/ns/deployments/name?&fieldManager=x", "patch", "deployments"),
            (
                Method::PATCH,
                "/apis/ortolan.dev/v1alpha1/namespaces/ns/modeldeployments/name/status",
                "patch",
                "modeldeployments/status",
            ),
            (Method::POST, "/apis/events.k8s.io/v1/namespaces/ns/events", "create", "events"),
            (Method::DELETE, "/apis/apps/v1/namespaces/ns/controllerrevisions/name", "delete", "controllerrevisions"),
            (Method::GET, "/version", "list", "none"),
        ] {
            let request = Request::builder().method(method).uri(uri).body(()).unwrap();
            assert_eq!(Call::of(&request), Call { verb, resource: resource.to_owned() }, "{uri}");
        }
    }
}
