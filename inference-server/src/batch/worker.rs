//! Who runs batches: the worker threads, or in its place whoever brought one that is quick.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use tracing::error;

use super::pace::Size;
use super::queue::{Entry, is_gone, refuse};
use super::{Shared, State, rows};
use crate::engine::{Engine, RunError};
use crate::error::{Error, ErrorKind};
use crate::telemetry::Ran;
use crate::tensor::Tensor;

/// Batches that a helper runs one after the other before the worker takes over: it has its own work, too.
const HELPED: usize = 4;

/// A worker: runs batches until the queue is closed and empty.
pub(super) fn run(shared: &Shared) {
    let _closing = CloseOnExit(shared);
    while let Some(turn) = next(shared) {
        turn.run();
    }
}

/// Whatever ends a thread, nobody waits for it afterwards.
struct CloseOnExit<'a>(&'a Shared);

impl Drop for CloseOnExit<'_> {
    fn drop(&mut self) {
        self.0.close();
        // Dropping the entries tells those who wait.
        self.0.lock().queue.clear();
    }
}

/// Runs what waits as long as it is quick, and leaves the rest to the workers.
pub(super) fn help(shared: &Shared) {
    for _ in 0..HELPED {
        let mut state = shared.lock();
        if !state.has_place() || state.is_closed || !state.is_quick() {
            return shared.wake_worker(state);
        }
        let Some(turn) = Turn::take(shared, &mut state, Instant::now()) else { return };
        drop(state);
        turn.run();
    }
    shared.wake_worker(shared.lock());
}

fn next(shared: &Shared) -> Option<Turn<'_>> {
    let mut state = shared.lock();
    loop {
        let now = Instant::now();
        let until = if state.is_closed { None } else { state.queue.wait_until(now) };
        if until.is_none() && state.has_place() {
            if let Some(turn) = Turn::take(shared, &mut state, now) {
                // What it leaves is for the others.
                shared.wake_worker(state);
                return Some(turn);
            }
            if state.is_closed {
                return None;
            }
        }
        state = shared.wait(state, until.map(|until| until - now));
    }
}

/// A batch that was taken, and the right to run it: a place among those that run until this is dropped.
struct Turn<'a> {
    shared: &'a Shared,
    batch: Vec<Entry>,
    size: Size,
    /// The bytes and the time of the batch, once it has run.
    ran: Option<(usize, Duration)>,
}

impl<'a> Turn<'a> {
    fn take(shared: &'a Shared, state: &mut State, now: Instant) -> Option<Self> {
        let batch = state.queue.take(now, &state.running);
        shared.counters.set_queued_rows(state.queue.rows());
        let rows = batch.iter().map(|entry| entry.request.rows).sum();
        let size = Size { rows, ..batch.first()?.size() };
        state.running.push(size);
        Some(Self { shared, batch, size, ran: None })
    }

    fn run(mut self) {
        let batch = std::mem::take(&mut self.batch);
        let bytes = batch.iter().map(|entry| entry.bytes).sum();
        let start = Instant::now();
        answer(self.shared.engine.as_ref(), batch, self.shared);
        self.ran = Some((bytes, start.elapsed()));
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        // Batches of one size are alike.
        if let Some(place) = state.running.iter().position(|size| *size == self.size) {
            state.running.swap_remove(place);
        }
        match self.ran {
            Some((bytes, took)) => {
                state.quick.learn(bytes, took);
                state.queue.has_run(self.size, took, Instant::now());
            }
            // A panic: whoever runs it does not get to look after the rest.
            None => self.shared.wake_worker(state),
        }
    }
}

fn answer(engine: &dyn Engine, batch: Vec<Entry>, shared: &Shared) {
    let start = Instant::now();
    for entry in &batch {
        shared.counters.queue_wait.record(start - entry.entered);
    }
    if batch.len() > 1
        && let Some(answers) = together(engine, &batch)
    {
        let total = batch.iter().map(|entry| entry.request.rows).sum();
        let ran = Ran { started: start, took: start.elapsed(), rows: total, requests: batch.len() };
        shared.counters.record_execution(ran.requests, ran.rows, ran.took);
        for (entry, answer) in batch.into_iter().zip(answers) {
            entry.ran(ran);
            // A client that left has no use for it.
            let _ = entry.reply.send(Ok(answer));
        }
        return;
    }
    // One request's values can fail a whole batch: alone, each gets its own answer or error.
    for entry in batch {
        let start = Instant::now();
        // What ran before may have taken long, and what nobody waits for makes the others wait.
        if is_gone(&entry, start) {
            refuse(entry);
            continue;
        }
        let answer = guarded(engine, &entry.request.inputs, &entry.request.outputs);
        let ran = Ran { started: start, took: start.elapsed(), rows: entry.request.rows, requests: 1 };
        entry.ran(ran);
        if answer.is_ok() {
            shared.counters.record_execution(ran.requests, ran.rows, ran.took);
        }
        let _ = entry.reply.send(answer.map_err(Error::from));
    }
}

/// The answers of a batch in its order, or `None` when it cannot be run together.
fn together(engine: &dyn Engine, batch: &[Entry]) -> Option<Vec<Vec<Tensor>>> {
    let first = &batch.first()?.request;
    let inputs = (0..first.inputs.len())
        .map(|input| rows::join(&batch.iter().map(|entry| &entry.request.inputs[input]).collect::<Vec<_>>()))
        .collect::<Option<Vec<_>>>()?;
    let outputs = guarded(engine, &inputs, &first.outputs).ok()?;
    let counts: Vec<usize> = batch.iter().map(|entry| entry.request.rows).collect();
    let mut answers: Vec<Vec<Tensor>> = batch.iter().map(|_| Vec::with_capacity(outputs.len())).collect();
    for output in outputs {
        for (answer, piece) in answers.iter_mut().zip(rows::split(output, &counts)?) {
            answer.push(piece);
        }
    }
    Some(answers)
}

/// A panic inside the engine fails the batch that caused it, not the server.
fn guarded(engine: &dyn Engine, inputs: &[Tensor], outputs: &[usize]) -> Result<Vec<Tensor>, RunError> {
    catch_unwind(AssertUnwindSafe(|| engine.run(inputs, outputs))).unwrap_or_else(|_| {
        error!("the engine panicked; the requests of this batch failed");
        Err(RunError::Failed("the runtime stopped unexpectedly".to_owned()))
    })
}

impl From<RunError> for Error {
    fn from(error: RunError) -> Self {
        let kind = match error {
            RunError::Refused(_) => ErrorKind::InvalidArgument,
            RunError::Failed(_) => ErrorKind::Internal,
        };
        Self::new(kind, error.to_string())
    }
}
