"""Many models on one operator, measured. Started by `run`, alone in its namespaces.

What is asserted are counts: objects, calls, writes at rest, bytes a model. Times depend on the machine and on who else uses
it: they are printed, and with --figures held against the figures of the project.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import random
import subprocess
import sys
import threading
import time

import measured
import report
from api import Api
from control_plane import ADMIN, OPERATOR, SERVER, ControlPlane, wait
from operator_process import Operator

GROUP = "/apis/ortolan.dev/v1alpha1"
# One of each for every model.
CHILDREN = {
    "ControllerRevisions": "/apis/apps/v1/controllerrevisions",
    "Deployments": "/apis/apps/v1/deployments",
    "Services": "/api/v1/services",
    "PodDisruptionBudgets": "/apis/policy/v1/poddisruptionbudgets",
    "Pods": "/api/v1/pods",
}
# Calls of the operator for a model from its creation until it serves: a look for and an apply of each child, its status as it
# changes, an Event for what changed. More than this is work done twice.
CALLS_A_MODEL = 20
# Resident memory, generously: what a small operator takes with what its start left behind, and what each model adds. The
# figure for 10,000 models, 128 MiB, is held by `make bench`.
BYTES_AT_ALL, BYTES_A_MODEL = 96 << 20, 12 << 10


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="where everything is kept; deleted by who made it")
    parser.add_argument("--models", type=int, default=300)
    parser.add_argument("--namespaces", type=int, default=5)
    parser.add_argument("--edits", type=int, default=60)
    parser.add_argument("--rest", type=int, default=20, help="seconds without a change in which nothing may be written")
    parser.add_argument("--limit", type=int, default=600, help="seconds in which all models must serve")
    parser.add_argument("--figures", action="store_true", help="hold the times against the project's figures, too")
    parser.add_argument("--report", type=pathlib.Path, help="the file whose table is written anew")
    options = parser.parse_args()
    plane = ControlPlane(options.folder)
    api = plane.start()
    plane.start_nodes(api, options.models)
    plane.run("responder", program=os.environ["RESPONDER"])
    install(plane)
    results = Scale(options, plane, api).run()
    plane.check()
    table = report.table(options, results)
    print(table)
    if options.report:
        measured.write(options.report, "make scale-bench", table)
    if options.figures and (missed := report.missed(results)):
        sys.exit(f"not reached: {', '.join(missed)}")


def install(plane: ControlPlane):
    """What a user applies; the operator itself runs as a process beside it, with the rights of its pod."""
    kubectl = ["kubectl", "--kubeconfig", plane.kubeconfig(ADMIN), "--cache-dir", plane.folder / "kubectl"]
    subprocess.run([*kubectl, "apply", "--server-side", "-k", "deploy/"], check=True, capture_output=True)
    subprocess.run([*kubectl, "--namespace", "ortolan-system", "scale", "deployment/ortolan", "--replicas", "0"],
                   check=True, capture_output=True)


def model(number: int) -> dict:
    """Half of the models have a number of servers, half a latency target. The model itself is fetched by nobody."""
    scaling = {"minReplicas": 1, "maxReplicas": 4, "latency": {"target": "50ms"}} if number % 2 else {"minReplicas": 1}
    return {
        "apiVersion": "ortolan.dev/v1alpha1", "kind": "ModelDeployment",
        "metadata": {"name": f"model-{number:05}"},
        "spec": {
            "model": {"uri": f"https://models.example.org/{number}/model.onnx", "sha256": "5f" * 32},
            "server": {"resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "64Mi"}}},
            "scaling": scaling,
        },
    }


def serves(object_: dict) -> bool:
    """It is ready, and that is about what it asks for now."""
    status = object_.get("status", {})
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", []))
    return ready and status.get("observedGeneration") == object_["metadata"]["generation"]


class Scale:
    """The measurement, step by step."""

    def __init__(self, options, plane: ControlPlane, api: Api):
        self.options, self.plane, self.api = options, plane, api
        self.operator = Operator(plane)
        self.results = {"models": options.models}

    def run(self) -> dict:
        self.operator.start()
        self.create()
        self.settle("all models serve and nothing is written any more")
        self.count_calls()
        self.rest("at rest")
        self.edit()
        self.settle("the edits are done")
        self.restart()
        self.settle("the new operator writes nothing")
        self.rest("at rest after the restart")
        self.operator.stop()
        return self.results

    def path(self, number: int) -> str:
        return f"{GROUP}/namespaces/scale-{number % self.options.namespaces}/modeldeployments"

    def create(self):
        for number in range(self.options.namespaces):
            namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": f"scale-{number}"}}
            self.api.post("/api/v1/namespaces", namespace)
        served, others = set(), {kind: self.api.count(path) for kind, path in CHILDREN.items()}
        watch = self.watch(f"{GROUP}/modeldeployments", lambda model: served.add(model["metadata"]["uid"]) if serves(model) else None)
        started = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda number: self.api.post(self.path(number), model(number)), range(self.options.models)))
        say(f"{self.options.models} models are made after {time.monotonic() - started:.0f} s")
        self.results["created"] = time.monotonic() - started
        left, told = dict(CHILDREN), 0.0
        while left or len(served) < self.options.models:
            self.plane.check()
            after = time.monotonic() - started
            assert after < self.options.limit, f"after {after:.0f} s {len(served)} models serve, without all: {list(left)}"
            for kind in [kind for kind, path in left.items() if self.api.count(path) - others[kind] >= self.options.models]:
                del left[kind]
                if kind != "Pods" and not set(left) - {"Pods"}:
                    self.results["children"] = after
                    say(f"all children exist after {after:.0f} s")
            if after - told > 30:
                told = after
                say(f"{len(served)} models serve after {after:.0f} s; operator: {self.operator.memory() >> 20} MiB")
            time.sleep(0.5 if self.options.models < 1000 else 3)
        self.results["reconciled"] = time.monotonic() - started
        say(f"all models serve after {self.results['reconciled']:.0f} s")
        watch.end()
        for kind, path in CHILDREN.items():
            number = self.api.count(path, "ortolan.dev/model")
            assert number == self.options.models, f"{number} {kind} for {self.options.models} models"

    def watch(self, path: str, seen):
        """Calls `seen` with every object that changes from now on, in a thread of its own."""
        version = self.api.get(f"{path}?limit=1")["metadata"]["resourceVersion"]
        watch = self.api.watch(path, version)

        def follow():
            for _, changed in watch:
                seen(changed)

        threading.Thread(target=follow, daemon=True).start()
        return watch

    def settle(self, what: str):
        """Until the operator has written nothing for ten seconds."""
        quiet = 10
        writes, since = self.operator.calls().writes, time.monotonic()
        deadline = time.monotonic() + self.options.limit
        while time.monotonic() - since < quiet:
            assert time.monotonic() < deadline, f"{what}: it still writes, {self.operator.calls().last_writes()}"
            self.plane.check()
            time.sleep(1)
            if (now := self.operator.calls().writes) != writes:
                writes, since = now, time.monotonic()

    def count_calls(self):
        calls = self.operator.calls()
        self.results["calls"] = calls.total / self.options.models
        self.results["by call"] = calls.each(self.options.models)
        say(f"the operator's calls a model: {self.results['calls']:.1f}: {self.results['by call']}")
        assert self.results["calls"] <= CALLS_A_MODEL, f"{self.results['calls']:.1f} calls a model: {calls.each(self.options.models)}"

    def rest(self, when: str):
        before, cpu, started = self.operator.calls(), self.operator.cpu_seconds(), time.monotonic()
        time.sleep(self.options.rest)
        writes = self.operator.calls().writes - before.writes
        self.results[f"writes {when}"] = writes
        self.results[f"cpu {when}"] = (self.operator.cpu_seconds() - cpu) / (time.monotonic() - started)
        memory = self.operator.memory()
        self.results[f"memory {when}"] = memory
        say(f"{when}: {writes} writes, {memory / (1 << 20):.0f} MiB resident (peak {self.operator.peak() >> 20}), "
            f"{self.results[f'cpu {when}']:.2f} processors")
        assert writes == 0, f"{writes} writes {when}: {self.operator.calls().last_writes()}"
        limit = BYTES_AT_ALL + BYTES_A_MODEL * self.options.models
        assert memory <= limit, f"{memory >> 20} MiB resident with {self.options.models} models, expected at most {limit >> 20} MiB"

    def edit(self):
        """From the answer to an edit of a model to the event of the patched Deployment."""
        patched, known = {}, threading.Condition()

        def seen(deployment):
            with known:
                meta = deployment["metadata"]
                key = (meta["namespace"], meta["labels"].get("ortolan.dev/model"), deployment["spec"].get("replicas"))
                patched.setdefault(key, time.monotonic())
                known.notify_all()

        watch = self.watch(CHILDREN["Deployments"], seen)
        fixed = range(0, self.options.models, 2)
        times = []
        for number in random.Random(1).sample(fixed, min(self.options.edits, len(fixed))):
            path = self.path(number)
            key = (path.split("/")[5], f"model-{number:05}", 2)
            self.api.merge(f"{path}/model-{number:05}", {"spec": {"replicas": 2}})
            edited = time.monotonic()
            with known:
                assert known.wait_for(lambda: key in patched, 60), f"the Deployment of {key} was not patched in 60 s"
            times.append(max(0.0, patched[key] - edited))
        watch.end()
        times.sort()
        self.results["edit p50"], self.results["edit p99"] = times[len(times) // 2], times[int(len(times) * 0.99)]
        say(f"edit to patched child, {len(times)} edits: p50 {self.results['edit p50'] * 1000:.0f} ms, "
            f"p99 {self.results['edit p99'] * 1000:.0f} ms, longest {times[-1] * 1000:.0f} ms")

    def restart(self):
        self.results["peak"] = self.operator.peak()
        self.operator.stop()
        started = time.monotonic()
        self.operator.start()
        wait("the first reconcile", 120, lambda: self.operator.reconciles() > 0, pause=0.02)
        self.results["restart"] = time.monotonic() - started
        wait("every model is reconciled", 600, lambda: self.operator.reconciles() >= self.options.models, pause=0.1)
        self.results["restart all"] = time.monotonic() - started
        self.results["peak after restart"] = self.operator.peak()
        say(f"restart: the first reconcile after {self.results['restart']:.1f} s, all after {self.results['restart all']:.1f} s, "
            f"peak {self.operator.peak() >> 20} MiB")


def say(text: str):
    print(f"scale: {text}", flush=True)


if __name__ == "__main__":
    main()
