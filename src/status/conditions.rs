//! The conditions: each a small function from facts to `(status, reason, message)`, put together in one place.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

use super::{
    Facts, RevisionFacts,
    problems::{self, Stage},
};
use crate::{
    api::{
        ModelDeploymentStatus,
        conditions::{
            ARTIFACT_RESOLVED, MODEL_LOADED, READY, RECONCILING, ROUTE_READY, SCALING_ACTIVE, SCALING_LIMITED, STALLED,
            WORKLOAD_AVAILABLE, reason,
        },
        validated::ScalingGoal,
    },
    scale::{Cause, Limit},
};

/// What a condition says.
struct Verdict {
    status: &'static str,
    reason: String,
    message: String,
}

fn verdict(status: &'static str, reason: &str, message: impl Into<String>) -> Verdict {
    Verdict { status, reason: reason.to_owned(), message: message.into() }
}

/// All conditions of a model that could be parsed.
pub(super) fn derive(facts: &Facts<'_>) -> Vec<Condition> {
    let stalled = stalled(facts);
    let reconciling = if stalled.is_none() { reconciling(facts) } else { None };
    let verdicts = [
        (READY, Some(ready(facts))),
        (ARTIFACT_RESOLVED, Some(artifact_resolved(facts))),
        (MODEL_LOADED, Some(model_loaded(facts))),
        (WORKLOAD_AVAILABLE, Some(workload_available(facts))),
        (ROUTE_READY, Some(route_ready(facts))),
        (SCALING_ACTIVE, Some(scaling_active(facts))),
        (RECONCILING, reconciling),
        (STALLED, stalled),
        (SCALING_LIMITED, scaling_limited(facts)),
    ];
    let stamp = Stamp { generation: Some(facts.model.generation), now: facts.now };
    verdicts.into_iter().filter_map(|(type_, verdict)| Some(stamp.condition(facts.previous, type_, verdict?))).collect()
}

/// The conditions of a model that could not be parsed: the old ones, but `Ready` and `Stalled` say why.
pub(super) fn invalid(
    generation: Option<i64>,
    previous: &ModelDeploymentStatus,
    problem: &str,
    now: Timestamp,
) -> Vec<Condition> {
    let stamp = Stamp { generation, now };
    let mut conditions: Vec<_> = previous
        .conditions
        .iter()
        .filter(|condition| ![READY, STALLED, RECONCILING].contains(&condition.type_.as_str()))
        .cloned()
        .collect();
    conditions.push(stamp.condition(previous, READY, verdict("False", reason::INVALID_SPEC, problem)));
    conditions.push(stamp.condition(previous, STALLED, verdict("True", reason::INVALID_SPEC, problem)));
    conditions
}

/// When and for which generation conditions are written.
struct Stamp {
    generation: Option<i64>,
    now: Timestamp,
}

impl Stamp {
    fn condition(&self, previous: &ModelDeploymentStatus, type_: &str, verdict: Verdict) -> Condition {
        let Verdict { status, reason, message } = verdict;
        let since = previous.conditions.iter().find(|condition| condition.type_ == type_ && condition.status == status);
        Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason,
            message,
            observed_generation: self.generation,
            last_transition_time: since.map_or_else(|| Time(self.now), |since| since.last_transition_time.clone()),
        }
    }
}

fn ready(facts: &Facts<'_>) -> Verdict {
    let (ready, desired) = (facts.ready(), facts.desired);
    match (ready, facts.problem()) {
        (0, Some(problem)) => verdict("False", problem.reason, problem.message),
        (0, None) => match &facts.apply_error {
            Some(error) => not_applied("False", error),
            None => verdict("False", reason::STARTING, format!("no server answers yet; {desired} are starting")),
        },
        (_, _) if !facts.routed => verdict("False", reason::PENDING, "the Service does not exist yet"),
        (_, Some(problem)) if facts.rollout.candidate.is_some() => {
            let candidate = facts.rollout.candidate.as_deref().unwrap_or_default();
            let stable = facts.rollout.stable.as_deref().unwrap_or_default();
            verdict(
                "True",
                reason::SERVING,
                format!("revision {stable} serves; revision {candidate} does not start: {}", problem.message),
            )
        }
        _ => verdict("True", reason::SERVING, "requests are answered"),
    }
}

fn artifact_resolved(facts: &Facts<'_>) -> Verdict {
    match facts.target() {
        Some((revision, target)) if target.other_digest.is_some() => {
            let (digest, other) = (target.digest.unwrap_or_default(), target.other_digest.unwrap_or_default());
            let message = format!(
                "servers of revision {revision} have different models, sha256:{digest} and sha256:{other}: the bytes at the source changed. Set spec.model.sha256 to the one that is meant"
            );
            verdict("False", reason::DIGEST_CHANGED, message)
        }
        // What a server that was bound to the revision's digest said of other bytes.
        Some((_, RevisionFacts { problem: Some(problem), .. })) if problem.reason == reason::DIGEST_CHANGED => {
            verdict("False", reason::DIGEST_CHANGED, problem.message)
        }
        Some((_, target)) if target.digest.is_some() => {
            let digest = target.digest.unwrap_or_default();
            verdict("True", reason::RESOLVED, format!("the model is sha256:{digest}"))
        }
        Some((revision, target)) => match (target.problem, target.read_digest) {
            (Some(problem), _) if problem.stage == Stage::Artifact => verdict("False", problem.reason, problem.message),
            (_, Some(digest)) => verdict("True", reason::RESOLVED, format!("the model is sha256:{digest}")),
            _ if target.ready > 0 => {
                let message = format!("revision {revision} serves and has not told the digest of its model yet");
                verdict("Unknown", reason::RESOLVING, message)
            }
            _ => {
                let message = format!("no server of revision {revision} has fetched the model yet");
                verdict("Unknown", reason::PENDING, message)
            }
        },
        None => verdict("Unknown", reason::PENDING, "there is no revision yet"),
    }
}

fn model_loaded(facts: &Facts<'_>) -> Verdict {
    match facts.target() {
        Some((revision, target)) if target.ready > 0 => {
            verdict("True", reason::LOADED, format!("revision {revision} is loaded and warmed up"))
        }
        Some((revision, target)) => match target.problem.filter(|problem| problem.stage == Stage::Load) {
            Some(problem) => verdict("False", problem.reason, problem.message),
            None => verdict(
                "Unknown",
                reason::PENDING,
                format!("no server of revision {revision} has loaded the model yet"),
            ),
        },
        None => verdict("Unknown", reason::PENDING, "there is no revision yet"),
    }
}

fn workload_available(facts: &Facts<'_>) -> Verdict {
    let (ready, desired) = (facts.ready(), facts.desired);
    let message = format!("{ready} of {desired} servers answer");
    if ready >= desired {
        return verdict("True", reason::AVAILABLE, message);
    }
    let problem = facts.problem().filter(|problem| problem.stage == Stage::Workload);
    match (problem, ready) {
        (Some(problem), _) => verdict("False", problem.reason, format!("{message}: {}", problem.message)),
        (None, 0) => verdict("False", reason::UNAVAILABLE, message),
        (None, _) => verdict("False", reason::DEGRADED, message),
    }
}

fn route_ready(facts: &Facts<'_>) -> Verdict {
    match (facts.routed, &facts.apply_error) {
        (true, _) => verdict("True", reason::SERVICE_READY, "the Service leads to the servers that are ready"),
        (false, Some(error)) => not_applied("False", error),
        (false, None) => verdict("False", reason::PENDING, "the Service does not exist yet"),
    }
}

fn scaling_active(facts: &Facts<'_>) -> Verdict {
    match (&facts.model.scaling, facts.decision) {
        (ScalingGoal::Fixed(replicas), _) => verdict(
            "False",
            reason::FIXED,
            format!("the number of servers is fixed at {replicas}; spec.scaling.latency would let it follow the load"),
        ),
        (ScalingGoal::Latency { .. }, Some(decision)) if matches!(decision.cause, Cause::Silent | Cause::Unknown) => {
            verdict("Unknown", reason::NO_OBSERVATIONS, decision.reason.clone())
        }
        (ScalingGoal::Latency { .. }, None) => as_before(facts, SCALING_ACTIVE)
            .filter(|before| before.reason != reason::FIXED)
            .unwrap_or_else(|| verdict("Unknown", reason::NO_OBSERVATIONS, "nothing was observed yet")),
        (ScalingGoal::Latency { .. }, Some(_)) => {
            verdict("True", reason::FOLLOWING_LATENCY, "the number of servers follows the observed load and latency")
        }
    }
}

/// The spec cannot be carried out without a person, or was not within its time.
fn stalled(facts: &Facts<'_>) -> Option<Verdict> {
    if let Some(error) = facts.apply_error.as_ref().filter(|_| facts.needs_a_person) {
        return Some(not_applied("True", error));
    }
    let (revision, target) = facts.target()?;
    if let Some(problem) = target.problem.as_ref().filter(|problem| problem.permanent && target.ready == 0) {
        return Some(verdict("True", problem.reason, format!("revision {revision}: {}", problem.message)));
    }
    if facts.ready() >= facts.desired && facts.rollout.candidate.is_none() {
        return None;
    }
    let problem = facts.problem()?;
    (target.late || is_overdue(facts)).then(|| {
        let deadline = facts.model.progress_deadline.as_secs();
        let message = format!("revision {revision} made no progress for {deadline} s: {}", problem.message);
        verdict("True", reason::PROGRESS_DEADLINE, message)
    })
}

/// Whether a revision that was complete has had a problem for longer than its progress deadline; a Deployment watches the
/// time only until it is complete for the first time.
fn is_overdue(facts: &Facts<'_>) -> bool {
    let before = |type_| facts.previous.conditions.iter().find(|condition| condition.type_ == type_);
    let was_late = before(STALLED).is_some_and(|stalled| stalled.reason == reason::PROGRESS_DEADLINE);
    let deadline = facts.model.progress_deadline.as_secs_f64();
    let since = before(RECONCILING).map(|reconciling| reconciling.last_transition_time.0);
    facts.rollout.candidate.is_none()
        && (was_late || since.is_some_and(|since| facts.now.duration_since(since).as_secs_f64() >= deadline))
}

/// The spec is being carried out. Servers that are added, taken away or replaced once it was are not this, unless
/// something keeps them from serving: a model that follows its load would seem to change for ever.
fn reconciling(facts: &Facts<'_>) -> Option<Verdict> {
    if let Some(error) = &facts.apply_error {
        return Some(not_applied("True", error));
    }
    let target = facts.target().map(|(revision, _)| revision);
    let other = facts.revisions.keys().find(|revision| Some(revision.as_str()) != target);
    let (ready, replicas, desired) = (facts.ready(), facts.replicas(), facts.desired);
    let problem = facts.problem();
    let (reason, text) = match (&facts.rollout.stable, &facts.rollout.candidate, other) {
        (Some(stable), Some(candidate), _) => {
            (reason::ROLLING_OUT, format!("revision {candidate} is replacing {stable}"))
        }
        (_, _, Some(other)) => (reason::ROLLING_OUT, format!("the servers of revision {other} are being taken away")),
        _ if (ready < desired || replicas > desired) && (problem.is_some() || !carried_out_before(facts)) => {
            (reason::STARTING, format!("{ready} of {desired} servers answer"))
        }
        // Whoever waits for the end of this finds the digest in the status.
        _ if facts.resolving && ready > 0 && !carried_out_before(facts) => {
            (reason::RESOLVING, "the digest of the model is being read".to_owned())
        }
        _ => return None,
    };
    Some(match problem {
        Some(problem) => verdict("True", problem.reason, format!("{text}: {}", problem.message)),
        None => verdict("True", reason, text),
    })
}

/// A write that the API server refused, by the class of the refusal.
fn not_applied(status: &'static str, error: &str) -> Verdict {
    let reason =
        Some(problems::refusal(error).0).filter(|_| error.contains("is forbidden: ")).unwrap_or(reason::APPLY_FAILED);
    verdict(status, reason, error)
}

/// This spec was carried out at some time: since then, only what is around it has changed.
fn carried_out_before(facts: &Facts<'_>) -> bool {
    let holds = |type_| facts.previous.conditions.iter().any(|before| before.type_ == type_ && before.status == "True");
    facts.previous.observed_generation == Some(facts.model.generation) && !holds(RECONCILING) && !holds(STALLED)
}

/// What a condition said before: an operator that has just started knows no better than the one before it.
fn as_before(facts: &Facts<'_>, type_: &str) -> Option<Verdict> {
    let before = facts.previous.conditions.iter().find(|condition| condition.type_ == type_)?;
    let status = ["True", "False", "Unknown"].into_iter().find(|status| *status == before.status)?;
    Some(verdict(status, &before.reason, before.message.clone()))
}

fn scaling_limited(facts: &Facts<'_>) -> Option<Verdict> {
    let decision = match (facts.decision, &facts.model.scaling) {
        (Some(decision), _) => decision,
        (None, ScalingGoal::Latency { .. }) => return as_before(facts, SCALING_LIMITED),
        (None, ScalingGoal::Fixed(_)) => return None,
    };
    let reason = match decision.limited.as_ref()? {
        Limit::MaxReplicas { .. } => reason::MAX_REPLICAS,
        Limit::TargetOutOfReach { .. } => reason::TARGET_OUT_OF_REACH,
    };
    Some(verdict("True", reason, decision.reason.clone()))
}
