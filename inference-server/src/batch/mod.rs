//! The one batcher: between the protocols, which run many requests at once, and the engine, which runs one batch at a
//! time.
//!
//! Batching is pull-based: when the engine becomes free, what waits is taken, so a batch grows exactly as long as the
//! model is busy, and a lone request never waits (unless a delay is configured). The engine has a worker thread, so that a
//! model that takes its time holds nobody up. Handing a batch over and the answers back costs more than a small model does:
//! where batches were quick so far, whoever brings a request runs what waits in its own thread, after all others that
//! were ready have brought theirs.

mod pace;
mod queue;
mod quick;
mod rows;
mod worker;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use tokio::sync::oneshot;

use crate::engine::{Engine, Outputs};
use crate::error::{Error, ErrorKind};
use crate::stats::Counters;
use crate::telemetry::Watch;
use crate::tensor::Tensor;

use pace::Pace;
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

/// Hands requests to the worker thread of an engine. Dropping the last one ends the thread.
pub struct Batcher {
    shared: Arc<Shared>,
}

/// Where the answer to a request comes.
type Answer = oneshot::Receiver<Result<Vec<Tensor>, Error>>;

/// What the worker and the protocols share.
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    /// Used by whoever's turn it is.
    engine: Mutex<Box<dyn Engine>>,
    counters: Arc<Counters>,
}

struct State {
    queue: Queue,
    quick: Quick,
    is_closed: bool,
    /// The rows of the batch that runs. Whoever runs it looks after what comes meanwhile.
    running: Option<usize>,
    is_worker_waiting: bool,
}

impl State {
    /// Whether what waits is best run by whoever brought it.
    fn is_quick(&self) -> bool {
        self.queue.never_waits() && self.quick.covers(self.queue.bytes())
    }
}

impl Batcher {
    /// Starts the worker thread. `joins`: whether requests may be run together.
    pub fn start(
        engine: Box<dyn Engine>,
        limits: Limits,
        joins: bool,
        counters: Arc<Counters>,
    ) -> std::io::Result<Self> {
        let pace = Pace::new(if joins { limits.max_batch_rows } else { 1 }, &counters.batch_cells());
        let state = State {
            queue: Queue::new(limits, joins, pace),
            quick: Quick::new(limits.quick),
            is_closed: false,
            running: None,
            is_worker_waiting: false,
        };
        let (state, engine) = (Mutex::new(state), Mutex::new(engine));
        let shared = Arc::new(Shared { state, wake: Condvar::new(), engine, counters });
        let worker = Arc::clone(&shared);
        thread::Builder::new().name("engine".to_owned()).spawn(move || worker::run(&worker))?;
        Ok(Self { shared })
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

    /// Whether the worker thread can still answer.
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
        let running = state.running;
        state.queue.push(entry, running)?;
        self.shared.counters.set_queued_rows(state.queue.rows());
        let is_quick = state.is_quick();
        if !is_quick {
            self.shared.wake_worker(state);
        }
        Ok((answer, is_quick))
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

    /// Wakes the worker where it has something to do. Waking costs a system call, and whoever runs a batch looks into the queue
    /// afterwards.
    fn wake_worker(&self, mut state: MutexGuard<'_, State>) {
        let has_work = state.running.is_none() && (state.is_closed || !state.queue.is_empty());
        let wakes = has_work && std::mem::take(&mut state.is_worker_waiting);
        drop(state);
        if wakes {
            self.wake.notify_one();
        }
    }

    /// Ends the worker once the queue is empty.
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
