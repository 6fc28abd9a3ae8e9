//! The fence: no write leaves this process unless it renewed its lease a short while ago.
//!
//! The election alone cannot promise that. A leader that was stopped (SIGSTOP, a paused machine, a long stall) still
//! believes that it leads when it wakes, while another has led for long. So every request that writes looks at the clock
//! here, each time that it is about to go on: when the last renewal is too old, it ends in an error instead. The clock
//! is the one that also counts while the process is stopped or the machine sleeps (`CLOCK_BOOTTIME`), and the limit is
//! shorter than the lease, so that whoever is refused here was not followed by anybody yet.
//!
//! What is left: a process that is stopped in the instant between this look and the system call that sends. Such a
//! write is one of those that a new leader finds and puts right like any other.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use http::{Method, Request};
use rustix::time::{ClockId, clock_gettime};
use tower::{BoxError, Layer, Service};

/// How long after its last renewal a leader may write. What is under way then has until the end of the lease.
pub const MAY_WRITE: Duration = Duration::from_secs(10);

/// Time since the machine was started, also while this process is stopped or the machine sleeps.
pub fn boot_time() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec.cast_unsigned(), u32::try_from(now.tv_nsec).unwrap_or_default())
}

/// A write that was not sent.
#[derive(Debug, thiserror::Error)]
#[error("not sent: this process does not hold the lease, or did not renew it within {} s", MAY_WRITE.as_secs())]
pub struct Fenced;

/// Open until some time; clones share it.
#[derive(Clone, Debug)]
pub struct Fence(Arc<AtomicU64>);

impl Fence {
    /// Nothing may be written before the lease is held.
    pub fn closed() -> Self {
        Self(Arc::new(AtomicU64::new(0)))
    }

    /// Open for ever: there is no election.
    pub fn open() -> Self {
        Self(Arc::new(AtomicU64::new(u64::MAX)))
    }

    /// The lease was renewed by a request that was sent at `sent`.
    pub fn renewed(&self, sent: Duration) {
        let until = u64::try_from((sent + MAY_WRITE).as_nanos()).unwrap_or(u64::MAX);
        self.0.store(until, Ordering::Release);
    }

    /// Nothing may be written any more.
    pub fn close(&self) {
        self.0.store(0, Ordering::Release);
    }

    /// Whether a write may be sent now.
    pub fn check(&self) -> Result<(), Fenced> {
        let until = self.0.load(Ordering::Acquire);
        if until == u64::MAX || boot_time().as_nanos() < u128::from(until) { Ok(()) } else { Err(Fenced) }
    }
}

impl<S> Layer<S> for Fence {
    type Service = FencedService<S>;

    fn layer(&self, inner: S) -> FencedService<S> {
        FencedService { fence: self.clone(), inner }
    }
}

/// Sends requests that write only while the fence is open; the others always.
#[derive(Clone, Debug)]
pub struct FencedService<S> {
    fence: Fence,
    inner: S,
}

impl<S, B> Service<Request<B>> for FencedService<S>
where
    S: Service<Request<B>>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let writes = ![Method::GET, Method::HEAD, Method::OPTIONS].contains(request.method());
        let fence = self.fence.clone();
        let mut sending = Box::pin(self.inner.call(request));
        Box::pin(poll_fn(move |context| {
            // Not only at the beginning: a process can be stopped while it waits for a connection.
            if writes {
                fence.check()?;
            }
            sending.as_mut().poll(context).map_err(Into::into)
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use tokio::sync::Notify;
    use tower::service_fn;

    use super::*;

    fn request(method: Method) -> Request<()> {
        Request::builder().method(method).body(()).unwrap()
    }

    /// Sends one request of each method; those that arrived.
    async fn arrived(fence: &Fence) -> Vec<Method> {
        let mut arrived = Vec::new();
        for method in [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
            let mut service = fence.layer(service_fn(|_: Request<()>| async { Ok::<_, BoxError>(()) }));
            arrived.extend(service.call(request(method.clone())).await.ok().map(|()| method));
        }
        arrived
    }

    #[tokio::test]
    async fn without_the_lease_only_reads_are_sent() {
        assert_eq!(arrived(&Fence::closed()).await, [Method::GET]);
        assert_eq!(arrived(&Fence::open()).await.len(), 5);
    }

    #[tokio::test]
    async fn a_renewal_opens_it_for_a_while() {
        let fence = Fence::closed();
        fence.renewed(boot_time());
        assert_eq!(arrived(&fence).await.len(), 5);
        fence.renewed(boot_time().saturating_sub(MAY_WRITE));
        assert_eq!(arrived(&fence).await, [Method::GET]);
        fence.renewed(boot_time());
        fence.close();
        assert_eq!(arrived(&fence).await, [Method::GET]);
    }

    #[tokio::test]
    async fn a_write_that_waits_for_a_connection_is_not_sent_after_the_fence_closed() {
        let (sent, connected) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let (count, connection) = (sent.clone(), connected.clone());
        let fence = Fence::closed();
        fence.renewed(boot_time());
        let mut service = fence.layer(service_fn(move |_: Request<()>| {
            let (count, connection) = (count.clone(), connection.clone());
            async move {
                connection.notified().await;
                count.fetch_add(1, Ordering::Relaxed);
                Ok::<_, BoxError>(())
            }
        }));
        let mut sending = service.call(request(Method::PATCH));
        assert!(futures::poll!(&mut sending).is_pending());
        fence.close();
        connected.notify_one();
        let error = sending.await.unwrap_err();
        assert!(error.is::<Fenced>(), "{error}");
        assert_eq!(sent.load(Ordering::Relaxed), 0);
    }
}
