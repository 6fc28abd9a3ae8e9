//! How large a batch may be to be quick: so quick that handing it to another thread would cost more than running it.

use std::time::Duration;

/// What was learned of the time that batches take, by the bytes of their inputs.
#[derive(Debug)]
pub(super) struct Quick {
    /// A batch that takes no longer is quick.
    limit: Duration,
    /// The largest batch that was; 0: none.
    bytes: usize,
}

impl Quick {
    pub fn new(limit: Duration) -> Self {
        Self { limit, bytes: 0 }
    }

    /// Whether inputs of so many bytes can be expected to be quick: somewhat more than what was, so that it can grow.
    pub fn covers(&self, bytes: usize) -> bool {
        self.bytes > 0 && bytes <= self.bytes.saturating_mul(2)
    }

    /// A batch has run. One that should have been quick and took much longer shows that nothing is known.
    pub fn learn(&mut self, bytes: usize, took: Duration) {
        if took <= self.limit {
            self.bytes = self.bytes.max(bytes).max(1);
        } else if self.covers(bytes) && took > self.limit * 4 {
            self.bytes = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_micros(100);

    #[test]
    fn what_was_quick_is_expected_to_be_and_twice_as_much_is_tried() {
        let mut quick = Quick::new(LIMIT);
        assert!(!quick.covers(0) && !quick.covers(1), "nothing is known");
        quick.learn(1000, LIMIT);
        assert!(quick.covers(0) && quick.covers(2000) && !quick.covers(2001));
        quick.learn(10, LIMIT);
        quick.learn(2000, LIMIT * 2);
        assert!(quick.covers(2000) && !quick.covers(2001), "neither more nor less is known");
        quick.learn(2000, LIMIT);
        assert!(quick.covers(4000));
    }

    #[test]
    fn one_that_is_not_quick_after_all_begins_anew() {
        let mut quick = Quick::new(LIMIT);
        quick.learn(1000, LIMIT);
        quick.learn(5000, LIMIT * 5);
        assert!(quick.covers(1000), "a larger one says nothing");
        quick.learn(1000, LIMIT * 5);
        assert!(!quick.covers(1));
        quick.learn(1, Duration::ZERO);
        assert!(quick.covers(2));
    }

    #[test]
    fn without_a_limit_nothing_is() {
        let mut quick = Quick::new(Duration::ZERO);
        quick.learn(1, Duration::from_nanos(1));
        assert!(!quick.covers(0));
    }
}
