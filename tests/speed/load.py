"""Load on a server by tools that nobody here wrote: wrk over HTTP/1.1, h2load over gRPC, vegeta at a rate."""

import dataclasses
import json
import os
import pathlib
import subprocess
import tempfile
import urllib.request

import numpy as np
import tritonclient.grpc
from tritonclient.grpc import service_pb2

from servers import LOAD_CPU, SERVER_CPU, Server

WRK = """
local bodies = {}
for path in string.gmatch(os.getenv("BODIES"), "[^:]+") do
  local file = io.open(path, "rb")
  table.insert(bodies, file:read("*a"))
  -- wrk takes no more descriptors than its connections need.
  file:close()
end
wrk.method, wrk.body = "POST", bodies[1]
wrk.headers["content-type"] = os.getenv("KIND")
local head = os.getenv("HEAD")
if head ~= "" then wrk.headers["inference-header-content-length"] = head end
if #bodies > 1 then
  local requests, next = {}, 0
  init = function()
    for index, body in ipairs(bodies) do requests[index] = wrk.format(nil, nil, nil, body) end
  end
  request = function()
    next = next % #requests + 1
    return requests[next]
  end
end
done = function(summary, latency)
  local errors = summary.errors
  io.write(string.format('{"requests": %d, "seconds": %f, "p50": %f, "p99": %f, "failed": %d}\\n', summary.requests,
    summary.duration / 1e6, latency:percentile(50) / 1e6, latency:percentile(99) / 1e6,
    errors.status + errors.connect + errors.read + errors.write + errors.timeout))
end
"""
DATATYPES = {"float32": "FP32", "int64": "INT64"}
METHOD = "inference.GRPCInferenceService/ModelInfer"


@dataclasses.dataclass
class Measured:
    """What one run of a load tool saw; times in seconds."""

    rate: float
    p50: float
    p99: float
    cpu: float  # of the server, for a thousand requests


class Request:
    """One request to a model, in every form, and its answer by ONNX Runtime."""

    def __init__(self, model: str, name: str, values: np.ndarray, expected: np.ndarray, timeout: float | None = None):
        """`timeout`: seconds after which the client does not want the answer any more."""
        self.model, self.values, self.expected = model, values, expected
        self._folder = tempfile.TemporaryDirectory()
        self._name, self._datatype = name, DATATYPES[str(values.dtype)]
        tensor = {"name": name, "datatype": self._datatype, "shape": list(values.shape)}
        parameters = {"parameters": {"timeout": int(timeout * 1e6)}} if timeout else {}
        self.json = self._file("json", json.dumps({"inputs": [tensor | {"data": values.ravel().tolist()}]} | parameters).encode())
        head = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": values.nbytes}}],
                           "parameters": {"binary_data_output": True}}).encode()  # fmt: skip
        self.binary, self.head = self._file("binary", head + values.tobytes()), len(head)
        message = service_pb2.ModelInferRequest(model_name=model)
        message.inputs.add(name=name, datatype=self._datatype, shape=values.shape)
        message.raw_input_contents.append(values.tobytes())
        content = message.SerializeToString()
        self.grpc = self._file("grpc", b"\0" + len(content).to_bytes(4, "big") + content)

    def _file(self, name: str, content: bytes) -> pathlib.Path:
        path = pathlib.Path(self._folder.name) / name
        path.write_bytes(content)
        return path

    def check(self, server: Server, protocol: str):
        """The server answers what ONNX Runtime does; load tools only count."""
        answer = self._by_grpc(server) if protocol == "gRPC" else self._by_rest(server, protocol == "REST binary")
        np.testing.assert_allclose(answer, self.expected, rtol=1e-3, atol=1e-5)

    def _by_grpc(self, server: Server) -> np.ndarray:
        tensor = tritonclient.grpc.InferInput(self._name, list(self.values.shape), self._datatype)
        tensor.set_data_from_numpy(self.values)
        client = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}")
        answer = client.infer(self.model, [tensor]).as_numpy("y")
        client.close()
        return answer

    def _by_rest(self, server: Server, binary: bool) -> np.ndarray:
        kind, head = self.headers(binary)
        headers = {"content-type": kind} | ({"inference-header-content-length": head} if head else {})
        body = (self.binary if binary else self.json).read_bytes()
        request = urllib.request.Request(f"http://127.0.0.1:{server.http}/v2/models/{server.name}/infer", body, headers)
        with urllib.request.urlopen(request, timeout=20) as response:
            content, length = response.read(), response.headers.get("inference-header-content-length")
        output = json.loads(content[: int(length)] if length else content)["outputs"][0]
        values = np.frombuffer(content[int(length) :], np.float32) if length else np.array(output["data"], np.float32)
        return values.reshape(output["shape"])

    def headers(self, binary: bool) -> tuple[str, str]:
        """The content type, and the length of the JSON before the tensors; empty without tensors behind it."""
        return ("application/octet-stream", str(self.head)) if binary else ("application/json", "")


def measure(server: Server, protocol: str, requests: list[Request], connections: int, seconds: float) -> Measured:
    """As many requests as `connections` clients make, each waiting for its answer before it asks again. `requests`: made in turns,
    which only wrk does."""
    for request in requests:
        request.check(server, protocol)
    tool, url = wrk, f"http://127.0.0.1:{server.http}/v2/models/{server.name}/infer"
    if protocol == "gRPC":
        tool, url = h2load, f"http://127.0.0.1:{server.grpc}/{METHOD}"
    tool(url, protocol, requests, connections, min(1, seconds))  # warm
    before = server.cpu()
    count, spent, p50, p99 = tool(url, protocol, requests, connections, seconds)
    cpu = (server.cpu() - before) / count * 1000
    requests[0].check(server, protocol)
    return Measured(count / spent, p50, p99, cpu)


def floor(request: Request, seconds: float) -> float:
    """The median seconds of a request that a program answers without looking at it: what the kernel and wrk take."""
    command = ["taskset", "--cpu-list", SERVER_CPU, os.environ["FLOOR"]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        try:
            port = int(program.stdout.readline())
            return wrk(f"http://127.0.0.1:{port}/", "REST JSON", [request], 1, seconds)[2]
        finally:
            program.kill()


def on_its_cpu(*command, **options) -> str:
    command = ["taskset", "--cpu-list", LOAD_CPU, *map(str, command)]
    return subprocess.run(command, check=True, capture_output=True, text=True, **options).stdout


def wrk(url: str, protocol: str, requests: list[Request], connections: int, seconds: float):
    binary = protocol == "REST binary"
    kind, head = requests[0].headers(binary)
    bodies = ":".join(str(request.binary if binary else request.json) for request in requests)
    environment = {"BODIES": bodies, "KIND": kind, "HEAD": head}
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(WRK)
        script.flush()
        told = on_its_cpu("wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "20s", "-s", script.name, url,
                          env=os.environ | environment)  # fmt: skip
    found = json.loads(told.splitlines()[-1])
    assert found["failed"] == 0, f"{found['failed']} requests failed"
    return found["requests"], found["seconds"], found["p50"], found["p99"]


def h2load(url: str, _protocol: str, requests: list[Request], connections: int, seconds: float):
    (request,) = requests
    with tempfile.NamedTemporaryFile("r") as log:
        told = on_its_cpu(
            "h2load", "--threads=1", f"--clients={connections}", "--max-concurrent-streams=1", f"--duration={max(1, round(seconds))}",
            f"--data={request.grpc}", "--header=content-type: application/grpc", "--header=te: trailers", f"--log-file={log.name}", url,
        )  # fmt: skip
        lines = [line.split() for line in log.read().splitlines()]
    answered = np.array([int(line[2]) for line in lines if line[1] == "200"])
    assert len(answered) and all(line[1] in ("200", "-1") for line in lines), told
    starts = [int(line[0]) for line in lines]
    spent = (max(starts) - min(starts)) / 1e6
    return len(answered), spent, *(np.quantile(answered, [0.5, 0.99]) / 1e6)


def goodput(server: Server, request: Request, rate: float, seconds: float, deadline: float) -> float:
    """Answers within the deadline in a second, where requests come at a rate whatever becomes of those before."""
    target = f"POST http://127.0.0.1:{server.http}/v2/models/{server.name}/infer\nContent-Type: application/json\n@{request.json}\n"
    with tempfile.NamedTemporaryFile() as results:
        on_its_cpu(
            os.environ["VEGETA"], "attack", f"-rate={round(rate)}/s", f"-duration={round(seconds)}s", f"-timeout={round(deadline * 1000)}ms",
            "-max-connections=10000", "-connections=1000", f"-output={results.name}", input=target, env=os.environ | {"GOMAXPROCS": "1"},
        )  # fmt: skip
        report = json.loads(on_its_cpu(os.environ["VEGETA"], "report", "-type=json", results.name))
    return report["status_codes"].get("200", 0) / seconds
