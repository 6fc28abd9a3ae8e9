//! A server that wants keys, over REST and gRPC.

use std::fs;

use axum::http::StatusCode;
use ortolan_protocol::grpc::ServerLiveRequest;
use ortolan_protocol::grpc::grpc_inference_service_client::GrpcInferenceServiceClient as Client;
use ortolan_server::http;
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::common::{get, infer, send, server};
use crate::grpc;

#[tokio::test]
async fn nothing_but_health_is_told_without_a_key() {
    let folder = tempfile::tempdir().unwrap();
    // printf secret | sha256sum
    let hash = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
    fs::write(folder.path().join("team"), hash).unwrap();
    let server = server("add", &["--api-keys-dir", folder.path().to_str().unwrap()]).await;
    let rest = http::app(server.clone());
    for path in ["/v2/health/live", "/v2/health/ready"] {
        assert_eq!(get(&rest, path).await.status, StatusCode::OK, "{path}");
    }
    for path in ["/v2", "/v2/models/add", "/v2/models/add/stats", "/v1/models/add", "/nothing"] {
        let answer = get(&rest, path).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{path}");
        assert_eq!(answer.headers["www-authenticate"], "Bearer");
        assert!(answer.error().contains("API key"));
        let request = axum::http::Request::get(path).header("authorization", "Bearer secret");
        let answer = send(&rest, request.body(axum::body::Body::empty()).unwrap()).await;
        assert_ne!(answer.status, StatusCode::UNAUTHORIZED, "{path}");
    }
    let refused = infer(&rest, "add", &[("x-api-key", "wrong")], "{}").await;
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    assert_eq!(infer(&rest, "add", &[("x-api-key", "secret")], "{}").await.status, StatusCode::BAD_REQUEST);

    let app = grpc::app(server);
    let status = Client::new(app.clone()).server_live(ServerLiveRequest {}).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    let mut request = Request::new(ServerLiveRequest {});
    request.metadata_mut().insert("authorization", "Bearer secret".parse().unwrap());
    assert!(Client::new(app.clone()).server_live(request).await.unwrap().into_inner().live);
    assert_eq!(Client::new(app.clone()).model_infer(grpc::add()).await.unwrap_err().code(), Code::Unauthenticated);
    let health = HealthClient::new(app).check(HealthCheckRequest { service: String::new() }).await;
    assert!(health.is_ok());
}
