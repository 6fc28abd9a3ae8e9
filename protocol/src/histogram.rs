//! A histogram of durations with exponentially growing buckets.
//!
//! Bucket bounds are fixed for everyone (eight buckets a doubling, as OpenTelemetry's exponential histogram has at
//! scale 3), so histograms of different pods and seconds add up and subtract, and a quantile is known to within 9 %.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The upper bound of bucket 0, in seconds.
const SMALLEST: f64 = 1e-6;
/// Buckets per doubling.
const PER_DOUBLING: f64 = 8.0;
/// The last bucket; holds everything above about 19 minutes.
pub const LAST_BUCKET: u16 = 240;

/// The bucket that a duration falls into. `seconds`: any number; not-a-number and negatives count as the smallest.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // clamped to 0..=LAST_BUCKET before
pub fn bucket(seconds: f64) -> u16 {
    if seconds.is_nan() || seconds <= SMALLEST {
        return 0;
    }
    ((seconds / SMALLEST).log2() * PER_DOUBLING).ceil().clamp(0.0, f64::from(LAST_BUCKET)) as u16
}

/// The upper bound of a bucket in seconds.
pub fn upper_bound(bucket: u16) -> f64 {
    SMALLEST * (f64::from(bucket) / PER_DOUBLING).exp2()
}

/// Counts per bucket, as they travel and as they are added up. Only buckets that hold something are kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Histogram {
    /// Bucket number to the number of observations in it.
    pub buckets: BTreeMap<u16, u64>,
    /// The sum of all observations in seconds.
    pub sum: f64,
}

impl Histogram {
    /// Adds one observation in seconds.
    pub fn record(&mut self, seconds: f64) {
        *self.buckets.entry(bucket(seconds)).or_default() += 1;
        self.sum += seconds;
    }

    /// How many observations there are.
    pub fn count(&self) -> u64 {
        self.buckets.values().sum()
    }

    /// Adds another histogram to this one.
    pub fn merge(&mut self, other: &Self) {
        for (bucket, count) in &other.buckets {
            *self.buckets.entry(*bucket).or_default() += count;
        }
        self.sum += other.sum;
    }

    /// What was observed since `earlier`, or `None` when `earlier` is not a former state of this histogram.
    pub fn since(&self, earlier: &Self) -> Option<Self> {
        let mut difference = Self { buckets: BTreeMap::new(), sum: self.sum - earlier.sum };
        if earlier.buckets.iter().any(|(bucket, count)| self.buckets.get(bucket).is_none_or(|now| now < count)) {
            return None;
        }
        for (bucket, now) in &self.buckets {
            let added = now - earlier.buckets.get(bucket).unwrap_or(&0);
            if added > 0 {
                difference.buckets.insert(*bucket, added);
            }
        }
        Some(difference)
    }

    /// The `quantile` (0 to 1) in seconds: the upper bound of the bucket in which it lies; `None` when empty.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a rank between 1 and count
    pub fn quantile(&self, quantile: f64) -> Option<f64> {
        let count = self.count();
        let rank = ((quantile * count as f64).ceil() as u64).clamp(1, count.max(1));
        let mut seen = 0;
        self.buckets.iter().find_map(|(bucket, in_bucket)| {
            seen += in_bucket;
            (seen >= rank).then(|| upper_bound(*bucket))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_within_a_tenth_of_the_observation() {
        for seconds in [2e-6, 1e-4, 0.0013, 0.05, 1.0, 17.0, 900.0] {
            let mut histogram = Histogram::default();
            histogram.record(seconds);
            let p99 = histogram.quantile(0.99).unwrap();
            assert!(p99 >= seconds * 0.999 && p99 <= seconds * 1.1, "{seconds} came back as {p99}");
        }
    }

    #[test]
    fn strange_numbers_stay_inside_the_buckets() {
        assert_eq!(bucket(f64::NAN), 0);
        assert_eq!(bucket(-1.0), 0);
        assert_eq!(bucket(f64::INFINITY), LAST_BUCKET);
        assert_eq!(bucket(upper_bound(17)), 17);
    }

    #[test]
    fn the_difference_of_two_states_is_what_came_between() {
        let mut earlier = Histogram::default();
        earlier.record(0.01);
        let mut later = earlier.clone();
        later.record(0.2);
        let between = later.since(&earlier).unwrap();
        assert_eq!(between.count(), 1);
        assert!(between.quantile(0.5).unwrap() > 0.19);
        assert_eq!(earlier.since(&later), None, "counters that went backwards are a restart, not a difference");
    }

    #[test]
    fn an_empty_histogram_has_no_quantile() {
        assert_eq!(Histogram::default().quantile(0.99), None);
    }

    #[test]
    fn the_wire_form_is_small_and_stable() {
        let mut histogram = Histogram::default();
        histogram.record(0.001);
        assert_eq!(serde_json::to_string(&histogram).unwrap(), r#"{"buckets":{"80":1},"sum":0.001}"#);
    }
}
