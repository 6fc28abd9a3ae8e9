//! What the server counts about itself: cheap to write on every request, read by `/stats` and `/metrics`.
//!
//! Each number has one home here, and both endpoints are views of it. The meaning of the numbers is documented at
//! [`ortolan_protocol::stats::Stats`].

mod arrival;
mod cells;
mod durations;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ortolan_protocol::stats::{BatchCell, Requests};

pub use self::arrival::Arrival;
use self::cells::{CELLS, Cell, cell_of, limit_of};
pub use self::durations::{Durations, Total};
use crate::error::ErrorKind;

/// All counters of a server.
pub struct Counters {
    arrived: AtomicU64,
    admitted: AtomicU64,
    completed: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
    shed: AtomicU64,
    expired: AtomicU64,
    /// The requests that did not succeed, by what went wrong; in the order of [`ErrorKind::ALL`].
    errors: [AtomicU64; ErrorKind::ALL.len()],
    clients_left: AtomicU64,
    rows_arrived: AtomicU64,
    queued_rows: AtomicU64,
    /// From the arrival of a body to its answer.
    pub latency: Durations,
    /// From entering the queue to execution.
    pub queue_wait: Durations,
    /// How long the model ran for each batch.
    pub execution: Durations,
    /// How long it took to get the model to answer.
    pub load_times: LoadTimes,
    /// Requests that were answered from the cache, and how long it took to look.
    pub cache_hits: Total,
    /// Requests that were not, and how long it took to keep their answers.
    pub cache_misses: Total,
    unsuccessful_nanoseconds: AtomicU64,
    executed: Mutex<(Executed, [u64; CELLS])>,
    /// Behind a lock, so that the numbers of a cell belong together; only the worker writes, once a batch.
    batches: Mutex<[Cell; CELLS]>,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            arrived: AtomicU64::default(),
            admitted: AtomicU64::default(),
            completed: AtomicU64::default(),
            refused: AtomicU64::default(),
            failed: AtomicU64::default(),
            shed: AtomicU64::default(),
            expired: AtomicU64::default(),
            errors: std::array::from_fn(|_| AtomicU64::default()),
            clients_left: AtomicU64::default(),
            rows_arrived: AtomicU64::default(),
            queued_rows: AtomicU64::default(),
            latency: Durations::default(),
            queue_wait: Durations::default(),
            execution: Durations::default(),
            load_times: LoadTimes::default(),
            cache_hits: Total::default(),
            cache_misses: Total::default(),
            unsuccessful_nanoseconds: AtomicU64::default(),
            executed: Mutex::new((Executed::default(), [0; CELLS])),
            batches: Mutex::new([Cell::default(); CELLS]),
        }
    }
}

impl Counters {
    /// Counts a request that came for inference. What becomes of it is told to the [`Arrival`].
    pub fn arrive(self: &Arc<Self>) -> Arrival {
        increment(&self.arrived, 1);
        Arrival { counters: Arc::clone(self), since: Instant::now(), is_open: true, watch: None }
    }

    /// Counts a batch that was executed for clients.
    pub fn record_execution(&self, requests: usize, rows: usize, took: Duration) {
        self.record_batch(rows, took);
        self.execution.record(took);
        let mut executed = lock(&self.executed);
        let (executed, sizes) = &mut *executed;
        sizes[cell_of(rows)] += 1;
        executed.batches += 1;
        executed.requests += requests as u64;
        executed.rows += rows as u64;
        executed.request_nanoseconds += requests as u64 * nanoseconds(took);
        executed.last = Some(SystemTime::now());
    }

    /// What was executed for clients so far.
    pub fn executed(&self) -> Executed {
        lock(&self.executed).0
    }

    /// How many batches were executed for clients, with the largest size in rows that is counted together, and the rows of all.
    pub fn batch_sizes(&self) -> (Vec<(u64, u64)>, u64) {
        let (executed, sizes) = *lock(&self.executed);
        (sizes.iter().enumerate().map(|(cell, count)| (limit_of(cell), *count)).collect(), executed.rows)
    }

    /// How many requests did not succeed, by the name of what went wrong.
    pub fn errors(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let kinds = ErrorKind::ALL.into_iter().map(ErrorKind::as_str).zip(&self.errors);
        let left = std::iter::once(("client_left", &self.clients_left));
        kinds.chain(left).map(|(kind, count)| (kind, count.load(Ordering::Relaxed)))
    }

    /// How long requests took, in all, that failed, were turned away or came too late.
    pub fn unsuccessful(&self) -> Duration {
        Duration::from_nanos(self.unsuccessful_nanoseconds.load(Ordering::Relaxed))
    }

    /// Counts an executed batch, also one of the warm-up.
    pub fn record_batch(&self, rows: usize, took: Duration) {
        let cell = &mut self.cells()[cell_of(rows)];
        cell.count += 1;
        cell.rows += rows as u64;
        cell.nanoseconds += nanoseconds(took);
    }

    /// Tells how many rows wait now.
    pub fn set_queued_rows(&self, rows: usize) {
        self.queued_rows.store(rows as u64, Ordering::Relaxed);
    }

    /// How many rows wait now.
    pub fn queued_rows(&self) -> u64 {
        self.queued_rows.load(Ordering::Relaxed)
    }

    /// How many rows came.
    pub fn rows_arrived(&self) -> u64 {
        self.rows_arrived.load(Ordering::Relaxed)
    }

    /// The requests so far, and how many of them are being worked on.
    pub fn requests(&self) -> (Requests, u64) {
        let get = |counter: &AtomicU64| counter.load(Ordering::Acquire);
        // Ends are read before arrivals: a request that comes and goes in between must not make the difference negative.
        let mut requests = Requests {
            arrived: 0,
            admitted: get(&self.admitted),
            completed: get(&self.completed),
            refused: get(&self.refused),
            failed: get(&self.failed),
            shed: get(&self.shed),
            expired: get(&self.expired),
        };
        requests.arrived = get(&self.arrived);
        let ended = requests.completed + requests.refused + requests.failed + requests.shed + requests.expired;
        (requests, requests.arrived.saturating_sub(ended))
    }

    /// Executed batches by size; only sizes that occurred.
    pub fn batch_cells(&self) -> Vec<BatchCell> {
        let cells = *self.cells();
        let occurred = cells.iter().enumerate().filter(|(_, cell)| cell.count > 0);
        occurred
            .map(|(index, cell)| BatchCell {
                limit: limit_of(index),
                count: cell.count,
                rows: cell.rows,
                seconds: seconds(cell.nanoseconds),
            })
            .collect()
    }

    fn cells(&self) -> MutexGuard<'_, [Cell; CELLS]> {
        lock(&self.batches)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the model has done for clients; the warm-up is not in it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Executed {
    /// Batches.
    pub batches: u64,
    /// Requests in them.
    pub requests: u64,
    /// Rows in them.
    pub rows: u64,
    /// The time each batch took, once for each of its requests.
    pub request_nanoseconds: u64,
    /// When the last batch was done.
    pub last: Option<SystemTime>,
}

impl Executed {
    /// When the last batch was done, in milliseconds since 1970; 0: never.
    pub fn last_milliseconds(&self) -> u64 {
        let since = self.last.and_then(|last| last.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}

/// How long the steps took that make a model answer. Each is told once.
#[derive(Default)]
pub struct LoadTimes {
    /// Getting its bytes.
    pub fetch: OnceLock<Duration>,
    /// Building the engine.
    pub session: OnceLock<Duration>,
    /// Running it for the first times.
    pub warm_up: OnceLock<Duration>,
}

fn increment(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::AcqRel);
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn every_arrival_ends_in_exactly_one_way() {
        let counters = Arc::new(Counters::default());
        let end = |kind| counters.arrive().finish(&Err::<(), _>(Error::new(kind, "")));
        counters.arrive().finish(&Ok(()));
        end(ErrorKind::InvalidArgument);
        end(ErrorKind::TooLarge);
        end(ErrorKind::Internal);
        end(ErrorKind::Overloaded);
        end(ErrorKind::NotReady);
        end(ErrorKind::DeadlineExceeded);
        drop(counters.arrive());
        let still_open = counters.arrive();
        let expected = Requests { arrived: 9, admitted: 0, completed: 1, refused: 2, failed: 1, shed: 2, expired: 2 };
        assert_eq!(counters.requests(), (expected, 1));
        still_open.finish(&Ok(()));
        assert_eq!(counters.latency.snapshot().count(), 2, "only successes have a latency");
        let errors: Vec<_> = counters.errors().filter(|(_, count)| *count > 0).map(|(kind, _)| kind).collect();
        let kinds = ["invalid_argument", "too_large", "not_ready", "overloaded", "deadline_exceeded", "internal"];
        assert_eq!(errors, [kinds.as_slice(), &["client_left"]].concat());
        assert_eq!(counters.errors().map(|(_, count)| count).sum::<u64>(), 7, "each has one kind");
    }

    #[test]
    fn every_kind_of_error_is_counted_by_itself() {
        let counters = Arc::new(Counters::default());
        for (number, kind) in ErrorKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, number, "{kind:?}");
            counters.arrive().finish(&Err::<(), _>(Error::new(kind, "")));
        }
        assert!(counters.errors().take(ErrorKind::ALL.len()).all(|(_, count)| count == 1));
    }

    #[test]
    fn the_warm_up_is_none_of_the_batches_that_ran_for_clients() {
        let counters = Counters::default();
        counters.record_batch(8, Duration::from_millis(9));
        counters.record_execution(2, 6, Duration::from_millis(4));
        let (sizes, rows) = counters.batch_sizes();
        let occurred: Vec<_> = sizes.into_iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!((occurred, rows), (vec![(6, 1)], 6));
        assert_eq!(counters.execution.totals(), (1, Duration::from_millis(4)));
    }

    #[test]
    fn batches_are_counted_by_size() {
        let counters = Counters::default();
        for rows in [1, 5, 6, 6, 32, 9_000_000] {
            counters.record_batch(rows, Duration::from_secs(1));
        }
        let cells: Vec<_> =
            counters.batch_cells().iter().map(|cell| (cell.limit, cell.count, cell.rows, cell.seconds)).collect();
        assert_eq!(cells, [(1, 1, 1, 1.0), (6, 3, 17, 3.0), (32, 1, 32, 1.0), (u64::MAX, 1, 9_000_000, 1.0)]);
    }

    #[test]
    fn the_numbers_of_a_cell_belong_together_whenever_they_are_read() {
        let counters = Arc::new(Counters::default());
        let writer = Arc::clone(&counters);
        let writing =
            std::thread::spawn(move || (0..20_000).for_each(|_| writer.record_batch(6, Duration::from_secs(1))));
        while !writing.is_finished() {
            for cell in counters.batch_cells() {
                assert_eq!((cell.rows, cell.seconds), (6 * cell.count, cell.count as f64));
            }
        }
        writing.join().unwrap();
    }

    #[test]
    fn requests_without_rows_are_not_admitted() {
        let counters = Arc::new(Counters::default());
        counters.arrive().finish(&Err::<(), _>(Error::new(ErrorKind::NotFound, "")));
        let admitted = counters.arrive();
        admitted.admit(3);
        admitted.finish(&Err::<(), _>(Error::new(ErrorKind::Overloaded, "")));
        let (requests, _) = counters.requests();
        assert_eq!((requests.arrived, requests.admitted, counters.rows_arrived()), (2, 1, 3));
    }
}
