//! Pods that were taken away: evicted, preempted, turned away by their node, or on a node that does not answer.

use k8s_openapi::{api::core::v1::PodCondition, jiff::Timestamp};

use super::{Problem, Subject, words, workload};
use crate::api::conditions::reason;

/// Seconds for which the end of a pod explains why fewer servers answer than there should.
const RECENT: f64 = 600.0;

const CHAIN: [fn(&Subject<'_>) -> Option<Problem>; 5] =
    [evicted, preempted, taken_from_lost_node, turned_away, stopped_by_node];

/// What ended a pod, if it was not long ago.
pub(super) fn of_pod(subject: &Subject<'_>) -> Option<Problem> {
    let ended = ended_at(subject)?;
    let age = subject.sight.now.duration_since(ended).as_secs_f64();
    if age > RECENT { None } else { CHAIN.iter().find_map(|look| look(subject)) }
}

fn ended_at(subject: &Subject<'_>) -> Option<Timestamp> {
    let disrupted = disruption(subject).and_then(|condition| condition.last_transition_time.as_ref());
    let deleted = subject.pod.metadata.deletion_timestamp.as_ref();
    let state = subject.server.and_then(|server| server.state.as_ref()?.terminated.as_ref());
    let finished = state.and_then(|ended| ended.finished_at.as_ref());
    disrupted.or(deleted).or(finished).or(subject.status.start_time.as_ref()).map(|time| time.0)
}

fn disruption<'a>(subject: &Subject<'a>) -> Option<&'a PodCondition> {
    let mut conditions = subject.status.conditions.iter().flatten();
    conditions.find(|condition| condition.type_ == "DisruptionTarget" && condition.status == "True")
}

fn disrupted_by(subject: &Subject<'_>, who: &str) -> bool {
    disruption(subject).is_some_and(|condition| condition.reason.as_deref() == Some(who))
}

fn node<'a>(subject: &Subject<'a>) -> &'a str {
    subject.pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or("its node")
}

/// By the kubelet, for want of disk or memory.
fn evicted(subject: &Subject<'_>) -> Option<Problem> {
    if subject.status.reason.as_deref() != Some("Evicted") {
        return None;
    }
    let why = subject.status.message.as_deref().unwrap_or("no further message");
    let advice = if why.contains("memory") {
        "Raise spec.server.resources.requests.memory to what the model needs, or free memory on the node"
    } else {
        "Serve a smaller model, or free disk on the node"
    };
    let message = format!("pod {} was evicted from {}: {}. {advice}", subject.name, node(subject), words::plain(why));
    Some(workload(reason::EVICTED, message))
}

fn preempted(subject: &Subject<'_>) -> Option<Problem> {
    if !disrupted_by(subject, "PreemptionByScheduler") && subject.status.reason.as_deref() != Some("Preempting") {
        return None;
    }
    let message = format!(
        "pod {} had to leave {} for a pod of higher priority. Add nodes, or give the model a higher priority",
        subject.name,
        node(subject)
    );
    Some(workload(reason::PREEMPTED, message))
}

fn taken_from_lost_node(subject: &Subject<'_>) -> Option<Problem> {
    disrupted_by(subject, "DeletionByTaintManager").then(|| lost(subject))
}

/// A node that does not answer: its pods are set to not ready from afar, while their containers still say they are.
pub(super) fn node_lost(subject: &Subject<'_>) -> Option<Problem> {
    let mut conditions = subject.status.conditions.iter().flatten();
    conditions.find(|condition| condition.type_ == "Ready" && condition.status != "True")?;
    Some(lost(subject))
}

fn lost(subject: &Subject<'_>) -> Problem {
    let message = format!(
        "pod {} cannot be reached, as {} does not answer. Its place is filled on another node when it does not come back; \
         look at the node",
        subject.name,
        node(subject)
    );
    workload(reason::NODE_LOST, message)
}

/// The kubelet did not take the pod that the scheduler gave it.
fn turned_away(subject: &Subject<'_>) -> Option<Problem> {
    let status = subject.status;
    let why = status.reason.as_deref().filter(|_| status.phase.as_deref() == Some("Failed"))?;
    let words = words::plain(status.message.as_deref().unwrap_or("no further message"));
    let message = format!("pod {} was turned away by {}: {why}: {words}", subject.name, node(subject));
    Some(workload(reason::UNSCHEDULABLE, message))
}

/// The kubelet restarts a server whatever it exits with, so one that ended for good was ended by the kubelet. It forgets why
/// it did so when the server leaves with exit code 0 as it is told to (Kubernetes 1.36): no reason, no Event.
fn stopped_by_node(subject: &Subject<'_>) -> Option<Problem> {
    let succeeded = subject.status.phase.as_deref() == Some("Succeeded");
    if !succeeded || subject.pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let message = format!(
        "pod {name} was evicted from {node}: its kubelet stopped it and did not say why, mostly for want of disk or memory or \
         because the node is shut down. Look at kubectl describe node {node} and at the kubelet's log",
        name = subject.name,
        node = node(subject)
    );
    Some(workload(reason::EVICTED, message))
}
