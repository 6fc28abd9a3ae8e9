"""The nodes of the test cluster."""

import json
import pathlib
import subprocess

from harness.kube import kubectl

CLUSTER = pathlib.Path(__file__).resolve().parents[2] / "cluster" / "cluster"


def node(verb: str, name: str) -> None:
    """Stops a node, as a power cut does, or starts it again."""
    subprocess.run([CLUSTER, "node", verb, name], check=True, timeout=120)


def leader_node() -> str:
    """The node of the operator that acts."""
    pods = json.loads(kubectl("--namespace", "ortolan-system", "get", "pods", "--output", "json"))["items"]
    leases = json.loads(kubectl("--namespace", "ortolan-system", "get", "leases", "--output", "json"))["items"]
    holders = {lease["spec"].get("holderIdentity", "") for lease in leases}
    leads = lambda pod: any(holder.startswith(pod["metadata"]["name"]) for holder in holders)
    return next((pod for pod in pods if leads(pod)), pods[0])["spec"]["nodeName"]
