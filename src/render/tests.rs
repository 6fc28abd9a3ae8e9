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
    insta::assert_yaml_snapshot!(service(&model));
    assert_eq!(url(&model), "http://digits.ml.svc");
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
