"""What the operator and the servers tell Prometheus, and what dashboards and alerts make of it."""

import json
import pathlib

import pytest

from harness.kube import manifest, wait_for
from harness.load import Load
from harness.operator import leader
from harness.prometheus import Prometheus

DASHBOARDS = pathlib.Path(__file__).resolve().parents[2] / "dashboards"
BODY = json.dumps({"inputs": [{"name": "pixels", "datatype": "FP32", "shape": [1, 64], "data": [0.0] * 64}]}).encode()
# What has no data while nothing goes wrong and no number of servers changes.
QUIET = ["ortolan_reconcile_errors_total", "ortolan_watch_errors_total", 'code!~"2.."', "ortolan_scaling_decisions_total"]


@pytest.fixture
def prometheus(tmp_path_factory):
    made = Prometheus(tmp_path_factory.mktemp("prometheus"))
    yield made
    made.close()


def expressions() -> list[str]:
    """Every query of the dashboards, with its variables filled in."""
    found = []
    for file in sorted(DASHBOARDS.glob("*.json")):
        panels = json.loads(file.read_text())["panels"]
        found += [target["expr"] for panel in panels for target in panel.get("targets", [])]
    assert len(found) > 40
    filled = [text.replace("$__rate_interval", "30s").replace("$namespace", ".*").replace("$model", ".*") for text in found]
    assert not [text for text in filled if "$" in text]
    return filled


def test_a_real_prometheus_scrapes_answers_the_dashboards_and_evaluates_the_alerts(namespace, store, digits, prometheus):
    scaling, server = {"maxReplicas": 3, "latency": {"target": "1s"}}, {"resources": {"limits": {"memory": "256Mi"}}}
    namespace.apply(manifest("digits", store.add("one.onnx", digits), scaling=scaling, server=server))
    namespace.apply(manifest("broken", store.uri("missing.onnx"), replicas=1))
    namespace.wait_served("digits")
    load = Load(namespace.infer_url("digits"), BODY, rate=20, seconds=120)
    try:
        check_targets(namespace, prometheus)
        # Rates need some scrapes.
        queries = [text for text in expressions() if not any(word in text for word in QUIET)]
        wait_for("every query has data", lambda: not without_data(prometheus, queries), 60, every=1)
        for text in expressions():
            prometheus.query(text)
        (told,) = prometheus.query(f'ortolan_model_ready{{namespace="{namespace.name}", name="digits"}}')
        assert told["value"][1] == "1" and told["metric"]["pod"] == leader()["metadata"]["name"]
    finally:
        load.stop()
    check_alerts(namespace, prometheus)


def check_targets(namespace, prometheus) -> None:
    """Both operators and every server that runs are scraped without an error."""

    def scraped():
        up = [target["labels"] for target in prometheus.targets() if target["health"] == "up"]
        operators = [labels for labels in up if labels["namespace"] == "ortolan-system"]
        servers = {labels["pod"] for labels in up if labels["namespace"] == namespace.name}
        return len(operators) == 2 and {pod["metadata"]["name"] for pod in namespace.pods("digits")} <= servers

    wait_for("operators and servers are scraped", scraped, 30)


def without_data(prometheus, queries: list[str]) -> list[str]:
    """The queries that no number answers."""
    empty = [text for text in queries if not any(sample["value"][1] != "NaN" for sample in prometheus.query(text))]
    if empty:
        print(f"without data: {empty}")
    return empty


def check_alerts(namespace, prometheus) -> None:
    """The alerts can be evaluated, and the one about a model that is not ready waits for its time to pass."""
    rules = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
    assert len(rules) > 10
    assert [rule for rule in rules if rule["health"] != "ok" or rule.get("lastError")] == []

    def pending():
        about = {"alertname": "OrtolanModelNotReady", "namespace": namespace.name, "name": "broken"}
        return [alert for alert in prometheus.alerts() if about.items() <= alert["labels"].items()]

    (alert,) = wait_for("the alert about the broken model is pending", pending, 30)
    assert alert["state"] == "pending" and namespace.name in alert["annotations"]["summary"]
    wrong = {"OrtolanDown", "OrtolanNoLeader", "OrtolanTwoLeaders"}
    assert [alert for alert in prometheus.alerts() if alert["labels"]["alertname"] in wrong] == []
