//! The snapshot of a revision, kept by the cluster.

use k8s_openapi::{api::apps::v1::ControllerRevision, apimachinery::pkg::runtime::RawExtension};

use super::{Renderer, Snapshot, metadata};
use crate::api::{names, validated::DesiredModel};

/// The ControllerRevision of a revision. `number` grows with each new revision of the model.
pub fn controller_revision(
    model: &DesiredModel,
    revision: &str,
    snapshot: &Snapshot,
    number: i64,
) -> ControllerRevision {
    let labels = names::revision_labels(&model.name, names::DEFAULT_VARIANT, revision);
    ControllerRevision {
        metadata: metadata(model, names::controller_revision(&model.name, revision), labels),
        data: serde_json::to_value(snapshot).ok().map(RawExtension),
        revision: number,
    }
}

/// Reads a snapshot back; `None` when an operator that renders up to `newest` cannot render it: a newer operator made it.
pub fn snapshot_of(revision: &ControllerRevision, newest: Renderer) -> Option<Snapshot> {
    let snapshot: Snapshot = serde_json::from_value(revision.data.as_ref()?.0.clone()).ok()?;
    (snapshot.renderer <= newest).then_some(snapshot)
}
