"""Servers of the tests' models, each a process as it runs in a pod."""

import json
import pathlib

import pytest

from server import MODELS, Server


@pytest.fixture(scope="session")
def serve(tmp_path_factory):
    """Starts the server of a model once, by its name or by the file it is in."""
    folder, running = tmp_path_factory.mktemp("servers"), {}

    def start(name: str, path: pathlib.Path | None = None) -> Server:
        if name not in running:
            running[name] = Server(name, path or MODELS / f"{name}.onnx", folder / f"{name}.log")
        return running[name]

    yield start
    for server in running.values():
        server.stop()


@pytest.fixture(scope="session")
def expected():
    """What ONNX Runtime's Python package answered, by model."""
    cases = {}
    for case in json.loads((MODELS / "expected.json").read_text()):
        cases.setdefault(case["model"], case)
    return cases
