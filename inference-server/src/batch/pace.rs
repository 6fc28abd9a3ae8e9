//! How long batches of a size take, as far as it was seen, and so how long what waits will.

use std::time::Duration;

use ortolan_protocol::stats::BatchCell;

/// Sizes are told apart by their order of two; the last has all that are larger.
const SIZES: usize = 17;
/// A row that takes less than this part of the time is worth a moment's wait.
const GAIN: f64 = 0.95;
/// How much a new batch counts against all before it.
const NEW: f64 = 0.2;

/// The time of a batch by its size.
#[derive(Debug)]
pub(super) struct Pace {
    /// The largest batch in rows.
    max_rows: usize,
    /// How many batches run at once.
    instances: usize,
    /// Seconds; a moving average.
    seconds: [Option<f64>; SIZES],
}

impl Pace {
    /// `max_rows`: the largest batch. `instances`: how many run at once. `seen`: batches that have run already.
    pub fn new(max_rows: usize, instances: usize, seen: &[BatchCell]) -> Self {
        let mut pace = Self { max_rows: max_rows.max(1), instances: instances.max(1), seconds: [None; SIZES] };
        for cell in seen.iter().filter(|cell| cell.count > 0) {
            let rows = usize::try_from(cell.rows / cell.count).unwrap_or(usize::MAX);
            #[allow(clippy::cast_precision_loss)] // a count
            pace.learn(rows, cell.seconds / cell.count as f64);
        }
        pace
    }

    /// A batch took so many seconds.
    pub fn learn(&mut self, rows: usize, seconds: f64) {
        let known = &mut self.seconds[size(rows)];
        *known = Some(known.map_or(seconds, |before| before + NEW * (seconds - before)));
    }

    /// How long a batch may be expected to take; zero where nothing is known.
    pub fn batch(&self, rows: usize) -> Duration {
        Duration::from_secs_f64(self.expected(size(rows)).unwrap_or(0.0))
    }

    /// How long so many rows may be expected to take that wait for their turn.
    pub fn backlog(&self, rows: usize) -> Duration {
        let at_once = self.max_rows.saturating_mul(self.instances);
        let full = u32::try_from(rows / at_once).unwrap_or(u32::MAX);
        let rest = (rows % at_once).div_ceil(self.instances);
        let rest = if rest > 0 { self.batch(rest) } else { Duration::ZERO };
        self.batch(self.max_rows).saturating_mul(full).saturating_add(rest)
    }

    /// How long batches of these sizes that run keep others waiting, at most and on average.
    pub fn running(&self, rows: &[usize]) -> Duration {
        let all: Duration = rows.iter().map(|rows| self.batch(*rows)).sum();
        all.div_f64(f64::from(u32::try_from(self.instances).unwrap_or(u32::MAX)))
    }

    /// Whether a row in a batch of `more` rows takes clearly less time than in one of `rows`.
    pub fn gains(&self, rows: usize, more: usize) -> bool {
        #[allow(clippy::cast_precision_loss)] // a batch
        let row = |rows: usize| self.expected(size(rows)).map(|seconds| seconds / rows.max(1) as f64);
        match (row(rows), row(more)) {
            (Some(now), Some(then)) => rows < more && then < GAIN * now,
            _ => false,
        }
    }

    /// A larger batch takes no less, and one of twice the rows no more than twice as long.
    fn expected(&self, size: usize) -> Option<f64> {
        let known = |size: usize| self.seconds[size];
        known(size).or_else(|| {
            let larger = (size + 1..SIZES).find_map(known);
            let doublings = (0..size).rev().zip(1_i32..);
            let smaller = doublings.into_iter().find_map(|(size, times)| Some(known(size)? * 2_f64.powi(times)));
            match (smaller, larger) {
                (Some(smaller), Some(larger)) => Some(smaller.min(larger)),
                (smaller, larger) => smaller.or(larger),
            }
        })
    }
}

/// The smallest order of two that is not less.
fn size(rows: usize) -> usize {
    let order = rows.max(1).checked_next_power_of_two().map_or(SIZES, |power| power.trailing_zeros() as usize);
    order.min(SIZES - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(rows: u64, count: u64, seconds: f64) -> BatchCell {
        BatchCell { limit: rows, count, rows: rows * count, seconds }
    }

    #[test]
    fn full_batches_and_the_rest_make_the_backlog() {
        let pace = Pace::new(8, 1, &[seen(1, 2, 0.002), seen(2, 1, 0.002), seen(8, 4, 0.016)]);
        let milliseconds = |rows| pace.backlog(rows).as_secs_f64() * 1e3;
        for (rows, expected) in [(0, 0.0), (1, 1.0), (2, 2.0), (3, 4.0), (5, 4.0), (8, 4.0), (9, 5.0), (26, 14.0)] {
            assert!((milliseconds(rows) - expected).abs() < 1e-6, "{rows}: {}", milliseconds(rows));
        }
    }

    #[test]
    fn what_waits_is_shared_by_all_that_run_at_once() {
        let pace = Pace::new(8, 2, &[seen(1, 2, 0.002), seen(2, 1, 0.002), seen(8, 4, 0.016)]);
        let milliseconds = |duration: Duration| duration.as_secs_f64() * 1e3;
        for (rows, expected) in [(0, 0.0), (1, 1.0), (2, 1.0), (3, 2.0), (16, 4.0), (17, 5.0), (36, 10.0)] {
            assert!((milliseconds(pace.backlog(rows)) - expected).abs() < 1e-6, "{rows}: {:?}", pace.backlog(rows));
        }
        for (running, expected) in [(&[][..], 0.0), (&[8], 2.0), (&[8, 8], 4.0), (&[1, 8], 2.5)] {
            assert!((milliseconds(pace.running(running)) - expected).abs() < 1e-6, "{running:?}");
        }
    }

    #[test]
    fn what_was_never_seen_is_no_more_than_its_like() {
        let pace = Pace::new(64, 1, &[seen(4, 1, 0.004)]);
        assert_eq!(pace.batch(1), Duration::from_millis(4), "a larger one takes no less");
        assert_eq!(pace.batch(16), Duration::from_millis(16));
        assert_eq!(Pace::new(8, 1, &[]).backlog(100), Duration::ZERO);
        assert_eq!(Pace::new(1, 1, &[seen(1, 1, 0.003)]).backlog(5), Duration::from_millis(15));
    }

    #[test]
    fn larger_batches_gain_where_they_take_less_for_a_row() {
        let pace = Pace::new(8, 1, &[seen(1, 1, 0.040), seen(8, 1, 0.200)]);
        assert!(pace.gains(1, 8) && !pace.gains(8, 8) && !pace.gains(8, 1));
        let flat = Pace::new(8, 1, &[seen(1, 1, 0.036), seen(8, 1, 0.288)]);
        assert!(!flat.gains(1, 8));
        assert!(!Pace::new(8, 1, &[]).gains(1, 8), "nobody knows");
    }

    #[test]
    fn the_average_follows_the_latest() {
        let mut pace = Pace::new(8, 1, &[seen(8, 1, 0.1)]);
        (0..40).for_each(|_| pace.learn(8, 0.01));
        assert!(pace.batch(8) < Duration::from_millis(11));
        assert_eq!([0, 1, 2, 3, 4, 5, 65_536, 65_537, usize::MAX].map(size), [0, 0, 1, 2, 2, 3, 16, 16, 16]);
    }
}
