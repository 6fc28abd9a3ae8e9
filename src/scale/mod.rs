//! How many servers a model needs, from what its servers were seen doing.
//!
//! Pure: `(config, observation, memory, now) → (decision, memory)`, no clock, no IO, no log. The number of servers
//! follows from the *capacity* of one server, learned from the service time of its batches ([`capacity`]), and from the
//! load to be expected when a new server would be ready ([`demand`]). Latency itself is not used as a ratio: past its
//! capacity a server's latency says nothing about how many more are needed. It only corrects the learned capacity, and
//! asks for one more server when it stays above the target although the model says that there are enough.
//!
//! Up at once, down slowly; missing numbers hold, and are never read as zero.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod capacity;
pub mod demand;
mod explain;

use std::time::Duration;

use ortolan_protocol::{histogram::Histogram, stats::BatchCell};

pub use explain::{number as format_number, seconds as format_seconds};

use capacity::{Capacity, Goal, Learned};
use demand::Demand;

/// Scale-in looks back at least this long, in seconds.
const DOWN_WINDOW: f64 = 60.0;
/// Seconds between two steps down.
const DOWN_INTERVAL: f64 = 5.0;
/// A smaller number of servers must carry this much more than the highest load of the window.
const DOWN_MARGIN: f64 = 1.15;
/// The lowest correction of the predicted capacity.
const LOWEST_TRUST: f64 = 0.7;
/// Completed requests below which an observed quantile means nothing.
const MINIMUM_REQUESTS: u64 = 20;
/// Looks (seconds) over which a breach is judged, and how many of them must be above the target.
const BREACH_LOOKS: u32 = 5;
/// How many of the last looks must be above the target to count as a breach.
const BREACH_COUNT: u32 = 3;
/// Servers that are added because of latency alone before it counts as of no use.
const LATENCY_STEPS: u32 = 2;
/// A backlog is to be worked off within this many seconds.
const DRAIN_SECONDS: f64 = 5.0;

/// What a user asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The fewest servers.
    pub min: u32,
    /// The most servers.
    pub max: u32,
    /// The share of requests that must be within the target, between 0 and 1.
    pub quantile: f64,
    /// The target.
    pub target: Duration,
    /// How long a batch may wait for more rows; it is part of a request's latency.
    pub batch_delay: Duration,
}

/// What was seen in the last look, about a second.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observation {
    /// Ready servers that told their numbers.
    pub pods: Vec<PodWindow>,
    /// Ready servers that have not for some seconds, or that tell nonsense.
    pub silent: u32,
    /// Ready servers that had nothing to tell in this look: the first look at them, or one that they missed.
    pub unheard: u32,
    /// What servers executed before the first look at them.
    pub first_batches: Vec<BatchCell>,
    /// Servers on their way to being ready.
    pub starting: u32,
    /// Seconds from the creation of a pod until it was ready, the slowest of the last ones; absent when none was seen.
    pub cold_start: Option<f64>,
    /// A rollout is under way: no scale-in.
    pub rolling_out: bool,
}

impl Observation {
    /// By how much the servers that told their numbers are fewer than those that are ready, as a factor.
    fn unseen(&self) -> f64 {
        let told = self.pods.len() as f64;
        if told > 0.0 { (told + f64::from(self.silent) + f64::from(self.unheard)) / told } else { 1.0 }
    }
}

/// What one server did between two looks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodWindow {
    /// The time between the two looks, in seconds, above zero.
    pub seconds: f64,
    /// Requests that arrived with the rows of `rows_arrived`.
    pub requests_admitted: u64,
    /// Rows that arrived.
    pub rows_arrived: u64,
    /// Rows that wait.
    pub queued_rows: u64,
    /// The largest batch that the server forms.
    pub max_batch_rows: u64,
    /// How many batches the server runs at once; 0 where it does not tell.
    pub instances: u64,
    /// From arrival to answer.
    pub latency: Histogram,
    /// What was executed.
    pub batches: Vec<BatchCell>,
    /// CPU seconds used.
    pub cpu_seconds: f64,
    /// CPUs that may be used.
    pub cpus: f64,
}

/// What is remembered from look to look; a restart begins with [`Memory::seeded`].
#[derive(Clone, Debug, PartialEq)]
pub struct Memory {
    desired: u32,
    born: f64,
    learned: Learned,
    demand: Demand,
    trust: f64,
    breaches: u32,
    latency_steps: u32,
    cold_start: f64,
    last_up: f64,
    last_down: f64,
}

impl Memory {
    /// Gives back room for more looks than are remembered.
    pub fn shrink(&mut self) {
        self.demand.shrink();
    }

    /// A memory that knows only how many servers there were to be. `now`: seconds on a clock that only goes forward.
    pub fn seeded(desired: u32, now: f64) -> Self {
        Self {
            desired,
            born: now,
            learned: Learned::default(),
            demand: Demand::default(),
            trust: 1.0,
            breaches: 0,
            latency_steps: 0,
            cold_start: 5.0,
            last_up: now,
            last_down: now,
        }
    }
}

/// How many servers there should be, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// The number of servers.
    pub replicas: u32,
    /// What led to it.
    pub cause: Cause,
    /// What was wanted but could not be had.
    pub limited: Option<Limit>,
    /// The cause in words, with the numbers.
    pub reason: String,
}

impl Decision {
    /// Whether this decision would tell a person the same as `other`; the numbers in its words may differ.
    pub fn says_the_same_as(&self, other: &Self) -> bool {
        let kind = |decision: &Self| {
            let known = !matches!(decision.cause, Cause::Unknown | Cause::Silent);
            (
                decision.replicas,
                (!known).then_some(decision.cause),
                decision.limited.as_ref().map(std::mem::discriminant),
            )
        };
        kind(self) == kind(other)
    }
}

/// What a decision rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The load to be expected needs more servers.
    Load,
    /// Latency stays above the target although the learned capacity says that there are enough.
    Latency,
    /// Fewer servers carry the highest load of the window.
    Idle,
    /// As many as there should be.
    Steady,
    /// No server has executed anything yet, so its capacity is not known.
    Unknown,
    /// Servers are silent: what is there is kept.
    Silent,
    /// The bounds changed.
    Bounds,
}

/// What a decision wanted but could not have.
#[derive(Clone, Debug, PartialEq)]
pub enum Limit {
    /// More than the most.
    MaxReplicas {
        /// How many were wanted.
        wanted: u32,
    },
    /// One execution alone takes longer than the target.
    TargetOutOfReach {
        /// How long one execution takes, in seconds.
        execution: f64,
    },
}

/// Decides. `now`: seconds on a clock that only goes forward, the same as for [`Memory::seeded`].
pub fn decide(config: &Config, observation: &Observation, memory: Memory, now: f64) -> (Decision, Memory) {
    let current = memory.desired.clamp(config.min, config.max);
    let mut memory = learn(config, observation, memory, now);
    let mut plan = plan(config, observation, &memory, current, now);
    if plan.cause == Cause::Steady && current != memory.desired {
        plan.cause = Cause::Bounds;
    }
    if plan.replicas > current {
        memory.last_up = now;
        memory.breaches = 0;
        memory.latency_steps = if plan.cause == Cause::Latency { memory.latency_steps + 1 } else { 0 };
    }
    if plan.replicas < current {
        memory.last_down = now;
    }
    memory.desired = plan.replicas;
    let reason = explain::reason(config, &plan);
    let Plan { replicas, cause, limited, .. } = plan;
    (Decision { replicas, cause, limited, reason }, memory)
}

/// A decision with the numbers that its words need.
struct Plan {
    replicas: u32,
    cause: Cause,
    limited: Option<Limit>,
    /// Rows a second that are expected.
    load: f64,
    /// Rows a second that one server carries within the target.
    capacity: f64,
}

fn learn(config: &Config, observation: &Observation, mut memory: Memory, now: f64) -> Memory {
    if !observation.first_batches.is_empty() {
        memory.learned.begin_with(&observation.first_batches);
    }
    for pod in &observation.pods {
        memory.learned.observe(pod);
    }
    if let Some(seconds) = observation.cold_start {
        memory.cold_start = seconds;
    }
    if observation.pods.is_empty() {
        return memory;
    }
    memory.demand.observe(observation, now, DOWN_WINDOW.max(3.0 * memory.cold_start));
    let mut latency = Histogram::default();
    observation.pods.iter().for_each(|pod| latency.merge(&pod.latency));
    let enough = latency.count() >= MINIMUM_REQUESTS;
    let observed = latency.quantile(config.quantile).filter(|_| enough);
    let breached = observed.is_some_and(|seconds| seconds > config.target.as_secs_f64());
    memory.breaches = ((memory.breaches << 1) | u32::from(breached)) & ((1 << BREACH_LOOKS) - 1);
    if breached && observation.starting == 0 {
        memory.trust = (memory.trust * 0.95).max(LOWEST_TRUST);
    } else if observed.is_some() && !breached {
        memory.trust = (memory.trust * 1.005).min(1.0);
        if memory.breaches == 0 {
            memory.latency_steps = 0;
        }
    }
    memory
}

fn plan(config: &Config, observation: &Observation, memory: &Memory, current: u32, now: f64) -> Plan {
    let hold = |cause| Plan { replicas: current, cause, limited: None, load: 0.0, capacity: 0.0 };
    if observation.pods.is_empty() {
        // Nobody ready yet is a start, not silence; either way nothing is known and what is there stays.
        return hold(if observation.silent > 0 { Cause::Silent } else { Cause::Unknown });
    }
    let target = config.target.saturating_sub(config.batch_delay).as_secs_f64();
    let goal = Goal { quantile: config.quantile, target };
    let Some(Capacity { rows_per_second, out_of_reach }) = memory.learned.capacity(goal) else {
        return hold(Cause::Unknown);
    };
    let capacity = memory.trust * rows_per_second;
    let queued: u64 = observation.pods.iter().map(|pod| pod.queued_rows).sum();
    let backlog = if queued as f64 > capacity { observation.unseen() * queued as f64 / DRAIN_SECONDS } else { 0.0 };
    let load = memory.demand.expected(memory.cold_start + 1.0) + backlog;
    let wanted = servers(load, capacity);
    let mut plan = Plan { replicas: current, cause: Cause::Steady, limited: None, load, capacity };
    if wanted > current {
        plan.replicas = wanted.min(config.max);
        plan.cause = Cause::Load;
        if wanted > config.max {
            plan.limited = Some(Limit::MaxReplicas { wanted });
        }
    } else if out_of_reach.is_none() && asks_for_one_more(observation, memory, now) {
        plan.cause = Cause::Latency;
        plan.replicas = (current + 1).min(config.max);
        if current >= config.max {
            plan.limited = Some(Limit::MaxReplicas { wanted: current + 1 });
        }
    } else if wanted < current {
        (plan.replicas, plan.cause) = scale_in(config, observation, memory, (current, capacity), now);
    }
    if let Some(execution) = out_of_reach {
        plan.limited = Some(Limit::TargetOutOfReach { execution });
    }
    if plan.replicas == current && plan.cause == Cause::Load {
        plan.cause = Cause::Steady;
    }
    plan
}

/// Whether latency has been above the target for most of the last looks while every server was there to help, and more
/// servers were not already tried in vain.
fn asks_for_one_more(observation: &Observation, memory: &Memory, now: f64) -> bool {
    memory.breaches.count_ones() >= BREACH_COUNT
        && memory.latency_steps < LATENCY_STEPS
        && observation.starting == 0
        && now - memory.last_up >= memory.cold_start + f64::from(BREACH_LOOKS)
}

fn scale_in(
    config: &Config,
    observation: &Observation,
    memory: &Memory,
    (current, capacity): (u32, f64),
    now: f64,
) -> (u32, Cause) {
    if observation.silent > 0 {
        return (current, Cause::Silent);
    }
    let window = DOWN_WINDOW.max(3.0 * memory.cold_start);
    let settled = now - memory.born >= window && now - memory.last_up >= window;
    if observation.rolling_out || !settled || now - memory.last_down < DOWN_INTERVAL {
        return (current, Cause::Steady);
    }
    let needed = servers(DOWN_MARGIN * memory.demand.peak(), capacity).max(config.min);
    let step = (current / 4).max(1);
    if needed < current { (needed.max(current - step), Cause::Idle) } else { (current, Cause::Steady) }
}

/// The least number of servers that carries `load`, at least one.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // clamped to 1..=1e6
fn servers(load: f64, capacity: f64) -> u32 {
    (load / capacity).ceil().clamp(1.0, 1e6) as u32
}

#[cfg(test)]
mod tests;
