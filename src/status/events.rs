//! What is worth an Event: the difference between the status as it was and as it becomes.

use crate::api::{
    ModelDeploymentStatus,
    conditions::{READY, SCALING_LIMITED, STALLED},
};

/// An Event to be published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Something a person should look at.
    pub warning: bool,
    /// In PascalCase.
    pub reason: String,
    /// What was done. Events of equal reason and action are counted as one that keeps its first text.
    pub action: String,
    /// A sentence.
    pub text: String,
}

/// The events of a step from one status to the next.
pub fn between(before: &ModelDeploymentStatus, after: &ModelDeploymentStatus) -> Vec<Note> {
    let mut notes = Vec::new();
    notes.extend(revisions(before, after));
    notes.extend(scaling(before, after));
    for (type_, normal_when) in [(READY, "True"), (STALLED, "False"), (SCALING_LIMITED, "False")] {
        notes.extend(condition(before, after, type_, normal_when));
    }
    notes
}

fn revisions(before: &ModelDeploymentStatus, after: &ModelDeploymentStatus) -> Option<Note> {
    let name =
        |revision: &Option<crate::api::RevisionStatus>| revision.as_ref().map(|revision| revision.revision.clone());
    let (old, new, candidate) = (name(&before.stable), name(&after.stable), name(&after.candidate));
    let note = |reason: &str, revision: &str, text: String| {
        Some(Note { warning: false, reason: reason.to_owned(), action: format!("Revision{revision}"), text })
    };
    match (old, new, candidate) {
        (old, Some(new), _) if old.as_ref() != Some(&new) => {
            note("Promoted", &new, format!("revision {new} is the stable one"))
        }
        (Some(old), _, Some(candidate)) if name(&before.candidate).as_ref() != Some(&candidate) => {
            note("RolloutStarted", &candidate, format!("revision {candidate} is replacing {old}"))
        }
        _ => None,
    }
}

fn scaling(before: &ModelDeploymentStatus, after: &ModelDeploymentStatus) -> Option<Note> {
    let (before, after) = (before.scaling.as_ref()?, after.scaling.as_ref()?);
    let reason = match after.desired.cmp(&before.desired) {
        std::cmp::Ordering::Equal => return None,
        std::cmp::Ordering::Greater => "ScaledUp",
        std::cmp::Ordering::Less => "ScaledDown",
    };
    let text = format!("from {} to {} servers: {}", before.desired, after.desired, after.reason);
    Some(Note { warning: false, reason: reason.to_owned(), action: format!("ScaleTo{}", after.desired), text })
}

/// The note of a condition that changed its status or, where it is not normal, its reason.
fn condition(
    before: &ModelDeploymentStatus,
    after: &ModelDeploymentStatus,
    type_: &str,
    normal_when: &str,
) -> Option<Note> {
    let find =
        |status: &ModelDeploymentStatus| status.conditions.iter().find(|condition| condition.type_ == type_).cloned();
    let (before, after) = (find(before), find(after)?);
    let warning = after.status != normal_when;
    let same =
        before.is_some_and(|before| before.status == after.status && (!warning || before.reason == after.reason));
    // A model that is starting for the first time is not worth a warning.
    let starting = after.reason == crate::api::conditions::reason::STARTING;
    (!same && !starting).then_some(Note {
        warning,
        reason: after.reason,
        action: "Reconcile".to_owned(),
        text: after.message,
    })
}
