//! What keeps a pod from serving: the root cause first, not the last symptom.
//!
//! Pure: reads a Pod (or a Deployment's conditions) and says one [`Problem`] in words that tell what to do.

use std::collections::BTreeMap;

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, Pod},
};
use ortolan_protocol::failure::{Failure, FailureReason};

use crate::api::{conditions::reason, names};

/// What keeps a server from serving.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The condition's reason.
    pub reason: String,
    /// The pod, what happened and what to do.
    pub message: String,
    /// Where it happened.
    pub stage: Stage,
    /// Nothing changes without a person.
    pub permanent: bool,
}

/// How far a server came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The model's bytes were not had.
    Artifact,
    /// The bytes could not be loaded.
    Load,
    /// The pod or its container could not be run.
    Workload,
}

/// The most telling problem of a revision: what a server itself said comes before what the kubelet says about it, and
/// that before what the Deployment says.
pub fn root_cause(deployment: Option<&Deployment>, pods: &[&Pod], stuck: &BTreeMap<String, String>) -> Option<Problem> {
    pods.iter()
        .filter_map(|pod| of_pod(pod).or_else(|| of_stuck(pod, stuck)))
        .min_by_key(|problem| (problem.stage, !problem.permanent))
        .or_else(|| deployment.and_then(of_deployment))
}

/// `stuck`: the kubelet's words about pods whose container it cannot create, by the pod's UID.
fn of_stuck(pod: &Pod, stuck: &BTreeMap<String, String>) -> Option<Problem> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let why = stuck.get(pod.metadata.uid.as_ref()?)?;
    Some(workload(reason::CONTAINER_NOT_CREATED, format!("pod {name}: {why}"), false))
}

fn of_pod(pod: &Pod) -> Option<Problem> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let status = pod.status.as_ref()?;
    let container = status.container_statuses.iter().flatten().find(|container| container.name == names::CONTAINER);
    match container {
        Some(container) if container.ready => None,
        Some(container) => of_container(name, container),
        None => status
            .conditions
            .iter()
            .flatten()
            .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False")
            .map(|condition| {
                let why = condition.message.as_deref().unwrap_or("the scheduler gave no reason");
                workload(reason::UNSCHEDULABLE, format!("pod {name} was not placed on a node: {why}"), false)
            }),
    }
}

fn of_container(pod: &str, container: &ContainerStatus) -> Option<Problem> {
    let terminated = |state: &Option<ContainerState>| state.as_ref().and_then(|state| state.terminated.clone());
    let ended = terminated(&container.state).or_else(|| terminated(&container.last_state));
    if let Some(ended) = ended.filter(|ended| ended.exit_code != 0) {
        return Some(of_exit(pod, container, &ended));
    }
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    // The kubelet puts the cause behind "Back-off …" while it waits to try again: the cause alone does not flap.
    let why = waiting.message.as_deref().unwrap_or("no further message");
    let why = why.split_once("ErrImagePull: ").map_or(why, |(_, cause)| cause);
    match waiting.reason.as_deref()? {
        "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull" => Some(workload(
            reason::IMAGE_UNAVAILABLE,
            format!(
                "pod {pod} cannot get image {}: {why}. Check the image's name, the registry and its pull secret",
                container.image
            ),
            false,
        )),
        kind @ ("CreateContainerConfigError" | "CreateContainerError" | "RunContainerError") => {
            Some(workload(reason::CONTAINER_NOT_CREATED, format!("pod {pod}: {kind}: {why}"), false))
        }
        _ => None,
    }
}

fn of_exit(pod: &str, container: &ContainerStatus, ended: &ContainerStateTerminated) -> Problem {
    let restarts = container.restart_count;
    let text = ended.message.as_deref().unwrap_or_default().trim();
    if let Ok(failure) = serde_json::from_str::<Failure>(text) {
        return Problem {
            reason: failure.reason.as_str().to_owned(),
            message: format!("pod {pod}: {}", failure.message),
            stage: stage(failure.reason),
            permanent: !failure.reason.is_transient(),
        };
    }
    if ended.reason.as_deref() == Some("OOMKilled") {
        let message = format!(
            "pod {pod}, container {}: killed for using more memory than its limit (exit code {}, {restarts} restarts). Raise spec.server.resources.limits.memory",
            container.name, ended.exit_code
        );
        return Problem { reason: reason::OUT_OF_MEMORY.to_owned(), message, stage: Stage::Load, permanent: true };
    }
    let last = text.lines().last().unwrap_or("it left no message");
    let message = format!(
        "pod {pod}, container {}: ended with exit code {}, {restarts} restarts: {last}. See `kubectl logs {pod} --previous`",
        container.name, ended.exit_code
    );
    workload(reason::CRASH_LOOP, message, false)
}

fn of_deployment(deployment: &Deployment) -> Option<Problem> {
    let conditions = deployment.status.as_ref()?.conditions.as_ref()?;
    let message = |text: &Option<String>| text.clone().unwrap_or_default();
    let refused = conditions.iter().find(|condition| condition.type_ == "ReplicaFailure" && condition.status == "True");
    if let Some(refused) = refused {
        let message = format!("the API server refuses to create pods: {}", message(&refused.message));
        return Some(workload(reason::PODS_REFUSED, message, false));
    }
    let late = conditions.iter().find(|condition| condition.type_ == "Progressing" && condition.status == "False")?;
    let message = format!("the servers did not become ready in time: {}", message(&late.message));
    Some(workload(reason::PROGRESS_DEADLINE, message, true))
}

fn stage(reason: FailureReason) -> Stage {
    if reason.is_artifact() { Stage::Artifact } else { Stage::Load }
}

fn workload(reason: &str, message: String, permanent: bool) -> Problem {
    Problem { reason: reason.to_owned(), message, stage: Stage::Workload, permanent }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(status: &serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "digits-x"}, "status": status})).unwrap()
    }

    fn container(state: &serde_json::Value, last: &serde_json::Value) -> Pod {
        pod(&json!({"containerStatuses": [{
            "name": "server", "image": "example.org/server:1", "imageID": "", "ready": false, "restartCount": 2,
            "state": state, "lastState": last,
        }]}))
    }

    fn problem(pod: &Pod) -> Problem {
        root_cause(None, &[pod], &BTreeMap::new()).unwrap()
    }

    #[test]
    fn what_the_server_said_is_the_reason_also_while_the_kubelet_waits_to_restart_it() {
        let said = r#"{"reason":"SourceNotFound","message":"models.example.org answered 404 for the model"}"#;
        let waiting = json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}});
        let found = problem(&container(&waiting, &json!({"terminated": {"exitCode": 1, "message": said}})));
        assert_eq!((found.reason.as_str(), found.stage, found.permanent), ("SourceNotFound", Stage::Artifact, true));
        assert_eq!(found.message, "pod digits-x: models.example.org answered 404 for the model");
    }

    #[test]
    fn a_server_that_starts_again_keeps_the_reason_of_its_last_end() {
        let said = r#"{"reason":"ModelInvalid","message":"not a model"}"#;
        let running = json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}});
        let found = problem(&container(&running, &json!({"terminated": {"exitCode": 1, "message": said}})));
        assert_eq!((found.reason.as_str(), found.stage), ("ModelInvalid", Stage::Load));
    }

    #[test]
    fn memory_that_ran_out_is_told_from_a_crash() {
        let killed = json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}});
        assert_eq!(problem(&container(&killed, &json!({}))).reason, "OutOfMemory");
        let crashed = json!({"terminated": {"exitCode": 139, "message": "first\nsegmentation fault"}});
        let found = problem(&container(&crashed, &json!({})));
        assert_eq!(found.reason, "CrashLoop");
        assert!(
            found.message.contains("exit code 139") && found.message.contains("segmentation fault"),
            "{}",
            found.message
        );
    }

    #[test]
    fn an_image_that_is_missing_names_it() {
        let waiting = json!({"waiting": {"reason": "ImagePullBackOff", "message": "not found"}});
        let found = problem(&container(&waiting, &json!({})));
        assert_eq!(found.reason, "ImageUnavailable");
        assert!(found.message.contains("example.org/server:1"), "{}", found.message);
    }

    #[test]
    fn a_missing_config_map_is_said() {
        let waiting =
            json!({"waiting": {"reason": "CreateContainerConfigError", "message": "configmap \"m\" not found"}});
        assert_eq!(problem(&container(&waiting, &json!({}))).reason, "ContainerNotCreated");
    }

    #[test]
    fn an_unschedulable_pod_has_the_schedulers_own_words() {
        let found = problem(&pod(&json!({"conditions": [{
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/2 nodes are available: 2 Insufficient cpu."
        }]})));
        assert_eq!(found.reason, "Unschedulable");
        assert!(found.message.ends_with("0/2 nodes are available: 2 Insufficient cpu."));
    }

    #[test]
    fn the_servers_word_comes_before_the_kubelets() {
        let said = r#"{"reason":"DigestMismatch","message":"other bytes"}"#;
        let told = container(&json!({"terminated": {"exitCode": 1, "message": said}}), &json!({}));
        let waits = container(&json!({"waiting": {"reason": "ErrImagePull"}}), &json!({}));
        assert_eq!(root_cause(None, &[&waits, &told], &BTreeMap::new()).unwrap().reason, "DigestMismatch");
    }

    #[test]
    fn a_pod_that_starts_or_serves_has_no_problem() {
        let running = container(&json!({"running": {}}), &json!({}));
        assert_eq!(root_cause(None, &[&running], &BTreeMap::new()), None);
        let mut creating = container(&json!({"waiting": {"reason": "ContainerCreating"}}), &json!({}));
        creating.metadata.uid = Some("1".to_owned());
        assert_eq!(root_cause(None, &[&creating], &BTreeMap::new()), None);
        let stuck = BTreeMap::from([("1".to_owned(), "configmap \"m\" not found".to_owned())]);
        let found = root_cause(None, &[&creating], &stuck).unwrap();
        assert_eq!(found.reason, "ContainerNotCreated");
        assert_eq!(found.message, "pod digits-x: configmap \"m\" not found");
    }

    #[test]
    fn a_refused_pod_and_a_passed_deadline_come_from_the_deployment() {
        let deployment = |kind: &str, status: &str| -> Deployment {
            serde_json::from_value(json!({"metadata": {}, "status": {"conditions": [
                {"type": kind, "status": status, "message": "exceeded quota"}
            ]}}))
            .unwrap()
        };
        let refused = root_cause(Some(&deployment("ReplicaFailure", "True")), &[], &BTreeMap::new()).unwrap();
        assert_eq!((refused.reason.as_str(), refused.permanent), ("PodsRefused", false));
        let late = root_cause(Some(&deployment("Progressing", "False")), &[], &BTreeMap::new()).unwrap();
        assert_eq!((late.reason.as_str(), late.permanent), ("ProgressDeadlineExceeded", true));
    }
}
