"""People: service accounts with tokens of their own, who call the API server as nobody else."""

import json
import pathlib
import subprocess

from .kube import KubectlError, Namespace, kubectl


class Person:
    """A service account of a namespace, with a kubeconfig that holds its token and nothing of the administrator's."""

    def __init__(self, name: str, namespace: Namespace, folder: pathlib.Path):
        self.name, self.namespace = name, namespace
        self.user = f"system:serviceaccount:{namespace.name}:{name}"
        namespace.kubectl("create", "serviceaccount", name)
        token = namespace.kubectl("create", "token", name).strip()
        view = json.loads(kubectl("config", "view", "--minify", "--raw", "--output", "json"))
        context = {"name": "it", "context": {"cluster": view["clusters"][0]["name"], "user": "it", "namespace": namespace.name}}
        config = {
            "apiVersion": "v1", "kind": "Config", "clusters": view["clusters"], "contexts": [context], "current-context": "it",
            "users": [{"name": "it", "user": {"token": token}}],
        }
        self.kubeconfig = folder / f"{namespace.name}-{name}.json"
        self.kubeconfig.write_text(json.dumps(config))

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        command = ["kubectl", "--kubeconfig", str(self.kubeconfig), *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode != 0:
            raise KubectlError(done.stderr.strip())
        return done.stdout

    def apply(self, manifest: dict, *options: str) -> None:
        self.kubectl("apply", *options, "--filename", "-", stdin=json.dumps(manifest))

    def refused(self, manifest: dict) -> str:
        """The words with which a manifest is refused; empty when it would be accepted."""
        try:
            self.apply(manifest, "--dry-run=server")
        except KubectlError as error:
            return str(error)
        return ""

    def may(self, role: str, rules: list[dict], where: Namespace | None = None) -> None:
        """Grants, by a Role of that name."""
        where = where or self.namespace
        group = "rbac.authorization.k8s.io"
        subject = {"kind": "ServiceAccount", "name": self.name, "namespace": self.namespace.name}
        where.apply({"apiVersion": f"{group}/v1", "kind": "Role", "metadata": {"name": role}, "rules": rules})
        where.apply(
            {
                "apiVersion": f"{group}/v1", "kind": "RoleBinding", "metadata": {"name": role}, "subjects": [subject],
                "roleRef": {"apiGroup": group, "kind": "Role", "name": role},
            }
        )

    def is_editor(self) -> None:
        """Grants the built-in role `edit` in the own namespace."""
        self.namespace.kubectl("create", "rolebinding", self.name, "--clusterrole=edit", f"--serviceaccount={self.namespace.name}:{self.name}")


def rule(resource: str, *verbs: str, names: list[str] | None = None, group: str = "") -> dict:
    """A rule of a Role."""
    return {"apiGroups": [group], "resources": [resource], "verbs": list(verbs), **({"resourceNames": names} if names else {})}
