//! What the queue takes in, refuses and gives out.

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

/// The size of a batch of rows of four numbers.
fn size(rows: usize) -> Size {
    Size { rows, class: Class::of(16 * rows, rows) }
}

fn rows(batch: &[Entry]) -> Vec<usize> {
    batch.iter().map(|entry| entry.request.rows).collect()
}

fn filled(limits: Limits, joins: bool, entries: &[(usize, usize)], now: Instant) -> (Queue, Vec<Answer>) {
    let mut queue = Queue::new(limits, joins, Pace::new(limits.max_batch_rows, limits.instances));
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
    assert_eq!(rows(&queue.take(now, &[size(3)])), [1; 3]);
    assert_eq!(rows(&queue.take(now, &[size(3), size(3)])), [1; 3]);
    let (mut queue, _answers) = filled(limits, true, &[(1, 4), (1, 4), (5, 4)], now);
    assert_eq!(rows(&queue.take(now, &[])), [1, 1], "a third of seven");
    assert_eq!(rows(&queue.take(now, &[size(2)])), [5], "no request is taken apart");
    let (mut queue, _answers) = filled(limits, true, &[(1, 4); 40], now);
    assert_eq!(queue.take(now, &[size(8), size(8)]).len(), 8, "and none is larger than allowed");
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
        queue.has_run(size(1), Duration::from_millis(40), now);
        queue.has_run(size(7), Duration::from_millis(eight), now);
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
    queue.has_run(size(1), Duration::from_millis(1), now);
    queue.has_run(size(7), Duration::from_millis(2), now);
    assert_eq!(queue.wait_until(now), None, "it is as quick as a timer");
}

#[test]
fn what_cannot_be_answered_in_time_is_refused_at_once_unless_nothing_else_is_to_do() {
    let now = Instant::now();
    let (mut queue, _answers) = filled(LIMITS, true, &[(8, 4), (8, 4)], now);
    queue.has_run(size(8), Duration::from_millis(10), now);
    let ask = |queue: &mut Queue, milliseconds, running: &[Size]| {
        let (mut entry, _) = entry(8, 4, now);
        entry.request.deadline = Some(now + Duration::from_millis(milliseconds));
        queue.push(entry, running).map_err(|error| error.kind())
    };
    // Two batches before it, and its own: 30 ms.
    assert_eq!(ask(&mut queue, 37, &[]), Err(ErrorKind::Overloaded));
    assert_eq!(ask(&mut queue, 47, &[size(8)]), Err(ErrorKind::Overloaded));
    assert_eq!(queue.rows(), 16);
    assert_eq!(ask(&mut queue, 51, &[size(8)]), Ok(()));
    queue.clear();
    assert_eq!(ask(&mut queue, 1, &[]), Ok(()), "nobody knows better");
}

#[test]
fn what_runs_at_once_makes_others_wait_for_less() {
    let now = Instant::now();
    let ask = |milliseconds, running: &[Size]| {
        let (mut queue, _answers) = filled(Limits { instances: 2, ..LIMITS }, true, &[(8, 4), (8, 4)], now);
        queue.has_run(size(8), Duration::from_millis(10), now);
        let (mut entry, _) = entry(8, 4, now);
        entry.request.deadline = Some(now + Duration::from_millis(milliseconds));
        queue.push(entry, running).is_ok()
    };
    // The two that wait, at once, and its own: 20 ms.
    assert!(!ask(24, &[]) && ask(26, &[]));
    // Two more run before.
    assert!(!ask(36, &[size(8), size(8)]) && ask(39, &[size(8), size(8)]));
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
            let share = (queue.rows + running.iter().map(|size: &Size| size.rows).sum::<usize>()).div_ceil(instances);
            let batch = queue.take(now, running.make_contiguous());
            let together = rows(&batch).iter().sum::<usize>();
            prop_assert!(together <= share.min(LIMITS.max_batch_rows) || batch.len() == 1);
            running.push_back(size(together));
            let width = batch[0].request.inputs[0].shape[1];
            for entry in &batch {
                prop_assert_eq!(entry.request.inputs[0].shape[1], width);
                taken.push((entry.request.rows, width));
            }
        }
        prop_assert_eq!((queue.rows, queue.bytes, queue.waiting), (0, 0, [0; Class::ALL]));
        for width in 1..4 {
            let of_bucket = |all: &[(usize, usize)]| all.iter().filter(|(_, w)| *w == width).copied().collect::<Vec<_>>();
            prop_assert_eq!(of_bucket(&taken), of_bucket(&entries));
        }
        drop(answers);
    }
}

#[test]
fn a_batch_is_no_larger_than_it_pays_but_for_a_look_now_and_then() {
    let now = Instant::now();
    let (mut queue, _answers) = filled(LIMITS, true, &[(1, 4); 900], now);
    // A row takes as long in a batch of eight as alone.
    queue.has_run(size(1), Duration::from_millis(1), now);
    (0..3).for_each(|_| queue.has_run(size(8), Duration::from_millis(8), now));
    let taken: Vec<usize> = (0..CAUTIOUS).map(|_| queue.take(now, &[]).len()).collect();
    assert_eq!((&taken[..CAUTIOUS - 1], taken[CAUTIOUS - 1]), (&[1; CAUTIOUS - 1][..], 2));
    // It has become quicker.
    (0..40).for_each(|_| queue.learn(size(8), Duration::from_millis(2)));
    assert_eq!(queue.take(now, &[]).len(), 8);
}

#[test]
fn what_waits_is_reckoned_by_the_size_of_its_rows() {
    let now = Instant::now();
    let ask = |width| {
        let (mut queue, _answers) = filled(LIMITS, true, &[(8, 4), (1, 1000)], now);
        queue.has_run(size(8), Duration::from_millis(1), now);
        let (long, _) = entry(1, 1000, now);
        queue.has_run(long.size(), Duration::from_millis(50), now);
        queue.has_run(Size { rows: 2, ..long.size() }, Duration::from_millis(100), now);
        let (mut asks, _) = entry(1, width, now);
        asks.request.deadline = Some(now + Duration::from_millis(100));
        queue.push(asks, &[]).is_ok()
    };
    // 1 ms for the eight short rows, 50 ms for the long one, and its own.
    assert!(ask(4) && !ask(1000));
}

#[test]
fn whoever_waits_longest_is_next_whatever_the_others_are() {
    let now = Instant::now();
    let (mut queue, _answers) = filled(LIMITS, true, &[(8, 4), (1, 5), (8, 4), (8, 4)], now);
    assert_eq!(rows(&queue.take(now, &[])), [8]);
    assert_eq!(queue.take(now, &[])[0].request.inputs[0].shape[1], 5, "a flood of others does not hold it up");
}
