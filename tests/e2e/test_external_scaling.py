"""Other scalers than Ortolan: kubectl, and the HorizontalPodAutoscaler of the real controller manager."""

import json
import re

import pytest

from harness.external_metrics import METRIC, ExternalMetrics
from harness.gitops import WAYS, Reapplied, Repository
from harness.kube import KubectlError, manifest, wait_for


@pytest.fixture
def metrics(namespace, tmp_path):
    made = ExternalMetrics(namespace, tmp_path)
    yield made
    made.close()


def autoscaler(model: str, lowest: int, highest: int) -> dict:
    """Ten of the metric for each server, up and down without waiting."""
    at_once = {"policies": [{"type": "Pods", "value": 100, "periodSeconds": 1}], "stabilizationWindowSeconds": 0}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": model},
        "spec": {
            "scaleTargetRef": {"apiVersion": "ortolan.dev/v1alpha1", "kind": "ModelDeployment", "name": model},
            "minReplicas": lowest,
            "maxReplicas": highest,
            "metrics": [{"type": "External", "external": {"metric": {"name": METRIC}, "target": {"type": "AverageValue", "averageValue": "10"}}}],
            "behavior": {"scaleUp": at_once, "scaleDown": at_once},
        },
    }


def replicas_managers(namespace, name: str) -> set[str]:
    """Who owns `spec.replicas`."""
    model = json.loads(namespace.kubectl("get", "modeldeployment", name, "--show-managed-fields", "--output", "json"))
    entries = model["metadata"]["managedFields"]
    return {entry["manager"] for entry in entries if "f:replicas" in entry["fieldsV1"].get("f:spec", {})}


def test_a_horizontal_pod_autoscaler_scales_a_model_that_git_goes_on_applying(namespace, store, digits, metrics, tmp_path):
    uri = store.add("one.onnx", digits)
    metrics.value = 10
    # As it is in the repository: without replicas. One model for each way of applying.
    repositories = {way: Repository(tmp_path / way, namespace) for way in ("client", "server")}
    for way, repository in repositories.items():
        repository.write(manifest(way, uri))
        repository.apply(way)
        namespace.apply(autoscaler(way, 1, 3))
    namespace.apply(manifest("by-latency", uri, scaling={"maxReplicas": 3, "latency": {"target": "1s"}}))
    namespace.apply(autoscaler("by-latency", 2, 3))
    namespace.apply(manifest("by-cpu", uri))
    namespace.kubectl("autoscale", "modeldeployment", "by-cpu", "--min=2", "--max=3", "--cpu=80%")
    for way in repositories:
        namespace.wait_served(way)
    loops = {way: Reapplied(repository, way) for way, repository in repositories.items()}
    try:
        scaled(namespace, repositories, 1)
        wait_for("the autoscaler has asked for the metric", lambda: metrics.questions > 0, 40)
        metrics.value = 30
        scaled(namespace, repositories, 3)
        for way in repositories:
            # REFERENCE, TARGETS, MINPODS, MAXPODS, REPLICAS: numbers, nothing unknown.
            numbers = rf"ModelDeployment/{way}\s+10/10 \(avg\)\s+1\s+3\s+3\s"
            wait_for(f"kubectl get hpa shows {numbers}", lambda numbers=numbers: re.search(numbers, namespace.kubectl("get", "hpa")), 20)
            assert replicas_managers(namespace, way) <= {"kube-controller-manager"}, "nobody who applies owns the number"
        metrics.value = 10
        scaled(namespace, repositories, 1)
    finally:
        for loop in loops.values():
            loop.stop()
    for way, loop in loops.items():
        print(f"\n{way}: applied {loop.times} times beside the autoscaler")
        assert loop.wrong == [], loop.wrong[0]
    print(namespace.kubectl("get", "hpa"))
    # What `kubectl autoscale` makes is an autoscaler as well: its lower bound is kept without any metric.
    wait_for("the bound of kubectl autoscale is kept", lambda: namespace.status("by-cpu")["replicas"] == 2, 40)
    refused = lambda: next((c["message"] for c in hpa_conditions(namespace, "by-latency") if c["type"] == "AbleToScale" and c["status"] == "False"), "")
    wait_for("the autoscaler is told that Ortolan scales", lambda: "remove one of the two" in refused(), 40)
    print(refused())
    assert namespace.model("by-latency")["spec"]["replicas"] == 1


def scaled(namespace, names, replicas: int) -> None:
    for name in names:
        wait_for(f"{name} has {replicas} servers", lambda name=name: namespace.status(name)["replicas"] == replicas, 60)
        namespace.wait_served(name)
        assert namespace.model(name)["spec"]["replicas"] == replicas


def hpa_conditions(namespace, name: str) -> list[dict]:
    return namespace.get("hpa", name).get("status", {}).get("conditions", [])


def test_kubectl_scale_is_kept_by_every_way_of_applying_a_manifest_without_replicas(namespace, tmp_path):
    """Nothing has to serve here."""
    print()
    for way in WAYS:
        repository = Repository(tmp_path / way, namespace)
        repository.write(manifest(way, "file:///nowhere/m.onnx"))
        repository.apply(way)
        scale = json.loads(namespace.kubectl("get", "modeldeployment", way, "--subresource=scale", "--output", "json"))
        assert scale["spec"] == {"replicas": 1}, "an autoscaler can read what nobody has written yet"
        wait_for("the selector is there", lambda way=way: namespace.status(way).get("selector"), 20)
        namespace.kubectl("scale", "modeldeployment", way, "--replicas=3")
        generation = namespace.model(way)["metadata"]["generation"]
        for _ in range(3):
            repository.apply(way)
            assert repository.drift(way) == ""
        seen = namespace.model(way)
        assert (seen["spec"]["replicas"], seen["metadata"]["generation"]) == (3, generation)
        wait_for("three servers are wanted", lambda way=way: namespace.status(way)["scaling"]["desired"] == 3, 20)
        # A latency target cannot come while somebody else scales; one patch makes the exchange.
        latency = {"maxReplicas": 4, "latency": {"target": "1s"}}
        repository.write(manifest(way, "file:///nowhere/m.onnx", scaling=latency))
        with pytest.raises(KubectlError, match="remove one of the two") as refused:
            repository.apply(way)
        print(f"{way}: {refused.value}")
        patch = {"spec": {"replicas": None, "scaling": latency}}
        namespace.kubectl("patch", "modeldeployment", way, "--type=merge", "--patch", json.dumps(patch))
        repository.apply(way)
        assert repository.drift(way) == ""
        assert namespace.status(way)["scaling"]["desired"] == 3, "Ortolan goes on from there"
