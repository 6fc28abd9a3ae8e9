//! YAML in, YAML out: each child object as it reaches the API server. The golden files of pods belong to a version of the
//! rendering; once that is released they never change (see `renderer.rs`).

use super::*;
use crate::api::ModelDeployment;

fn model(spec: &str) -> DesiredModel {
    let spec: serde_json::Value = serde_yaml::from_str(spec).unwrap();
    let object: ModelDeployment = serde_json::from_value(serde_json::json!({
        "apiVersion": "ortolan.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": "digits", "namespace": "ml", "uid": "0b51", "generation": 3},
        "spec": spec,
    }))
    .unwrap();
    DesiredModel::parse(&object).unwrap()
}

fn snapshot(model: &DesiredModel) -> Snapshot {
    let image = "example.org/ortolan-server:1".to_owned();
    Snapshot { spec: model.revision.clone(), image, renderer: Renderer::FIRST }
}

fn pod(spec: &str) -> k8s_openapi::api::core::v1::PodTemplateSpec {
    let model = model(spec);
    let snapshot = Snapshot { renderer: Renderer::LOCKED, ..snapshot(&model) };
    deployment(&model, "a1b2c3d4e5", &snapshot, 1).unwrap().spec.unwrap().template
}

#[test]
fn a_model_over_http_with_every_setting() {
    let model = model(
        "
        model: {uri: https://models.example.org/digits.onnx, sha256: 00ff}
        server:
          resources: {requests: {cpu: 100m, memory: 64Mi}, limits: {cpu: 2, memory: 1Gi}}
          batching: {maxSize: 64, maxDelay: 2ms}
          threads: 2
          instances: 3
          loadTimeout: 90s
        rollout: {progressDeadline: 2m}
        ",
    );
    insta::assert_yaml_snapshot!(deployment(&model, "a1b2c3d4e5", &snapshot(&model), 3).unwrap());
}

#[test]
fn a_model_in_a_claim() {
    let model = model("model: {uri: 'pvc://models/digits/3/model.onnx'}");
    let pod = deployment(&model, "a1b2c3d4e5", &snapshot(&model), 1).unwrap().spec.unwrap().template.spec.unwrap();
    insta::assert_yaml_snapshot!((&pod.volumes, &pod.containers[0].args, &pod.containers[0].volume_mounts));
}

#[test]
fn a_model_in_a_config_map() {
    let model = model("model: {uri: 'configmap://digits-model/digits.onnx'}");
    let pod = deployment(&model, "a1b2c3d4e5", &snapshot(&model), 1).unwrap().spec.unwrap().template.spec.unwrap();
    insta::assert_yaml_snapshot!((&pod.volumes, &pod.containers[0].args, &pod.containers[0].volume_mounts));
}

#[test]
fn a_place_for_the_pods() {
    let model = model(
        "
        model: {uri: 'file:///m.onnx'}
        scheduling:
          nodeSelector: {topology.kubernetes.io/zone: eu-1a, disktype: ssd}
          tolerations:
          - {key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}
          - {key: dedicated, value: models}
          - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 10}
          spread:
          - {topologyKey: topology.kubernetes.io/zone, maxSkew: 2, whenUnsatisfiable: DoNotSchedule}
          priorityClassName: models
          runtimeClassName: gvisor
        ",
    );
    let pod = deployment(&model, "a1b2c3d4e5", &snapshot(&model), 1).unwrap().spec.unwrap().template.spec.unwrap();
    insta::assert_yaml_snapshot!((
        &pod.node_selector,
        &pod.tolerations,
        &pod.topology_spread_constraints,
        &pod.priority_class_name,
        &pod.runtime_class_name
    ));
}

#[test]
fn an_empty_spread_spreads_nothing() {
    let model = model("{model: {uri: 'file:///m.onnx'}, scheduling: {spread: []}}");
    let pod = deployment(&model, "a1b2c3d4e5", &snapshot(&model), 1).unwrap().spec.unwrap().template.spec.unwrap();
    assert_eq!(pod.topology_spread_constraints, None);
}

#[test]
fn a_model_in_an_object_store_with_its_credentials() {
    let pod = pod("model: {uri: 's3://models/digits/3/m.onnx', credentialsSecret: models-s3}").spec.unwrap();
    insta::assert_yaml_snapshot!((&pod.volumes, &pod.containers[0].args, &pod.containers[0].volume_mounts));
}

#[test]
fn a_server_with_api_keys_and_a_response_cache() {
    let pod =
        pod("{model: {uri: 'https://h/m.onnx'}, server: {apiKeysSecret: keys, responseCache: 1.5Mi}}").spec.unwrap();
    let volume = pod.volumes.unwrap().into_iter().find(|volume| volume.name == "api-keys").unwrap();
    assert_eq!(volume.secret.unwrap().secret_name.as_deref(), Some("keys"));
    let container = &pod.containers[0];
    let arguments = container.args.clone().unwrap();
    for argument in ["--api-keys-dir=/api-keys", "--response-cache=1572864"] {
        assert!(arguments.contains(&argument.to_owned()), "{arguments:?}");
    }
    let mounts = container.volume_mounts.as_ref().unwrap();
    let mount = mounts.iter().find(|mount| mount.name == "api-keys").unwrap();
    assert_eq!((&*mount.mount_path, mount.read_only), ("/api-keys", Some(true)));
}

#[test]
fn a_server_that_tells_of_its_requests() {
    let pod =
        |server: &str| pod(&format!("{{model: {{uri: 'https://h/m.onnx'}}, server: {{{server}}}}}")).spec.unwrap();
    let traced = pod("tracing: {endpoint: 'http://collector:4318'}, requestLog: {sampleRatio: '0.001'}");
    insta::assert_yaml_snapshot!((&traced.containers[0].args, &traced.containers[0].env));
    let plain = pod("");
    assert_eq!(plain.containers[0].env, None);
    let logged = pod("requestLog: {sampleRatio: '1'}");
    assert_eq!(logged.containers[0].env, None, "only traces tell where they come from");
}

#[test]
fn a_server_that_is_to_find_out_how_to_run() {
    let arguments = |server: &str| {
        let pod = pod(&format!("{{model: {{uri: 'https://h/m.onnx'}}, server: {server}}}")).spec.unwrap();
        pod.containers[0].args.clone().unwrap()
    };
    assert!(arguments("{autotune: true}").contains(&"--autotune".to_owned()));
    assert_eq!(arguments("{autotune: false}"), arguments("{}"), "as those that were there before");
}

#[test]
fn the_identity_of_a_cloud_comes_by_a_service_account_and_never_by_its_kubernetes_token() {
    let spec = |uri: &str| format!("{{model: {{uri: '{uri}'}}, server: {{serviceAccountName: reader}}}}");
    for (uri, label, flag) in [
        ("s3://models/m.onnx", false, false),
        ("gs://models/m.onnx", false, true),
        ("az://models/m.onnx", true, false),
        ("pvc://models/m.onnx", false, false),
    ] {
        let template = pod(&spec(uri));
        let pod = template.spec.unwrap();
        assert_eq!(pod.service_account_name.as_deref(), Some("reader"), "{uri}");
        assert_eq!(pod.automount_service_account_token, Some(false), "{uri}");
        let labels = template.metadata.unwrap().labels.unwrap();
        assert_eq!(labels.contains_key("azure.workload.identity/use"), label, "{uri}");
        let arguments = pod.containers[0].args.clone().unwrap();
        assert_eq!(arguments.contains(&"--cloud-identity".to_owned()), flag, "{uri}");
    }
}

#[test]
fn the_lock() {
    let lock = lock(&model("model: {uri: 'file:///m.onnx'}"), "a1b2c3d4e5", &"ab".repeat(32));
    insta::assert_yaml_snapshot!(lock);
    assert_eq!(locked(&lock), Some(&*"ab".repeat(32)));
}

/// As ControllerRevisions hold it that were written before there was a lock.
#[test]
fn a_snapshot_from_before_there_was_a_lock_renders_the_pods_that_there_are() {
    let model = model("model: {uri: 'https://h/m.onnx'}");
    let old: Snapshot = serde_json::from_value(serde_json::json!({"spec": model.revision, "image": "i"})).unwrap();
    let text = serde_json::to_string(&deployment(&model, "a1b2c3d4e5", &old, 1).unwrap()).unwrap();
    assert!(!old.is_locked() && !text.contains("lock"), "{text}");
    let given = self::model(&format!("model: {{uri: 'https://h/m.onnx', sha256: '{}'}}", "0".repeat(64)));
    assert!(!Snapshot { renderer: Renderer::NEWEST, ..snapshot(&given) }.is_locked(), "a digest that a person gave");
}

#[test]
fn the_service() {
    let model = model("model: {uri: 'file:///m.onnx'}");
    insta::assert_yaml_snapshot!(service(&model, kinds(&[&model], &[])));
    assert_eq!(url(&model), "http://digits.ml.svc");
}

/// The kinds of what these models ask for, and of pods that are still there of those.
fn kinds(wanted: &[&DesiredModel], there: &[&DesiredModel]) -> Kinds {
    let wanted: Vec<_> = wanted.iter().map(|model| snapshot(model)).collect();
    let pods: Vec<_> = there
        .iter()
        .map(|model| deployment(model, "a1b2c3d4e5", &snapshot(model), 1).unwrap().spec.unwrap().template.spec.unwrap())
        .collect();
    Kinds::of(wanted.iter(), pods.iter())
}

fn plain_and_tls() -> (DesiredModel, DesiredModel) {
    let spec = "model: {uri: 'https://h/m.onnx'}";
    let tls = "server: {tls: {certificateSecret: web, clientCASecret: clients}}";
    (model(&format!("{{{spec}}}")), model(&format!("{{{spec}, {tls}}}")))
}

#[test]
fn a_server_with_tls_and_certificates_of_clients() {
    let (_, tls) = plain_and_tls();
    let pod = deployment(&tls, "a1b2c3d4e5", &snapshot(&tls), 1).unwrap().spec.unwrap().template.spec.unwrap();
    let container = &pod.containers[0];
    insta::assert_yaml_snapshot!((&pod.volumes, &container.args, &container.volume_mounts, &container.ports));
    // The kubelet speaks to the port that stays as it is.
    for probe in [&container.readiness_probe, &container.liveness_probe] {
        assert_eq!(probe.as_ref().unwrap().http_get.as_ref().unwrap().scheme.as_deref(), Some("HTTP"));
    }
    let without = model("{model: {uri: 'https://h/m.onnx'}, server: {tls: {certificateSecret: web}}}");
    let text = serde_json::to_string(&deployment(&without, "a1b2c3d4e5", &snapshot(&without), 1).unwrap()).unwrap();
    assert!(text.contains("--tls-dir=/tls") && !text.contains("client-ca"), "{text}");
}

#[test]
fn the_service_of_servers_with_tls_and_of_both_kinds() {
    let (plain, tls) = plain_and_tls();
    insta::assert_yaml_snapshot!((
        service(&tls, kinds(&[&tls], &[])).spec.unwrap().ports,
        service(&tls, kinds(&[&plain, &tls], &[])).spec.unwrap().ports
    ));
    assert_eq!(url(&tls), "https://digits.ml.svc");
}

#[test]
fn the_ports_of_a_kind_stay_until_its_last_server_is_gone() {
    let (plain, tls) = plain_and_tls();
    let both = kinds(&[&plain, &tls], &[]);
    for (wanted, there, expected) in [
        (vec![&tls], vec![&plain], both),
        (vec![&plain], vec![&tls], both),
        (vec![&tls], vec![&plain, &tls], both),
        (vec![&tls], vec![&tls], kinds(&[&tls], &[])),
    ] {
        assert_eq!(kinds(&wanted, &there), expected);
    }
    for kinds in [both, kinds(&[&tls], &[]), kinds(&[&plain], &[])] {
        assert_eq!(Kinds::of_service(&service(&plain, kinds)), kinds, "what a Service says of itself");
    }
    let only = kinds(&[&plain], &[]);
    assert!(both.has_more_than(only) && !only.has_more_than(both) && !both.has_more_than(both));
    assert!(kinds(&[&tls], &[]).has_more_than(only));
}

/// Somebody else's port, for a sidecar of theirs, is no port of ours.
#[test]
fn a_port_that_others_added_is_no_kind_of_server() {
    let (plain, _) = plain_and_tls();
    let only = kinds(&[&plain], &[]);
    let mut service = service(&plain, only);
    let theirs = serde_json::json!({"name": "https", "port": 443, "targetPort": 15443});
    service.spec.as_mut().unwrap().ports.as_mut().unwrap().push(serde_json::from_value(theirs).unwrap());
    assert_eq!(Kinds::of_service(&service), only);
}

#[test]
fn limits_of_clients_are_flags_of_the_server() {
    let arguments = |limit: &str| {
        let spec = format!("{{model: {{uri: 'https://h/m.onnx'}}, server: {{clientLimit: {limit}}}}}");
        pod(&spec).spec.unwrap().containers.remove(0).args.unwrap()
    };
    let flags = ["--client-requests-per-second=20", "--client-burst=50"].map(str::to_owned);
    let both = arguments("{requestsPerSecond: 20, burst: 50}");
    assert!(flags.iter().all(|flag| both.contains(flag)), "{both:?}");
    let one = arguments("{requestsPerSecond: 20}");
    assert!(one.contains(&flags[0]) && !one.iter().any(|argument| argument.contains("burst")), "{one:?}");
}

#[test]
fn the_disruption_budget() {
    insta::assert_yaml_snapshot!(disruption_budget(&model("model: {uri: 'file:///m.onnx'}")));
}

#[test]
fn the_network_policy() {
    let open = Network {
        operator: "ortolan-system".to_owned(),
        monitoring: vec!["monitoring".to_owned()],
        clients: Clients::Everyone,
        block_metadata: false,
    };
    let closed =
        Network { clients: Clients::Namespaces(vec!["shop".to_owned()]), block_metadata: true, ..open.clone() };
    let model = model("model: {uri: 'file:///m.onnx'}");
    insta::assert_yaml_snapshot!((network_policy(&model, &open), network_policy(&model, &closed).spec));
}

#[test]
fn the_snapshot_of_a_revision_comes_back_as_it_was() {
    let model = model("model: {uri: 'file:///m.onnx'}");
    let snapshot = snapshot(&model);
    let object = controller_revision(&model, "a1b2c3d4e5", &snapshot, 4);
    insta::assert_yaml_snapshot!(object);
    assert_eq!(snapshot_of(&object, Renderer::NEWEST), Some(snapshot));
}

#[test]
fn a_newer_rendering_is_for_newer_snapshots_only() {
    let model = model("model: {uri: 'pvc://models/m.onnx'}");
    let render = |snapshot: &Snapshot| deployment(&model, "a1b2c3d4e5", snapshot, 2).unwrap();
    let old = snapshot(&model);
    let new = Snapshot { renderer: Renderer::TRIAL, ..old.clone() };
    let stored = controller_revision(&model, "a1b2c3d4e5", &old, 1);
    let read = snapshot_of(&stored, Renderer::TRIAL).unwrap();
    assert_eq!(render(&read), render(&old), "whatever the operator knows besides");
    assert_ne!(render(&new).spec.unwrap().template, render(&old).spec.unwrap().template);
}

#[test]
fn an_operator_does_not_take_the_snapshot_of_a_newer_one_for_its_own() {
    let model = model("model: {uri: 'pvc://models/m.onnx'}");
    let newer = Snapshot { renderer: Renderer::TRIAL, ..snapshot(&model) };
    let stored = controller_revision(&model, "a1b2c3d4e5", &newer, 1);
    assert_eq!(snapshot_of(&stored, Renderer::NEWEST), None);
    assert_eq!(snapshot_of(&stored, Renderer::TRIAL), Some(newer));
}

#[test]
fn equal_input_gives_equal_bytes() {
    let model = model("model: {uri: 'pvc://models/m.onnx'}");
    let render = || serde_json::to_vec(&deployment(&model, "a1b2c3d4e5", &snapshot(&model), 2).unwrap()).unwrap();
    assert_eq!(render(), render());
}
