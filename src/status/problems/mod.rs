//! What keeps a revision's servers from serving: the root cause first, not the last symptom.
//!
//! Pure: reads pods, Events about them and the Deployment, and says one [`Problem`] in words that tell what to do. Each
//! file is a room of small functions `(pod) → Option<Problem>`; [`CHAIN`] is their order, from what is closest to the
//! cause to what is only seen from afar.
//!
//! Words do not change while the problem does not: no restart counts, no UIDs, and among equal pods the one that was named
//! before.

mod container;
mod deployment;
mod ended;
mod probes;
mod scheduling;
mod server;
mod volumes;
mod words;

use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, Event, Pod, PodStatus},
    },
    apimachinery::pkg::apis::meta::v1::Condition,
    jiff::Timestamp,
};

use crate::api::{conditions::reason, names};

pub use deployment::is_late;
pub(super) use deployment::refusal;
pub use server::digest;

/// What keeps a server from serving.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The condition's reason.
    pub reason: &'static str,
    /// The pod, what happened and what to do.
    pub message: String,
    /// Where it happened.
    pub stage: Stage,
    /// Nothing changes without a person.
    pub permanent: bool,
}

/// How far a server came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The model's bytes were not had.
    Artifact,
    /// The bytes could not be loaded.
    Load,
    /// The pod or its container could not be run.
    Workload,
}

/// What is seen of one revision.
#[derive(Clone, Copy, Debug)]
pub struct Sight<'a> {
    /// Its Deployment.
    pub deployment: Option<&'a Deployment>,
    /// Its pods that are not on their way out.
    pub pods: &'a [&'a Pod],
    /// Its pods that failed or are being deleted.
    pub ended: &'a [&'a Pod],
    /// Warnings about these pods and their claims.
    pub events: &'a [Event],
    /// The conditions as they stand.
    pub previous: &'a [Condition],
    /// The time of this look.
    pub now: Timestamp,
}

/// One pod, as the chains see it.
struct Subject<'a> {
    name: &'a str,
    pod: &'a Pod,
    status: &'a PodStatus,
    server: Option<&'a ContainerStatus>,
    sight: &'a Sight<'a>,
}

/// From what is closest to the cause to what is only seen from afar.
const CHAIN: [fn(&Subject<'_>) -> Option<Problem>; 13] = [
    server::gave_up,
    container::out_of_memory,
    probes::not_alive,
    container::crashed,
    container::image_unavailable,
    container::not_created,
    volumes::claim_missing,
    volumes::claim_unbound,
    scheduling::unschedulable,
    volumes::object_missing,
    volumes::not_mounted,
    container::stuck,
    probes::not_ready,
];

/// Of several pods with different problems the one that tells most: reasons of the same stage, the more telling first.
/// What is not in it comes last.
const TELLING: [&str; 16] = [
    reason::OUT_OF_MEMORY,
    reason::CRASH_LOOP,
    reason::NOT_ALIVE,
    reason::IMAGE_UNAVAILABLE,
    reason::CONFIG_MAP_NOT_FOUND,
    reason::SECRET_NOT_FOUND,
    reason::KEY_NOT_FOUND,
    reason::CLAIM_NOT_FOUND,
    reason::CLAIM_UNBOUND,
    reason::VOLUME_NOT_MOUNTED,
    reason::CONTAINER_NOT_CREATED,
    reason::NOT_READY,
    reason::EVICTED,
    reason::PREEMPTED,
    reason::UNSCHEDULABLE,
    reason::NODE_LOST,
];

/// Reasons of Events about what the kubelet makes for a pod before its containers.
const PREPARING: [&str; 5] =
    ["FailedMount", "FailedAttachVolume", "FailedMapVolume", "FailedCreatePodSandBox", "NetworkNotReady"];

/// The most telling problem of a revision: what a server itself said comes before what the kubelet says about it, that
/// before what became of pods that ended, and that before what the Deployment says. Why a pod had to leave its node comes
/// before that its successor finds none.
pub fn root_cause(sight: &Sight<'_>) -> Option<Problem> {
    let found = sight.pods.iter().filter_map(|pod| Some((*pod, of_pod(&Subject::of(pod, sight)?)?)));
    let present = most_telling(found, sight);
    let past = || {
        let ended = sight.ended.iter().filter_map(|pod| Some((*pod, ended::of_pod(&Subject::of(pod, sight)?)?)));
        most_telling(ended, sight)
    };
    match present {
        Some(homeless) if homeless.reason == reason::UNSCHEDULABLE => past().or(Some(homeless)),
        Some(problem) => Some(problem),
        None => past()
            .or_else(|| sight.deployment.and_then(deployment::refused))
            .or_else(|| sight.deployment.and_then(deployment::late)),
    }
}

fn of_pod(subject: &Subject<'_>) -> Option<Problem> {
    if subject.server.is_some_and(|server| server.ready) {
        return ended::node_lost(subject);
    }
    CHAIN.iter().find_map(|look| look(subject))
}

fn most_telling<'a>(found: impl Iterator<Item = (&'a Pod, Problem)>, sight: &Sight<'_>) -> Option<Problem> {
    let telling = |reason: &str| TELLING.iter().position(|told| *told == reason).unwrap_or(TELLING.len());
    found
        .min_by_key(|(pod, problem)| {
            let name = pod.metadata.name.clone().unwrap_or_default();
            let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
            let rank = (problem.stage, !problem.permanent, telling(problem.reason));
            (rank, !was_named(&name, sight.previous), created, name)
        })
        .map(|(pod, problem)| steady(problem, pod.metadata.name.as_deref().unwrap_or_default(), sight.previous))
}

/// Measured memory is another number after each restart: what was said of a pod stays while nothing else is new.
fn steady(mut problem: Problem, pod: &str, previous: &[Condition]) -> Problem {
    fn without_use(text: &str) -> Option<(&str, &str)> {
        let (before, after) = text.split_once(" MiB were used")?;
        Some((before.trim_end_matches(|c: char| c.is_ascii_digit()), after))
    }
    let said = previous
        .iter()
        .filter_map(|condition| Some(&condition.message[condition.message.find(&format!("pod {pod}"))?..]));
    if let Some(now) = without_use(&problem.message)
        && let Some(said) = said.into_iter().find(|said| without_use(said) == Some(now))
    {
        problem.message = said.to_owned();
    }
    problem
}

/// Whether a condition already tells of this pod.
fn was_named(pod: &str, previous: &[Condition]) -> bool {
    let ends_name = |rest: &str| !rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '-');
    let text = format!("pod {pod}");
    previous.iter().any(|condition| {
        condition.message.match_indices(&text).any(|(at, _)| ends_name(&condition.message[at + text.len()..]))
    })
}

impl<'a> Subject<'a> {
    fn of(pod: &'a Pod, sight: &'a Sight<'a>) -> Option<Self> {
        let status = pod.status.as_ref()?;
        let server = status.container_statuses.iter().flatten().find(|container| container.name == names::CONTAINER);
        Some(Self { name: pod.metadata.name.as_deref().unwrap_or_default(), pod, status, server, sight })
    }

    /// The pod and its container, as messages begin.
    fn container(&self) -> String {
        format!("pod {}, container {}", self.name, names::CONTAINER)
    }

    /// How the container ended last, if it did and is not ready since.
    fn ended(&self) -> Option<&'a ContainerStateTerminated> {
        let server = self.server?;
        let terminated = |state: &'a Option<ContainerState>| state.as_ref().and_then(|state| state.terminated.as_ref());
        terminated(&server.state).or_else(|| terminated(&server.last_state))
    }

    /// Whether the kubelet has made what a container needs, its volumes and its network: what it said of them before is over.
    fn is_prepared(&self) -> bool {
        let mut conditions = self.status.conditions.iter().flatten();
        if let Some(prepared) = conditions.find(|condition| condition.type_ == "PodReadyToStartContainers") {
            return prepared.status == "True";
        }
        let state = self.server.and_then(|server| server.state.as_ref());
        state.is_some_and(|state| state.running.is_some() || state.terminated.is_some())
    }

    /// What the kubelet says in Events of that reason, the latest first; what only says that it waited comes last. Nothing of what
    /// a pod needed before its containers, once it has it.
    fn said(&self, reason: &str) -> Vec<&'a str> {
        if PREPARING.contains(&reason) && self.is_prepared() {
            return Vec::new();
        }
        let uid = self.pod.metadata.uid.as_ref();
        let mut events: Vec<_> = self
            .sight
            .events
            .iter()
            .filter(|event| event.involved_object.uid.as_ref() == uid && event.reason.as_deref() == Some(reason))
            .filter_map(|event| Some((event.last_timestamp.as_ref().map(|time| time.0), event.message.as_deref()?)))
            .collect();
        let only_waited = |text: &str| text.contains("timed out waiting") || text.contains("deadline exceeded");
        events.sort_by_key(|(time, text)| (only_waited(text), std::cmp::Reverse(*time)));
        events.into_iter().map(|(_, text)| text).collect()
    }
}

/// A problem of the pod or its container that may pass.
fn workload(reason: &'static str, message: String) -> Problem {
    Problem { reason, message, stage: Stage::Workload, permanent: false }
}

#[cfg(test)]
mod tests;
