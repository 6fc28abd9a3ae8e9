//! A request's way, from its arrival to the one end that it has.

use std::sync::Arc;
use std::time::Instant;

use super::{Counters, increment, nanoseconds};
use crate::error::{Error, ErrorKind};
use crate::telemetry::{Ended, Watch};

/// A request on its way. Dropped without an end, its client left.
pub struct Arrival {
    pub(super) counters: Arc<Counters>,
    pub(super) since: Instant,
    pub(super) is_open: bool,
    pub(super) watch: Option<Arc<Watch>>,
}

impl Arrival {
    /// With what it is told of by, where it is.
    #[must_use]
    pub fn watched(mut self, watch: Option<Arc<Watch>>) -> Self {
        self.watch = watch;
        self
    }

    /// What it is told of by.
    pub fn watch(&self) -> Option<&Arc<Watch>> {
        self.watch.as_ref()
    }

    /// The latency counts from here: the body is there.
    pub fn body_received(&mut self) {
        self.since = Instant::now();
        self.note(|watch| watch.received(self.since));
    }

    /// Notes something of a request that is told of.
    pub fn note(&self, write: impl FnOnce(&Watch)) {
        if let Some(watch) = &self.watch {
            write(watch);
        }
    }

    /// When the body was there.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// The request is one that the model takes, and has that many rows.
    pub fn admit(&self, rows: usize) {
        increment(&self.counters.admitted, 1);
        increment(&self.counters.rows_arrived, rows as u64);
    }

    /// The answer is ready to be sent.
    pub fn finish<T>(mut self, outcome: &Result<T, Error>) {
        self.is_open = false;
        let error = outcome.as_ref().err().map(Error::kind);
        self.count(error);
        self.note(|watch| watch.ended(error.map_or(Ended::Completed, Ended::Failed)));
    }

    fn count(&self, error: Option<ErrorKind>) {
        let counters = &self.counters;
        let Some(error) = error else {
            counters.latency.record(self.since.elapsed());
            increment(&counters.completed, 1);
            return;
        };
        let (counter, is_refused) = match error {
            ErrorKind::NotReady | ErrorKind::Overloaded => (&counters.shed, false),
            ErrorKind::DeadlineExceeded => (&counters.expired, false),
            ErrorKind::Internal => (&counters.failed, false),
            ErrorKind::InvalidArgument
            | ErrorKind::Unauthenticated
            | ErrorKind::TooManyRequests
            | ErrorKind::NotFound
            | ErrorKind::MethodNotAllowed
            | ErrorKind::TooLarge
            | ErrorKind::UnsupportedEncoding
            | ErrorKind::RequestTimeout => (&counters.refused, true),
        };
        increment(counter, 1);
        increment(&counters.errors[error as usize], 1);
        if !is_refused {
            increment(&counters.unsuccessful_nanoseconds, nanoseconds(self.since.elapsed()));
        }
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        if self.is_open {
            increment(&self.counters.expired, 1);
            increment(&self.counters.clients_left, 1);
            self.note(|watch| watch.ended(Ended::ClientLeft));
        }
    }
}
