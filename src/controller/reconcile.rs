//! One reconcile: observe, decide, render, apply, report.

use std::{cmp::Ordering, collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::{
        apps::v1::{ControllerRevision, Deployment},
        core::v1::{ConfigMap, Service},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
    },
    jiff::{SignedDuration, Timestamp},
};
use kube::runtime::controller::Action;
use tracing::Instrument;

use super::{
    Context, Settings,
    error::ReconcileError,
    report::{report, report_invalid},
    stages::{Applied, Decided, Observed, Snapshots, new_snapshot, previous_desired},
};
use crate::{
    api::{ModelDeployment, ModelDeploymentStatus, validated::DesiredModel},
    cluster::writer::WriteError,
    observe::{
        fresh::{self, Fresh},
        seen::{self, Seen},
        stuck,
    },
    render::{self, Kinds},
    rollout::{self, Count},
    status::{
        RevisionFacts,
        problems::{self, Sight},
    },
    trace_span,
};

/// Revisions whose snapshot is kept although no server runs them.
const HISTORY: usize = 5;

/// How often a reconcile is tried past the caches, when others write at the same time; then the model rests.
const FRESH_ATTEMPTS: usize = 3;

/// A server that is ready for longer than this and has not told its digest will not tell it.
const MUTE: SignedDuration = SignedDuration::from_secs(30);

/// Brings the cluster one step closer to what `object` asks for, and says so in its status.
pub async fn reconcile(object: &ModelDeployment, context: &Context) -> Result<Action, ReconcileError> {
    let model = match DesiredModel::parse(object) {
        Ok(model) => model,
        Err(problem) => return report_invalid(object, context, &problem).await,
    };
    let cached = Seen::of(&model, &context.stores);
    match Box::pin(step(&model, object, (cached, Age::Cached), context)).await {
        Err(error) if error.is_behind() => {}
        result => return result,
    }
    // Nothing was taken away; once more, with what the API server says now. Others write, too, and may be faster.
    let mut result = Err(ReconcileError::Uncertain);
    for _ in 0..FRESH_ATTEMPTS {
        let Some(fresh) = fresh::read(&context.client, object).await? else { return Ok(Action::await_change()) };
        result = afresh(object, fresh, context).await;
        if !result.as_ref().is_err_and(ReconcileError::is_behind) {
            break;
        }
    }
    result
}

/// A reconcile with what was read past the caches. `cached`: the object as the cache has it.
async fn afresh(cached: &ModelDeployment, fresh: Fresh, context: &Context) -> Result<Action, ReconcileError> {
    let Fresh { object, seen } = fresh;
    let model = match DesiredModel::parse(&object) {
        Ok(model) => model,
        Err(problem) => return report_invalid(&object, context, &problem).await,
    };
    let desired = |status: Option<ModelDeploymentStatus>| status.as_ref().and_then(previous_desired);
    if desired(object.status.clone()) != desired(previous_of(cached, context)) {
        context.fleet.forget_decision(&model.uid);
    }
    Box::pin(step(&model, &object, (seen, Age::Fresh), context)).await
}

/// How old what is seen may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Age {
    /// From the watch caches, which may be behind.
    Cached,
    /// As new as this reconcile.
    Fresh,
}

/// The five verbs.
async fn step(
    model: &DesiredModel,
    object: &ModelDeployment,
    (seen, age): (Seen, Age),
    context: &Context,
) -> Result<Action, ReconcileError> {
    let observed = observe(model, object, seen, context).instrument(trace_span!("observe")).await;
    let decided = trace_span!("decide").in_scope(|| decide(model, &observed, context));
    if age == Age::Cached && is_uncertain(object, &observed, &decided, context).await? {
        return Err(ReconcileError::Uncertain);
    }
    let mut applied = match trace_span!("render").in_scope(|| render(model, &decided, &context.settings)) {
        Ok(children) => apply(model, &observed, &decided, children, context).instrument(trace_span!("apply")).await,
        Err(error) => Applied { error: Some(error), ..Applied::default() },
    };
    if age == Age::Cached && applied.error.as_ref().is_some_and(ReconcileError::is_behind) {
        // Nothing is said about it either: what is seen is not what is there.
        return Err(ReconcileError::Uncertain);
    }
    if let Some(error) = applied.error.take_if(|error| error.is_ending()) {
        return Err(error);
    }
    report(model, object, &observed, (decided, applied), context).instrument(trace_span!("report")).await
}

/// Whether this must not be done on a read that may be old: what takes servers, ports or snapshots away never is, nor what
/// gives an old revision servers back (the cache of pods may not know yet of the new ones for which it gave them up), and a
/// new revision is begun only for the object as it is now.
async fn is_uncertain(
    object: &ModelDeployment,
    observed: &Observed,
    decided: &Decided,
    context: &Context,
) -> Result<bool, ReconcileError> {
    let Decided { rollout, snapshots, forgotten, .. } = decided;
    let deployments = &observed.seen.deployments;
    let target = rollout.candidate.as_ref().or(rollout.stable.as_ref());
    let resizes = rollout.replicas.iter().any(|(revision, planned)| {
        let asked = deployments.get(revision).and_then(|deployment| deployment.spec.as_ref()?.replicas);
        asked.is_some_and(|asked| match i64::from(asked).cmp(&i64::from(*planned)) {
            Ordering::Greater => true,
            Ordering::Less => Some(revision) != target,
            Ordering::Equal => false,
        })
    });
    let removes = !rollout.retired.is_empty() || !forgotten.is_empty() || !snapshots.replaced.is_empty();
    let service = observed.seen.service.as_ref();
    let closes = service.is_some_and(|service| Kinds::of_service(service).has_more_than(decided.kinds));
    if resizes || removes || closes || useless_locks(observed, decided).next().is_some() {
        return Ok(true);
    }
    if rollout.replicas.keys().all(|revision| deployments.contains_key(revision)) {
        return Ok(false);
    }
    let now = fresh::object(&context.client, object).await?;
    Ok(now.is_none_or(|now| now.metadata.generation != object.metadata.generation))
}

/// The status as it stands: what was written last, while the cache still holds the one before it.
fn previous_of(object: &ModelDeployment, context: &Context) -> Option<ModelDeploymentStatus> {
    let (uid, version) = (object.metadata.uid.as_deref()?, object.metadata.resource_version.as_deref()?);
    context.fleet.reported_over(uid, version).map(|reported| reported.status).or_else(|| object.status.clone())
}

async fn observe(model: &DesiredModel, object: &ModelDeployment, seen: Seen, context: &Context) -> Observed {
    let events = stuck::warnings(&context.client, seen.pods.iter().map(AsRef::as_ref)).await;
    let previous = previous_of(object, context).unwrap_or_default();
    let view = context.fleet.view(model, previous_desired(&previous), context.clock());
    let facts = seen.deployments.iter().map(|(revision, deployment)| {
        let pods: Vec<_> = seen.pods_of(revision).map(AsRef::as_ref).collect();
        let ended: Vec<_> = seen.ended_of(revision).map(AsRef::as_ref).collect();
        let sight = Sight {
            deployment: Some(deployment),
            pods: &pods,
            ended: &ended,
            events: &events,
            previous: &previous.conditions,
            now: Timestamp::now(),
        };
        let mut told: Vec<_> = pods.iter().filter_map(|pod| view.digests.get(pod.metadata.uid.as_ref()?)).collect();
        told.sort();
        let mut read = pods.iter().filter_map(|pod| view.read.get(pod.metadata.uid.as_ref()?));
        let ready = pods.iter().filter(|pod| seen::is_ready(pod)).count();
        let given = given_digest(model, revision).filter(|_| ready > 0);
        let known = known_digest(&seen, &previous, revision).or(given);
        let digest = known.or_else(|| told.first().map(ToString::to_string));
        let other_digest = told.into_iter().find(|told| Some(*told) != digest.as_ref()).cloned();
        let facts = RevisionFacts {
            replicas: count(pods.len()),
            ready: count(ready),
            digest,
            other_digest,
            read_digest: problems::digest(&sight).or_else(|| read.next().cloned()),
            problem: problems::root_cause(&sight),
            late: problems::is_late(deployment),
        };
        (revision.clone(), facts)
    });
    Observed { facts: facts.collect(), previous, seen, view }
}

/// The digest, as hex, that a revision is known to have: its servers' lock says it, and else the status.
fn known_digest(seen: &Seen, previous: &ModelDeploymentStatus, revision: &str) -> Option<String> {
    let locked = seen.locks.get(revision).and_then(|lock| render::locked(lock));
    locked.or_else(|| previous.digest_of(revision)).map(str::to_owned)
}

/// The digest, as hex, that the user names for a revision: a server of it that is ready has checked it.
fn given_digest(model: &DesiredModel, revision: &str) -> Option<String> {
    model.revision.model.sha256.clone().filter(|_| model.revision.hash() == revision)
}

/// The digest, as hex, of a revision that exists or is to be.
fn digest(observed: &Observed, revision: &str) -> Option<String> {
    let Observed { facts, seen, previous, .. } = observed;
    facts.get(revision).and_then(|facts| facts.digest.clone()).or_else(|| known_digest(seen, previous, revision))
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn decide(model: &DesiredModel, observed: &Observed, context: &Context) -> Decided {
    let desired = model.revision.hash();
    let stable = observed.previous.stable.as_ref().map(|stable| stable.revision.as_str());
    let counts = observed.seen.deployments.iter().map(|(revision, deployment)| {
        let wanted =
            deployment.spec.as_ref().and_then(|spec| spec.replicas).and_then(|replicas| u32::try_from(replicas).ok());
        let ready = observed.facts.get(revision).map_or(0, |facts| facts.ready);
        (revision.clone(), Count { wanted: wanted.unwrap_or_default(), ready })
    });
    let resolving = is_resolving((&desired, model), observed, &context.settings);
    let most = if resolving { 1 } else { u32::MAX };
    let rollout = rollout::plan(stable, &desired, observed.view.desired, most, &counts.collect());
    let snapshots = Snapshots::of(&rollout, (&desired, model), &observed.seen, &context.settings);
    let locked = snapshots.readable.iter().filter(|(_, snapshot)| snapshot.is_locked());
    let digests = locked.filter_map(|(revision, _)| Some((revision.clone(), digest(observed, revision)?)));
    let mut unused: Vec<_> = observed
        .seen
        .revisions
        .iter()
        .filter(|(revision, _)| !rollout.replicas.contains_key(*revision))
        .map(|(_, stored)| stored)
        .collect();
    unused.sort_by_key(|stored| std::cmp::Reverse(stored.revision));
    Decided {
        forgotten: unused.into_iter().skip(HISTORY).cloned().collect(),
        digests: digests.collect(),
        resolving,
        kinds: Kinds::of(snapshots.readable.values(), observed.seen.servers()),
        next_number: observed.seen.revisions.values().map(|stored| stored.revision).max().unwrap_or_default() + 1,
        snapshots,
        rollout,
    }
}

/// Whether the wanted revision is bound to what its first server finds, and that is not known yet. Servers that are ready and
/// do not tell are not waited for: the model must not stay at one server because nobody can read its numbers.
fn is_resolving((desired, model): (&str, &DesiredModel), observed: &Observed, settings: &Settings) -> bool {
    let stored = observed.seen.revisions.get(desired);
    let snapshot = match stored {
        Some(stored) => render::snapshot_of(stored, settings.renderer),
        None => Some(new_snapshot(model, settings)),
    };
    let now = Timestamp::now();
    let mut ready = observed.seen.pods_of(desired).filter_map(|pod| seen::ready_since(pod));
    snapshot.is_some_and(|snapshot| snapshot.is_locked())
        && digest(observed, desired).is_none()
        && !ready.any(|since| now.duration_since(since) > MUTE)
}

/// The objects that there should be.
struct Children {
    revisions: BTreeMap<String, ControllerRevision>,
    deployments: BTreeMap<String, Deployment>,
    locks: BTreeMap<String, ConfigMap>,
    service: Service,
    budget: PodDisruptionBudget,
    /// Where the operator makes them.
    policy: Option<NetworkPolicy>,
}

fn render(model: &DesiredModel, decided: &Decided, settings: &Settings) -> Result<Children, ReconcileError> {
    let mut children = Children {
        revisions: BTreeMap::new(),
        deployments: BTreeMap::new(),
        locks: BTreeMap::new(),
        service: render::service(model, decided.kinds),
        budget: render::disruption_budget(model),
        policy: settings.network.as_ref().map(|network| render::network_policy(model, network)),
    };
    for (revision, digest) in &decided.digests {
        children.locks.insert(revision.clone(), render::lock(model, revision, digest));
    }
    for (revision, snapshot) in &decided.snapshots.readable {
        let replicas = decided.rollout.replicas.get(revision).copied().unwrap_or_default();
        children.deployments.insert(revision.clone(), render::deployment(model, revision, snapshot, replicas)?);
        let stored = render::controller_revision(model, revision, snapshot, decided.next_number);
        children.revisions.insert(revision.clone(), stored);
    }
    Ok(children)
}

/// Applies what differs, snapshots before what is rendered from them; stops at the first failure.
async fn apply(
    model: &DesiredModel,
    observed: &Observed,
    decided: &Decided,
    children: Children,
    context: &Context,
) -> Applied {
    let Children { revisions, deployments, locks, service, budget, policy } = children;
    let (seen, writer) = (&observed.seen, &context.writer);
    let mut applied = Applied::default();
    for stored in &decided.snapshots.replaced {
        if let Err(error) = writer.delete(stored.as_ref()).await {
            return Applied { error: Some(error.into()), ..applied };
        }
    }
    for (revision, mut stored) in revisions {
        let live = seen.revisions.get(&revision).map(AsRef::as_ref);
        // A snapshot keeps the number that it was made with.
        stored.revision = live.map_or(stored.revision, |live| live.revision);
        if !applied.take("the ControllerRevision", writer.apply(model, stored, live).await) {
            return applied;
        }
    }
    // Before the Deployments: a server that is started by this step is bound already.
    for (revision, lock) in locks {
        let live = seen.locks.get(&revision).map(AsRef::as_ref);
        if !applied.take("the ConfigMap", writer.apply(model, lock, live).await) {
            return applied;
        }
    }
    // Before the Deployments: no server runs without it.
    if let Some(policy) = policy {
        let live = seen.policy.as_ref().map(AsRef::as_ref);
        if !applied.take("the NetworkPolicy", writer.apply(model, policy, live).await) {
            return applied;
        }
    }
    let live = seen.service.as_ref().map(AsRef::as_ref);
    if !applied.take("the Service", writer.apply(model, service, live).await) {
        return applied;
    }
    let live = seen.budget.as_ref().map(AsRef::as_ref);
    if !applied.take("the PodDisruptionBudget", writer.apply(model, budget, live).await) {
        return applied;
    }
    for (revision, deployment) in deployments {
        let live = seen.deployments.get(&revision).map(AsRef::as_ref);
        if !applied.take("the Deployment", writer.apply(model, deployment, live).await) {
            return applied;
        }
    }
    for revision in &decided.snapshots.newer {
        let (live, replicas) = (&seen.deployments[revision], decided.rollout.replicas[revision]);
        if !applied.take("the Deployment", writer.resize(live, replicas).await) {
            return applied;
        }
    }
    applied.error = prune(observed, decided, context).await.err().map(ReconcileError::from);
    applied
}

/// Removes what has no part in the plan any more.
async fn prune(observed: &Observed, decided: &Decided, context: &Context) -> Result<(), WriteError> {
    for revision in &decided.rollout.retired {
        if let Some(deployment) = observed.seen.deployments.get(revision) {
            context.writer.delete(deployment.as_ref()).await?;
        }
    }
    if let (Some(policy), None) = (&observed.seen.policy, &context.settings.network) {
        context.writer.delete(policy.as_ref()).await?;
    }
    for revision in &decided.forgotten {
        context.writer.delete(revision.as_ref()).await?;
    }
    for lock in useless_locks(observed, decided) {
        context.writer.delete(lock).await?;
    }
    Ok(())
}

/// A lock goes with its revision's snapshot.
fn useless_locks<'a>(observed: &'a Observed, decided: &'a Decided) -> impl Iterator<Item = &'a ConfigMap> {
    let kept = |revision: &String| {
        let stored = observed.seen.revisions.get(revision);
        decided.snapshots.readable.contains_key(revision)
            || stored.is_some_and(|stored| !decided.forgotten.iter().any(|forgotten| Arc::ptr_eq(forgotten, stored)))
    };
    observed.seen.locks.iter().filter(move |(revision, _)| !kept(revision)).map(|(_, lock)| lock.as_ref())
}
