//! The last verb of a reconcile: what is said in the status and in Events about what was seen, decided and done.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::runtime::controller::Action;

use super::{
    Context, LOOK_AT_PROBLEM, RETRY,
    error::ReconcileError,
    stages::{Applied, Decided, Observed, previous_desired},
};
use crate::{
    api::{
        ModelDeployment, ModelDeploymentStatus,
        validated::{DesiredModel, InvalidSpec},
    },
    observe::stuck,
    status::{self, Facts, events},
};

/// Writes the status, also after a failure, and publishes what changed.
pub(super) async fn report(
    model: &DesiredModel,
    object: &ModelDeployment,
    observed: &Observed,
    (decided, applied): (Decided, Applied),
    context: &Context,
) -> Result<Action, ReconcileError> {
    let Observed { previous, seen, view, facts } = observed;
    let status = status::derive(&Facts {
        model,
        previous,
        rollout: &decided.rollout,
        revisions: facts,
        desired: view.desired,
        decision: view.decision.as_ref(),
        numbers: view.numbers,
        resolving: decided.resolving,
        // It was applied just now, or is there already.
        routed: seen.service.is_some() || applied.error.is_none(),
        apply_error: applied.error.as_ref().map(ToString::to_string),
        needs_a_person: applied.error.as_ref().is_some_and(ReconcileError::needs_a_person),
        now: Timestamp::now(),
    });
    let held = write(object, previous, &status, context).await?;
    if held.is_none() {
        context.fleet.written(&model.uid, view.numbers, context.clock());
    }
    if let Some(before) = previous_desired(previous).filter(|before| view.decision.is_some() && *before != view.desired)
    {
        context.metrics.decided(view.desired > before);
    }
    for note in &applied.notes {
        context.writer.publish(object, note).await;
    }
    let starting = stuck::look_again(seen.pods.iter().map(AsRef::as_ref), Timestamp::now());
    // Time alone makes a problem a stall, and Events tell of a probe.
    let troubled = facts.values().any(|facts| facts.problem.is_some() || facts.ready < facts.replicas);
    let soon = starting.or(decided.resolving.then_some(stuck::LOOK_AGAIN));
    let next = soon.unwrap_or(if troubled { LOOK_AT_PROBLEM } else { context.resync(&model.name) });
    applied.error.map_or(Ok(Action::requeue(held.map_or(next, |held| held.min(next)))), Err)
}

pub(super) async fn report_invalid(
    object: &ModelDeployment,
    context: &Context,
    problem: &InvalidSpec,
) -> Result<Action, ReconcileError> {
    let previous = object.status.clone().unwrap_or_default();
    let generation = object.metadata.generation;
    let status = status::invalid(generation, &previous, &problem.to_string(), Timestamp::now());
    write(object, &previous, &status, context).await?;
    Ok(Action::requeue(RETRY))
}

/// Writes a status that differs from the one before; after what time it should be tried again, where nothing was written
/// because it tells little new so soon after the last one.
async fn write(
    object: &ModelDeployment,
    previous: &ModelDeploymentStatus,
    status: &ModelDeploymentStatus,
    context: &Context,
) -> Result<Option<Duration>, ReconcileError> {
    if status != previous {
        let ago = object.metadata.uid.as_deref().and_then(|uid| context.fleet.reported_ago(uid, context.clock()));
        let held = status::hold_back(previous, status, ago);
        if held.is_some() {
            return Ok(held);
        }
        let over = version_of(object, context);
        let made = context.writer.status(object, over.as_deref(), status).await?;
        if let (Some(uid), Some(version)) = (&object.metadata.uid, &object.metadata.resource_version) {
            context.fleet.reported(uid, (version, made), status.clone(), context.clock());
        }
        for note in events::between(previous, status) {
            context.writer.publish(object, &note).await;
        }
    }
    Ok(None)
}

/// The version of the object as it stands, as far as it is known.
fn version_of(object: &ModelDeployment, context: &Context) -> Option<String> {
    let (uid, version) = (object.metadata.uid.as_deref()?, object.metadata.resource_version.as_deref()?);
    Some(
        context
            .fleet
            .reported_over(uid, version)
            .and_then(|reported| reported.made)
            .unwrap_or_else(|| version.to_owned()),
    )
}
