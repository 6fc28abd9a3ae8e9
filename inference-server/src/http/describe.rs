//! What Triton's clients ask about a model: configuration, statistics, and the list of models.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use ortolan_protocol::grpc::ModelStatisticsResponse;
use ortolan_protocol::oip::IndexRequest;

use super::{Path, Shared, body};
use crate::describe;
use crate::error::Error;
use crate::serving::Server;

pub(super) fn routes() -> Router<Arc<Server>> {
    Router::new()
        .route("/v2/models/stats", get(every_model_s_statistics))
        .route("/v2/models/{model}/config", get(config))
        .route("/v2/models/{model}/versions/{version}/config", get(version_config))
        .route("/v2/models/{model}/stats", get(statistics))
        .route("/v2/models/{model}/versions/{version}/stats", get(version_statistics))
        .route("/v2/repository/index", post(index))
}

async fn config(State(server): Shared, Path(model): Path<String>) -> Result<Response, Error> {
    let found = server.model(&model, None)?;
    Ok(Json(describe::config(&server, found)).into_response())
}

async fn version_config(
    State(server): Shared,
    Path((model, version)): Path<(String, String)>,
) -> Result<Response, Error> {
    let found = server.model(&model, Some(&version))?;
    Ok(Json(describe::config(&server, found)).into_response())
}

/// A model may have that name, too; it is asked for more often.
async fn every_model_s_statistics(State(server): Shared) -> Result<Response, Error> {
    let found = server.model(server.name(), None)?;
    if server.name() == "stats" {
        return Ok(Json(server.model_metadata(found)).into_response());
    }
    Ok(all_statistics(&server))
}

async fn statistics(State(server): Shared, Path(model): Path<String>) -> Result<Response, Error> {
    server.model(&model, None)?;
    Ok(all_statistics(&server))
}

async fn version_statistics(
    State(server): Shared,
    Path((model, version)): Path<(String, String)>,
) -> Result<Response, Error> {
    server.model(&model, Some(&version))?;
    Ok(all_statistics(&server))
}

fn all_statistics(server: &Server) -> Response {
    Json(ModelStatisticsResponse { model_stats: vec![describe::statistics(server)] }).into_response()
}

async fn index(State(server): Shared, request: Request) -> Result<Response, Error> {
    let (parts, body) = request.into_parts();
    let (body, _held) = body::read(&parts.headers, body, server.limits().max_bytes, server.bodies()).await?;
    let request: IndexRequest = if body.is_empty() {
        IndexRequest::default()
    } else {
        serde_json::from_slice(&body).map_err(|error| Error::invalid(format!("the body is not an object: {error}")))?
    };
    Ok(Json(describe::index(&server, request.ready)).into_response())
}
