"""Ways to take a cluster apart, and load that notices."""

import contextlib
import pathlib
import subprocess
import time
from collections.abc import Iterator

from harness.kube import Namespace, wait_for
from harness.load import Answer, Load, failures

CLUSTER = pathlib.Path(__file__).resolve().parents[2] / "cluster" / "cluster"


def cluster(*arguments: str) -> None:
    """Runs the tool of the test cluster."""
    done = subprocess.run([str(CLUSTER), *arguments], capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def operator_processes() -> dict[int, str]:
    """The operator's processes on this machine, where all nodes are, with the control groups that tell their pods."""
    found = {}
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            group = (folder / "cgroup").read_text()
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            if (folder / "comm").read_text().strip() == "ortolan" and "/ortolan-cluster/" in group and state != "Z":
                found[int(folder.name)] = group
        except OSError:
            continue
    return found


class SteadyLoad:
    """Load on a model by both kinds of clients: a new connection for each request, and kept ones. `source`: the address of this
    machine from which they come."""

    def __init__(self, namespace: Namespace, name: str, body: bytes, rate: int = 20, source: str = "0.0.0.0"):
        url = namespace.infer_url(name)
        self.started = time.time()
        self.loads = {kind: Load(url, body, rate, 900, kept=kind == "kept", source=source) for kind in ("new", "kept")}

    def end(self) -> dict[str, list[Answer]]:
        """Stops; all answers by the kind of connection."""
        for load in self.loads.values():
            load.stop()
        return {kind: load.answers() for kind, load in self.loads.items()}

    def end_without_failures(self) -> None:
        """Stops, says how many requests there were, and fails when one of them did."""
        for kind, answers in self.end().items():
            seconds = time.time() - self.started
            print(f"{len(answers)} requests over {kind} connections in {seconds:.0f} s, failed: {failures(answers) or 'none'}")
            assert len(answers) > seconds * 5, "the load was not steady"
            assert failures(answers) == []


@contextlib.contextmanager
def another_address() -> Iterator[str]:
    """An address of this machine that nobody has used yet."""
    address = "10.246.0.1"
    subprocess.run(["ip", "address", "add", f"{address}/32", "dev", "lo"], check=True)
    try:
        yield address
    finally:
        subprocess.run(["ip", "address", "del", f"{address}/32", "dev", "lo"], check=True)


class Untouched:
    """The servers of a model as they are now, to find out whether any of them was restarted or replaced."""

    def __init__(self, namespace: Namespace, name: str):
        self.namespace, self.name = namespace, name
        self.before = self.servers()

    def servers(self) -> dict[str, int]:
        """Restarts by uid."""
        pods = self.namespace.pods(self.name)
        return {pod["metadata"]["uid"]: sum(status["restartCount"] for status in pod["status"]["containerStatuses"]) for pod in pods}

    def check(self) -> None:
        assert self.servers() == self.before, "the very same servers, none of them restarted"


def check_children(namespace: Namespace, name: str, replicas: int) -> None:
    """Exactly one Deployment, Service and budget, and exactly the servers that were asked for: no orphans, no duplicates."""
    of_model = ("--selector", f"ortolan.dev/model={name}")

    def counts() -> dict[str, int]:
        kinds = ["Deployment", "Service", "PodDisruptionBudget", "Pod"]
        found = [item["kind"] for item in namespace.items("deployments,services,poddisruptionbudgets,pods", *of_model)]
        return {kind: found.count(kind) for kind in kinds}

    wanted = {"Deployment": 1, "Service": 1, "PodDisruptionBudget": 1, "Pod": replicas}
    try:
        # Servers on their way out take their time to drain.
        wait_for("exactly the children that there should be", lambda: counts() == wanted, 60)
    except AssertionError as late:
        raise AssertionError(f"{late}: {counts()} instead of {wanted}") from None
