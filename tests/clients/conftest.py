"""Servers of the tests' models, each a process as it runs in a pod."""

import json
import os
import pathlib
import re
import subprocess
import time

import pytest

MODELS = pathlib.Path(__file__).parents[2] / "inference-server/tests/models"


class Server:
    """A running inference server and its addresses."""

    def __init__(self, name: str, path: pathlib.Path, log: pathlib.Path, *flags: str):
        self.name = name
        self._log = log
        command = [os.environ["SERVER"], "serve", "--name", name, "--model", path, "--address", "127.0.0.1", "--drain-delay", "0s",
                   "--http-port", "0", "--grpc-port", "0", "--ops-port", "0", *flags]  # fmt: skip
        with log.open("wb") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        self.http, self.grpc, self.ops = (f"127.0.0.1:{port}" for port in self._ports())

    @property
    def pid(self) -> int:
        return self._process.pid

    def _ports(self):
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self._process.poll() is None:
            text = re.sub(r"\x1b\[[0-9;]*m", "", self._log.read_text())
            ports = {name: re.search(rf'\b{name}"?[=:] ?(\d+)', text) for name in ("http", "grpc", "ops")}
            if all(ports.values()) and re.search(r'"?ready"?', text.rsplit("listening", 1)[-1]):
                return [ports[name].group(1) for name in ("http", "grpc", "ops")]
            time.sleep(0.02)
        raise AssertionError(f"the server is not ready: {self._log.read_text()}")

    def stop(self):
        self._process.terminate()
        assert self._process.wait(30) == 0, self._log.read_text()


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
