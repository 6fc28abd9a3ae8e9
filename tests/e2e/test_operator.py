"""The operator itself: its ports, its rights, its rest, its end."""

import json
import time

from harness.kube import check_operator_log, kubectl, manifest, wait_for
from harness.operator import SYSTEM, ask, leader, operators, rolled_out


def test_health_and_metrics_are_served(namespace, store, digits):
    namespace.apply(manifest("digits", store.add("one.onnx", digits)))
    namespace.wait_served("digits")
    for pod in operators():
        assert ask("/healthz", pod) == "ok" and ask("/readyz", pod) == "ok"
    names = [
        "ortolan_reconcile_duration_seconds_count",
        'ortolan_writes_total{kind="Deployment"}',
        'ortolan_scrapes_total{outcome="ok"}',
        "ortolan_models ",
    ]
    # Servers are looked at once a second.
    wait_for(f"all of {names} in /metrics", lambda: all(name in ask("/metrics") for name in names), 15)


def test_an_unchanged_world_gets_no_writes(namespace, store, digits):
    namespace.apply(manifest("digits", store.add("one.onnx", digits), scaling={"maxReplicas": 3, "latency": {"target": "1s"}}))
    namespace.wait_served("digits")

    def versions():
        kinds = "modeldeployments,deployments,services,poddisruptionbudgets,networkpolicies,controllerrevisions"
        return {(item["kind"], item["metadata"]["name"]): item["metadata"]["resourceVersion"] for item in namespace.items(kinds)}

    def writes():
        return sorted(line for line in ask("/metrics").splitlines() if line.startswith("ortolan_writes_total"))

    # Ten seconds without a change, then the same for twenty more: the time is what is tested here.
    def settled():
        before = versions()
        time.sleep(10)
        return versions() == before

    wait_for("the world has settled", settled, 60)
    others = lambda: [item for item in json.loads(kubectl("get", "modeldeployments", "-A", "-o", "json"))["items"]]
    wait_for("models of earlier tests are gone", lambda: len(others()) == 1, 90)
    before = versions(), writes()
    time.sleep(20)
    assert (versions(), writes()) == before


def test_a_killed_operator_comes_back_and_changes_nothing(namespace, store, digits):
    namespace.apply(manifest("digits", store.add("one.onnx", digits), replicas=2))
    namespace.wait_served("digits")
    before = sorted(pod["metadata"]["uid"] for pod in namespace.pods("digits"))
    old = leader()["metadata"]["name"]
    check_operator_log()
    SYSTEM.kubectl("delete", "pod", old, "--grace-period=0", "--force")
    wait_for("another leader", lambda: leader() and leader()["metadata"]["name"] != old, 30)
    rolled_out()
    namespace.kubectl("scale", "modeldeployment", "digits", "--replicas=3")
    namespace.wait_served("digits")
    after = [pod["metadata"]["uid"] for pod in namespace.pods("digits")]
    assert set(before) <= set(after) and len(after) == 3


def test_the_operator_ends_cleanly_when_told_to():
    name = wait_for("a leader", leader)["metadata"]["name"]
    check_operator_log()
    started = time.monotonic()
    SYSTEM.kubectl("delete", "pod", name, timeout=60)
    print(f"\nthe operator was gone {time.monotonic() - started:.1f} s after it was told to stop")
    rolled_out()
    assert time.monotonic() - started < 25
