//! What is chosen among several, and what stays as it was. What real pods lead to is in tests/problems.rs.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::*;

fn pod(name: &str, status: &Value) -> Pod {
    let resources = json!({"limits": {"memory": "64Mi"}});
    serde_json::from_value(json!({
        "metadata": {"name": name, "uid": name},
        "spec": {"containers": [{"name": "server", "resources": resources}]},
        "status": status,
    }))
    .unwrap()
}

fn container(name: &str, state: &Value, last: &Value) -> Pod {
    pod(
        name,
        &json!({"containerStatuses": [{
            "name": "server", "image": "example.org/server:1", "imageID": "", "ready": false, "restartCount": 2,
            "state": state, "lastState": last,
        }]}),
    )
}

fn said(reason: &str) -> Value {
    let message = json!({"reason": reason, "message": "it is so"}).to_string();
    json!({"terminated": {"exitCode": 1, "message": message}})
}

fn unschedulable(name: &str) -> Pod {
    let why = "0/2 nodes are available: 2 Insufficient cpu.";
    pod(name, &json!({"conditions": [{"type": "PodScheduled", "status": "False", "message": why}]}))
}

fn sight<'a>(pods: &'a [&'a Pod]) -> Sight<'a> {
    Sight { deployment: None, pods, ended: &[], events: &[], previous: &[], now: Timestamp::UNIX_EPOCH }
}

fn problem(pod: &Pod) -> Option<Problem> {
    root_cause(&sight(&[pod]))
}

fn condition(message: &str) -> Condition {
    serde_json::from_value(json!({
        "type": "Ready", "status": "False", "reason": "Any", "message": message, "lastTransitionTime": "2026-01-01T00:00:00Z",
    }))
    .unwrap()
}

#[test]
fn a_crash_loop_says_the_same_in_each_of_its_states() {
    let failed = said("ModelInvalid");
    let states = [
        container("a", &failed, &json!({})),
        container("a", &json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}), &failed),
        container("a", &json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}}), &failed),
    ];
    let found = states.each_ref().map(|pod| problem(pod).unwrap());
    assert!(found.iter().all(|problem| *problem == found[0]), "{found:?}");
    assert_eq!((found[0].reason, found[0].stage, found[0].permanent), ("ModelInvalid", Stage::Load, true));
    assert_eq!(
        found[0].message,
        "pod a, container server, exit code 1: it is so. Put a working ONNX model at spec.model.uri"
    );
}

#[test]
fn memory_that_ran_out_is_told_from_a_crash() {
    let killed = problem(&container("a", &json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}}), &json!({})));
    let killed = killed.unwrap();
    assert_eq!((killed.reason, killed.permanent), ("OutOfMemory", true));
    assert!(killed.message.contains("64Mi"), "{}", killed.message);
    let last = "2026-01-01T00:00:00.1Z  INFO first\nsomething broke";
    let crashed = json!({"terminated": {"exitCode": 139, "message": last}});
    let crashed = problem(&container("a", &crashed, &json!({}))).unwrap();
    assert_eq!((crashed.reason, crashed.permanent), ("CrashLoop", false));
    let words = "pod a, container server, exit code 139 (segmentation fault): something broke. ";
    assert!(crashed.message.starts_with(words), "{}", crashed.message);
}

#[test]
fn memory_that_ran_out_while_loading_says_how_much_and_keeps_saying_it() {
    let killed = |used: u64| {
        let words = json!({"digest": "00ff", "loading": {"modelBytes": 50 << 20, "usedBytes": used << 20}}).to_string();
        container("a", &json!({"terminated": {"exitCode": 137, "reason": "OOMKilled", "message": words}}), &json!({}))
    };
    let first = problem(&killed(60)).unwrap();
    for words in ["exit code 137", "(64Mi)", "whose 50 MiB", "60 MiB were used", "to 164Mi or more"] {
        assert!(first.message.contains(words), "{}", first.message);
    }
    let previous = [condition(&format!("revision 1: {}", first.message))];
    let again = killed(61);
    assert_eq!(root_cause(&Sight { previous: &previous, ..sight(&[&again]) }), Some(first));
    assert_eq!(digest(&sight(&[&again])).as_deref(), Some("00ff"));
}

#[test]
fn what_a_server_said_comes_before_what_is_said_about_others() {
    let told = container("b", &said("DigestMismatch"), &json!({}));
    let crashed = container("c", &json!({"terminated": {"exitCode": 139}}), &json!({}));
    let image = container("d", &json!({"waiting": {"reason": "ErrImagePull"}}), &json!({}));
    let waits = unschedulable("a");
    for (pods, reason) in [
        (vec![&waits, &image, &crashed, &told], "DigestMismatch"),
        (vec![&waits, &image, &crashed], "CrashLoop"),
        (vec![&waits, &image], "ImageUnavailable"),
        (vec![&waits], "Unschedulable"),
    ] {
        assert_eq!(root_cause(&sight(&pods)).unwrap().reason, reason);
    }
}

#[test]
fn the_pod_that_was_named_stays_named_while_it_has_the_problem() {
    let (first, second) = (unschedulable("x-a"), unschedulable("x-b"));
    let pods = [&first, &second];
    let name = |previous: &[Condition]| {
        let message = root_cause(&Sight { previous, ..sight(&pods) }).unwrap().message;
        message.split_whitespace().nth(1).unwrap().to_owned()
    };
    assert_eq!(name(&[]), "x-a");
    assert_eq!(name(&[condition("revision 1: pod x-b was not placed on a node: …")]), "x-b");
    assert_eq!(name(&[condition("pod x-bb was not placed on a node: …")]), "x-a", "another pod's name");
}

#[test]
fn a_pod_that_starts_or_serves_has_no_problem() {
    for state in [json!({"running": {}}), json!({"waiting": {"reason": "ContainerCreating"}})] {
        assert_eq!(problem(&container("a", &state, &json!({}))), None);
    }
    let mut serving = container("a", &json!({"running": {}}), &said("SourceUnreachable"));
    serving.status.as_mut().unwrap().container_statuses.as_mut().unwrap()[0].ready = true;
    assert_eq!(problem(&serving), None);
}

#[test]
fn of_the_kubelets_words_the_cause_comes_before_the_waiting() {
    let event = |time: &str, message: &str| -> Event {
        serde_json::from_value(json!({
            "metadata": {}, "involvedObject": {"uid": "a"}, "reason": "FailedMount", "message": message,
            "lastTimestamp": format!("2026-01-01T00:00:{time}Z"),
        }))
        .unwrap()
    };
    let events = [
        event("01", "MountVolume.SetUp failed for volume \"model\" : configmap \"m\" not found"),
        event(
            "09",
            "Unable to attach or mount volumes: unmounted volumes=[model]: timed out waiting for the condition",
        ),
    ];
    let creating = container("a", &json!({"waiting": {"reason": "ContainerCreating"}}), &json!({}));
    let found = root_cause(&Sight { events: &events, ..sight(&[&creating]) }).unwrap();
    assert_eq!(found.reason, "ConfigMapNotFound");
}

#[test]
fn what_the_kubelet_said_before_it_had_made_the_volumes_is_over() {
    let said = |reason: &str, message: &str| -> Event {
        let event = json!({"metadata": {}, "involvedObject": {"uid": "a"}, "reason": reason, "message": message});
        serde_json::from_value(event).unwrap()
    };
    let late = "MountVolume.SetUp failed for volume \"lock\" : failed to sync configmap cache: timed out waiting for the condition";
    let events = [
        said("FailedMount", late),
        said("FailedMount", "MountVolume.SetUp failed for volume \"model\" : configmap \"m\" not found"),
        said("FailedCreatePodSandBox", "no network"),
    ];
    let found =
        |pod: &Pod, events: &[Event]| root_cause(&Sight { events, ..sight(&[pod]) }).map(|problem| problem.reason);
    let creating = container("a", &json!({"waiting": {"reason": "ContainerCreating"}}), &json!({}));
    let running = container("a", &json!({"running": {}}), &json!({}));
    let prepared = |pod: &Pod, status: &str| {
        let mut pod = pod.clone();
        let condition = json!([{"type": "PodReadyToStartContainers", "status": status}]);
        pod.status.as_mut().unwrap().conditions = serde_json::from_value(condition).unwrap();
        pod
    };
    for (event, reason) in events.iter().zip(["VolumeNotMounted", "ConfigMapNotFound", "ContainerNotCreated"]) {
        let event = std::slice::from_ref(event);
        assert_eq!(found(&creating, event), Some(reason), "a kubelet that has no such condition");
        assert_eq!(found(&prepared(&creating, "False"), event), Some(reason));
        assert_eq!(found(&prepared(&creating, "True"), event), None, "its image is being pulled");
        assert_eq!(found(&prepared(&running, "True"), event), None);
        assert_eq!(found(&running, event), None);
    }
    let not_ready = said("Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 404");
    let events = [events[0].clone(), not_ready];
    assert_eq!(found(&running, &events), Some("ReadinessProbeFailed"), "what is, not what was");
}

#[test]
fn a_pod_that_was_taken_away_long_ago_explains_nothing() {
    let evicted = json!({"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory.",
        "startTime": "2026-01-01T00:00:00Z"});
    let evicted = pod("a", &evicted);
    let at = |time: &str| {
        let now = format!("2026-01-01T{time}Z").parse().unwrap();
        root_cause(&Sight { ended: &[&evicted], now, ..sight(&[]) }).map(|problem| problem.reason)
    };
    assert_eq!(at("00:09:00"), Some("Evicted"));
    assert_eq!(at("00:11:00"), None);
}

#[test]
fn a_server_that_its_node_stopped_without_a_word_was_evicted() {
    let state = json!({"terminated": {"exitCode": 0, "reason": "Completed", "finishedAt": "2026-01-01T01:00:00Z"}});
    let mut stopped = container("a", &state, &json!({}));
    stopped.status.as_mut().unwrap().phase = Some("Succeeded".into());
    let at = |pod: &Pod, time: &str| {
        let now = format!("2026-01-01T{time}Z").parse().unwrap();
        root_cause(&Sight { ended: &[pod], now, ..sight(&[]) }).map(|problem| (problem.reason, problem.message))
    };
    let (reason, message) = at(&stopped, "01:09:00").unwrap();
    assert!(reason == "Evicted" && message.contains("did not say why"), "{message}");
    assert_eq!(at(&stopped, "01:11:00"), None, "long ago");
    stopped.metadata.deletion_timestamp = Some(Time("2026-01-01T01:00:00Z".parse().unwrap()));
    assert_eq!(at(&stopped, "01:09:00"), None, "somebody deleted it");
}

#[test]
fn a_refused_pod_and_a_passed_deadline_come_from_the_deployment() {
    let deployment = |kind: &str, status: &str, reason: &str, message: &str| -> Deployment {
        let condition = json!({"type": kind, "status": status, "reason": reason, "message": message});
        serde_json::from_value(json!({"metadata": {}, "status": {"conditions": [condition]}})).unwrap()
    };
    for (message, reason, words) in [
        (
            "pods \"a-x1\" is forbidden: exceeded quota: q, requested: pods=1",
            "QuotaExceeded",
            "pods: exceeded quota: q",
        ),
        (
            "pods \"a-x1\" is forbidden: violates PodSecurity \"restricted:latest\": x",
            "AdmissionRefused",
            "pods: violates",
        ),
        ("admission webhook \"w.example.org\" denied the request: no", "AdmissionRefused", "w.example.org"),
        ("pods \"a-x1\" is forbidden: [maximum cpu usage per Container is 1]", "AdmissionRefused", "LimitRange"),
        ("Pod \"a\" is invalid: spec.x", "PodsRefused", "is invalid"),
    ] {
        let refused = deployment("ReplicaFailure", "True", "FailedCreate", message);
        let found = root_cause(&Sight { deployment: Some(&refused), ..sight(&[]) }).unwrap();
        assert_eq!((found.reason, found.permanent), (reason, false));
        assert!(found.message.contains(words) && !found.message.contains("a-x1"), "{}", found.message);
    }
    let late = deployment("Progressing", "False", "ProgressDeadlineExceeded", "");
    assert!(is_late(&late));
    let found = root_cause(&Sight { deployment: Some(&late), ..sight(&[]) }).unwrap();
    assert_eq!((found.reason, found.permanent), ("ProgressDeadlineExceeded", true));
}

#[test]
fn a_secret_or_a_key_that_is_missing_is_told_with_the_field_that_names_it() {
    let mut pod = pod(
        "a",
        &json!({"containerStatuses": [{
            "name": "server", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": "ContainerCreating"}},
        }]}),
    );
    let items = |keys: &[&str]| keys.iter().map(|key| json!({"key": key, "path": key})).collect::<Vec<_>>();
    let volumes = json!([
        {"name": "api-keys", "secret": {"secretName": "keys"}},
        {"name": "tls", "secret": {"secretName": "web", "items": items(&["tls.crt", "tls.key"])}},
        {"name": "client-ca", "secret": {"secretName": "clients", "items": items(&["ca.crt"])}},
    ]);
    pod.spec.as_mut().unwrap().volumes = serde_json::from_value(volumes).unwrap();
    for (why, reason, words) in [
        (
            "secret \"web\" not found",
            "SecretNotFound",
            "Secret web, which does not exist in this namespace. Create it, or name another in spec.server.tls.certificateSecret",
        ),
        ("secret \"keys\" not found", "SecretNotFound", "name another in spec.server.apiKeysSecret"),
        (
            "references non-existent secret key: tls.key",
            "KeyNotFound",
            "key tls.key of Secret web, which has no such key. Add it, or name another in spec.server.tls.certificateSecret",
        ),
        (
            "references non-existent secret key: ca.crt",
            "KeyNotFound",
            "key ca.crt of Secret clients, which has no such key. Add it, or name another in spec.server.tls.clientCASecret",
        ),
    ] {
        let event = serde_json::from_value(json!({
            "metadata": {}, "involvedObject": {"uid": "a"}, "reason": "FailedMount",
            "message": format!("MountVolume.SetUp failed for volume \"x\" : {why}"),
        }));
        let events = [event.unwrap()];
        let problem = root_cause(&Sight { events: &events, ..sight(&[&pod]) }).unwrap();
        assert_eq!((problem.reason, problem.permanent), (reason, false));
        assert!(problem.message.ends_with(words), "{}", problem.message);
    }
}
