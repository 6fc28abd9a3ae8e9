//! The bounded queue in front of the model, out of which the worker pulls batches.
//!
//! Nothing here waits or runs: a queue is told what came and what time it is. [`super::Batcher`] puts it behind a lock.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::Request;
use super::pace::{Class, Pace, Size, tried};
use crate::error::{Error, ErrorKind};
use crate::telemetry::{Ran, Watch};
use crate::tensor::Tensor;

/// What a queue holds at most, and how batches are formed.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The largest batch in rows.
    pub max_batch_rows: usize,
    /// How many batches run at once.
    pub instances: usize,
    /// How long the first request of a batch waits for others.
    pub max_delay: Duration,
    /// A batch that takes no longer is run by whoever brings it, without the worker thread; zero: none is.
    pub quick: Duration,
    /// The most rows that wait.
    pub max_queue_rows: usize,
    /// The most bytes of input tensors that wait.
    pub max_queue_bytes: usize,
}

/// A deadline can be met when the wait is expected to be this part of the time that is left: what is served late is of no use,
/// and made others wait.
const CERTAIN: f64 = 0.8;

/// The part of a batch's time for which the next one waits for those who just got their answers, where that may pay.
const PAUSE: f64 = 0.02;
/// Shorter pauses are not worth a timer.
const SHORTEST_PAUSE: Duration = Duration::from_micros(100);

/// After so many batches that were made smaller than they could have been, one is larger.
const CAUTIOUS: usize = 100;

/// What the next batch may become.
#[derive(Clone, Copy, Debug)]
struct Awaited {
    rows: usize,
    until: Instant,
}

/// Where the answer to a request goes.
pub(super) type Reply = oneshot::Sender<Result<Vec<Tensor>, Error>>;

/// A request that waits.
pub(super) struct Entry {
    pub request: Request,
    pub bytes: usize,
    pub entered: Instant,
    pub watch: Option<Arc<Watch>>,
    pub reply: Reply,
}

impl Entry {
    /// What counts against the limit: an empty request takes a place, too.
    fn weight(&self) -> usize {
        self.request.rows.max(1)
    }

    /// Its size, if it were a batch.
    pub fn size(&self) -> Size {
        Size { rows: self.request.rows, class: Class::of(self.bytes, self.request.rows) }
    }

    /// Notes the batch that it was part of.
    pub fn ran(&self, ran: Ran) {
        if let Some(watch) = &self.watch {
            watch.ran(ran);
        }
    }

    /// Whether two requests may share a batch: equal trailing shapes (types follow from the signature) and outputs.
    fn shares_bucket(&self, other: &Self) -> bool {
        self.request.outputs == other.request.outputs
            && self
                .request
                .inputs
                .iter()
                .zip(&other.request.inputs)
                .all(|(one, two)| one.shape.get(1..) == two.shape.get(1..))
    }
}

/// Requests in the order in which they came.
pub(super) struct Queue {
    limits: Limits,
    /// Whether requests may be joined at all.
    joins: bool,
    pace: Pace,
    awaited: Option<Awaited>,
    entries: VecDeque<Entry>,
    rows: usize,
    bytes: usize,
    /// The rows of each class.
    waiting: [usize; Class::ALL],
    /// Batches that were taken since a larger one was, to see whether it pays.
    cautious: usize,
}

impl Queue {
    pub fn new(limits: Limits, joins: bool, pace: Pace) -> Self {
        let waiting = [0; Class::ALL];
        Self { limits, joins, pace, awaited: None, entries: VecDeque::new(), rows: 0, bytes: 0, waiting, cautious: 0 }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether no batch waits for others to join it.
    pub fn never_waits(&self) -> bool {
        self.limits.max_delay.is_zero()
    }

    /// A batch has run that nobody asked for.
    pub fn learn(&mut self, size: Size, took: Duration) {
        self.pace.learn(size, took.as_secs_f64());
    }

    /// A batch has run. The clients of its rows got their answers, and many of them ask again at once: together with what
    /// waits already they may make the next batch.
    pub fn has_run(&mut self, size: Size, took: Duration, now: Instant) {
        self.learn(size, took);
        let pause = took.mul_f64(PAUSE);
        let rows = (self.rows + size.rows).min(self.limits.max_batch_rows);
        self.awaited = (self.joins && pause >= SHORTEST_PAUSE).then(|| Awaited { rows, until: now + pause });
    }

    /// Takes a request in, or refuses it when the queue is full or too long for the request's deadline. An empty queue takes a
    /// request of any size. `running`: the batches that run.
    pub fn push(&mut self, entry: Entry, running: &[Size]) -> Result<(), Error> {
        let (rows, bytes) = (self.rows + entry.weight(), self.bytes + entry.bytes);
        if !self.entries.is_empty() && (rows > self.limits.max_queue_rows || bytes > self.limits.max_queue_bytes) {
            return Err(Error::new(ErrorKind::Overloaded, "the queue is full; try again later"));
        }
        let is_idle = self.entries.is_empty() && running.is_empty();
        let ahead = || {
            let size = entry.size();
            let own = self.pace.batch(Size { rows: size.rows.min(self.limits.max_batch_rows), ..size });
            self.pace.running(running).saturating_add(self.backlog(size).max(own))
        };
        let is_hopeless =
            |deadline: Instant| ahead() > deadline.saturating_duration_since(entry.entered).mul_f64(CERTAIN);
        // What is known may be wrong, and whoever is not busy finds it out.
        if !is_idle && entry.request.deadline.is_some_and(is_hopeless) {
            return Err(Error::new(
                ErrorKind::Overloaded,
                "too many wait for an answer before the deadline; try again later",
            ));
        }
        (self.rows, self.bytes) = (rows, bytes);
        self.waiting[entry.size().class.index()] += entry.weight();
        self.entries.push_back(entry);
        Ok(())
    }

    /// How long what waits will take, with one more.
    fn backlog(&self, more: Size) -> Duration {
        let classes = self.waiting.iter().enumerate().map(|(index, rows)| {
            let class = Class::at(index);
            Size { rows: rows + if class == more.class { more.rows.max(1) } else { 0 }, class }
        });
        classes.filter(|size| size.rows > 0).map(|size| self.pace.backlog(size)).sum()
    }

    /// Until when it pays to wait for more requests before the next batch is taken; `None`: not at all.
    pub fn wait_until(&mut self, now: Instant) -> Option<Instant> {
        self.drop_head(now);
        let head = self.entries.front()?;
        let size = Size { rows: self.rows, ..head.size() };
        let awaited = self.awaited.filter(|awaited| self.pace.gains(size, awaited.rows));
        let until = (head.entered + self.limits.max_delay).max(awaited.map_or(now, |awaited| awaited.until));
        if !self.joins || until <= now {
            return None;
        }
        let mut rows = 0;
        let is_full = self.entries.iter().filter(|entry| entry.shares_bucket(head)).any(|entry| {
            rows += entry.request.rows;
            rows >= self.limits.max_batch_rows
        });
        (!is_full).then_some(until)
    }

    /// The next batch: the head, and those behind it that share its bucket and fit. Requests of other buckets keep
    /// their places; the first of its bucket that does not fit ends the batch, so that none is overtaken by its like, and whoever
    /// waits longest is next, whatever the bucket. Where several run at once, a batch is its share of all rows, those in `running`
    /// among them. It is no larger than it pays.
    pub fn take(&mut self, now: Instant, running: &[Size]) -> Vec<Entry> {
        self.drop_head(now);
        self.awaited = None;
        let all = self.rows + running.iter().map(|size| size.rows).sum::<usize>();
        let most = all.div_ceil(self.limits.instances).min(self.limits.max_batch_rows);
        let Some(head) = self.pop() else { return Vec::new() };
        let most = self.paying(Size { rows: most, ..head.size() });
        let mut rows = head.request.rows;
        let mut batch = vec![head];
        if !self.joins {
            return batch;
        }
        let mut passed_over = Vec::new();
        while let Some(entry) = self.entries.front() {
            if is_gone(entry, now) {
                self.pop().into_iter().for_each(refuse);
            } else if !batch[0].shares_bucket(entry) {
                passed_over.extend(self.entries.pop_front());
            } else if rows + entry.request.rows <= most {
                rows += entry.request.rows;
                batch.extend(self.pop());
            } else {
                break;
            }
        }
        for entry in passed_over.into_iter().rev() {
            self.entries.push_front(entry);
        }
        batch
    }

    /// How many of so many rows are best run together. Now and then it is more of them: what was seen of larger batches may have become
    /// wrong.
    fn paying(&mut self, size: Size) -> usize {
        let paying = self.pace.paying(size);
        self.cautious = if paying < size.rows { self.cautious + 1 } else { 0 };
        if self.cautious < CAUTIOUS {
            return paying;
        }
        self.cautious = 0;
        size.rows.min(tried(paying))
    }

    /// Everything that waits; the queue is empty afterwards.
    pub fn clear(&mut self) -> VecDeque<Entry> {
        (self.rows, self.bytes) = (0, 0);
        self.waiting.fill(0);
        std::mem::take(&mut self.entries)
    }

    fn drop_head(&mut self, now: Instant) {
        while self.entries.front().is_some_and(|entry| is_gone(entry, now)) {
            self.pop().into_iter().for_each(refuse);
        }
    }

    fn pop(&mut self) -> Option<Entry> {
        let entry = self.entries.pop_front()?;
        self.rows -= entry.weight();
        self.bytes -= entry.bytes;
        self.waiting[entry.size().class.index()] -= entry.weight();
        Some(entry)
    }
}

/// Whether nobody waits for the answer any more.
pub(super) fn is_gone(entry: &Entry, now: Instant) -> bool {
    entry.reply.is_closed() || entry.request.deadline.is_some_and(|deadline| deadline <= now)
}

/// Tells whoever may still be listening that the time is over.
pub(super) fn refuse(entry: Entry) {
    // Nobody may be listening; that is what the request was dropped for.
    let _ = entry.reply.send(Err(Error::deadline_exceeded()));
}

#[cfg(test)]
mod tests;
