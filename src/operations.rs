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

/// Looks at the servers come once a second; without one for this long the process hangs. Caches that are not filled by
/// then are not going to be.
const HANGS_AFTER: Duration = Duration::from_mins(1);
/// The election goes on every few seconds, also while the API server does not answer.
const ELECTION_HANGS_AFTER: Duration = Duration::from_secs(30);

/// Whether the operator does its work; clones share it.
#[derive(Clone, Debug)]
pub struct Health(Arc<State>);

#[derive(Debug)]
struct State {
    started: Instant,
    /// The caches are filled.
    ready: AtomicBool,
    /// Seconds from the start to the last look at the servers; [`NEVER`] while there are to be none.
    look: AtomicU64,
    /// The same of the election.
    election: AtomicU64,
}

/// Nothing is expected.
const NEVER: u64 = u64::MAX;

impl Default for Health {
    fn default() -> Self {
        let (look, election) = (AtomicU64::new(NEVER), AtomicU64::new(NEVER));
        Self(Arc::new(State { started: Instant::now(), ready: AtomicBool::default(), look, election }))
    }
}

impl Health {
    /// The caches are filled.
    pub fn ready(&self) {
        self.0.ready.store(true, Ordering::Relaxed);
        if self.0.look.load(Ordering::Relaxed) != NEVER {
            self.beat();
        }
    }

    /// This process leads: from now on looks are expected.
    pub fn leads(&self) {
        self.beat();
    }

    /// A look at the servers ended, or goes on.
    pub fn beat(&self) {
        self.0.look.store(self.seconds(), Ordering::Relaxed);
    }

    /// The election goes on: more of it is expected.
    pub fn election_beat(&self) {
        self.0.election.store(self.seconds(), Ordering::Relaxed);
    }

    fn seconds(&self) -> u64 {
        self.0.started.elapsed().as_secs()
    }

    /// Ready to work, or to take the work over: the caches are filled.
    fn is_ready(&self) -> Result<(), &'static str> {
        if self.0.ready.load(Ordering::Relaxed) { Ok(()) } else { Err("the caches are not filled yet") }
    }

    /// Alive: everything that is to go on went on lately.
    fn is_alive(&self) -> Result<(), &'static str> {
        let now = self.seconds();
        let hangs = |last: &AtomicU64, after: Duration| {
            let last = last.load(Ordering::Relaxed);
            last != NEVER && now.saturating_sub(last) >= after.as_secs()
        };
        if self.is_ready().is_err() && now >= HANGS_AFTER.as_secs() {
            return Err("the caches are still not filled");
        }
        // Looks begin once the caches are filled.
        if self.is_ready().is_ok() && hangs(&self.0.look, HANGS_AFTER) {
            return Err("the looks at the model servers have stopped");
        }
        if hangs(&self.0.election, ELECTION_HANGS_AFTER) {
            return Err("the election of the leader has stopped");
        }
        Ok(())
    }
}

/// The routes.
pub fn app(metrics: Metrics, health: Health) -> Router {
    let (alive, ready) = (health.clone(), health);
    Router::new()
        .route("/healthz", get(|| async move { answer(alive.is_alive()) }))
        .route("/readyz", get(|| async move { answer(ready.is_ready()) }))
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

fn answer(result: Result<(), &'static str>) -> (StatusCode, &'static str) {
    match result {
        Ok(()) => (StatusCode::OK, "ok"),
        Err(problem) => (StatusCode::SERVICE_UNAVAILABLE, problem),
    }
}

fn text(metrics: &Metrics) -> Response {
    match metrics.text() {
        Ok(text) => {
            ([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Started `seconds` ago.
    fn started(seconds: u64) -> Health {
        let mut health = Health::default();
        Arc::get_mut(&mut health.0).unwrap().started =
            Instant::now().checked_sub(Duration::from_secs(seconds)).unwrap();
        health
    }

    #[test]
    fn caches_that_are_never_filled_are_a_failure_only_after_a_while() {
        assert!(started(0).is_ready().is_err());
        assert_eq!(started(59).is_alive(), Ok(()));
        assert_eq!(started(61).is_alive(), Err("the caches are still not filled"));
    }

    #[test]
    fn a_follower_does_not_have_to_look() {
        let health = started(1000);
        health.ready();
        health.election_beat();
        assert_eq!((health.is_ready(), health.is_alive()), (Ok(()), Ok(())));
    }

    #[test]
    fn what_was_going_on_and_stopped_is_a_failure() {
        let health = started(1000);
        health.ready();
        health.election_beat();
        health.leads();
        assert_eq!(health.is_alive(), Ok(()));
        health.0.look.store(930, Ordering::Relaxed);
        assert_eq!(health.is_alive(), Err("the looks at the model servers have stopped"));
        health.beat();
        health.0.election.store(960, Ordering::Relaxed);
        assert_eq!(health.is_alive(), Err("the election of the leader has stopped"));
    }

    #[test]
    fn without_an_election_none_is_expected() {
        let health = started(1000);
        health.ready();
        health.leads();
        assert_eq!(health.is_alive(), Ok(()));
    }
}
