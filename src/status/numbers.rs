//! Observed numbers as `status` shows them, and when they are worth a write.

use ortolan_protocol::histogram::Histogram;

use crate::{
    api::LatencyStatus,
    scale::{format_number, format_seconds},
};

/// Seconds between two writes of numbers alone.
const INTERVAL: f64 = 10.0;
/// How far a number must have moved since it was written.
const MOVED: f64 = 0.1;

/// What the servers of a model were seen doing, all together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Numbers {
    /// Answered requests a second.
    pub throughput: f64,
    /// The median latency in seconds, where there were requests.
    pub p50: Option<f64>,
    /// The 99th percentile.
    pub p99: Option<f64>,
}

/// What is to become of the numbers in `status`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Change {
    /// They stay as they are.
    #[default]
    Keep,
    /// No server tells any: they are taken back.
    Clear,
    /// These are written.
    Write(Numbers),
}

impl Numbers {
    /// The numbers of requests that were answered within `seconds`.
    pub fn of(latency: &Histogram, seconds: f64) -> Self {
        Self {
            throughput: latency.count() as f64 / seconds.max(0.1),
            p50: latency.quantile(0.5),
            p99: latency.quantile(0.99),
        }
    }

    /// Whether these numbers are worth a write after `written`, which happened `ago` seconds before.
    pub fn worth_writing(&self, written: Option<&Self>, ago: f64) -> bool {
        let Some(written) = written else { return true };
        let moved = |now: f64, then: f64| (now - then).abs() > MOVED * then.abs().max(1e-9);
        let latency_moved = match (self.p99, written.p99) {
            (Some(now), Some(then)) => moved(now, then),
            (now, then) => now.is_some() != then.is_some(),
        };
        ago >= INTERVAL && (moved(self.throughput, written.throughput) || latency_moved)
    }

    /// Latency for `status`.
    pub fn latency(&self) -> Option<LatencyStatus> {
        Some(LatencyStatus { p50: format_seconds(self.p50?), p99: format_seconds(self.p99?) })
    }

    /// Throughput for `status`.
    pub fn throughput(&self) -> String {
        format!("{}/s", format_number(self.throughput))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITTEN: Numbers = Numbers { throughput: 100.0, p50: Some(0.01), p99: Some(0.05) };

    #[test]
    fn numbers_that_hardly_move_are_not_written() {
        let same = Numbers { throughput: 105.0, p99: Some(0.052), ..WRITTEN };
        assert!(!same.worth_writing(Some(&WRITTEN), 1e6));
    }

    #[test]
    fn numbers_that_moved_are_written_at_most_every_ten_seconds() {
        let moved = Numbers { throughput: 150.0, ..WRITTEN };
        assert!(!moved.worth_writing(Some(&WRITTEN), 9.0));
        assert!(moved.worth_writing(Some(&WRITTEN), 10.0));
        assert!(moved.worth_writing(None, 0.0));
    }

    #[test]
    fn traffic_that_ends_is_written_once() {
        let idle = Numbers::default();
        assert!(idle.worth_writing(Some(&WRITTEN), 10.0));
        assert!(!idle.worth_writing(Some(&idle), 1e6));
    }

    #[test]
    fn the_numbers_read_as_a_person_writes_them() {
        let latency = WRITTEN.latency().unwrap();
        assert_eq!(
            (latency.p50.as_str(), latency.p99.as_str(), WRITTEN.throughput().as_str()),
            ("10ms", "50ms", "100/s")
        );
        assert_eq!(Numbers::default().latency(), None);
        assert_eq!(Numbers::default().throughput(), "0/s");
    }
}
