//! From a file to a model that answers: builds the engine, runs it a few times, and puts the batcher in front.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ortolan_protocol::failure::{Failure, FailureReason};
use ortolan_protocol::stats::Trial;
use tokio::sync::oneshot;
use tracing::{info, warn};

use crate::autotune;
use crate::batch::{Batcher, Limits};
use crate::config::Config;
use crate::engine::{self, Dimension, Engine, Loading, RunError, TensorSpec};
use crate::fetch::{Fetched, Source};
use crate::serving::Model;
use crate::stats::Counters;
use crate::tensor::{Shape, Tensor};

/// What warming up may take in all, as far as it can be foreseen.
const WARM_UP_BUDGET: Duration = Duration::from_millis(500);

/// Refuses a model that cannot fit: its weights are in memory once while it serves, and some of them twice for a moment while ONNX
/// Runtime loads it. One that fits once is tried; what is left behind tells of it when it is killed. All in bytes.
pub fn check_memory(model: u64, limit: Option<u64>, used: u64) -> Result<(), Failure> {
    let Some(limit) = limit.filter(|limit| model.saturating_add(used) > *limit) else { return Ok(()) };
    let mebibytes = |bytes: u64| bytes.div_ceil(1 << 20);
    Err(Failure {
        reason: FailureReason::OutOfMemory,
        message: format!(
            "the model has {} MiB and takes up to twice that while it is loaded, but the server may use {} MiB of memory, of which \
             {} MiB were used before",
            mebibytes(model),
            mebibytes(limit),
            mebibytes(used)
        ),
    })
}

/// How a model is to be loaded and run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How it is loaded.
    pub loading: Loading,
    /// How its requests become batches.
    pub limits: Limits,
    /// So many threads are to be shared by as many instances as is found to be best.
    pub autotuned: Option<usize>,
}

impl From<&Config> for Plan {
    fn from(config: &Config) -> Self {
        // What lies on a volume others may write to.
        let is_ours = config.owns_cache && !matches!(config.source, Source::File(_));
        let (threads, instances) = (config.threads, config.batching.instances);
        Self {
            loading: Loading { threads, instances, is_ours, mapped: Loading::MAPPED },
            limits: config.batching,
            autotuned: config.autotune.then_some(threads),
        }
    }
}

impl Plan {
    /// With what was found by measuring, if anything was to be found and could be.
    fn tuned(mut self, path: &Path) -> Result<(Self, Vec<Trial>), Failure> {
        let Some(threads) = self.autotuned else { return Ok((self, Vec::new())) };
        let trials = autotune::trials(path, self.loading, threads, self.limits.max_batch_rows)?;
        if let Some(chosen) = trials.iter().find(|trial| trial.is_chosen) {
            let number = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
            self.limits.instances = number(chosen.instances);
            (self.loading.instances, self.loading.threads) = (number(chosen.instances), number(chosen.threads));
        }
        Ok((self, trials))
    }
}

/// Loads a model and warms it up, on a thread of its own: it takes as long as it takes, and must not hold up the ports.
pub async fn load(fetched: Fetched, plan: Plan, counters: Arc<Counters>) -> Result<Model, Failure> {
    let (done, loaded) = oneshot::channel();
    let spawned = std::thread::Builder::new().name("load".to_owned()).spawn(move || {
        // Nobody waits any more when the server was told to stop meanwhile.
        let _ = done.send(load_here(&fetched, plan, counters));
    });
    spawned.map_err(|error| internal(&format!("no thread can be started: {error}")))?;
    loaded.await.unwrap_or_else(|_| Err(internal("the runtime stopped unexpectedly while it loaded the model")))
}

fn load_here(fetched: &Fetched, plan: Plan, counters: Arc<Counters>) -> Result<Model, Failure> {
    let (plan, trials) = plan.tuned(&fetched.path)?;
    let start = Instant::now();
    let engine = engine::load(&fetched.path, plan.loading)?;
    // The runtime opened the file anew: what it read must be what has the digest.
    fetched.check_unchanged()?;
    let built = start.elapsed();
    let model = serve(Box::new(engine), plan.limits, counters, built)?;
    Ok(Model { trials, ..model })
}

/// Warms an engine up and puts the batcher in front of it.
fn serve(engine: Box<dyn Engine>, limits: Limits, counters: Arc<Counters>, built: Duration) -> Result<Model, Failure> {
    let start = Instant::now();
    let has_rows = WarmUp { engine: engine.as_ref(), counters: &counters, max_rows: limits.max_batch_rows }.run()?;
    info!(load = ?built, warm_up = ?start.elapsed(), batches_requests = has_rows, "the model is loaded");
    let signature = engine.signature().clone();
    let batcher = Batcher::start(engine, limits, has_rows, counters)
        .map_err(|error| internal(&format!("no thread can be started for the model: {error}")))?;
    Ok(Model {
        signature,
        has_rows,
        max_rows: limits.max_batch_rows,
        instances: limits.instances,
        trials: Vec::new(),
        max_delay: limits.max_delay,
        batcher,
    })
}

struct WarmUp<'a> {
    engine: &'a dyn Engine,
    counters: &'a Counters,
    max_rows: usize,
}

impl WarmUp<'_> {
    /// Runs the model on zeros, at several batch sizes as far as the budget goes; what it takes is counted as the first
    /// knowledge of S(b). Says whether requests can be joined.
    fn run(&mut self) -> Result<bool, Failure> {
        let declared = self.engine.signature().has_batch_dimension();
        let is_guessed = self.engine.signature().inputs.iter().any(|spec| {
            spec.shape.iter().skip(usize::from(declared)).any(|dimension| matches!(dimension, Dimension::Dynamic(_)))
        });
        let single = match self.measure(1, declared) {
            Ok(Some(took)) => took,
            Ok(None) => return Ok(false),
            Err(error) if is_guessed => {
                info!(%error, "no warm-up: the model's shapes are not fixed, and it does not run with the ones that were guessed");
                return Ok(declared);
            }
            Err(error) => return Err(does_not_run(&error)),
        };
        if !declared || self.max_rows < 2 {
            return Ok(declared);
        }
        let mut spent = Duration::ZERO;
        let mut sizes: Vec<usize> = vec![self.max_rows];
        sizes.extend(std::iter::successors(Some(2), |size| Some(size * 2)).take_while(|size| *size < self.max_rows));
        for rows in sizes {
            let foreseen = single * u32::try_from(2 * rows).unwrap_or(u32::MAX);
            if spent + foreseen > WARM_UP_BUDGET {
                continue;
            }
            let start = Instant::now();
            match self.measure(rows, true) {
                Ok(Some(_)) => spent += start.elapsed(),
                Ok(None) => return Ok(false),
                Err(error) => {
                    warn!(%error, rows, "the model declares a batch dimension but does not run with it; requests are run one by one");
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Runs twice, since the first run allocates, and counts the second. `None`: so many rows in are not as many out.
    fn measure(&mut self, rows: usize, has_rows: bool) -> Result<Option<Duration>, RunError> {
        let signature = self.engine.signature();
        let inputs: Vec<Tensor> = signature.inputs.iter().map(|spec| zeros(spec, rows, has_rows)).collect();
        let outputs: Vec<usize> = (0..signature.outputs.len()).collect();
        self.engine.run(&inputs, &outputs)?;
        let start = Instant::now();
        let found = self.engine.run(&inputs, &outputs)?;
        let took = start.elapsed();
        if has_rows && found.iter().any(|output| output.shape.first() != Some(&rows)) {
            warn!(rows, "the model does not give as many rows as it takes; requests are run one by one");
            return Ok(None);
        }
        self.counters.record_batch(rows, took);
        Ok(Some(took))
    }
}

/// An input of zeros, with so many rows where it has rows.
pub fn zeros(spec: &TensorSpec, rows: usize, has_rows: bool) -> Tensor {
    let sizes = spec.shape.iter().enumerate().map(|(position, dimension)| match dimension {
        _ if position == 0 && has_rows => rows,
        Dimension::Fixed(size) => *size,
        Dimension::Dynamic(_) => 1,
    });
    Tensor::zeros(spec.datatype, sizes.collect::<Shape>())
}

fn does_not_run(error: &RunError) -> Failure {
    Failure {
        reason: FailureReason::ModelInvalid,
        message: format!("the model was loaded, but it does not run on zeros: {error}"),
    }
}

fn internal(message: &str) -> Failure {
    Failure { reason: FailureReason::Internal, message: message.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_model_that_cannot_fit_is_refused_before_it_is_loaded() {
        const MIB: u64 = 1 << 20;
        assert_eq!(check_memory(60 * MIB, None, MIB), Ok(()));
        assert_eq!(check_memory(50 * MIB, Some(64 * MIB), 14 * MIB), Ok(()));
        let failure = check_memory(51 * MIB, Some(64 * MIB), 14 * MIB).unwrap_err();
        assert_eq!(failure.reason, FailureReason::OutOfMemory);
        for words in ["has 51 MiB", "may use 64 MiB", "14 MiB were used"] {
            assert!(failure.message.contains(words), "{}", failure.message);
        }
    }
}
