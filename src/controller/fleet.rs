//! What is remembered of every model between looks: its servers' counters, the brain's memory, the last decision.
//!
//! All of it can be lost: a new operator begins with the number of servers that `status` tells and looks again.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ortolan_protocol::{histogram::Histogram, stats::Stats};

use crate::{
    api::{
        ModelDeploymentStatus,
        validated::{DesiredModel, ScalingGoal},
    },
    observe::{models::Subject, seen::PodFacts, window},
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
/// Seconds without requests after which a model counts as calm; longer than scale-in looks back.
const CALM: f64 = 90.0;
/// Seconds for which what is no request (a start, a silence, a rollout) is news.
const NEWS: f64 = 60.0;
/// Cold starts that are remembered.
const COLD_STARTS: usize = 10;

/// All models, by the UID of their object.
#[derive(Clone, Default)]
pub struct Fleet {
    /// Boxed, as a table has room for more than it holds.
    models: Arc<Mutex<HashMap<String, Box<ModelMemory>>>>,
}

/// One model.
#[derive(Default)]
struct ModelMemory {
    /// By the UID of the pod.
    pods: HashMap<Box<str>, PodMemory>,
    /// Seconds that the last pods took to become ready.
    cold_starts: VecDeque<f64>,
    brain: Option<Memory>,
    /// The decision that `status` shows.
    decision: Option<Decision>,
    /// Since when decisions tell something else than the shown one.
    differs_since: Option<f64>,
    /// What each of the last looks brought.
    recent: VecDeque<Recent>,
    /// What `status` was given last, and when.
    written: Option<(Option<Numbers>, f64)>,
    /// What was written, until the cache holds something newer than what it was written over.
    reported: Option<Box<Reported>>,
    /// When a status was written last.
    reported_at: Option<f64>,
    /// When there were requests last.
    busy_at: Option<f64>,
    /// Since when something else than requests is going on.
    restless_since: Option<f64>,
}

/// A status that was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Reported {
    /// The versions of the object that are older: the one that the cache held, and those that were made since.
    pub over: Vec<String>,
    /// The version that this made.
    pub made: Option<String>,
    /// What was written.
    pub status: ModelDeploymentStatus,
}

impl Reported {
    fn is_newer_than(&self, version: &str) -> bool {
        self.over.iter().any(|over| over == version)
    }
}

/// What was answered between two looks.
struct Recent {
    at: f64,
    /// The time between the two; less where only some of the servers were asked, as if they had been asked for less long.
    seconds: f64,
    latency: Histogram,
}

#[derive(Default)]
struct PodMemory {
    stats: Option<Box<Stats>>,
    /// When the server told its numbers last.
    at: f64,
    /// What it did up to then.
    window: Option<PodWindow>,
    /// The numbers are the first of this process, so that they make no difference yet.
    first: bool,
    /// Whether the pod was ready at the last look.
    ready: bool,
    /// What became of the last look.
    last: Last,
    /// The pod was seen before it was ready for the first time.
    starting: bool,
}

impl PodMemory {
    fn has_loaded(&self) -> bool {
        self.stats.as_ref().is_some_and(|stats| stats.phase.is_loaded())
    }
}

/// What became of the last look at a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Last {
    #[default]
    NotAsked,
    Silent,
    Told,
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
    /// The digest of what the server of each pod has loaded, by the UID of the pod.
    pub digests: HashMap<String, String>,
    /// The digest of what the server of each pod has read and not loaded yet: it may be no model.
    pub read: HashMap<String, String>,
}

/// What one look at a model led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Looked {
    /// A decision, numbers or a digest that a reconcile is to carry out or write.
    pub due: bool,
    /// Something is going on, so that the next look should come soon.
    pub lively: bool,
}

/// One look at a model's pods.
pub struct Look {
    /// Pods that are not on their way out.
    pub pods: Vec<PodLook>,
    /// Servers that there are to be but that have no pod yet.
    pub missing: u32,
    /// A rollout is under way.
    pub rolling_out: bool,
}

/// One pod in a look.
pub struct PodLook {
    /// The pod.
    pub pod: Arc<PodFacts>,
    /// What it said.
    pub answer: Answer,
}

/// What a server said when it was asked for its numbers.
pub enum Answer {
    /// It was not asked: it is one of many.
    NotAsked,
    /// Nothing.
    Silence,
    /// Its numbers.
    Told(Box<Stats>),
}

impl Fleet {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Box<ModelMemory>>> {
        // A panic while the lock was held leaves numbers behind that are looked at anew a second later.
        self.models.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what one look at a model's pods brought and decides. `now`: seconds on a clock that only goes forward.
    pub fn look(&self, subject: &Subject, mut look: Look, now: f64) -> Looked {
        let mut models = self.lock();
        if !models.contains_key(&subject.uid) {
            models.insert(subject.uid.clone(), Box::default());
        }
        let Some(memory) = models.get_mut(&subject.uid) else { return Looked { due: false, lively: false } };
        memory.take_in_pods(&look.pods);
        let new_digest = memory.take_in(&mut look.pods, now);
        let observation = memory.observation(&look, now);
        memory.remember(&look, &observation, now);
        let mut due = new_digest | (memory.numbers_due(now) != Change::Keep);
        if let ScalingGoal::Latency { min, max, quantile, target, batch_delay } = subject.scaling {
            let config = scale::Config { min, max, quantile, target, batch_delay };
            let seed = || Memory::seeded(subject.scaling.clamp(subject.previous.unwrap_or(min)), now);
            let brain = memory.brain.take().unwrap_or_else(seed);
            let (decision, brain) = scale::decide(&config, &observation, brain, now);
            memory.brain = Some(brain);
            due |= memory.show(decision, now);
        } else {
            memory.brain = None;
            due |= memory.decision.take().is_some();
        }
        let lively = memory.is_lively(&observation, due, now);
        if !lively {
            memory.shrink();
        }
        Looked { due, lively }
    }

    /// What is known of a model; `previous`: how many servers `status` says there should be.
    pub fn view(&self, model: &DesiredModel, previous: Option<u32>, now: f64) -> View {
        let models = self.lock();
        let memory = models.get(&model.uid);
        let decided = memory.and_then(|memory| memory.decision.as_ref()).map(|decision| decision.replicas);
        let desired = model.scaling.clamp(decided.or(previous).unwrap_or_else(|| model.scaling.initial()));
        let Some(memory) = memory else { return View { desired, ..View::default() } };
        let told = memory.pods.iter().filter_map(|(uid, pod)| Some((uid.to_string(), pod.stats.as_ref()?)));
        let (loaded, loading): (Vec<_>, Vec<_>) = told.partition(|(_, stats)| stats.phase.is_loaded());
        let digests = |told: Vec<(String, &Box<Stats>)>| {
            told.into_iter().filter_map(|(uid, stats)| Some((uid, stats.digest.clone()?))).collect()
        };
        View {
            desired,
            decision: memory.decision.clone(),
            numbers: memory.numbers_due(now),
            digests: digests(loaded),
            read: digests(loading),
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

    /// A status was written while the cache held the version `cached`, and made the version `made`.
    pub fn reported(&self, uid: &str, (cached, made): (&str, Option<String>), status: ModelDeploymentStatus, now: f64) {
        let mut models = self.lock();
        let memory = models.entry(uid.to_owned()).or_default();
        memory.reported_at = Some(now);
        // Several may be written before the cache shows the first of them.
        let before = memory.reported.take().filter(|before| before.is_newer_than(cached));
        let mut over = before.map_or_else(Vec::new, |before| [before.over, Vec::from_iter(before.made)].concat());
        over.push(cached.to_owned());
        memory.reported = Some(Box::new(Reported { over, made, status }));
    }

    /// What was written, when the cache, which holds the version `cached`, does not hold it yet; forgotten when it does.
    pub fn reported_over(&self, uid: &str, cached: &str) -> Option<Reported> {
        let mut models = self.lock();
        let reported = &mut models.get_mut(uid)?.reported;
        reported.take_if(|reported| !reported.is_newer_than(cached));
        reported.as_deref().cloned()
    }

    /// How many seconds ago a status was written, if this process wrote one.
    pub fn reported_ago(&self, uid: &str, now: f64) -> Option<f64> {
        Some(now - self.lock().get(uid)?.reported_at?)
    }

    /// Forgets what was decided from a `status` that turned out to be old.
    pub fn forget_decision(&self, uid: &str) {
        if let Some(memory) = self.lock().get_mut(uid) {
            (memory.brain, memory.decision, memory.differs_since) = (None, None, None);
        }
    }

    /// Those of a model's pods that have not told what they have loaded yet.
    pub fn unknown<'a>(&self, uid: &str, pods: &'a [Arc<PodFacts>]) -> HashSet<&'a str> {
        let models = self.lock();
        let memory = models.get(uid);
        let told = |pod: &str| memory.is_some_and(|memory| memory.pods.get(pod).is_some_and(PodMemory::has_loaded));
        pods.iter().map(|pod| &*pod.uid).filter(|pod| !told(pod)).collect()
    }

    /// Whether a pod said nothing the last time it was asked.
    pub fn is_silent(&self, uid: &str, pod: &str) -> bool {
        self.lock().get(uid).is_some_and(|memory| memory.pods.get(pod).is_some_and(|pod| pod.last == Last::Silent))
    }

    /// Forgets models that are gone.
    pub fn retain(&self, known: impl Fn(&str) -> bool) {
        self.lock().retain(|uid, _| known(uid));
    }
}

impl ModelMemory {
    /// Takes in what servers told; whether a digest is among it that was not known.
    fn take_in(&mut self, pods: &mut [PodLook], now: f64) -> bool {
        let mut new_digest = false;
        for PodLook { pod, answer } in pods {
            let Some(memory) = self.pods.get_mut(&*pod.uid) else { continue };
            memory.last = match answer {
                Answer::NotAsked => Last::NotAsked,
                Answer::Silence => Last::Silent,
                Answer::Told(_) => Last::Told,
            };
            let Answer::Told(mut stats) = std::mem::replace(answer, Answer::Silence) else { continue };
            let before = memory.stats.as_ref();
            let known =
                |before: &Stats| (&before.digest, before.phase.is_loaded()) == (&stats.digest, stats.phase.is_loaded());
            new_digest |= stats.digest.is_some() && !before.is_some_and(|before| known(before));
            memory.first = before.is_none_or(|before| before.instance != stats.instance);
            memory.window = before.and_then(|before| window::between(before, &stats));
            // Nobody looks at these again, and there are many servers.
            (stats.model, stats.revision, stats.queue_wait) = (String::new(), None, Histogram::default());
            memory.stats = Some(stats);
            memory.at = now;
        }
        new_digest
    }

    /// Follows pods from their start to their end.
    fn take_in_pods(&mut self, alive: &[PodLook]) {
        self.pods.retain(|uid, _| alive.iter().any(|look| *look.pod.uid == **uid));
        for PodLook { pod, .. } in alive {
            let known = self.pods.contains_key(&*pod.uid);
            let memory = self.pods.entry(pod.uid.clone()).or_default();
            if pod.ready && memory.starting {
                self.cold_starts.extend(pod.cold_start.map(|seconds| seconds.min(LONGEST_COLD_START)));
                memory.starting = false;
            }
            // Ready once, never again starting: a pod that falters has no cold start.
            memory.starting |= !pod.ready && !known;
            memory.ready = pod.ready;
        }
        while self.cold_starts.len() > COLD_STARTS {
            self.cold_starts.pop_front();
        }
    }

    fn observation(&self, look: &Look, now: f64) -> Observation {
        let mut observation = Observation {
            starting: look.missing,
            cold_start: self.cold_starts.iter().copied().reduce(f64::max),
            rolling_out: look.rolling_out,
            ..Observation::default()
        };
        for pod in look.pods.iter().filter_map(|look| self.pods.get(&*look.pod.uid)) {
            let told_now = pod.stats.is_some() && (now - pod.at).abs() < f64::EPSILON;
            match &pod.window {
                _ if !pod.ready => observation.starting += 1,
                _ if pod.last == Last::NotAsked => observation.unheard += 1,
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

    /// Whether something is going on: requests, now or lately; or something else, as long as it is news.
    fn is_lively(&mut self, observation: &Observation, due: bool, now: f64) -> bool {
        if observation.pods.iter().any(|pod| pod.requests_admitted > 0 || pod.queued_rows > 0) {
            self.busy_at = Some(now);
        }
        let first = self.pods.values().any(|pod| pod.ready && pod.last == Last::Told && pod.window.is_none());
        let restless = due
            || first
            || observation.starting > 0
            || observation.silent > 0
            || observation.rolling_out
            || self.differs_since.is_some();
        self.restless_since = restless.then(|| self.restless_since.unwrap_or(now));
        let busy = self.busy_at.is_some_and(|at| now - at < CALM);
        busy || self.restless_since.is_some_and(|since| now - since < NEWS)
    }

    /// Gives back what a calm model, which is looked at rarely, does not need.
    fn shrink(&mut self) {
        self.recent.shrink_to_fit();
        self.cold_starts.shrink_to_fit();
        self.pods.shrink_to_fit();
        self.brain.iter_mut().for_each(Memory::shrink);
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

    fn remember(&mut self, look: &Look, observation: &Observation, now: f64) {
        if !observation.pods.is_empty() {
            let mut latency = Histogram::default();
            observation.pods.iter().for_each(|pod| latency.merge(&pod.latency));
            let told = observation.pods.len() as f64;
            let last = |look: &PodLook| self.pods.get(&*look.pod.uid).map(|pod| pod.last);
            let not_asked = look.pods.iter().filter(|look| last(look) == Some(Last::NotAsked));
            let longest = observation.pods.iter().map(|pod| pod.seconds).fold(0.0, f64::max);
            let seconds = longest * told / (told + not_asked.count() as f64);
            self.recent.push_back(Recent { at: now, seconds, latency });
        }
        while self.recent.front().is_some_and(|recent| now - recent.at >= NUMBERS_WINDOW) {
            self.recent.pop_front();
        }
    }

    /// The numbers of all servers together over the last looks; `None` while none tells any.
    fn numbers(&self) -> Option<Numbers> {
        let mut latency = Histogram::default();
        self.recent.iter().for_each(|recent| latency.merge(&recent.latency));
        let seconds = self.recent.iter().map(|recent| recent.seconds).sum();
        (!self.recent.is_empty()).then(|| Numbers::of(&latency, seconds))
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
