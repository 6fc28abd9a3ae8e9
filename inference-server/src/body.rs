//! Requests' bodies while they come in: each within its size and its time, and all of them together within a number of
//! bytes, so that clients cannot fill the memory with requests that they never finish.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

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

    fn release(&mut self) {
        self.all.bytes.fetch_sub(std::mem::take(&mut self.bytes), Ordering::AcqRel);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.release();
    }
}

/// How long a body, or a message of it, may still take.
struct TimeLeft {
    limit: Duration,
    /// `None`: a time that no clock reaches.
    ends: Option<Instant>,
    /// Made when the body is waited for; most are there at once.
    timer: Option<Pin<Box<Sleep>>>,
}

impl TimeLeft {
    fn new(limit: Duration) -> Self {
        Self { limit, ends: Instant::now().checked_add(limit), timer: None }
    }

    /// The error when the time is over. `what` did not come.
    fn poll(&mut self, context: &mut Context<'_>, what: &str) -> Poll<Error> {
        let Some(ends) = self.ends else { return Poll::Pending };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(ends)));
        timer.as_mut().poll(context).map(|()| {
            let seconds = self.limit.as_secs_f64();
            Error::new(ErrorKind::RequestTimeout, format!("the {what} did not come within {seconds} seconds"))
        })
    }
}

/// A body that keeps to the limits.
pub struct Bounded {
    body: Body,
    held: Held,
    arrived: usize,
    framing: usize,
    time: TimeLeft,
}

impl Bounded {
    /// The body's time begins now. `framing`: bytes of its protocol that count for no limit.
    pub fn new(body: Body, all: &Arc<UnderWay>, framing: usize) -> Self {
        let held = Held { all: Arc::clone(all), bytes: 0 };
        Self { body, held, arrived: 0, framing, time: TimeLeft::new(all.limits.body_timeout) }
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
                let frame = frame.map_err(|_| incomplete())?;
                this.count(frame.data_ref().map_or(0, Bytes::len))?;
                Ok(frame)
            }));
        }
        this.time.poll(context, "body").map(|error| Some(Err(error)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A gRPC stream whose messages keep to the limits, one by one: it may go on as long as it likes, and rest between them.
pub struct BoundedMessages {
    body: Body,
    held: Held,
    /// Bytes of the current message's head that came.
    head: usize,
    /// The current message's length, as far as its head came.
    length: usize,
    /// Bytes of the current message that are still to come; 0 while its head comes.
    left: usize,
    /// `None` between messages.
    time: Option<TimeLeft>,
}

/// In front of a message stand a byte for its encoding and four for its length.
pub const MESSAGE_HEAD: usize = 5;

impl BoundedMessages {
    /// A stream that begins.
    pub fn new(body: Body, all: &Arc<UnderWay>) -> Self {
        Self { body, held: Held { all: Arc::clone(all), bytes: 0 }, head: 0, length: 0, left: 0, time: None }
    }

    fn count(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        let limits = self.held.all.limits;
        while let Some(first) = bytes.first() {
            self.time.get_or_insert_with(|| TimeLeft::new(limits.body_timeout));
            if self.left > 0 {
                let taken = self.left.min(bytes.len());
                bytes = &bytes[taken..];
                self.left -= taken;
                self.held.grow(self.length - self.left)?;
            } else {
                bytes = &bytes[1..];
                self.length = if self.head == 0 { 0 } else { self.length << 8 | usize::from(*first) };
                self.head += 1;
                if self.head < MESSAGE_HEAD {
                    continue;
                }
                if self.length > limits.max_bytes {
                    return Err(too_large(limits.max_bytes));
                }
                (self.head, self.left) = (0, self.length);
            }
            if self.left == 0 {
                // Complete: whoever reads the stream takes it before asking for more.
                self.held.release();
                self.time = None;
            }
        }
        Ok(())
    }
}

impl HttpBody for BoundedMessages {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) {
            return Poll::Ready(frame.map(|frame| {
                let frame = frame.map_err(|_| incomplete())?;
                this.count(frame.data_ref().map_or(&[], |bytes| bytes))?;
                Ok(frame)
            }));
        }
        match &mut this.time {
            Some(time) => time.poll(context, "message").map(|error| Some(Err(error))),
            None => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn incomplete() -> Error {
    Error::invalid("the body ended before it was complete, or cannot be unpacked")
}

/// The error for a body over the limit.
pub fn too_large(max_bytes: usize) -> Error {
    Error::new(ErrorKind::TooLarge, format!("the body is larger than the {max_bytes} bytes that are allowed"))
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, StreamBody};

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

    /// A stream of those pieces; its messages have 60 bytes at most, and 100 may be under way.
    async fn stream(pieces: Vec<Vec<u8>>) -> (Result<usize, ErrorKind>, Arc<UnderWay>) {
        let all = under_way(60, 100);
        let frames = pieces.into_iter().map(|piece| Ok::<_, Error>(Frame::data(Bytes::from(piece))));
        let body = Body::new(StreamBody::new(futures_util::stream::iter(frames)));
        let mut messages = BoundedMessages::new(body, &all);
        let mut read = 0;
        while let Some(frame) = messages.frame().await {
            match frame {
                Ok(frame) => read += frame.data_ref().map_or(0, Bytes::len),
                Err(error) => return (Err(error.kind()), all),
            }
        }
        (Ok(read), all)
    }

    fn message(length: u8) -> Vec<u8> {
        [&[0, 0, 0, 0, length], &*vec![7; usize::from(length)]].concat()
    }

    #[tokio::test]
    async fn a_stream_goes_on_past_the_limits_that_its_messages_keep_to() {
        let all: Vec<u8> = [60, 0, 1, 59].iter().flat_map(|length| message(*length)).collect();
        for size in [1, 3, 5, 7, 66, all.len()] {
            let pieces = all.chunks(size).map(<[u8]>::to_vec).collect();
            let (read, under_way) = stream(pieces).await;
            assert_eq!(read, Ok(all.len()), "{size}");
            assert_eq!(under_way.bytes.load(Ordering::SeqCst), 0);
        }
    }

    #[tokio::test]
    async fn a_message_over_the_limit_is_refused_by_its_head() {
        let (read, _) = stream(vec![message(60), vec![0, 0, 0, 0], vec![61]]).await;
        assert_eq!(read, Err(ErrorKind::TooLarge));
        assert_eq!(stream(vec![vec![0, 255, 255, 255, 255]]).await.0, Err(ErrorKind::TooLarge));
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_has_begun_must_come_in_time_but_a_stream_may_rest() {
        let waits = futures_util::stream::pending::<Result<Frame<Bytes>, Error>>();
        for (beginning, expected) in [(vec![0, 0], Some(ErrorKind::RequestTimeout)), (message(3), None)] {
            let all = under_way(60, 100);
            let first = futures_util::stream::iter([Ok(Frame::data(Bytes::from(beginning)))]);
            let body = Body::new(StreamBody::new(futures_util::StreamExt::chain(first, waits.clone())));
            let mut messages = BoundedMessages::new(body, &all);
            messages.frame().await.unwrap().unwrap();
            let next = tokio::time::timeout(Duration::from_hours(1), messages.frame()).await;
            assert_eq!(next.ok().map(|frame| frame.unwrap().unwrap_err().kind()), expected);
        }
    }
}
