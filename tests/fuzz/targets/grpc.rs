//! Messages over gRPC: an input is a ModelInferRequest as it comes over the wire.

#![no_main]

mod served;

use std::sync::LazyLock;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use libfuzzer_sys::fuzz_target;
use ortolan_server::grpc;
use served::Port;

const CALL: &str = "http://m/inference.GRPCInferenceService/ModelInfer";
/// OK, INVALID_ARGUMENT, DEADLINE_EXCEEDED, NOT_FOUND, RESOURCE_EXHAUSTED; and INTERNAL, by which tonic says that it is no message.
const CODES: [&str; 6] = ["0", "3", "4", "5", "8", "13"];

thread_local! {
    static PORT: LazyLock<Port> =
        LazyLock::new(|| Port::new("add", |server| grpc::app(server, tonic_health::server::health_reporter().1)));
}

fuzz_target!(|message: &[u8]| {
    let length = u32::try_from(message.len()).expect("a small input");
    let body = [&[0], &length.to_be_bytes()[..], message].concat();
    let request = Request::post(CALL).header("content-type", "application/grpc").header("te", "trailers");
    let request = request.body(Body::from(body)).expect("a request");
    let (status, headers, answer, trailers) = PORT.with(|port| port.send(request));
    assert_eq!(status, StatusCode::OK);
    let trailers = trailers.unwrap_or_default();
    let told = |name: &str| {
        headers.get(name).or_else(|| trailers.get(name)).map(|value| value.to_str().expect("ASCII").to_owned())
    };
    let (code, words) = (told("grpc-status").expect("every call ends with a code"), told("grpc-message"));
    assert!(CODES.contains(&&*code), "{code}: {words:?}");
    assert!(code != "13" || words.as_deref().is_some_and(|words| words.contains("decode")), "{words:?}");
    assert_eq!(code == "0", !answer.is_empty());
});
