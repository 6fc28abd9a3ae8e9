"""The chart on a cluster where `kubectl apply -k deploy/` was first, under load on a model, and back again."""

import json
import pathlib
import shutil

import pytest

from harness.helm import CHART, HelmError, helm, installed
from harness.kube import KubectlError, kubectl, manifest, wait_for
from harness.load import Load, failures
from harness.operator import SYSTEM, operators, rolled_out

ROOT = pathlib.Path(__file__).resolve().parents[2]
CRD = "modeldeployments.ortolan.dev"
BODY = json.dumps({"inputs": [{"name": "pixels", "datatype": "FP32", "shape": [1, 64], "data": [0.0] * 64}]}).encode()
WAIT = ("--wait", "--timeout", "120s")


@pytest.fixture
def by_kubectl_afterwards():
    """Whatever happens, the other tests find Ortolan as they expect it."""
    yield
    if installed():
        helm("uninstall", "ortolan", *WAIT)
    install_by_kubectl()


def install_by_kubectl(*options: str) -> None:
    kubectl("apply", "-k", str(ROOT / "deploy"), *options)
    rolled_out()


def operator() -> tuple[set[str], list[str]]:
    """The uids of the operator's two pods and their arguments, once there are no others."""
    pods = wait_for("two operators", lambda: found if len(found := operators()) == 2 else None, 30)
    first, second = [pod["spec"]["containers"][0]["args"] for pod in pods]
    assert first == second
    return {pod["metadata"]["uid"] for pod in pods}, first


def definition() -> dict:
    return json.loads(kubectl("get", "customresourcedefinition", CRD, "--output", "json"))


def columns() -> list[str]:
    return [column["name"] for column in definition()["spec"]["versions"][0]["additionalPrinterColumns"]]


def next_chart(folder: pathlib.Path) -> pathlib.Path:
    """The chart as a later version might be: its CustomResourceDefinition has one more column."""
    copy = folder / "ortolan"
    shutil.copytree(CHART, copy)
    file = copy / "files" / "crds" / "ortolan.dev_modeldeployments.yaml"
    before = file.read_text()
    start = "  - additionalPrinterColumns:\n"
    column = "    - jsonPath: .status.url\n      name: Url\n      type: string\n"
    file.write_text(before.replace(start, start + column))
    assert file.read_text() != before
    return copy


def test_helm_takes_over_upgrades_rolls_back_and_leaves_while_a_model_serves(
    namespace, store, digits, tmp_path, by_kubectl_afterwards
):
    namespace.apply(manifest("digits", store.add("one.onnx", digits), replicas=2))
    namespace.wait_served("digits")
    servers = sorted(pod["metadata"]["uid"] for pod in namespace.pods("digits"))
    load = Load(namespace.infer_url("digits"), BODY, rate=20, seconds=600)
    try:
        first, arguments = operator()
        assert "--log=info" in arguments

        # As the chart's README says: fields that kubectl wrote become Helm's, and nothing restarts.
        install_by_kubectl("--server-side", "--field-manager", "helm", "--force-conflicts")
        with pytest.raises(HelmError, match="invalid ownership metadata"):
            helm("install", "ortolan", str(CHART))
        helm("install", "ortolan", str(CHART), "--take-ownership", *WAIT)
        assert installed()["status"] == "deployed"
        assert operator() == (first, arguments)
        assert definition()["metadata"]["annotations"]["meta.helm.sh/release-name"] == "ortolan"

        with pytest.raises(HelmError, match="invalid ownership metadata"):
            helm("install", "second", str(CHART), "--namespace", namespace.name)

        before = columns()
        helm("upgrade", "ortolan", str(next_chart(tmp_path)), "--set", "logLevel=debug,modelNetworkPolicy.enabled=false", *WAIT)
        second, arguments = operator()
        assert not second & first and "--log=debug" in arguments and "--log=info" not in arguments
        assert columns() == ["Url", *before], "an upgrade upgrades the CustomResourceDefinition"
        namespace.kubectl("scale", "modeldeployment", "digits", "--replicas=3")
        namespace.wait_served("digits")
        wait_for("models have no NetworkPolicy any more", lambda: namespace.items("networkpolicies") == [], 30)

        helm("rollback", "ortolan", "1", *WAIT)
        _, arguments = operator()
        assert "--log=info" in arguments and columns() == before
        namespace.kubectl("scale", "modeldeployment", "digits", "--replicas=2")
        namespace.wait_served("digits")
        assert namespace.items("networkpolicies"), "and after the rollback they have one again"
        servers_now = lambda: sorted(pod["metadata"]["uid"] for pod in namespace.pods("digits"))
        wait_for("two servers", lambda: len(servers_now()) == 2, 60)

        kept = servers_now()
        print("\n" + helm("uninstall", "ortolan", *WAIT))
        assert installed() == {}
        with pytest.raises(KubectlError, match="not found"):
            SYSTEM.get("deployment", "ortolan")
        assert "deletionTimestamp" not in definition()["metadata"]
        assert "deletionTimestamp" not in namespace.model("digits")["metadata"]
        assert servers_now() == kept

        # And back: what is left does not stand in the way of kubectl, nor of Helm.
        install_by_kubectl()
        namespace.kubectl("scale", "modeldeployment", "digits", "--replicas=3")
        namespace.wait_served("digits")
        assert set(kept) <= set(servers_now())
        install_by_kubectl("--server-side", "--field-manager", "helm", "--force-conflicts")
        helm("install", "ortolan", str(CHART), "--take-ownership", "--set", "logFormat=text", *WAIT)
        assert "--log-format=text" in operator()[1]
    finally:
        load.stop()
    assert set(servers) & set(kept), "a server of the beginning is still there"
    answers = load.answers()
    print(f"{len(answers)} requests meanwhile, failed: {failures(answers) or 'none'}")
    assert len(answers) > 100
    assert failures(answers) == []


def test_the_api_server_accepts_every_option():
    """Each field in its place: unknown ones are an error, not a warning. Nothing is written."""
    rendered = helm("template", "ortolan", str(CHART), "--values", str(ROOT / "tests" / "chart" / "everything.yaml"))
    kinds = kubectl("apply", "--dry-run=server", "--validate=strict", "--filename", "-", stdin=rendered)
    for kind in ["deployment.apps", "role.rbac", "networkpolicy", "poddisruptionbudget", "service/ortolan-metrics"]:
        assert kind in kinds
