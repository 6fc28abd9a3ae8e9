//! The one batcher: between the protocols, which run many requests at once, and the engine, which runs one batch at a
//! time on a thread of its own.
//!
//! Batching is pull-based: when the worker becomes free it takes what waits, so a batch grows exactly as long as the
//! model is busy, and a lone request never waits (unless a delay is configured).

mod queue;
mod rows;
mod worker;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use tokio::sync::oneshot;

use crate::engine::{Engine, Outputs};
use crate::error::{Error, ErrorKind};
use crate::stats::Counters;
use crate::tensor::Tensor;

pub use queue::Limits;
use queue::{Entry, Queue};

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

/// What the worker and the protocols share.
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    counters: Arc<Counters>,
}

struct State {
    queue: Queue,
    is_closed: bool,
    is_worker_waiting: bool,
}

impl Batcher {
    /// Starts the worker thread. `joins`: whether requests may be run together.
    pub fn start(
        engine: Box<dyn Engine>,
        limits: Limits,
        joins: bool,
        counters: Arc<Counters>,
    ) -> std::io::Result<Self> {
        let state = State { queue: Queue::new(limits, joins), is_closed: false, is_worker_waiting: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), wake: Condvar::new(), counters });
        let worker = Arc::clone(&shared);
        thread::Builder::new().name("engine".to_owned()).spawn(move || worker::run(engine, &worker))?;
        Ok(Self { shared })
    }

    /// Runs a request and gives its outputs, or the reason why not. Dropping the future takes the request out of the
    /// queue, if it is still there.
    pub async fn run(&self, request: Request) -> Result<Vec<Tensor>, Error> {
        let deadline = request.deadline;
        let answer = self.submit(request)?;
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

    fn submit(&self, request: Request) -> Result<oneshot::Receiver<Result<Vec<Tensor>, Error>>, Error> {
        let (reply, answer) = oneshot::channel();
        let bytes = request.inputs.iter().map(Tensor::byte_size).sum();
        let entry = Entry { request, bytes, entered: Instant::now(), reply };
        let mut state = self.shared.lock();
        if state.is_closed {
            return Err(worker_gone());
        }
        state.queue.push(entry)?;
        self.shared.counters.set_queued_rows(state.queue.rows());
        // Waking costs a system call; a worker that runs a batch looks into the queue by itself.
        let wakes = std::mem::take(&mut state.is_worker_waiting);
        drop(state);
        if wakes {
            self.shared.wake.notify_one();
        }
        Ok(answer)
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
