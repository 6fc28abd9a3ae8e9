//! What is remembered of every model between looks: its servers' counters, the brain's memory, the last decision.
//!
//! All of it can be lost: a new operator begins with the number of servers that `status` tells and looks again.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use ortolan_protocol::{histogram::Histogram, stats::Stats};

use crate::{
    api::{
        ModelDeploymentStatus,
        validated::{DesiredModel, ScalingGoal},
    },
    observe::{seen, window},
    scale::{self, Cause, Decision, Memory, Observation, PodWindow},
    status::numbers::{Change, Numbers},
};

/// A server whose last numbers are older than this, in seconds, is silent.
const STALE: f64 = 3.0;
/// Numbers in `status` are about this many seconds, and are written at most that often.
const NUMBERS_WINDOW: f64 = 10.0;
/// A decision that changes its words but not the number of servers must last this long, in seconds, to be shown.
const SETTLED: f64 = 5.0;
/// The longest cold start that is believed, in seconds.
const LONGEST_COLD_START: f64 = 600.0;
/// Cold starts that are remembered.
const COLD_STARTS: usize = 10;

/// All models, by the UID of their object.
#[derive(Clone, Default)]
pub struct Fleet {
    models: Arc<Mutex<HashMap<String, ModelMemory>>>,
}

/// One model.
#[derive(Default)]
struct ModelMemory {
    /// By the UID of the pod.
    pods: HashMap<String, PodMemory>,
    /// Seconds that the last pods took to become ready.
    cold_starts: VecDeque<f64>,
    brain: Option<Memory>,
    /// The decision that `status` shows.
    decision: Option<Decision>,
    /// Since when decisions tell something else than the shown one.
    differs_since: Option<f64>,
    /// When each of the last looks was, and what was answered since the one before.
    recent: VecDeque<(f64, Histogram)>,
    /// What `status` was given last, and when.
    written: Option<(Option<Numbers>, f64)>,
    /// The status that was written over this version of the object, until the cache holds a newer one.
    reported: Option<(String, ModelDeploymentStatus)>,
}

#[derive(Default)]
struct PodMemory {
    stats: Option<Stats>,
    /// When the server told its numbers last.
    at: f64,
    /// What it did up to then.
    window: Option<PodWindow>,
    /// The numbers are the first of this process, so that they make no difference yet.
    first: bool,
    /// Whether the pod was ready at the last look.
    ready: bool,
    /// The pod was seen before it was ready for the first time.
    starting: bool,
}

/// What a reconcile needs to know of the looks so far.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// How many servers there should be.
    pub desired: u32,
    /// The decision to be shown.
    pub decision: Option<Decision>,
    /// What is to become of the numbers in `status`.
    pub numbers: Change,
    /// The digest that the server of each pod told, by the UID of the pod.
    pub digests: HashMap<String, String>,
}

/// What one look at a model led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Nothing that a reconcile would act on.
    Quiet,
    /// A decision, numbers or a digest that are to be carried out or written.
    Due,
}

/// One look at a model's pods.
pub struct PodLook<'a> {
    /// Pods that are not on their way out.
    pub pods: &'a [Arc<Pod>],
    /// What the servers told, by the UID of the pod; silent ones are absent.
    pub stats: Vec<(String, Stats)>,
    /// Servers that there are to be but that have no pod yet.
    pub missing: u32,
    /// A rollout is under way.
    pub rolling_out: bool,
}

impl Fleet {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, ModelMemory>> {
        // A panic while the lock was held leaves numbers behind that are looked at anew a second later.
        self.models.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what one look at a model's pods brought and decides. `previous`: how many servers `status` says there
    /// should be; `now`: seconds on a clock that only goes forward.
    pub fn look(&self, model: &DesiredModel, previous: Option<u32>, mut look: PodLook<'_>, now: f64) -> Look {
        let mut models = self.lock();
        let memory = models.entry(model.uid.clone()).or_default();
        memory.take_in_pods(look.pods);
        let new_digest = memory.take_in(std::mem::take(&mut look.stats), now);
        let observation = memory.observation(&look, now);
        memory.remember(&observation, now);
        let mut due = new_digest | (memory.numbers_due(now) != Change::Keep);
        if let ScalingGoal::Latency { min, max, quantile, target, batch_delay } = model.scaling {
            let config = scale::Config { min, max, quantile, target, batch_delay };
            let seed = || Memory::seeded(model.scaling.clamp(previous.unwrap_or(min)), now);
            let brain = memory.brain.take().unwrap_or_else(seed);
            let (decision, brain) = scale::decide(&config, &observation, brain, now);
            memory.brain = Some(brain);
            due |= memory.show(decision, now);
        } else {
            memory.brain = None;
            due |= memory.decision.take().is_some();
        }
        if due { Look::Due } else { Look::Quiet }
    }

    /// What is known of a model; `previous`: how many servers `status` says there should be.
    pub fn view(&self, model: &DesiredModel, previous: Option<u32>, now: f64) -> View {
        let models = self.lock();
        let memory = models.get(&model.uid);
        let decided = memory.and_then(|memory| memory.decision.as_ref()).map(|decision| decision.replicas);
        let desired = model.scaling.clamp(decided.or(previous).unwrap_or_else(|| model.scaling.initial()));
        let Some(memory) = memory else { return View { desired, ..View::default() } };
        let digests =
            memory.pods.iter().filter_map(|(uid, pod)| Some((uid.clone(), pod.stats.as_ref()?.digest.clone()?)));
        View {
            desired,
            decision: memory.decision.clone(),
            numbers: memory.numbers_due(now),
            digests: digests.collect(),
        }
    }

    /// A model's status was written with this change of its numbers.
    pub fn written(&self, uid: &str, change: Change, now: f64) {
        let numbers = match change {
            Change::Keep => return,
            Change::Clear => None,
            Change::Write(numbers) => Some(numbers),
        };
        self.lock().entry(uid.to_owned()).or_default().written = Some((numbers, now));
    }

    /// A status was written over the version `over` of an object.
    pub fn reported(&self, uid: &str, over: String, status: ModelDeploymentStatus) {
        self.lock().entry(uid.to_owned()).or_default().reported = Some((over, status));
    }

    /// The status that was written over the version `over`, when the cache does not hold it yet.
    pub fn reported_over(&self, uid: &str, over: Option<&str>) -> Option<ModelDeploymentStatus> {
        let models = self.lock();
        let (version, status) = models.get(uid)?.reported.as_ref()?;
        (Some(version.as_str()) == over).then(|| status.clone())
    }

    /// Forgets models that are gone.
    pub fn retain(&self, uids: &HashSet<String>) {
        self.lock().retain(|uid, _| uids.contains(uid));
    }
}

impl ModelMemory {
    /// Takes in what servers told; whether a digest is among it that was not known.
    fn take_in(&mut self, told: Vec<(String, Stats)>, now: f64) -> bool {
        let mut new_digest = false;
        for (uid, stats) in told {
            let pod = self.pods.entry(uid).or_default();
            new_digest |=
                stats.digest.is_some() && pod.stats.as_ref().is_none_or(|before| before.digest != stats.digest);
            pod.first = pod.stats.as_ref().is_none_or(|before| before.instance != stats.instance);
            pod.window = pod.stats.as_ref().and_then(|before| window::between(before, &stats));
            pod.stats = Some(stats);
            pod.at = now;
        }
        new_digest
    }

    /// Follows pods from their start to their end.
    fn take_in_pods(&mut self, alive: &[Arc<Pod>]) {
        let uids: HashSet<_> = alive.iter().filter_map(|pod| pod.uid()).collect();
        self.pods.retain(|uid, _| uids.contains(uid));
        for pod in alive {
            let Some(uid) = pod.uid() else { continue };
            let known = self.pods.contains_key(&uid);
            let memory = self.pods.entry(uid).or_default();
            let ready = seen::is_ready(pod);
            if ready && memory.starting {
                self.cold_starts.extend(seen::cold_start(pod).map(|seconds| seconds.min(LONGEST_COLD_START)));
                memory.starting = false;
            }
            // Ready once, never again starting: a pod that falters has no cold start.
            memory.starting |= !ready && !known;
            memory.ready = ready;
        }
        while self.cold_starts.len() > COLD_STARTS {
            self.cold_starts.pop_front();
        }
    }

    fn observation(&self, look: &PodLook<'_>, now: f64) -> Observation {
        let mut observation = Observation {
            starting: look.missing,
            cold_start: self.cold_starts.iter().copied().reduce(f64::max),
            rolling_out: look.rolling_out,
            ..Observation::default()
        };
        for pod in look.pods.iter().filter_map(|pod| self.pods.get(&pod.uid()?)) {
            let told_now = pod.stats.is_some() && (now - pod.at).abs() < f64::EPSILON;
            match &pod.window {
                _ if !pod.ready => observation.starting += 1,
                Some(window) if told_now => observation.pods.push(window.clone()),
                None if told_now && pod.first => {
                    observation.unheard += 1;
                    observation.first_batches.extend(pod.stats.iter().flat_map(|stats| stats.batches.iter().copied()));
                }
                Some(_) if now - pod.at < STALE => observation.unheard += 1,
                None if now - pod.at < STALE && !told_now => observation.unheard += 1,
                _ => observation.silent += 1,
            }
        }
        observation
    }

    /// Makes a decision the shown one if it tells something new; whether it did.
    fn show(&mut self, decision: Decision, now: f64) -> bool {
        let Some(shown) = &self.decision else {
            // That nothing is known yet is not worth saying.
            self.decision = Some(decision).filter(|decision| decision.cause != Cause::Unknown);
            return self.decision.is_some();
        };
        if decision.says_the_same_as(shown) {
            self.differs_since = None;
            return false;
        }
        let since = *self.differs_since.get_or_insert(now);
        let due = decision.replicas != shown.replicas || now - since >= SETTLED;
        if due {
            self.decision = Some(decision);
            self.differs_since = None;
        }
        due
    }

    fn remember(&mut self, observation: &Observation, now: f64) {
        if !observation.pods.is_empty() {
            let mut latency = Histogram::default();
            observation.pods.iter().for_each(|pod| latency.merge(&pod.latency));
            self.recent.push_back((now, latency));
        }
        while self.recent.front().is_some_and(|(at, _)| now - at >= NUMBERS_WINDOW) {
            self.recent.pop_front();
        }
    }

    /// The numbers of all servers together over the last looks; `None` while none tells any.
    fn numbers(&self) -> Option<Numbers> {
        let mut latency = Histogram::default();
        self.recent.iter().for_each(|(_, looked)| latency.merge(looked));
        // Looks are a second apart; the first one covers a second as well.
        (!self.recent.is_empty()).then(|| Numbers::of(&latency, self.recent.len() as f64))
    }

    /// What is worth a write of the numbers in `status`.
    fn numbers_due(&self, now: f64) -> Change {
        let numbers = self.numbers();
        let (before, ago) = match &self.written {
            Some((before, at)) => (before.as_ref(), now - at),
            None => (None, f64::INFINITY),
        };
        match (&numbers, before) {
            (Some(numbers), before) if numbers.worth_writing(before, ago) => Change::Write(*numbers),
            (None, Some(_)) if ago >= NUMBERS_WINDOW => Change::Clear,
            _ => Change::Keep,
        }
    }
}

#[cfg(test)]
mod tests;
