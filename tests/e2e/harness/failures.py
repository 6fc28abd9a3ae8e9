"""Every way in which a model fails to serve: what is applied, and the reason that is to come of it."""

import dataclasses
import datetime
import json
import os
import pathlib
import re

import yaml

from harness.kube import Namespace, manifest
from harness.models import HOST, ModelStore, heavy
from harness.sabotage import Sabotage, add

ROOT = pathlib.Path(__file__).resolve().parents[3]
MODELS = ROOT / "inference-server" / "tests" / "models"
GOLDEN = ROOT / "tests" / "e2e" / "golden" / "failures.yaml"
WRONG = "0" * 64


@dataclasses.dataclass
class Case:
    """One ModelDeployment that cannot serve."""

    manifest: dict
    reason: str
    # Needs a person: Stalled at once, under the same reason.
    stalled: bool = False
    # Its container ends again and again.
    loops: bool = False

    @property
    def name(self) -> str:
        return self.manifest["metadata"]["name"]


def said_by_servers(namespace: Namespace, store: ModelStore, digits: bytes) -> list[Case]:
    """What the server itself finds out."""
    good = store.add("good.onnx", digits)
    store.answers = {"forbidden.onnx": 403, "broken.onnx": 503}
    text = store.add("text.onnx", b"<html><body>please log in</body></html>")
    files = {"opset": "refused-opset", "external": "external", "outside": "refused-external", "endless": "refused-endless"}
    uris = {name: store.add(f"{name}.onnx", (MODELS / f"{file}.onnx").read_bytes()) for name, file in files.items()}
    # About 100 MiB: beside what the server has before, at most 30 MiB, it fits into 152 MiB, and its copy while it is loaded does not.
    large = store.add("large.onnx", heavy(5120, 1, in_nodes=True))
    memory = lambda limit: {"resources": {"requests": {"memory": "16Mi"}, "limits": {"memory": limit}}}
    secret = lambda name, **data: namespace.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data})
    secret("clear", team="hushhush")
    secret("broken", **{"tls.crt": "-----BEGIN CERTIFICATE-----", "tls.key": "hushhush"})
    stalled = {"stalled": True, "loops": True}
    return [
        Case(manifest("unreachable", f"http://{HOST}:9/m.onnx"), "SourceUnreachable"),
        Case(manifest("unknown-host", "http://no-such-host.invalid/m.onnx"), "SourceUnreachable"),
        Case(manifest("broken", store.uri("broken.onnx")), "SourceUnreachable"),
        Case(manifest("missing", store.uri("missing.onnx")), "SourceNotFound", **stalled),
        Case(manifest("no-image-file", "file:///nowhere/m.onnx"), "SourceNotFound", **stalled),
        Case(manifest("forbidden", store.uri("forbidden.onnx")), "SourceForbidden", **stalled),
        Case(manifest("digest", good, sha256=WRONG), "DigestMismatch", **stalled),
        Case(manifest("text", text), "ModelInvalid", **stalled),
        Case(manifest("opset", uris["opset"]), "ModelUnsupported", **stalled),
        Case(manifest("external", uris["external"]), "ExternalDataMissing", **stalled),
        Case(manifest("outside", uris["outside"]), "ModelInvalid", **stalled),
        Case(manifest("endless", uris["endless"], server={"loadTimeout": "2s"}), "LoadTimedOut", **stalled),
        Case(manifest("clear-keys", good, server={"apiKeysSecret": "clear"}), "ApiKeysInvalid", **stalled),
        Case(manifest("broken-tls", good, server={"tls": {"certificateSecret": "broken"}}), "TlsInvalid", **stalled),
        Case(manifest("too-large", large, server=memory("48Mi")), "OutOfMemory", **stalled),
        Case(manifest("killed", large, server=memory("152Mi")), "OutOfMemory", **stalled),
    ]


def seen_from_outside(namespace: Namespace, store: ModelStore, sabotage: Sabotage) -> list[Case]:
    """What becomes of the pod before the server can say anything, or although it says nothing."""
    good, endless = store.uri("good.onnx"), store.uri("endless.onnx")
    volumes(namespace)
    sabotage.change("volume-read-only", add("/spec/containers/0/volumeMounts/0/readOnly", True))
    sabotage.change("no-image", add("/spec/containers/0/image", "images.invalid/ortolan-server:9"))
    sabotage.change("not-ready", add("/spec/containers/0/readinessProbe/httpGet/path", "/nowhere"))
    probe = "/spec/containers/0/livenessProbe"
    sabotage.change("not-alive", add(f"{probe}/httpGet/path", "/nowhere"), add(f"{probe}/periodSeconds", 2), add(f"{probe}/failureThreshold", 1))
    sabotage.change("evicted", add("/spec/volumes/0/emptyDir", {"sizeLimit": "1Ki"}))
    sabotage.change("insecure", add("/spec/hostNetwork", True))
    sabotage.refuse("refused", "only approved models may run here")
    sabotage.change("crash", add("/spec/containers/0/args/-", "--nonsense"))
    sabotage.wait(refused="refused", changed="crash")
    many = {"resources": {"requests": {"cpu": "1000"}}}
    return [
        Case(manifest("volume-read-only", good), "VolumeReadOnly", stalled=True, loops=True),
        Case(manifest("no-image", good), "ImageUnavailable"),
        Case(manifest("no-secret", "s3://models/m.onnx", credentialsSecret="nowhere"), "SecretNotFound"),
        Case(manifest("no-tls", good, server={"tls": {"certificateSecret": "nowhere"}}), "SecretNotFound"),
        Case(manifest("no-ca", good, server={"tls": {"certificateSecret": "broken", "clientCASecret": "clear"}}), "KeyNotFound"),
        Case(manifest("no-config-map", "configmap://nowhere/m.onnx"), "ConfigMapNotFound"),
        Case(manifest("no-key", "configmap://half/m.onnx"), "KeyNotFound"),
        Case(manifest("no-claim", "pvc://nowhere/m.onnx"), "ClaimNotFound"),
        Case(manifest("unbound", "pvc://unbound/m.onnx"), "ClaimUnbound"),
        Case(manifest("waits", "pvc://waits/m.onnx"), "ClaimUnbound"),
        Case(manifest("not-mounted", "pvc://broken/m.onnx"), "VolumeNotMounted"),
        Case(manifest("not-ready", good), "ReadinessProbeFailed"),
        Case(manifest("not-alive", endless), "LivenessProbeFailed"),
        Case(manifest("evicted", endless), "Evicted"),
        Case(manifest("crash", good), "CrashLoop", loops=True),
        Case(manifest("unschedulable", good, server=many), "Unschedulable"),
        Case(manifest("late", good, server=many, rollout={"progressDeadline": "5s"}), "Unschedulable"),
        Case(manifest("insecure", good), "AdmissionRefused"),
        Case(manifest("refused", good), "AdmissionRefused"),
    ]


def volumes(namespace: Namespace) -> None:
    """A ConfigMap without the key; claims without a volume, for a volume that nobody makes, and with one that no node has."""
    name = f"ortolan-test-{namespace.name}"
    amount = {"storage": "1Mi"}
    access = {"accessModes": ["ReadOnlyMany"]}

    def claim(called: str, storage_class: str, **spec) -> dict:
        spec |= {"storageClassName": storage_class, "resources": {"requests": amount}, **access}
        return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": called}, "spec": spec}

    volume = {
        "capacity": amount,
        "storageClassName": name,
        "persistentVolumeReclaimPolicy": "Retain",
        "hostPath": {"path": "/nowhere", "type": "Directory"},
        "claimRef": {"namespace": namespace.name, "name": "broken"},
        **access,
    }
    late = {"provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer"}
    for made in (
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "half"}, "data": {"other": ""}},
        {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": volume},
        {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": f"{name}-late"}, **late},
        claim("broken", name, volumeName=name),
        claim("unbound", ""),
        claim("waits", f"{name}-late"),
    ):
        namespace.apply(made)


def remove_volumes(namespace: Namespace) -> None:
    name = f"ortolan-test-{namespace.name}"
    namespace.kubectl("delete", "--wait=false", "--ignore-not-found", f"persistentvolume/{name}", f"storageclass/{name}-late")


def normal(text: str) -> str:
    """A message without what is different in each run."""
    for pattern, name in [
        (r"pod [a-z0-9-]+-[0-9a-f]{10}-[a-z0-9]+-[a-z0-9]{5}\b", "pod POD"),
        (r"logs [a-z0-9-]+-[0-9a-f]{10}-[a-z0-9]+-[a-z0-9]{5}\b", "logs POD"),
        (r"\b[0-9a-f]{64}\b", "DIGEST"),
        (r"\brevision [0-9a-f]{10}\b", "revision REVISION"),
        (r"\bnode-[01]\b", "NODE"),
        (rf"{re.escape(HOST)}:(?!9 )\d+", "STORE"),
        (r"lookup images.invalid on [0-9.:]+", "lookup images.invalid on DNS"),
        (r"\d+ MiB were used", "N MiB were used"),
    ]:
        text = re.sub(pattern, name, text)
    return text


def told(status: dict) -> list[str]:
    """The conditions that say something about the failure, as lines."""
    conditions = status["conditions"]
    skipped = ("RouteReady", "ScalingActive")
    return [
        normal(f"{condition['type']}={condition['status']} {condition['reason']}: {condition['message']}")
        for condition in conditions
        if condition["type"] not in skipped
    ]


def compare(found: dict[str, list[str]]) -> None:
    """Fails where the words are others than the golden ones; UPDATE_GOLDEN=1 makes them golden."""
    golden = yaml.safe_load(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(yaml.safe_dump(golden | found, width=1000, sort_keys=True))
        return
    # A kubelet forgets why it evicted a server that was quick to leave: what is said of that has two forms.
    known = lambda name: [golden.get(name), golden.get(f"{name}, or")]
    different = {name: {"golden": known(name), "found": lines} for name, lines in found.items() if lines not in known(name)}
    assert not different, yaml.safe_dump(different, width=1000)


def capture(namespace: Namespace, cases: list[Case]) -> None:
    """With CAPTURE=FOLDER: what the operator sees of each case, for tests/problems/."""
    folder = os.environ.get("CAPTURE")
    for case in cases if folder else []:
        selector = f"ortolan.dev/model={case.name}"
        events = [event for event in namespace.items("events") if event["involvedObject"]["name"].startswith(case.name)]
        seen = {
            "now": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z"),
            "pods": namespace.items("pods", "--selector", selector),
            "deployment": namespace.items("deployments", "--selector", selector)[0],
            "events": [event for event in events if event["involvedObject"]["kind"] in ("Pod", "PersistentVolumeClaim")],
        }
        for item in [*seen["pods"], seen["deployment"], *seen["events"]]:
            item["metadata"].pop("managedFields", None)
        pathlib.Path(folder, f"{case.name}.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(seen))))

