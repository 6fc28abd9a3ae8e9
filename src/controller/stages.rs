//! What the verbs of a reconcile hand on to each other.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::apps::v1::ControllerRevision;

use super::{Settings, error::ReconcileError, fleet::View};
use crate::{
    api::{ModelDeploymentStatus, validated::DesiredModel},
    cluster::writer::{Outcome, WriteError},
    observe::seen::Seen,
    render::{self, Kinds, Snapshot},
    rollout,
    status::{RevisionFacts, events::Note},
};

/// What is there.
pub(super) struct Observed {
    /// The status as it stands.
    pub(super) previous: ModelDeploymentStatus,
    pub(super) seen: Seen,
    pub(super) view: View,
    pub(super) facts: BTreeMap<String, RevisionFacts>,
}

/// What there should be.
pub(super) struct Decided {
    pub(super) rollout: rollout::Plan,
    pub(super) snapshots: Snapshots,
    /// The digests that bind the servers of a revision.
    pub(super) digests: BTreeMap<String, String>,
    /// One server finds out what the others are bound to.
    pub(super) resolving: bool,
    /// The kinds of servers that the Service leads to.
    pub(super) kinds: Kinds,
    /// The number of a new ControllerRevision.
    pub(super) next_number: i64,
    /// Snapshots of revisions that nobody will go back to.
    pub(super) forgotten: Vec<Arc<ControllerRevision>>,
}

/// What the revisions that have servers are rendered from.
#[derive(Default)]
pub(super) struct Snapshots {
    /// By revision.
    pub(super) readable: BTreeMap<String, Snapshot>,
    /// Revisions that a newer operator rendered (this one was rolled back to): their pods stay as they are.
    pub(super) newer: Vec<String>,
    /// Stored snapshots of a newer operator that nothing runs: made anew as this operator can.
    pub(super) replaced: Vec<Arc<ControllerRevision>>,
}

impl Snapshots {
    pub(super) fn of(
        rollout: &rollout::Plan,
        (desired, model): (&str, &DesiredModel),
        seen: &Seen,
        settings: &Settings,
    ) -> Self {
        let mut snapshots = Self::default();
        for revision in rollout.replicas.keys() {
            let stored = seen.revisions.get(revision);
            if let Some(snapshot) = stored.and_then(|stored| render::snapshot_of(stored, settings.renderer)) {
                snapshots.readable.insert(revision.clone(), snapshot);
            } else if stored.is_some() && seen.deployments.contains_key(revision) {
                snapshots.newer.push(revision.clone());
            } else if revision == desired {
                snapshots.readable.insert(revision.clone(), new_snapshot(model, settings));
                snapshots.replaced.extend(stored.cloned());
            }
        }
        snapshots
    }
}

/// What a revision is rendered from that nothing was rendered from yet.
pub(super) fn new_snapshot(model: &DesiredModel, settings: &Settings) -> Snapshot {
    Snapshot { spec: model.revision.clone(), image: settings.server_image.clone(), renderer: settings.renderer }
}

/// What was applied.
#[derive(Default)]
pub(super) struct Applied {
    pub(super) notes: Vec<Note>,
    pub(super) error: Option<ReconcileError>,
}

impl Applied {
    /// Takes the outcome of one write in; `false` after a failure.
    pub(super) fn take(&mut self, what: &str, result: Result<Outcome, WriteError>) -> bool {
        match result {
            Ok(Outcome::PutBack(place)) => self.notes.push(Note {
                warning: true,
                reason: "PutBack".to_owned(),
                action: format!("PutBack{what}"),
                text: format!("{what} was changed by someone else at {place} and is as before again; change the ModelDeployment instead"),
            }),
            Ok(_) => {}
            Err(error) => self.error = Some(error.into()),
        }
        self.error.is_none()
    }
}

/// How many servers `status` says there should be: what a new operator begins with.
pub(super) fn previous_desired(status: &ModelDeploymentStatus) -> Option<u32> {
    Some(status.scaling.as_ref()?.desired)
}
