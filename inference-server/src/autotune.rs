//! Finds out how many batches of a model are best run at once, and with how many threads each.
//!
//! Some models fill all CPUs with one batch; others are quicker when each CPU has its own, since their operators are small or cannot be
//! divided. That is measured on the model itself, with zeros, before anybody asks it: every way to share the CPUs runs for a moment
//! with all its batches at once, and the one that gives most rows a second is taken. Among those that are about as good it is the one with the
//! fewest batches at once, which answers a single request soonest.
//!
//! It takes some seconds at most: a way that would take longer, as far as can be foreseen, is left out.

use std::time::{Duration, Instant};

use ortolan_protocol::failure::Failure;
use ortolan_protocol::stats::Trial;
use tracing::{info, warn};

use crate::engine::{self, Engine, Loading, RunError};
use crate::fetch::Fetched;
use crate::tensor::Tensor;

/// For all trials together.
const BUDGET: Duration = Duration::from_secs(5);
/// For the runs of one trial, after those that allocate.
const RUNNING: Duration = Duration::from_millis(400);
/// The largest batch that is tried, in rows.
const MOST_ROWS: usize = 8;
/// A batch that is tried takes no longer, unless one row does.
const LONGEST_BATCH: Duration = Duration::from_millis(100);
/// What gives less than this part of the best is not about as good.
const ABOUT: f64 = 0.97;

/// Measures the ways to share so many threads, with one marked that was chosen. None where there is only one way, or the model does not run
/// on zeros.
pub fn trials(fetched: &Fetched, loading: Loading, threads: usize, max_rows: usize) -> Result<Vec<Trial>, Failure> {
    let start = Instant::now();
    let mut trials = Vec::new();
    let mut rows = None;
    let mut longest = Duration::ZERO;
    for (instances, threads) in ways(threads) {
        let begun = Instant::now();
        if start.elapsed() + longest > BUDGET {
            info!(instances, threads, "not tried: it would take too long");
            continue;
        }
        let engine = engine::load(&fetched.path, &fetched.companions, Loading { threads, instances, ..loading })?;
        let measured = rows.map_or_else(|| fitting_rows(&engine, max_rows), Ok).and_then(|fitting| {
            rows = Some(fitting);
            rows_per_second(&engine, instances, fitting)
        });
        match measured {
            Ok(rows_per_second) => trials.push(trial(instances, threads, rows_per_second)),
            Err(error) => {
                warn!(%error, "nothing can be measured: the model does not run on zeros");
                return Ok(Vec::new());
            }
        }
        longest = longest.max(begun.elapsed());
    }
    trials.sort_by_key(|trial| trial.instances);
    choose(&mut trials);
    info!(took = ?start.elapsed(), ?trials, "measured how many batches are best run at once");
    Ok(trials)
}

/// Batches at once and threads for each: all threads for one, one for each, and what lies between.
fn ways(threads: usize) -> Vec<(usize, usize)> {
    if threads < 2 {
        return Vec::new();
    }
    let between = std::iter::successors(Some(2), |instances| Some(instances * 2));
    let mut ways = vec![(1, threads), (threads, 1)];
    ways.extend(between.take_while(|instances| *instances < threads).map(|instances| (instances, threads / instances)));
    ways
}

fn trial(instances: usize, threads: usize, rows_per_second: f64) -> Trial {
    Trial { instances: instances as u64, threads: threads as u64, rows_per_second, is_chosen: false }
}

fn choose(trials: &mut [Trial]) {
    let best = trials.iter().map(|trial| trial.rows_per_second).fold(0.0, f64::max);
    if let Some(chosen) = trials.iter_mut().find(|trial| trial.rows_per_second >= ABOUT * best) {
        chosen.is_chosen = true;
    }
}

/// The rows of the batches that are tried: as many as do not take too long.
fn fitting_rows(engine: &dyn Engine, max_rows: usize) -> Result<usize, RunError> {
    if !engine.signature().has_batch_dimension() {
        return Ok(1);
    }
    run(engine, &inputs(engine, 1))?;
    let start = Instant::now();
    run(engine, &inputs(engine, 1))?;
    let fitting = LONGEST_BATCH.div_duration_f64(start.elapsed().max(Duration::from_nanos(1)));
    let most = max_rows.min(MOST_ROWS);
    Ok((1..=most).rev().find(|rows| f64::from(u32::try_from(*rows).unwrap_or(u32::MAX)) <= fitting).unwrap_or(1))
}

/// What so many callers at once are answered.
fn rows_per_second(engine: &dyn Engine, instances: usize, rows: usize) -> Result<f64, RunError> {
    let inputs = inputs(engine, rows);
    let all = |runs: &(dyn Fn() -> Result<u32, RunError> + Sync)| -> Result<u32, RunError> {
        std::thread::scope(|scope| {
            let callers: Vec<_> = (0..instances).map(|_| scope.spawn(runs)).collect();
            let ends = callers.into_iter().map(|caller| {
                caller.join().unwrap_or_else(|_| Err(RunError::Failed("the runtime stopped unexpectedly".to_owned())))
            });
            ends.sum()
        })
    };
    all(&|| run(engine, &inputs).map(|()| 1))?;
    let start = Instant::now();
    let runs = all(&|| {
        let mut runs = 0;
        while runs == 0 || start.elapsed() < RUNNING {
            run(engine, &inputs)?;
            runs += 1;
        }
        Ok(runs)
    })?;
    let rows = f64::from(u32::try_from(rows).unwrap_or(u32::MAX));
    Ok(f64::from(runs) * rows / start.elapsed().as_secs_f64())
}

fn run(engine: &dyn Engine, inputs: &[Tensor]) -> Result<(), RunError> {
    let outputs: Vec<usize> = (0..engine.signature().outputs.len()).collect();
    engine.run(inputs, &outputs).map(|_| ())
}

fn inputs(engine: &dyn Engine, rows: usize) -> Vec<Tensor> {
    let signature = engine.signature();
    let has_rows = signature.has_batch_dimension();
    signature.inputs.iter().map(|spec| spec.zeros(rows, has_rows)).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::engine::Signature;

    #[test]
    fn all_threads_are_shared_in_every_way_that_matters() {
        assert_eq!(ways(1), []);
        assert_eq!(ways(2), [(1, 2), (2, 1)]);
        assert_eq!(ways(6), [(1, 6), (6, 1), (2, 3), (4, 1)]);
        assert_eq!(ways(8), [(1, 8), (8, 1), (2, 4), (4, 2)]);
    }

    #[test]
    fn the_most_rows_win_and_fewer_batches_at_once_where_it_is_about_the_same() {
        for (rates, expected) in
            [([100.0, 98.0, 90.0], 1), ([98.0, 100.0, 101.0], 1), ([90.0, 100.0, 102.0], 2), ([10.0, 20.0, 30.0], 4)]
        {
            let mut trials: Vec<_> = [1, 2, 4].into_iter().zip(rates).map(|(n, rate)| trial(n, 4 / n, rate)).collect();
            choose(&mut trials);
            let chosen: Vec<_> = trials.iter().filter(|trial| trial.is_chosen).map(|trial| trial.instances).collect();
            assert_eq!(chosen, [expected], "{rates:?}");
        }
        choose(&mut []);
    }

    /// Takes so long for a batch; only one at a time runs where `alone` is held.
    struct Slow {
        signature: Signature,
        takes: Duration,
        alone: Option<Mutex<()>>,
    }

    impl Engine for Slow {
        fn signature(&self) -> &Signature {
            &self.signature
        }

        fn run(&self, inputs: &[Tensor], _outputs: &[usize]) -> Result<Vec<Tensor>, RunError> {
            let _alone = self.alone.as_ref().map(|alone| alone.lock().unwrap());
            std::thread::sleep(self.takes);
            Ok(inputs.to_vec())
        }
    }

    fn slow(takes: Duration, is_alone: bool) -> Slow {
        let signature = Signature::of_rows();
        Slow { signature, takes, alone: is_alone.then(Mutex::default) }
    }

    #[test]
    fn callers_are_measured_at_once() {
        let takes = Duration::from_millis(20);
        let rate = |instances, is_alone| rows_per_second(&slow(takes, is_alone), instances, 2).unwrap();
        let (one, four, in_turns) = (rate(1, true), rate(4, false), rate(4, true));
        assert!(one <= 100.0 && four > 2.0 * one && in_turns < 1.5 * one, "{one} {four} {in_turns}");
    }

    #[test]
    fn batches_are_as_large_as_their_time_allows() {
        let rows = |milliseconds, max_rows| fitting_rows(&slow(Duration::from_millis(milliseconds), false), max_rows);
        assert_eq!(rows(0, 32), Ok(8));
        assert_eq!(rows(0, 2), Ok(2));
        assert!((1..=4).contains(&rows(25, 32).unwrap()));
        assert_eq!(rows(200, 32), Ok(1));
    }
}
