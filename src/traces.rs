//! Traces by OTLP over HTTP, for whoever wants to see where the time of a reconcile went.
//!
//! Off unless the standard variable `OTEL_EXPORTER_OTLP_ENDPOINT` (or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`) is set; the other
//! `OTEL_…` variables hold as well, since the exporter reads them itself. The spans are of the level `debug`, which the log
//! leaves out, so without an exporter none is ever made.
//!
//! A trace is one reconcile: `reconcile` holds the five verbs, and these hold the requests to the API server.

use opentelemetry::{KeyValue, trace::TracerProvider as _};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{SdkTracerProvider, Tracer},
};
use tracing::Level;
use tracing_opentelemetry::OpenTelemetryLayer;
use tracing_subscriber::{Layer, filter::Targets, registry::LookupSpan};

/// Where the spans come from: what a subscriber selects them by.
pub const TARGET: &str = "ortolan::traces";

/// Whether an endpoint is set to which traces are to be sent.
pub fn wanted() -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    set("OTEL_EXPORTER_OTLP_ENDPOINT") || set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
}

/// Traces that are sent to an endpoint.
#[derive(Debug)]
pub struct Traces(SdkTracerProvider);

impl Traces {
    /// To the `endpoint`, or to that of the environment. `instance`: the name of this process.
    pub fn to(endpoint: Option<&str>, instance: Option<&str>) -> Result<Self, ExporterBuildError> {
        let exporter = SpanExporter::builder().with_http();
        let exporter = match endpoint {
            Some(endpoint) => exporter.with_endpoint(endpoint),
            None => exporter,
        };
        let mut resource =
            Resource::builder().with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
        // OTEL_SERVICE_NAME, which the builder has read, wins.
        if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name("ortolan");
        }
        if let Some(instance) = instance {
            resource = resource.with_attribute(KeyValue::new("service.instance.id", instance.to_owned()));
        }
        let provider =
            SdkTracerProvider::builder().with_batch_exporter(exporter.build()?).with_resource(resource.build());
        Ok(Self(provider.build()))
    }

    /// What takes the spans of a subscriber in.
    pub fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: tracing::Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
    {
        let layer: OpenTelemetryLayer<S, Tracer> = tracing_opentelemetry::layer()
            .with_location(false)
            .with_threads(false)
            .with_tracer(self.0.tracer("ortolan"));
        layer.with_filter(Targets::new().with_target(TARGET, Level::DEBUG))
    }

    /// Sends what was not sent yet; what cannot be sent in time is lost.
    pub fn end(self) {
        if let Err(error) = self.0.shutdown_with_timeout(std::time::Duration::from_secs(2)) {
            tracing::warn!(%error, "the last traces could not be sent");
        }
    }
}

/// A span of the level at which traces are made.
#[macro_export]
macro_rules! trace_span {
    ($name:expr $(, $($fields:tt)*)?) => {
        ::tracing::debug_span!(target: $crate::traces::TARGET, $name $(, $($fields)*)?)
    };
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use axum::{Router, body::Bytes, extract::State, http::HeaderMap, routing::post};
    use opentelemetry_proto::tonic::{collector::trace::v1::ExportTraceServiceRequest, trace::v1::Span};
    use prost::Message;
    use tracing_subscriber::{Registry, layer::SubscriberExt};

    use super::*;

    type Received = Arc<Mutex<Vec<ExportTraceServiceRequest>>>;

    /// A receiver that decodes what comes, and its address.
    async fn receiver() -> (Received, String) {
        async fn take(State(received): State<Received>, headers: HeaderMap, body: Bytes) {
            assert_eq!(headers["content-type"], "application/x-protobuf");
            received.lock().unwrap().push(ExportTraceServiceRequest::decode(body).unwrap());
        }
        let received = Received::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}/v1/traces", listener.local_addr().unwrap());
        let app = Router::new().route("/v1/traces", post(take)).with_state(received.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        (received, endpoint)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn spans_reach_a_receiver_with_their_parents_and_the_name_of_the_process() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (received, endpoint) = receiver().await;
        let traces = Traces::to(Some(&endpoint), Some("pod-7")).unwrap();
        tracing::subscriber::with_default(Registry::default().with(traces.layer()), || {
            let reconcile = trace_span!("reconcile", name = "digits", error = tracing::field::Empty);
            reconcile.in_scope(|| {
                trace_span!("apply").in_scope(|| trace_span!("request", verb = "patch"));
                reconcile.record("error", "api");
                tracing::info_span!(target: "another", "of something else");
            });
        });
        tokio::task::spawn_blocking(move || traces.end()).await.unwrap();
        let received = received.lock().unwrap();
        let resources: Vec<_> = received.iter().flat_map(|request| &request.resource_spans).collect();
        let attributes = &resources[0].resource.as_ref().unwrap().attributes;
        let told = |key: &str| format!("{:?}", attributes.iter().find(|attribute| attribute.key == key));
        assert!(told("service.name").contains("\"ortolan\"") && told("service.instance.id").contains("\"pod-7\""));
        let spans = resources.iter().flat_map(|resource| &resource.scope_spans).flat_map(|scope| &scope.spans);
        let spans: Vec<&Span> = spans.collect();
        let find = |name: &str| *spans.iter().find(|span| span.name == name).unwrap();
        let (reconcile, apply, request) = (find("reconcile"), find("apply"), find("request"));
        assert_eq!(spans.len(), 3, "{spans:?}");
        assert!(reconcile.parent_span_id.is_empty());
        assert_eq!((&apply.parent_span_id, &request.parent_span_id), (&reconcile.span_id, &apply.span_id));
        assert!(spans.iter().all(|span| span.trace_id == reconcile.trace_id && !span.trace_id.is_empty()));
        assert!(reconcile.attributes.iter().any(|attribute| attribute.key == "name"));
        assert!(request.attributes.iter().any(|attribute| attribute.key == "verb"));
    }
}
