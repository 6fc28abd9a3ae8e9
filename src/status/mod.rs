//! `(model, what is seen, what was decided, what was applied) → status`.
//!
//! Pure. Conditions follow kstatus: `Reconciling` and `Stalled` are there only while they hold; `observedGeneration`
//! is written only when everything that this generation asks for was applied, or can never be; a transition time moves
//! only when the status it is about does.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod conditions;
pub mod events;
pub mod numbers;
pub mod problems;

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

use crate::{
    api::{
        ModelDeploymentStatus, RevisionStatus, ScalingStatus, VariantStatus, names,
        validated::{DesiredModel, ScalingGoal},
    },
    rollout,
    scale::Decision,
};
use problems::Problem;

/// Seconds between two writes of a status of which the second tells only details.
const MERGED: f64 = 2.0;

/// What is seen of one revision.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RevisionFacts {
    /// Servers that exist and are not on their way out.
    pub replicas: u32,
    /// Servers that answer.
    pub ready: u32,
    /// The digest of the model's bytes, as hex, once a server has loaded them: what the revision is bound to.
    pub digest: Option<String>,
    /// Another digest that some server has loaded: the bytes at the source changed.
    pub other_digest: Option<String>,
    /// The digest of what a server has read and not loaded, or not yet; the revision is not bound to it.
    pub read_digest: Option<String>,
    /// What keeps its servers from serving.
    pub problem: Option<Problem>,
    /// Its progress deadline has passed.
    pub late: bool,
}

/// What a status is made from.
#[derive(Debug)]
pub struct Facts<'a> {
    /// The parsed object.
    pub model: &'a DesiredModel,
    /// The status as it stands.
    pub previous: &'a ModelDeploymentStatus,
    /// What happens to the revisions.
    pub rollout: &'a rollout::Plan,
    /// What is seen of each revision that exists.
    pub revisions: &'a BTreeMap<String, RevisionFacts>,
    /// How many servers there should be.
    pub desired: u32,
    /// The last decision, where latency decides and something was decided.
    pub decision: Option<&'a Decision>,
    /// What is to become of the numbers in `previous`.
    pub numbers: numbers::Change,
    /// The wanted revision is not bound to a digest yet: its first server is to tell what it found.
    pub resolving: bool,
    /// The Service exists.
    pub routed: bool,
    /// Why the children could not be applied.
    pub apply_error: Option<String>,
    /// They never will be, unless a person does something.
    pub needs_a_person: bool,
    /// The time of this look.
    pub now: Timestamp,
}

impl Facts<'_> {
    /// The revision that `spec` asks for: on its way, or there already.
    fn target(&self) -> Option<(&str, RevisionFacts)> {
        let revision = self.rollout.candidate.as_deref().or(self.rollout.stable.as_deref())?;
        Some((revision, self.revisions.get(revision).cloned().unwrap_or_default()))
    }

    /// What keeps the revision that `spec` asks for from serving; while servers of the other one are missing, what keeps
    /// those.
    fn problem(&self) -> Option<Problem> {
        let (target, facts) = self.target()?;
        let others = || self.revisions.iter().filter(|(revision, _)| *revision != target).map(|(_, facts)| facts);
        facts.problem.or_else(|| {
            let missing = self.ready() < self.desired;
            others().filter(|_| missing).find_map(|facts| facts.problem.clone())
        })
    }

    fn ready(&self) -> u32 {
        self.revisions.values().map(|revision| revision.ready).sum()
    }

    fn replicas(&self) -> u32 {
        self.revisions.values().map(|revision| revision.replicas).sum()
    }
}

/// The status of a model that could be parsed.
pub fn derive(facts: &Facts<'_>) -> ModelDeploymentStatus {
    let Facts { model, previous, rollout, .. } = facts;
    let revision = |name: &Option<String>| {
        let revision = name.clone()?;
        let told = facts.revisions.get(&revision).and_then(|facts| facts.digest.as_deref());
        let digest = told.or_else(|| previous.digest_of(&revision)).map(|hex| format!("sha256:{hex}"));
        Some(RevisionStatus { revision, digest })
    };
    let applied = facts.apply_error.is_none() || facts.needs_a_person;
    ModelDeploymentStatus {
        observed_generation: if applied { Some(model.generation) } else { previous.observed_generation },
        conditions: conditions::derive(facts),
        url: Some(url(facts)),
        replicas: facts.replicas(),
        selector: Some(names::selector(&model.name)),
        stable: revision(&rollout.stable),
        candidate: revision(&rollout.candidate),
        variants: variants(facts),
        scaling: Some(scaling(facts)),
    }
}

/// Where clients reach the model. What comes with another address (TLS, or no TLS any more) counts as soon as a server answers
/// there; those of before answer until the last of them has left.
fn url(facts: &Facts<'_>) -> String {
    let answers = facts.target().is_some_and(|(_, target)| target.ready > 0);
    let said = facts.previous.url.clone().filter(|_| !answers);
    said.unwrap_or_else(|| crate::render::url(facts.model))
}

/// The status of a model that could not be parsed: everything stays but the conditions. Nothing else will be said about
/// this generation, so it counts as observed; whoever waits for it would wait for ever otherwise.
pub fn invalid(
    generation: Option<i64>,
    previous: &ModelDeploymentStatus,
    problem: &str,
    now: Timestamp,
) -> ModelDeploymentStatus {
    let conditions = conditions::invalid(generation, previous, problem, now);
    ModelDeploymentStatus { observed_generation: generation, conditions, ..previous.clone() }
}

/// For how long a status is held back, so that it is written together with what comes next: one that tells only details
/// (numbers, how many pods there are, words) so soon after the last one. A model that starts would otherwise write one status for each
/// step of each pod. `ago`: seconds since the last write, where it is known.
pub fn hold_back(
    previous: &ModelDeploymentStatus,
    status: &ModelDeploymentStatus,
    ago: Option<f64>,
) -> Option<Duration> {
    let left = MERGED - ago?;
    (left > 0.0 && !is_news(previous, status)).then(|| Duration::from_secs_f64(left))
}

/// Whether people and programs wait for it: another generation, revision or number of servers, or a condition that came, went or turned.
fn is_news(previous: &ModelDeploymentStatus, status: &ModelDeploymentStatus) -> bool {
    let essence = |status: &ModelDeploymentStatus| {
        let conditions: BTreeMap<_, _> =
            status.conditions.iter().map(|condition| (condition.type_.clone(), condition.status.clone())).collect();
        let desired = status.scaling.as_ref().map(|scaling| scaling.desired);
        (status.observed_generation, status.stable.clone(), status.candidate.clone(), desired, conditions)
    };
    essence(previous) != essence(status)
}

fn variants(facts: &Facts<'_>) -> Vec<VariantStatus> {
    let Some(serving) = facts.rollout.stable.as_ref().or(facts.rollout.candidate.as_ref()) else { return Vec::new() };
    let written = facts.previous.variants.first();
    let (latency, throughput) = match &facts.numbers {
        numbers::Change::Write(numbers) => (numbers.latency(), Some(numbers.throughput())),
        numbers::Change::Clear => (None, None),
        numbers::Change::Keep => (
            written.and_then(|variant| variant.latency.clone()),
            written.and_then(|variant| variant.throughput.clone()),
        ),
    };
    vec![VariantStatus {
        name: names::DEFAULT_VARIANT.to_owned(),
        revision: serving.clone(),
        replicas: facts.replicas(),
        ready: facts.ready(),
        latency,
        throughput,
    }]
}

fn scaling(facts: &Facts<'_>) -> ScalingStatus {
    let since = facts.previous.scaling.as_ref().filter(|previous| previous.desired == facts.desired);
    let reason = match (facts.decision, &facts.model.scaling) {
        (Some(decision), _) => decision.reason.clone(),
        (None, ScalingGoal::Fixed(_)) => "there is no latency target: the number is fixed".to_owned(),
        // An operator that has just started knows no better than the one before it.
        (None, ScalingGoal::Latency { .. }) => {
            since.map_or_else(|| "nothing was observed yet".to_owned(), |previous| previous.reason.clone())
        }
    };
    let at = since.map_or_else(|| Time(facts.now), |previous| previous.at.clone());
    ScalingStatus { desired: facts.desired, reason, at }
}

#[cfg(test)]
mod tests;
