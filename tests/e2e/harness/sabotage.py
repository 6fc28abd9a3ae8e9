"""What nobody can write into a ModelDeployment, done to its pods by policies of the cluster, as in many real clusters."""

import json

from harness.kube import KubectlError, kubectl, wait_for

GROUP = "admissionregistration.k8s.io/v1"


def add(path: str, value) -> dict:
    return {"op": "add", "path": path, "value": value}


def literal(value) -> str:
    """A value as CEL of untyped objects."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)}: dyn({literal(item)})" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(f"dyn({literal(item)})" for item in value) + "]"
    return json.dumps(value)


class Sabotage:
    """Policies for the pods of single models in one namespace, taken away at the end."""

    def __init__(self, namespace: str):
        self.namespace = namespace
        self.made: list[str] = []

    def _rules(self, model: str) -> dict:
        rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
        match = f"object.metadata.namespace == '{self.namespace}' && object.metadata.?labels['ortolan.dev/model'].orValue('') == '{model}'"
        return {
            "failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": [rule]},
            "matchConditions": [{"name": "model", "expression": match}],
        }

    def _make(self, kind: str, model: str, spec: dict, binding: dict) -> None:
        name = f"ortolan-test-{model}"
        for made, content in ((kind, spec), (f"{kind}Binding", {"policyName": name, **binding})):
            text = json.dumps({"apiVersion": GROUP, "kind": made, "metadata": {"name": name}, "spec": content})
            kubectl("apply", "--filename", "-", stdin=text)
            self.made.append(f"{made.lower()}/{name}")

    def change(self, model: str, *patches: dict) -> None:
        """Changes the pods of a model as they are created."""
        steps = ", ".join(f"JSONPatch{{op: 'add', path: '{patch['path']}', value: {literal(patch['value'])}}}" for patch in patches)
        mutation = {"patchType": "JSONPatch", "jsonPatch": {"expression": f"[{steps}]"}}
        spec = {**self._rules(model), "reinvocationPolicy": "Never", "mutations": [mutation]}
        self._make("MutatingAdmissionPolicy", model, spec, {})

    def refuse(self, model: str, message: str) -> None:
        """Refuses the pods of a model."""
        spec = {**self._rules(model), "validations": [{"expression": "false", "message": message}]}
        self._make("ValidatingAdmissionPolicy", model, spec, {"validationActions": ["Deny"]})

    def wait(self, refused: str, changed: str) -> None:
        """Until the API server acts on the policies: on those two, and on the others, which are older."""

        def works() -> bool:
            try:
                self._dry_run(refused)
            except KubectlError:
                return "nonsense" in self._dry_run(changed)
            return False

        wait_for("the policies work", works, 20)

    def _dry_run(self, model: str) -> str:
        security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "dry-run", "labels": {"ortolan.dev/model": model}},
            "spec": {
                "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [{"name": "server", "image": "none", "args": ["serve"], "securityContext": security}],
            },
        }
        return kubectl("--namespace", self.namespace, "create", "--dry-run=server", "--output", "json", "--filename", "-", stdin=json.dumps(pod))

    def close(self) -> None:
        if self.made:
            kubectl("delete", "--ignore-not-found", *self.made)
