//! Watches that end as soon as they have begun are begun ever more rarely: a layer around the client.
//!
//! kube's watcher pauses after an error, but begins the next watch at once when one merely ends, as where something between
//! it and the API server cuts connections; and a list that succeeds makes it forget that every watch before was told 410
//! Gone. So what counts here is when the last watch of the same path was begun. One that lived for some time, the first one
//! of a process, and everything that is no watch, never wait.

use std::{
    collections::HashMap,
    future::Future,
    hash::{BuildHasher, RandomState},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use http::Request;
use tokio::time::Instant;
use tower::{Layer, Service};

/// A watch that was begun longer ago than this has lived.
const LIVED: Duration = Duration::from_secs(3);
/// Between the beginnings of a watch that did not live and of the next one,
const FIRST: Duration = Duration::from_secs(1);
/// and the longest that this becomes by doubling. Not longer: what changes meanwhile is seen when it is over.
const LONGEST: Duration = Duration::from_secs(10);

/// Remembers when watches were begun; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    /// By path, of which there is one for each kind.
    watches: Arc<Mutex<HashMap<String, Last>>>,
}

#[derive(Debug)]
struct Last {
    begun: Instant,
    /// How many in a row did not live.
    short: u32,
}

impl Pace {
    /// When the next watch of a path may begin.
    fn next(&self, path: &str, now: Instant) -> Instant {
        let mut watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(last) = watches.get_mut(path) else {
            watches.insert(path.to_owned(), Last { begun: now, short: 0 });
            return now;
        };
        if last.begun > now {
            // Whoever waited for it has given up: its turn is left.
            return last.begun;
        }
        if now.saturating_duration_since(last.begun) >= LIVED {
            *last = Last { begun: now, short: 0 };
            return now;
        }
        let pause = FIRST.saturating_mul(2_u32.saturating_pow(last.short)).min(LONGEST);
        let begins = (last.begun + pause.mul_f64(1.0 + jitter() / 4.0)).max(now);
        *last = Last { begun: begins, short: last.short.saturating_add(1) };
        begins
    }
}

/// Some number between 0 and 1: processes that were cut off together do not come back together.
fn jitter() -> f64 {
    f64::from(u16::try_from(RandomState::new().hash_one(0) >> 48).unwrap_or_default()) / f64::from(u16::MAX)
}

impl<S> Layer<S> for Pace {
    type Service = Paced<S>;

    fn layer(&self, inner: S) -> Paced<S> {
        Paced { pace: self.clone(), inner }
    }
}

/// Lets watches wait.
#[derive(Clone, Debug)]
pub struct Paced<S> {
    pace: Pace,
    inner: S,
}

impl<S, B> Service<Request<B>> for Paced<S>
where
    S: Service<Request<B>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let query = request.uri().query().unwrap_or_default();
        let watches = query.split('&').any(|part| part == "watch=true" || part == "watch=1");
        let begins = watches.then(|| self.pace.next(request.uri().path(), Instant::now()));
        // Nothing is sent before this is polled.
        let sending = self.inner.call(request);
        Box::pin(async move {
            if let Some(begins) = begins {
                tokio::time::sleep_until(begins).await;
            }
            sending.await
        })
    }
}

#[cfg(test)]
mod tests {
    use tower::{BoxError, service_fn};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn watches_that_end_at_once_are_begun_ever_more_rarely() {
        let (pace, mut now) = (Pace::default(), Instant::now());
        assert_eq!(pace.next("pods", now), now);
        for expected in [1.0, 2.0, 4.0, 8.0, 10.0, 10.0] {
            let begins = pace.next("pods", now);
            let pause = (begins - now).as_secs_f64();
            assert!((expected..=expected * 1.25).contains(&pause), "{pause} instead of {expected}");
            now = begins;
        }
    }

    #[test]
    fn a_watch_that_lived_is_followed_at_once_and_begins_the_count_anew() {
        let (pace, mut now) = (Pace::default(), Instant::now());
        for _ in 0..4 {
            now = pace.next("pods", now);
        }
        now += LIVED;
        assert_eq!(pace.next("pods", now), now);
        assert!(pace.next("pods", now) < now + SECOND * 2);
    }

    #[test]
    fn a_wait_that_was_given_up_makes_no_other_longer() {
        let (pace, mut now) = (Pace::default(), Instant::now());
        for _ in 0..4 {
            now = pace.next("pods", now);
        }
        let begins = pace.next("pods", now);
        assert_eq!(pace.next("pods", now + SECOND), begins, "it was never begun");
        assert_eq!(pace.next("services", now), now, "each kind has a pace of its own");
    }

    #[tokio::test]
    async fn only_watches_wait() {
        let pace = Pace::default();
        let mut service = pace.layer(service_fn(|_: Request<()>| async { Ok::<_, BoxError>(()) }));
        let mut waits = Vec::new();
        for uri in ["/api/v1/pods?watch=1", "/api/v1/pods", "/api/v1/pods?a=b&watch=true", "/api/v1/pods?x=watch=true"]
        {
            let mut answer = service.call(Request::builder().uri(uri).body(()).unwrap());
            waits.push(futures::poll!(&mut answer).is_pending());
        }
        // The first polls its timer, which has run out already.
        assert_eq!(waits[1..], [false, true, false]);
    }
}
