//! Models whose writes the API server could not take: they are left alone for a while.
//!
//! A look a second, or a change somewhere, would wake their reconciles again and again, and ten thousand models that
//! try once a second are what keeps an API server from coming back.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// The first rest.
const FIRST: Duration = Duration::from_secs(5);
/// The longest rest, but for one that the API server asked for.
const LONGEST: Duration = Duration::from_secs(30);
/// The longest that the API server may ask for.
const LONGEST_ASKED: Duration = Duration::from_mins(2);

/// Who rests, by the UID of the model.
#[derive(Debug, Default)]
pub struct Rest {
    models: Mutex<HashMap<String, Resting>>,
}

#[derive(Debug)]
struct Resting {
    /// Failures in a row.
    failures: u32,
    until: Instant,
}

impl Rest {
    /// A model's writes were not taken; `asked`: the seconds for which the API server wants to be left alone. How long
    /// it rests now.
    pub fn begin(&self, uid: &str, asked: u32, now: Instant) -> Duration {
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        let resting = models.entry(uid.to_owned()).or_insert(Resting { failures: 0, until: now });
        let grown = FIRST.saturating_mul(2_u32.saturating_pow(resting.failures)).min(LONGEST);
        let rest = grown.max(Duration::from_secs(u64::from(asked)).min(LONGEST_ASKED));
        resting.failures = resting.failures.saturating_add(1);
        resting.until = now + rest;
        rest
    }

    /// How long a model still rests.
    pub fn left(&self, uid: &str, now: Instant) -> Option<Duration> {
        let models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        Some(models.get(uid)?.until.saturating_duration_since(now)).filter(|left| !left.is_zero())
    }

    /// A model's writes were taken.
    pub fn end(&self, uid: &str) {
        self.models.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    /// Forgets all models but those that are known.
    pub fn retain(&self, known: impl Fn(&str) -> bool) {
        self.models.lock().unwrap_or_else(PoisonError::into_inner).retain(|uid, _| known(uid));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rest_grows_up_to_a_limit_and_begins_anew_after_a_success() {
        let (rest, now) = (Rest::default(), Instant::now());
        let begun: Vec<_> = (0..5).map(|_| rest.begin("a", 0, now).as_secs()).collect();
        assert_eq!(begun, [5, 10, 20, 30, 30]);
        rest.end("a");
        assert_eq!(rest.left("a", now), None);
        assert_eq!(rest.begin("a", 0, now).as_secs(), 5);
        assert_eq!(rest.left("a", now + Duration::from_secs(2)), Some(Duration::from_secs(3)));
        assert_eq!(rest.left("a", now + Duration::from_secs(5)), None);
    }

    #[test]
    fn a_model_that_is_gone_is_forgotten() {
        let (rest, now) = (Rest::default(), Instant::now());
        rest.begin("a", 0, now);
        rest.begin("b", 0, now);
        rest.retain(|uid| uid == "a");
        assert_eq!((rest.left("a", now), rest.left("b", now)), (Some(FIRST), None));
    }

    #[test]
    fn the_api_server_may_ask_for_a_longer_rest() {
        let (rest, now) = (Rest::default(), Instant::now());
        assert_eq!(rest.begin("a", 17, now).as_secs(), 17);
        assert_eq!(rest.begin("b", 10_000, now), LONGEST_ASKED);
    }
}
