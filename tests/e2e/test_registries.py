"""Models in a real registry, pushed by oras; models of several files, and models in archives."""

import io
import pathlib
import tarfile

import pytest

from harness.kube import manifest, wait_for
from harness.registry import PASSWORD, Registry

MODELS = pathlib.Path(__file__).resolve().parents[2] / "inference-server" / "tests" / "models"
# What `sha256sum external.onnx external.bin | sha256sum` says.
TOGETHER = "bb49188ff11efdaf4d58a54ee11fbe904c07fffb9fd1b996333ae873774e01e1"


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    made = Registry(tmp_path_factory.mktemp("registry"))
    yield made
    made.close()


def external() -> dict[str, bytes]:
    """A model whose weights are in another file, and that file."""
    return {name: (MODELS / name).read_bytes() for name in ("external.onnx", "external.bin")}


def archive(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"model/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def test_an_artifact_is_served_and_a_revision_stays_with_it_when_its_tag_moves(namespace, registry, digits, digits_v2):
    first = registry.push("models/digits:3", {"model.onnx": digits})
    objects = [
        registry.login("registry"),
        registry.login("wrong", password="hush-another"),
        manifest("digits", registry.uri("models/digits:3"), credentialsSecret="registry"),
        manifest("nobody", registry.uri("models/digits:3")),
        manifest("wrong", registry.uri("models/digits:3"), credentialsSecret="wrong"),
        manifest("no-tag", registry.uri("models/digits:none"), credentialsSecret="registry"),
    ]
    namespace.apply({"apiVersion": "v1", "kind": "List", "items": objects})
    namespace.wait_served("digits")
    assert namespace.status("digits")["stable"]["digest"] == first
    assert namespace.ask("digits", "pixels")

    # A server that comes later reads what the first one read, though the tag leads elsewhere now.
    second = registry.push("models/digits:3", {"model.onnx": digits_v2})
    assert second != first
    namespace.kubectl("scale", "modeldeployment", "digits", "--replicas=2")
    namespace.wait_served("digits")
    assert namespace.status("digits")["stable"]["digest"] == first
    # What the tag leads to, on purpose, is a new revision.
    namespace.kubectl("patch", "modeldeployment", "digits", "--type=merge", "--patch", '{"spec": {"model": {"version": "2"}}}')
    namespace.wait_served("digits")
    assert namespace.status("digits")["stable"]["digest"] == second

    print()
    for name, reason, words in [
        ("nobody", "SourceForbidden", "kubernetes.io/dockerconfigjson"),
        ("wrong", "SourceForbidden", "credentials Secret"),
        ("no-tag", "SourceNotFound", "models/digits:none"),
    ]:
        found = namespace.wait_condition(name, "ArtifactResolved", "False", reason, timeout=90)["message"]
        print(found)
        assert words in found
    told = namespace.kubectl("get", "modeldeployments,deployments,pods,events", "--output", "json")
    assert PASSWORD not in told and "hush-another" not in told

    # The manifest that a revision is bound to is deleted: those that serve go on, and the next one says what is missing.
    registry.delete(f"models/digits@{second}")
    namespace.kubectl("scale", "modeldeployment", "digits", "--replicas=3")
    found = namespace.wait_condition("digits", "Reconciling", "True", "SourceNotFound", timeout=90)["message"]
    print(found)
    assert second in found and namespace.condition("digits", "Ready")["status"] == "True"


def test_a_model_of_several_files_is_served_from_wherever_it_comes(namespace, registry, store):
    files = external()
    pushed = registry.push("models/external:1", files)
    packed = archive(files)
    for name, content in files.items():
        beside = store.add(name, content)
    registry.push("models/folder:1", {f"net/{name}": content for name, content in files.items()}, paths=["net"])
    registry.push("models/packed:1", {"model.tar.gz": packed})
    web, tar = beside.replace("external.bin", "external.onnx"), store.add("packed", packed)
    objects = [
        registry.login("registry"),
        manifest("pushed", registry.uri("models/external:1"), credentialsSecret="registry"),
        manifest("web", web, sha256=TOGETHER),
        manifest("packed", tar),
        manifest("pushed-folder", registry.uri("models/folder:1"), credentialsSecret="registry"),
        manifest("pushed-archive", registry.uri("models/packed:1"), credentialsSecret="registry"),
    ]
    namespace.apply({"apiVersion": "v1", "kind": "List", "items": objects})
    answers = []
    for name in ("pushed", "web", "packed", "pushed-folder", "pushed-archive"):
        namespace.wait_served(name, timeout=90)
        (answer,) = namespace.ask(name, "x").values()
        answers.append(answer)
    assert all(answer == answers[0] for answer in answers) and abs(sum(answers[0]) - 1) < 1e-5
    assert namespace.status("pushed")["stable"]["digest"] == pushed
    # Changed bytes in the other file are changed bytes of the model.
    store.add("external.bin", files["external.bin"][::-1])
    namespace.kubectl("scale", "modeldeployment", "web", "--replicas=2")
    found = namespace.wait_condition("web", "Reconciling", "True", "DigestMismatch", timeout=90)["message"]
    assert TOGETHER in found
    store.add("external.bin", files["external.bin"])
    wait_for("the second server is ready", lambda: namespace.condition("web", "WorkloadAvailable")["status"] == "True", 90)
