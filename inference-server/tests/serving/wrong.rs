//! Wrong requests over REST: each gets the status and the words that say what was expected and what came.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::{Method, Request, StatusCode};
use hyper::body::Frame;
use ortolan_server::serving::Server;
use ortolan_server::{grpc, http};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tonic::Code;

use crate::common::{app, call, get, infer, send, server};

const LENGTH: &str = "inference-header-content-length";

async fn refused(app: &Router, model: &str, body: &str) -> String {
    let answer = infer(app, model, &[], body.to_owned()).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{body}: {answer:?}");
    answer.error()
}

/// A request to the model "add" with some of its parts replaced.
fn add(replace: &[(&str, Value)]) -> Value {
    let tensor = |name: &str| json!({"name": name, "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]});
    let mut request = json!({"inputs": [tensor("a"), tensor("b")]});
    for (pointer, value) in replace {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let parent = request.pointer_mut(parent).unwrap();
        match value {
            Value::String(word) if word == "(removed)" => drop(parent.as_object_mut().unwrap().remove(key)),
            _ => parent.as_object_mut().map(|object| object.insert(key.to_owned(), value.clone())).map_or((), drop),
        }
    }
    request
}

#[tokio::test]
async fn bodies_that_are_no_requests() {
    let app = app("add").await;
    let deep = format!(r#"{{"inputs":[],"parameters":{}1{}}}"#, r#"{"a":"#.repeat(200), "}".repeat(200));
    let deep_data = format!(
        r#"{{"inputs":[{{"name":"a","datatype":"FP32","shape":[1,3],"data":{}{}}}]}}"#,
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    for (body, words) in [
        ("", "the body is empty"),
        ("{", "EOF while parsing"),
        ("[]", "not a JSON object"),
        ("7", "not a JSON object"),
        ("{}", "missing field `inputs`"),
        (r#"{"inputs":{}}"#, "invalid type: map"),
        (r#"{"inputs":[]}"#, "the request lacks 'a' and 'b'"),
        (r#"{"inputs":[{}]}"#, "missing field `name`"),
        (r#"{"inputs":[{"name":"a","shape":[1,3],"data":[1,2,3]}]}"#, "missing field `datatype`"),
        (r#"{"inputs":[{"name":"a","datatype":"FP32","data":[1,2,3]}]}"#, "missing field `shape`"),
        (r#"{"inputs":[{"name":"a","datatype":"FP32","shape":[1,3],"data":[NaN,1,2]}]}"#, "expected value"),
        (r#"{"inputs":[{"name":"a","datatype":"FP32","shape":[1,3],"data":[Infinity,1,2]}]}"#, "expected value"),
        (r#"{"inputs":[{"name":"a","datatype":"FP32","shape":[1,9223372036854775808],"data":[]}]}"#, "invalid value"),
        (r#"{"inputs":[]} trailing"#, "trailing characters"),
        (&deep, "recursion limit"),
        (&deep_data, "nested exactly as the shape says"),
        ("\u{0}\u{1}\u{2}", "not a JSON object"),
    ] {
        let error = refused(&app, "add", body).await;
        assert!(error.contains(words), "{}: {error}", &body[..body.len().min(80)]);
    }
    let not_text = infer(&app, "add", &[], vec![0xff, 0xfe]).await;
    assert_eq!(not_text.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn inputs_that_do_not_fit_the_model() {
    let app = app("add").await;
    let big = i64::MAX;
    for (replace, words) in [
        (vec![("/inputs/0/name", json!("c"))], "no input 'c'; it has 'a' and 'b'"),
        (vec![("/inputs/1/name", json!("a"))], "'a' comes more than once"),
        (vec![("/inputs/0/datatype", json!("FP64"))], "'a' must be FP32, not FP64"),
        (vec![("/inputs/0/datatype", json!("float"))], "'a' must be FP32, not float"),
        (vec![("/inputs/0/shape", json!([3]))], "2 dimensions ([-1, 3]), not 1 ([3])"),
        (vec![("/inputs/0/shape", json!([1, 1, 3]))], "not 3 ([1, 1, 3])"),
        (
            vec![("/inputs/0/shape", json!([1, 4])), ("/inputs/0/data", json!([1, 2, 3, 4]))],
            "shape [-1, 3], not [1, 4]",
        ),
        (vec![("/inputs/0/shape", json!([-1, 3]))], "negative dimension"),
        (vec![("/inputs/0/shape", json!([big, 3]))], "too many elements"),
        (vec![("/inputs/0/shape", json!([1.5, 3]))], "invalid type"),
        (
            vec![("/inputs/0/shape", json!([33, 3])), ("/inputs/0/data", json!(vec![0; 99]))],
            "disagree about the number of rows: 'a' has 33, 'b' has 1",
        ),
        (vec![("/inputs/0/data", json!("(removed)"))], "'a' has neither data nor binary_data_size"),
        (vec![("/inputs/0/parameters", json!({"binary_data_size": 12}))], "both data and binary_data_size"),
        (vec![("/outputs", json!([{"name": "product"}]))], "no output 'product'; it has 'sum'"),
        (vec![("/outputs", json!([{"name": "sum"}, {"name": "sum"}]))], "'sum' is asked for more than once"),
        (
            vec![("/outputs", json!([{"name": "sum", "parameters": {"binary_data": "yes"}}]))],
            "binary_data must be true or false",
        ),
        (vec![("/parameters", json!({"timeout": "soon"}))], "timeout must be a number of microseconds"),
        (vec![("/parameters", json!({"timeout": -1}))], "timeout must be"),
    ] {
        let error = refused(&app, "add", &add(&replace).to_string()).await;
        assert!(error.contains(words), "{replace:?}: {error}");
    }
}

#[tokio::test]
async fn elements_that_do_not_fit_their_tensor() {
    let app = app("add").await;
    for (data, words) in [
        (json!([1, 2]), "takes 3 elements, not 2"),
        (json!([1, 2, 3, 4]), "more elements than shape [1, 3] takes"),
        (json!([]), "takes 3 elements, not 0"),
        (json!([[1, 2], [3]]), "nested exactly"),
        (json!([[[1, 2, 3]]]), "nested exactly"),
        (json!([1, [2, 3]]), "nested exactly"),
        (json!([[1, 2, 3], []]), "nested exactly"),
        (json!([1, null, 3]), "invalid type: null, expected a number"),
        (json!([1, "2", 3]), "a string is not a number"),
        (json!([1, true, 3]), "true is not a number"),
        (json!([1, {}, 3]), "invalid type: map"),
        (json!([1, 1e39, 3]), "is not a number that FP32 can hold"),
        (json!(5), "nested exactly"),
        (json!({"a": 1}), "invalid type: map, expected an array"),
        (json!("AAAA"), "nested exactly"),
    ] {
        let error = refused(&app, "add", &add(&[("/inputs/0/data", data.clone())]).to_string()).await;
        assert!(error.contains(words) && error.contains("'a'") && !error.contains("line"), "{data}: {error}");
    }
    let huge = add(&[]).to_string().replace("[1,2,3]", "[1,2,1e999]");
    assert!(refused(&app, "add", &huge).await.contains("'a'"));
    let claims = add(&[("/inputs/0/shape", json!([1_000_000_000, 3])), ("/inputs/0/data", json!([1]))]).to_string();
    assert!(refused(&app, "add", &claims).await.contains("3000000000 elements"), "memory is not taken for a claim");
}

#[tokio::test]
async fn elements_that_their_type_cannot_hold() {
    let app = app("types").await;
    for (datatype, data, words) in [
        ("UINT8", json!([300, 0]), "300 is not an integer from 0 to 255"),
        ("UINT8", json!([-1, 0]), "-1 is not an integer from 0 to 255"),
        ("INT8", json!([128, 0]), "128 is not an integer from -128 to 127"),
        ("INT16", json!([1.5, 0]), "1.5 is not an integer"),
        ("INT64", json!([1e3, 0]), "1000 is not an integer"),
        ("UINT64", json!([-1, 0]), "-1 is not"),
        ("UINT32", json!([4_294_967_296_u64, 0]), "4294967296 is not"),
        ("BOOL", json!([1, 0]), "1 is not true or false"),
        ("BYTES", json!([1, 0]), "1 is not a string"),
        ("BYTES", json!(["a\u{0}b", ""]), "NUL"),
        ("FP16", json!([1, 0]), "send it in binary"),
        ("BF16", json!([1, 0]), "send it in binary"),
    ] {
        let name = datatype.to_lowercase();
        let body = json!({"inputs": [{"name": name, "datatype": datatype, "shape": [1, 2], "data": data}]});
        let error = refused(&app, "types", &body.to_string()).await;
        assert!(error.contains(words) && error.contains(&name), "{datatype}: {error}");
    }
}

#[tokio::test]
async fn binary_tensors_that_are_not_what_they_say() {
    let app = app("types").await;
    for (datatype, size, tail, words) in [
        ("FP32", json!(8), vec![0; 7], "binary_data_size of 8, but only 7 bytes are left"),
        ("FP32", json!(8), vec![0; 9], "1 bytes follow the last binary input"),
        ("FP32", json!(4), vec![0; 4], "takes 8 bytes, not 4"),
        ("FP32", json!(12), vec![0; 12], "takes 8 bytes, not 12"),
        ("FP32", json!(-8), vec![0; 8], "must be a number of bytes"),
        ("FP32", json!("8"), vec![0; 8], "must be a number of bytes"),
        ("FP32", json!(u64::MAX), vec![0; 8], "must be a number of bytes"),
        ("FP32", json!(8.5), vec![0; 8], "must be a number of bytes"),
        ("BOOL", json!(2), vec![1, 2], "neither 0 nor 1"),
        ("BYTES", json!(3), vec![1, 0, 0], "ends in the middle of a BYTES element"),
        ("BYTES", json!(5), vec![2, 0, 0, 0, b'a'], "ends in the middle"),
        ("BYTES", json!(4), vec![0, 0, 0, 0], "takes 2 elements, not 1"),
        ("BYTES", json!(12), vec![0; 12], "takes 2 elements, not 3"),
        ("BYTES", json!(9), vec![1, 0, 0, 0, 0xff, 0, 0, 0, 0], "not UTF-8"),
        ("BYTES", json!(4), vec![0xff, 0xff, 0xff, 0xff], "ends in the middle"),
    ] {
        let name = datatype.to_lowercase();
        let head = json!({"inputs": [{"name": name, "datatype": datatype, "shape": [1, 2], "parameters": {"binary_data_size": size}}]}).to_string();
        let body = [head.as_bytes(), &tail].concat();
        let answer = infer(&app, "types", &[(LENGTH, &head.len().to_string())], body).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{datatype} {size}");
        assert!(
            answer.error().contains(words) && (answer.error().contains(&name) || words.contains("follow")),
            "{datatype} {size}: {}",
            answer.error()
        );
    }
}

#[tokio::test]
async fn header_lengths_that_are_none() {
    let app = app("add").await;
    let body = add(&[]).to_string();
    for (length, words) in [
        ("-1", "must be the number of bytes"),
        ("ten", "must be the number of bytes"),
        ("", "must be the number of bytes"),
        ("18446744073709551616", "must be the number of bytes"),
        ("100000", "but the body has only"),
        ("18446744073709551615", "but the body has only"),
        ("5", "EOF while parsing"),
    ] {
        let answer = infer(&app, "add", &[(LENGTH, length)], body.clone()).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{length}");
        assert!(answer.error().contains(words), "{length}: {}", answer.error());
    }
}

#[tokio::test]
async fn a_batch_over_the_maximum_is_refused_with_both_numbers() {
    let app = http::app(server("mlp", &["--max-batch-size", "4"]).await);
    let body = |rows: usize| {
        json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [rows, 64], "data": vec![0; rows * 64]}]})
            .to_string()
    };
    assert_eq!(infer(&app, "mlp", &[], body(4)).await.status, StatusCode::OK);
    let error = refused(&app, "mlp", &body(5)).await;
    assert!(error.contains("5 rows") && error.contains("at most 4"), "{error}");
}

#[tokio::test]
async fn values_that_the_model_refuses_are_the_client_s_fault_and_say_why() {
    let app = app("gather").await;
    let body = json!({"inputs": [{"name": "i", "datatype": "INT64", "shape": [2], "data": [1, 7]}]}).to_string();
    let error = refused(&app, "gather", &body).await;
    assert!(error.contains("cannot run on this input") && error.contains("idx=7"), "{error}");
    assert!(!error.contains("Gather") && !error.contains('/'), "no internal names: {error}");
}

#[tokio::test]
async fn halves_asked_for_as_json() {
    let app = app("types").await;
    let inputs: Vec<Value> =
        [("bool", "BOOL"), ("fp16", "FP16"), ("bf16", "BF16"), ("bytes", "BYTES"), ("fp32", "FP32"), ("fp64", "FP64")]
            .into_iter()
            .map(|(name, datatype)| json!({"name": name, "datatype": datatype, "shape": [0, 2]}))
            .chain(
                ["uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"]
                    .map(|name| json!({"name": name, "datatype": name.to_uppercase(), "shape": [0, 2]})),
            )
            .collect();
    let error = refused(&app, "types", &json!({"inputs": inputs, "outputs": [{"name": "fp16_out"}]}).to_string()).await;
    assert!(error.contains("fp16_out") && error.contains("ask for it in binary"), "{error}");
}

#[tokio::test]
async fn unknown_models_versions_and_routes_are_404() {
    let app = app("add").await;
    for path in [
        "/v2/models/other",
        "/v2/models/add/versions/2",
        "/v2/models/other/ready",
        "/v2/models/add/versions/2/ready",
        "/",
        "/v2/nothing",
        "/v2/repository/models/add/load",
        "/v1/models/other",
        "/v1/models/add/versions/2",
        "/v1/models/other/metadata",
        "/v2/models/add/load",
        "/v2/systemsharedmemory/status",
        "/v2/logging",
        "/metrics",
        "/stats",
        "/healthz",
    ] {
        let answer = get(&app, path).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path}");
        assert!(!answer.error().is_empty());
    }
    for model in ["other", "add/versions/2"] {
        assert_eq!(infer(&app, model, &[], add(&[]).to_string()).await.status, StatusCode::NOT_FOUND, "{model}");
    }
    assert_eq!(infer(&app, "add/versions/1", &[], add(&[]).to_string()).await.status, StatusCode::OK);
}

#[tokio::test]
async fn wrong_verbs_are_405_and_name_the_right_ones() {
    let app = app("add").await;
    for (method, path, allowed) in [
        (Method::GET, "/v2/models/add/infer", "POST"),
        (Method::PUT, "/v2/models/add/infer", "POST"),
        (Method::POST, "/v2/models/add", "GET,HEAD"),
        (Method::DELETE, "/v2", "GET,HEAD"),
        (Method::POST, "/v2/health/ready", "GET,HEAD"),
        (Method::GET, "/v2/repository/index", "POST"),
        (Method::PUT, "/v1/models/add:predict", "POST"),
        (Method::PUT, "/v1/models/add", "GET,HEAD"),
    ] {
        let answer = call(&app, method.clone(), path).await;
        assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
        assert_eq!(answer.headers["allow"], allowed, "{method} {path}");
        assert!(answer.error().contains(allowed));
    }
}

#[tokio::test]
async fn bodies_over_the_limit_are_413_whether_they_say_so_or_not() {
    let app = http::app(server("add", &["--max-request-bytes", "1000"]).await);
    let announced = infer(&app, "add", &[], vec![b' '; 1001]).await;
    assert_eq!(announced.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(announced.error().contains("1000 bytes"), "{}", announced.error());
    // An endless body, in pieces: it must be left as soon as it is too long.
    let endless = Body::new(Pieces { of: Bytes::from_static(&[b' '; 100]) });
    let request = Request::post("/v2/models/add/infer").body(endless).unwrap();
    assert_eq!(send(&app, request).await.status, StatusCode::PAYLOAD_TOO_LARGE);
    let padded = format!("{:1000}", add(&[]).to_string());
    assert_eq!(infer(&app, "add", &[], padded).await.status, StatusCode::OK);
}

/// The same piece, again and again.
struct Pieces {
    of: Bytes,
}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(Some(Ok(Frame::data(self.of.clone()))))
    }
}

#[tokio::test]
async fn encodings_that_are_not_read_are_415() {
    let app = app("add").await;
    for encoding in ["br", "gzip, gzip", "nonsense"] {
        let answer = infer(&app, "add", &[("content-encoding", encoding)], add(&[]).to_string()).await;
        assert_eq!(answer.status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{encoding}");
        assert!(answer.error().contains(encoding));
    }
    let plain = infer(&app, "add", &[("content-encoding", "identity")], add(&[]).to_string()).await;
    assert_eq!(plain.status, StatusCode::OK);
}

#[tokio::test]
async fn a_body_that_never_ends_is_408_when_its_time_is_over() {
    let app = http::app(server("add", &["--request-body-timeout", "20ms"]).await);
    let answer = send(&app, Request::post("/v2/models/add/infer").body(Body::new(Silence)).unwrap()).await;
    assert_eq!(answer.status, StatusCode::REQUEST_TIMEOUT);
    assert!(answer.error().contains("0.02 seconds"), "{}", answer.error());
}

#[tokio::test]
async fn a_call_that_never_ends_is_deadline_exceeded_when_its_time_is_over() {
    let server = server("add", &["--request-body-timeout", "20ms"]).await;
    assert_eq!(call_grpc(&server, Body::new(Silence)).await, Code::DeadlineExceeded);
    assert_eq!(server.stats().requests.refused, 1);
}

#[tokio::test]
async fn bodies_under_way_are_refused_when_there_are_too_many_bytes_of_them_over_both_protocols() {
    let server = server("add", &["--max-request-bytes", "1000", "--max-body-bytes-under-way", "1000"]).await;
    let app = http::app(server.clone());
    let wanted = add(&[]).to_string();
    for is_grpc in [false, true] {
        let (body, is_read) = unfinished(900);
        let under_way = if is_grpc {
            let server = server.clone();
            tokio::spawn(async move { call_grpc(&server, body).await.to_string() })
        } else {
            let app = app.clone();
            tokio::spawn(async move { infer(&app, "add", &[], body).await.status.to_string() })
        };
        is_read.await.unwrap();
        let refused = infer(&app, "add", &[], wanted.clone()).await;
        assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE, "{refused:?}");
        assert!(refused.error().contains("other requests") && refused.headers.contains_key("retry-after"));
        assert_eq!(call_grpc(&server, Body::from(vec![0; 200])).await, Code::ResourceExhausted);
        under_way.abort();
        assert!(under_way.await.unwrap_err().is_cancelled());
        assert_eq!(infer(&app, "add", &[], wanted.clone()).await.status, StatusCode::OK);
    }
    assert_eq!(server.stats().requests.shed, 4);
}

#[tokio::test]
async fn a_call_of_endless_messages_is_left_when_it_is_too_long() {
    let server = server("add", &["--max-request-bytes", "1000"]).await;
    let endless = Body::new(Pieces { of: Bytes::from_static(&[0; 5]) });
    assert_eq!(call_grpc(&server, endless).await, Code::ResourceExhausted);
    assert_eq!(server.stats().requests.refused, 1);
}

/// How a call with that body ends.
async fn call_grpc(server: &Arc<Server>, body: Body) -> Code {
    let app = grpc::app(server.clone(), tonic_health::server::health_reporter().1);
    let request =
        Request::post("/inference.GRPCInferenceService/ModelInfer").header("content-type", "application/grpc");
    let answer = send(&app, request.body(body).unwrap()).await;
    Code::from_bytes(answer.headers["grpc-status"].as_bytes())
}

/// So many bytes (as gRPC reads them: the beginning of one message of 1000), and then nothing.
struct Unfinished {
    bytes: usize,
    is_read: Option<oneshot::Sender<()>>,
}

/// Such a body, and what tells that its bytes were taken.
fn unfinished(bytes: usize) -> (Body, oneshot::Receiver<()>) {
    let (sender, is_read) = oneshot::channel();
    (Body::new(Unfinished { bytes, is_read: Some(sender) }), is_read)
}

impl HttpBody for Unfinished {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match std::mem::take(&mut self.bytes) {
            0 => {
                self.is_read.take().map(|sender| sender.send(()));
                Poll::Pending
            }
            bytes => {
                let mut piece = vec![0; bytes];
                piece[..5].copy_from_slice(&[0, 0, 0, 3, 232]);
                Poll::Ready(Some(Ok(Frame::data(piece.into()))))
            }
        }
    }
}

/// Nothing, for ever.
struct Silence;

impl HttpBody for Silence {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Pending
    }
}

#[tokio::test]
async fn a_deadline_that_has_passed_is_504_and_counted_as_expired() {
    let server = server("add", &[]).await;
    let app = http::app(server.clone());
    let answer = infer(&app, "add", &[("ortolan-timeout-ms", "0")], add(&[]).to_string()).await;
    assert_eq!(answer.status, StatusCode::GATEWAY_TIMEOUT, "{answer:?}");
    assert!(answer.error().contains("deadline"));
    let wrong = infer(&app, "add", &[("ortolan-timeout-ms", "soon")], add(&[]).to_string()).await;
    assert_eq!(wrong.status, StatusCode::BAD_REQUEST);
    for time in ["60000", "18446744073709551615"] {
        assert_eq!(
            infer(&app, "add", &[("ortolan-timeout-ms", time)], add(&[]).to_string()).await.status,
            StatusCode::OK,
            "{time}"
        );
    }
    let generous = add(&[("/parameters", json!({"timeout": 60_000_000}))]).to_string();
    assert_eq!(infer(&app, "add", &[], generous).await.status, StatusCode::OK);
    let requests = server.stats().requests;
    assert_eq!((requests.arrived, requests.completed, requests.expired, requests.refused), (5, 3, 1, 1));
}
