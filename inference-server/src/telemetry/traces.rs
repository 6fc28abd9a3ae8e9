//! Traces by OTLP over HTTP: spans of requests, made when a request is over, and sent by a thread of their own.
//!
//! Nothing here makes a request wait. What is made but not sent yet is bounded; beyond it requests are not traced, and counted as
//! such. An endpoint that does not answer is told of when it begins, once in a while, and when it is over.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use opentelemetry::trace::{Span as _, SpanKind, Status, TraceContextExt, TraceId, Tracer as _, TracerProvider as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider, SpanData,
};
use ortolan_protocol::failure::{Failure, FailureReason};
use reqwest::Url;
use tracing::{info, warn};

use super::watch::{Ended, Watch};
use crate::fetch::host;

/// Spans that wait to be sent, at most.
const MOST_WAITING: u64 = 4096;
/// Places in the queue for those who looked at the same time and found one left.
const SLACK: usize = 1024;
/// Spans of one request, at most.
const SPANS: u64 = 5;
/// How often a trouble that goes on is told of.
const TELL_AGAIN: Duration = Duration::from_mins(5);
/// What is left at the end has so long to be sent.
const LAST: Duration = Duration::from_secs(2);

/// Makes spans and sends them.
pub(super) struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    counts: Arc<Counts>,
}

/// What became of spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// The endpoint has them.
    pub sent: u64,
    /// The endpoint did not take them.
    pub failed: u64,
    /// They were not made, since too many waited.
    pub dropped: u64,
}

impl Sent {
    /// Each with its name.
    pub fn by_outcome(self) -> [(&'static str, u64); 3] {
        [("sent", self.sent), ("failed", self.failed), ("dropped", self.dropped)]
    }
}

#[derive(Debug, Default)]
struct Counts {
    made: AtomicU64,
    sent: AtomicU64,
    failed: AtomicU64,
    dropped: AtomicU64,
}

impl Counts {
    /// Whether a request may be traced, or is one too many.
    fn has_room(&self) -> bool {
        let [made, sent, failed] = [&self.made, &self.sent, &self.failed].map(|count| count.load(Ordering::Relaxed));
        // What is sent meanwhile may be seen before what was made.
        let has_room = made.saturating_sub(sent + failed) + SPANS <= MOST_WAITING;
        if !has_room {
            self.dropped.fetch_add(SPANS, Ordering::Relaxed);
        }
        has_room
    }
}

impl Traces {
    /// To the endpoint that is given, or that of OpenTelemetry's variables; `None`: neither is. The resource is the model's version.
    pub fn new(endpoint: Option<&str>, model: &str, version: &str) -> Result<Option<Self>, Failure> {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let by_variable =
            ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"].into_iter().find_map(set);
        let is_disabled = set("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let Some(target) = endpoint.map(str::to_owned).or(by_variable).filter(|_| !is_disabled) else {
            return Ok(None);
        };
        let url = checked(&target)?;
        // The second to install one finds it installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let exporter = SpanExporter::builder().with_http();
        // From its variables the exporter reads the endpoint itself: which of them ends in a path is its matter.
        let exporter = match endpoint {
            Some(_) => exporter.with_endpoint(format!("{}/v1/traces", target.trim_end_matches('/'))),
            None => exporter,
        };
        let exporter =
            exporter.build().map_err(|error| invalid(&format!("the exporter of traces cannot be made: {error}")))?;
        Ok(Some(Self::with(exporter, host(&url), resource(model, version))))
    }

    fn with(exporter: SpanExporter, host: String, resource: Resource) -> Self {
        let counts = Arc::new(Counts::default());
        let exporter = Reporting { exporter, host, counts: Arc::clone(&counts), told: Mutex::default() };
        let queue = usize::try_from(MOST_WAITING).unwrap_or(usize::MAX) + SLACK;
        let config = BatchConfigBuilder::default().with_max_queue_size(queue).build();
        let processor = BatchSpanProcessor::builder(exporter).with_batch_config(config).build();
        // Which requests are traced was decided before.
        let provider = SdkTracerProvider::builder()
            .with_span_processor(processor)
            .with_sampler(Sampler::AlwaysOn)
            .with_resource(resource)
            .build();
        let tracer = provider.tracer("ortolan-server");
        Self { provider, tracer, counts }
    }

    /// What became of the spans so far.
    pub fn sent(&self) -> Sent {
        let [sent, failed, dropped] =
            [&self.counts.sent, &self.counts.failed, &self.counts.dropped].map(|count| count.load(Ordering::Relaxed));
        Sent { sent, failed, dropped }
    }

    /// Sends what waits, and nothing afterwards.
    pub fn end(&self) -> OTelSdkResult {
        self.provider.shutdown_with_timeout(LAST)
    }

    /// Makes the spans of a request that ended. Gives its trace; `None`: too many wait already.
    pub fn record(&self, watch: &Watch, ended: Ended, now: Instant) -> Option<TraceId> {
        if !self.counts.has_room() {
            return None;
        }
        let outside = Context::new();
        let outside = match watch.parent {
            Some(parent) => outside.with_remote_span_context(parent.context(watch.state.clone())),
            None => outside,
        };
        let mut span = self
            .tracer
            .span_builder(watch.route.span_name())
            .with_kind(SpanKind::Server)
            .with_start_time(watch.at(watch.begun()))
            .with_attributes(attributes(watch, ended))
            .start_with_context(&self.tracer, &outside);
        // By the conventions, what is the client's fault is none of the server's.
        if let Ended::Failed(kind) = ended
            && kind.status().is_server_error()
        {
            span.set_status(Status::error(kind.as_str()));
        }
        let trace = span.span_context().trace_id();
        let inside = outside.with_span(span);
        let children = self.record_children(watch, now, &inside);
        inside.span().end_with_timestamp(watch.at(now));
        self.counts.made.fetch_add(children + 1, Ordering::Relaxed);
        Some(trace)
    }

    /// The steps of a request, as far as it got; gives how many.
    fn record_children(&self, watch: &Watch, now: Instant, inside: &Context) -> u64 {
        let execution = watch.batch().map(|ran| (ran.started, ran.started + ran.took));
        let batch = watch.batch().map_or_else(Vec::new, |ran| {
            vec![number("ortolan.batch.rows", ran.rows), number("ortolan.batch.requests", ran.requests)]
        });
        let steps = [
            ("parse", watch.parsing(), Vec::new()),
            ("queue", watch.queue(now), Vec::new()),
            ("execute", execution, batch),
            ("write", watch.writing(now), Vec::new()),
        ];
        let mut made = 0;
        for (name, time, attributes) in steps {
            let Some((from, to)) = time else { continue };
            self.tracer
                .span_builder(name)
                .with_start_time(watch.at(from))
                .with_attributes(attributes)
                .start_with_context(&self.tracer, inside)
                .end_with_timestamp(watch.at(to));
            made += 1;
        }
        made
    }
}

fn attributes(watch: &Watch, ended: Ended) -> Vec<KeyValue> {
    let (model, version) = watch.model();
    let mut attributes = vec![
        KeyValue::new("ortolan.model.name", model.to_owned()),
        KeyValue::new("ortolan.model.version", version.to_owned()),
        KeyValue::new("ortolan.protocol", watch.route.protocol()),
        KeyValue::new("ortolan.outcome", ended.outcome()),
    ];
    match watch.route.grpc_method() {
        Some(method) => attributes.extend([
            KeyValue::new("rpc.system", "grpc"),
            KeyValue::new("rpc.service", "inference.GRPCInferenceService"),
            KeyValue::new("rpc.method", method),
            KeyValue::new("rpc.grpc.status_code", i64::from(ended.code() as i32)),
        ]),
        None => attributes.extend([
            KeyValue::new("http.request.method", "POST"),
            KeyValue::new("http.route", watch.route.path()),
            KeyValue::new("http.response.status_code", i64::from(ended.status())),
        ]),
    }
    if ended != Ended::Completed {
        attributes.push(KeyValue::new("error.type", ended.outcome()));
    }
    attributes.extend(watch.id().map(|id| KeyValue::new("ortolan.request.id", id.to_owned())));
    attributes.extend(watch.rows().map(|rows| number("ortolan.request.rows", rows)));
    if watch.is_cached() {
        attributes.push(KeyValue::new("ortolan.response_cache", "hit"));
    }
    attributes
}

fn number(name: &'static str, value: usize) -> KeyValue {
    KeyValue::new(name, i64::try_from(value).unwrap_or(i64::MAX))
}

/// Who tells: a model is a service, its servers are that service's instances. `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES`,
/// which the builder has read, win.
fn resource(model: &str, version: &str) -> Resource {
    let mut resource = Resource::builder().with_attribute(KeyValue::new("service.version", version.to_owned()));
    if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
        resource = resource.with_service_name(model.to_owned());
    }
    // In a container, its own or its pod's name.
    if let Ok(instance) = std::env::var("HOSTNAME") {
        resource = resource.with_attribute(KeyValue::new("service.instance.id", instance));
    }
    resource.build()
}

/// An address to send traces to. What it is otherwise is not told: it may hold a secret.
fn checked(endpoint: &str) -> Result<Url, Failure> {
    let url = endpoint.parse::<Url>().ok().filter(|url| matches!(url.scheme(), "http" | "https"));
    let url = url.filter(|url| url.host_str().is_some_and(|host| !host.is_empty()));
    let url = url.ok_or_else(|| invalid("the endpoint of traces must be a URL such as http://collector:4318"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(invalid("the endpoint of traces must not hold a user name or password"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(invalid("the endpoint of traces must end with its path; it has a query or a fragment"));
    }
    Ok(url)
}

fn invalid(message: &str) -> Failure {
    Failure { reason: FailureReason::ConfigInvalid, message: message.to_owned() }
}

/// Counts what is sent, and tells of trouble.
#[derive(Debug)]
struct Reporting {
    exporter: SpanExporter,
    host: String,
    counts: Arc<Counts>,
    /// When the present trouble was last told of.
    told: Mutex<Option<Instant>>,
}

impl Reporting {
    fn tell(&self, outcome: &OTelSdkResult) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(()) if told.take().is_some() => info!(endpoint = self.host, "traces are sent again"),
            Err(error) if told.is_none_or(|told| told.elapsed() >= TELL_AGAIN) => {
                warn!(endpoint = self.host, %error, "traces cannot be sent and are lost; requests are served as before");
                *told = Some(Instant::now());
            }
            _ => {}
        }
    }
}

impl opentelemetry_sdk::trace::SpanExporter for Reporting {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        let outcome = self.exporter.export(batch).await;
        let count = if outcome.is_ok() { &self.counts.sent } else { &self.counts.failed };
        count.fetch_add(spans, Ordering::Relaxed);
        self.tell(&outcome);
        outcome
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_url_without_secrets() {
        for endpoint in ["http://collector:4318", "https://h/otlp/", "http://[::1]:4318/v1/traces"] {
            assert!(checked(endpoint).is_ok(), "{endpoint}");
        }
        for (endpoint, words) in [
            ("collector:4318", "must be a URL"),
            ("ftp://collector", "must be a URL"),
            ("http://", "must be a URL"),
            ("http://me:hunter2@collector", "user name or password"),
            ("http://hunter2@collector", "user name or password"),
            ("https://collector/?token=hunter2", "query"),
        ] {
            let failure = checked(endpoint).unwrap_err();
            assert_eq!(failure.reason, FailureReason::ConfigInvalid);
            assert!(failure.message.contains(words) && !failure.message.contains("hunter2"), "{}", failure.message);
        }
    }

    #[test]
    fn requests_are_not_traced_while_too_many_spans_wait() {
        let counts = Counts::default();
        counts.made.store(MOST_WAITING - SPANS, Ordering::Relaxed);
        assert!(counts.has_room());
        counts.made.store(MOST_WAITING, Ordering::Relaxed);
        assert!(!counts.has_room() && !counts.has_room());
        assert_eq!(counts.dropped.load(Ordering::Relaxed), 2 * SPANS);
        counts.failed.store(7, Ordering::Relaxed);
        assert!(counts.has_room(), "what is lost does not wait");
    }
}
