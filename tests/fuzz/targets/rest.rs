//! Bodies over REST. The first byte of an input chooses the model, the route and how the body comes; then two bytes of the length
//! of its JSON, where it is said.

#![no_main]

mod served;

use std::sync::LazyLock;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use libfuzzer_sys::{Corpus, fuzz_target};
use ortolan_server::http;
use served::Port;

/// Models with two inputs, with an input whose values can be wrong, and with strings.
const MODELS: [&str; 4] = ["add", "gather", "mlp", "classifier"];
const ROUTES: [&str; 4] =
    ["/v2/models/m/infer", "/v1/models/m:predict", "/v1/models/m:classify", "/v1/models/m:regress"];
const SAYS_LENGTH: u8 = 1 << 4;
const IS_GZIP: u8 = 1 << 5;

thread_local! {
    static PORTS: LazyLock<Vec<Port>> = LazyLock::new(|| MODELS.iter().map(|model| Port::new(model, http::app)).collect());
}

fuzz_target!(|input: &[u8]| -> Corpus {
    let Some((&choice, body)) = input.split_first() else { return Corpus::Reject };
    let mut request = Request::post(ROUTES[usize::from(choice >> 2) % ROUTES.len()]);
    let mut body = body;
    if choice & SAYS_LENGTH != 0 {
        let Some((length, rest)) = body.split_first_chunk::<2>() else { return Corpus::Reject };
        request = request.header("inference-header-content-length", u16::from_le_bytes(*length).to_string());
        body = rest;
    }
    if choice & IS_GZIP != 0 {
        request = request.header("content-encoding", "gzip");
    }
    let request = request.body(Body::from(body.to_vec())).expect("a request");
    let (status, headers, answer, _) = PORTS.with(|ports| ports[usize::from(choice) % MODELS.len()].send(request));
    assert!(
        matches!(status, StatusCode::OK | StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE),
        "{status}: {answer:?}"
    );
    let json = headers
        .get("inference-header-content-length")
        .map_or(answer.len(), |length| length.to_str().expect("digits").parse().expect("a number"));
    let told: serde_json::Value = serde_json::from_slice(&answer[..json]).expect("every answer is JSON");
    assert_eq!(status == StatusCode::OK, told.get("error").is_none(), "{told}");
    Corpus::Keep
});
