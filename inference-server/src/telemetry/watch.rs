//! What is noted of one request that is told of, from the arrival of its head to its end.
//!
//! Several hands write: the protocol, and whoever runs the batch. Each note is written once.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use axum::http::{HeaderMap, StatusCode};
use opentelemetry::trace::{TraceId, TraceState};
use tonic::Code;
use tracing::{field, info};

use super::{Parent, Route, Telemetry, parent};
use crate::error::ErrorKind;

/// The header with an id, for requests that bring none in their body.
const REQUEST_ID: &str = "x-request-id";
/// A longer id is cut: it is the client's, and could be as large as its request.
const LONGEST_ID: usize = 128;
/// What other servers write for a client that did not wait.
const CLIENT_LEFT: u16 = 499;

/// A request that is told of.
pub struct Watch {
    telemetry: Arc<Telemetry>,
    is_traced: bool,
    is_logged: bool,
    pub(super) route: Route,
    pub(super) parent: Option<Parent>,
    pub(super) state: TraceState,
    begun: Instant,
    begun_at: SystemTime,
    header_id: Option<String>,
    id: OnceLock<String>,
    rows: OnceLock<usize>,
    is_cached: OnceLock<()>,
    received: OnceLock<Instant>,
    parsed: OnceLock<Instant>,
    ran: OnceLock<Ran>,
    answered: OnceLock<Instant>,
}

/// The batch that a request was part of.
#[derive(Clone, Copy, Debug)]
pub struct Ran {
    /// When the model began with it.
    pub started: Instant,
    /// How long it ran.
    pub took: Duration,
    /// Rows of all its requests.
    pub rows: usize,
    /// How many requests it had.
    pub requests: usize,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With an answer.
    Completed,
    /// With an error.
    Failed(ErrorKind),
    /// Nobody waited any more.
    ClientLeft,
}

impl Ended {
    /// In a word.
    pub fn outcome(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed(kind) => kind.as_str(),
            Self::ClientLeft => "client_left",
        }
    }

    /// The status over REST.
    pub fn status(self) -> u16 {
        match self {
            Self::Completed => StatusCode::OK.as_u16(),
            Self::Failed(kind) => kind.status().as_u16(),
            Self::ClientLeft => CLIENT_LEFT,
        }
    }

    /// The code over gRPC.
    pub fn code(self) -> Code {
        match self {
            Self::Completed => Code::Ok,
            Self::Failed(kind) => kind.code(),
            Self::ClientLeft => Code::Cancelled,
        }
    }
}

impl Watch {
    pub(super) fn new(
        telemetry: &Arc<Telemetry>,
        route: Route,
        headers: &HeaderMap,
        (is_traced, is_logged): (bool, bool),
    ) -> Self {
        Self {
            telemetry: Arc::clone(telemetry),
            is_traced,
            is_logged,
            route,
            parent: Parent::of(headers),
            state: if is_traced { parent::state(headers) } else { TraceState::default() },
            begun: Instant::now(),
            begun_at: SystemTime::now(),
            header_id: headers.get(REQUEST_ID).and_then(|id| Some(cut(id.to_str().ok()?))),
            id: OnceLock::new(),
            rows: OnceLock::new(),
            is_cached: OnceLock::new(),
            received: OnceLock::new(),
            parsed: OnceLock::new(),
            ran: OnceLock::new(),
            answered: OnceLock::new(),
        }
    }

    /// Whether it becomes a trace.
    pub fn is_traced(&self) -> bool {
        self.is_traced
    }

    /// Whether it gets a line in the log.
    pub fn is_logged(&self) -> bool {
        self.is_logged
    }

    /// Its client calls it so.
    pub fn named(&self, id: &str) {
        if !id.is_empty() {
            self.id.get_or_init(|| cut(id));
        }
    }

    /// Its body is there.
    pub fn received(&self, at: Instant) {
        self.received.get_or_init(|| at);
    }

    /// It fits the model, has that many rows, and enters the queue.
    pub fn parsed(&self, rows: usize) {
        self.rows.get_or_init(|| rows);
        self.parsed.get_or_init(Instant::now);
    }

    /// The model ran for it.
    pub fn ran(&self, ran: Ran) {
        self.ran.get_or_init(|| ran);
    }

    /// The answer was known already.
    pub fn cached(&self) {
        self.is_cached.get_or_init(|| ());
        self.answered();
    }

    /// The answer is there to be written.
    pub fn answered(&self) {
        self.answered.get_or_init(Instant::now);
    }

    /// It is over: tells of it.
    pub fn ended(&self, ended: Ended) {
        let now = Instant::now();
        let trace = self.telemetry.traces.as_ref().filter(|_| self.is_traced);
        let trace = trace.and_then(|traces| traces.record(self, ended, now));
        if self.is_logged {
            self.log(ended, now, trace.or(self.parent.map(|parent| parent.trace)));
        }
    }

    /// One line in the log. `now`: the request's end. `trace`: the one that it belongs to. Ids are quoted and escaped: they are the client's,
    /// and must not make lines.
    fn log(&self, ended: Ended, now: Instant, trace: Option<TraceId>) {
        let status = if self.route.grpc_method().is_some() { ended.code() as u16 } else { ended.status() };
        let microseconds = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let between = |(from, to): (Instant, Instant)| microseconds(to.saturating_duration_since(from));
        info!(
            id = self.id().map(field::debug),
            protocol = self.route.protocol(),
            route = self.route.kind(),
            status,
            outcome = ended.outcome(),
            rows = self.rows(),
            queue_us = self.queue(now).map(between),
            execution_us = self.batch().map(|ran| microseconds(ran.took)),
            total_us = between((self.begun(), now)),
            trace_id = trace.map(field::display),
            "request"
        );
    }

    pub(super) fn model(&self) -> (&str, &str) {
        (&self.telemetry.model, &self.telemetry.version)
    }

    pub(super) fn id(&self) -> Option<&str> {
        self.id.get().or(self.header_id.as_ref()).map(String::as_str)
    }

    pub(super) fn rows(&self) -> Option<usize> {
        self.rows.get().copied()
    }

    pub(super) fn is_cached(&self) -> bool {
        self.is_cached.get().is_some()
    }

    pub(super) fn batch(&self) -> Option<Ran> {
        self.ran.get().copied()
    }

    pub(super) fn begun(&self) -> Instant {
        self.begun
    }

    /// From the body to the tensors.
    pub(super) fn parsing(&self) -> Option<(Instant, Instant)> {
        Some((*self.received.get()?, *self.parsed.get()?))
    }

    /// From the tensors to the model, or to the end for want of one. `end`: that of the request.
    pub(super) fn queue(&self, end: Instant) -> Option<(Instant, Instant)> {
        let parsed = *self.parsed.get()?;
        let until = self.ran.get().map_or(end, |ran| ran.started);
        (!self.is_cached()).then_some((parsed, until))
    }

    /// From the model's answer to that of the server. `end`: that of the request.
    pub(super) fn writing(&self, end: Instant) -> Option<(Instant, Instant)> {
        Some((*self.answered.get()?, end))
    }

    /// A moment of it by the clock.
    pub(super) fn at(&self, moment: Instant) -> SystemTime {
        self.begun_at + moment.saturating_duration_since(self.begun)
    }
}

fn cut(id: &str) -> String {
    id.chars().take(LONGEST_ID).collect()
}
