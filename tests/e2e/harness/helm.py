"""Helm, as a user calls it, for the release `ortolan`."""

import json
import os
import pathlib
import subprocess

CHART = pathlib.Path(__file__).resolve().parents[3] / "charts" / "ortolan"


class HelmError(Exception):
    """Helm ended with an error; the text is what it printed."""


def helm(*arguments: str, timeout: float = 150) -> str:
    """Runs helm in the namespace of the operator and returns what it prints; raises HelmError with its words when it fails."""
    command = [os.environ["HELM"], "--namespace", "ortolan-system", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode != 0:
        raise HelmError(done.stdout + done.stderr)
    return done.stdout


def installed() -> dict:
    """The release as `helm list` shows it; empty when there is none."""
    return next((release for release in json.loads(helm("list", "--output", "json")) if release["name"] == "ortolan"), {})
