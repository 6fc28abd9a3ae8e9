//! Why a container is not being created: the kubelet says it only in Events (a ConfigMap or Secret that is not there, a
//! volume that cannot be attached, a network that is not ready).
//!
//! Read only for pods that have been waiting for some seconds, so a healthy cluster pays nothing.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Event, Pod},
    jiff::Timestamp,
};
use kube::{Api, Client, ResourceExt, api::ListParams};

/// Seconds after which a container that is still being created is worth a look.
const PATIENCE: f64 = 3.0;

/// Pods of a model that are asked about: what keeps one from starting mostly keeps the others.
const ASKED_ABOUT: usize = 3;

/// Whether the kubelet has been creating this pod's containers for longer than usual.
fn is_stuck(pod: &Pod, now: Timestamp) -> bool {
    let Some(status) = &pod.status else { return false };
    let creating = status.container_statuses.iter().flatten().any(|container| {
        let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref());
        waiting.and_then(|waiting| waiting.reason.as_deref()) == Some("ContainerCreating")
    });
    creating && status.start_time.as_ref().is_some_and(|start| now.duration_since(start.0).as_secs_f64() >= PATIENCE)
}

/// Whether any of these pods should be looked at again soon, as nothing else will tell.
pub fn are_starting<'a>(pods: impl IntoIterator<Item = &'a Pod>) -> bool {
    pods.into_iter().any(|pod| pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Pending"))
}

/// The kubelet's words for each pod that is stuck, by the pod's UID. A list that fails is no words: the pod's own status
/// still tells that it is not ready.
pub async fn reasons<'a>(client: &Client, pods: impl IntoIterator<Item = &'a Pod>) -> BTreeMap<String, String> {
    let now = Timestamp::now();
    let mut reasons = BTreeMap::new();
    for pod in pods.into_iter().filter(|pod| is_stuck(pod, now)).take(ASKED_ABOUT) {
        let (Some(namespace), Some(uid)) = (pod.namespace(), pod.uid()) else { continue };
        let about = ListParams::default().fields(&format!("involvedObject.uid={uid},type=Warning")).limit(20);
        match Api::<Event>::namespaced(client.clone(), &namespace).list(&about).await {
            Ok(events) => {
                let newest = events
                    .items
                    .into_iter()
                    .filter(is_of_kubelet)
                    .max_by_key(|event| event.last_timestamp.as_ref().map(|time| time.0));
                reasons.extend(newest.and_then(|event| Some((uid, event.message?))));
            }
            Err(error) => tracing::warn!(namespace, pod = pod.name_any(), %error, "the pod's Events cannot be read"),
        }
    }
    reasons
}

/// The scheduler's Events are about a time before the kubelet began.
fn is_of_kubelet(event: &Event) -> bool {
    let source = event.source.as_ref().and_then(|source| source.component.as_deref());
    event.reporting_component.as_deref() == Some("kubelet") || source == Some("kubelet")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(reason: &str) -> Pod {
        serde_json::from_value(json!({"metadata": {}, "status": {
            "phase": "Pending", "startTime": "2026-01-01T00:00:00Z",
            "containerStatuses": [{
                "name": "server", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"waiting": {"reason": reason}},
            }],
        }}))
        .unwrap()
    }

    #[test]
    fn only_a_container_that_takes_long_to_be_created_is_stuck() {
        let at = |seconds: &str| format!("2026-01-01T00:00:{seconds}Z").parse().unwrap();
        assert!(!is_stuck(&pod("ContainerCreating"), at("02")));
        assert!(is_stuck(&pod("ContainerCreating"), at("03")));
        assert!(!is_stuck(&pod("CrashLoopBackOff"), at("30")));
        assert!(are_starting([&pod("ContainerCreating")]));
    }
}
