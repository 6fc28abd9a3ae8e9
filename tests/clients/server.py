"""The inference server as a process, as it runs in a pod."""

import os
import pathlib
import re
import subprocess
import time

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


def wait_for(what: str, look, timeout: float):
    """Calls `look` until it returns something true; fails after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not look():
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        time.sleep(0.2)
