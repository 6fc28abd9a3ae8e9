//! What an error tells over the network: what the client needs, in the protocol's form, and nothing of the server's inside.

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use ortolan_protocol::grpc::ModelInferRequest;
use ortolan_protocol::grpc::grpc_inference_service_client::GrpcInferenceServiceClient;
use ortolan_server::http;
use tonic::Code;

use crate::common::{infer, send, server};
use crate::grpc;

#[tokio::test]
async fn a_path_that_is_no_text_is_refused_like_everything_else_and_without_the_names_of_our_code() {
    let app = http::app(server("add", &[]).await);
    for (method, path) in [
        (Method::GET, "/v2/models/%ff"),
        (Method::GET, "/v2/models/add/versions/%ff/ready"),
        (Method::POST, "/v2/models/%ff/infer"),
        (Method::POST, "/v2/models/add/versions/%ff/infer"),
        (Method::GET, "/v2/models/%ff/config"),
        (Method::GET, "/v1/models/%ff"),
        (Method::POST, "/v1/models/%ff:predict"),
        (Method::POST, "/v1/models/add/versions/%ff:predict"),
    ] {
        let request = Request::builder().method(method).uri(path);
        let answer = send(&app, request.body(Body::empty()).unwrap()).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{path}");
        assert_eq!(answer.error(), "the path is not UTF-8 behind its percent signs", "{path}");
    }
}

/// Over gRPC an error is a header, and clients take headers of some 8 KiB.
#[tokio::test]
async fn what_a_client_sent_is_repeated_to_it_only_as_far_as_it_helps() {
    let server = server("add", &[]).await;
    let long = "ü".repeat(100_000);
    let request = ModelInferRequest { model_name: long.clone(), ..grpc::add() };
    let mut client = GrpcInferenceServiceClient::new(grpc::app(server.clone()));
    let status = client.model_infer(request).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert!(status.message().starts_with("there is no model 'üü") && status.message().ends_with('…'));
    assert!(status.message().len() <= 1024, "{}", status.message().len());

    let tensor = format!(r#"{{"name": "{long}", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}}"#);
    let answer = infer(&http::app(server), "add", &[], format!(r#"{{"inputs": [{tensor}]}}"#)).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert!(answer.error().contains("no input 'üü") && answer.body.len() <= 1100, "{}", answer.body.len());
}
