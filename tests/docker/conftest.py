"""Fixtures: the engine with both images built in it, and containers that go with their test."""

import json
import os
import pathlib
import re
import subprocess

import numpy as np
import onnxruntime
import pytest

from docker import DockerError, Engine, docker, run, WORK

ROOT = pathlib.Path(__file__).resolve().parents[2]
DIGITS = ROOT / "examples" / "digits"
BASE = "localhost/ortolan-base:latest"
VERSION = re.search(r'^version = "(.+)"$', (ROOT / "Cargo.toml").read_text(), re.MULTILINE).group(1)
IMAGES = {"operator": f"ghcr.io/ortolan/ortolan:{VERSION}", "server": f"ghcr.io/ortolan/ortolan-server:{VERSION}"}


@pytest.fixture(scope="session", autouse=True)
def engine():
    made = Engine()
    docker("load", "--input", os.environ["ORTOLAN_BASE"])
    yield made
    made.stop()


@pytest.fixture(scope="session")
def images(engine) -> dict[str, str]:
    """Both images, by BuildKit, which is what `docker build` has become."""
    for image, name in IMAGES.items():
        build(image, name, buildkit=True)
    return IMAGES


def build(image: str, name: str, buildkit: bool) -> None:
    arguments = ["--build-arg", f"BASE={BASE}", "--build-arg", f"VERSION={VERSION}", "--tag", name]
    docker("build", *arguments, str(WORK / "context" / image), environment={"DOCKER_BUILDKIT": str(int(buildkit))})


@pytest.fixture
def container(images, request):
    """Starts a container by `docker run --detach`; the test's end removes it. Its name comes back."""
    made = []

    def start(*arguments: str) -> str:
        name = docker("run", "--detach", *arguments)
        made.append(name)
        return name

    yield start
    for name in made:
        if request.node.session.testsfailed:
            print(run("logs", name).stderr[-3000:])
        docker("rm", "--force", "--volumes", name)


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> pathlib.Path:
    """A folder with the example's model, as somebody might have it."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "model.onnx").write_bytes((DIGITS / "digits.onnx").read_bytes())
    # Readable for the image's user.
    for place in [folder, *list(folder.parents)[:3]]:
        place.chmod(place.stat().st_mode | 0o055)
    return folder


@pytest.fixture(scope="session")
def expected():
    """Held-out images [n, 64], their labels [n], and the labels that Python's ONNX Runtime answers [n]."""
    held = json.loads((DIGITS / "holdout.json").read_text())
    pixels = np.array(held["pixels"], dtype=np.float32)
    session = onnxruntime.InferenceSession((DIGITS / "digits.onnx").read_bytes(), providers=["CPUExecutionProvider"])
    (labels,) = session.run(["label"], {"pixels": pixels})
    return pixels, np.array(held["labels"]), labels
