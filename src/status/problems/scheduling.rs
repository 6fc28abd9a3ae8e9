//! Pods without a node.

use super::{Problem, Subject, words, workload};
use crate::api::conditions::reason;

/// The scheduler's own words about a pod that it did not place.
pub(super) fn refusal<'a>(subject: &Subject<'a>) -> Option<&'a str> {
    let mut conditions = subject.status.conditions.iter().flatten();
    let placed = conditions.find(|condition| condition.type_ == "PodScheduled" && condition.status == "False")?;
    Some(placed.message.as_deref().unwrap_or("the scheduler gave no reason"))
}

pub(super) fn unschedulable(subject: &Subject<'_>) -> Option<Problem> {
    let why = words::plain(refusal(subject)?);
    let message = format!(
        "pod {} was not placed on a node: {why}. Ask for less in spec.server.resources, or add nodes that fit",
        subject.name
    );
    Some(workload(reason::UNSCHEDULABLE, message))
}
