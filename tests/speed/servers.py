"""The servers that are measured: each one process, on one processor of its own, with one model."""

import contextlib
import http.client
import json
import os
import pathlib
import signal
import socket
import subprocess
import time

PEERS = pathlib.Path(__file__).parent / "peers"
# The processor of the server, and that of whatever loads it.
SERVER_CPU, LOAD_CPU = "0", "1"
TICKS = os.sysconf("SC_CLK_TCK")


class Server:
    """A running server. `started`: seconds from its start until it was ready."""

    def __init__(self, kind: str, name: str, model: pathlib.Path, folder: pathlib.Path):
        self.kind, self.name = kind, name
        self.http, self.grpc, self._other = free_ports(3)
        command, environment = getattr(self, f"_{kind}")(model, folder)
        begun = time.monotonic()
        with (folder / f"{kind}.log").open("wb") as log:
            self._process = subprocess.Popen(
                ["taskset", "--cpu-list", SERVER_CPU, *command], env=os.environ | environment, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self._wait_ready(folder / f"{kind}.log", begun + 120)
        self.started = time.monotonic() - begun

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.killpg(self._process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(20)
        # What a server started may outlive it, and go on with what nobody waits for: on the processor of the next server.
        while tree := self._tree():
            for folder in tree:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(folder.name), signal.SIGKILL)
            time.sleep(0.01)
        self._process.wait()

    def _ortolan(self, model, folder):
        ports = ["--http-port", self.http, "--grpc-port", self.grpc, "--ops-port", self._other]
        return [os.environ["SERVER"], "serve", "--name", self.name, "--model", str(model), "--address", "127.0.0.1",
                "--drain-delay", "0s", *map(str, ports)], {}  # fmt: skip

    def _mlserver(self, model, folder):
        settings = {"host": "127.0.0.1", "http_port": self.http, "grpc_port": self.grpc, "metrics_port": self._other,
                    "parallel_workers": 0, "debug": False}  # fmt: skip
        (folder / "settings.json").write_text(json.dumps(settings))
        found = {"name": self.name, "implementation": "mlserver_onnx.OnnxModel", "parameters": {"uri": str(model)}}
        (folder / "model-settings.json").write_text(json.dumps(found))
        return [f"{os.environ['MLSERVER']}/mlserver", "start", str(folder)], {"PYTHONPATH": str(PEERS)}

    def _kserve(self, model, folder):
        ports = [str(self.http), str(self.grpc)]
        return [f"{os.environ['KSERVE']}/python", str(PEERS / "kserve_onnx.py"), self.name, str(model), *ports], {}

    def _litserve(self, model, folder):
        return [f"{os.environ['LITSERVE']}/python", str(PEERS / "litserve_onnx.py"), self.name, str(model), str(self.http)], {}

    def _wait_ready(self, log: pathlib.Path, deadline: float):
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.http, timeout=5)
                connection.request("GET", f"/v2/models/{self.name}/ready")
                if connection.getresponse().status == 200:
                    return
            except OSError:
                pass
            time.sleep(0.001)
        raise AssertionError(f"{self.kind} is not ready: {log.read_text()[-2000:]}")

    def _tree(self) -> list[pathlib.Path]:
        """The process folders of the server and of what it started and still runs, but for taskset, which it replaced."""
        session = str(self._process.pid)
        folders = ((folder, fields(folder)) for folder in pathlib.Path("/proc").glob("[0-9]*"))
        return [folder for folder, told in folders if told[3:4] == [session] and told[0] != "Z"]

    def peak_memory(self) -> int:
        """Bytes."""
        total = 0
        for folder in self._tree():
            lines = (folder / "status").read_text().splitlines()
            total += sum(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))
        return total

    def cpu(self) -> float:
        """Seconds of processor time so far."""
        return sum(sum(map(int, fields(folder)[11:13])) for folder in self._tree()) / TICKS


def fields(folder: pathlib.Path) -> list[str]:
    """The fields of a process's stat after its name, from its state on; empty when it is gone."""
    try:
        return (folder / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for made in sockets:
        made.bind(("127.0.0.1", 0))
    ports = [made.getsockname()[1] for made in sockets]
    for made in sockets:
        made.close()
    return ports
