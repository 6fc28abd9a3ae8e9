"""Helm, as a user calls it, and what the chart renders, as objects."""

import json
import os
import pathlib
import subprocess

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "ortolan"
DIGEST = "sha256:" + "5" * 64


class HelmError(Exception):
    """Helm ended with an error; the text is what it printed."""


def helm(*arguments: str, stdin: str | None = None) -> str:
    """Runs helm and returns what it prints; raises HelmError with its words when it fails."""
    done = subprocess.run([os.environ["HELM"], *arguments], input=stdin, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise HelmError(done.stdout + done.stderr)
    return done.stdout


class Rendered:
    """The objects of a rendering, by kind and name."""

    def __init__(self, text: str):
        self.objects = [found for found in yaml.safe_load_all(text) if found]

    def kinds(self) -> list[str]:
        return sorted({found["kind"] for found in self.objects})

    def get(self, kind: str, name: str = "ortolan") -> dict:
        matching = [found for found in self.objects if (found["kind"], found["metadata"]["name"]) == (kind, name)]
        assert len(matching) == 1, f"{len(matching)} × {kind}/{name} in {self.kinds()}"
        return matching[0]

    def pod(self) -> dict:
        return self.get("Deployment")["spec"]["template"]

    def container(self) -> dict:
        (container,) = self.pod()["spec"]["containers"]
        return container


def render(values: dict | None = None, chart: pathlib.Path = CHART) -> Rendered:
    """`helm template` in another namespace than that of deploy/, so that a fixed one would be seen."""
    arguments = ["template", "ortolan", str(chart), "--namespace", "elsewhere", "--values", "-"]
    return Rendered(helm(*arguments, stdin=json.dumps(values or {})))


def nested(path: str, value: object) -> dict:
    """`a.b` and a value as `{"a": {"b": value}}`."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return value
