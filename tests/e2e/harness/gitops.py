"""A folder of manifests that is applied in each way, and what GitOps tools make of the objects it leads to."""

import json
import os
import pathlib
import subprocess
import threading
import time

import yaml

from harness.kube import KubectlError, Namespace

ROOT = pathlib.Path(__file__).resolve().parents[3]
FIXTURES = ROOT / "tests" / "gitops" / "fixtures"

# The ways of applying, as arguments of `kubectl apply` and `kubectl diff`.
WAYS = {
    "client": ([], []),
    "server": (["--server-side"], ["--server-side"]),
    "force": (["--server-side", "--force-conflicts"], ["--server-side", "--force-conflicts"]),
}


class Repository:
    """One folder of manifests, applied to one namespace."""

    def __init__(self, folder: pathlib.Path, namespace: Namespace):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.namespace = namespace

    def write(self, manifest: dict | str, file: str = "model.yaml") -> None:
        text = manifest if isinstance(manifest, str) else yaml.safe_dump(manifest)
        (self.folder / file).write_text(text)

    def apply(self, way: str, *more: str) -> str:
        return self.namespace.kubectl("apply", "--filename", str(self.folder), *WAYS[way][0], *more)

    def diff(self, way: str) -> str:
        """What `kubectl diff` shows; empty when there is no difference."""
        command = ["kubectl", "--namespace", self.namespace.name, "diff", "--filename", str(self.folder), *WAYS[way][1]]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode not in (0, 1):
            raise KubectlError(done.stderr.strip())
        return done.stdout

    def drift(self, way: str) -> str:
        """As `diff`, but not fooled by a status that is written between the two reads of a server-side diff."""
        for _ in range(3):
            shown = self.diff(way)
            if not shown:
                break
        return shown


class Reapplied(threading.Thread):
    """Applies a repository once a second until it is stopped, and looks for drift after each time."""

    def __init__(self, repository: Repository, way: str):
        super().__init__(daemon=True)
        self.repository, self.way = repository, way
        self.lock = threading.Lock()
        self.ending = threading.Event()
        self.times = 0
        self.wrong: list[str] = []
        self.start()

    def run(self) -> None:
        while not self.ending.wait(max(0, 1 - (time.monotonic() % 1))):
            with self.lock:
                try:
                    self.repository.apply(self.way)
                    drift = self.repository.drift(self.way)
                except (KubectlError, subprocess.TimeoutExpired) as error:
                    drift = str(error)
            if drift:
                self.wrong.append(drift)
            self.times += 1

    def commit(self, manifest: dict) -> None:
        """Changes the manifest between two times."""
        with self.lock:
            self.repository.write(manifest)

    def stop(self) -> None:
        self.ending.set()
        self.join()


class Watch:
    """Every state of one ModelDeployment from now on, judged by kstatus and by Argo CD's health check (tests/gitops)."""

    def __init__(self, namespace: Namespace, name: str):
        watch = [
            "kubectl", "--namespace", namespace.name, "get", "modeldeployments", "--field-selector", f"metadata.name={name}",
            "--watch", "--output-watch-events", "--show-managed-fields", "--output", "json",
        ]
        self.kubectl = subprocess.Popen(watch, stdout=subprocess.PIPE)
        judge = [os.environ["GITOPS_HEALTH"], "-root", str(ROOT)]
        self.judge = subprocess.Popen(judge, stdin=self.kubectl.stdout, stdout=subprocess.PIPE, text=True)
        self.kubectl.stdout.close()
        self.answers: list[dict] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        for line in self.judge.stdout:
            self.answers.append(json.loads(line))

    def stop(self) -> list[dict]:
        self.kubectl.terminate()
        self.kubectl.wait()
        self.reader.join(10)
        self.judge.wait()
        return self.answers

    def pairs(self, since: int = 0) -> list[tuple[str, str]]:
        """What kstatus and Argo CD said from the answer `since` on, each pair once where it is repeated."""
        said = [(answer["judged"]["kstatus"], answer["judged"]["argo"]) for answer in list(self.answers)[since:]]
        return [pair for index, pair in enumerate(said) if index == 0 or pair != said[index - 1]]

    def first(self, holds) -> dict | None:
        """The first answer of which `holds` is true."""
        return next((answer for answer in list(self.answers) if holds(answer)), None)


def condition(answer: dict, kind: str) -> dict:
    """A condition of the object in an answer; empty while it is absent."""
    conditions = answer["object"].get("status", {}).get("conditions", [])
    return next((found for found in conditions if found["type"] == kind), {})


def capture(name: str, answer: dict | None) -> None:
    """With CAPTURE set: keeps the object of an answer as a fixture of tests/gitops."""
    if not os.environ.get("CAPTURE"):
        return
    assert answer, f"nothing was seen that could be the fixture {name}"
    kept = json.loads(json.dumps(answer["object"]))
    for field in ("managedFields", "uid", "resourceVersion", "annotations"):
        kept["metadata"].pop(field, None)
    FIXTURES.mkdir(exist_ok=True)
    (FIXTURES / f"{name}.yaml").write_text(yaml.safe_dump(kept, width=120))
