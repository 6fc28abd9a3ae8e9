"""Two operators: one leads, the other takes over, and whoever has led and woke up late writes nothing."""

import json
import os
import signal
import time

import pytest

from harness.kube import KubectlError, manifest, wait_for
from harness.load import Load, failures
from harness.operator import SYSTEM, ask, holder, leader, operators, process

BODY = json.dumps({"inputs": [{"name": "pixels", "datatype": "FP32", "shape": [1, 64], "data": [0.0] * 64}]}).encode()
LEASE = 15
CHILDREN = "deployments,services,poddisruptionbudgets,controllerrevisions,modeldeployments"


@pytest.fixture
def served(namespace, store, digits):
    """A model with two servers under load, of which no request may fail."""
    namespace.apply(manifest("digits", store.add("one.onnx", digits), replicas=2))
    namespace.wait_served("digits")
    load = Load(namespace.infer_url("digits"), BODY, rate=20, seconds=300)
    began = time.monotonic()
    yield namespace
    # Also where the takeover was quick.
    wait_for("there were enough requests to tell", lambda: time.monotonic() - began > 6)
    load.stop()
    answers = load.answers()
    print(f"{len(answers)} requests meanwhile, failed: {failures(answers) or 'none'}")
    assert len(answers) > 100
    assert failures(answers) == []


def two_ready() -> bool:
    """Both pods are there, have their caches filled, and one leads."""
    conditions = [pod.get("status", {}).get("conditions", []) for pod in operators()]
    ready = [condition for found in conditions for condition in found if condition["type"] == "Ready" and condition["status"] == "True"]
    return len(conditions) == len(ready) == 2 and bool(leader())


def follower() -> dict:
    wait_for("a leader and a follower", two_ready, 60)
    name = leader()["metadata"]["name"]
    return next(pod for pod in operators() if pod["metadata"]["name"] != name)


def send(number: signal.Signals) -> tuple[str, float]:
    """Sends a signal to the leader's process; who led, and when that was."""
    wait_for("a leader and a follower", two_ready, 60)
    led, target = holder(), process(leader())
    os.kill(target, number)
    return led, time.monotonic()


def takeover(led: str, since: float, within: float) -> float:
    """Waits until another leads; how long that took."""
    wait_for("another leader", lambda: holder() not in ("", led), within + 10, every=0.05)
    took = time.monotonic() - since
    assert took <= within, f"{took:.1f} s"
    return took


def works(namespace, replicas: int) -> None:
    """What is asked for now is carried out."""
    namespace.kubectl("scale", "modeldeployment", "digits", f"--replicas={replicas}")
    namespace.wait_served("digits", 30)


def applied(log: str) -> list[str]:
    """What a log tells of writes."""
    return [line for line in log.splitlines() if '"message":"applied"' in line or '"message":"deleted"' in line]


def test_a_follower_has_its_caches_filled_and_writes_nothing(served):
    standby = follower()
    works(served, 3)
    assert ask("/readyz", standby) == "ok" and ask("/healthz", standby) == "ok"
    metrics = ask("/metrics", standby)
    assert "ortolan_leader 0" in metrics and "ortolan_leader 1" in ask("/metrics")
    assert not [line for line in metrics.splitlines() if line.startswith(("ortolan_writes_total", "ortolan_scrapes_total"))]
    assert applied(SYSTEM.kubectl("logs", standby["metadata"]["name"])) == []
    about = lambda: [event for event in SYSTEM.items("events") if event["involvedObject"]["kind"] == "Lease"]
    assert any(event["message"] == f"{holder()} leads" for event in wait_for("an Event tells who leads", about, 10))


def test_a_leader_that_is_told_to_stop_is_followed_at_once(served):
    led, since = send(signal.SIGTERM)
    print(f"\nSIGTERM: another led after {takeover(led, since, 2):.2f} s")
    works(served, 3)


def test_a_killed_leader_is_followed_within_the_lease(served):
    led, since = send(signal.SIGKILL)
    print(f"\nSIGKILL: another led after {takeover(led, since, LEASE + 2):.1f} s")
    works(served, 3)


def test_a_stopped_leader_is_followed_and_writes_nothing_when_it_wakes(served):
    wait_for("a leader and a follower", two_ready, 60)
    old, target = leader()["metadata"]["name"], process(leader())
    restarts = lambda: SYSTEM.get("pod", old)["status"]["containerStatuses"][0]["restartCount"]
    before = restarts()
    led, since = send(signal.SIGSTOP)
    try:
        print(f"\nSIGSTOP: another led after {takeover(led, since, LEASE + 2):.1f} s")
        # Work that the sleeper will find in its watches.
        works(served, 3)
        works(served, 2)
        settled = wait_for("the children rest", lambda: rests(served), 30)
    finally:
        os.kill(target, signal.SIGCONT)
    woke = time.time()
    wait_for("the old leader has ended", lambda: restarts() > before, 40)
    ended = SYSTEM.get("pod", old)["status"]["containerStatuses"][0]["lastState"]["terminated"]
    assert ended["exitCode"] == 1, ended
    try:
        log = SYSTEM.kubectl("logs", old, "--previous")
        assert "this process may not lead any more and ends" in log.splitlines()[-1], log
        late = [line for line in applied(log) if json.loads(line)["timestamp"] >= time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(woke))]
        assert late == []
        print(f"the old leader's last word: {log.splitlines()[-1]}")
    except KubectlError as error:
        raise AssertionError(f"the log of the old leader cannot be read: {error}") from None
    assert versions(served) == settled, "nothing was written after the old leader woke"
    works(served, 3)


def versions(namespace) -> dict[tuple[str, str], object]:
    """The version of each child; of the model what it says but for its numbers, which the leader writes as they change."""
    return {(item["kind"], item["metadata"]["name"]): version(item) for item in namespace.items(CHILDREN)}


def version(item: dict):
    if item["kind"] != "ModelDeployment":
        return item["metadata"]["resourceVersion"]
    variants = [{key: value for key, value in variant.items() if key not in ("latency", "throughput")} for variant in item["status"]["variants"]]
    return item["spec"], item["status"] | {"variants": variants}


def rests(namespace) -> dict | None:
    """The versions of all children, when none of them changes for three seconds and no server is on its way out."""
    before = versions(namespace)
    time.sleep(3)
    pods = namespace.items("pods")
    return before if versions(namespace) == before and len(pods) == 2 else None
