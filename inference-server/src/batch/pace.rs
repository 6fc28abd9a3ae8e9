//! How long batches take, as far as it was seen, and so how large they should be and how long what waits will take.
//!
//! A batch's time depends on its rows and on how large each of them is: a text of 500 words takes more than one of five. So
//! sizes are told apart by the rows, and by the bytes of a row.

use std::time::Duration;

/// Numbers of rows are told apart by their order of two; the last has all that are larger.
const ORDERS: usize = 17;
/// A row that takes less than this part of the time is worth a moment's wait, or a larger batch. For less it is not: what is answered in
/// two batches is answered earlier by half, and larger ones take more memory.
const GAIN: f64 = 0.95;
/// A batch of so many rows is run where nothing is known.
const FIRST: usize = 8;
/// How much a new batch counts against all before it, once there were so many that each counts no more than this.
const NEW: f64 = 0.2;
/// Larger batches are known not to pay when they were seen so often: one may have been held up by something else.
const SURE: u32 = 3;

/// Rows of about as many bytes: their order of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Class(usize);

impl Class {
    /// How many there are.
    pub const ALL: usize = usize::BITS as usize + 1;

    /// The class of rows that have so many bytes together.
    pub fn of(bytes: usize, rows: usize) -> Self {
        Self((usize::BITS - (bytes / rows.max(1)).leading_zeros()) as usize)
    }

    /// The class at a place among all.
    pub fn at(index: usize) -> Self {
        Self(index)
    }

    /// Its place among all.
    pub fn index(self) -> usize {
        self.0
    }
}

/// The size of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub rows: usize,
    pub class: Class,
}

/// What was seen of batches of a size; moving averages.
#[derive(Clone, Copy, Debug)]
struct Seen {
    seconds: f64,
    rows: f64,
    /// How many batches.
    times: u32,
}

/// The times of batches by the order of their rows.
type Times = [Option<Seen>; ORDERS];

/// The time of a batch by its size.
#[derive(Debug)]
pub(super) struct Pace {
    /// The largest batch in rows.
    max_rows: usize,
    /// How many batches run at once.
    instances: usize,
    /// Of the classes that were seen.
    classes: [Option<Box<Times>>; Class::ALL],
}

impl Pace {
    /// `max_rows`: the largest batch. `instances`: how many run at once.
    pub fn new(max_rows: usize, instances: usize) -> Self {
        Self { max_rows: max_rows.max(1), instances: instances.max(1), classes: [const { None }; Class::ALL] }
    }

    /// A batch took so many seconds.
    #[allow(clippy::cast_precision_loss)] // a batch
    pub fn learn(&mut self, size: Size, seconds: f64) {
        let rows = size.rows.max(1) as f64;
        let times = self.classes[size.class.index()].get_or_insert_with(|| Box::new([None; ORDERS]));
        let seen = times[order(size.rows)].get_or_insert(Seen { seconds, rows, times: 0 });
        seen.times = seen.times.saturating_add(1);
        let new = NEW.max(1.0 / f64::from(seen.times));
        seen.seconds += new * (seconds - seen.seconds);
        seen.rows += new * (rows - seen.rows);
    }

    /// How long a batch may be expected to take; zero where nothing is known.
    pub fn batch(&self, size: Size) -> Duration {
        Duration::from_secs_f64(self.expected(size).unwrap_or(0.0))
    }

    /// How long so many rows of a class may be expected to take that wait for their turn.
    pub fn backlog(&self, waiting: Size) -> Duration {
        // Whoever turned requests away for what is not known yet would never find out.
        let batch = match self.best(Size { rows: self.max_rows, ..waiting }) {
            Best::Known(rows) => rows,
            Best::Above(_) | Best::Unknown => self.max_rows,
        };
        let at_once = batch.saturating_mul(self.instances);
        let full = u32::try_from(waiting.rows / at_once).unwrap_or(u32::MAX);
        let rest = (waiting.rows % at_once).div_ceil(self.instances);
        let rest = if rest > 0 { self.batch(Size { rows: rest, ..waiting }) } else { Duration::ZERO };
        self.batch(Size { rows: batch, ..waiting }).saturating_mul(full).saturating_add(rest)
    }

    /// How long batches that run keep others waiting, at most and on average.
    pub fn running(&self, batches: &[Size]) -> Duration {
        let all: Duration = batches.iter().map(|size| self.batch(*size)).sum();
        all.div_f64(f64::from(u32::try_from(self.instances).unwrap_or(u32::MAX)))
    }

    /// Whether a row in a batch of `more` rows takes clearly less time than in one of this size.
    #[allow(clippy::cast_precision_loss)] // a batch
    pub fn gains(&self, size: Size, more: usize) -> bool {
        let row = |rows: usize| Some(self.expected(Size { rows, ..size })? / rows.max(1) as f64);
        match (row(size.rows), row(more)) {
            (Some(now), Some(then)) => size.rows < more && then < GAIN * now,
            _ => false,
        }
    }

    /// How many of so many rows are best run together: as few as take no clearly longer for each than the best number does. Where the
    /// largest that were seen are best, it is as many as may be tried.
    pub fn paying(&self, size: Size) -> usize {
        match self.best(size) {
            Best::Known(rows) => rows,
            Best::Above(rows) => size.rows.min(tried(rows)),
            Best::Unknown => size.rows.min(FIRST),
        }
    }

    fn best(&self, size: Size) -> Best {
        let row = |order: usize| self.seen(size.class, order).map(|seen| seen.seconds / seen.rows);
        let most = order(size.rows);
        let best = (0..=most).filter_map(row).fold(f64::INFINITY, f64::min);
        let smallest = (0..=most).find(|order| row(*order).is_some_and(|row| GAIN * row <= best));
        let Some(order) = smallest else { return Best::Unknown };
        let larger = (order + 1..=most).find_map(|order| self.seen(size.class, order));
        match larger {
            Some(seen) if seen.times >= SURE => Best::Known(1 << order),
            _ if order < most => Best::Above(1 << order),
            _ => Best::Known(size.rows),
        }
    }

    fn seen(&self, class: Class, order: usize) -> Option<Seen> {
        self.classes[class.index()].as_ref()?[order]
    }

    /// A larger batch takes no less, and one of twice the rows no more than twice as long. Where only smaller ones were seen, it is taken
    /// for as quick as they are: whoever turned requests away for what they might take would never find out.
    fn expected(&self, size: Size) -> Option<f64> {
        let known = |order: usize| self.seen(size.class, order).map(|seen| seen.seconds);
        let order = order(size.rows);
        known(order).or_else(|| {
            let larger = (order + 1..ORDERS).find_map(known);
            let doublings = (0..order).rev().zip(1_i32..);
            let smaller = doublings.into_iter().find_map(|(order, times)| Some((known(order)?, times)));
            match (smaller, larger) {
                (Some((smaller, times)), Some(larger)) => Some(larger.min(smaller * 2_f64.powi(times))),
                (Some((smaller, _)), None) => Some(smaller),
                (None, larger) => larger,
            }
        })
    }
}

/// The best size of a batch.
enum Best {
    /// As far as is known.
    Known(usize),
    /// So many rows, or more: larger batches were not seen, or not often enough.
    Above(usize),
    /// Nothing was seen.
    Unknown,
}

/// How many rows may be run together to find out how long that takes, where so many are best as far as is known. A model may take
/// seconds for as many as there may be, and keeps the memory that it took for them.
pub(super) fn tried(known: usize) -> usize {
    known.saturating_mul(2)
}

/// The smallest order of two that is not less.
fn order(rows: usize) -> usize {
    let order = rows.max(1).checked_next_power_of_two().map_or(ORDERS, |power| power.trailing_zeros() as usize);
    order.min(ORDERS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLASS: Class = Class(3);

    fn rows(rows: usize) -> Size {
        Size { rows, class: CLASS }
    }

    /// A pace that has seen batches of these rows often enough, with what each took in milliseconds.
    fn pace(max_rows: usize, instances: usize, seen: &[(usize, f64)]) -> Pace {
        let mut pace = Pace::new(max_rows, instances);
        for (number, milliseconds) in seen.iter().flat_map(|seen| [seen; SURE as usize]) {
            pace.learn(rows(*number), milliseconds / 1e3);
        }
        pace
    }

    fn milliseconds(duration: Duration) -> f64 {
        duration.as_secs_f64() * 1e3
    }

    #[test]
    fn full_batches_and_the_rest_make_the_backlog() {
        let pace = pace(8, 1, &[(1, 1.0), (2, 2.0), (8, 4.0)]);
        for (number, expected) in [(0, 0.0), (1, 1.0), (2, 2.0), (3, 4.0), (5, 4.0), (8, 4.0), (9, 5.0), (26, 14.0)] {
            let found = milliseconds(pace.backlog(rows(number)));
            assert!((found - expected).abs() < 1e-6, "{number}: {found}");
        }
    }

    #[test]
    fn nobody_is_turned_away_for_what_larger_batches_might_take() {
        // One row took 4 ms, and so might all that wait: two would be run next, but nobody knows that they take longer.
        let pace = pace(256, 1, &[(1, 4.0)]);
        assert_eq!((pace.paying(rows(64)), pace.backlog(rows(64))), (2, Duration::from_millis(4)));
    }

    #[test]
    fn a_batch_that_was_held_up_once_does_not_decide_what_pays() {
        let mut pace = Pace::new(256, 1);
        pace.learn(rows(1), 0.01);
        pace.learn(rows(2), 0.03);
        assert_eq!(pace.paying(rows(64)), 2, "once is no evidence");
        assert!(pace.backlog(rows(64)) < Duration::from_millis(100), "and nobody is turned away for it");
        for _ in 1..SURE {
            pace.learn(rows(2), 0.011);
        }
        assert_eq!(pace.paying(rows(64)), 4);
        let slow = self::pace(256, 1, &[(1, 10.0), (2, 30.0)]);
        assert_eq!((slow.paying(rows(64)), slow.backlog(rows(64))), (1, Duration::from_millis(640)), "always is");
    }

    #[test]
    fn what_waits_is_shared_by_all_that_run_at_once() {
        let pace = pace(8, 2, &[(1, 1.0), (2, 2.0), (8, 4.0)]);
        for (number, expected) in [(0, 0.0), (1, 1.0), (2, 1.0), (3, 2.0), (16, 4.0), (17, 5.0), (36, 10.0)] {
            let found = milliseconds(pace.backlog(rows(number)));
            assert!((found - expected).abs() < 1e-6, "{number}: {found}");
        }
        for (running, expected) in [(&[][..], 0.0), (&[8], 2.0), (&[8, 8], 4.0), (&[1, 8], 2.5)] {
            let running: Vec<Size> = running.iter().copied().map(rows).collect();
            assert!((milliseconds(pace.running(&running)) - expected).abs() < 1e-6, "{running:?}");
        }
    }

    #[test]
    fn what_was_never_seen_is_no_more_than_its_like() {
        let seen = pace(64, 1, &[(4, 4.0)]);
        assert_eq!(seen.batch(rows(1)), Duration::from_millis(4), "a larger one takes no less");
        assert_eq!(seen.batch(rows(16)), Duration::from_millis(4), "nobody knows");
        let both = pace(64, 1, &[(4, 4.0), (32, 100.0)]);
        assert_eq!([8, 16].map(|number| both.batch(rows(number)).as_millis()), [8, 16], "no more than twice as long");
        assert_eq!(pace(8, 1, &[]).backlog(rows(100)), Duration::ZERO);
        assert_eq!(pace(1, 1, &[(1, 3.0)]).backlog(rows(5)), Duration::from_millis(15));
    }

    #[test]
    fn larger_batches_gain_where_they_take_less_for_a_row() {
        let steep = pace(8, 1, &[(1, 40.0), (8, 200.0)]);
        assert!(steep.gains(rows(1), 8) && !steep.gains(rows(8), 8) && !steep.gains(rows(8), 1));
        let flat = pace(8, 1, &[(1, 36.0), (8, 288.0)]);
        assert!(!flat.gains(rows(1), 8));
        assert!(!pace(8, 1, &[]).gains(rows(1), 8), "nobody knows");
    }

    #[test]
    fn a_batch_is_as_large_as_it_pays() {
        for (seen, paying) in [
            // An image takes as long alone as among others.
            (&[(1, 36.0), (2, 72.0), (8, 287.0)][..], 1),
            (&[(1, 36.0), (2, 70.0)], 1),
            (&[(1, 40.0), (2, 60.0), (4, 110.0), (8, 200.0)], 8),
            // Padding, or a cache that is too small: larger ones take longer for each.
            (&[(1, 10.0), (2, 12.0), (4, 40.0), (8, 160.0)], 2),
            (&[(1, 10.0)], 2),
            (&[(1, 10.0), (2, 30.0)], 1),
            (&[(1, 10.0), (2, 15.0)], 4),
            (&[(8, 10.0)], 8),
            (&[], 8),
        ] {
            assert_eq!(pace(32, 1, seen).paying(rows(8)), paying, "{seen:?}");
        }
        for (seen, paying) in [
            (&[][..], 8),
            (&[(1, 10.0)], 2),
            (&[(8, 10.0)], 16),
            (&[(8, 10.0), (16, 20.0)], 8),
            (&[(8, 10.0), (100, 10.0)], 200),
        ] {
            assert_eq!(pace(256, 1, seen).paying(rows(200)), paying, "larger ones are tried step by step: {seen:?}");
        }
        assert_eq!(pace(32, 1, &[(1, 10.0), (5, 10.0)]).paying(rows(5)), 5, "its own rows count, not their order");
        assert_eq!(pace(32, 1, &[(1, 10.0), (8, 80.0)]).backlog(rows(8)), Duration::from_millis(80));
    }

    #[test]
    fn rows_of_other_sizes_are_other_batches() {
        let mut pace = pace(8, 1, &[(1, 1.0), (8, 2.0)]);
        let long = |rows: usize| Size { rows, class: Class(9) };
        assert_eq!((pace.batch(long(1)), pace.paying(long(8))), (Duration::ZERO, 8), "nobody knows");
        for _ in 0..SURE {
            pace.learn(long(1), 0.1);
            pace.learn(long(8), 0.8);
        }
        assert_eq!((pace.paying(long(8)), pace.paying(rows(8))), (1, 8));
        let classes = [(0, 0), (1, 1), (64, 1), (127, 1), (128, 1), (1280, 10), (usize::MAX, 1)];
        assert_eq!(classes.map(|(bytes, rows)| Class::of(bytes, rows).index()), [0, 1, 7, 7, 8, 8, 64]);
    }

    #[test]
    fn the_average_follows_the_latest() {
        let mut pace = pace(8, 1, &[(8, 100.0)]);
        (0..40).for_each(|_| pace.learn(rows(8), 0.01));
        assert!(pace.batch(rows(8)) < Duration::from_millis(11));
        assert_eq!([0, 1, 2, 3, 4, 5, 65_536, 65_537, usize::MAX].map(order), [0, 0, 1, 2, 2, 3, 16, 16, 16]);
    }
}
