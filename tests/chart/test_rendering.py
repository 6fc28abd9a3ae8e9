"""What each value does to what is rendered."""

import json

import pytest
import yaml

from chart import CHART, DIGEST, ROOT, Rendered, helm, render

EVERYTHING = yaml.safe_load((ROOT / "tests" / "chart" / "everything.yaml").read_text())
SELECTOR = {"app.kubernetes.io/name": "ortolan"}
SYSTEM = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
(SPREAD,) = EVERYTHING["topologySpreadConstraints"]


def test_everything_is_in_the_namespace_of_the_release():
    cluster_wide = {
        "ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition",
        "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding",
    }
    for found in render(EVERYTHING).objects:
        namespace = found["metadata"].get("namespace")
        assert namespace == (None if found["kind"] in cluster_wide else "elsewhere"), found["kind"]
        assert found["metadata"]["labels"]["app.kubernetes.io/part-of"] == "ortolan"
    for kind in ["ClusterRoleBinding", "RoleBinding"]:
        (subject,) = render().get(kind)["subjects"]
        assert subject == {"kind": "ServiceAccount", "name": "ortolan", "namespace": "elsewhere"}


@pytest.mark.parametrize(
    ("image", "suffix"),
    [
        ({}, "own:0"),
        ({"tag": "1.2.3"}, "own:1.2.3"),
        ({"digest": DIGEST}, f"own@{DIGEST}"),
        ({"tag": "1.2.3", "digest": DIGEST}, f"own@{DIGEST}"),
    ],
)
def test_a_digest_wins_over_a_tag_and_a_tag_over_the_version(image, suffix):
    mine = {"repository": "registry.example.org:5000/own", **image}
    container = render({"image": mine, "serverImage": mine}).container()
    server = next(argument for argument in container["args"] if argument.startswith("--server-image="))
    for found in [container["image"], server.removeprefix("--server-image=")]:
        assert found.startswith(f"registry.example.org:5000/{suffix}")


def test_settings_of_the_pod():
    pod = render(EVERYTHING).pod()
    assert pod["metadata"] == {"labels": {**SELECTOR, "team": "platform"}, "annotations": {"note": "here"}}
    spec = pod["spec"]
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    assert spec["nodeSelector"] == {"kubernetes.io/os": "linux"}
    assert spec["tolerations"] == EVERYTHING["tolerations"]
    assert spec["affinity"] == EVERYTHING["affinity"]
    assert spec["priorityClassName"] == "system-cluster-critical"
    assert spec["topologySpreadConstraints"] == [{**SPREAD, "labelSelector": {"matchLabels": SELECTOR}}]


def test_a_spread_keeps_its_own_selector():
    own = {**SPREAD, "labelSelector": {"matchLabels": {"team": "platform"}}}
    found = render({"topologySpreadConstraints": [own, SPREAD]}).pod()["spec"]["topologySpreadConstraints"]
    assert found[0]["labelSelector"]["matchLabels"]["team"] == "platform"
    assert "team" not in found[1]["labelSelector"]["matchLabels"]


def test_settings_of_the_container():
    container = render(
        {
            "image": {"pullPolicy": "Never"},
            "logFormat": "text",
            "logLevel": "warn,ortolan::scale=debug",
            "extraEnv": EVERYTHING["extraEnv"],
            "resources": {"requests": {"cpu": "2"}, "limits": None},
        }
    ).container()
    assert container["imagePullPolicy"] == "Never"
    assert container["args"][2:4] == ["--log-format=text", "--log=warn,ortolan::scale=debug"]
    assert [variable["name"] for variable in container["env"]] == ["POD_NAME", "POD_NAMESPACE", "RUST_BACKTRACE"]
    assert container["resources"] == {"requests": {"cpu": "2", "memory": "64Mi"}}


def test_the_service_account():
    own = render({"serviceAccount": {"name": "mine", "annotations": {"role": "arn"}}})
    assert own.get("ServiceAccount", "mine")["metadata"]["annotations"] == {"role": "arn"}
    given = render({"serviceAccount": {"create": False, "name": "mine"}})
    assert "ServiceAccount" not in given.kinds()
    for rendered in [own, given]:
        assert rendered.pod()["spec"]["serviceAccountName"] == "mine"
        assert rendered.get("ClusterRoleBinding")["subjects"][0]["name"] == "mine"


def test_roles_can_be_left_to_others():
    roles = {"ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"}
    assert not roles & set(render({"rbac": {"create": False}}).kinds())
    assert roles <= set(render().kinds())


def test_only_the_operators_own_lease_can_be_written():
    held, made = render().get("Role")["rules"]
    assert held == {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "resourceNames": ["ortolan"], "verbs": ["get", "update"]}
    assert made == {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create"]}
    assert all("leases" not in rule["resources"] for rule in render().get("ClusterRole")["rules"])


def test_the_admission_policy_looks_at_every_way_to_name_something():
    rendered = render()
    spec = rendered.get("ValidatingAdmissionPolicy", "ortolan-references")["spec"]
    (rule,) = spec["matchConstraints"]["resourceRules"]
    assert (rule["resources"], rule["operations"]) == (["modeldeployments"], ["CREATE", "UPDATE"])
    assert spec["failurePolicy"] == "Fail"
    assert [validation["reason"] for validation in spec["validations"]] == ["Forbidden"] * 7
    words = " ".join(validation["expression"] for validation in spec["validations"])
    for resource in ["secrets", "persistentvolumeclaims", "configmaps", "serviceaccounts"]:
        assert f"resource('{resource}')" in words
    # Each field is looked at when it is named, and when it is named anew.
    (anew,) = spec["matchConditions"]
    told = " ".join(validation["message"] for validation in spec["validations"])
    for field in ["serviceAccountName", "apiKeysSecret", "tls.certificateSecret", "tls.clientCASecret"]:
        assert f"spec.server.{field} names" in told
        assert anew["expression"].count(f"?{field.replace('.', '.?')}.") == 2, field
    binding = rendered.get("ValidatingAdmissionPolicyBinding", "ortolan-references")["spec"]
    assert binding == {"policyName": "ortolan-references", "validationActions": ["Deny"]}
    without = render({"admissionPolicy": {"enabled": False}})
    assert not {"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"} & set(without.kinds())


def test_the_definition_is_there_and_kept_unless_told_otherwise():
    name = "modeldeployments.ortolan.dev"
    keep = {"helm.sh/resource-policy": "keep"}
    default = render().get("CustomResourceDefinition", name)
    assert default["metadata"].pop("annotations") == keep
    assert default == render({"crds": {"keep": False}}).get("CustomResourceDefinition", name)
    assert "CustomResourceDefinition" not in render({"crds": {"enabled": False}}).kinds()
    generated = Rendered((ROOT / "crds" / "ortolan.dev_modeldeployments.yaml").read_text()).get("CustomResourceDefinition", name)
    del default["metadata"]["labels"]
    assert default == generated


def test_two_replicas_on_different_nodes_replaced_one_at_a_time():
    spec = render().get("Deployment")["spec"]
    assert spec["replicas"] == 2
    # A pod that is ready has its caches filled: none goes before another can take over.
    assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    (spread,) = spec["template"]["spec"]["topologySpreadConstraints"]
    assert spread["topologyKey"] == "kubernetes.io/hostname" and spread["labelSelector"] == {"matchLabels": SELECTOR}
    # A hard rule would leave the second pod pending where there is one node.
    assert spread["whenUnsatisfiable"] == "ScheduleAnyway"
    assert render({"replicas": 3}).get("Deployment")["spec"]["replicas"] == 3
    assert render({"replicas": 0}).get("Deployment")["spec"]["replicas"] == 0


def test_the_disruption_budget_holds_back_one_of_several_and_never_the_only_one():
    spec = render().get("PodDisruptionBudget")["spec"]
    assert spec["selector"] == {"matchLabels": SELECTOR} and spec["maxUnavailable"] == 1
    assert spec["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    for values in [{"replicas": 1}, {"replicas": 0}, {"podDisruptionBudget": {"enabled": False}}]:
        assert "PodDisruptionBudget" not in render(values).kinds(), values


def test_the_network_policy_allows_what_the_operator_needs():
    assert "NetworkPolicy" not in render().kinds()
    spec = render({"networkPolicy": {"enabled": True}}).get("NetworkPolicy")["spec"]
    assert spec["podSelector"] == {"matchLabels": SELECTOR}
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert spec["ingress"] == [{"ports": [{"port": "operations"}]}]
    server, names, models = spec["egress"]
    assert server == {"ports": [{"port": 443}, {"port": 6443}]}
    assert {(port["port"], port["protocol"]) for port in names["ports"]} == {(53, "UDP"), (53, "TCP")}
    assert models["ports"] == [{"port": 9090}]
    (peer,) = models["to"]
    assert peer["namespaceSelector"] == {} and peer["podSelector"]["matchExpressions"][0]["key"] == "ortolan.dev/model"


def test_the_network_policy_can_be_narrowed():
    policy = {"enabled": True, "from": [SYSTEM], "apiServer": {"cidrs": ["10.0.0.1/32"], "ports": [16443]}}
    spec = render({"networkPolicy": policy}).get("NetworkPolicy")["spec"]
    assert spec["ingress"][0]["from"] == [SYSTEM]
    assert spec["egress"][0] == {"ports": [{"port": 16443}], "to": [{"ipBlock": {"cidr": "10.0.0.1/32"}}]}


def test_the_network_policies_of_models():
    flag = "--model-network-policies"
    arguments = lambda **policy: render({"modelNetworkPolicy": policy}).container()["args"]
    assert arguments()[-2:] == [flag, "--client-namespace=*"]
    closed = arguments(monitoringNamespaces=["monitoring"], clientNamespaces=["shop", "edge"], blockMetadata=True)
    namespaces = ["--monitoring-namespace=monitoring", "--client-namespace=shop", "--client-namespace=edge"]
    assert closed[-5:] == [flag, *namespaces, "--block-metadata"]
    assert arguments(enabled=False) == arguments()[:-2]


def test_the_metrics_service():
    assert "Service" not in render().kinds()
    service = render({"metrics": {"service": {"enabled": True, "annotations": {"a": "b"}}}}).get("Service", "ortolan-metrics")
    assert service["metadata"]["annotations"] == {"a": "b"}
    assert service["spec"]["selector"] == SELECTOR


MONITOR = {"enabled": True, "labels": {"release": "prometheus"}, "interval": "15s", "scrapeTimeout": "5s"}
ENDPOINT = {"port": "operations", "path": "/metrics", "honorLabels": True, "interval": "15s", "scrapeTimeout": "5s"}


def test_a_service_monitor_finds_the_service_it_brings_along():
    rendered = render({"metrics": {"serviceMonitor": MONITOR}})
    monitor, service = rendered.get("ServiceMonitor"), rendered.get("Service", "ortolan-metrics")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["spec"]["endpoints"] == [ENDPOINT]
    assert service["spec"]["ports"][0]["name"] == ENDPOINT["port"]


def test_a_pod_monitor_finds_the_pod():
    rendered = render({"metrics": {"podMonitor": MONITOR}})
    monitor = rendered.get("PodMonitor")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    assert monitor["spec"]["selector"]["matchLabels"].items() <= rendered.pod()["metadata"]["labels"].items()
    assert monitor["spec"]["podMetricsEndpoints"] == [ENDPOINT]
    assert {"Service", "ServiceMonitor"}.isdisjoint(rendered.kinds())


def test_model_servers_are_found_wherever_they_are():
    monitor = render({"metrics": {"models": MONITOR}}).get("PodMonitor", "ortolan-models")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    assert monitor["spec"]["namespaceSelector"] == {"any": True}
    assert monitor["spec"]["selector"] == {"matchExpressions": [{"key": "ortolan.dev/model", "operator": "Exists"}]}
    assert monitor["spec"]["podMetricsEndpoints"] == [ENDPOINT]


def test_alerts_and_dashboards_are_the_files_of_the_repository():
    metrics = {"prometheusRule": {"enabled": True, "labels": {"role": "alerts"}}, "dashboards": {"enabled": True, "annotations": {"a": "b"}}}
    rendered = render({"metrics": metrics})
    rule = rendered.get("PrometheusRule")
    assert rule["metadata"]["labels"]["role"] == "alerts"
    assert rule["spec"] == yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())
    dashboards = rendered.get("ConfigMap", "ortolan-dashboards")
    assert dashboards["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert dashboards["metadata"]["annotations"] == {"a": "b"}
    files = {path.name: json.loads(path.read_text()) for path in (ROOT / "dashboards").glob("*.json")}
    assert {name: json.loads(text) for name, text in dashboards["data"].items()} == files
    assert not {"PrometheusRule", "ConfigMap"} & set(render().kinds())


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["default", "everything"])
def test_every_pod_passes_pod_security_restricted(values):
    """The fields that the standard `restricted` looks at, beyond those that the chart never sets."""
    for found in render(values).objects:
        spec = found.get("spec", {}).get("template", {}).get("spec")
        if spec is None:
            continue
        assert not {"hostNetwork", "hostPID", "hostIPC", "volumes", "initContainers"} & spec.keys()
        assert spec["securityContext"]["runAsNonRoot"] is True and spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert all("hostPort" not in port for port in container["ports"])


def notes(values: str) -> str:
    arguments = ["install", "ortolan", str(CHART), "--namespace", "elsewhere", "--dry-run=client", "--set", values]
    return helm(*arguments).partition("NOTES:")[2]


def test_the_notes_say_what_to_do_next():
    default = notes("rbac.create=true")
    assert "kubectl --namespace elsewhere rollout status deployment/ortolan" in default
    assert "is false" not in default
    assert "deletes every ModelDeployment" in notes("crds.keep=false")
    assert "crds.enabled is false" in notes("crds.enabled=false")
    assert "rbac.create is false" in notes("rbac.create=false")
    assert "whoever may write a ModelDeployment can have" in notes("admissionPolicy.enabled=false")
    assert "kubectl --namespace elsewhere get lease ortolan" in default and "replicas is" not in default
    assert "replicas is 1" in notes("replicas=1") and "replicas is 0" in notes("replicas=0")
