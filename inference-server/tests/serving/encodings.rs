//! Compressed bodies, both ways; and classes in the place of numbers.

use std::io::{Read, Write};

use axum::http::StatusCode;
use flate2::Compression;
use flate2::read::{GzDecoder, ZlibDecoder};
use flate2::write::{GzEncoder, ZlibEncoder};
use ortolan_protocol::grpc::grpc_inference_service_client::GrpcInferenceServiceClient as Client;
use ortolan_protocol::grpc::infer_parameter::ParameterChoice;
use ortolan_protocol::grpc::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use ortolan_protocol::grpc::{InferParameter, ModelInferRequest};
use ortolan_server::http;
use serde_json::{Value, json};
use tonic::Code;
use tonic::codec::CompressionEncoding;

use crate::common::{app, infer, server};
use crate::grpc;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn add(rows: usize) -> Value {
    let tensor =
        |name: &str| json!({"name": name, "datatype": "FP32", "shape": [rows, 3], "data": vec![1.5; 3 * rows]});
    json!({"inputs": [tensor("a"), tensor("b")]})
}

#[tokio::test]
async fn compressed_requests_are_read_and_damaged_ones_refused() {
    let app = app("add").await;
    let body = add(2).to_string();
    for (encoding, packed) in [("gzip", gzip(body.as_bytes())), ("deflate", deflate(body.as_bytes()))] {
        let answer = infer(&app, "add", &[("content-encoding", encoding)], packed.clone()).await;
        assert_eq!(answer.status, StatusCode::OK, "{encoding}: {answer:?}");
        assert_eq!(answer.json()["outputs"][0]["data"], json!(vec![3.0; 6]));
        for damaged in [&packed[..packed.len() / 2], b"{}", b"\x1f\x8b\x08nonsense"] {
            let answer = infer(&app, "add", &[("content-encoding", encoding)], damaged.to_vec()).await;
            assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{encoding}: {answer:?}");
            assert!(answer.error().contains("cannot be unpacked"), "{}", answer.error());
        }
    }
}

#[tokio::test]
async fn binary_tensors_are_found_behind_the_json_after_unpacking() {
    let app = app("mlp").await;
    let parameters = json!({"binary_data_size": 256});
    let head =
        json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 64], "parameters": parameters}]}).to_string();
    let body = gzip(&[head.as_bytes(), &[0; 256]].concat());
    let length = head.len().to_string();
    let headers = [("content-encoding", "gzip"), ("inference-header-content-length", &*length)];
    let answer = infer(&app, "mlp", &headers, body).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
}

#[tokio::test]
async fn a_bomb_is_413_before_it_is_unpacked() {
    let app = http::app(server("add", &["--max-request-bytes", "100000"]).await);
    let bomb = gzip(&vec![b' '; 50 << 20]);
    assert!(bomb.len() < 300_000);
    let answer = infer(&app, "add", &[("content-encoding", "gzip")], bomb).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE, "{answer:?}");
}

#[tokio::test]
async fn large_answers_are_compressed_for_clients_that_take_it_and_small_ones_are_not() {
    let app = app("add").await;
    for (accepts, encoding) in [("gzip", "gzip"), ("deflate", "deflate"), ("br, gzip;q=0.5", "gzip")] {
        let answer = infer(&app, "add", &[("accept-encoding", accepts)], add(32).to_string()).await;
        // 96 numbers take fewer bytes than it takes to pay.
        assert!(!answer.headers.contains_key("content-encoding"), "{answer:?}");
        let app = http::app(server("sequence", &[]).await);
        let data = vec![0.125; 2000];
        let body = json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2000], "data": data}]}).to_string();
        let answer = infer(&app, "sequence", &[("accept-encoding", accepts)], body.clone()).await;
        assert_eq!(answer.headers["content-encoding"], encoding);
        let mut unpacked = Vec::new();
        match encoding {
            "gzip" => GzDecoder::new(&*answer.body).read_to_end(&mut unpacked).unwrap(),
            _ => ZlibDecoder::new(&*answer.body).read_to_end(&mut unpacked).unwrap(),
        };
        let answer: Value = serde_json::from_slice(&unpacked).unwrap();
        assert_eq!(answer["outputs"][0]["data"][1999], json!(250.0));
        for none in ["identity", "br", ""] {
            let answer = infer(&app, "sequence", &[("accept-encoding", none)], body.clone()).await;
            assert!(!answer.headers.contains_key("content-encoding"), "{none}");
        }
    }
}

#[tokio::test]
async fn grpc_messages_may_be_compressed_and_are_answered_alike() {
    let server = server("add", &["--max-request-bytes", "100000"]).await;
    for encoding in [CompressionEncoding::Gzip, CompressionEncoding::Deflate] {
        let plain = Client::new(grpc::app(server.clone()));
        let mut client = plain.send_compressed(encoding).accept_compressed(encoding);
        let answer = client.model_infer(grpc::add()).await.unwrap();
        assert_eq!(answer.get_ref().raw_output_contents.len(), 1);
        let bomb = ModelInferRequest { id: " ".repeat(10 << 20), ..grpc::add() };
        let status = client.model_infer(bomb).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    }
}

fn mlp(parameters: &Value) -> String {
    let input = json!({"name": "x", "datatype": "FP32", "shape": [2, 64], "data": vec![0.1; 128]});
    json!({"inputs": [input], "outputs": [{"name": "y", "parameters": parameters}]}).to_string()
}

#[tokio::test]
async fn classes_are_told_in_the_place_of_an_output() {
    let app = app("mlp").await;
    let whole = infer(&app, "mlp", &[], mlp(&json!({}))).await.json();
    let row: Vec<f64> = serde_json::from_value(whole["outputs"][0]["data"].clone()).unwrap();
    let best = (0..10).max_by(|one, two| row[*one].total_cmp(&row[*two])).unwrap();
    let answer = infer(&app, "mlp", &[], mlp(&json!({"classification": 3}))).await.json();
    let output = &answer["outputs"][0];
    assert_eq!((&output["datatype"], &output["shape"]), (&json!("BYTES"), &json!([2, 3])));
    assert_eq!(output["data"][0], format!("{:.6}:{best}", row[best]));
    for wrong in [json!(0), json!(-1), json!("3"), json!(1.5)] {
        let answer = infer(&app, "mlp", &[], mlp(&json!({"classification": wrong}))).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        assert!(answer.error().contains("number of classes"));
    }
}

#[tokio::test]
async fn classes_have_the_names_that_the_model_gives_them_over_grpc_too() {
    let mut client = grpc::client("zipmap-names").await;
    let input = InferInputTensor {
        name: "x".to_owned(),
        datatype: "FP32".to_owned(),
        shape: vec![1, 4],
        ..InferInputTensor::default()
    };
    let output = |count| InferRequestedOutputTensor {
        name: "probabilities".to_owned(),
        parameters: [("classification".to_owned(), InferParameter { parameter_choice: Some(count) })].into(),
    };
    let request = |count| ModelInferRequest {
        model_name: "zipmap-names".to_owned(),
        inputs: vec![input.clone()],
        raw_input_contents: vec![[0.0_f32, 0.0, 0.0, 0.0].iter().flat_map(|number| number.to_le_bytes()).collect()],
        outputs: vec![output(count)],
        ..ModelInferRequest::default()
    };
    let answer = client.model_infer(request(ParameterChoice::Int64Param(1))).await.unwrap().into_inner();
    assert_eq!((answer.outputs[0].datatype.as_str(), answer.outputs[0].shape.as_slice()), ("BYTES", &[1, 1][..]));
    assert_eq!(&answer.raw_output_contents[0][4..], b"0.333333:0:red");
    for wrong in [ParameterChoice::Int64Param(0), ParameterChoice::StringParam("1".to_owned())] {
        assert_eq!(client.model_infer(request(wrong)).await.unwrap_err().code(), Code::InvalidArgument);
    }
}
