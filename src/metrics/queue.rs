//! What waits for a reconcile, and for how long.
//!
//! kube-runtime 5.0 keeps its queue to itself, so this is measured at its two ends: a watch event, or a look, that asks
//! for a reconcile notes when it came; the reconcile that begins takes the note away. Reconciles that nothing triggered
//! (the periodic one, a retry after a failure) wait on purpose and are not counted.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use prometheus_client::{
    metrics::{
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

use super::of;

/// Clones share it.
#[derive(Clone, Debug)]
pub struct Queue {
    /// When a reconcile of `(namespace, name)` was first asked for that has not begun yet.
    waiting: Arc<Mutex<HashMap<(String, String), Instant>>>,
    wait: Histogram,
    depth: Gauge,
    oldest: Gauge<f64, std::sync::atomic::AtomicU64>,
}

impl Queue {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let wait = Histogram::new(exponential_buckets(0.000_5, 2.0, 16));
        let queue = Self { waiting: Arc::default(), wait, depth: Gauge::default(), oldest: Gauge::default() };
        let help = "From what asked for a reconcile to its beginning";
        registry.register_with_unit("queue_wait", help, Unit::Seconds, queue.wait.clone());
        registry.register("queue_depth", "Objects that wait for a reconcile", queue.depth.clone());
        let help = "How long the object waits that waits longest";
        registry.register_with_unit("queue_oldest_age", help, Unit::Seconds, queue.oldest.clone());
        queue
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(String, String), Instant>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something asked for a reconcile.
    pub fn asked(&self, namespace: &str, name: &str) {
        self.lock().entry((namespace.to_owned(), name.to_owned())).or_insert_with(Instant::now);
    }

    /// The reconcile begins.
    pub fn begins(&self, namespace: &str, name: &str) {
        if let Some(since) = self.lock().remove(&(namespace.to_owned(), name.to_owned())) {
            self.wait.observe(since.elapsed().as_secs_f64());
        }
    }

    /// There will be no reconcile: the object is gone, or another process leads.
    pub fn forget(&self, namespace: &str, name: &str) {
        self.lock().remove(&(namespace.to_owned(), name.to_owned()));
    }

    pub(super) fn refresh(&self) {
        let waiting = self.lock();
        self.depth.set(of(waiting.len()));
        self.oldest.set(waiting.values().min().map_or(0.0, |since| since.elapsed().as_secs_f64()));
    }
}
