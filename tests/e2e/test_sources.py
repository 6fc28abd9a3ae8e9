"""Models in a real S3 server: who is let in, who is not and why, and what becomes of a revision whose bytes change."""

import hashlib
import json

import pytest

from harness.kube import KubectlError, kubectl, manifest, wait_for
from harness.s3 import ACCESS_KEY, S3, SECRET_KEY, secret
from harness.sabotage import Sabotage, add
from harness.sts import TokenService, give_identity


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    made = S3(tmp_path_factory.mktemp("s3"))
    yield made
    made.close()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def apply_all(namespace, objects: list[dict]) -> None:
    namespace.apply({"apiVersion": "v1", "kind": "List", "items": objects})


def label(namespace, name: str) -> int:
    """What a model sees in a blank image."""
    return namespace.ask(name, "pixels")["label"][0]


def everything_told(namespace) -> str:
    """All that anybody but the owner of the Secret gets to read: objects, Events, logs."""
    told = [namespace.kubectl("get", "modeldeployments,deployments,replicasets,pods,configmaps,events", "--output", "json")]
    told.append(namespace.kubectl("get", "controllerrevisions", "--output", "json"))
    for pod in namespace.items("pods"):
        for previous in ("--previous=false", "--previous=true"):
            try:
                told.append(namespace.kubectl("logs", pod["metadata"]["name"], previous))
            except KubectlError:
                pass  # a container that has not run, or not twice
    told.append(kubectl("--namespace", "ortolan-system", "logs", "deployment/ortolan", "--tail=-1"))
    return "\n".join(told)


def tells_no_secret(namespace) -> None:
    told = everything_told(namespace)
    for hushed in (SECRET_KEY, ACCESS_KEY, "AKIANOBODY0000000001", "X-Amz-Signature", "AWS4-HMAC-SHA256"):
        assert hushed not in told, f"{hushed} is told"


def test_credentials_let_a_model_in_and_every_mistake_is_named_without_them(namespace, s3, digits):
    uri = s3.put("models", "digits/3/model v1.onnx", digits)
    wrong = "wrong-" + SECRET_KEY
    # Name, uri, the keys of its Secret, condition, reason, words of the message.
    cases = [
        ("wrong-secret", uri, s3.keys(AWS_SECRET_ACCESS_KEY=wrong), "ArtifactResolved", "SourceForbidden", ["AWS_SECRET_ACCESS_KEY"]),
        ("no-secret", uri, None, "WorkloadAvailable", "SecretNotFound", ["no-secret"]),
        ("wrong-id", uri, s3.keys(AWS_ACCESS_KEY_ID="AKIANOBODY0000000001"), "ArtifactResolved", "SourceForbidden", ["AWS_ACCESS_KEY_ID"]),
        ("no-key", uri, s3.keys(AWS_SECRET_ACCESS_KEY=None), "ArtifactResolved", "CredentialsInvalid", ["no key AWS_SECRET_ACCESS_KEY", "AWS_REGION"]),
        ("mistyped", uri, s3.keys(AWS_ENDPOINT="x"), "ArtifactResolved", "CredentialsInvalid", ["AWS_ENDPOINT,", "AWS_ENDPOINT_URL"]),
        ("no-bucket", "s3://nowhere/m.onnx", s3.keys(), "ArtifactResolved", "SourceNotFound", ["no bucket 'nowhere'"]),
        ("no-object", "s3://models/none.onnx", s3.keys(), "ArtifactResolved", "SourceNotFound", ["object 'none.onnx' in bucket 'models'"]),
        ("wrong-region", uri, s3.keys(AWS_REGION="us-east-1"), "ArtifactResolved", "CredentialsInvalid", ["eu-test-1", "AWS_REGION"]),
        ("closed", uri, s3.keys(AWS_ENDPOINT_URL="http://10.244.0.1:9"), "ArtifactResolved", "SourceUnreachable", ["10.244.0.1:9"]),
        ("nobody", uri, {"AWS_ENDPOINT_URL": s3.endpoint}, "ArtifactResolved", "SourceForbidden", ["spec.model.credentialsSecret"]),
    ]
    objects = [secret("good", s3.keys()), manifest("good", uri, credentialsSecret="good")]
    for name, where, keys, *_ in cases:
        objects += [manifest(name, where, credentialsSecret=name), *([secret(name, keys)] if keys is not None else [])]
    apply_all(namespace, objects)
    namespace.wait_served("good")
    assert namespace.status("good")["stable"]["digest"] == f"sha256:{sha256(digits)}"
    assert label(namespace, "good") in range(10)
    print()
    for name, _, _, condition, reason, words in cases:
        found = namespace.wait_condition(name, condition, "False", reason, timeout=90)
        print(f"{name}: {condition}={reason}: {found['message']}")
        assert all(word in found["message"] for word in words), found["message"]
        if name == "no-secret":
            # What was wrong or missing comes right while the others are looked at.
            tells_no_secret(namespace)
            apply_all(namespace, [secret("no-secret", s3.keys()), secret("wrong-secret", s3.keys())])
    tells_no_secret(namespace)
    # They serve without anybody touching them.
    namespace.wait_served("no-secret", timeout=90)
    namespace.wait_served("wrong-secret", timeout=90)
    # A Secret that was rotated reaches the next server, and only that one.
    namespace.apply(secret("good", s3.keys(AWS_SECRET_ACCESS_KEY=wrong)))
    namespace.kubectl("scale", "modeldeployment", "good", "--replicas=2")
    namespace.wait_condition("good", "WorkloadAvailable", "False")
    wait_for("the new server is refused", lambda: "SourceForbidden" in namespace.kubectl("get", "pods", "--selector", "ortolan.dev/model=good", "--output", "json"), 30)
    assert label(namespace, "good") in range(10)
    namespace.apply(secret("good", s3.keys()))
    namespace.wait_served("good", timeout=90)


def test_a_revision_keeps_the_bytes_that_it_began_with(namespace, s3, digits, digits_v2):
    uri = s3.put("models", "latest.onnx", digits)
    apply_all(namespace, [secret("s3", s3.keys()), manifest("latest", uri, credentialsSecret="s3", replicas=2)])
    namespace.wait_served("latest")
    revision = namespace.status("latest")["stable"]["revision"]
    lock = namespace.get("configmap", f"latest-{revision}-lock")
    assert (lock["data"], lock["immutable"]) == ({"sha256": sha256(digits)}, True)
    assert lock["metadata"]["ownerReferences"][0]["name"] == "latest"
    pods = sorted(pod["metadata"]["creationTimestamp"] for pod in namespace.pods("latest"))
    assert pods[1] >= lock["metadata"]["creationTimestamp"], "the second server waits for the first one's digest"

    s3.put("models", "latest.onnx", digits_v2)
    namespace.kubectl("scale", "modeldeployment", "latest", "--replicas=3")
    found = namespace.wait_condition("latest", "ArtifactResolved", "False", "DigestChanged")
    print(f"\n{found['message']}")
    for word in (revision, sha256(digits), sha256(digits_v2), "spec.model.version"):
        assert word in found["message"]
    assert namespace.condition("latest", "Ready")["status"] == "True"
    assert namespace.condition("latest", "Stalled") == {}
    assert namespace.status("latest")["stable"]["digest"] == f"sha256:{sha256(digits)}"
    assert label(namespace, "latest") in range(10)

    # The new bytes, on purpose: a revision of their own.
    namespace.kubectl("patch", "modeldeployment", "latest", "--type=merge", "--patch", '{"spec": {"model": {"version": "2"}}}')
    namespace.wait_served("latest")
    stable = namespace.status("latest")["stable"]
    assert (stable["digest"], stable["revision"] != revision) == (f"sha256:{sha256(digits_v2)}", True)
    # And back: the old revision's lock is still there, and says why it cannot be.
    namespace.kubectl("patch", "modeldeployment", "latest", "--type=merge", "--patch", '{"spec": {"model": {"version": null}}}')
    namespace.wait_condition("latest", "ArtifactResolved", "False", "DigestChanged")
    assert namespace.condition("latest", "Ready")["status"] == "True"
    s3.put("models", "latest.onnx", digits)
    namespace.wait_served("latest", timeout=90)
    assert namespace.status("latest")["stable"]["revision"] == revision

    # Snapshots of revisions that nobody will go back to are removed, and their locks with them.
    for number in range(3, 10):
        version = json.dumps({"spec": {"model": {"version": str(number)}}})
        namespace.kubectl("patch", "modeldeployment", "latest", "--type=merge", "--patch", version)
        generation = namespace.model("latest")["metadata"]["generation"]
        wait_for("the revision is made", lambda: namespace.status("latest").get("observedGeneration") == generation, 30)
    namespace.wait_served("latest", timeout=90)
    locks = lambda: [lock["metadata"]["name"] for lock in namespace.items("configmaps", "--selector", "ortolan.dev/model=latest")]
    wait_for("the first revision's lock is gone", lambda: f"latest-{revision}-lock" not in locks(), 30)
    assert len(locks()) <= 6


def test_the_identity_of_a_service_account_lets_a_model_in_as_on_eks(namespace, s3, digits):
    """The pods' tokens are made by the kubelet and judged by the API server; the keys that they are exchanged for sign requests to the
    S3 server. Of AWS, only the token service is a stand-in."""
    uri = s3.put("models", "identity.onnx", digits)
    sts = TokenService(s3, f"system:serviceaccount:{namespace.name}:model-reader")
    webhook = Sabotage(namespace.name)
    try:
        for name in ("trusted", "another"):
            give_identity(webhook, name, sts)
        webhook.refuse("refused", "no")
        webhook.change("dry", add("/spec/containers/0/args/-", "--nonsense"))
        webhook.wait(refused="refused", changed="dry")
        accounts = [{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}} for name in ("model-reader", "stranger")]
        place = {"AWS_REGION": s3.keys()["AWS_REGION"], "AWS_ENDPOINT_URL": s3.endpoint}
        models = [
            manifest("trusted", uri, credentialsSecret="place", server={"serviceAccountName": "model-reader"}),
            manifest("another", uri, credentialsSecret="place", server={"serviceAccountName": "stranger"}),
        ]
        apply_all(namespace, [*accounts, secret("place", place), *models])
        namespace.wait_served("trusted")
        assert label(namespace, "trusted") in range(10)
        refused = namespace.wait_condition("another", "ArtifactResolved", "False", "SourceForbidden", timeout=90)["message"]
        print(f"\n{refused}")
        assert "gives no token to the pod's service account" in refused
        assert set(sts.asked) == {f"system:serviceaccount:{namespace.name}:{name}" for name in ("model-reader", "stranger")}
        tells_no_secret(namespace)
    finally:
        webhook.close()
        sts.close()
