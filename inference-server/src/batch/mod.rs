//! The one batcher: between the protocols, which run many requests at once, and the engine, which runs one batch at a
//! time, or a few.
//!
//! Batching is pull-based: when the engine becomes free, what waits is taken, so a batch grows exactly as long as the
//! model is busy, and a lone request never waits (unless a delay is configured). Each batch that may run at once has a worker
//! thread, so that a model that takes its time holds nobody up; they share what there is, so that none is idle while another
//! runs a batch of everything. Handing a batch over and the answers back costs more than a small model does:
//! where batches were quick so far, whoever brings a request runs what waits in its own thread, after all others that
//! were ready have brought theirs.

mod pace;
mod queue;
mod quick;
mod rows;
mod worker;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use smallvec::SmallVec;
use tokio::sync::oneshot;

use crate::engine::{Engine, Outputs};
use crate::error::{Error, ErrorKind};
use crate::stats::Counters;
use crate::telemetry::Watch;
use crate::tensor::Tensor;

use pace::{Class, Pace, Size};
pub use queue::Limits;
use queue::{Entry, Queue};
use quick::Quick;

/// A request whose tensors fit the model's signature.
#[derive(Clone, Debug)]
pub struct Request {
    /// One tensor per input of the signature, in its order.
    pub inputs: Vec<Tensor>,
    /// The outputs that are wanted.
    pub outputs: Outputs,
    /// Rows along the batch dimension; 1 where the model has none.
    pub rows: usize,
    /// When the answer is of no use any more.
    pub deadline: Option<Instant>,
}

/// Hands requests to the worker threads of an engine. Dropping the last one ends the threads.
pub struct Batcher {
    shared: Arc<Shared>,
    /// The rows that a model is warmed up with.
    zeros: Class,
}

/// Where the answer to a request comes.
type Answer = oneshot::Receiver<Result<Vec<Tensor>, Error>>;

/// What the workers and the protocols share.
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    /// Used by those whose turn it is.
    engine: Arc<dyn Engine>,
    counters: Arc<Counters>,
}

struct State {
    queue: Queue,
    quick: Quick,
    is_closed: bool,
    /// How many batches may run at once.
    instances: usize,
    /// The batches that run. Whoever runs one looks after what comes meanwhile.
    running: Running,
    /// Workers that wait.
    waiting: usize,
    /// Those of them that were woken and have not noticed yet.
    woken: usize,
}

/// The sizes of batches that run.
type Running = SmallVec<[Size; 4]>;

impl State {
    /// Whether what waits is best run by whoever brought it.
    fn is_quick(&self) -> bool {
        self.queue.never_waits() && self.quick.covers(self.queue.bytes())
    }

    /// Whether one more batch may run.
    fn has_place(&self) -> bool {
        self.running.len() < self.instances
    }
}

impl Batcher {
    /// Starts the worker threads. `joins`: whether requests may be run together.
    pub fn start(
        engine: Arc<dyn Engine>,
        limits: Limits,
        joins: bool,
        counters: Arc<Counters>,
    ) -> std::io::Result<Self> {
        let instances = limits.instances;
        let zeros = Class::of(engine.signature().inputs.iter().map(|spec| spec.zeros(1, joins).byte_size()).sum(), 1);
        let mut pace = Pace::new(if joins { limits.max_batch_rows } else { 1 }, instances);
        for cell in counters.batch_cells() {
            let rows = usize::try_from(cell.rows / cell.count.max(1)).unwrap_or(usize::MAX);
            pace.learn(Size { rows, class: zeros }, cell.seconds / cell.count.max(1) as f64);
        }
        let state = State {
            queue: Queue::new(limits, joins, pace),
            quick: Quick::new(limits.quick),
            is_closed: false,
            instances,
            running: Running::new(),
            waiting: 0,
            woken: 0,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), wake: Condvar::new(), engine, counters });
        // Dropped where a thread cannot be started, it ends those that were.
        let batcher = Self { shared, zeros };
        for _ in 0..instances {
            let shared = Arc::clone(&batcher.shared);
            thread::Builder::new().name("engine".to_owned()).spawn(move || worker::run(&shared))?;
        }
        Ok(batcher)
    }

    /// Runs a request and gives its outputs, or the reason why not. Dropping the future takes the request out of the
    /// queue, if it is still there.
    pub async fn run(&self, request: Request) -> Result<Vec<Tensor>, Error> {
        self.run_watched(request, None).await
    }

    /// The same for a request that is told of.
    pub async fn run_watched(&self, request: Request, watch: Option<Arc<Watch>>) -> Result<Vec<Tensor>, Error> {
        let deadline = request.deadline;
        let (answer, is_quick) = self.submit(request, watch)?;
        if is_quick {
            // Tasks that are ready come first, with the requests that they bring.
            tokio::task::yield_now().await;
            worker::help(&self.shared);
        }
        let answer = match deadline {
            Some(deadline) => {
                tokio::time::timeout_at(deadline.into(), answer).await.map_err(|_| Error::deadline_exceeded())?
            }
            None => answer.await,
        };
        answer.unwrap_or_else(|_| Err(worker_gone()))
    }

    /// For those who run batches outside of it.
    pub fn observer(&self) -> Observer {
        Observer { shared: Arc::downgrade(&self.shared), zeros: self.zeros }
    }

    /// Whether the worker threads can still answer.
    pub fn is_alive(&self) -> bool {
        !self.shared.lock().is_closed
    }

    /// Puts a request into the queue. Gives where its answer will come, and whether to help with running it.
    fn submit(&self, request: Request, watch: Option<Arc<Watch>>) -> Result<(Answer, bool), Error> {
        let (reply, answer) = oneshot::channel();
        let bytes = request.inputs.iter().map(Tensor::byte_size).sum();
        let entry = Entry { request, bytes, entered: Instant::now(), watch, reply };
        let mut state = self.shared.lock();
        if state.is_closed {
            return Err(worker_gone());
        }
        let State { queue, running, .. } = &mut *state;
        queue.push(entry, running)?;
        self.shared.counters.set_queued_rows(state.queue.rows());
        let is_quick = state.is_quick();
        if !is_quick {
            self.shared.wake_worker(state);
        }
        Ok((answer, is_quick))
    }
}

/// Lets a batcher know of batches of zeros that ran outside of it.
pub struct Observer {
    shared: Weak<Shared>,
    zeros: Class,
}

impl Observer {
    /// A batch took so long.
    pub fn learn(&self, rows: usize, took: Duration) {
        if let Some(shared) = self.shared.upgrade() {
            shared.lock().queue.learn(Size { rows, class: self.zeros }, took);
        }
    }

    /// Whether the batcher is gone.
    pub fn is_alone(&self) -> bool {
        self.shared.strong_count() == 0
    }
}

impl Drop for Batcher {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until woken, or for so long.
    fn wait<'a>(&self, mut state: MutexGuard<'a, State>, longest: Option<Duration>) -> MutexGuard<'a, State> {
        state.waiting += 1;
        let mut state = match longest {
            Some(longest) => self.wake.wait_timeout(state, longest).unwrap_or_else(PoisonError::into_inner).0,
            None => self.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
        };
        state.waiting -= 1;
        state.woken = state.woken.saturating_sub(1);
        state
    }

    /// Wakes a worker where there is something to do for it. Waking costs a system call, and whoever runs a batch looks into the queue
    /// afterwards.
    fn wake_worker(&self, mut state: MutexGuard<'_, State>) {
        let has_work = state.has_place() && (state.is_closed || !state.queue.is_empty());
        let wakes = has_work && state.waiting > state.woken;
        state.woken += usize::from(wakes);
        drop(state);
        if wakes {
            self.wake.notify_one();
        }
    }

    /// Ends the workers once the queue is empty.
    fn close(&self) {
        self.lock().is_closed = true;
        self.wake.notify_all();
    }
}

fn worker_gone() -> Error {
    Error::new(ErrorKind::Internal, "the model stopped running")
}

#[cfg(test)]
mod tests;
