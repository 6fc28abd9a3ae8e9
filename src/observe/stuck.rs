//! Why a pod does not get further, where its own status does not say: the kubelet tells of a ConfigMap that is not there, a
//! volume that cannot be mounted or a probe that fails only in Events, and the volume controller of a claim without a
//! volume too.
//!
//! Read only for pods that have been waiting for some seconds, so a healthy cluster pays nothing.

use std::time::Duration;

use k8s_openapi::{
    api::core::v1::{ContainerStatus, Event, Pod},
    jiff::Timestamp,
};
use kube::{Api, Client, ResourceExt, api::ListParams};

/// Seconds after which a container that is still being created is worth a look.
const PATIENCE: f64 = 3.0;
/// Seconds after which a container that runs and is not ready is worth a look.
const LONG_PATIENCE: f64 = 10.0;
/// Seconds for which a pod is new.
const NEW: f64 = 60.0;
/// While a new pod is pending, or what it does is waited for.
pub const LOOK_AGAIN: Duration = Duration::from_secs(4);
/// While one is pending that is not new any more.
const LOOK_AGAIN_LATER: Duration = Duration::from_secs(20);
/// Pods of a model that are asked about: what keeps one from starting mostly keeps the others.
const ASKED_ABOUT: usize = 3;
/// Events that are read of each; there are few of them, as repeated ones are counted in one.
const LIMIT: u32 = 50;

/// What Events are asked for about a pod.
#[derive(Debug, PartialEq, Eq)]
enum Question {
    /// Those about the pod.
    Pod(String),
    /// Those about a claim that it mounts.
    Claim(String),
}

/// What there is to ask about a pod at that time.
fn question(pod: &Pod, now: Timestamp) -> Option<Question> {
    let status = pod.status.as_ref()?;
    let Some(server) = status.container_statuses.iter().flatten().next() else {
        let waits = status.conditions.iter().flatten().any(|condition| {
            condition.type_ == "PodScheduled"
                && condition.message.as_deref().is_some_and(|text| text.contains("PersistentVolumeClaim"))
        });
        return claim(pod).filter(|_| waits).map(Question::Claim);
    };
    let older = |seconds: f64, since: Option<Timestamp>| {
        since.is_some_and(|since| now.duration_since(since).as_secs_f64() >= seconds)
    };
    let started = status.start_time.as_ref().map(|time| time.0);
    let asked = match waiting(server) {
        _ if server.ready => false,
        _ if was_stopped(server) => true,
        Some("ContainerCreating") => older(PATIENCE, started),
        Some(_) => false,
        None => older(LONG_PATIENCE, started),
    };
    asked.then(|| pod.uid().map(Question::Pod)).flatten()
}

fn waiting(container: &ContainerStatus) -> Option<&str> {
    container.state.as_ref()?.waiting.as_ref()?.reason.as_deref()
}

/// Whether it ended as one does that was told to: the kubelet may have stopped it because it did not answer.
fn was_stopped(container: &ContainerStatus) -> bool {
    let states = [&container.state, &container.last_state];
    let ended = states.into_iter().find_map(|state| state.as_ref()?.terminated.as_ref());
    ended.is_some_and(|ended| matches!(ended.exit_code, 0 | 137 | 143) && ended.reason.as_deref() != Some("OOMKilled"))
}

fn claim(pod: &Pod) -> Option<String> {
    let mut volumes = pod.spec.as_ref()?.volumes.iter().flatten();
    volumes.find_map(|volume| Some(volume.persistent_volume_claim.as_ref()?.claim_name.clone()))
}

/// After what time these pods should be looked at again, as nothing else will tell: soon while they are new, and more rarely
/// when they have been pending for long, as thousands may be where a cluster is full.
pub fn look_again<'a>(pods: impl IntoIterator<Item = &'a Pod>, now: Timestamp) -> Option<Duration> {
    let is_pending = |pod: &&Pod| pod.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Pending"));
    let ages = pods.into_iter().filter(is_pending).map(|pod| {
        pod.metadata.creation_timestamp.as_ref().map_or(0.0, |created| now.duration_since(created.0).as_secs_f64())
    });
    ages.reduce(f64::min).map(|youngest| if youngest < NEW { LOOK_AGAIN } else { LOOK_AGAIN_LATER })
}

/// The warnings about pods that do not get further. A list that fails is no words: the pod's own status still tells that it
/// is not ready.
pub async fn warnings<'a>(client: &Client, pods: impl IntoIterator<Item = &'a Pod>) -> Vec<Event> {
    let now = Timestamp::now();
    let mut warnings = Vec::new();
    let asked = pods.into_iter().filter_map(|pod| Some((pod, question(pod, now)?)));
    for (pod, question) in asked.take(ASKED_ABOUT) {
        let Some(namespace) = pod.namespace() else { continue };
        let about = match question {
            Question::Pod(uid) => format!("involvedObject.uid={uid},type=Warning"),
            // Some of what a claim waits for is told as normal.
            Question::Claim(name) => format!("involvedObject.kind=PersistentVolumeClaim,involvedObject.name={name}"),
        };
        let about = ListParams::default().fields(&about).limit(LIMIT);
        match Api::<Event>::namespaced(client.clone(), &namespace).list(&about).await {
            Ok(events) => warnings.extend(events.items),
            Err(error) => tracing::warn!(namespace, pod = pod.name_any(), %error, "the pod's Events cannot be read"),
        }
    }
    warnings
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::SignedDuration};
    use serde_json::{Value, json};

    use super::*;

    fn pod(status: &Value) -> Pod {
        let volumes = json!([{"name": "model", "persistentVolumeClaim": {"claimName": "models"}}]);
        serde_json::from_value(
            json!({"metadata": {"uid": "u1"}, "spec": {"containers": [], "volumes": volumes}, "status": status}),
        )
        .unwrap()
    }

    fn container(state: &Value) -> Pod {
        pod(&json!({
            "phase": "Pending", "startTime": "2026-01-01T00:00:00Z",
            "containerStatuses": [{
                "name": "server", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state,
            }],
        }))
    }

    fn at(second: &str) -> Timestamp {
        format!("2026-01-01T00:00:{second}Z").parse().unwrap()
    }

    #[test]
    fn only_a_container_that_takes_long_is_asked_about() {
        let creating = container(&json!({"waiting": {"reason": "ContainerCreating"}}));
        assert_eq!(question(&creating, at("02")), None);
        assert_eq!(question(&creating, at("03")), Some(Question::Pod("u1".to_owned())));
        let running = container(&json!({"running": {}}));
        assert_eq!(question(&running, at("09")), None);
        assert_eq!(question(&running, at("10")), Some(Question::Pod("u1".to_owned())));
        assert_eq!(question(&container(&json!({"waiting": {"reason": "ImagePullBackOff"}})), at("30")), None);
        assert_eq!(look_again([&creating], at("30")), Some(LOOK_AGAIN));
        let mut old = creating.clone();
        old.metadata.creation_timestamp = Some(Time(at("00")));
        assert_eq!(look_again([&old], at("00") + SignedDuration::from_mins(5)), Some(LOOK_AGAIN_LATER));
        assert_eq!(look_again([&old, &creating], at("30")), Some(LOOK_AGAIN), "the youngest counts");
        assert_eq!(look_again(None, at("30")), None);
        let stopped = container(&json!({"terminated": {"exitCode": 0}}));
        assert_eq!(question(&stopped, at("00")), Some(Question::Pod("u1".to_owned())));
        let killed = container(&json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}}));
        assert_eq!(question(&killed, at("00")), None);
    }

    #[test]
    fn a_pod_that_waits_for_its_claim_has_its_claim_asked_about() {
        let waits = |message: &str| {
            pod(&json!({"phase": "Pending", "conditions": [
                {"type": "PodScheduled", "status": "False", "message": message}
            ]}))
        };
        let unbound = waits("pod has unbound immediate PersistentVolumeClaims");
        assert_eq!(question(&unbound, at("00")), Some(Question::Claim("models".to_owned())));
        assert_eq!(question(&waits("0/2 nodes are available: 2 Insufficient cpu."), at("30")), None);
    }
}
