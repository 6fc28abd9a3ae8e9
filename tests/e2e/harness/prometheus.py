"""A real Prometheus on this machine that scrapes what the chart's monitors select, as the Prometheus operator would set it up."""

import json
import os
import pathlib
import subprocess
import urllib.parse
import urllib.request

import yaml

from harness.helm import CHART, helm
from harness.kube import wait_for

ADDRESS = "127.0.0.1:19093"
PREFIX = "__meta_kubernetes_pod_"


def monitors() -> list[dict]:
    """The PodMonitors of the chart."""
    values = ["--set", "metrics.podMonitor.enabled=true", "--set", "metrics.models.enabled=true"]
    rendered = yaml.safe_load_all(helm("template", "ortolan", str(CHART), *values))
    return [found for found in rendered if found and found["kind"] == "PodMonitor"]


def scrape_config(monitor: dict) -> dict:
    """What a PodMonitor means, for the parts of it that the chart uses."""
    metadata, spec = monitor["metadata"], monitor["spec"]
    (endpoint,) = spec["podMetricsEndpoints"]
    label = lambda key: f"{PREFIX}label_{''.join(c if c.isalnum() else '_' for c in key)}"
    keep = [{"action": "keep", "source_labels": [label(key)], "regex": value} for key, value in spec["selector"].get("matchLabels", {}).items()]
    for expression in spec["selector"].get("matchExpressions", []):
        assert expression["operator"] == "Exists"
        present = label(expression["key"]).replace("_label_", "_labelpresent_")
        keep.append({"action": "keep", "source_labels": [present], "regex": "true"})
    config = {
        "job_name": f"podMonitor/{metadata['namespace']}/{metadata['name']}/0",
        "honor_labels": endpoint["honorLabels"],
        "metrics_path": endpoint["path"],
        "kubernetes_sd_configs": [{"role": "pod", "kubeconfig_file": os.environ["KUBECONFIG"]}],
        "relabel_configs": [
            {"action": "keep", "source_labels": [f"{PREFIX}container_port_name"], "regex": endpoint["port"]},
            {"action": "drop", "source_labels": [f"{PREFIX}phase"], "regex": "(Failed|Succeeded)"},
            *keep,
            {"source_labels": ["__meta_kubernetes_namespace"], "target_label": "namespace"},
            {"source_labels": [f"{PREFIX}name"], "target_label": "pod"},
        ],
    }
    if not spec.get("namespaceSelector", {}).get("any"):
        config["kubernetes_sd_configs"][0]["namespaces"] = {"names": [metadata["namespace"]]}
    return config


class Prometheus:
    """Scrapes and evaluates every second, with the chart's alerts."""

    def __init__(self, folder: pathlib.Path):
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(CHART / "files" / "alerts.yaml")],
            "scrape_configs": [scrape_config(monitor) for monitor in monitors()],
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
        self.process.terminate()
        self.process.wait(20)
        self.log.close()
