"""Bad input: each has its condition, its reason and a sentence that helps."""

import hashlib
import json

import pytest

from harness.kube import KubectlError, kubectl, manifest, wait_for

WRONG = "0" * 64


def cases(store, digits) -> list[tuple[str, dict, str, str, list[str]]]:
    """Name, manifest, condition, reason, words of the message."""
    good = store.add("good.onnx", digits)
    store.answers = {"forbidden.onnx": 403, "broken.onnx": 503}
    text = store.add("text.onnx", b"<html><body>please log in</body></html>")
    digest = hashlib.sha256(digits).hexdigest()
    return [
        ("unreachable", manifest("unreachable", "http://10.244.0.1:9/m.onnx"), "ArtifactResolved", "SourceUnreachable", ["10.244.0.1"]),
        ("unknown-host", manifest("unknown-host", "http://no-such-host.invalid/m.onnx"), "ArtifactResolved", "SourceUnreachable", ["no-such-host.invalid"]),
        ("missing", manifest("missing", store.uri("missing.onnx")), "ArtifactResolved", "SourceNotFound", ["404"]),
        ("forbidden", manifest("forbidden", store.uri("forbidden.onnx")), "ArtifactResolved", "SourceForbidden", ["403"]),
        ("broken", manifest("broken", store.uri("broken.onnx")), "ArtifactResolved", "SourceUnreachable", ["503"]),
        ("digest", manifest("digest", good, sha256=WRONG), "ArtifactResolved", "DigestMismatch", [WRONG, digest]),
        ("text", manifest("text", text), "ModelLoaded", "ModelInvalid", ["ONNX"]),
        ("no-config-map", manifest("no-config-map", "configmap://nowhere/m.onnx"), "WorkloadAvailable", "ConfigMapNotFound", ["nowhere"]),
        ("no-image-file", manifest("no-image-file", "file:///nowhere/m.onnx"), "ArtifactResolved", "SourceNotFound", []),
    ]


def test_every_bad_input_says_what_is_wrong_and_harms_nobody(namespace, store, digits):
    namespace.apply(manifest("healthy", store.add("healthy.onnx", digits)))
    namespace.wait_served("healthy")
    provoked = cases(store, digits)
    for _, model, *_ in provoked:
        namespace.apply(model)
    print()
    for name, _, condition, reason, words in provoked:
        found = namespace.wait_condition(name, condition, "False", reason, timeout=90)
        print(f"{name}: {condition}={reason}: {found['message']}")
        for word in words:
            assert word in found["message"]
        ready = namespace.wait_condition(name, "Ready", "False", reason)
        assert ready["message"].endswith(found["message"]) or reason in found["reason"]
        warned = lambda name=name, reason=reason: reason in {event["reason"] for event in namespace.events(name)}
        wait_for(f"an Event about {name}", warned, 15)
    print(namespace.kubectl("get", "modeldeployments"))
    assert namespace.condition("healthy", "Ready")["status"] == "True"
    permanent = {"SourceNotFound", "SourceForbidden", "DigestMismatch", "ModelInvalid"}
    for name, _, _, reason, _ in provoked:
        assert (namespace.condition(name, "Stalled").get("status") == "True") == (reason in permanent), name
    # What was missing comes: the model serves without anybody touching it.
    store.add("missing.onnx", digits)
    namespace.wait_served("missing")


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
