//! `/metrics`, `/healthz` and `/readyz`.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    Router,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};

use crate::metrics::Metrics;

/// Looks at the servers come once a second; without one for this long, also at the start, the process hangs.
const HANGS_AFTER: Duration = Duration::from_mins(1);

/// Whether the operator does its work.
#[derive(Clone, Debug)]
pub struct Health {
    started: Instant,
    ready: Arc<AtomicBool>,
    last_beat: Arc<AtomicU64>,
}

impl Default for Health {
    fn default() -> Self {
        Self { started: Instant::now(), ready: Arc::default(), last_beat: Arc::default() }
    }
}

impl Health {
    /// The caches are filled.
    pub fn ready(&self) {
        self.ready.store(true, Ordering::Relaxed);
        self.beat();
    }

    /// A look at the servers ended.
    pub fn beat(&self) {
        self.last_beat.store(self.started.elapsed().as_secs(), Ordering::Relaxed);
    }

    /// Ready to work: the caches are filled.
    fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    /// Alive: looked at the servers lately, or started lately.
    fn is_alive(&self) -> bool {
        let since = self.started.elapsed().as_secs().saturating_sub(self.last_beat.load(Ordering::Relaxed));
        since < HANGS_AFTER.as_secs()
    }
}

/// The routes.
pub fn app(metrics: Metrics, health: Health) -> Router {
    let (alive, ready) = (health.clone(), health);
    Router::new()
        .route(
            "/healthz",
            get(|| async move { answer(alive.is_alive(), "the looks at the model servers have stopped") }),
        )
        .route("/readyz", get(|| async move { answer(ready.is_ready(), "the caches are not filled yet") }))
        .route("/metrics", get(|| async move { text(&metrics) }))
}

/// Serves the routes until `shutdown`.
pub async fn serve(
    address: SocketAddr,
    app: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::bind(address).await?;
    axum::serve(listener, app).with_graceful_shutdown(shutdown).await
}

fn answer(good: bool, otherwise: &'static str) -> (StatusCode, &'static str) {
    if good { (StatusCode::OK, "ok") } else { (StatusCode::SERVICE_UNAVAILABLE, otherwise) }
}

fn text(metrics: &Metrics) -> Response {
    match metrics.text() {
        Ok(text) => {
            ([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
