//! Requests' bodies while they come in: each within its size and its time, and all of them together within a number of
//! bytes, so that clients cannot fill the memory with requests that they never finish.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::config::RequestLimits;
use crate::error::{Error, ErrorKind};

/// The bytes of all bodies that are under way, over REST and gRPC alike.
#[derive(Debug)]
pub struct UnderWay {
    limits: RequestLimits,
    bytes: AtomicUsize,
}

impl UnderWay {
    /// None so far.
    pub fn new(limits: RequestLimits) -> Self {
        Self { limits, bytes: AtomicUsize::new(0) }
    }
}

/// Bytes of one body, taken out of those that may be under way until this is dropped.
#[derive(Debug)]
pub struct Held {
    all: Arc<UnderWay>,
    bytes: usize,
}

impl Held {
    /// Bytes are counted as they arrive: what is announced and never sent takes nothing from others.
    fn grow(&mut self, to: usize) -> Result<(), Error> {
        let more = to.saturating_sub(self.bytes);
        let most = self.all.limits.max_bytes_under_way;
        let add = |bytes: usize| bytes.checked_add(more).filter(|bytes| *bytes <= most);
        if self.all.bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, add).is_err() {
            return Err(Error::new(
                ErrorKind::Overloaded,
                "too many bytes of other requests are on their way; try again later",
            ));
        }
        self.bytes += more;
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.all.bytes.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// A body that keeps to the limits.
pub struct Bounded {
    body: Body,
    held: Held,
    arrived: usize,
    framing: usize,
    /// `None`: a time that no clock reaches.
    ends: Option<Instant>,
    /// Made when the body is waited for; most are there at once.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Bounded {
    /// The body's time begins now. `framing`: bytes of its protocol that count for no limit.
    pub fn new(body: Body, all: &Arc<UnderWay>, framing: usize) -> Self {
        let held = Held { all: Arc::clone(all), bytes: 0 };
        let ends = Instant::now().checked_add(all.limits.body_timeout);
        Self { body, held, arrived: 0, framing, ends, timer: None }
    }

    /// What must live as long as the bytes that were read.
    pub fn into_held(self) -> Held {
        self.held
    }

    fn count(&mut self, bytes: usize) -> Result<(), Error> {
        self.arrived += bytes;
        let counted = self.arrived.saturating_sub(self.framing);
        if counted > self.held.all.limits.max_bytes {
            return Err(too_large(self.held.all.limits.max_bytes));
        }
        self.held.grow(counted)
    }
}

impl HttpBody for Bounded {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) {
            return Poll::Ready(frame.map(|frame| {
                let frame = frame.map_err(|_| Error::invalid("the body ended before it was complete"))?;
                this.count(frame.data_ref().map_or(0, Bytes::len))?;
                Ok(frame)
            }));
        }
        let Some(ends) = this.ends else { return Poll::Pending };
        let timer = this.timer.get_or_insert_with(|| Box::pin(sleep_until(ends)));
        timer.as_mut().poll(context).map(|()| {
            let seconds = this.held.all.limits.body_timeout.as_secs_f64();
            Some(Err(Error::new(ErrorKind::RequestTimeout, format!("the body did not come within {seconds} seconds"))))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The error for a body over the limit.
pub fn too_large(max_bytes: usize) -> Error {
    Error::new(ErrorKind::TooLarge, format!("the body is larger than the {max_bytes} bytes that are allowed"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http_body_util::BodyExt;

    use super::*;

    fn under_way(max_bytes: usize, max_bytes_under_way: usize) -> Arc<UnderWay> {
        let time = Duration::from_mins(1);
        let limits = RequestLimits { max_bytes, max_bytes_under_way, head_timeout: time, body_timeout: time };
        Arc::new(UnderWay::new(limits))
    }

    async fn read(bytes: usize, all: &Arc<UnderWay>) -> Result<Held, ErrorKind> {
        let mut body = Bounded::new(Body::from(vec![0; bytes]), all, 5);
        while let Some(frame) = body.frame().await {
            frame.map_err(|error| error.kind())?;
        }
        Ok(body.into_held())
    }

    #[tokio::test]
    async fn bytes_are_held_until_they_are_dropped_and_those_of_refused_bodies_are_not() {
        let all = under_way(60, 100);
        let first = read(65, &all).await.unwrap();
        assert_eq!(read(66, &all).await.unwrap_err(), ErrorKind::TooLarge);
        assert_eq!(read(46, &all).await.unwrap_err(), ErrorKind::Overloaded);
        let second = read(45, &all).await.unwrap();
        assert_eq!(all.bytes.load(Ordering::SeqCst), 100);
        drop(first);
        let third = read(65, &all).await.unwrap();
        drop((second, third));
        assert_eq!(all.bytes.load(Ordering::SeqCst), 0);
    }
}
