//! The operator's own metrics, in Prometheus' text form at `/metrics`.
//!
//! What happens is counted where it happens. What is a state (the sizes of caches, the models, this process) is asked
//! for when the text is made: [`Metrics::watch`] hands over a question, not a number that somebody has to keep true.
//!
//! Labels are of few values (verbs, kinds, outcomes), except the names of models: of these, [`MODELS_SHOWN`] are told,
//! those first with which something is wrong. docs/runbook.md says what to do about the numbers.

pub mod api;
mod process;
mod queue;

use std::{
    fmt::{Debug, Formatter},
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::{Registry, Unit},
};

use process::ProcessMetrics;
pub use queue::Queue;

/// Models of which single numbers are told; five series each.
pub const MODELS_SHOWN: usize = 2000;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Kind {
    kind: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Direction {
    direction: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ModelName {
    namespace: String,
    name: String,
}

/// What is told of one model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelSample {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Condition `Ready`.
    pub ready: bool,
    /// Condition `Stalled`.
    pub stalled: bool,
    /// Condition `ScalingLimited`.
    pub limited: bool,
    /// Servers that exist.
    pub replicas: u32,
    /// Servers that there should be.
    pub desired: u32,
}

impl ModelSample {
    fn is_well(&self) -> bool {
        self.ready && !self.stalled && !self.limited
    }
}

/// What is asked for when the text is made.
#[derive(Default)]
struct Questions {
    caches: Vec<(&'static str, Question<usize>)>,
    models: Option<Question<Vec<ModelSample>>>,
}

type Question<T> = Box<dyn Fn() -> T + Send>;

impl Debug for Questions {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Questions").finish_non_exhaustive()
    }
}

/// All metrics; clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Registry>,
    questions: Arc<Mutex<Questions>>,
    process: ProcessMetrics,
    queue: Queue,
    api: api::ApiMetrics,
    reconciles: Family<OutcomeLabel, Histogram, fn() -> Histogram>,
    reconcile_errors: Family<Kind, Counter>,
    reconciles_under_way: Gauge,
    writes: Family<Kind, Counter>,
    watch_errors: Family<Kind, Counter>,
    scrapes: Family<OutcomeLabel, Counter>,
    scrape_duration: Histogram,
    decisions: Family<Direction, Counter>,
    tick: Histogram,
    leader: Gauge,
    caches: Family<Kind, Gauge>,
    models: ModelMetrics,
}

#[derive(Clone, Debug, Default)]
struct ModelMetrics {
    known: Gauge,
    not_shown: Gauge,
    ready: Family<ModelName, Gauge>,
    stalled: Family<ModelName, Gauge>,
    limited: Family<ModelName, Gauge>,
    replicas: Family<ModelName, Gauge>,
    desired: Family<ModelName, Gauge>,
}

/// From a millisecond to half a minute, the longest that a reconcile may take.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 16))
}

impl Default for Metrics {
    fn default() -> Self {
        let mut all = Registry::default();
        let process = ProcessMetrics::register(&mut all);
        let registry = all.sub_registry_with_prefix("ortolan");
        let metrics = Self {
            process,
            questions: Arc::default(),
            queue: Queue::register(registry),
            api: api::ApiMetrics::register(registry),
            reconciles: Family::new_with_constructor(seconds),
            reconcile_errors: Family::default(),
            reconciles_under_way: Gauge::default(),
            writes: Family::default(),
            watch_errors: Family::default(),
            scrapes: Family::default(),
            scrape_duration: seconds(),
            decisions: Family::default(),
            tick: seconds(),
            leader: Gauge::default(),
            caches: Family::default(),
            models: ModelMetrics::default(),
            registry: Arc::default(),
        };
        metrics.register(registry);
        metrics.models.register(registry);
        Self { registry: Arc::new(all), ..metrics }
    }
}

impl Metrics {
    fn register(&self, registry: &mut Registry) {
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The operator's version", build);
        registry.register("leader", "1 in the process that leads, 0 in the others", self.leader.clone());
        let help = "Duration of a reconcile, by how it ended";
        registry.register_with_unit("reconcile_duration", help, Unit::Seconds, self.reconciles.clone());
        let help = "Reconciles that failed, by the step that failed";
        registry.register("reconcile_errors", help, self.reconcile_errors.clone());
        registry.register("reconciles_under_way", "Reconciles that run now", self.reconciles_under_way.clone());
        registry.register("writes", "Writes to the API server, by the kind of the object", self.writes.clone());
        let help = "Watches that failed and were begun anew, by the kind of the object";
        registry.register("watch_errors", help, self.watch_errors.clone());
        registry.register("scrapes", "Reads of a model server's /stats, by outcome", self.scrapes.clone());
        let help = "Duration of one read of a model server's /stats";
        registry.register_with_unit("scrape_duration", help, Unit::Seconds, self.scrape_duration.clone());
        let help = "Decisions that changed a number of servers";
        registry.register("scaling_decisions", help, self.decisions.clone());
        let help = "Duration of one look at the servers of a model";
        registry.register_with_unit("observation_duration", help, Unit::Seconds, self.tick.clone());
        registry.register("cache_objects", "Objects in a watch cache, by kind", self.caches.clone());
    }

    /// This process leads.
    pub fn leads(&self) {
        self.leader.set(1);
    }

    /// What waits for a reconcile.
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// The layer that measures requests to the API server.
    pub fn api(&self) -> &api::ApiMetrics {
        &self.api
    }

    /// A reconcile begins.
    pub fn reconcile_begins(&self) {
        self.reconciles_under_way.inc();
    }

    /// A reconcile ended after `seconds`; `error`: the class of the error it ended with.
    pub fn reconciled(&self, seconds: f64, error: Option<&'static str>) {
        self.reconciles_under_way.dec();
        let outcome = if error.is_some() { "error" } else { "ok" };
        self.reconciles.get_or_create(&OutcomeLabel { outcome }).observe(seconds);
        if let Some(kind) = error {
            self.reconcile_errors.get_or_create(&Kind { kind: kind.to_owned() }).inc();
        }
    }

    /// Something was written.
    pub fn written(&self, kind: &str) {
        self.writes.get_or_create(&Kind { kind: kind.to_owned() }).inc();
    }

    /// A watch failed.
    pub fn watch_failed(&self, kind: &str) {
        self.watch_errors.get_or_create(&Kind { kind: kind.to_owned() }).inc();
    }

    /// A server's `/stats` was read, or not.
    pub fn scraped(&self, outcome: &'static str, seconds: f64) {
        self.scrapes.get_or_create(&OutcomeLabel { outcome }).inc();
        self.scrape_duration.observe(seconds);
    }

    /// A number of servers was changed.
    pub fn decided(&self, up: bool) {
        self.decisions.get_or_create(&Direction { direction: if up { "up" } else { "down" } }).inc();
    }

    /// One look at the servers of a model ended after `seconds`.
    pub fn looked(&self, seconds: f64) {
        self.tick.observe(seconds);
    }

    /// Asks for the size of a cache whenever the text is made.
    pub fn watch_cache(&self, kind: &'static str, size: impl Fn() -> usize + Send + 'static) {
        self.ask(|questions| questions.caches.push((kind, Box::new(size))));
    }

    /// Asks for the models whenever the text is made, by the process that leads: told by all, they would count twice.
    pub fn watch_models(&self, models: impl Fn() -> Vec<ModelSample> + Send + 'static) {
        self.ask(|questions| questions.models = Some(Box::new(models)));
    }

    fn ask<T>(&self, what: impl FnOnce(&mut Questions) -> T) -> T {
        // A panic while the lock was held leaves a list of questions behind, which is as good as before.
        what(&mut self.questions.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The text form.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        // The lock is held to the end: a text that is made at the same time would find gauges of half of the models.
        self.ask(|questions| {
            for (kind, size) in &questions.caches {
                self.caches.get_or_create(&Kind { kind: (*kind).to_owned() }).set(of(size()));
            }
            let leads = self.leader.get() == 1;
            let models = questions.models.as_ref().filter(|_| leads).map(|models| models());
            self.models.set(models.unwrap_or_default());
            self.queue.refresh();
            self.process.refresh();
            let mut text = String::new();
            encode(&mut text, &self.registry)?;
            Ok(text)
        })
    }
}

impl ModelMetrics {
    fn register(&self, registry: &mut Registry) {
        registry.register("models", "ModelDeployments that the operator knows", self.known.clone());
        let help = "ModelDeployments of which no single numbers are told, because there are too many";
        registry.register("models_not_shown", help, self.not_shown.clone());
        registry.register("model_ready", "1: the model answers requests", self.ready.clone());
        let help = "1: what is asked for cannot be carried out without a person";
        registry.register("model_stalled", help, self.stalled.clone());
        let help = "1: the latency target asks for more or fewer servers than may run";
        registry.register("model_scaling_limited", help, self.limited.clone());
        registry.register("model_replicas", "Servers of the model that exist", self.replicas.clone());
        registry.register("model_replicas_desired", "Servers that there should be", self.desired.clone());
    }

    /// Replaces what is told.
    fn set(&self, mut models: Vec<ModelSample>) {
        let Self { known, not_shown, ready, stalled, limited, replicas, desired } = self;
        known.set(of(models.len()));
        not_shown.set(of(models.len().saturating_sub(MODELS_SHOWN)));
        // What alerts are about is never what is left out.
        models.sort_by_key(ModelSample::is_well);
        for family in [ready, stalled, limited, replicas, desired] {
            family.clear();
        }
        for model in models.into_iter().take(MODELS_SHOWN) {
            let tell = |family: &Family<ModelName, Gauge>, value: i64| {
                let label = ModelName { namespace: model.namespace.clone(), name: model.name.clone() };
                family.get_or_create(&label).set(value);
            };
            tell(ready, model.ready.into());
            tell(stalled, model.stalled.into());
            tell(limited, model.limited.into());
            tell(replicas, model.replicas.into());
            tell(desired, model.desired.into());
        }
    }
}

/// A number of things as a gauge holds it.
fn of(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Sets a counter that somebody else counts: it is shown, not kept.
fn set_counter(counter: &Counter<f64, std::sync::atomic::AtomicU64>, value: f64) {
    counter.inner().store(value.to_bits(), Ordering::Relaxed);
}

#[cfg(test)]
mod tests;
