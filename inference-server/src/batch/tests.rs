//! The batcher with an engine that can be held back.

use std::sync::mpsc;
use std::time::Duration;

use ortolan_protocol::oip::Datatype;
use smallvec::smallvec;

use super::*;
use crate::engine::{Dimension, RunError, Signature, TensorSpec};
use crate::tensor::{Data, Shape};

/// Doubles numbers. Each run waits for a permit, and reports its rows.
struct Doubler {
    signature: Signature,
    permits: Mutex<mpsc::Receiver<()>>,
    runs: mpsc::Sender<usize>,
}

impl Engine for Doubler {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn run(&self, inputs: &[Tensor], _outputs: &[usize]) -> Result<Vec<Tensor>, RunError> {
        let _ = self.runs.send(inputs[0].rows());
        let _ = self.permits.lock().unwrap().recv();
        let Data::Fixed(bytes) = &inputs[0].data else { return Err(RunError::Failed("strings".to_owned())) };
        assert!(!bytes.contains(&13), "thirteen makes this engine panic");
        if bytes.contains(&7) {
            return Err(RunError::Refused("seven".to_owned()));
        }
        let doubled = bytes.iter().map(|byte| byte * 2).collect();
        Ok(vec![Tensor { data: Data::Fixed(doubled), ..inputs[0].clone() }])
    }
}

/// One input and one output, of any number of bytes.
fn bytes_signature() -> Signature {
    let spec = TensorSpec {
        name: "x".to_owned(),
        datatype: Datatype::Uint8,
        shape: vec![Dimension::Dynamic(None)],
        labels: Vec::new(),
    };
    Signature { inputs: vec![spec.clone()], outputs: vec![spec] }
}

struct Held {
    batcher: Arc<Batcher>,
    permits: mpsc::Sender<()>,
    runs: mpsc::Receiver<usize>,
    counters: Arc<Counters>,
}

impl Held {
    fn new(limits: Limits) -> Self {
        let (permits, receiver) = mpsc::channel();
        let (sender, runs) = mpsc::channel();
        let engine = Doubler { signature: bytes_signature(), permits: Mutex::new(receiver), runs: sender };
        let counters = Arc::new(Counters::default());
        let batcher = Batcher::start(Arc::new(engine), limits, true, Arc::clone(&counters)).unwrap();
        Self { batcher: Arc::new(batcher), permits, runs, counters }
    }

    /// Sends a request and waits until it is queued or runs.
    async fn send(
        &self,
        elements: &[u8],
        deadline: Option<Instant>,
    ) -> tokio::task::JoinHandle<Result<Vec<Tensor>, Error>> {
        let request = Request { deadline, ..asking(elements) };
        let batcher = Arc::clone(&self.batcher);
        let (queued, is_queued) = oneshot::channel();
        let task = tokio::spawn(async move {
            let mut run = std::pin::pin!(batcher.run(request));
            // The first poll submits.
            let polled = std::future::poll_fn(|context| std::task::Poll::Ready(run.as_mut().poll(context))).await;
            let _ = queued.send(());
            match polled {
                std::task::Poll::Ready(answer) => answer,
                std::task::Poll::Pending => run.await,
            }
        });
        is_queued.await.unwrap();
        task
    }

    fn next_run(&self) -> usize {
        self.runs.recv_timeout(Duration::from_secs(10)).unwrap()
    }

    fn permit(&self) {
        self.permits.send(()).unwrap();
    }
}

const LIMITS: Limits = Limits {
    max_batch_rows: 8,
    instances: 1,
    max_delay: Duration::ZERO,
    quick: Duration::ZERO,
    max_queue_rows: 6,
    max_queue_bytes: 1 << 20,
};

fn elements(answer: &[Tensor]) -> Vec<u8> {
    match &answer[0].data {
        Data::Fixed(bytes) => bytes.to_vec(),
        Data::Strings(_) => unreachable!(),
    }
}

#[tokio::test]
async fn what_waits_while_the_model_runs_is_the_next_batch_and_everyone_gets_their_rows() {
    let held = Held::new(LIMITS);
    let first = held.send(&[1, 9], None).await;
    assert_eq!(held.next_run(), 2);
    let second = held.send(&[2, 3], None).await;
    let third = held.send(&[4], None).await;
    held.permit();
    assert_eq!(held.next_run(), 3);
    held.permit();
    assert_eq!(elements(&first.await.unwrap().unwrap()), [2, 18]);
    assert_eq!(elements(&second.await.unwrap().unwrap()), [4, 6]);
    assert_eq!(elements(&third.await.unwrap().unwrap()), [8]);
    let stats = held.counters.batch_cells();
    assert_eq!(stats.iter().map(|cell| (cell.count, cell.rows)).collect::<Vec<_>>(), [(1, 2), (1, 3)]);
}

#[tokio::test]
async fn a_full_queue_refuses_and_recovers() {
    let held = Held::new(LIMITS);
    let running = held.send(&[1], None).await;
    held.next_run();
    let waiting = held.send(&[2; 6], None).await;
    let refused = held.send(&[3], None).await;
    assert_eq!(refused.await.unwrap().unwrap_err().kind(), ErrorKind::Overloaded);
    held.permit();
    held.next_run();
    held.permit();
    running.await.unwrap().unwrap();
    waiting.await.unwrap().unwrap();
    assert_eq!(held.counters.queued_rows(), 0);
}

#[tokio::test]
async fn a_request_whose_deadline_passes_in_the_queue_is_answered_and_never_run() {
    let held = Held::new(LIMITS);
    let running = held.send(&[1], None).await;
    held.next_run();
    let late = held.send(&[2, 3], Some(Instant::now() + Duration::from_millis(5))).await;
    assert_eq!(late.await.unwrap().unwrap_err().kind(), ErrorKind::DeadlineExceeded);
    let next = held.send(&[4], None).await;
    held.permit();
    assert_eq!(held.next_run(), 1, "only the request that still has a client");
    held.permit();
    running.await.unwrap().unwrap();
    next.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_request_whose_client_left_is_never_run() {
    let held = Held::new(LIMITS);
    let running = held.send(&[1], None).await;
    held.next_run();
    let left = held.send(&[2, 3], None).await;
    left.abort();
    assert!(left.await.unwrap_err().is_cancelled());
    let next = held.send(&[4], None).await;
    held.permit();
    assert_eq!(held.next_run(), 1);
    held.permit();
    running.await.unwrap().unwrap();
    next.await.unwrap().unwrap();
}

#[tokio::test]
async fn one_request_that_fails_or_panics_does_not_fail_the_others_of_its_batch() {
    for (bad, kind) in [(7, ErrorKind::InvalidArgument), (13, ErrorKind::Internal)] {
        let held = Held::new(LIMITS);
        let running = held.send(&[1], None).await;
        held.next_run();
        let good = held.send(&[2], None).await;
        let failing = held.send(&[bad], None).await;
        (0..4).for_each(|_| held.permit());
        running.await.unwrap().unwrap();
        assert_eq!(elements(&good.await.unwrap().unwrap()), [4]);
        assert_eq!(failing.await.unwrap().unwrap_err().kind(), kind);
        assert_eq!((0..3).map(|_| held.next_run()).collect::<Vec<_>>(), [2, 1, 1], "together, then each alone");
        assert!(held.batcher.is_alive());
    }
}

#[tokio::test]
async fn after_a_joint_run_that_failed_requests_that_nobody_waits_for_are_not_run() {
    let held = Held::new(LIMITS);
    let running = held.send(&[1], None).await;
    held.next_run();
    let failing = held.send(&[7], None).await;
    let left = held.send(&[2], None).await;
    held.permit();
    assert_eq!(held.next_run(), 2, "both were there when the batch began");
    left.abort();
    assert!(left.await.unwrap_err().is_cancelled());
    (0..3).for_each(|_| held.permit());
    assert_eq!(failing.await.unwrap().unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert_eq!(held.next_run(), 1, "the one that still has a client");
    let next = held.send(&[4, 5], None).await;
    assert_eq!(held.next_run(), 2);
    running.await.unwrap().unwrap();
    next.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_configured_delay_lets_a_batch_fill() {
    let held = Held::new(Limits { max_batch_rows: 2, max_delay: Duration::from_mins(1), ..LIMITS });
    held.permit();
    let first = held.send(&[1], None).await;
    let second = held.send(&[2], None).await;
    first.await.unwrap().unwrap();
    second.await.unwrap().unwrap();
    assert_eq!(held.next_run(), 2, "the batch was taken as soon as it was full");
}

#[tokio::test]
async fn a_closed_batcher_answers_what_waits_and_takes_nothing_more() {
    let held = Held::new(LIMITS);
    let running = held.send(&[1], None).await;
    held.next_run();
    let waiting = held.send(&[2], None).await;
    held.batcher.shared.close();
    held.permit();
    held.permit();
    assert_eq!(elements(&running.await.unwrap().unwrap()), [2]);
    assert_eq!(elements(&waiting.await.unwrap().unwrap()), [4]);
    let refused = held.send(&[3], None).await;
    assert_eq!(refused.await.unwrap().unwrap_err().kind(), ErrorKind::Internal);
    assert!(!held.batcher.is_alive());
}

#[tokio::test]
async fn several_run_at_once_and_share_what_waits() {
    let held = Held::new(Limits { instances: 2, ..LIMITS });
    let first = held.send(&[1], None).await;
    assert_eq!(held.next_run(), 1);
    let second = held.send(&[2], None).await;
    assert_eq!(held.next_run(), 1, "beside the first");
    let mut waiting = Vec::new();
    for byte in 3..7 {
        waiting.push(held.send(&[byte], None).await);
    }
    assert!(held.runs.try_recv().is_err(), "not a third");
    (0..6).for_each(|_| held.permit());
    assert!(held.next_run() <= 3, "half of what is there, the batch that runs among it");
    for (task, expected) in [first, second].into_iter().chain(waiting).zip([2, 4, 6, 8, 10, 12]) {
        assert_eq!(elements(&task.await.unwrap().unwrap()), [expected]);
    }
    assert!(held.batcher.is_alive());
}

/// Tells which thread ran how many rows; takes long over nines.
struct Threads {
    signature: Signature,
    runs: mpsc::Sender<(thread::ThreadId, usize)>,
}

impl Engine for Threads {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn run(&self, inputs: &[Tensor], _outputs: &[usize]) -> Result<Vec<Tensor>, RunError> {
        let _ = self.runs.send((thread::current().id(), inputs[0].rows()));
        let Data::Fixed(bytes) = &inputs[0].data else { return Err(RunError::Failed("strings".to_owned())) };
        assert!(!bytes.contains(&13), "thirteen makes this engine panic");
        if bytes.contains(&9) {
            thread::sleep(QUICK * 9 / 2);
        }
        Ok(inputs.to_vec())
    }
}

/// Long enough for a machine that has other things to do.
const QUICK: Duration = Duration::from_millis(200);

fn threads(limits: Limits) -> (Batcher, mpsc::Receiver<(thread::ThreadId, usize)>) {
    let (runs, seen) = mpsc::channel();
    let engine = Threads { signature: bytes_signature(), runs };
    (Batcher::start(Arc::new(engine), limits, true, Arc::new(Counters::default())).unwrap(), seen)
}

fn asking(elements: &[u8]) -> Request {
    let shape = Shape::from_slice(&[elements.len()]);
    let input = Tensor { datatype: Datatype::Uint8, shape, data: Data::Fixed(elements.to_vec().into()) };
    Request { inputs: vec![input], outputs: smallvec![0], rows: elements.len(), deadline: None }
}

/// Asks, and waits until whoever ran it has learned from it.
async fn ask(batcher: &Batcher, elements: &[u8]) -> Result<Vec<Tensor>, Error> {
    let answer = batcher.run(asking(elements)).await;
    while !batcher.shared.lock().running.is_empty() {
        tokio::task::yield_now().await;
    }
    answer
}

#[tokio::test]
async fn quick_batches_are_run_by_whoever_brings_them_after_all_that_are_ready() {
    let (batcher, seen) = threads(Limits { quick: QUICK, ..LIMITS });
    let here = thread::current().id();
    ask(&batcher, &[1, 2]).await.unwrap();
    assert_ne!(seen.recv().unwrap().0, here, "nothing is known of the first");
    ask(&batcher, &[3, 4]).await.unwrap();
    assert_eq!(seen.recv().unwrap(), (here, 2));
    let all = tokio::join!(batcher.run(asking(&[4])), batcher.run(asking(&[5, 6])), batcher.run(asking(&[7])));
    assert_eq!(seen.recv().unwrap(), (here, 4), "together");
    let answers = [all.0, all.1, all.2].map(|answer| elements(&answer.unwrap()));
    assert_eq!(answers, [vec![4], vec![5, 6], vec![7]]);
    ask(&batcher, &[1; 6]).await.unwrap();
    assert_eq!(seen.recv().unwrap(), (here, 6));
    // More than twice of what was quick so far.
    let (batcher, seen) = threads(Limits { quick: QUICK, ..LIMITS });
    ask(&batcher, &[1]).await.unwrap();
    ask(&batcher, &[1; 6]).await.unwrap();
    let runs: Vec<_> = seen.try_iter().collect();
    assert!(runs.len() == 2 && runs.iter().all(|(thread, _)| *thread != here), "{runs:?}");
}

#[tokio::test]
async fn what_takes_longer_goes_to_the_worker_again() {
    let (batcher, seen) = threads(Limits { quick: QUICK, ..LIMITS });
    let here = thread::current().id();
    let mut of_worker = Vec::new();
    for elements in [[1], [9], [2], [3]] {
        ask(&batcher, &elements).await.unwrap();
        of_worker.push(seen.recv().unwrap().0 != here);
    }
    assert_eq!(of_worker, [true, false, true, false]);
}

#[tokio::test]
async fn a_batch_that_panics_in_the_place_of_the_worker_fails_alone() {
    let (batcher, _seen) = threads(Limits { quick: QUICK, ..LIMITS });
    ask(&batcher, &[1]).await.unwrap();
    assert_eq!(ask(&batcher, &[13]).await.unwrap_err().kind(), ErrorKind::Internal);
    assert_eq!(elements(&ask(&batcher, &[2]).await.unwrap()), [2]);
    assert!(batcher.is_alive());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nobody_is_forgotten_between_helpers_and_the_workers() {
    for instances in [1, 3] {
        for quick in [Duration::ZERO, Duration::from_micros(100)] {
            many_come_and_go(Limits { instances, quick, max_queue_rows: 10_000, ..LIMITS }).await;
        }
    }
}

async fn many_come_and_go(limits: Limits) {
    let (batcher, seen) = threads(limits);
    let batcher = Arc::new(batcher);
    let tasks: Vec<_> = (0..64_u8)
        .map(|task| {
            let batcher = Arc::clone(&batcher);
            tokio::spawn(async move {
                for turn in 0..200_u8 {
                    let sent = vec![100 + task; usize::from(1 + turn % 5)];
                    let answer = tokio::time::timeout(Duration::from_secs(30), batcher.run(asking(&sent)));
                    assert_eq!(elements(&answer.await.unwrap().unwrap()), sent);
                    if turn % 7 == 0 {
                        // A client that leaves, at any point of its way.
                        let _ = tokio::time::timeout(Duration::from_micros(20), batcher.run(asking(&[1]))).await;
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert!(seen.try_iter().count() > 0);
    // Whoever ran the last may still be learning from it.
    while !batcher.shared.lock().running.is_empty() {
        tokio::task::yield_now().await;
    }
    let state = batcher.shared.lock();
    assert!(state.queue.is_empty() && state.woken <= state.waiting);
}
