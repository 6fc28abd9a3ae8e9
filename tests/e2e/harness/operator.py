"""The operator's pods: which of them leads, what they tell, and their processes on this machine."""

import pathlib

from harness.kube import KubectlError, Namespace, kubectl, wait_for

SYSTEM = Namespace("ortolan-system")
SELECTOR = ("--selector", "app.kubernetes.io/name=ortolan")


def operators() -> list[dict]:
    """The operator's pods that are not on their way out."""
    pods = SYSTEM.items("pods", *SELECTOR)
    return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]


def holder() -> str:
    """Who holds the lease, `POD_RANDOM`; empty when nobody does."""
    try:
        return SYSTEM.get("lease", "ortolan")["spec"].get("holderIdentity", "")
    except KubectlError:
        return ""


def leader() -> dict:
    """The pod that leads; empty while none does."""
    name = holder().partition("_")[0]
    return next((pod for pod in operators() if pod["metadata"]["name"] == name), {})


def rolled_out() -> None:
    """Waits until the Deployment of the operator is as it was last asked for, and one of its pods leads. `kubectl rollout status`
    does not count pods that are on their way out, and such a one may still lead, and reconcile, until its kubelet stops it."""
    SYSTEM.kubectl("rollout", "status", "deployment/ortolan", "--timeout=90s", timeout=100)
    wait_for("the operators of before are gone", lambda: len(SYSTEM.items("pods", *SELECTOR)) == len(operators()), 60)
    wait_for("one of the operators leads", leader, 30)


def ask(path: str, pod: dict | None = None) -> str:
    """What a pod of the operator, the leader unless another is given, answers on its operations port."""
    name = (pod or leader())["metadata"]["name"]
    return kubectl("get", "--raw", f"/api/v1/namespaces/ortolan-system/pods/{name}:9090/proxy{path}")


def process(pod: dict) -> int:
    """The id, on this machine, of the operator's process in a pod: both nodes of the test cluster run here."""
    uid = pod["metadata"]["uid"]
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "comm").read_text().strip() == "ortolan" and uid in (folder / "cgroup").read_text():
                return int(folder.name)
        except OSError:
            continue
    raise AssertionError(f"no process of pod {pod['metadata']['name']}")
