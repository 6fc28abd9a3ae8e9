//! The looks at the model servers: read `/stats`, decide, and wake the reconciles that have to act.
//!
//! Every model has its own time for its next look, so that ten thousand of them spread over the second and a server
//! that does not answer holds up nobody else. A model with requests, or with news, is looked at every second. The
//! others are, too, while they are few; when they are many they share a number of reads a second, so that what rests
//! costs the same however much of it there is.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, future::join_all, stream::FuturesUnordered};
use kube::{Resource, runtime::reflector::Store};
use tokio::sync::Semaphore;

use super::{
    Context,
    fleet::{Answer, Look, PodLook},
};
use crate::observe::{
    models::{Subject, Watched},
    scrape::Scraper,
    seen::{self, PodFacts},
    stores::Wake,
};

/// The time between two glances at whose look is due.
const GLANCE: Duration = Duration::from_millis(100);
/// Seconds between two looks through all models for new ones and for those that are gone.
const CENSUS: f64 = 0.5;
/// Seconds between two looks at a lively model, and the least between two at a calm one.
const SHORTEST: f64 = 1.0;
/// The most seconds between two looks at a calm model.
const LONGEST: f64 = 15.0;
/// Reads a second that calm models share.
const CALM_READS: f64 = 1000.0;
/// Reads a second that lively models share.
const LIVELY_READS: f64 = 3000.0;
/// Servers of a model that are asked in one look.
const SAMPLE: usize = 16;
/// Servers that are read at once.
const AT_ONCE: usize = 64;
/// Silent servers that are asked again at once: each may take its whole time, and holds up no other.
const SILENT_AT_ONCE: usize = 32;
/// Connections that are kept from look to look; each takes some 20 KB.
const KEPT: usize = 500;

/// Looks for as long as it is polled.
pub async fn run(context: Arc<Context>, models: Store<Watched>, scraper: Scraper, wake: Wake) {
    let mut interval = tokio::time::interval(GLANCE);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let looker = Looker {
        context: &context,
        scraper,
        wake,
        prompt: Semaphore::new(AT_ONCE),
        silent: Semaphore::new(SILENT_AT_ONCE),
    };
    let mut agenda = Agenda::default();
    let mut under_way = FuturesUnordered::new();
    let mut census = f64::NEG_INFINITY;
    loop {
        tokio::select! {
            _ = interval.tick() => {
                let now = context.clock();
                if now - census >= CENSUS {
                    census = now;
                    agenda.follow(&models.state(), now);
                    context.fleet.retain(|uid| agenda.knows(uid));
                    context.rest.retain(|uid| agenda.knows(uid));
                }
                for (model, keep) in agenda.due(now) {
                    under_way.push(looker.look(model, keep));
                }
                context.health.beat();
            }
            Some(ended) = under_way.next() => agenda.looked(&ended, context.clock()),
        }
    }
}

/// When which model is looked at next.
#[derive(Default)]
struct Agenda {
    /// By the UID of the model.
    entries: HashMap<Arc<str>, Entry>,
    /// Whose look is due when. What the entries do not say, too, is of models that are gone or came anew.
    order: BinaryHeap<Reverse<(At, Arc<str>)>>,
    /// Servers that are read in a look at each of the calm models, and of the lively ones.
    calm_reads: usize,
    lively_reads: usize,
}

/// A time in seconds. The bits of numbers that are not negative are in their order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct At(u64);

impl At {
    fn new(seconds: f64) -> Self {
        Self(seconds.max(0.0).to_bits())
    }
}

struct Entry {
    /// As the last census saw it.
    model: Arc<Watched>,
    /// When its look is due; `None` while one is under way.
    next: Option<At>,
    lively: bool,
    reads: usize,
    /// The last census that saw it.
    seen: f64,
}

/// A look that ended.
struct Ended {
    uid: String,
    lively: bool,
    /// How many servers were asked.
    reads: usize,
}

impl Agenda {
    /// A census: takes in new models and what changed of the others. Those that are not known any more are forgotten.
    fn follow(&mut self, known: &[Arc<Watched>], now: f64) {
        for model in known {
            let Some(subject) = model.subject() else { continue };
            if let Some(entry) = self.entries.get_mut(&*subject.uid) {
                (entry.model, entry.seen) = (model.clone(), now);
                continue;
            }
            // New ones, and all after a start, are spread over the time that they will be apart.
            let next = now + phase(&subject.uid) * pace(known.len(), CALM_READS).min(LONGEST) - GLANCE.as_secs_f64();
            let (next, uid) = (At::new(next), Arc::<str>::from(subject.uid.as_str()));
            self.order.push(Reverse((next, uid.clone())));
            let entry = Entry { model: model.clone(), next: Some(next), lively: true, reads: 0, seen: now };
            self.entries.insert(uid, entry);
        }
        let (mut calm, mut lively) = (0, 0);
        self.entries.retain(|_, entry| {
            let known = entry.seen >= now;
            *(if entry.lively { &mut lively } else { &mut calm }) += if known { entry.reads } else { 0 };
            known
        });
        (self.calm_reads, self.lively_reads) = (calm, lively);
    }

    /// The models whose look is due, and whether the connections to their servers are kept until the next.
    fn due(&mut self, now: f64) -> Vec<(Arc<Watched>, bool)> {
        let mut due = Vec::new();
        while let Some(Reverse((at, _))) = self.order.peek()
            && *at <= At::new(now)
        {
            let Some(Reverse((at, uid))) = self.order.pop() else { break };
            let keep = self.entries.get(&uid).is_some_and(|entry| self.keeps(entry));
            if let Some(entry) = self.entries.get_mut(&uid).filter(|entry| entry.next == Some(at)) {
                entry.next = None;
                due.push((entry.model.clone(), keep));
            }
        }
        due
    }

    /// Whether it is a model that is looked at.
    fn knows(&self, uid: &str) -> bool {
        self.entries.contains_key(uid)
    }

    /// Whether the connections to a model's servers are kept until the next look: those of lively models first.
    fn keeps(&self, entry: &Entry) -> bool {
        self.lively_reads + if entry.lively { 0 } else { self.calm_reads } <= KEPT
    }

    /// Seconds between two looks at a model.
    fn interval(&self, lively: bool) -> f64 {
        if lively {
            pace(self.lively_reads, LIVELY_READS)
        } else {
            pace(self.calm_reads, CALM_READS).min(LONGEST).max(pace(self.lively_reads, LIVELY_READS))
        }
    }

    fn looked(&mut self, ended: &Ended, now: f64) {
        let next = At::new(now + self.interval(ended.lively));
        let Some((uid, _)) = self.entries.get_key_value(&*ended.uid) else { return };
        self.order.push(Reverse((next, uid.clone())));
        if let Some(entry) = self.entries.get_mut(&*ended.uid) {
            (entry.next, entry.lively, entry.reads) = (Some(next), ended.lively, ended.reads);
        }
    }
}

/// Seconds in which `reads` are done at so many a second.
fn pace(reads: usize, a_second: f64) -> f64 {
    (reads as f64 / a_second).max(SHORTEST)
}

/// A number between 0 and 1 that is always the same for the same text.
pub(super) fn phase(text: &str) -> f64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish() as f64 / u64::MAX as f64
}

/// What the looks share.
struct Looker<'a> {
    context: &'a Context,
    scraper: Scraper,
    wake: Wake,
    /// Permits to ask servers that answered the last time, or were never asked.
    prompt: Semaphore,
    /// Permits to ask the others.
    silent: Semaphore,
}

impl Looker<'_> {
    /// One look at a model. `keep`: its connections will be used again soon.
    async fn look(&self, model: Arc<Watched>, keep: bool) -> Ended {
        let Some(subject) = model.subject() else {
            return Ended { uid: String::new(), lively: false, reads: 0 };
        };
        let started = Instant::now();
        let (namespace, name) = (model.meta().namespace.as_deref(), model.meta().name.as_deref());
        let (namespace, name) = (namespace.unwrap_or_default(), name.unwrap_or_default());
        let (mut look, asked) = self.prepare(subject, &seen::pods_key(namespace, name));
        let reads = asked.iter().map(|index| self.ask(subject, &look.pods[*index].pod, keep));
        let answers = join_all(reads).await;
        let reads = answers.len();
        for (index, answer) in asked.into_iter().zip(answers) {
            look.pods[index].answer = answer;
        }
        let looked = self.context.fleet.look(subject, look, self.context.clock());
        if looked.due {
            self.wake.model(namespace, name);
        }
        self.context.metrics.looked(started.elapsed().as_secs_f64());
        Ended { uid: subject.uid.clone(), lively: looked.lively, reads }
    }

    /// A look before anybody was asked, and the indexes of the pods that are to be.
    fn prepare(&self, subject: &Subject, pods_key: &str) -> (Look, Vec<usize>) {
        let stores = &self.context.stores;
        let mut deployments = stores.deployments.facts(&subject.uid);
        deployments.retain(|deployment| subject.hopeless.as_deref() != Some(&deployment.revision));
        let wanted: u32 = deployments.iter().map(|deployment| deployment.replicas).sum();
        let ours = |pod: &PodFacts| deployments.iter().any(|deployment| deployment.revision == pod.revision);
        let mut pods = stores.pods.facts(pods_key);
        pods.retain(|pod| pod.alive && ours(pod));
        let missing = wanted.saturating_sub(u32::try_from(pods.len()).unwrap_or(u32::MAX));
        let asked = self.sample(subject, &pods);
        let pods = pods.into_iter().map(|pod| PodLook { pod, answer: Answer::NotAsked }).collect();
        (Look { pods, missing, rolling_out: deployments.len() > 1 }, asked)
    }

    /// The indexes of the pods that are asked: always the same ones, so that there are differences between looks, and
    /// whoever has told nothing yet.
    fn sample(&self, subject: &Subject, pods: &[Arc<PodFacts>]) -> Vec<usize> {
        let mut listening: Vec<_> = (0..pods.len()).filter(|index| pods[*index].address.is_some()).collect();
        if listening.len() <= SAMPLE {
            return listening;
        }
        listening.sort_by(|a, b| phase(&pods[*a].uid).total_cmp(&phase(&pods[*b].uid)));
        let unknown = self.context.fleet.unknown(&subject.uid, pods);
        let (first, rest) = listening.split_at(SAMPLE);
        let new = rest.iter().filter(|index| unknown.contains(&*pods[**index].uid)).take(SAMPLE);
        first.iter().chain(new).copied().collect()
    }

    async fn ask(&self, subject: &Subject, pod: &PodFacts, keep: bool) -> Answer {
        let Some(address) = pod.address else { return Answer::NotAsked };
        let lane = if self.context.fleet.is_silent(&subject.uid, &pod.uid) { &self.silent } else { &self.prompt };
        // Never closed: an error cannot come.
        let _permit = lane.acquire().await;
        let started = Instant::now();
        match self.scraper.stats(address, keep).await {
            Ok(stats) => {
                self.context.metrics.scraped("ok", started.elapsed().as_secs_f64());
                Answer::Told(Box::new(stats))
            }
            Err(error) => {
                // A server that starts does not listen yet; that is no outcome worth counting.
                if pod.ready {
                    self.context.metrics.scraped(error.kind(), started.elapsed().as_secs_f64());
                    tracing::debug!(pod = &*pod.uid, %error, "a server does not tell its numbers");
                }
                Answer::Silence
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn models(number: usize) -> Vec<Arc<Watched>> {
        let model = |number: usize| {
            let name = format!("m{number}");
            Arc::new(
                serde_json::from_value(json!({
                    "apiVersion": "ortolan.dev/v1alpha1", "kind": "ModelDeployment",
                    "metadata": {"name": name, "namespace": "ml", "uid": name},
                    "spec": {"model": {"uri": "file:///m.onnx"}},
                }))
                .unwrap(),
            )
        };
        (0..number).map(model).collect()
    }

    /// Looks that come due in each of so many seconds, when every look ends at once and asks one server.
    fn looks(agenda: &mut Agenda, known: &[Arc<Watched>], seconds: std::ops::Range<u32>, lively: bool) -> Vec<usize> {
        let mut looks = Vec::new();
        for second in seconds {
            looks.push(0);
            for tenth in 0..10 {
                let now = f64::from(second) + f64::from(tenth) / 10.0;
                agenda.follow(known, now);
                let due = agenda.due(now);
                *looks.last_mut().unwrap() += due.len();
                for (model, _) in due {
                    agenda.looked(&Ended { uid: model.subject().unwrap().uid.clone(), lively, reads: 1 }, now);
                }
            }
        }
        looks
    }

    #[test]
    fn few_models_are_looked_at_every_second_also_when_they_are_calm() {
        let (mut agenda, known) = (Agenda::default(), models(20));
        let looks = looks(&mut agenda, &known, 0..10, false);
        assert!(looks[1..].iter().all(|looks| (18..=22).contains(looks)), "{looks:?}");
    }

    #[test]
    fn many_calm_models_share_a_thousand_reads_a_second_and_are_spread_over_the_time() {
        let (mut agenda, known) = (Agenda::default(), models(4000));
        let looks = looks(&mut agenda, &known, 0..20, false);
        assert!(looks[8..].iter().all(|looks| (700..1300).contains(looks)), "{looks:?}");
    }

    #[test]
    fn a_lively_model_is_looked_at_every_second_among_many_calm_ones() {
        let (mut agenda, known) = (Agenda::default(), models(3000));
        looks(&mut agenda, &known, 0..8, false);
        let mut of_lively = 0;
        for tenth in 80..180u32 {
            let now = f64::from(tenth) / 10.0;
            agenda.follow(&known, now);
            for (model, _) in agenda.due(now) {
                let uid = model.subject().unwrap().uid.clone();
                of_lively += u32::from(uid == "m7");
                agenda.looked(&Ended { lively: uid == "m7", uid, reads: 1 }, now);
            }
        }
        assert!((6..=10).contains(&of_lively), "{of_lively}");
    }

    #[test]
    fn a_model_that_is_gone_is_forgotten() {
        let (mut agenda, known) = (Agenda::default(), models(2));
        agenda.follow(&known, 0.0);
        agenda.follow(&known[..1], 1.0);
        assert_eq!(agenda.due(5.0).len(), 1);
        assert!(agenda.knows("m0") && !agenda.knows("m1"));
    }

    #[test]
    fn no_second_look_begins_while_one_is_under_way() {
        let (mut agenda, known) = (Agenda::default(), models(1));
        agenda.follow(&known, 0.0);
        assert_eq!((0..50).map(|second| agenda.due(f64::from(second)).len()).sum::<usize>(), 1);
    }
}
