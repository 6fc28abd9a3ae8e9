//! What the program tells of single requests: spans, as a receiver of OTLP gets them, and lines in its log.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::routing::post;
use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use ortolan_protocol::grpc::ModelInferRequest;
use ortolan_protocol::grpc::grpc_inference_service_client::GrpcInferenceServiceClient;
use prost::Message;
use reqwest::StatusCode;
use serde_json::json;
use tower_http::decompression::RequestDecompressionLayer;

use crate::common::serve;
use crate::program::{Program, add_model, body, message};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

type Received = Arc<Mutex<Vec<ExportTraceServiceRequest>>>;

/// A receiver that keeps what comes, and the endpoint that it is.
async fn receiver() -> (Received, String) {
    async fn take(State(received): State<Received>, headers: HeaderMap, body: Bytes) {
        assert_eq!(headers["content-type"], "application/x-protobuf");
        received.lock().unwrap().push(ExportTraceServiceRequest::decode(body).unwrap());
    }
    let received = Received::default();
    let app = Router::new().route("/v1/traces", post(take)).with_state(Arc::clone(&received));
    let app = app.layer(RequestDecompressionLayer::new());
    (received, format!("http://{}", serve(app).await))
}

fn spans(received: &Received) -> Vec<Span> {
    let received = received.lock().unwrap();
    let resources = received.iter().flat_map(|request| &request.resource_spans);
    resources.flat_map(|resource| &resource.scope_spans).flat_map(|scope| scope.spans.clone()).collect()
}

fn told(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |attribute: &KeyValue| match attribute.value.as_ref().unwrap().value.as_ref().unwrap() {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        other => panic!("{other:?}"),
    };
    attributes.iter().map(|attribute| (attribute.key.clone(), text(attribute))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

/// The span of a request, by its id.
fn of<'s>(spans: &'s [Span], id: &str) -> &'s Span {
    let is_its = |span: &&Span| told(&span.attributes).get("ortolan.request.id").is_some_and(|found| found == id);
    let found: Vec<_> = spans.iter().filter(is_its).collect();
    assert_eq!(found.len(), 1, "{id}: {spans:?}");
    found[0]
}

/// The steps of a request's span, which lie inside it.
fn steps<'s>(spans: &'s [Span], parent: &Span) -> BTreeMap<&'s str, &'s Span> {
    let children = spans.iter().filter(|span| span.parent_span_id == parent.span_id);
    let steps: BTreeMap<&str, &Span> = children.map(|span| (&*span.name, span)).collect();
    for (name, step) in &steps {
        assert_eq!(step.trace_id, parent.trace_id);
        assert!(
            parent.start_time_unix_nano <= step.start_time_unix_nano
                && step.start_time_unix_nano <= step.end_time_unix_nano
                && step.end_time_unix_nano <= parent.end_time_unix_nano,
            "{name}: {step:?} is not inside {parent:?}"
        );
    }
    steps
}

fn parent(flags: &str) -> String {
    format!("00-{TRACE}-{CALLER}-{flags}")
}

fn named(id: &str) -> String {
    let mut request: serde_json::Value = serde_json::from_str(&body()).unwrap();
    request["id"] = json!(id);
    request.to_string()
}

async fn rest(program: &Program, headers: &[(&str, &str)], body: String) -> StatusCode {
    let mut request = program.client.post(format!("http://127.0.0.1:{}/v2/models/add/infer", program.http)).body(body);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = request.send().await.unwrap();
    let status = response.status();
    response.bytes().await.unwrap();
    status
}

async fn grpc(program: &Program) -> GrpcInferenceServiceClient<tonic::transport::Channel> {
    let address = format!("http://127.0.0.1:{}", program.grpc);
    GrpcInferenceServiceClient::new(tonic::transport::Endpoint::new(address).unwrap().connect().await.unwrap())
}

fn call<T>(message: T, headers: &[(&'static str, &str)]) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    for (name, value) in headers {
        request.metadata_mut().insert(*name, value.parse().unwrap());
    }
    request
}

fn message_named(id: &str) -> ModelInferRequest {
    ModelInferRequest { id: id.to_owned(), ..message() }
}

async fn start(flags: &[&str], environment: &[(&str, &str)]) -> Program {
    let flags = [&["--drain-delay", "0s"], flags].concat();
    // What stands in the environment of the tests counts only where a test sets it.
    let environment = [&[("HOSTNAME", "pod-7")], environment].concat();
    Program::start_in(&add_model(), &flags, &environment).ready().await
}

#[tokio::test]
async fn a_sampled_caller_gets_the_spans_of_its_request_with_their_attributes() {
    let (received, endpoint) = receiver().await;
    let flags =
        ["--otlp-endpoint", &endpoint, "--trace-sample-ratio", "0", "--revision", "r7", "--max-batch-size", "1"];
    let mut program = start(&flags, &[]).await;
    let headers = [("traceparent", &*parent("01")), ("tracestate", "rojo=1"), ("tracestate", "congo=2")];
    assert_eq!(rest(&program, &headers, named("by-rest")).await, StatusCode::OK);
    let mut client = grpc(&program).await;
    client.model_infer(call(message_named("by-grpc"), &[("traceparent", &parent("01"))])).await.unwrap();
    let stream = tokio_stream::iter([message_named("first"), message_named("second")]);
    let mut answers =
        client.model_stream_infer(call(stream, &[("traceparent", &parent("01"))])).await.unwrap().into_inner();
    while answers.message().await.unwrap().is_some() {}
    // Spans are sent every five seconds, and what is left at the end.
    program.stop().await;
    let spans = spans(&received);
    for (id, name, kind) in [
        ("by-rest", "POST /v2/models/{model}/infer", ("http.response.status_code", "200")),
        ("by-grpc", "inference.GRPCInferenceService/ModelInfer", ("rpc.grpc.status_code", "0")),
        ("first", "inference.GRPCInferenceService/ModelStreamInfer", ("rpc.grpc.status_code", "0")),
        ("second", "inference.GRPCInferenceService/ModelStreamInfer", ("rpc.grpc.status_code", "0")),
    ] {
        let span = of(&spans, id);
        assert_eq!((&*span.name, span.kind()), (name, SpanKind::Server));
        assert_eq!((&*hex(&span.trace_id), &*hex(&span.parent_span_id)), (TRACE, CALLER));
        let about = told(&span.attributes);
        for (key, value) in [
            ("ortolan.model.name", "add"),
            ("ortolan.model.version", "r7"),
            ("ortolan.protocol", if id == "by-rest" { "rest" } else { "grpc" }),
            ("ortolan.outcome", "completed"),
            ("ortolan.request.rows", "1"),
            kind,
        ] {
            assert_eq!(about.get(key).map(String::as_str), Some(value), "{id}: {key}");
        }
        let steps = steps(&spans, span);
        assert_eq!(steps.keys().copied().collect::<Vec<_>>(), ["execute", "parse", "queue", "write"], "{id}");
        let batch = told(&steps["execute"].attributes);
        assert_eq!((&*batch["ortolan.batch.rows"], &*batch["ortolan.batch.requests"]), ("1", "1"));
        assert!(steps["queue"].end_time_unix_nano <= steps["execute"].start_time_unix_nano);
    }
    assert_eq!(of(&spans, "by-rest").trace_state, "rojo=1,congo=2");
    assert_eq!(spans.len(), 4 * 5);
    let received = received.lock().unwrap();
    let resource = told(&received[0].resource_spans[0].resource.as_ref().unwrap().attributes);
    assert_eq!([&*resource["service.name"], &*resource["service.version"]], ["add", "r7"]);
    assert_eq!(resource["service.instance.id"], "pod-7");
}

#[tokio::test]
async fn an_unsampled_caller_gets_none_and_the_ratio_is_for_those_who_say_nothing() {
    let (received, endpoint) = receiver().await;
    // As OpenTelemetry says: the path is put behind the general variable.
    let environment = [("OTEL_EXPORTER_OTLP_ENDPOINT", &*endpoint), ("ORTOLAN_TRACE_SAMPLE_RATIO", "1")];
    let mut program = start(&[], &environment).await;
    let mut client = grpc(&program).await;
    for _ in 0..20 {
        rest(&program, &[("traceparent", &parent("00"))], named("unsampled")).await;
        client.model_infer(call(message_named("unsampled"), &[("traceparent", &parent("00"))])).await.unwrap();
    }
    rest(&program, &[], named("rest-root")).await;
    rest(&program, &[("traceparent", "nonsense")], named("rest-nonsense")).await;
    client.model_infer(call(message_named("grpc-root"), &[])).await.unwrap();
    program.stop().await;
    let spans = spans(&received);
    let roots = ["rest-root", "rest-nonsense", "grpc-root"].map(|id| of(&spans, id));
    for root in roots {
        assert!(root.parent_span_id.is_empty() && hex(&root.trace_id) != TRACE);
        assert_eq!(steps(&spans, root).len(), 4);
    }
    assert_eq!(spans.len(), 3 * 5);
}

#[tokio::test]
async fn the_ratio_is_kept_over_many_requests() {
    let (received, endpoint) = receiver().await;
    let whole = format!("{endpoint}/v1/traces");
    // As OpenTelemetry says: the variable of traces is the whole address, and goes first.
    let environment = [
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &*whole),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
    ];
    let mut program = start(&["--trace-sample-ratio", "0.25"], &environment).await;
    for _ in 0..400 {
        rest(&program, &[], body()).await;
    }
    program.stop().await;
    let traced = spans(&received).iter().filter(|span| span.parent_span_id.is_empty()).count();
    // Six standard deviations.
    assert!((48..=152).contains(&traced), "{traced}");
}

#[tokio::test]
async fn requests_that_share_a_batch_tell_its_size() {
    let (received, endpoint) = receiver().await;
    let flags = ["--otlp-endpoint", &endpoint, "--max-batch-delay", "10s", "--max-batch-size", "2"];
    let mut program = start(&flags, &[]).await;
    let headers = [("traceparent", &*parent("01"))];
    let mut client = grpc(&program).await;
    let by_grpc = client.model_infer(call(message_named("by-grpc"), &headers));
    // The batch is full by the second.
    let (status, answer) = tokio::join!(rest(&program, &headers, named("by-rest")), by_grpc);
    assert_eq!((status, answer.is_ok()), (StatusCode::OK, true));
    program.stop().await;
    let spans = spans(&received);
    for id in ["by-rest", "by-grpc"] {
        let run = steps(&spans, of(&spans, id))["execute"];
        let batch = told(&run.attributes);
        assert_eq!((&*batch["ortolan.batch.rows"], &*batch["ortolan.batch.requests"]), ("2", "2"));
    }
}

#[tokio::test]
async fn failures_are_told_with_what_went_wrong_and_how_far_it_got() {
    let (received, endpoint) = receiver().await;
    let flags = ["--otlp-endpoint", &endpoint, "--max-request-bytes", "1Ki", "--max-batch-delay", "10s"];
    let mut program = start(&flags, &[]).await;
    let trace = ("traceparent", &*parent("01"));
    let with = |id| [trace, ("x-request-id", id)];
    let mut late: serde_json::Value = serde_json::from_str(&named("late")).unwrap();
    late["parameters"] = json!({"timeout": 20_000});
    for (id, body, status) in [
        ("no-json", "{".to_owned(), StatusCode::BAD_REQUEST),
        ("rest-large", " ".repeat(2000), StatusCode::PAYLOAD_TOO_LARGE),
        ("that in the body is told", late.to_string(), StatusCode::GATEWAY_TIMEOUT),
    ] {
        assert_eq!(rest(&program, &with(id), body).await, status, "{id}");
    }
    let url = format!("http://127.0.0.1:{}/v2/models/add/infer", program.http);
    let leaving = program.client.post(url).header(trace.0, trace.1).body(named("left"));
    leaving.timeout(Duration::from_millis(500)).send().await.unwrap_err();
    let mut client = grpc(&program).await;
    let unknown = ModelInferRequest { model_name: "sub".to_owned(), ..message_named("unknown") };
    client.model_infer(call(unknown, &[trace])).await.unwrap_err();
    let large = message_named(&"x".repeat(2000));
    client.model_infer(call(large, &[trace, ("x-request-id", "grpc-large")])).await.unwrap_err();
    while program.stats().await.in_flight > 0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    program.stop().await;
    let spans = spans(&received);
    for (id, kind, status, expected) in [
        ("no-json", "invalid_argument", ("http.response.status_code", "400"), &[][..]),
        ("rest-large", "too_large", ("http.response.status_code", "413"), &[]),
        ("late", "deadline_exceeded", ("http.response.status_code", "504"), &["parse", "queue"]),
        ("left", "client_left", ("http.response.status_code", "499"), &["parse", "queue"]),
        ("unknown", "not_found", ("rpc.grpc.status_code", "5"), &[]),
        ("grpc-large", "too_large", ("rpc.grpc.status_code", "8"), &[]),
    ] {
        let span = of(&spans, id);
        let about = told(&span.attributes);
        assert_eq!((&*about["ortolan.outcome"], &*about["error.type"], &*about[status.0]), (kind, kind, status.1));
        assert_eq!(steps(&spans, span).into_keys().collect::<Vec<_>>(), expected, "{id}");
        // By the conventions of OpenTelemetry a client's fault is none of the server's.
        assert_eq!(
            span.status.as_ref().is_some_and(|status| status.code == 2),
            id == "late",
            "{id}: {:?}",
            span.status
        );
    }
}

#[tokio::test]
async fn the_other_ways_to_ask_are_told_as_well_and_strangers_are_not() {
    let (received, endpoint) = receiver().await;
    let keys = tempfile::tempdir().unwrap();
    // Of the word key.
    std::fs::write(keys.path().join("a"), "2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683").unwrap();
    let folder = keys.path().to_str().unwrap();
    let flags = ["--otlp-endpoint", &endpoint, "--api-keys-dir", folder, "--response-cache", "1Mi"];
    let mut program = start(&flags, &[]).await;
    let (trace, key) = (("traceparent", &*parent("01")), ("x-api-key", "key"));
    assert_eq!(rest(&program, &[trace], named("stranger")).await, StatusCode::UNAUTHORIZED);
    for id in ["asked", "asked-again"] {
        assert_eq!(rest(&program, &[trace, key], named(id)).await, StatusCode::OK);
    }
    let instances = json!({"instances": [{"a": [1.0, 2.0, 3.0], "b": [1.0, 2.0, 3.5]}]}).to_string();
    let predict = program.client.post(format!("http://127.0.0.1:{}/v1/models/add:predict", program.http));
    let headers = [trace, key, ("x-request-id", "predicted")];
    let predict = headers.iter().fold(predict.body(instances), |request, (name, value)| request.header(*name, *value));
    assert_eq!(predict.send().await.unwrap().status(), StatusCode::OK);
    program.stop().await;
    let spans = spans(&received);
    assert_eq!(spans.iter().filter(|span| hex(&span.parent_span_id) == CALLER).count(), 3, "the stranger has none");
    assert_eq!(of(&spans, "predicted").name, "POST /v1/models/{model}:predict");
    let again = of(&spans, "asked-again");
    assert_eq!(told(&again.attributes)["ortolan.response_cache"], "hit");
    assert_eq!(steps(&spans, again).into_keys().collect::<Vec<_>>(), ["parse", "write"]);
}

#[tokio::test]
async fn an_endpoint_that_is_away_is_said_once_and_holds_nothing_up() {
    let environment = [("OTEL_BSP_SCHEDULE_DELAY", "10"), ("OTEL_EXPORTER_OTLP_TIMEOUT", "50")];
    // Nobody listens there, and no test will by chance.
    let flags = ["--otlp-endpoint", "http://127.0.0.1:9", "--trace-sample-ratio", "1"];
    let mut program = start(&flags, &environment).await;
    for _ in 0..5 {
        assert_eq!(rest(&program, &[], body()).await, StatusCode::OK);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let start = Instant::now();
    program.stop().await;
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert_eq!(program.said.matches("traces cannot be sent").count(), 1, "{}", program.said);
    assert!(program.said.contains("endpoint=\"127.0.0.1:9\""), "{}", program.said);
}

#[tokio::test]
async fn what_an_endpoint_does_not_take_in_time_is_dropped_and_counted() {
    // It takes connections and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let environment = [("OTEL_EXPORTER_OTLP_TIMEOUT", "60000")];
    let mut program = start(&["--otlp-endpoint", &endpoint, "--trace-sample-ratio", "1"], &environment).await;
    let mut slowest = Duration::ZERO;
    for _ in 0..1200 {
        let start = Instant::now();
        assert_eq!(rest(&program, &[], body()).await, StatusCode::OK);
        slowest = slowest.max(start.elapsed());
    }
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
    let (_, metrics) = program.ops("/metrics").await;
    let value = |outcome: &str| -> u64 {
        let name = format!("ortolan_server_trace_spans_total{{model=\"add\",version=\"1\",outcome=\"{outcome}\"}} ");
        metrics.lines().find_map(|line| line.strip_prefix(&name)).unwrap().parse().unwrap()
    };
    // Of 1200 times five, 4096 find a place.
    assert_eq!((value("sent"), value("dropped")), (0, (1200 - 4096 / 5) * 5));
    let start = Instant::now();
    program.stop().await;
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[tokio::test]
async fn the_request_log_tells_its_part_of_the_requests_and_nothing_of_what_is_in_them() {
    let mut program = start(&["--request-log-sample-ratio", "1"], &[]).await;
    let headers = [("traceparent", &*parent("00")), ("x-request-id", "by-header"), ("cookie", "hunter2")];
    assert_eq!(rest(&program, &headers, body()).await, StatusCode::OK);
    assert_eq!(rest(&program, &headers, named("two\nlines")).await, StatusCode::OK);
    assert_eq!(rest(&program, &[], r#"{"id": "hunter2"}"#.to_owned()).await, StatusCode::BAD_REQUEST);
    let mut client = grpc(&program).await;
    client.model_infer(call(message_named(&"x".repeat(1000)), &[])).await.unwrap();
    let unknown = ModelInferRequest { model_name: "hunter2".to_owned(), ..message() };
    client.model_infer(unknown).await.unwrap_err();
    program.stop().await;
    let lines: Vec<&str> = program
        .said
        .split_inclusive('\n')
        .filter(|line| line.contains("request id=") || line.contains("request protocol="))
        .collect();
    assert_eq!(lines.len(), 5, "{}", program.said);
    for (line, words) in lines.iter().zip([
        &[
            "id=\"by-header\" protocol=\"rest\" route=\"infer\" status=200 outcome=\"completed\" rows=1 queue_us=",
            TRACE,
        ][..],
        &["id=\"two\\nlines\"", "status=200", "execution_us=", "total_us="],
        &["protocol=\"rest\"", "status=400 outcome=\"invalid_argument\" total_us="],
        &[&format!("id=\"{}\" protocol=\"grpc\" route=\"infer\" status=0", "x".repeat(128))],
        &["protocol=\"grpc\" route=\"infer\" status=5 outcome=\"not_found\""],
    ]) {
        for word in words {
            assert!(line.contains(word), "{word} is not in {line}");
        }
    }
    assert!(!program.said.contains("hunter2"), "{}", program.said);
}

#[tokio::test]
async fn nothing_is_logged_of_requests_that_nobody_asked_to_have_logged() {
    // As OpenTelemetry says: this variable switches everything off.
    let environment = [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9"), ("OTEL_SDK_DISABLED", "true")];
    let mut program = start(&[], &environment).await;
    assert_eq!(rest(&program, &[("traceparent", &parent("01"))], named("quiet")).await, StatusCode::OK);
    let (_, metrics) = program.ops("/metrics").await;
    assert!(!metrics.contains("trace_spans"), "there are no traces");
    program.stop().await;
    assert!(!program.said.contains("quiet") && !program.said.contains("total_us"), "{}", program.said);
}
