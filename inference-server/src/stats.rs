//! What the server counts about itself: cheap to write on every request, read by `/stats` and `/metrics`.
//!
//! Each number has one home here, and both endpoints are views of it. The meaning of the numbers is documented at
//! [`ortolan_protocol::stats::Stats`].

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ortolan_protocol::histogram::{self, Histogram};
use ortolan_protocol::stats::{BatchCell, Requests};

use crate::error::{Error, ErrorKind};
use crate::telemetry::{Ended, Watch};

const BUCKETS: usize = histogram::LAST_BUCKET as usize + 1;
/// Two cells a doubling: sizes 1, 2, 3, 4, 5–6, 7–8, 9–12, 13–16 and so on.
const CELLS: usize = 40;

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

/// A request on its way. Dropped without an end, its client left.
pub struct Arrival {
    counters: Arc<Counters>,
    since: Instant,
    is_open: bool,
    watch: Option<Arc<Watch>>,
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

/// A number of durations and their sum, which many threads write.
#[derive(Default)]
pub struct Total {
    count: AtomicU64,
    nanoseconds: AtomicU64,
}

impl Total {
    /// Adds one.
    pub fn record(&self, duration: Duration) {
        increment(&self.count, 1);
        increment(&self.nanoseconds, nanoseconds(duration));
    }

    /// How many there are, and their sum.
    pub fn get(&self) -> (u64, Duration) {
        let nanoseconds = self.nanoseconds.load(Ordering::Relaxed);
        (self.count.load(Ordering::Relaxed), Duration::from_nanos(nanoseconds))
    }
}

/// A histogram that many threads write.
pub struct Durations {
    buckets: [AtomicU64; BUCKETS],
    nanoseconds: AtomicU64,
}

impl Default for Durations {
    fn default() -> Self {
        Self { buckets: std::array::from_fn(|_| AtomicU64::default()), nanoseconds: AtomicU64::default() }
    }
}

impl Durations {
    /// Adds one observation.
    pub fn record(&self, duration: Duration) {
        increment(&self.buckets[usize::from(histogram::bucket(duration.as_secs_f64()))], 1);
        increment(&self.nanoseconds, nanoseconds(duration));
    }

    /// How many observations there are, and their sum.
    pub fn totals(&self) -> (u64, Duration) {
        let count = self.buckets.iter().map(|count| count.load(Ordering::Relaxed)).sum();
        (count, Duration::from_nanos(self.nanoseconds.load(Ordering::Relaxed)))
    }

    /// The observations so far.
    pub fn snapshot(&self) -> Histogram {
        let buckets = (0_u16..).zip(&self.buckets).map(|(bucket, count)| (bucket, count.load(Ordering::Relaxed)));
        Histogram {
            buckets: buckets.filter(|(_, count)| *count > 0).collect(),
            sum: seconds(self.nanoseconds.load(Ordering::Relaxed)),
        }
    }
}

#[derive(Clone, Copy, Default)]
struct Cell {
    count: u64,
    rows: u64,
    nanoseconds: u64,
}

/// The cell that batches of a size are counted in.
fn cell_of(rows: usize) -> usize {
    if rows <= 2 {
        return rows.saturating_sub(1);
    }
    // For 2^k < rows <= 2^(k+1): the lower or the upper half of the interval.
    let doubling = (rows - 1).ilog2() as usize;
    let is_upper = rows > (1 << doubling) + (1 << (doubling - 1));
    (2 * doubling + usize::from(is_upper)).min(CELLS - 1)
}

/// The largest batch that is counted in a cell.
fn limit_of(cell: usize) -> u64 {
    match cell {
        0 | 1 => cell as u64 + 1,
        // It takes whatever is larger, too.
        _ if cell == CELLS - 1 => u64::MAX,
        _ if cell.is_multiple_of(2) => 3 << (cell / 2 - 1),
        _ => 2 << (cell / 2),
    }
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
    fn batch_sizes_share_a_cell_with_their_neighbours_only() {
        let sizes: Vec<usize> = (1..=33).map(cell_of).collect();
        assert_eq!(sizes[..8], [0, 1, 2, 3, 4, 4, 5, 5]);
        assert_eq!(cell_of(12), cell_of(9));
        assert_ne!(cell_of(13), cell_of(12));
        assert_eq!((cell_of(16), cell_of(17)), (7, 8));
        assert!(sizes.is_sorted() && sizes.windows(2).all(|pair| pair[1] - pair[0] <= 1));
        assert_eq!(cell_of(0), 0);
        assert_eq!(cell_of(usize::MAX), CELLS - 1);
    }

    #[test]
    fn each_cell_has_the_largest_size_that_is_counted_in_it_for_its_limit() {
        for cell in 0..CELLS - 1 {
            let limit = usize::try_from(limit_of(cell)).unwrap();
            assert_eq!((cell_of(limit), cell_of(limit + 1)), (cell, cell + 1), "{cell}");
        }
        assert_eq!(limit_of(CELLS - 1), u64::MAX);
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

    #[test]
    fn durations_keep_their_sum_and_count() {
        let durations = Durations::default();
        durations.record(Duration::from_micros(100));
        durations.record(Duration::from_millis(20));
        let snapshot = durations.snapshot();
        assert_eq!(snapshot.count(), 2);
        assert!((snapshot.sum - 0.0201).abs() < 1e-9);
    }
}
