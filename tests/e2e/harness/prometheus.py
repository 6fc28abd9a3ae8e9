"""A real Prometheus on this machine that scrapes what the chart's monitors select, as the Prometheus operator would set it up."""

import json
import pathlib
import subprocess
import threading
import urllib.parse
import urllib.request

import yaml

from harness.helm import CHART, helm
from harness.kube import kubectl, wait_for

ADDRESS = "127.0.0.1:19093"
def monitors() -> list[dict]:
    """The PodMonitors of the chart."""
    values = ["--set", "metrics.podMonitor.enabled=true", "--set", "metrics.models.enabled=true"]
    rendered = yaml.safe_load_all(helm("template", "ortolan", str(CHART), *values))
    return [found for found in rendered if found and found["kind"] == "PodMonitor"]


def scrape_config(monitor: dict, targets: pathlib.Path) -> dict:
    """What a PodMonitor means, for the parts of it that the chart uses. Debian's Prometheus does not know Kubernetes: it reads
    the pods from a file."""
    metadata, (endpoint,) = monitor["metadata"], monitor["spec"]["podMetricsEndpoints"]
    return {
        "job_name": f"podMonitor/{metadata['namespace']}/{metadata['name']}/0",
        "honor_labels": endpoint["honorLabels"],
        "metrics_path": endpoint["path"],
        "file_sd_configs": [{"files": [str(targets)]}],
    }


def selected(monitor: dict) -> list[dict]:
    """The pods that a PodMonitor selects now, each as a target with its labels."""
    spec, namespace = monitor["spec"], monitor["metadata"]["namespace"]
    terms = [f"{key}={value}" for key, value in spec["selector"].get("matchLabels", {}).items()]
    for expression in spec["selector"].get("matchExpressions", []):
        assert expression["operator"] == "Exists"
        terms.append(expression["key"])
    where = ["--all-namespaces"] if spec.get("namespaceSelector", {}).get("any") else ["--namespace", namespace]
    pods = json.loads(kubectl("get", "pods", *where, "--selector", ",".join(terms), "--output", "json"))["items"]
    targets = []
    for pod in pods:
        status, metadata = pod["status"], pod["metadata"]
        if status.get("phase") in ("Failed", "Succeeded") or not status.get("podIP"):
            continue
        for container in pod["spec"]["containers"]:
            for port in container.get("ports", []):
                if port.get("name") == spec["podMetricsEndpoints"][0]["port"]:
                    labels = {"namespace": metadata["namespace"], "pod": metadata["name"]}
                    targets.append({"targets": [f"{status['podIP']}:{port['containerPort']}"], "labels": labels})
    return targets


class Prometheus:
    """Scrapes and evaluates every second, with the chart's alerts."""

    def __init__(self, folder: pathlib.Path):
        self.selections = [(monitor, folder / f"targets-{index}.json") for index, monitor in enumerate(monitors())]
        self.follow()
        self.over = threading.Event()
        threading.Thread(target=self.keep_following, daemon=True).start()
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(CHART / "files" / "alerts.yaml")],
            "scrape_configs": [scrape_config(monitor, file) for monitor, file in self.selections],
        }
        file = folder / "prometheus.yaml"
        file.write_text(yaml.safe_dump(config))
        self.log = (folder / "log").open("w+")
        self.process = subprocess.Popen(
            [
                "prometheus", f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={ADDRESS}", "--log.level=warn",
            ],
            stdout=self.log,
            stderr=self.log,
        )
        try:
            wait_for("Prometheus is ready", self.is_ready, 30)
        except AssertionError as late:
            self.close()
            raise AssertionError(f"{late}\n{pathlib.Path(self.log.name).read_text()}") from None

    def follow(self) -> None:
        """Writes down which pods there are."""
        for monitor, file in self.selections:
            new = file.with_suffix(".new")
            new.write_text(json.dumps(selected(monitor)))
            new.rename(file)

    def keep_following(self) -> None:
        while not self.over.wait(1):
            self.follow()

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{ADDRESS}/-/ready", timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False

    def ask(self, path: str, **query: str) -> dict | list:
        """The data of an answer of its API."""
        url = f"http://{ADDRESS}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[dict]:
        """The series of an expression, now."""
        return self.ask("query", query=expression)["result"]

    def targets(self) -> list[dict]:
        return self.ask("targets", state="active")["activeTargets"]

    def alerts(self) -> list[dict]:
        """Those that are pending or fire."""
        return self.ask("alerts")["alerts"]

    def close(self) -> None:
        self.over.set()
        self.process.terminate()
        self.process.wait(20)
        self.log.close()
