"""Bad input, bad luck and bad surroundings: each has its condition, its reason and a sentence that helps, and harms nobody."""

import json

import pytest

from harness import failures
from harness.cluster import leader_node, node
from harness.failures import Case
from harness.kube import KubectlError, kubectl, manifest, wait_for
from harness.load import Load
from harness.load import failures as failed_requests
from harness.sabotage import Sabotage, add

BODY = json.dumps({"inputs": [{"name": "pixels", "datatype": "FP32", "shape": [1, 64], "data": [0.0] * 64}]}).encode()


@pytest.fixture
def sabotage(namespace):
    """Policies that spoil the pods of single models."""
    made = Sabotage(namespace.name)
    yield made
    made.close()
    failures.remove_volumes(namespace)


def servers(namespace, name: str) -> dict[str, int]:
    """How often each server of a model that is ready was restarted, by its pod's UID."""
    statuses = {pod["metadata"]["uid"]: pod["status"]["containerStatuses"][0] for pod in namespace.pods(name) if "containerStatuses" in pod["status"]}
    return {uid: status["restartCount"] for uid, status in statuses.items() if status["ready"]}


def restarts(namespace, name: str) -> int:
    return sum(status["restartCount"] for pod in namespace.pods(name) for status in pod["status"].get("containerStatuses", []))


def load_on(namespace, name: str) -> Load:
    return Load(namespace.infer_url(name), BODY, rate=10, seconds=300)


def check_case(namespace, case: Case) -> None:
    """Waits for the reason; it is in Ready, in an Event, and in Stalled where a person is needed."""
    namespace.wait_condition(case.name, "Ready", "False", case.reason, timeout=90)
    warned = lambda: case.reason in {event["reason"] for event in namespace.events(case.name)}
    wait_for(f"an Event {case.reason} about {case.name}", warned, 15)
    if case.name == "late":
        namespace.wait_condition("late", "Stalled", "True", "ProgressDeadlineExceeded", timeout=30)
    else:
        assert (namespace.condition(case.name, "Stalled").get("reason") == case.reason) == case.stalled, case.name
        assert bool(namespace.condition(case.name, "Reconciling")) != case.stalled, case.name


def check_cases(namespace, cases: list[Case]) -> None:
    """Checks them all, and tells of all that are wrong."""
    wrong = []
    for case in cases:
        try:
            check_case(namespace, case)
        except AssertionError as error:
            wrong.append(error)
    if wrong:
        raise ExceptionGroup("models that do not fail as they should", wrong)


def test_every_way_to_fail_says_why_and_harms_nobody(namespace, sabotage, store, digits):
    for name in ("healthy", "stable"):
        namespace.apply(manifest(name, store.add(f"{name}.onnx", digits)))
    cases = failures.said_by_servers(namespace, store, digits) + failures.seen_from_outside(namespace, store, sabotage)
    for name in ("healthy", "stable"):
        namespace.wait_served(name)
    unhurt = {name: servers(namespace, name) for name in ("healthy", "stable")}
    load = [load_on(namespace, name) for name in unhurt]
    try:
        for case in cases:
            namespace.apply(case.manifest)
        # A revision that serves, and a new one that cannot.
        namespace.apply(manifest("stable", store.uri("text.onnx")))
        check_cases(namespace, cases)
        namespace.wait_condition("stable", "Stalled", "True", "ModelInvalid")
        assert "does not start" in namespace.condition("stable", "Ready")["message"]
        stay_the_same(namespace, [case for case in cases if case.loops])
        print(namespace.kubectl("get", "modeldeployments"))
        failures.capture(namespace, cases)
        failures.compare({name: failures.told(namespace.status(name)) for name in [case.name for case in cases] + ["stable"]})
    finally:
        for attack in load:
            attack.stop()
    for attack in load:
        answers = attack.answers()
        assert answers and not failed_requests(answers), failed_requests(answers)[:5]
    for name, before in unhurt.items():
        assert servers(namespace, name) == before, name
    # What was missing comes, and what was no model becomes one: they serve without anybody touching them. No revision
    # was bound to bytes that never served.
    for name in ("missing", "text"):
        store.add(f"{name}.onnx", digits)
    for name in ("missing", "text", "stable"):
        namespace.wait_served(name, timeout=120)


def stay_the_same(namespace, looping: list[Case]) -> None:
    """While their containers are restarted, not one word of what is said about models changes, nor is any of it written anew."""

    def seen() -> dict[str, tuple]:
        models = {case.name: namespace.model(case.name) for case in looping}
        return {name: (model["metadata"]["resourceVersion"], model["status"]["conditions"]) for name, model in models.items()}

    # The first end of a container may have had other words than the second: killed before it could say anything.
    wait_for("all have ended twice", lambda: all(restarts(namespace, case.name) >= 2 for case in looping), 60)
    before, counts = seen(), {case.name: restarts(namespace, case.name) for case in looping}
    again = lambda: all(restarts(namespace, name) >= count + 2 for name, count in counts.items())
    wait_for("all have ended twice more", again, 60)
    after = seen()
    different = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
    assert not different, json.dumps(different, indent=1)


def test_what_a_namespace_forbids_is_said(namespace, store, digits):
    namespace.apply(manifest("healthy", store.add("one.onnx", digits)))
    namespace.wait_served("healthy")
    before = servers(namespace, "healthy")
    namespace.apply({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "one-pod"}, "spec": {"hard": {"pods": "1"}}})
    limits = [{"type": "Container", "max": {"cpu": "1"}}]
    namespace.apply({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "small"}, "spec": {"limits": limits}})
    counted = lambda: namespace.get("resourcequota", "one-pod").get("status", {}).get("used", {}).get("pods") == "1"
    wait_for("the quota is counted", counted, 20)
    large = {"resources": {"limits": {"cpu": "2"}}}
    cases = [
        Case(manifest("over-quota", store.uri("one.onnx")), "QuotaExceeded"),
        Case(manifest("over-limit", store.uri("one.onnx"), server=large), "AdmissionRefused"),
    ]
    for case in cases:
        namespace.apply(case.manifest)
    check_cases(namespace, cases)
    failures.capture(namespace, cases)
    failures.compare({case.name: failures.told(namespace.status(case.name)) for case in cases})
    assert servers(namespace, "healthy") == before


def test_a_server_that_had_to_leave_for_another_pod_says_so(namespace, sabotage, store, digits):
    slot = {"example.com/slot": "1"}
    place = "/status/capacity/example.com~1slot"
    patch = lambda step: kubectl("patch", "node", "node-0", "--subresource=status", "--type=json", "--patch", json.dumps([step]))
    patch(add(place, "1"))
    try:
        sabotage.change("victim", add("/spec/containers/0/resources", {"limits": slot, "requests": slot}))
        sabotage.change("dry", add("/spec/containers/0/args/-", "--nonsense"))
        sabotage.refuse("wet", "no")
        sabotage.wait(refused="wet", changed="dry")
        namespace.apply(manifest("victim", store.add("one.onnx", digits)))
        namespace.wait_served("victim")
        namespace.wait_condition("victim", "ArtifactResolved", "True", "Resolved")
        namespace.apply({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "ortolan-test"}, "value": 1000})
        server = namespace.pods("victim")[0]["spec"]
        container = {**server["containers"][0], "volumeMounts": [], "args": ["--help"]}
        spec = {"priorityClassName": "ortolan-test", "containers": [container], "securityContext": server["securityContext"]}
        namespace.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "important"}, "spec": spec})
        namespace.wait_condition("victim", "Ready", "False", "Preempted")
        failures.compare({"victim": failures.told(namespace.status("victim"))})
    finally:
        patch({"op": "remove", "path": place})
        kubectl("delete", "priorityclass", "ortolan-test", "--ignore-not-found")


def test_a_lost_node_is_said(namespace, store, digits):
    lost = "node-1" if leader_node() == "node-0" else "node-0"
    namespace.apply(manifest("digits", store.add("one.onnx", digits), replicas=2))
    namespace.wait_served("digits")
    namespace.wait_condition("digits", "ArtifactResolved", "True", "Resolved")
    assert lost in {pod["spec"]["nodeName"] for pod in namespace.pods("digits")}
    node("stop", lost)
    try:
        namespace.wait_condition("digits", "WorkloadAvailable", "False", "NodeLost")
        failures.compare({"node-lost": failures.told(namespace.status("digits"))})
    finally:
        node("start", lost)
    namespace.wait_served("digits", timeout=90)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"model": {"uri": "ftp://h/m.onnx"}}, "must be https://HOST/PATH"),
        ({"model": {"uri": "https://user:word@h/m.onnx"}}, "user name or password"),
        ({"model": {"uri": "pvc://models/../m.onnx"}}, "must not contain '..'"),
        ({"model": {"uri": "https://h/m.onnx", "sha256": "12"}}, "64 lower-case hexadecimal digits"),
        ({"model": {"uri": "https://h/m.onnx", "format": "pickle"}}, 'Unsupported value: "pickle"'),
        ({"model": {"uri": "https://h/m.onnx"}, "scaling": {"minReplicas": 0}}, "greater than or equal to 1"),
        ({"model": {"uri": "https://h/m.onnx"}, "scaling": {"latency": {"target": "1s"}}}, "latency and maxReplicas go together"),
        (
            {"model": {"uri": "https://h/m.onnx"}, "scaling": {"minReplicas": 5, "maxReplicas": 2, "latency": {"target": "1s"}}},
            "minReplicas must not be above maxReplicas",
        ),
        ({"model": {"uri": "https://h/m.onnx"}, "scaling": {"maxReplicas": 2, "latency": {"target": "0s"}}}, "duration above zero"),
        (
            {"model": {"uri": "https://h/m.onnx"}, "replicas": 2, "scaling": {"maxReplicas": 2, "latency": {"target": "1s"}}},
            "remove one of the two",
        ),
        ({"model": {"uri": "https://h/m.onnx"}, "server": {"batching": {"maxDelay": "1h"}}}, "maxDelay must be a duration"),
        ({"model": {"uri": "https://h/m.onnx"}, "server": {"resources": {"limits": {"cpu": "much"}}}}, "cpu must be a positive quantity"),
        (
            {"model": {"uri": "https://h/m.onnx"}, "server": {"resources": {"requests": {"memory": "2Gi"}, "limits": {"memory": "1Gi"}}}},
            "requests.memory must not be above",
        ),
        ({"model": {"uri": "https://h/m.onnx"}, "quality": {}}, 'unknown field "spec.quality"'),
    ],
)
def test_a_manifest_is_refused_by_the_api_server(spec, words):
    model = {"apiVersion": "ortolan.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": "refused"}, "spec": spec}
    with pytest.raises(KubectlError) as refused:
        kubectl("apply", "--dry-run=server", "--filename", "-", stdin=json.dumps(model))
    assert words in str(refused.value)


def test_a_name_that_no_service_can_have_is_refused():
    with pytest.raises(KubectlError, match="the name becomes a Service's"):
        kubectl("apply", "--dry-run=server", "--filename", "-", stdin=json.dumps(manifest("2digits", "https://h/m.onnx")))


def test_an_empty_value_is_as_good_as_none():
    """What a template leaves where it has no value: `serviceAccountName:`. Everything that is not needed can be left so."""
    definition = json.loads(kubectl("get", "crd", "modeldeployments.ortolan.dev", "--output", "json"))
    schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]

    def empty(schema: dict, given: dict) -> dict:
        """Null for whatever may be left out, down to objects of nothing else."""
        inner = {name: empty(inner, {}) for name, inner in schema["properties"].items() if inner.get("properties") and not inner.get("required")}
        needed = schema.get("required", [])
        return {name: None for name in schema["properties"] if name not in needed} | {name: value for name, value in inner.items() if value} | given

    def created(spec: dict) -> dict:
        model = manifest("empty", "https://h/m.onnx") | {"spec": spec}
        return filled(json.loads(kubectl("create", "--dry-run=server", "--output", "json", "--filename", "-", stdin=json.dumps(model)))["spec"])

    def filled(value):
        """Without objects in which there is nothing."""
        if not isinstance(value, dict):
            return value
        inner = {name: filled(inner) for name, inner in value.items()}
        return {name: inner for name, inner in inner.items() if inner != {}}

    model = schema["properties"]["model"]
    spec = empty(schema, {"model": empty(model, {"uri": "https://h/m.onnx"})})
    assert spec["server"]["apiKeysSecret"] is None and spec["model"]["credentialsSecret"] is None, spec
    assert created(spec) == created({"model": {"uri": "https://h/m.onnx"}})
