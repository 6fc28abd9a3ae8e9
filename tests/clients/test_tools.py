"""What people look and measure with: curl, grpcurl, perf_analyzer."""

import csv
import json
import os
import pathlib
import subprocess
import sysconfig

import pytest


def run(*command, **options) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_onnx_runtime_collects_nothing(serve):
    """Its official build keeps a database of what it sees, to send it, where nobody says no before it is loaded."""
    opened = [path.readlink().name for path in pathlib.Path(f"/proc/{serve('mlp').pid}/fd").iterdir() if path.is_symlink()]
    assert opened and not [name for name in opened if name.startswith("onnxruntime.db")], opened


def test_curl(serve):
    server = serve("mlp")
    body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 64], "data": [0.5] * 64}]})
    answer = run("curl", "--silent", "--fail", "--compressed", "--data", body, f"http://{server.http}/v2/models/mlp/infer")
    assert json.loads(answer)["outputs"][0]["shape"] == [1, 10]
    # The readme's way to send an array as it lies in memory.
    raw = run("curl", "--silent", "--fail", "--header", "Inference-Header-Content-Length: 0", "--data-binary", "@-",
              "--output", "/dev/null", "--write-out", "%{http_code}", f"http://{server.http}/v2/models/mlp/infer",
              input="\0" * 256)  # fmt: skip
    assert raw == "200"


def test_grpcurl(serve):
    server, grpcurl = serve("mlp"), os.environ["GRPCURL"]
    services = run(grpcurl, "-plaintext", server.grpc, "list").split()
    assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= set(services)
    described = run(grpcurl, "-plaintext", server.grpc, "describe", "inference.GRPCInferenceService")
    assert "rpc ModelStreamInfer" in described and "RepositoryModelLoad" not in described
    request = {"model_name": "mlp", "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 64], "contents": {"fp32_contents": [0.5] * 64}}]}
    answer = json.loads(run(grpcurl, "-plaintext", "-d", json.dumps(request), server.grpc, "inference.GRPCInferenceService/ModelInfer"))
    assert answer["outputs"][0]["shape"] == ["1", "10"]
    health = run(grpcurl, "-plaintext", "-d", '{"service": "inference.GRPCInferenceService"}', server.grpc, "grpc.health.v1.Health/Check")
    assert json.loads(health) == {"status": "SERVING"}


@pytest.mark.parametrize(("protocol", "mode"), [
    ("http", "--sync"), ("http", "--async"), ("grpc", "--sync"), ("grpc", "--async"), ("grpc", "--streaming"),
])  # fmt: skip
def test_perf_analyzer(serve, tmp_path, protocol, mode):
    server, program = serve("mlp"), pathlib.Path(os.environ["PERF_ANALYZER"])
    libraries = program.parents[1] / pathlib.Path(sysconfig.get_path("purelib")).relative_to(sysconfig.get_path("data"))
    report = tmp_path / "report.csv"
    run(program, "-m", "mlp", "-u", getattr(server, protocol), "-i", protocol, "--concurrency-range", "2", "--measurement-mode",
        "count_windows", "--measurement-request-count", "200", "--stability-percentage", "900", "-f", report, mode,
        env={**os.environ, "LD_LIBRARY_PATH": str(libraries / "nvidia/cuda_runtime/lib")})  # fmt: skip
    [row] = csv.DictReader(report.open())
    assert float(row["Inferences/Second"]) > 0
