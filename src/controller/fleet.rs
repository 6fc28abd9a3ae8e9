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
    api::validated::{DesiredModel, ScalingGoal},
    observe::{seen, window},
    scale::{self, Decision, Memory, Observation, PodWindow},
    status::numbers::Numbers,
};

/// A server whose last numbers are older than this, in seconds, is silent.
const STALE: f64 = 3.0;

/// Numbers in `status` are about this many seconds.
const NUMBERS_WINDOW: f64 = 10.0;

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
    brain: Option<Memory>,
    /// The last decision that told something new.
    decision: Option<Decision>,
    /// When each of the last looks was, and what was answered since the one before.
    recent: VecDeque<(f64, Histogram)>,
    written: Option<(Numbers, f64)>,
}

struct PodMemory {
    stats: Stats,
    at: f64,
    window: Option<PodWindow>,
}

/// What a reconcile needs to know of the looks so far.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// How many servers there should be.
    pub desired: u32,
    /// The last decision that told something new.
    pub decision: Option<Decision>,
    /// The present numbers, when they are worth a write.
    pub numbers: Option<Numbers>,
    /// The digest that the servers of each pod told, by the UID of the pod.
    pub digests: HashMap<String, String>,
}

/// What one look at a model led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Nothing that a reconcile would act on.
    Quiet,
    /// A decision or numbers that are to be carried out or written.
    Due,
}

impl Fleet {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, ModelMemory>> {
        // A panic while the lock was held leaves numbers behind that are looked at anew a second later.
        self.models.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what one look at a model's pods brought and decides. `now`: seconds on a clock that only goes forward.
    pub fn look(&self, model: &DesiredModel, previous: Option<u32>, mut look: PodLook<'_>, now: f64) -> Look {
        let mut models = self.lock();
        let memory = models.entry(model.uid.clone()).or_default();
        memory.take_in(std::mem::take(&mut look.stats), now);
        let alive: HashSet<_> = look.pods.iter().filter_map(|pod| pod.uid()).collect();
        memory.pods.retain(|uid, _| alive.contains(uid));
        let observation = memory.observation(&look, now);
        memory.remember(&observation, now);
        let mut due = memory.numbers_due(now);
        if let ScalingGoal::Latency { min, max, quantile, target } = model.scaling {
            let config = scale::Config { min, max, quantile, target };
            let seed = || Memory::seeded(model.scaling.clamp(previous.unwrap_or(min)), now);
            let brain = memory.brain.take().unwrap_or_else(seed);
            let (decision, brain) = scale::decide(&config, &observation, brain, now);
            memory.brain = Some(brain);
            if memory.decision.as_ref().is_none_or(|shown| !decision.says_the_same_as(shown)) {
                memory.decision = Some(decision);
                due = true;
            }
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
        View {
            desired,
            decision: memory.decision.clone(),
            numbers: memory.numbers().filter(|_| memory.numbers_due(now)),
            digests: memory
                .pods
                .iter()
                .filter_map(|(uid, pod)| Some((uid.clone(), pod.stats.digest.clone()?)))
                .collect(),
        }
    }

    /// Numbers were written to a model's status.
    pub fn written(&self, uid: &str, numbers: Numbers, now: f64) {
        if let Some(memory) = self.lock().get_mut(uid) {
            memory.written = Some((numbers, now));
        }
    }

    /// Forgets models that are gone.
    pub fn retain(&self, uids: &HashSet<String>) {
        self.lock().retain(|uid, _| uids.contains(uid));
    }
}

/// One look at a model's pods.
pub struct PodLook<'a> {
    /// Pods that are not on their way out.
    pub pods: &'a [Arc<Pod>],
    /// What the servers told, by the UID of the pod; silent ones are absent.
    pub stats: Vec<(String, Stats)>,
    /// Servers that there are to be but that have no pod yet.
    pub missing: u32,
    /// More than one revision has servers.
    pub rolling_out: bool,
}

impl ModelMemory {
    fn take_in(&mut self, told: Vec<(String, Stats)>, now: f64) {
        for (uid, stats) in told {
            let window = self.pods.get(&uid).and_then(|before| window::between(&before.stats, &stats, now - before.at));
            self.pods.insert(uid, PodMemory { stats, at: now, window });
        }
    }

    fn observation(&self, look: &PodLook<'_>, now: f64) -> Observation {
        let mut observation = Observation {
            starting: look.missing,
            cold_start: seen::cold_start(look.pods.iter().map(AsRef::as_ref)),
            rolling_out: look.rolling_out,
            ..Observation::default()
        };
        for pod in look.pods {
            let told = pod.uid().and_then(|uid| self.pods.get(&uid)).filter(|told| now - told.at < STALE);
            match told.and_then(|told| told.window.clone()) {
                _ if !seen::is_ready(pod) => observation.starting += 1,
                Some(window) => observation.pods.push(window),
                // The first look at a new server has no difference yet; that is not silence.
                None if told.is_some() => {}
                None => observation.silent += 1,
            }
        }
        observation
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

    fn numbers_due(&self, now: f64) -> bool {
        let written = self.written.as_ref();
        let ago = written.map_or(f64::INFINITY, |(_, at)| now - at);
        self.numbers().is_some_and(|numbers| numbers.worth_writing(written.map(|(numbers, _)| numbers), ago))
    }
}
