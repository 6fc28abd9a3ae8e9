//! The operations port: for the kubelet, the operator and Prometheus. It answers from the first moment, and knows
//! nothing of inference.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use ortolan_protocol::stats::Stats;
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

use crate::error::{Error, ErrorKind};
use crate::metrics;
use crate::serving::Server;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone)]
struct Ops {
    server: Arc<Server>,
    registry: Arc<Registry>,
}

/// The operations port.
pub fn app(server: Arc<Server>) -> Router {
    let registry = Arc::new(metrics::registry(Arc::clone(&server)));
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/stats", get(stats))
        .route("/metrics", get(render))
        .fallback(unknown_route)
        .with_state(Ops { server, registry })
}

async fn healthz(State(ops): State<Ops>) -> (StatusCode, &'static str) {
    if ops.server.is_live() {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the model stopped running\n")
    }
}

async fn readyz(State(ops): State<Ops>) -> (StatusCode, String) {
    if ops.server.is_ready() {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {:?}\n", ops.server.phase()).to_lowercase())
}

async fn stats(State(ops): State<Ops>) -> Json<Stats> {
    Json(ops.server.stats())
}

async fn render(State(ops): State<Ops>) -> Response {
    let mut page = String::with_capacity(16 << 10);
    match text::encode(&mut page, &ops.registry) {
        Ok(()) => ([(header::CONTENT_TYPE, OPEN_METRICS)], page).into_response(),
        Err(_) => Error::new(ErrorKind::Internal, "the metrics cannot be written").into_response(),
    }
}

async fn unknown_route() -> Error {
    Error::new(
        ErrorKind::NotFound,
        "there is nothing at this path; this port has /metrics, /stats, /healthz and /readyz",
    )
}
