//! Durations that many threads write.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ortolan_protocol::histogram::{self, Histogram};

use super::{increment, nanoseconds, seconds};

const BUCKETS: usize = histogram::LAST_BUCKET as usize + 1;

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

#[cfg(test)]
mod tests {
    use super::*;

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
