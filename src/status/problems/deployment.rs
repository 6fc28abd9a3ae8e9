//! What only the Deployment tells: pods that the API server refuses to create, and time that ran out.

use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition};

use super::{Problem, Stage, words, workload};
use crate::api::conditions::reason;

fn condition<'a>(deployment: &'a Deployment, type_: &str, status: &str) -> Option<&'a DeploymentCondition> {
    let mut conditions = deployment.status.as_ref()?.conditions.iter().flatten();
    conditions.find(|condition| condition.type_ == type_ && condition.status == status)
}

/// Whether the progress deadline has passed.
pub fn is_late(deployment: &Deployment) -> bool {
    condition(deployment, "Progressing", "False")
        .is_some_and(|late| late.reason.as_deref() == Some("ProgressDeadlineExceeded"))
}

/// The API server refuses to create pods.
pub(super) fn refused(deployment: &Deployment) -> Option<Problem> {
    let why = condition(deployment, "ReplicaFailure", "True")?.message.as_deref().unwrap_or_default();
    let (reason, advice) = refusal(why);
    let why = words::plain(without_subject(why));
    Some(workload(reason, format!("the API server refuses to create pods: {why}. {advice}")))
}

/// The class of a refusal, and what to do about it.
pub(in crate::status) fn refusal(why: &str) -> (&'static str, &'static str) {
    let has = |texts: &[&str]| texts.iter().any(|text| why.contains(text));
    if has(&["exceeded quota"]) {
        (reason::QUOTA_EXCEEDED, "Ask for less, or have the ResourceQuota raised")
    } else if has(&["failed quota"]) {
        (reason::QUOTA_EXCEEDED, "Set in spec.server.resources what the ResourceQuota wants to be set")
    } else if has(&["violates PodSecurity"]) {
        (
            reason::ADMISSION_REFUSED,
            "A server asks for nothing beyond `restricted`: look for what changes pods in this namespace",
        )
    } else if has(&["failed calling webhook"]) {
        (reason::ADMISSION_REFUSED, "The webhook has to answer, or its configuration has to go")
    } else if has(&["admission webhook", "ValidatingAdmissionPolicy"]) {
        (reason::ADMISSION_REFUSED, "Change what the policy objects to, or ask whoever keeps the policy")
    } else if has(&["per Container is", "per Pod is", "limit to request ratio"]) {
        (reason::ADMISSION_REFUSED, "Change spec.server.resources, or the namespace's LimitRange")
    } else if has(&["is forbidden"]) {
        (reason::ADMISSION_REFUSED, "Change what is objected to, or ask whoever set the rule")
    } else {
        (reason::PODS_REFUSED, "Change what is objected to, or ask whoever runs the cluster")
    }
}

/// `pods "x-7d9f" is forbidden: …`: the name is another one with each try.
fn without_subject(why: &str) -> &str {
    let Some(rest) = why.strip_prefix("pods \"") else { return why };
    let rest = rest.split_once('"').map_or(rest, |(_, rest)| rest).trim_start();
    rest.strip_prefix("is forbidden: ").unwrap_or(rest)
}

/// Time ran out, and nothing tells why.
pub(super) fn late(deployment: &Deployment) -> Option<Problem> {
    let message = "the servers did not become ready in time, and neither they nor their node say why. See `kubectl logs` and \
                   `kubectl describe` of the pods";
    let late = Problem {
        reason: reason::PROGRESS_DEADLINE,
        message: message.to_owned(),
        stage: Stage::Workload,
        permanent: true,
    };
    is_late(deployment).then_some(late)
}
