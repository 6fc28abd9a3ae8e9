//! What Triton's clients ask about a model: configuration, statistics and the list of models, over REST and gRPC alike;
//! and reflection.

use axum::http::{Method, StatusCode};
use futures_util::StreamExt;
use ortolan_protocol::grpc::grpc_inference_service_client::GrpcInferenceServiceClient as Client;
use ortolan_protocol::grpc::{ModelConfigRequest, ModelStatisticsRequest, RepositoryIndexRequest};
use ortolan_server::http;
use serde_json::{Value, json};
use tonic::Code;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ListServiceResponse, ServerReflectionRequest, ServiceResponse};

use crate::common::{app, call, empty_server, get, infer, send, server};
use crate::grpc;

async fn json(app: &axum::Router, path: &str) -> Value {
    let answer = get(app, path).await;
    assert_eq!(answer.status, StatusCode::OK, "{path}: {answer:?}");
    answer.json()
}

#[tokio::test]
async fn a_configuration_tells_shapes_without_rows_and_how_requests_are_joined() {
    let app = app("mlp").await;
    let config = json(&app, "/v2/models/mlp/config").await;
    assert_eq!(
        config,
        json!({
            "name": "mlp", "platform": "onnxruntime_onnx", "backend": "onnxruntime", "max_batch_size": 256,
            "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [64]}],
            "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [10]}],
            "instance_group": [{"name": "mlp", "count": 1, "kind": "KIND_CPU"}],
            "dynamic_batching": {"preferred_batch_size": [], "max_queue_delay_microseconds": 0},
            "model_transaction_policy": {"decoupled": false},
        })
    );
    assert_eq!(json(&app, "/v2/models/mlp/versions/1/config").await, config);
}

#[tokio::test]
async fn a_model_without_rows_has_its_whole_shapes_and_no_batches() {
    let config = json(&app("fixed").await, "/v2/models/fixed/config").await;
    assert_eq!((&config["max_batch_size"], &config["input"][0]["dims"]), (&json!(0), &json!([2, 4])));
    assert!(config.get("dynamic_batching").is_none());
}

#[tokio::test]
async fn every_data_type_has_its_name_in_a_configuration() {
    let config = json(&app("types").await, "/v2/models/types/config").await;
    let named =
        config["input"].as_array().unwrap().iter().map(|input| {
            (input["name"].as_str().unwrap().to_uppercase(), input["data_type"].as_str().unwrap().to_owned())
        });
    for (name, data_type) in named {
        let expected = if name == "BYTES" { "STRING" } else { &name };
        assert_eq!(data_type, format!("TYPE_{expected}"));
    }
}

#[tokio::test]
async fn statistics_count_what_was_asked_and_not_the_warm_up() {
    let server = server("add", &[]).await;
    let rest = http::app(server.clone());
    let before = json(&rest, "/v2/models/add/stats").await;
    let model = &before["model_stats"][0];
    assert_eq!((&model["name"], &model["version"]), (&json!("add"), &json!("1")));
    assert_eq!(
        (&model["inference_count"], &model["execution_count"], &model["last_inference"]),
        (&json!(0), &json!(0), &json!(0))
    );
    let row = |name: &str| json!({"name": name, "datatype": "FP32", "shape": [2, 3], "data": [1, 2, 3, 4, 5, 6]});
    for _ in 0..3 {
        let body = json!({"inputs": [row("a"), row("b")]}).to_string();
        assert_eq!(infer(&rest, "add", &[], body).await.status, StatusCode::OK);
    }
    assert_eq!(infer(&rest, "add", &[], "{").await.status, StatusCode::BAD_REQUEST);
    let late = json!({"inputs": [row("a"), row("b")]}).to_string();
    assert_eq!(infer(&rest, "add", &[("ortolan-timeout-ms", "0")], late).await.status, StatusCode::GATEWAY_TIMEOUT);
    for path in ["/v2/models/add/stats", "/v2/models/add/versions/1/stats", "/v2/models/stats"] {
        let stats = json(&rest, path).await;
        let model = &stats["model_stats"][0];
        assert_eq!((&model["inference_count"], &model["execution_count"]), (&json!(6), &json!(3)), "{path}");
        let spent = &model["inference_stats"];
        for (what, count) in [
            ("success", 3),
            ("fail", 1),
            ("queue", 3),
            ("compute_input", 3),
            ("compute_infer", 3),
            ("compute_output", 3),
        ] {
            assert_eq!(spent[what]["count"], count, "{path} {what}: {stats}");
        }
        assert!(spent["success"]["ns"].as_u64() >= spent["compute_infer"]["ns"].as_u64());
        assert!(spent["compute_infer"]["ns"].as_u64() > Some(0));
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
        assert!(now - u128::from(model["last_inference"].as_u64().unwrap()) < 60_000);
        assert!(model["batch_stats"].as_array().unwrap().iter().any(|batch| batch["batch_size"] == 2));
    }
    // gRPC shows the same.
    let mut client = Client::new(grpc::app(server));
    for name in ["add", ""] {
        let request = ModelStatisticsRequest { name: name.to_owned(), version: String::new() };
        let stats = client.model_statistics(request).await.unwrap().into_inner();
        assert_eq!(serde_json::to_value(&stats).unwrap(), json(&rest, "/v2/models/add/stats").await);
    }
    let config = client.model_config(ModelConfigRequest { name: "add".to_owned(), version: "1".to_owned() }).await;
    let config = config.unwrap().into_inner().config.unwrap();
    assert_eq!(serde_json::to_value(&config).unwrap(), json(&rest, "/v2/models/add/config").await);
}

#[tokio::test]
async fn the_list_of_models_says_how_far_they_are() {
    let index = |app: axum::Router, body: &'static str| async move {
        let request = axum::http::Request::post("/v2/repository/index").body(body.into()).unwrap();
        send(&app, request).await
    };
    let rest = app("add").await;
    for body in ["", "{}", r#"{"ready":true}"#, r#"{"ready":null}"#] {
        let models = index(rest.clone(), body).await.json();
        assert_eq!(models, json!([{"name": "add", "version": "1", "state": "READY", "reason": ""}]), "{body}");
    }
    assert_eq!(index(rest, "[").await.status, StatusCode::BAD_REQUEST);
    let empty = empty_server("add", &[]);
    let rest = http::app(empty.clone());
    assert_eq!(index(rest.clone(), "").await.json()[0]["state"], "LOADING");
    assert_eq!(index(rest, r#"{"ready":true}"#).await.json(), json!([]));
    empty.drain();
    let mut client = Client::new(grpc::app(empty));
    let request = RepositoryIndexRequest { repository_name: String::new(), ready: false };
    let models = client.repository_index(request).await.unwrap().into_inner().models;
    assert_eq!((models[0].name.as_str(), models[0].state.as_str()), ("add", "UNAVAILABLE"));
}

#[tokio::test]
async fn unknown_models_are_not_found_and_others_not_ready() {
    let rest = app("add").await;
    for path in ["other/config", "other/stats", "add/versions/2/config", "add/versions/2/stats"] {
        assert_eq!(get(&rest, &format!("/v2/models/{path}")).await.status, StatusCode::NOT_FOUND, "{path}");
    }
    let post = call(&rest, Method::POST, "/v2/models/add/config").await;
    assert_eq!(post.status, StatusCode::METHOD_NOT_ALLOWED);
    let empty = empty_server("add", &[]);
    assert_eq!(get(&http::app(empty.clone()), "/v2/models/add/config").await.status, StatusCode::SERVICE_UNAVAILABLE);
    let mut client = Client::new(grpc::app(empty));
    let request = ModelConfigRequest { name: "add".to_owned(), version: String::new() };
    assert_eq!(client.model_config(request).await.unwrap_err().code(), Code::Unavailable);
    let request = ModelStatisticsRequest { name: "other".to_owned(), version: String::new() };
    assert_eq!(client.model_statistics(request).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn reflection_tells_the_services_and_their_messages() {
    let mut client = ServerReflectionClient::new(grpc::app(empty_server("add", &[])));
    let ask = |request| ServerReflectionRequest { host: String::new(), message_request: Some(request) };
    let questions = [
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol("inference.GRPCInferenceService".to_owned())),
        ask(MessageRequest::FileContainingSymbol("inference.Nothing".to_owned())),
    ];
    let mut answers = client.server_reflection_info(futures_util::stream::iter(questions)).await.unwrap().into_inner();
    let mut next = async || answers.next().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(ListServiceResponse { service }) = next().await else {
        panic!("no list")
    };
    let names: Vec<String> = service.into_iter().map(|ServiceResponse { name }| name).collect();
    for expected in ["inference.GRPCInferenceService", "grpc.health.v1.Health"] {
        assert!(names.iter().any(|name| name == expected), "{names:?}");
    }
    let MessageResponse::FileDescriptorResponse(file) = next().await else { panic!("no file") };
    let text = String::from_utf8_lossy(&file.file_descriptor_proto[0]).into_owned();
    assert!(text.contains("ModelStreamInfer") && text.contains("ModelStatistics"));
    assert_eq!(answers.next().await.unwrap().unwrap_err().code(), Code::NotFound);
}
