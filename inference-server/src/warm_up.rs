//! Runs a model on zeros before anybody asks it: whether it runs, whether it gives a row for each row, for how many of them memory has
//! room, and how long batches take, which is the first knowledge of S(b).
//!
//! What decides how requests are answered is found out before the server is ready. The times of batches are measured in
//! moments in which nobody asks, where they would hold up readiness; a measurement during which somebody asked is no measurement.
//! A server that is asked all the time learns from that.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use ortolan_protocol::failure::{Failure, FailureReason};
use tracing::{debug, info, warn};

use crate::batch::Observer;
use crate::engine::{Dimension, Engine, RunError};
use crate::memory;
use crate::stats::Counters;
use crate::tensor::Tensor;

/// What measuring may take in all, as far as it can be foreseen.
const BUDGET: Duration = Duration::from_millis(500);
/// What of it readiness may wait for.
const BEFORE_READY: Duration = Duration::from_millis(100);
/// How long to look out for moments in which nobody asks.
const PATIENCE: Duration = Duration::from_mins(1);
/// How often to look.
const LOOK: Duration = Duration::from_millis(10);
/// Nobody asks when nobody has asked for so long: a client that asks again as soon as it is answered does ask.
const QUIET: Duration = Duration::from_millis(500);

/// The largest batch where rows may be larger than those that were tried, and nothing is known of the memory they take.
const GUESSED_ROWS: usize = 32;

/// A model that is run on zeros.
pub struct WarmUp {
    /// The model.
    pub engine: Arc<dyn Engine>,
    /// Where the times are counted.
    pub counters: Arc<Counters>,
    /// The largest batch in rows.
    pub max_rows: usize,
    /// What it may take in bytes, where it is to be no larger than memory has room for.
    pub room: Option<u64>,
}

/// What is known before the server is ready.
#[derive(Debug, PartialEq, Eq)]
pub struct Findings {
    /// Whether requests can be joined.
    pub has_rows: bool,
    /// The largest batch in rows.
    pub max_rows: usize,
    /// Sizes of batches whose times are not known yet.
    pub unknown: Vec<usize>,
}

impl Findings {
    fn without_rows() -> Self {
        Self { has_rows: false, max_rows: 1, unknown: Vec::new() }
    }
}

impl WarmUp {
    /// Finds out what is needed to answer requests.
    pub fn begin(&self) -> Result<Findings, Failure> {
        let start = Instant::now();
        let declared = self.engine.signature().has_batch_dimension();
        let is_guessed = self.engine.signature().inputs.iter().any(|spec| {
            spec.shape.iter().skip(usize::from(declared)).any(|dimension| matches!(dimension, Dimension::Dynamic(_)))
        });
        let joins = declared && self.max_rows > 1;
        // The first run allocates, and takes longer than others.
        let before = memory::used();
        let pair = if joins { self.run(2, true) } else { Ok(Some(Duration::ZERO)) };
        if joins && matches!(pair, Ok(Some(_))) {
            let max_rows = self.fitting(memory::used().saturating_sub(before) / 2, is_guessed);
            return Ok(Findings { has_rows: true, max_rows, unknown: self.measure_soon(start, max_rows) });
        }
        match self.measure(1, declared) {
            Ok(took) if !joins => {
                Ok(Findings { has_rows: declared && took.is_some(), max_rows: self.max_rows, unknown: Vec::new() })
            }
            Ok(_) => {
                let why = pair
                    .err()
                    .map_or_else(|| "it does not give as many rows as it takes".to_owned(), |error| error.to_string());
                warn!(
                    why,
                    "the model declares a batch dimension but does not run with it; requests are run one by one"
                );
                Ok(Findings::without_rows())
            }
            Err(error) if is_guessed => {
                info!(%error, "no warm-up: the model's shapes are not fixed, and it does not run with the ones that were guessed");
                Ok(Findings { has_rows: declared, max_rows: self.fitting(0, is_guessed), unknown: Vec::new() })
            }
            Err(error) => Err(does_not_run(&error)),
        }
    }

    /// The largest batch, of rows that take so many bytes each: a power of two, where memory has to have room for it.
    fn fitting(&self, row: u64, is_guessed: bool) -> usize {
        let Some(room) = self.room else { return self.max_rows };
        let most = if is_guessed { self.max_rows.min(GUESSED_ROWS) } else { self.max_rows };
        let fitting = room.checked_div(row).map_or(most, |rows| usize::try_from(rows).unwrap_or(usize::MAX));
        1 << fitting.clamp(1, most).ilog2()
    }

    /// Measures what takes no time to speak of, and gives the sizes that are left.
    fn measure_soon(&self, start: Instant, max_rows: usize) -> Vec<usize> {
        let powers = std::iter::successors(Some(2), |size| Some(size * 2)).take_while(|size| *size < max_rows);
        let mut row = start.elapsed() / 2;
        let (mut spent, mut unknown) = (Duration::ZERO, Vec::new());
        for rows in [1, max_rows].into_iter().chain(powers) {
            let foreseen = foreseen(row, rows);
            if rows > 1 && spent + foreseen > BUDGET {
                continue;
            }
            // A single row is measured in any case.
            spent += if rows > 1 { foreseen } else { Duration::ZERO };
            if start.elapsed() + foreseen > BEFORE_READY {
                unknown.push(rows);
                continue;
            }
            match self.measure(rows, true) {
                Ok(Some(took)) if rows == 1 => row = took,
                Ok(_) => {}
                Err(error) => warn!(%error, rows, "the model runs with two rows but not with so many"),
            }
        }
        unknown
    }

    /// Measures the rest while nobody asks, on a thread of its own that ends with it, or with the batcher.
    pub fn go_on(self, unknown: Vec<usize>, observer: Observer) {
        if unknown.is_empty() {
            return;
        }
        let spawned =
            thread::Builder::new().name("warm-up".to_owned()).spawn(move || self.measure_idle(unknown, &observer));
        if let Err(error) = spawned {
            debug!(%error, "no thread can be started to measure batches; those of clients will tell");
        }
    }

    fn measure_idle(&self, mut unknown: Vec<usize>, observer: &Observer) {
        let start = Instant::now();
        // Clients may have waited for the server to be ready.
        let (mut last, mut quiet_since) = (self.counters.requests().0, start);
        unknown.reverse();
        while let Some(rows) = unknown.pop() {
            let (before, in_flight) = self.counters.requests();
            if in_flight > 0 || before != last {
                (last, quiet_since) = (before, Instant::now());
            }
            if quiet_since.elapsed() >= QUIET {
                match self.run(rows, true).and_then(|_| self.run(rows, true)) {
                    Ok(Some(took)) if self.counters.requests().0 == before => {
                        self.counters.record_batch(rows, took);
                        observer.learn(rows, took);
                        continue;
                    }
                    Ok(Some(_)) => {}
                    Ok(None) | Err(_) => {
                        warn!(rows, "the model runs with two rows but not with so many");
                        continue;
                    }
                }
            }
            if start.elapsed() > PATIENCE || observer.is_alone() {
                return;
            }
            unknown.push(rows);
            thread::sleep(LOOK);
        }
    }

    /// Runs once more than it has run, and counts that. `None`: so many rows in are not as many out.
    fn measure(&self, rows: usize, has_rows: bool) -> Result<Option<Duration>, RunError> {
        self.run(rows, has_rows)?;
        let took = self.run(rows, has_rows)?;
        if let Some(took) = took {
            self.counters.record_batch(rows, took);
        }
        Ok(took)
    }

    fn run(&self, rows: usize, has_rows: bool) -> Result<Option<Duration>, RunError> {
        let signature = self.engine.signature();
        let inputs: Vec<Tensor> = signature.inputs.iter().map(|spec| spec.zeros(rows, has_rows)).collect();
        let outputs: Vec<usize> = (0..signature.outputs.len()).collect();
        let start = Instant::now();
        let found = self.engine.run(&inputs, &outputs)?;
        let took = start.elapsed();
        let fits = !has_rows || found.iter().all(|output| output.shape.first() == Some(&rows));
        Ok(fits.then_some(took))
    }
}

/// What measuring a size takes: it runs twice.
fn foreseen(row: Duration, rows: usize) -> Duration {
    row.saturating_mul(u32::try_from(rows.saturating_mul(2)).unwrap_or(u32::MAX))
}

fn does_not_run(error: &RunError) -> Failure {
    Failure {
        reason: FailureReason::ModelInvalid,
        message: format!("the model was loaded, but it does not run on zeros: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{Batcher, Limits};
    use crate::engine::Signature;

    const LIMITS: Limits = Limits {
        max_batch_rows: 8,
        instances: 1,
        max_delay: Duration::ZERO,
        quick: Duration::ZERO,
        max_queue_rows: 100,
        max_queue_bytes: 1 << 20,
    };

    /// Takes its time for each row, and takes `most` rows.
    struct Slow {
        signature: Signature,
        row: Duration,
        most: usize,
    }

    impl Engine for Slow {
        fn signature(&self) -> &Signature {
            &self.signature
        }

        fn run(&self, inputs: &[Tensor], _outputs: &[usize]) -> Result<Vec<Tensor>, RunError> {
            let rows = inputs[0].rows();
            thread::sleep(self.row * u32::try_from(rows).unwrap());
            if rows > self.most { Err(RunError::Failed("too many".to_owned())) } else { Ok(inputs.to_vec()) }
        }
    }

    fn warm_up(row: Duration, most: usize) -> WarmUp {
        let signature = Signature::of_rows();
        WarmUp { engine: Arc::new(Slow { signature, row, most }), counters: Arc::default(), max_rows: 8, room: None }
    }

    fn measured(counters: &Counters) -> Vec<u64> {
        counters.batch_cells().iter().map(|cell| cell.limit).collect()
    }

    #[test]
    fn a_quick_model_is_known_when_it_is_ready() {
        let warm_up = warm_up(Duration::ZERO, 8);
        assert_eq!(warm_up.begin(), Ok(Findings { has_rows: true, max_rows: 8, unknown: Vec::new() }));
        assert_eq!(measured(&warm_up.counters), [1, 2, 4, 8]);
    }

    #[test]
    fn readiness_does_not_wait_for_the_times_of_a_slow_one_which_are_measured_while_nobody_asks() {
        let warm_up = warm_up(Duration::from_millis(35), 8);
        let Findings { has_rows, unknown, .. } = warm_up.begin().unwrap();
        assert!(has_rows && measured(&warm_up.counters).is_empty());
        assert!(unknown.starts_with(&[1, 2]) && !unknown.contains(&8), "that would take too long at all: {unknown:?}");
        let sizes: Vec<u64> = unknown.iter().map(|rows| *rows as u64).collect();
        let counters = Arc::clone(&warm_up.counters);
        let batcher = Batcher::start(Arc::clone(&warm_up.engine), LIMITS, true, Arc::clone(&counters)).unwrap();
        let asking = counters.arrive();
        let measuring = thread::spawn({
            let observer = batcher.observer();
            move || warm_up.measure_idle(unknown, &observer)
        });
        thread::sleep(5 * LOOK);
        assert!(measured(&counters).is_empty(), "somebody asks");
        asking.finish(&Ok(()));
        measuring.join().unwrap();
        assert_eq!(measured(&counters), sizes);
        assert_eq!(counters.executed().batches, 0, "they are no answers to anybody");
    }

    #[test]
    fn a_batch_is_no_larger_than_memory_has_room_for() {
        for (room, row, is_guessed, expected) in [
            (None, 1000, true, 200),
            (Some(100_000), 1000, false, 64),
            (Some(1 << 30), 1000, false, 128),
            (Some(1 << 30), 0, false, 128),
            (Some(1 << 30), 1000, true, 32),
            (Some(5000), 1000, true, 4),
            (Some(0), 1000, false, 1),
            (Some(0), 0, true, 32),
        ] {
            let warm_up = WarmUp { max_rows: 200, room, ..warm_up(Duration::ZERO, 8) };
            assert_eq!(warm_up.fitting(row, is_guessed), expected, "{room:?}, {row}, {is_guessed}");
        }
        // Whatever it takes, there is no room for two of them.
        let crowded = WarmUp { room: Some(0), ..warm_up(Duration::ZERO, 8) };
        assert!(crowded.begin().unwrap().has_rows);
    }

    #[test]
    fn what_is_measured_while_somebody_asks_is_not_counted() {
        let warm_up = warm_up(Duration::from_millis(50), 8);
        let counters = Arc::clone(&warm_up.counters);
        let batcher = Batcher::start(Arc::clone(&warm_up.engine), LIMITS, true, Arc::clone(&counters)).unwrap();
        let observer = batcher.observer();
        let measuring = thread::spawn(move || warm_up.measure_idle(vec![2], &observer));
        thread::sleep(2 * LOOK);
        counters.arrive().finish(&Ok(()));
        measuring.join().unwrap();
        let cells = counters.batch_cells();
        assert_eq!(
            cells.iter().map(|cell| (cell.limit, cell.count)).collect::<Vec<_>>(),
            [(2, 1)],
            "only the second try"
        );
    }

    #[test]
    fn nothing_is_measured_for_a_batcher_that_is_gone() {
        let warm_up = warm_up(Duration::ZERO, 8);
        let counters = Arc::clone(&warm_up.counters);
        let observer =
            Batcher::start(Arc::clone(&warm_up.engine), LIMITS, true, Arc::clone(&counters)).unwrap().observer();
        let _asking = counters.arrive();
        warm_up.measure_idle(vec![1], &observer);
        assert!(measured(&counters).is_empty());
    }

    #[test]
    fn a_model_that_runs_with_one_row_only_answers_one_by_one() {
        let warm_up = warm_up(Duration::ZERO, 1);
        assert_eq!(warm_up.begin(), Ok(Findings::without_rows()));
        assert_eq!(measured(&warm_up.counters), [1]);
    }

    #[test]
    fn a_model_that_does_not_run_at_all_is_refused() {
        let failure = warm_up(Duration::ZERO, 0).begin().unwrap_err();
        assert_eq!(failure.reason, FailureReason::ModelInvalid);
    }
}
