//! The bounded queue in front of the model, out of which the worker pulls batches.
//!
//! Nothing here waits or runs: a queue is told what came and what time it is. [`super::Batcher`] puts it behind a lock.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::Request;
use super::pace::Pace;
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
}

impl Queue {
    pub fn new(limits: Limits, joins: bool, pace: Pace) -> Self {
        Self { limits, joins, pace, awaited: None, entries: VecDeque::new(), rows: 0, bytes: 0 }
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
    pub fn learn(&mut self, rows: usize, took: Duration) {
        self.pace.learn(rows, took.as_secs_f64());
    }

    /// A batch has run. The clients of its rows got their answers, and many of them ask again at once: together with what
    /// waits already they may make the next batch.
    pub fn has_run(&mut self, rows: usize, took: Duration, now: Instant) {
        self.learn(rows, took);
        let pause = took.mul_f64(PAUSE);
        let rows = (self.rows + rows).min(self.limits.max_batch_rows);
        self.awaited = (self.joins && pause >= SHORTEST_PAUSE).then(|| Awaited { rows, until: now + pause });
    }

    /// Takes a request in, or refuses it when the queue is full or too long for the request's deadline. An empty queue takes a
    /// request of any size. `running`: the rows of each batch that runs.
    pub fn push(&mut self, entry: Entry, running: &[usize]) -> Result<(), Error> {
        let (rows, bytes) = (self.rows + entry.weight(), self.bytes + entry.bytes);
        if !self.entries.is_empty() && (rows > self.limits.max_queue_rows || bytes > self.limits.max_queue_bytes) {
            return Err(Error::new(ErrorKind::Overloaded, "the queue is full; try again later"));
        }
        let is_idle = self.entries.is_empty() && running.is_empty();
        let ahead = || {
            let own = self.pace.batch(entry.request.rows.min(self.limits.max_batch_rows));
            self.pace.running(running).saturating_add(self.pace.backlog(rows).max(own))
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
        self.entries.push_back(entry);
        Ok(())
    }

    /// Until when it pays to wait for more requests before the next batch is taken; `None`: not at all.
    pub fn wait_until(&mut self, now: Instant) -> Option<Instant> {
        self.drop_head(now);
        let head = self.entries.front()?;
        let awaited = self.awaited.filter(|awaited| self.pace.gains(self.rows, awaited.rows));
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
    /// their places; the first of its bucket that does not fit ends the batch, so that none is overtaken by its like. Where several
    /// run at once, a batch is its share of all rows, those in `running` among them.
    pub fn take(&mut self, now: Instant, running: &[usize]) -> Vec<Entry> {
        self.drop_head(now);
        self.awaited = None;
        let all = self.rows + running.iter().sum::<usize>();
        let most = all.div_ceil(self.limits.instances).min(self.limits.max_batch_rows);
        let Some(head) = self.pop() else { return Vec::new() };
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

    /// Everything that waits; the queue is empty afterwards.
    pub fn clear(&mut self) -> VecDeque<Entry> {
        (self.rows, self.bytes) = (0, 0);
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
mod tests {
    use ortolan_protocol::oip::Datatype;
    use proptest::prelude::*;
    use smallvec::smallvec;

    use super::*;
    use crate::tensor::Shape;

    type Answer = oneshot::Receiver<Result<Vec<Tensor>, Error>>;

    const LIMITS: Limits = Limits {
        max_batch_rows: 8,
        instances: 1,
        max_delay: Duration::ZERO,
        quick: Duration::ZERO,
        max_queue_rows: 1000,
        max_queue_bytes: usize::MAX,
    };

    fn entry(rows: usize, width: usize, now: Instant) -> (Entry, Answer) {
        let (reply, answer) = oneshot::channel();
        let input = Tensor::zeros(Datatype::Fp32, Shape::from_slice(&[rows, width]));
        let bytes = input.byte_size();
        let request = Request { inputs: vec![input], outputs: smallvec![0], rows, deadline: None };
        (Entry { request, bytes, entered: now, watch: None, reply }, answer)
    }

    fn rows(batch: &[Entry]) -> Vec<usize> {
        batch.iter().map(|entry| entry.request.rows).collect()
    }

    fn filled(limits: Limits, joins: bool, entries: &[(usize, usize)], now: Instant) -> (Queue, Vec<Answer>) {
        let mut queue = Queue::new(limits, joins, Pace::new(limits.max_batch_rows, limits.instances, &[]));
        let answers = entries
            .iter()
            .map(|(rows, width)| {
                let (entry, answer) = entry(*rows, *width, now);
                queue.push(entry, &[]).unwrap();
                answer
            })
            .collect();
        (queue, answers)
    }

    #[test]
    fn a_batch_takes_what_is_there_up_to_the_maximum() {
        let now = Instant::now();
        let (mut queue, _answers) = filled(LIMITS, true, &[(3, 4), (3, 4), (2, 4), (1, 4)], now);
        assert_eq!(rows(&queue.take(now, &[])), [3, 3, 2]);
        assert_eq!(rows(&queue.take(now, &[])), [1]);
        assert!(queue.is_empty() && queue.rows() == 0);
    }

    #[test]
    fn batches_that_run_at_once_share_what_is_there() {
        let now = Instant::now();
        let limits = Limits { instances: 3, ..LIMITS };
        let (mut queue, _answers) = filled(limits, true, &[(1, 4); 9], now);
        assert_eq!(rows(&queue.take(now, &[])), [1; 3]);
        assert_eq!(rows(&queue.take(now, &[3])), [1; 3]);
        assert_eq!(rows(&queue.take(now, &[3, 3])), [1; 3]);
        let (mut queue, _answers) = filled(limits, true, &[(1, 4), (1, 4), (5, 4)], now);
        assert_eq!(rows(&queue.take(now, &[])), [1, 1], "a third of seven");
        assert_eq!(rows(&queue.take(now, &[2])), [5], "no request is taken apart");
        let (mut queue, _answers) = filled(limits, true, &[(1, 4); 40], now);
        assert_eq!(queue.take(now, &[8, 8]).len(), 8, "and none is larger than allowed");
    }

    #[test]
    fn requests_of_another_shape_or_other_outputs_wait_for_their_own_batch_in_their_place() {
        let now = Instant::now();
        let (mut queue, _answers) = filled(LIMITS, true, &[(1, 4), (1, 5), (1, 4), (2, 5)], now);
        let (mut other, _answer) = entry(1, 4, now);
        other.request.outputs = smallvec![1];
        queue.push(other, &[]).unwrap();
        assert_eq!(rows(&queue.take(now, &[])), [1, 1]);
        assert_eq!(rows(&queue.take(now, &[])), [1, 2]);
        assert_eq!(rows(&queue.take(now, &[])), [1]);
    }

    #[test]
    fn a_model_without_a_batch_dimension_runs_one_request_after_the_other() {
        let now = Instant::now();
        let (mut queue, _answers) = filled(LIMITS, false, &[(1, 4), (1, 4)], now);
        assert_eq!(rows(&queue.take(now, &[])), [1]);
        assert_eq!(rows(&queue.take(now, &[])), [1]);
    }

    #[test]
    fn a_full_queue_refuses_at_once_by_rows_and_by_bytes() {
        let now = Instant::now();
        for limits in [Limits { max_queue_rows: 4, ..LIMITS }, Limits { max_queue_bytes: 4 * 4 * 4, ..LIMITS }] {
            let (mut queue, _answers) = filled(limits, true, &[(2, 4), (2, 4)], now);
            let (one_more, _answer) = entry(1, 4, now);
            assert_eq!(queue.push(one_more, &[]).unwrap_err().kind(), ErrorKind::Overloaded);
            assert_eq!(rows(&queue.take(now, &[])), [2, 2]);
            let (now_it_fits, _answer) = entry(1, 4, now);
            queue.push(now_it_fits, &[]).unwrap();
        }
    }

    #[test]
    fn an_empty_queue_takes_even_what_is_larger_than_its_limits() {
        let now = Instant::now();
        let (queue, _answers) = filled(Limits { max_queue_bytes: 1, ..LIMITS }, true, &[(1, 4)], now);
        assert!(!queue.is_empty());
    }

    #[test]
    fn requests_without_rows_take_places_too() {
        let now = Instant::now();
        let (mut queue, _answers) = filled(Limits { max_queue_rows: 2, ..LIMITS }, true, &[(0, 4), (0, 4)], now);
        assert!(queue.push(entry(0, 4, now).0, &[]).is_err());
    }

    #[test]
    fn requests_whose_client_left_or_whose_deadline_passed_are_not_run() {
        let now = Instant::now();
        let (mut queue, mut answers) = filled(LIMITS, true, &[(1, 4), (2, 4), (3, 4)], now);
        drop(answers.remove(0));
        let (mut late, mut late_answer) = entry(4, 4, now);
        late.request.deadline = Some(now + Duration::from_millis(5));
        queue.push(late, &[]).unwrap();
        assert_eq!(rows(&queue.take(now + Duration::from_millis(5), &[])), [2, 3]);
        assert_eq!(late_answer.try_recv().unwrap().unwrap_err().kind(), ErrorKind::DeadlineExceeded);
        assert_eq!(queue.rows(), 0);
    }

    #[test]
    fn the_next_batch_waits_a_moment_for_those_who_were_just_answered_where_larger_ones_are_quicker() {
        let now = Instant::now();
        let moment = Duration::from_millis(1);
        // A row by itself takes 40 ms, eight take 100 ms.
        let waits = |eight: u64, rows: &[(usize, usize)]| {
            let (mut queue, _answers) = filled(LIMITS, true, &[(1, 4)], now);
            queue.has_run(1, Duration::from_millis(40), now);
            queue.has_run(7, Duration::from_millis(eight), now);
            let more: Vec<_> = rows.iter().map(|(rows, width)| entry(*rows, *width, now)).collect();
            let _answers: Vec<_> = more
                .into_iter()
                .map(|(entry, answer)| {
                    queue.push(entry, &[]).unwrap();
                    answer
                })
                .collect();
            let until = queue.wait_until(now + moment);
            assert!(queue.wait_until(now + 20 * moment).is_none(), "not for long");
            until
        };
        assert_eq!(waits(100, &[]), Some(now + 2 * moment));
        assert!(waits(100, &[(3, 4)]).is_some());
        assert_eq!(waits(100, &[(7, 4)]), None, "they are all there");
        assert_eq!(waits(320, &[]), None, "a larger batch gains nothing");
        let (mut queue, _answers) = filled(LIMITS, true, &[(1, 4)], now);
        queue.has_run(1, Duration::from_millis(1), now);
        queue.has_run(7, Duration::from_millis(2), now);
        assert_eq!(queue.wait_until(now), None, "it is as quick as a timer");
    }

    #[test]
    fn what_cannot_be_answered_in_time_is_refused_at_once_unless_nothing_else_is_to_do() {
        let now = Instant::now();
        let (mut queue, _answers) = filled(LIMITS, true, &[(8, 4), (8, 4)], now);
        queue.has_run(8, Duration::from_millis(10), now);
        let ask = |queue: &mut Queue, milliseconds, running: &[usize]| {
            let (mut entry, _) = entry(8, 4, now);
            entry.request.deadline = Some(now + Duration::from_millis(milliseconds));
            queue.push(entry, running).map_err(|error| error.kind())
        };
        // Two batches before it, and its own: 30 ms.
        assert_eq!(ask(&mut queue, 37, &[]), Err(ErrorKind::Overloaded));
        assert_eq!(ask(&mut queue, 47, &[8]), Err(ErrorKind::Overloaded));
        assert_eq!(queue.rows(), 16);
        assert_eq!(ask(&mut queue, 51, &[8]), Ok(()));
        queue.clear();
        assert_eq!(ask(&mut queue, 1, &[]), Ok(()), "nobody knows better");
    }

    #[test]
    fn what_runs_at_once_makes_others_wait_for_less() {
        let now = Instant::now();
        let ask = |milliseconds, running: &[usize]| {
            let (mut queue, _answers) = filled(Limits { instances: 2, ..LIMITS }, true, &[(8, 4), (8, 4)], now);
            queue.has_run(8, Duration::from_millis(10), now);
            let (mut entry, _) = entry(8, 4, now);
            entry.request.deadline = Some(now + Duration::from_millis(milliseconds));
            queue.push(entry, running).is_ok()
        };
        // The two that wait, at once, and its own: 20 ms.
        assert!(!ask(24, &[]) && ask(26, &[]));
        // Two more run before.
        assert!(!ask(36, &[8, 8]) && ask(39, &[8, 8]));
    }

    #[test]
    fn a_batch_waits_for_the_delay_of_its_first_request_but_not_when_it_is_full() {
        let now = Instant::now();
        let limits = Limits { max_delay: Duration::from_millis(2), ..LIMITS };
        let (mut queue, _answers) = filled(limits, true, &[(7, 4)], now);
        assert_eq!(queue.wait_until(now), Some(now + limits.max_delay));
        assert_eq!(queue.wait_until(now + limits.max_delay), None);
        let (other_bucket, _other_answer) = entry(1, 5, now);
        queue.push(other_bucket, &[]).unwrap();
        assert!(queue.wait_until(now).is_some(), "rows of another bucket do not fill this batch");
        let (last, _last_answer) = entry(1, 4, now);
        queue.push(last, &[]).unwrap();
        assert_eq!(queue.wait_until(now), None);
        assert_eq!(filled(limits, false, &[(1, 4)], now).0.wait_until(now), None, "nobody could join");
    }

    proptest! {
        #[test]
        fn every_request_is_taken_once_in_order_of_its_bucket_and_no_batch_is_too_large(
            entries in prop::collection::vec((0_usize..9, 1_usize..4), 0..40),
            instances in 1_usize..5,
        ) {
            let now = Instant::now();
            let (mut queue, answers) = filled(Limits { instances, ..LIMITS }, true, &entries, now);
            let mut taken: Vec<(usize, usize)> = Vec::new();
            let mut running = std::collections::VecDeque::new();
            while !queue.is_empty() {
                if running.len() == instances {
                    running.pop_front();
                }
                let share = (queue.rows + running.iter().sum::<usize>()).div_ceil(instances);
                let batch = queue.take(now, running.make_contiguous());
                let size = rows(&batch).iter().sum::<usize>();
                prop_assert!(size <= share.min(LIMITS.max_batch_rows) || batch.len() == 1);
                running.push_back(size);
                let width = batch[0].request.inputs[0].shape[1];
                for entry in &batch {
                    prop_assert_eq!(entry.request.inputs[0].shape[1], width);
                    taken.push((entry.request.rows, width));
                }
            }
            prop_assert_eq!((queue.rows, queue.bytes), (0, 0));
            for width in 1..4 {
                let of_bucket = |all: &[(usize, usize)]| all.iter().filter(|(_, w)| *w == width).copied().collect::<Vec<_>>();
                prop_assert_eq!(of_bucket(&taken), of_bucket(&entries));
            }
            drop(answers);
        }
    }
}
