"""Fixtures: a namespace and a model store for each test."""

import pathlib
import re

import pytest

from harness import rights
from harness.kube import KubectlError, Namespace, check_operator_log, kubectl
from harness.models import ModelStore

DIGITS = pathlib.Path(__file__).resolve().parents[2] / "examples" / "digits"


@pytest.hookimpl(tryfirst=True, hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    setattr(item, f"report_{call.when}", outcome.get_result())


@pytest.fixture
def namespace(request):
    """A namespace of its own under Pod Security `restricted`, gone after the test; a failed test shows what was there."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.removeprefix("test_").lower())[:50].strip("-")
    kubectl("create", "namespace", name)
    kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    made = Namespace(name)
    yield made
    if getattr(request.node, "report_call", None) and request.node.report_call.failed:
        print(made.kubectl("get", "all,modeldeployments", "--output", "wide"))
        print(made.kubectl("describe", "modeldeployments"))
        print(made.kubectl("get", "events", "--sort-by", ".lastTimestamp"))
        try:
            pods = ["--selector", "app.kubernetes.io/name=ortolan", "--prefix"]
            print(kubectl("--namespace", "ortolan-system", "logs", *pods, "--tail", "60"))
        except KubectlError as error:
            print(f"the operator's log cannot be read: {error}")
    kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def store(tmp_path):
    """A web server for model files."""
    made = ModelStore(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="session")
def digits() -> bytes:
    """The example's model: `pixels` FP32 [batch, 64] → `label` INT64 [batch], `probabilities` FP32 [batch, 10]."""
    return (DIGITS / "digits.onnx").read_bytes()


@pytest.fixture(scope="session")
def digits_v2() -> bytes:
    """Another build of the same model."""
    return (DIGITS / "digits-v2.onnx").read_bytes()


@pytest.fixture(scope="session")
def manifest_file() -> pathlib.Path:
    """The manifest that the README applies."""
    return DIGITS / "modeldeployment.yaml"


@pytest.fixture(scope="session")
def holdout() -> pathlib.Path:
    """Held-out images and labels."""
    return DIGITS / "holdout.json"


@pytest.fixture(scope="session", autouse=True)
def operator_rights(request):
    """The operator made no call that its roles do not grant; nor do they grant what it never calls, when all tests ran."""
    yield
    config, session = request.config, request.session
    # Without a selection, everything that `make e2e` has was run.
    everything = not config.option.keyword and config.option.markexpr == "not chaos"
    complete = everything and all(pathlib.Path(place).is_dir() for place in config.args)
    rights.check(complete and session.testsfailed == 0)


@pytest.fixture(scope="session", autouse=True)
def operator_log():
    """The operator that is there at the end was refused nothing; tests that end one look at its log before."""
    yield
    check_operator_log()
