"""From `kubectl apply` to right answers, by clients that nobody here wrote."""

import json
import time

import httpx
import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc
import tritonclient.http

from harness.kube import manifest, wait_for


@pytest.fixture(scope="module")
def expected(digits, holdout):
    """Held-out images [n, 64], their labels [n], and what Python's ONNX Runtime answers: labels [n], probabilities [n, 10]."""
    held = json.loads(holdout.read_text())
    pixels = np.array(held["pixels"], dtype=np.float32)
    session = onnxruntime.InferenceSession(digits, providers=["CPUExecutionProvider"])
    labels, probabilities = session.run(["label", "probabilities"], {"pixels": pixels})
    return pixels, np.array(held["labels"]), labels, probabilities


def ask(client_module, client, pixels: np.ndarray, binary: bool | None = None):
    """Labels and probabilities of all rows, in requests of at most 60 rows."""
    labels, probabilities = [], []
    for rows in np.array_split(pixels, len(pixels) // 60):
        tensor = client_module.InferInput("pixels", list(rows.shape), "FP32")
        options = {} if binary is None else {"binary_data": binary}
        tensor.set_data_from_numpy(rows, **options)
        outputs = [client_module.InferRequestedOutput(name, **options) for name in ("label", "probabilities")]
        answer = client.infer("digits", [tensor], outputs=outputs)
        labels.append(answer.as_numpy("label"))
        probabilities.append(answer.as_numpy("probabilities"))
    return np.concatenate(labels), np.concatenate(probabilities)


def test_the_readmes_model_is_served_and_every_protocol_answers_as_onnx_runtime_does(namespace, manifest_file, expected):
    started = time.monotonic()
    namespace.kubectl("apply", "--filename", str(manifest_file))
    namespace.wait_condition("digits", "Ready", "True", "Serving", timeout=60)
    ready = time.monotonic() - started
    pod = namespace.pods("digits")[0]
    stats = json.loads(namespace.kubectl("get", "--raw", f"/api/v1/namespaces/{namespace.name}/pods/{pod['metadata']['name']}:9090/proxy/stats"))
    print(f"\napply to Ready: {ready:.1f} s; server start to ready: {stats['startToReadySeconds']:.2f} s")
    print(namespace.kubectl("get", "modeldeployment", "digits"))
    assert ready <= 15
    assert stats["startToReadySeconds"] <= 1

    address = namespace.address("digits")
    pixels, truth, labels, probabilities = expected
    http = tritonclient.http.InferenceServerClient(f"{address}:80")
    grpc = tritonclient.grpc.InferenceServerClient(f"{address}:8081")
    assert http.is_server_ready() and http.is_model_ready("digits") and grpc.is_model_ready("digits")
    answers = {
        "REST, JSON": ask(tritonclient.http, http, pixels, binary=False),
        "REST, binary": ask(tritonclient.http, http, pixels, binary=True),
        "gRPC": ask(tritonclient.grpc, grpc, pixels),
    }
    for protocol, (got_labels, got_probabilities) in answers.items():
        difference = float(np.abs(got_probabilities - probabilities).max())
        accuracy = float((got_labels == truth).mean())
        print(f"{protocol}: {len(pixels)} images, accuracy {accuracy:.4f}, largest difference to Python {difference:.1e}")
        assert np.array_equal(got_labels, labels)
        assert difference <= 1e-5
        assert accuracy >= 0.96

    status = namespace.status("digits")
    digest = namespace.model("digits")["spec"]["model"]["sha256"]
    assert status["observedGeneration"] == 1
    wait_for("the digest is known", lambda: namespace.status("digits")["stable"].get("digest") == f"sha256:{digest}", 10)
    wait_for("the observed latency is shown", lambda: "p99" in namespace.status("digits")["variants"][0].get("latency", {}), 30)


def test_servers_run_on_both_nodes_and_share_the_requests(namespace, store, digits, expected):
    namespace.apply(manifest("digits", store.add("digits.onnx", digits), replicas=2))
    namespace.wait_served("digits")
    pods = namespace.pods("digits")
    assert {pod["spec"]["nodeName"] for pod in pods} == {"node-0", "node-1"}

    url = namespace.infer_url("digits")
    body = {"inputs": [{"name": "pixels", "datatype": "FP32", "shape": [1, 64], "data": expected[0][0].tolist()}]}
    for _ in range(200):
        # A connection of its own for each request, as many clients would have.
        assert httpx.post(url, json=body).status_code == 200
    counts = [httpx.get(f"http://{pod['status']['podIP']}:9090/stats").json()["requests"]["completed"] for pod in pods]
    print(f"\nrequests on the two nodes: {counts}")
    assert sum(counts) == 200
    # Fair coins: 200 throws fall outside 60..140 less than once in 10^7 runs.
    assert min(counts) >= 60


def test_a_model_in_a_volume_is_served(namespace, tmp_path, digits, expected):
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "model.onnx").write_bytes(digits)
    # Readable for the server's user, as a volume of a cluster would be.
    for folder in [tmp_path, *list(tmp_path.parents)[:3]]:
        folder.chmod(folder.stat().st_mode | 0o055)
    name = f"models-{namespace.name}"[:60]
    claim = {"accessModes": ["ReadOnlyMany"], "storageClassName": "", "volumeName": name, "resources": {"requests": {"storage": "1Mi"}}}
    volume = {"capacity": {"storage": "1Mi"}, "accessModes": ["ReadOnlyMany"], "hostPath": {"path": str(tmp_path)}}
    namespace.apply({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": volume})
    try:
        namespace.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "models"}, "spec": claim})
        namespace.apply(manifest("digits", "pvc://models/digits/model.onnx", server={"batching": {"maxSize": 64}}))
        namespace.wait_served("digits")
        http = tritonclient.http.InferenceServerClient(f"{namespace.address('digits')}:80")
        labels, _ = ask(tritonclient.http, http, expected[0][:60], binary=True)
        assert np.array_equal(labels, expected[2][:60])
    finally:
        namespace.kubectl("delete", "persistentvolume", name, "--wait=false")
