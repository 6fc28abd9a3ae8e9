//! The Open Inference Protocol over gRPC, right and wrong, through the generated client.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use bytes::Bytes;
use ortolan_protocol::grpc::grpc_inference_service_client::GrpcInferenceServiceClient as Client;
use ortolan_protocol::grpc::infer_parameter::ParameterChoice;
use ortolan_protocol::grpc::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use ortolan_protocol::grpc::{
    InferParameter, InferTensorContents, ModelInferRequest, ModelMetadataRequest, ModelReadyRequest, ServerLiveRequest,
    ServerMetadataRequest, ServerReadyRequest,
};
use ortolan_server::grpc;
use ortolan_server::serving::Server;
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::common::{empty_server, expectations, server};

pub fn app(server: Arc<Server>) -> Router {
    grpc::app(server, tonic_health::server::health_reporter().1)
}

pub async fn client(model: &str) -> Client<Router> {
    Client::new(app(server(model, &[]).await))
}

fn input(name: &str, datatype: &str, shape: &[i64], contents: Option<InferTensorContents>) -> InferInputTensor {
    InferInputTensor {
        name: name.to_owned(),
        datatype: datatype.to_owned(),
        shape: shape.to_vec(),
        contents,
        ..Default::default()
    }
}

fn request(model: &str, inputs: Vec<InferInputTensor>) -> ModelInferRequest {
    ModelInferRequest { model_name: model.to_owned(), inputs, ..Default::default() }
}

fn floats(numbers: &[f32]) -> InferTensorContents {
    InferTensorContents { fp32_contents: numbers.to_vec(), ..Default::default() }
}

/// A good request to the model "add".
pub fn add() -> ModelInferRequest {
    let tensor = |name| input(name, "FP32", &[1, 3], Some(floats(&[1.0, 2.0, 3.0])));
    request("add", vec![tensor("a"), tensor("b")])
}

async fn refused(client: &mut Client<Router>, request: ModelInferRequest) -> Status {
    client.model_infer(request).await.unwrap_err()
}

#[tokio::test]
async fn every_model_answers_what_onnx_runtime_says_in_python() {
    for case in expectations() {
        let name = case["model"].as_str().unwrap();
        let mut client = client(name).await;
        let mut message = request(name, Vec::new());
        message.id = "42".to_owned();
        for tensor in case["inputs"].as_array().unwrap() {
            let numbers: Vec<f32> = serde_json::from_value(tensor["data"].clone()).unwrap();
            let shape: Vec<i64> = serde_json::from_value(tensor["shape"].clone()).unwrap();
            message.inputs.push(input(tensor["name"].as_str().unwrap(), "FP32", &shape, None));
            message.raw_input_contents.push(numbers.iter().flat_map(|number| number.to_le_bytes()).collect());
        }
        let typed = typed(&message);
        for message in [message, typed] {
            let answer = client.model_infer(message).await.unwrap().into_inner();
            assert_eq!(
                (answer.model_name.as_str(), answer.model_version.as_str(), answer.id.as_str()),
                (name, "1", "42")
            );
            let outputs = case["outputs"].as_array().unwrap();
            assert_eq!((answer.outputs.len(), answer.raw_output_contents.len()), (outputs.len(), outputs.len()));
            for ((output, raw), expected) in answer.outputs.iter().zip(&answer.raw_output_contents).zip(outputs) {
                assert_eq!(
                    (&*output.name, &*output.datatype),
                    (expected["name"].as_str().unwrap(), expected["datatype"].as_str().unwrap())
                );
                assert_eq!(output.shape, serde_json::from_value::<Vec<i64>>(expected["shape"].clone()).unwrap());
                assert_close(
                    raw,
                    &output.datatype,
                    &serde_json::from_value::<Vec<f64>>(expected["data"].clone()).unwrap(),
                );
            }
        }
    }
}

/// The same request with the numbers in the typed fields.
fn typed(message: &ModelInferRequest) -> ModelInferRequest {
    let mut typed = message.clone();
    for (input, raw) in typed.inputs.iter_mut().zip(std::mem::take(&mut typed.raw_input_contents)) {
        let numbers: Vec<f32> = raw.chunks(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect();
        input.contents = Some(floats(&numbers));
    }
    typed
}

fn assert_close(raw: &[u8], datatype: &str, expected: &[f64]) {
    let found: Vec<f64> = match datatype {
        "FP32" => raw.chunks(4).map(|bytes| f64::from(f32::from_le_bytes(bytes.try_into().unwrap()))).collect(),
        "INT64" => raw.chunks(8).map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap()) as f64).collect(),
        other => panic!("no test compares {other}"),
    };
    assert_eq!(found.len(), expected.len());
    assert!(
        found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-5),
        "{found:?} is not {expected:?}"
    );
}

/// Two elements of every type that has a typed field, in that field and in binary.
fn typed_elements() -> [(&'static str, InferTensorContents, Vec<u8>); 12] {
    let none = InferTensorContents::default;
    let strings = vec![Bytes::from_static(b"ab"), Bytes::new()];
    [
        ("BOOL", InferTensorContents { bool_contents: vec![true, false], ..none() }, vec![1, 0]),
        ("UINT8", InferTensorContents { uint_contents: vec![0, 255], ..none() }, vec![0, 255]),
        ("UINT16", InferTensorContents { uint_contents: vec![1, 65_535], ..none() }, vec![1, 0, 255, 255]),
        (
            "UINT32",
            InferTensorContents { uint_contents: vec![2, u32::MAX], ..none() },
            [2, u32::MAX].map(u32::to_le_bytes).concat(),
        ),
        (
            "UINT64",
            InferTensorContents { uint64_contents: vec![3, u64::MAX], ..none() },
            [3, u64::MAX].map(u64::to_le_bytes).concat(),
        ),
        ("INT8", InferTensorContents { int_contents: vec![-128, 127], ..none() }, vec![0x80, 0x7f]),
        ("INT16", InferTensorContents { int_contents: vec![-32_768, 5], ..none() }, vec![0, 0x80, 5, 0]),
        (
            "INT32",
            InferTensorContents { int_contents: vec![i32::MIN, 6], ..none() },
            [i32::MIN, 6].map(i32::to_le_bytes).concat(),
        ),
        (
            "INT64",
            InferTensorContents { int64_contents: vec![i64::MIN, 7], ..none() },
            [i64::MIN, 7].map(i64::to_le_bytes).concat(),
        ),
        ("FP32", floats(&[0.5, -1.5]), [0.5_f32, -1.5].map(f32::to_le_bytes).concat()),
        (
            "FP64",
            InferTensorContents { fp64_contents: vec![0.1, 1e300], ..none() },
            [0.1_f64, 1e300].map(f64::to_le_bytes).concat(),
        ),
        ("BYTES", InferTensorContents { bytes_contents: strings, ..none() }, vec![2, 0, 0, 0, b'a', b'b', 0, 0, 0, 0]),
    ]
}

#[tokio::test]
async fn every_type_goes_through_in_binary() {
    let mut client = client("types").await;
    let halves = [("FP16", vec![0, 0x3c, 1, 0x80]), ("BF16", vec![0x80, 0x3f, 1, 0x80])];
    let all: Vec<(&str, Vec<u8>)> =
        typed_elements().into_iter().map(|(datatype, _, raw)| (datatype, raw)).chain(halves).collect();
    let mut message = request(
        "types",
        all.iter().map(|(datatype, _)| input(&datatype.to_lowercase(), datatype, &[1, 2], None)).collect(),
    );
    message.raw_input_contents = all.iter().map(|(_, raw)| Bytes::from(raw.clone())).collect();
    let output = |datatype: &str| InferRequestedOutputTensor {
        name: format!("{}_out", datatype.to_lowercase()),
        ..Default::default()
    };
    message.outputs = all.iter().map(|(datatype, _)| output(datatype)).collect();
    let answer = client.model_infer(message).await.unwrap().into_inner();
    for ((datatype, raw), (output, found)) in all.iter().zip(answer.outputs.iter().zip(&answer.raw_output_contents)) {
        assert_eq!((&*output.datatype, &**found), (*datatype, raw.as_slice()));
    }
}

#[tokio::test]
async fn typed_contents_are_read_for_the_types_that_have_them_and_refused_for_the_others() {
    let mut client = client("types").await;
    let halves = ["FP16", "BF16"].map(|datatype| input(&datatype.to_lowercase(), datatype, &[1, 2], None));
    let typed = typed_elements()
        .map(|(datatype, contents, _)| input(&datatype.to_lowercase(), datatype, &[1, 2], Some(contents)));
    // The twelve typed inputs are read, and the first of the two others is where it ends.
    let error = refused(&mut client, request("types", typed.into_iter().chain(halves).collect())).await;
    assert!(error.message().contains("'fp16' is FP16, which goes into raw_input_contents"), "{error:?}");
}

#[tokio::test]
async fn only_the_outputs_that_were_asked_for_come_in_their_order() {
    let mut client = client("classifier").await;
    let mut message = request("classifier", vec![input("x", "FP32", &[1, 4], Some(floats(&[1.0, 2.0, 3.0, 4.0])))]);
    for names in [vec!["probabilities", "label"], vec!["label"]] {
        message.outputs = names
            .iter()
            .map(|name| InferRequestedOutputTensor { name: (*name).to_owned(), ..Default::default() })
            .collect();
        let answer = client.model_infer(message.clone()).await.unwrap().into_inner();
        assert_eq!(answer.outputs.iter().map(|output| &*output.name).collect::<Vec<_>>(), names);
    }
}

#[tokio::test]
async fn zero_rows_need_no_contents() {
    let answer = client("mlp")
        .await
        .model_infer(request("mlp", vec![input("x", "FP32", &[0, 64], None)]))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer.outputs[0].shape, [0, 10]);
    assert!(answer.raw_output_contents[0].is_empty());
}

#[tokio::test]
async fn metadata_and_health_are_those_of_the_protocol() {
    let server = server("classifier", &["--revision", "r7"]).await;
    let mut client = Client::new(app(server.clone()));
    assert!(client.server_live(ServerLiveRequest {}).await.unwrap().into_inner().live);
    assert!(client.server_ready(ServerReadyRequest {}).await.unwrap().into_inner().ready);
    let name = "classifier".to_owned();
    for version in ["", "r7"] {
        let ready = ModelReadyRequest { name: name.clone(), version: version.to_owned() };
        assert!(client.model_ready(ready).await.unwrap().into_inner().ready);
        let metadata = ModelMetadataRequest { name: name.clone(), version: version.to_owned() };
        let metadata = client.model_metadata(metadata).await.unwrap().into_inner();
        assert_eq!((metadata.versions, metadata.outputs.len()), (vec!["r7".to_owned()], 2));
        assert_eq!((&*metadata.inputs[0].datatype, &*metadata.inputs[0].shape), ("FP32", &[-1, 4][..]));
    }
    let metadata = client.server_metadata(ServerMetadataRequest {}).await.unwrap().into_inner();
    assert_eq!((&*metadata.name, &*metadata.version), ("ortolan", env!("CARGO_PKG_VERSION")));
    server.drain();
    assert!(!client.server_ready(ServerReadyRequest {}).await.unwrap().into_inner().ready);
}

#[tokio::test]
async fn a_server_without_its_model_is_unavailable_and_its_health_service_answers() {
    let app = app(empty_server("add", &[]));
    let mut client = Client::new(app.clone());
    assert_eq!(refused(&mut client, add()).await.code(), Code::Unavailable);
    assert!(!client.server_ready(ServerReadyRequest {}).await.unwrap().into_inner().ready);
    let ready = ModelReadyRequest { name: "add".to_owned(), ..Default::default() };
    assert!(!client.model_ready(ready).await.unwrap().into_inner().ready);
    let unknown = HealthCheckRequest { service: "nothing".to_owned() };
    assert_eq!(HealthClient::new(app).check(unknown).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn requests_that_do_not_fit_are_invalid_arguments_and_say_why() {
    type Change = fn(&mut ModelInferRequest);
    let mut client = client("add").await;
    let cases: [(Change, &str); 17] = [
        (|request| request.inputs.clear(), "lacks 'a' and 'b'"),
        (|request| request.inputs.truncate(1), "lacks 'b'"),
        (|request| request.inputs[0].name = "c".to_owned(), "no input 'c'"),
        (|request| request.inputs[1].name = "a".to_owned(), "more than once"),
        (|request| request.inputs[0].datatype = "FP64".to_owned(), "must be FP32, not FP64"),
        (|request| request.inputs[0].shape = vec![3], "2 dimensions"),
        (|request| request.inputs[0].shape = vec![-1, 3], "negative dimension"),
        (|request| request.inputs[0].shape = vec![i64::MAX, 3], "too many elements"),
        (|request| request.inputs[0].shape = vec![1, 4], "shape [-1, 3], not [1, 4]"),
        (|request| request.inputs[0].contents = Some(floats(&[1.0])), "takes 3 elements, not 1"),
        (|request| request.inputs[0].contents = None, "takes 3 elements, not 0"),
        (
            |request| {
                let doubles = InferTensorContents { fp64_contents: vec![1.0; 3], ..Default::default() };
                request.inputs[0].contents = Some(doubles);
            },
            "goes into fp32_contents, not fp64_contents",
        ),
        (|request| request.raw_input_contents = vec![Bytes::from(vec![0; 12])], "2 inputs but 1 raw_input_contents"),
        (|request| request.raw_input_contents = vec![Bytes::from(vec![0; 12]); 3], "2 inputs but 3 raw_input_contents"),
        (|request| request.raw_input_contents = vec![Bytes::from(vec![0; 12]); 2], "raw_input_contents, too"),
        (
            |request| request.outputs = vec![InferRequestedOutputTensor { name: "x".to_owned(), ..Default::default() }],
            "no output 'x'; it has 'sum'",
        ),
        (
            |request| drop(request.parameters.insert("timeout".to_owned(), InferParameter { parameter_choice: None })),
            "timeout must be a number",
        ),
    ];
    for (change, words) in cases {
        let mut request = add();
        change(&mut request);
        let status = refused(&mut client, request).await;
        assert_eq!(status.code(), Code::InvalidArgument, "{words}");
        assert!(status.message().contains(words), "{words}: {}", status.message());
    }
    let mut raw = add();
    raw.inputs.iter_mut().for_each(|input| input.contents = None);
    raw.raw_input_contents = vec![Bytes::from(vec![0; 11]), Bytes::from(vec![0; 12])];
    assert!(refused(&mut client, raw).await.message().contains("takes 12 bytes, not 11"));
}

#[tokio::test]
async fn elements_that_their_type_cannot_hold_are_invalid() {
    let mut client = client("types").await;
    let contents = InferTensorContents::default;
    for (datatype, contents, words) in [
        ("UINT8", InferTensorContents { uint_contents: vec![300, 0], ..contents() }, "300 does not fit"),
        ("INT8", InferTensorContents { int_contents: vec![0, -129], ..contents() }, "-129 does not fit"),
        ("INT16", InferTensorContents { int_contents: vec![40_000, 0], ..contents() }, "40000 does not fit"),
        (
            "BYTES",
            InferTensorContents { bytes_contents: vec![Bytes::from_static(&[0xff]), Bytes::new()], ..contents() },
            "not UTF-8",
        ),
    ] {
        let message = request("types", vec![input(&datatype.to_lowercase(), datatype, &[1, 2], Some(contents))]);
        let status = refused(&mut client, message).await;
        assert!(status.code() == Code::InvalidArgument && status.message().contains(words), "{datatype}: {status:?}");
    }
}

#[tokio::test]
async fn unknown_models_versions_and_calls() {
    let mut client = client("add").await;
    let other = ModelInferRequest { model_name: "other".to_owned(), ..add() };
    assert_eq!(refused(&mut client, other).await.code(), Code::NotFound);
    let version = ModelInferRequest { model_version: "2".to_owned(), ..add() };
    assert_eq!(refused(&mut client, version).await.code(), Code::NotFound);
    let ready = ModelReadyRequest { name: "other".to_owned(), ..Default::default() };
    assert_eq!(client.model_ready(ready).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_message_over_the_limit_is_resource_exhausted() {
    let server = server("add", &["--max-request-bytes", "1000"]).await;
    let mut client = Client::new(app(server.clone()));
    let mut large = add();
    large.id = "x".repeat(1001);
    assert_eq!(refused(&mut client, large).await.code(), Code::ResourceExhausted);
    client.model_infer(add()).await.unwrap();
    assert_eq!((server.stats().requests.refused, server.stats().requests.completed), (1, 1));
}

#[tokio::test]
async fn deadlines_come_by_the_call_or_by_a_parameter() {
    let server = server("add", &[]).await;
    let mut client = Client::new(app(server.clone()));
    let mut passed = Request::new(add());
    passed.metadata_mut().insert("grpc-timeout", "1n".parse().unwrap());
    assert_eq!(client.model_infer(passed).await.unwrap_err().code(), Code::DeadlineExceeded);
    let mut generous = Request::new(add());
    generous.set_timeout(Duration::from_mins(1));
    client.model_infer(generous).await.unwrap();
    let mut parameter = add();
    let timeout = InferParameter { parameter_choice: Some(ParameterChoice::Int64Param(60_000_000)) };
    parameter.parameters.insert("timeout".to_owned(), timeout);
    client.model_infer(parameter).await.unwrap();
    assert_eq!((server.stats().requests.expired, server.stats().requests.completed), (1, 2));
}
