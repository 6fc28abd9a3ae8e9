"""What the chart refuses, and in which words."""

import json

import pytest
import yaml

from chart import CHART, HelmError, helm, nested, render

REFUSED = [
    ("replica", 2, "additional properties 'replica' not allowed"),
    ("replicas", -1, "at '/replicas': minimum: got -1, want 0"),
    ("replicas", "2", "at '/replicas': got string, want integer"),
    ("image.tagg", "1", "at '/image': additional properties 'tagg' not allowed"),
    ("image.tag", 1.5, "at '/image/tag': got number, want string"),
    ("image.digest", "5555", "at '/image/digest': '5555' does not match pattern '^(sha256:"),
    ("image.repository", "registry/ortolan@sha256:5", "at '/image/repository': 'registry/ortolan@sha256:5' does not match"),
    ("image.repository", None, "at '/image': missing property 'repository'"),
    ("image.pullPolicy", "Sometimes", "at '/image/pullPolicy': value must be one of 'Always', 'IfNotPresent', 'Never'"),
    ("serverImage.pullPolicy", "Always", "at '/serverImage': additional properties 'pullPolicy' not allowed"),
    ("imagePullSecrets", ["mine"], "at '/imagePullSecrets/0': got string, want object"),
    ("crds", None, "missing property 'crds'"),
    ("crds.enabled", "yes", "at '/crds/enabled': got string, want boolean"),
    ("serviceAccount.name", "", "at '/serviceAccount/name': '' does not match pattern"),
    ("serviceAccount", {"create": False, "annotations": {"a": "b"}}, "at '/serviceAccount/annotations': maxProperties: got 1, want 0"),
    ("logFormat", "xml", "at '/logFormat': value must be one of 'json', 'text'"),
    ("logLevel", "loud", "at '/logLevel': 'loud' does not match pattern '^(off|error|warn|info|debug|trace|"),
    ("extraEnv", [{"value": "x"}], "at '/extraEnv/0': missing property 'name'"),
    ("extraEnv", [{"name": "ORTOLAN_LOG"}], "extraEnv: ORTOLAN_LOG would have no effect; set logLevel instead."),
    ("extraEnv", [{"name": "POD_NAME"}], "extraEnv: POD_NAME is set by the chart and cannot be changed."),
    ("extraEnv", [{"name": "ORTOLAN_LEADER_ELECT"}], "extraEnv: ORTOLAN_LEADER_ELECT is set by the chart and cannot be changed."),
    ("resources.memory", "1Gi", "at '/resources': additional properties 'memory' not allowed"),
    ("podLabels", {"app.kubernetes.io/name": "x"}, "podLabels: app.kubernetes.io/name is what the Deployment finds its pods by"),
    ("podAnnotations", {"a": True}, "at '/podAnnotations/a': got boolean, want string"),
    ("podDisruptionBudget.minAvailable", 1, "additional properties 'minAvailable' not allowed"),
    ("tolerations", [{"effect": "Never"}], "at '/tolerations/0/effect': value must be one of"),
    ("topologySpreadConstraints", [{"maxSkew": 1}], "missing properties 'topologyKey', 'whenUnsatisfiable'"),
    ("networkPolicy.apiServer.cidrs", ["10.0.0.1"], "at '/networkPolicy/apiServer/cidrs/0': '10.0.0.1' does not match pattern"),
    ("networkPolicy.apiServer.ports", [], "at '/networkPolicy/apiServer/ports': minItems: got 0, want 1"),
    ("networkPolicy.from", [{"pods": {}}], "additional properties 'pods' not allowed"),
    ("metrics.serviceMonitor.interval", "30", "at '/metrics/serviceMonitor/interval': '30' does not match pattern"),
    ("metrics.podMonitor.labels", {"app.kubernetes.io/name": "x"}, "metrics.podMonitor.labels: app.kubernetes.io/name is set by the chart"),
    ("metrics.dashboards.labels", {"app.kubernetes.io/name": "x"}, "metrics.dashboards.labels: app.kubernetes.io/name is set by the chart"),
    (
        "metrics",
        {"serviceMonitor": {"enabled": True}, "podMonitor": {"enabled": True}},
        "metrics.serviceMonitor and metrics.podMonitor are both enabled: every number would be counted twice.",
    ),
    ("modelNetworkPolicy.monitoringNamespaces", ["a.b"], "at '/modelNetworkPolicy/monitoringNamespaces/0': 'a.b' does not match pattern"),
    ("extraEnv", [{"name": "ORTOLAN_MODEL_NETWORK_POLICIES"}], "set modelNetworkPolicy.enabled instead."),
    ("enabled", False, "at '/enabled': value must be true"),
]


@pytest.mark.parametrize(("path", "value", "words"), REFUSED, ids=[f"{path}={value}" for path, value, _ in REFUSED])
def test_a_wrong_value_is_refused_in_words(path, value, words):
    with pytest.raises(HelmError) as refused:
        render(nested(path, value))
    assert words in str(refused.value)


def test_lint_finds_nothing():
    assert "0 chart(s) failed" in helm("lint", "--strict", str(CHART))


def test_schema_and_values_name_the_same():
    """Else a value could be set that nothing explains, or one that is explained would be refused."""
    schema = json.loads((CHART / "values.schema.json").read_text())

    def of_schema(part: dict, path: str = "") -> set[str]:
        if "$ref" in part:
            part = schema["$defs"][part["$ref"].removeprefix("#/$defs/")]
        # What is a type of Kubernetes ends here.
        if "properties" not in part or path == ".resources" or path == ".affinity":
            return {path}
        assert part["additionalProperties"] is False, path
        return set().union(*(of_schema(inner, f"{path}.{name}") for name, inner in part["properties"].items()))

    def of_values(part: object, path: str = "") -> set[str]:
        if not isinstance(part, dict) or not part or path in (".resources", ".metrics.dashboards.labels"):
            return {path}
        return set().union(*(of_values(inner, f"{path}.{name}") for name, inner in part.items()))

    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert of_schema(schema) - {".global", ".enabled"} == of_values(values)


def test_the_chart_can_be_a_part_of_another(tmp_path):
    parent = tmp_path / "parent"
    (parent / "charts").mkdir(parents=True)
    (parent / "charts" / "ortolan").symlink_to(CHART)
    dependency = {"name": "ortolan", "version": ">=0.0.0-0", "condition": "ortolan.enabled"}
    (parent / "Chart.yaml").write_text(
        json.dumps({"apiVersion": "v2", "name": "parent", "version": "1.0.0", "dependencies": [dependency]})
    )
    (parent / "values.yaml").write_text(json.dumps({"global": {"region": "north"}, "ortolan": {"enabled": True}}))
    assert render({}, parent).objects == render().objects
    assert render({"ortolan": {"enabled": False}}, parent).objects == []
