"""Both images the classic way: built by `docker build`, run by `docker run`, stopped by `docker stop`."""

import json
import socket
import threading
import time

import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http

from conftest import DIGITS, IMAGES, ROOT, VERSION, build
from docker import docker, inspect, run
from harness.kube import wait_for

SERVE = ("serve", "--model", "/model/model.onnx", "--name", "digits")
REST = "http://127.0.0.1:8080"
INFER = f"{REST}/v2/models/digits/infer"


def wait_ready() -> None:
    def ready() -> bool:
        try:
            return httpx.get(f"{REST}/v2/health/ready").status_code == 200
        except httpx.TransportError:
            return False

    wait_for("the server is ready", ready, 30)


def ask(module, port: int, pixels: np.ndarray) -> np.ndarray:
    """The labels of all rows, by one of tritonclient's protocols, in requests of at most 30 rows."""
    client = module.InferenceServerClient(f"127.0.0.1:{port}")
    labels = []
    for rows in np.array_split(pixels, len(pixels) // 30):
        tensor = module.InferInput("pixels", list(rows.shape), "FP32")
        tensor.set_data_from_numpy(rows)
        labels.append(client.infer("digits", [tensor]).as_numpy("label"))
    client.close()
    return np.concatenate(labels)


def check_answers(expected) -> None:
    """REST and gRPC on the published ports answer all held-out images as Python's ONNX Runtime does."""
    wait_ready()
    pixels, truth, labels = expected
    for module, port in [(tritonclient.http, 8080), (tritonclient.grpc, 8081)]:
        got = ask(module, port, pixels)
        assert np.array_equal(got, labels)
        print(f"\n{module.__name__} on port {port}: {len(pixels)} images, accuracy {(got == truth).mean():.4f}")
        assert (got == truth).mean() >= 0.96


def test_the_classic_builder_builds_both_images_too(engine):
    for image in IMAGES:
        build(image, f"classic-{image}", buildkit=False)
    assert docker("run", "--rm", "classic-server", "--version") == f"ortolan-server {VERSION}"


def test_the_images_say_what_they_are(images):
    for image, name in images.items():
        config = inspect(name)["Config"]
        assert config["User"] == "65532:65532", "never root, and a number for runAsNonRoot"
        assert config["Labels"]["org.opencontainers.image.version"] == VERSION
        print(f"\n{name}: {inspect(name)['Size'] / 1e6:.0f} MB")
    assert set(inspect(images["server"])["Config"]["ExposedPorts"]) == {"8080/tcp", "8081/tcp", "9090/tcp"}
    definition = (ROOT / "crds" / "ortolan.dev_modeldeployments.yaml").read_text()
    assert docker("run", "--rm", images["operator"], "crd") == definition.strip()


def test_the_operator_without_a_cluster_says_so(images):
    done = run("run", "--rm", "--read-only", images["operator"], "run", "--server-image", images["server"])
    assert done.returncode == 1
    assert "no cluster" in done.stderr, done.stderr


def test_a_mounted_folder_is_served_on_published_ports(container, images, model, expected):
    container("-p", "8080:8080", "-p", "8081:8081", "-v", f"{model}:/model", images["server"], *SERVE)
    check_answers(expected)


def test_a_named_volume_is_served_under_the_strictest_settings(container, images, model, expected):
    filler = docker("create", "-v", "models:/model", images["server"])
    docker("cp", str(model / "model.onnx"), f"{filler}:/model/model.onnx")
    docker("rm", filler)
    strict = ["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--memory", "256m", "--cpus", "1"]
    name = container(
        *strict, "-p", "8080:8080", "-p", "8081:8081", "-v", "models:/model:ro", images["server"], *SERVE
    )
    check_answers(expected)
    user = docker("top", name, "-eo", "pid,uid,args").splitlines()[1].split()
    assert user[1] == "65532" and user[2] == "/usr/local/bin/ortolan-server"


def test_docker_ps_shows_whether_the_model_answers(container, images, model):
    name = container("-v", f"{model}:/model", images["server"], *SERVE)
    health = lambda: inspect(name)["State"]["Health"]
    wait_for("the container is healthy", lambda: health()["Status"] == "healthy", 20)
    assert "(healthy)" in docker("ps", "--filter", f"id={name}", "--format", "{{.Status}}")
    # A check that looks at the wrong port fails, and says what to set.
    done = run("exec", "--env", "ORTOLAN_OPS_PORT=9", name, "/usr/local/bin/ortolan-server", "healthcheck")
    assert done.returncode == 1 and "ORTOLAN_OPS_PORT" in done.stdout


def test_docker_stop_lets_requests_under_way_end(container, images, model, expected):
    """What `docker stop` does by default, ten seconds of patience, is enough: every request that the server took is answered
    well, those that wait for others to join their batch included, and the exit code is 0 and not that of a kill."""
    slow = ("--max-batch-delay", "1500ms")
    name = container("-p", "8080:8080", "-v", f"{model}:/model", images["server"], *SERVE, *slow)
    wait_ready()
    tensor = {"name": "pixels", "datatype": "FP32", "shape": [1, 64], "data": expected[0][0].tolist()}
    codes, ended = [], threading.Event()

    def client() -> None:
        # One connection for as long as the server keeps it open, as most clients do; a server that listens no more is the end.
        with httpx.Client(timeout=20) as session:
            while not ended.is_set():
                try:
                    codes.append(session.post(INFER, json={"inputs": [tensor]}).status_code)
                except httpx.ConnectError:
                    return
                except httpx.TransportError as error:
                    codes.append(repr(error))
                    return

    clients = [threading.Thread(target=client) for _ in range(8)]
    for thread in clients:
        thread.start()
    wait_for("requests are answered", lambda: len(codes) >= 8, 30)
    before, started = len(codes), time.monotonic()
    # New requests come for two seconds after the signal: the server still takes them, for clients that do not know yet.
    threading.Timer(2, ended.set).start()
    docker("stop", name)
    took = time.monotonic() - started
    for thread in clients:
        thread.join()
    state = inspect(name)["State"]
    print(f"\n{before} requests before and {len(codes) - before} after the signal, gone after {took:.1f} s, exit code {state['ExitCode']}")
    assert len(codes) - before >= 8 and set(codes) == {200}
    assert state["ExitCode"] == 0 and took < 9.5
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", 8080), timeout=2)


@pytest.mark.parametrize(
    ("content", "words"), [(b"these are not the weights\n", "not an ONNX model"), (None, "the model file does not exist")], ids=["not-a-model", "no-file"]
)
def test_a_model_that_cannot_be_served_says_why(images, tmp_path, content, words):
    if content is not None:
        (tmp_path / "model.onnx").write_bytes(content)
    for place in [tmp_path, *list(tmp_path.parents)[:3]]:
        place.chmod(place.stat().st_mode | 0o055)
    done = run("run", "--rm", "-v", f"{tmp_path}:/model", images["server"], *SERVE)
    print(f"\n{done.stderr.strip()}")
    assert done.returncode == 1 and words in done.stderr


def test_without_a_model_the_image_tells_its_flags(images):
    done = run("run", "--rm", images["server"])
    assert done.returncode == 2 and "--model <URI>" in done.stderr and "--name <NAME>" in done.stderr


def test_the_examples_image_with_a_model_baked_in_is_served(container, images, expected):
    docker(
        "build", "--file", str(ROOT / "examples" / "docker" / "Dockerfile"), "--tag", "digits", str(DIGITS),
        environment={"DOCKER_BUILDKIT": "1"},
    )
    container("--read-only", "-p", "8080:8080", "-p", "8081:8081", "digits")
    check_answers(expected)
    request = json.loads((DIGITS / "request.json").read_text())
    answer = httpx.post(INFER, json=request).json()
    (label,) = [output for output in answer["outputs"] if output["name"] == "label"]
    readme = (ROOT / "examples" / "docker" / "README.md").read_text()
    assert json.dumps(label, separators=(",", ":")) in readme, "the README shows what comes back"
