"""Changes of a model that serves: new revisions, edited children, deletion."""

import json

import pytest

from harness.kube import KubectlError, manifest, wait_for
from harness.load import Load, failures

BODY = json.dumps({"inputs": [{"name": "pixels", "datatype": "FP32", "shape": [1, 64], "data": [0.0] * 64}]}).encode()
CHILDREN = "deployments,replicasets,pods,services,poddisruptionbudgets,networkpolicies,controllerrevisions"


def with_digest(namespace) -> dict | None:
    """The stable revision, once a server has told its digest."""
    stable = namespace.status("digits")["stable"]
    return stable if "digest" in stable else None


def test_a_new_model_file_is_rolled_out_without_a_failed_request(namespace, store, digits, digits_v2):
    namespace.apply(manifest("digits", store.add("one.onnx", digits), replicas=2))
    namespace.wait_served("digits")
    first = wait_for("the digest is known", lambda: with_digest(namespace), 10)
    load = Load(namespace.infer_url("digits"), BODY, rate=50, seconds=300)
    try:
        namespace.apply(manifest("digits", store.add("two.onnx", digits_v2), replicas=2))
        namespace.wait_served("digits")
        second = wait_for("the digest is known", lambda: with_digest(namespace), 10)
        assert second["revision"] != first["revision"] and second["digest"] != first["digest"]
        gone = lambda: len(namespace.items("pods", "--selector", f"ortolan.dev/revision={first['revision']}")) == 0
        wait_for("the old revision's servers have drained", gone, 60)
    finally:
        load.stop()
    answers = load.answers()
    print(f"\n{len(answers)} requests during the rollout, failed: {failures(answers) or 'none'}")
    assert len(answers) > 100
    assert failures(answers) == []
    reasons = {event["reason"] for event in namespace.events("digits")}
    assert {"RolloutStarted", "Promoted"} <= reasons
    # Both snapshots are kept: the first is what a rollback needs.
    assert len(namespace.items("controllerrevisions")) == 2


def test_a_new_revision_that_cannot_load_leaves_the_serving_one_alone(namespace, store, digits):
    namespace.apply(manifest("digits", store.add("one.onnx", digits), replicas=1))
    namespace.wait_served("digits")
    serving = namespace.pods("digits")[0]["metadata"]["uid"]
    namespace.apply(manifest("digits", store.add("bad.onnx", b"these are not the weights\n"), replicas=1))
    stalled = namespace.wait_condition("digits", "Stalled", "True", "ModelInvalid")
    assert namespace.condition("digits", "Ready")["status"] == "True"
    assert serving in [pod["metadata"]["uid"] for pod in namespace.pods("digits")]
    print(f"\n{stalled['message']}\n{namespace.kubectl('get', 'modeldeployment', 'digits', '--output', 'wide')}")
    namespace.apply(manifest("digits", store.uri("one.onnx"), replicas=1))
    namespace.wait_served("digits")
    assert [pod["metadata"]["uid"] for pod in namespace.pods("digits")] == [serving], "going back restarts nothing"


def test_children_that_are_edited_or_deleted_are_put_back(namespace, store, digits):
    namespace.apply(manifest("digits", store.add("one.onnx", digits), replicas=1))
    namespace.wait_served("digits")
    deployment = namespace.items("deployments")[0]
    name = deployment["metadata"]["name"]

    def edit(kind, child, patch):
        namespace.kubectl("patch", kind, child, "--type", "merge", "--patch", json.dumps(patch))

    edit("deployment", name, {"spec": {"replicas": 3}})
    wait_for("replicas are put back", lambda: namespace.get("deployment", name)["spec"]["replicas"] == 1, 15)
    edit("service", "digits", {"spec": {"ports": [{"name": "http", "port": 80, "targetPort": 1234}]}})
    ports = lambda: [port["targetPort"] for port in namespace.get("service", "digits")["spec"]["ports"]]
    wait_for("the Service's ports are put back", lambda: 8080 in ports() and 1234 not in ports(), 15)
    edit("service", "digits", {"spec": {"selector": {"nobody": "has-this"}}})
    selector = lambda: namespace.get("service", "digits")["spec"]["selector"]
    wait_for("the Service's selector is put back", lambda: "nobody" not in selector(), 15)
    edit("poddisruptionbudget", "digits", {"spec": {"maxUnavailable": 5}})
    budget = lambda: namespace.get("poddisruptionbudget", "digits")["spec"]["maxUnavailable"]
    wait_for("the budget is put back", lambda: budget() == 1, 15)
    wait_for("an Event says so", lambda: "PutBack" in {event["reason"] for event in namespace.events("digits")}, 15)
    uid = deployment["metadata"]["uid"]
    namespace.kubectl("delete", "deployment", name)
    fresh = lambda: any(item["metadata"]["uid"] != uid for item in namespace.items("deployments"))
    wait_for("a deleted Deployment is made again", fresh, 15)
    namespace.wait_served("digits")


def test_a_deleted_model_leaves_nothing_and_can_be_made_again_at_once(namespace, store, digits):
    model = manifest("digits", store.add("one.onnx", digits), replicas=2)
    namespace.apply(model)
    namespace.wait_served("digits")
    namespace.kubectl("delete", "modeldeployment", "digits", "--wait=false")
    namespace.apply(model)
    namespace.wait_served("digits")
    namespace.kubectl("delete", "modeldeployment", "digits")
    wait_for("every child is gone", lambda: namespace.items(CHILDREN) == [], 90)


def test_a_service_of_somebody_else_is_not_taken_over(namespace, store, digits):
    namespace.kubectl("create", "service", "clusterip", "digits", "--tcp=80:80")
    before = namespace.get("service", "digits")["spec"]
    namespace.apply(manifest("digits", store.add("one.onnx", digits)))
    ready = namespace.wait_condition("digits", "RouteReady", "False", "ApplyFailed")
    print(f"\n{ready['message']}")
    assert "belongs to someone else" in ready["message"]
    namespace.wait_condition("digits", "Stalled", "True", "ApplyFailed")
    assert namespace.get("service", "digits")["spec"] == before
    namespace.kubectl("delete", "service", "digits")
    namespace.wait_served("digits")


def test_the_scale_subresource_sets_replicas_and_is_refused_beside_a_latency_target(namespace, store, digits):
    uri = store.add("one.onnx", digits)
    namespace.apply(manifest("digits", uri))
    namespace.wait_served("digits")
    namespace.kubectl("scale", "modeldeployment", "digits", "--replicas=2")
    namespace.wait_served("digits")
    assert len(namespace.pods("digits")) == 2
    scale = json.loads(namespace.kubectl("get", "modeldeployment", "digits", "--subresource=scale", "--output", "json"))
    assert scale["status"] == {"replicas": 2, "selector": "ortolan.dev/model=digits"}
    namespace.apply(manifest("other", uri, scaling={"maxReplicas": 2, "latency": {"target": "1s"}}))
    with pytest.raises(KubectlError, match="remove one of the two"):
        namespace.kubectl("scale", "modeldeployment", "other", "--replicas=2")


def test_revisions_that_nobody_goes_back_to_are_forgotten_with_their_digest_locks(namespace, store, digits):
    uri = store.add("one.onnx", digits)
    newest = lambda: max(item["revision"] for item in namespace.items("controllerrevisions"))
    locks = lambda: {item["metadata"]["name"] for item in namespace.items("configmaps", "--selector", "ortolan.dev/model=digits")}
    namespace.apply(manifest("digits", uri))
    namespace.wait_served("digits")
    wait_for("the first lock", lambda: len(locks()) == 1, 30)
    (first,) = locks()
    namespace.apply(manifest("digits", uri, server={"batching": {"maxSize": 2}}))
    namespace.wait_served("digits")
    assert first in locks(), "the last ones are kept, to go back to"
    for number in range(6):
        before = newest()
        namespace.apply(manifest("digits", store.uri(f"missing-{number}.onnx")))
        wait_for("another revision", lambda before=before: newest() > before, 20)
    wait_for("the first one is forgotten", lambda: first not in locks(), 20)
    assert namespace.condition("digits", "Ready")["status"] == "True"
    assert len(namespace.items("controllerrevisions")) <= 8
