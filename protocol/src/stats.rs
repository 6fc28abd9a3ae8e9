//! What a model server tells about itself at `GET /stats` on the operations port.
//!
//! All counters grow from the start of the process and carry an [`Stats::instance`], so that a reader that looks at any
//! time, or misses a look, sees true differences and notices a restart. About 1 KB as JSON.

use serde::{Deserialize, Serialize};

use crate::histogram::Histogram;

/// The state of one model server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stats {
    /// The model's name, as clients address it.
    pub model: String,
    /// The revision that this server was started for; absent outside Kubernetes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// A random word per process: counters start anew where it changes.
    pub instance: String,
    /// The SHA-256 of the model's bytes in lower-case hex; absent until they are fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// How far the server is.
    pub phase: Phase,
    /// Seconds since the process started.
    pub uptime_seconds: f64,
    /// Seconds from the start of the process until it was ready; absent until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_to_ready_seconds: Option<f64>,
    /// The CPUs this process may use: its cgroup quota, or the CPUs it may run on.
    pub cpus: f64,
    /// CPU seconds (user and system) used by the process so far.
    pub cpu_seconds: f64,
    /// Requests, counted once each.
    pub requests: Requests,
    /// Rows (examples along the batch dimension) that arrived in the requests counted in [`Requests::admitted`].
    pub rows_arrived: u64,
    /// Requests accepted and not yet answered, those in the queue included.
    pub in_flight: u64,
    /// Rows waiting for execution now.
    pub queued_rows: u64,
    /// The largest batch in rows that the server forms.
    pub max_batch_rows: u64,
    /// How many batches the server runs at once; 0 from servers that do not tell, which run one.
    #[serde(default)]
    pub instances: u64,
    /// What was measured to find that number, where the server was asked to find it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub autotune: Vec<Trial>,
    /// From the arrival of a request's body to its answer, in seconds, for all requests that were answered with success.
    pub latency: Histogram,
    /// From entering the queue to the start of execution, in seconds.
    pub queue_wait: Histogram,
    /// Executed batches by size, for learning the service time S(b); sizes near each other share a cell.
    pub batches: Vec<BatchCell>,
}

/// One way to share the CPUs, and what it gave.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Trial {
    /// Batches at once.
    pub instances: u64,
    /// Threads for each of them.
    pub threads: u64,
    /// Rows a second of all together.
    pub rows_per_second: f64,
    /// Whether the server runs that way.
    pub is_chosen: bool,
}

/// How far a model server is on its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Phase {
    /// The model's bytes are being fetched.
    #[default]
    Fetching,
    /// The runtime builds the session and warms it up.
    Loading,
    /// Requests are answered.
    Ready,
    /// Told to stop: still answering, but wants no new clients.
    Draining,
}

impl Phase {
    /// Whether the model was loaded: its bytes are good.
    pub fn is_loaded(self) -> bool {
        matches!(self, Self::Ready | Self::Draining)
    }
}

/// Requests by how they ended. `arrived` is the sum of the ends and of those in flight; `admitted` lies across them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Requests {
    /// All that came for inference, whatever became of them.
    pub arrived: u64,
    /// Requests whose rows are counted in [`Stats::rows_arrived`]: accepted, or turned away because the queue was full.
    #[serde(default)]
    pub admitted: u64,
    /// Answered with success.
    pub completed: u64,
    /// Refused through the client's fault (4xx).
    pub refused: u64,
    /// Failed through the server's fault (5xx but for the next two).
    pub failed: u64,
    /// Turned away because the queue was full or the server not ready.
    pub shed: u64,
    /// Dropped because their deadline passed or their client left before execution.
    pub expired: u64,
}

/// Batches of about the same size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BatchCell {
    /// The largest batch in rows that counts in this cell: the cell's identity from look to look.
    #[serde(default)]
    pub limit: u64,
    /// The number of batches.
    pub count: u64,
    /// The sum of their rows.
    pub rows: u64,
    /// The sum of their execution times in seconds.
    pub seconds: f64,
}
