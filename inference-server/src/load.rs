//! From a file to a model that answers: builds the engine, runs it a few times, and puts the batcher in front.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ortolan_protocol::failure::{Failure, FailureReason};
use ortolan_protocol::stats::Trial;
use tokio::sync::oneshot;
use tracing::info;

use crate::autotune;
use crate::batch::{Batcher, Limits};
use crate::config::{Config, LargestBatch};
use crate::confine;
use crate::engine::{self, Engine, Loading};
use crate::fetch::{Fetched, Source};
use crate::memory;
use crate::serving::Model;
use crate::stats::Counters;
use crate::warm_up::{Findings, WarmUp};

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
    /// Where the largest batch comes from.
    pub largest_batch: LargestBatch,
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
            largest_batch: config.largest_batch,
            autotuned: config.autotune.then_some(threads),
        }
    }
}

impl Plan {
    /// With what was found by measuring, if anything was to be found and could be.
    fn tuned(mut self, fetched: &Fetched) -> Result<(Self, Vec<Trial>), Failure> {
        let Some(threads) = self.autotuned else { return Ok((self, Vec::new())) };
        let trials = autotune::trials(fetched, self.loading, threads, self.limits.max_batch_rows)?;
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
    // The engine's threads are started from here, too.
    confine::model(&[fetched.path.parent().unwrap_or(Path::new(".")), &fetched.path]);
    let (plan, trials) = plan.tuned(fetched)?;
    let start = Instant::now();
    let engine = engine::load(&fetched.path, &fetched.companions, plan.loading)?;
    // The runtime opened the files anew: what it read must be what has the digest.
    fetched.check_unchanged()?;
    let built = start.elapsed();
    let model = serve(Arc::new(engine), plan, counters, built)?;
    Ok(Model { trials, ..model })
}

/// Warms an engine up and puts the batcher in front of it.
fn serve(engine: Arc<dyn Engine>, plan: Plan, counters: Arc<Counters>, built: Duration) -> Result<Model, Failure> {
    let start = Instant::now();
    let mut limits = plan.limits;
    let instances = u64::try_from(limits.instances.max(1)).unwrap_or(u64::MAX);
    let warm_up = WarmUp {
        engine: Arc::clone(&engine),
        counters: Arc::clone(&counters),
        max_rows: limits.max_batch_rows,
        room: (plan.largest_batch == LargestBatch::Fitting).then(|| memory::room() / instances),
    };
    let Findings { has_rows, max_rows, unknown } = warm_up.begin()?;
    limits.max_batch_rows = max_rows;
    let _ = counters.load_times.session.set(built);
    let _ = counters.load_times.warm_up.set(start.elapsed());
    info!(load = ?built, warm_up = ?start.elapsed(), batches_requests = has_rows, max_rows, "the model is loaded");
    let signature = engine.signature().clone();
    let batcher = Batcher::start(engine, limits, has_rows, counters)
        .map_err(|error| internal(&format!("no thread can be started for the model: {error}")))?;
    warm_up.go_on(unknown, batcher.observer());
    Ok(Model {
        signature,
        has_rows,
        max_rows,
        instances: limits.instances,
        trials: Vec::new(),
        max_delay: limits.max_delay,
        batcher,
    })
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
