"""kubectl, as a user calls it, and waiting for what it shows."""

import json
import subprocess
import time
import urllib.request


class KubectlError(Exception):
    """kubectl ended with an error; the text is what it printed."""


def kubectl(*arguments: str, stdin: str | None = None, timeout: float = 60) -> str:
    """Runs kubectl and returns what it prints; raises KubectlError with its words when it fails."""
    done = subprocess.run(["kubectl", *arguments], input=stdin, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode != 0:
        raise KubectlError(done.stderr.strip())
    return done.stdout


def wait_for(what: str, look, timeout: float = 60, every: float = 0.2):
    """Calls `look` until it returns something true and returns that; fails with its last answer after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        seen = look()
        if seen:
            return seen
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what}")
        time.sleep(every)


class Namespace:
    """One namespace of the cluster and the ModelDeployments in it."""

    def __init__(self, name: str):
        self.name = name

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout: float = 60) -> str:
        return kubectl("--namespace", self.name, *arguments, stdin=stdin, timeout=timeout)

    def get(self, *arguments: str) -> dict:
        """One object or a list, as JSON."""
        return json.loads(self.kubectl("get", *arguments, "--output", "json"))

    def items(self, *arguments: str) -> list[dict]:
        return self.get(*arguments)["items"]

    def apply(self, manifest: dict | str) -> None:
        text = manifest if isinstance(manifest, str) else json.dumps(manifest)
        self.kubectl("apply", "--filename", "-", stdin=text)

    def model(self, name: str) -> dict:
        return self.get("modeldeployment", name)

    def status(self, name: str) -> dict:
        return self.model(name).get("status", {})

    def condition(self, name: str, kind: str) -> dict:
        """A condition of a ModelDeployment; empty while it is absent."""
        conditions = self.status(name).get("conditions", [])
        return next((condition for condition in conditions if condition["type"] == kind), {})

    def wait_condition(self, name: str, kind: str, status: str, reason: str | None = None, timeout: float = 60) -> dict:
        def holds():
            found = self.condition(name, kind)
            return found if found.get("status") == status and reason in (None, found.get("reason")) else None

        try:
            return wait_for(f"{name}: {kind}={status} {reason or ''}", holds, timeout)
        except AssertionError as late:
            raise AssertionError(f"{late}\n{self.kubectl('describe', 'modeldeployment', name)}") from None

    def wait_served(self, name: str, timeout: float = 60) -> None:
        """Waits until the present spec, the whole of it, is what serves, with as many servers as there should be."""

        def served():
            model = self.model(name)
            status = model.get("status", {})
            conditions = {condition["type"]: condition["status"] for condition in status.get("conditions", [])}
            return (
                status.get("observedGeneration") == model["metadata"]["generation"]
                and conditions.get("Ready") == "True"
                and conditions.get("WorkloadAvailable") == "True"
                and "Reconciling" not in conditions
                and "Stalled" not in conditions
            )

        try:
            wait_for(f"{name} is served", served, timeout)
        except AssertionError as late:
            raise AssertionError(f"{late}\n{self.kubectl('describe', 'modeldeployment', name)}") from None

    def pods(self, name: str) -> list[dict]:
        """The servers of a model that are not on their way out."""
        pods = self.items("pods", "--selector", f"ortolan.dev/model={name}")
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    def address(self, name: str) -> str:
        """The cluster address of a model's Service."""
        return self.get("service", name)["spec"]["clusterIP"]

    def infer_url(self, name: str) -> str:
        """Where a model's predictions are asked for, over HTTP."""
        return f"http://{self.address(name)}/v2/models/{name}/infer"

    def ask(self, name: str, tensor: str) -> dict[str, list]:
        """Asks a model about 64 zeros; the values of its outputs by their names."""
        body = {"inputs": [{"name": tensor, "shape": [1, 64], "datatype": "FP32", "data": [0.0] * 64}]}
        with urllib.request.urlopen(self.infer_url(name), json.dumps(body).encode(), timeout=10) as answer:
            return {output["name"]: output["data"] for output in json.load(answer)["outputs"]}

    def events(self, name: str) -> list[dict]:
        return self.items("events", "--field-selector", f"involvedObject.name={name}")


def manifest(name: str, uri: str, **spec) -> dict:
    """A ModelDeployment; `sha256` and `credentialsSecret` go to the model, the rest of `spec` is as in the API."""
    model = {"uri": uri} | {key: spec.pop(key) for key in ("sha256", "credentialsSecret") if key in spec}
    return {
        "apiVersion": "ortolan.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": name},
        "spec": {"model": model, **spec},
    }


def check_operator_log() -> None:
    """Fails where the log of one of the operator's pods tells of an error, or of a call that its role does not grant."""
    pods = kubectl("--namespace", "ortolan-system", "get", "pods", "--selector", "app.kubernetes.io/name=ortolan", "--output", "name")
    assert pods, "there is no operator"
    for pod in pods.split():
        log = kubectl("--namespace", "ortolan-system", "logs", pod, "--tail=-1")
        entries = [json.loads(line) for line in log.splitlines()]
        assert entries, "the operator logs one JSON object a line"
        texts = [json.dumps(entry) for entry in entries]
        # As the API server says it where a role does not grant a call: User "…" cannot patch resource "…".
        refused = [text for text in texts if "is forbidden: User" in text or '"level": "ERROR"' in text]
        assert not refused, "\n".join(refused)
