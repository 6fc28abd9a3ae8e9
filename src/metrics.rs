//! The operator's own metrics, in Prometheus' text form at `/metrics`.

use std::sync::Arc;

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

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

/// All metrics; clones share them.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    reconciles: Histogram,
    reconcile_errors: Family<Kind, Counter>,
    writes: Family<Kind, Counter>,
    scrapes: Family<OutcomeLabel, Counter>,
    decisions: Family<Direction, Counter>,
    models: Gauge,
    tick: Histogram,
    leader: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let seconds = || Histogram::new(exponential_buckets(0.001, 2.0, 15));
        let (reconciles, tick) = (seconds(), seconds());
        let (reconcile_errors, writes) = (Family::<Kind, Counter>::default(), Family::<Kind, Counter>::default());
        let (scrapes, decisions) =
            (Family::<OutcomeLabel, Counter>::default(), Family::<Direction, Counter>::default());
        let models = Gauge::default();
        let mut registry = Registry::with_prefix("ortolan");
        let help = "Duration of a reconcile";
        registry.register_with_unit("reconcile_duration", help, Unit::Seconds, reconciles.clone());
        registry.register(
            "reconcile_errors",
            "Reconciles that failed, by the step that failed",
            reconcile_errors.clone(),
        );
        registry.register("writes", "Writes to the API server, by the kind of the object", writes.clone());
        registry.register("scrapes", "Reads of a model server's /stats, by outcome", scrapes.clone());
        registry.register("scaling_decisions", "Decisions that changed a number of servers", decisions.clone());
        registry.register("models", "ModelDeployments that the operator knows", models.clone());
        let help = "Duration of one look at the servers of a model";
        registry.register_with_unit("observation_duration", help, Unit::Seconds, tick.clone());
        let leader = Gauge::default();
        registry.register("leader", "1 in the process that leads, 0 in the others", leader.clone());
        Self {
            registry: Arc::new(registry),
            reconciles,
            reconcile_errors,
            writes,
            scrapes,
            decisions,
            models,
            tick,
            leader,
        }
    }
}

impl Metrics {
    /// A reconcile ended after `seconds`; `error`: the class of the error it ended with.
    pub fn reconciled(&self, seconds: f64, error: Option<&'static str>) {
        self.reconciles.observe(seconds);
        if let Some(kind) = error {
            self.reconcile_errors.get_or_create(&Kind { kind: kind.to_owned() }).inc();
        }
    }

    /// This process leads.
    pub fn leads(&self) {
        self.leader.set(1);
    }

    /// Something was written.
    pub fn written(&self, kind: &str) {
        self.writes.get_or_create(&Kind { kind: kind.to_owned() }).inc();
    }

    /// A server's `/stats` was read, or not.
    pub fn scraped(&self, outcome: &'static str) {
        self.scrapes.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    /// A number of servers was changed.
    pub fn decided(&self, up: bool) {
        self.decisions.get_or_create(&Direction { direction: if up { "up" } else { "down" } }).inc();
    }

    /// How many models there are.
    pub fn models(&self, models: usize) {
        self.models.set(i64::try_from(models).unwrap_or(i64::MAX));
    }

    /// One look at the servers of a model ended after `seconds`.
    pub fn looked(&self, seconds: f64) {
        self.tick.observe(seconds);
    }

    /// The text form.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_is_counted() {
        let metrics = Metrics::default();
        metrics.reconciled(0.01, Some("api"));
        metrics.written("Service");
        metrics.scraped("ok");
        metrics.decided(true);
        metrics.models(3);
        metrics.looked(0.02);
        let text = metrics.text().unwrap();
        for line in [
            "ortolan_reconcile_duration_seconds_count 1",
            "ortolan_reconcile_errors_total{kind=\"api\"} 1",
            "ortolan_writes_total{kind=\"Service\"} 1",
            "ortolan_scrapes_total{outcome=\"ok\"} 1",
            "ortolan_scaling_decisions_total{direction=\"up\"} 1",
            "ortolan_models 3",
        ] {
            assert!(text.contains(line), "{line} is missing in:\n{text}");
        }
    }
}
