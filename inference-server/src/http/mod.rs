//! The Open Inference Protocol over REST, and TensorFlow Serving's.
//!
//! Thin: routes, framing and JSON. What a request must look like is checked in [`crate::request`], what runs it is the
//! batcher. There are no routes that load or unload models, map memory or change settings, and there will be none.

mod answer;
mod body;
mod describe;
mod elements;
mod infer;
mod path;
mod tensorflow;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use axum::body::HttpBody;
use axum::extract::{Request, State};
use axum::http::header::{ALLOW, CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderName, HeaderValue, StatusCode, Uri, Version};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use http_body_util::BodyExt;
use ortolan_protocol::oip::{ErrorBody, Live, ModelList, ModelName, ModelReady, Ready};
use tower_http::CompressionLevel;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::SizeAbove;
use tower_http::decompression::RequestDecompressionLayer;

use self::path::Path;
use crate::around::{Around, Attendant};
use crate::error::{Error, ErrorKind};
use crate::serving::Server;

type Shared = State<Arc<Server>>;

/// How long the body of a request that was refused is waited for.
const LINGER: Duration = Duration::from_secs(5);

/// Answers of so many bytes are compressed for clients that take it. Many clients say by default that they do; for small
/// answers it only costs time.
const COMPRESSED_FROM: u64 = 1024;

/// The public REST port.
pub fn app(server: Arc<Server>) -> Router {
    Router::new()
        .route("/v2", get(server_metadata))
        .route("/v2/", get(server_metadata))
        .route("/v2/health/live", get(live))
        .route("/v2/health/ready", get(ready))
        .route("/v2/models", get(models))
        .route("/v2/models/{model}", get(model_metadata))
        .route("/v2/models/{model}/versions/{version}", get(version_metadata))
        .route("/v2/models/{model}/ready", get(model_ready))
        .route("/v2/models/{model}/versions/{version}/ready", get(version_ready))
        .route("/v2/models/{model}/infer", post(infer::model))
        .route("/v2/models/{model}/versions/{version}/infer", post(infer::version))
        .merge(describe::routes())
        .merge(tensorflow::routes())
        .fallback(unknown_route)
        .method_not_allowed_fallback(wrong_verb)
        // Together: each layer by itself would take allocations for every request.
        .layer((
            Around(Greeter(Arc::clone(&server))),
            // What it does not know is left for the handlers to refuse.
            RequestDecompressionLayer::new().pass_through_unaccepted(true),
            CompressionLayer::new().quality(CompressionLevel::Fastest).compress_when(SizeAbove::new(COMPRESSED_FROM)),
        ))
        .with_state(server)
}

/// Lets requests in, and asks clients to leave while the server drains.
#[derive(Clone)]
struct Greeter(Arc<Server>);

impl Attendant for Greeter {
    type Kept = Version;

    /// Health is told to everybody: whoever watches a server need not be able to use it.
    fn before(&self, request: Request) -> ControlFlow<Response, (Request, Version)> {
        if !request.uri().path().starts_with("/v2/health/")
            && let Err(error) = self.0.admit(&request)
        {
            let_finish(request, self.0.limits().max_bytes);
            return ControlFlow::Break(error.into_response());
        }
        let version = request.version();
        ControlFlow::Continue((request, version))
    }

    /// HTTP/2 has its own way to say goodbye.
    fn after(&self, version: Version, response: &mut Response) {
        if self.0.is_draining() && version <= Version::HTTP_11 {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
    }
}

/// Reads and forgets the body of a request that was refused without it, so that the connection stays of use: one that is closed
/// while its client still writes takes the answer with it. HTTP/2 gives up one request without the others.
fn let_finish(request: Request, max_bytes: usize) {
    if request.version() > Version::HTTP_11 || request.body().is_end_stream() {
        return;
    }
    let mut body = request.into_body();
    tokio::spawn(async move {
        let mut bytes = 0;
        let rest = async {
            while let Some(Ok(frame)) = body.frame().await {
                bytes += frame.data_ref().map_or(0, Bytes::len);
                if bytes > max_bytes {
                    break;
                }
            }
        };
        // Whoever is slower finds the connection closed.
        let _ = tokio::time::timeout(LINGER, rest).await;
    });
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let mut response = (self.kind().status(), Json(ErrorBody { error: self.message().into() })).into_response();
        if let Some(verbs) = self.allowed() {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static(verbs));
        }
        if self.kind() == ErrorKind::Unauthenticated {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(after) = self.retry_after() {
            // Whole seconds: a client that comes earlier comes in vain.
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(whole_seconds(after)));
        }
        response
    }
}

async fn server_metadata(State(server): Shared) -> Response {
    Json(server.metadata()).into_response()
}

async fn live(State(server): Shared) -> Response {
    let live = server.is_live();
    (status(live), Json(Live { live })).into_response()
}

async fn ready(State(server): Shared) -> Response {
    let ready = server.is_ready();
    (status(ready), Json(Ready { ready })).into_response()
}

async fn models(State(server): Shared) -> Response {
    Json(ModelList { models: vec![ModelName { name: server.name().to_owned() }] }).into_response()
}

async fn model_metadata(State(server): Shared, Path(model): Path<String>) -> Result<Response, Error> {
    let found = server.model(&model, None)?;
    Ok(Json(server.model_metadata(found)).into_response())
}

async fn version_metadata(
    State(server): Shared,
    Path((model, version)): Path<(String, String)>,
) -> Result<Response, Error> {
    let found = server.model(&model, Some(&version))?;
    Ok(Json(server.model_metadata(found)).into_response())
}

async fn model_ready(State(server): Shared, Path(model): Path<String>) -> Result<Response, Error> {
    readiness(&server, model, None)
}

async fn version_ready(
    State(server): Shared,
    Path((model, version)): Path<(String, String)>,
) -> Result<Response, Error> {
    readiness(&server, model, Some(&version))
}

fn readiness(server: &Server, model: String, version: Option<&str>) -> Result<Response, Error> {
    server.check_name(&model, version)?;
    let ready = server.is_ready();
    Ok((status(ready), Json(ModelReady { name: model, ready })).into_response())
}

async fn unknown_route() -> Error {
    Error::new(
        ErrorKind::NotFound,
        "there is nothing at this path; the Open Inference Protocol begins at /v2, TensorFlow Serving's at /v1",
    )
}

async fn wrong_verb(uri: Uri) -> Error {
    let takes_post = ["/infer", "/repository/index", ":predict", ":classify", ":regress"]
        .iter()
        .any(|end| uri.path().ends_with(end));
    Error::method_not_allowed(if takes_post { "POST" } else { "GET,HEAD" })
}

fn status(is_good: bool) -> StatusCode {
    if is_good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

/// An answer of that content type.
fn content(kind: &'static str) -> [(HeaderName, HeaderValue); 1] {
    [(CONTENT_TYPE, HeaderValue::from_static(kind))]
}
