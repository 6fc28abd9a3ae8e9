//! The CEL rules, evaluated without a cluster: what passes, and what is refused with which words.

use serde_json::{Value, json};

use super::*;

fn object(spec: &Value) -> Result<ModelDeployment, serde_json::Error> {
    serde_json::from_value(json!({
        "apiVersion": "ortolan.dev/v1alpha1", "kind": "ModelDeployment",
        "metadata": {"name": "digits", "namespace": "ml"}, "spec": spec,
    }))
}

/// The messages with which a spec is refused; empty when it passes.
fn refused(spec: &Value) -> String {
    object(spec).unwrap().validate_cel().map_or_else(|error| error.to_string(), |()| String::new())
}

fn with(path: &str, value: Value) -> Value {
    let mut spec = json!({"model": {"uri": "https://models.example.org/digits.onnx"}});
    let mut place = &mut spec;
    for key in path.split('.') {
        place = &mut place[key];
    }
    *place = value;
    spec
}

#[test]
fn the_specs_of_the_readme_pass() {
    for spec in [
        json!({"model": {"uri": "https://models.example.org/digits.onnx"}}),
        json!({"model": {"uri": "pvc://models/digits/3/model.onnx", "sha256": "0".repeat(64)}}),
        json!({"model": {"uri": "configmap://digits-model/digits.onnx"}, "replicas": 3}),
        json!({"model": {"uri": "s3://models/digits/3/model v2.onnx", "credentialsSecret": "models-s3", "version": "3"}}),
        json!({"model": {"uri": "gs://models/m.onnx"}, "server": {"serviceAccountName": "models.reader"}}),
        json!({"model": {"uri": "az://models/m.onnx", "credentialsSecret": "models-az"}}),
        json!({"model": {"uri": "az://models/m.onnx"}, "server": {"apiKeysSecret": "clients", "responseCache": "64Mi"}}),
        json!({"model": {"uri": "https://models.example.org/m.onnx", "credentialsSecret": "token"}}),
        json!({"model": {"uri": "oci://registry.example.org:5000/models/digits:v1.0", "credentialsSecret": "registry"}}),
        json!({"model": {"uri": format!("oci+http://registry.ml.svc/digits@sha256:{}", "0".repeat(64))}}),
        json!({"model": {"uri": "hf://org/digits/onnx/model.onnx", "credentialsSecret": "hub"}}),
        json!({"model": {"uri": "hf://org/digits@v1.0/model.onnx"}}),
        json!({"model": {"uri": "https://h/m"}, "server": {"tls": {"certificateSecret": "web"}}}),
        json!({
            "model": {"uri": "https://h/m"},
            "server": {
                "tls": {"certificateSecret": "web.example.org", "clientCASecret": "clients"},
                "clientLimit": {"requestsPerSecond": 20, "burst": 1},
            },
        }),
        json!({"model": {"uri": "https://h/m.onnx"}, "server": {"autotune": true}}),
        json!({"model": {"uri": "https://h/m.onnx"}, "server": {"autotune": false, "threads": 2}}),
        json!({
            "model": {"uri": "http://models.ml.svc:8000/digits.onnx?version=3"},
            "server": {
                "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"cpu": 1, "memory": "1Gi"}},
                "batching": {"maxSize": 64, "maxDelay": "2ms"},
                "threads": 2, "instances": 3,
            },
            "scaling": {"minReplicas": 1, "maxReplicas": 4, "latency": {"quantile": "p95", "target": "50ms"}},
        }),
        json!({
            "model": {"uri": "https://h/m"},
            "scheduling": {
                "nodeSelector": {"topology.kubernetes.io/zone": "eu-1a", "disktype": ""},
                "tolerations": [
                    {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
                    {"key": "dedicated", "value": "models"},
                    {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 10},
                ],
                "spread": [
                    {"topologyKey": "topology.kubernetes.io/zone", "maxSkew": 2, "whenUnsatisfiable": "DoNotSchedule"},
                    {"topologyKey": "kubernetes.io/hostname"},
                ],
                "priorityClassName": "models", "runtimeClassName": "gvisor",
            },
        }),
    ] {
        assert_eq!(refused(&spec), "", "{spec}");
    }
}

/// Each spec is refused, with these words in the message.
fn are_refused(cases: impl IntoIterator<Item = (Value, &'static str)>) {
    for (spec, words) in cases {
        let message = refused(&spec);
        assert!(message.contains(words), "{spec} was answered {message:?}, expected words about {words:?}");
    }
}

#[test]
fn what_is_refused_says_what_was_expected() {
    let latency = |target: &str| json!({"maxReplicas": 4, "latency": {"target": target}});
    are_refused([
        (with("model.uri", json!("models/digits.onnx")), "must be https://HOST/PATH"),
        (with("model.uri", json!("ftp://models.example.org/digits.onnx")), "must be https://HOST/PATH"),
        (with("model.uri", json!("pvc://claim-only")), "pvc://CLAIM/PATH"),
        (with("model.uri", json!("https://user:word@h/digits.onnx")), "user name or password"),
        (with("model.uri", json!("pvc://models/../other/m.onnx")), "must not contain '..'"),
        (with("model.uri", json!("s3://models")), "s3://BUCKET/KEY"),
        (with("model.uri", json!("s3://models/a//b")), "s3://BUCKET/KEY"),
        (with("model.uri", json!("az://mo:dels/k")), "az://CONTAINER/KEY"),
        (with("model.uri", json!("oci://registry.example.org")), "oci://HOST/REPOSITORY:TAG"),
        (with("model.uri", json!("oci://registry.example.org/Models:1")), "oci://HOST/REPOSITORY:TAG"),
        (with("model.uri", json!("oci://registry.example.org/m@sha256:12")), "oci://HOST/REPOSITORY:TAG"),
        (with("model.uri", json!("oci://user:word@registry.example.org/m")), "user name or password"),
        (with("model.uri", json!("hf://org/digits")), "hf://OWNER/NAME/PATH"),
        (with("model.uri", json!("https://models.example.org/net.PT")), "a Python pickle"),
        (with("model.credentialsSecret", json!("Models")), "credentialsSecret must be a Secret's name"),
        (with("model.credentialsSecret", json!("other/models")), "credentialsSecret must be a Secret's name"),
        (
            with("model", json!({"uri": "pvc://models/m.onnx", "credentialsSecret": "models"})),
            "credentialsSecret is for models that are fetched over the network",
        ),
        (with("model.version", json!("a b")), "version must be 1 to 63"),
        (with("model.sha256", json!("abc")), "64 lower-case hexadecimal digits"),
        (with("model.sha256", json!("A".repeat(64))), "64 lower-case hexadecimal digits"),
        (with("rollout.progressDeadline", json!("0s")), "progressDeadline must be a duration from 1s to 1440m"),
        (with("scaling", latency("soon")), "target must be a duration above zero"),
        (with("scaling", latency("0ms")), "target must be a duration above zero"),
        (with("scaling", json!({"latency": {"target": "50ms"}})), "latency and maxReplicas go together"),
        (with("scaling", json!({"maxReplicas": 3})), "latency and maxReplicas go together"),
        (
            with("scaling", json!({"minReplicas": 5, "maxReplicas": 4, "latency": {"target": "1s"}})),
            "minReplicas must not be above",
        ),
        (json!({"model": {"uri": "https://h/m"}, "replicas": 2, "scaling": latency("1s")}), "remove one of the two"),
    ]);
}

#[test]
fn servers_that_cannot_be_made_are_refused() {
    let resources = |requests: Value, limits: Value| json!({"resources": {"requests": requests, "limits": limits}});
    are_refused([
        (with("server", json!({"serviceAccountName": "-"})), "serviceAccountName must be a ServiceAccount's name"),
        (with("server", json!({"apiKeysSecret": "Keys"})), "apiKeysSecret must be a Secret's name"),
        (
            with("server", json!({"tls": {"certificateSecret": "other/web"}})),
            "certificateSecret must be a Secret's name",
        ),
        (
            with("server", json!({"tls": {"certificateSecret": "web", "clientCASecret": ""}})),
            "clientCASecret must be a Secret's name",
        ),
        (with("server", json!({"autotune": true, "threads": 2})), "autotune finds out what threads and instances say"),
        (
            with("server", json!({"autotune": true, "instances": 1})),
            "autotune finds out what threads and instances say",
        ),
        (with("server", json!({"responseCache": "much"})), "responseCache must be a quantity from 64Ki to 1Ti"),
        (with("server", json!({"responseCache": 0})), "responseCache must be a quantity from 64Ki to 1Ti"),
        (
            with("server", json!({"responseCache": "1Gi", "resources": {"limits": {"memory": "1024Mi"}}})),
            "responseCache must be below resources.limits.memory",
        ),
        (with("server.batching.maxDelay", json!("fast")), "maxDelay must be a duration"),
        (with("server.batching.maxDelay", json!("20s")), "from 0s to 10s"),
        (with("server", resources(json!({"cpu": "lots"}), json!({}))), "cpu must be a positive quantity"),
        (with("server", resources(json!({}), json!({"memory": "-1"}))), "memory must be a positive quantity"),
        (with("server", resources(json!({"cpu": 2}), json!({"cpu": "500m"}))), "requests.cpu must not be above"),
        (
            with("server", resources(json!({"memory": "2Gi"}), json!({"memory": "1Gi"}))),
            "requests.memory must not be above",
        ),
        (with("server.loadTimeout", json!("1h")), "loadTimeout must be a duration from 1s to 1440m"),
    ]);
}

#[test]
fn what_is_told_of_requests_goes_to_an_endpoint_and_is_a_fraction() {
    let tracing =
        |endpoint: &str, ratio: &str| with("server.tracing", json!({"endpoint": endpoint, "sampleRatio": ratio}));
    let log = |ratio: &str| with("server.requestLog", json!({"sampleRatio": ratio}));
    for spec in [
        with("server.tracing", json!({"endpoint": "http://collector.monitoring.svc:4318"})),
        tracing("http://collector.monitoring.svc:4318/", "0.05"),
        tracing("https://[fd00::7]/otlp", "1.0"),
        log("0"),
        log("0.001"),
    ] {
        assert_eq!(refused(&spec), "", "{spec}");
    }
    are_refused([
        (tracing("collector:4318", "1"), "the endpoint must be http://HOST:PORT"),
        (tracing("ftp://collector", "1"), "the endpoint must be http://HOST:PORT"),
        (tracing("http://collector/?token=word", "1"), "the endpoint must be http://HOST:PORT"),
        (tracing("http://collector /", "1"), "the endpoint must be http://HOST:PORT"),
        (tracing("http://user:word@collector:4318", "1"), "must not hold a user name or password"),
        (tracing("http://collector", "1.5"), "sampleRatio must be a fraction from 0 to 1"),
        (tracing("http://collector", "-0.5"), "sampleRatio must be a fraction from 0 to 1"),
        (tracing("http://collector", "5%"), "sampleRatio must be a fraction from 0 to 1"),
        (log(".5"), "sampleRatio must be a fraction from 0 to 1"),
    ]);
    let float = with("server.requestLog", json!({"sampleRatio": 0.5}));
    assert!(object(&float).is_err(), "floats do not survive every client");
}

/// kstatus takes an object without status for one that is as it should be; so does every tool that is built on it.
#[test]
fn an_object_that_nobody_has_looked_at_yet_says_so() {
    let crd = serde_json::to_value(definition()).unwrap();
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
    assert_eq!(schema["status"]["default"], json!({"observedGeneration": -1}));
    assert_eq!(schema["spec"]["properties"]["replicas"]["default"], json!(1));
}

#[test]
fn what_would_reach_beyond_the_namespace_is_no_scheduling() {
    let toleration = |toleration: Value| with("scheduling.tolerations", json!([toleration]));
    let spread = |key: &str| with("scheduling.spread", json!([{"topologyKey": key}]));
    are_refused([
        (with("scheduling.nodeSelector", json!({"a/b/c": "x"})), "key of nodeSelector must be a node's label"),
        (with("scheduling.nodeSelector", json!({"Zone.Example/a": "x"})), "key of nodeSelector must be a node's label"),
        (with("scheduling.nodeSelector", json!({"a": "x y"})), "value of nodeSelector must be a label's"),
        (with("scheduling.priorityClassName", json!("system-node-critical")), "must not begin with system-"),
        (with("scheduling.priorityClassName", json!("High")), "must be the name of a PriorityClass"),
        (with("scheduling.runtimeClassName", json!("../kata")), "must be the name of a RuntimeClass"),
        (spread("not a label"), "topologyKey must be a node's label"),
        (toleration(json!({"key": "a b"})), "key must be a taint's key"),
        (toleration(json!({"key": "a", "value": "-"})), "value must be a taint's value"),
        (toleration(json!({"key": "a", "operator": "Exists", "value": "b"})), "takes any value"),
        (toleration(json!({"key": "a", "tolerationSeconds": 3})), "goes with effect: NoExecute"),
        (toleration(json!({"key": "node-role.kubernetes.io/control-plane"})), "the control plane's nodes"),
        (toleration(json!({"key": "node.kubernetes.io/unschedulable"})), "only not-ready and unreachable"),
        (
            toleration(json!({"key": "node.cloudprovider.kubernetes.io/uninitialized"})),
            "only not-ready and unreachable",
        ),
        (
            toleration(json!({"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"})),
            "only not-ready and unreachable",
        ),
    ]);
    assert!(object(&toleration(json!({"operator": "Exists"}))).is_err(), "a toleration of every taint");
}

#[test]
fn a_name_that_cannot_be_a_services_is_refused() {
    for (name, passes) in [("digits-2", true), ("2digits", false), ("a.b", false), (&*"x".repeat(41), false)] {
        let mut object = object(&json!({"model": {"uri": "https://h/m"}})).unwrap();
        object.metadata.name = Some(name.to_owned());
        assert_eq!(object.validate_cel().is_ok(), passes, "{name}");
    }
}

#[test]
fn fields_of_the_wrong_type_are_no_model_deployment() {
    assert!(object(&json!({"model": {"uri": 7}})).is_err());
    assert!(object(&json!({"model": {"uri": "https://h/m", "format": "pickle"}})).is_err());
    assert!(object(&json!({})).is_err());
    assert!(object(&with("server", json!({"tls": {}}))).is_err(), "TLS without a certificate");
    assert!(object(&with("server", json!({"clientLimit": {"burst": 5}}))).is_err(), "a limit without a number");
}
