"""Two tenants, each in a namespace of their own: what they may name, what they may not, and in which words."""

import json
import pathlib

import pytest

from harness.kube import KubectlError, Namespace, kubectl, manifest, wait_for
from harness.people import Person, rule

OPERATOR = "system:serviceaccount:ortolan-system:ortolan"
WEB = "https://models.example.org/m.onnx"
MODELS = rule("modeldeployments", "get", "list", "create", "update", "patch", "delete", group="ortolan.dev")


def naming(name: str = "it", uri: str = WEB, secret: str | None = None, account: str | None = None, keys: str | None = None,
           tls: dict | None = None, **spec) -> dict:
    """A manifest that names a Secret with credentials, with API keys or for TLS, or a service account."""
    found = manifest(name, uri, **spec)
    if secret:
        found["spec"]["model"]["credentialsSecret"] = secret
    if keys:
        found["spec"].setdefault("server", {})["apiKeysSecret"] = keys
    if tls:
        found["spec"].setdefault("server", {})["tls"] = tls
    if account:
        found["spec"].setdefault("server", {})["serviceAccountName"] = account
    return found


@pytest.fixture
def other(namespace):
    """A second namespace."""
    name = f"other-{namespace.name}"[:63].strip("-")
    kubectl("create", "namespace", name)
    kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    yield Namespace(name)
    kubectl("delete", "namespace", name, "--wait=false")


def fill(namespace: Namespace) -> None:
    """What can be named: two of each kind."""
    for name in ["mine", "hidden"]:
        namespace.kubectl("create", "secret", "generic", name, "--from-literal=token=word")
        namespace.kubectl("create", "configmap", name, "--from-literal=m.onnx=none")
        namespace.kubectl("create", "serviceaccount", name)


# What is named, the field, what is lacking, and the words for it. Each name is granted to the tenant as `mine` only.
REFERENCES = [
    (lambda name: naming(secret=name), "spec.model.credentialsSecret names the Secret", "lacks the verb get on secrets/"),
    (lambda name: naming(keys=name), "spec.server.apiKeysSecret names the Secret", "lacks the verb get on secrets/"),
    (lambda name: naming(tls={"certificateSecret": name}), "spec.server.tls.certificateSecret names the Secret", "lacks the verb get on secrets/"),
    (lambda name: naming(tls={"certificateSecret": "mine", "clientCASecret": name}), "spec.server.tls.clientCASecret names the Secret", "lacks the verb get on secrets/"),
    (lambda name: naming(uri=f"pvc://{name}/m.onnx"), "spec.model.uri names the PersistentVolumeClaim", "lacks the verb get on persistentvolumeclaims/"),
    (lambda name: naming(uri=f"configmap://{name}/m.onnx"), "spec.model.uri names the ConfigMap", "lacks the verb get on configmaps/"),
    (lambda name: naming(account=name), "spec.server.serviceAccountName names the ServiceAccount", "has neither the verb use nor impersonate on serviceaccounts/"),
]


def test_a_tenant_names_only_what_they_may_use(namespace, other, tmp_path):
    for place in [namespace, other]:
        fill(place)
    red, blue, editor = Person("red", namespace, tmp_path), Person("blue", other, tmp_path), Person("editor", namespace, tmp_path)
    named = [rule(resource, "get", names=["mine"]) for resource in ["secrets", "persistentvolumeclaims", "configmaps"]]
    red.may("models", [MODELS, rule("modeldeployments/scale", "get", "patch", "update", group="ortolan.dev"), *named,
                       rule("serviceaccounts", "use", names=["mine"])])
    blue.may("models", [MODELS])
    # Rights in one namespace say nothing about the other.
    blue.may("of-blue", [rule(resource, "get") for resource in ["secrets", "persistentvolumeclaims", "configmaps"]], namespace)
    editor.is_editor()

    wait_for("red may write models", lambda: red.refused(naming()) == "", 10)
    wait_for("blue may write models", lambda: blue.refused(naming()) == "", 10)
    wait_for("an editor may write models", lambda: editor.refused(naming()) == "", 10)
    print()
    for reference, field, lack in REFERENCES:
        assert red.refused(reference("mine")) == "", field
        for person, name in [(red, "hidden"), (red, "not-there"), (blue, "mine")]:
            words = person.refused(reference(name))
            assert "(Forbidden)" in words or "is forbidden" in words, words
            for word in [field, name, person.user, lack + name, f"namespace {person.namespace.name} can grant it", "docs/security.md"]:
                assert word in words, f"{word} is missing in {words}"
        print(red.refused(reference("hidden")))
        # `edit` may read and impersonate everything in its namespace; an administrator may do everything.
        assert editor.refused(reference("hidden")) == ""
        kubectl("--namespace", namespace.name, "apply", "--dry-run=server", "--filename", "-", stdin=json.dumps(reference("hidden")))
    # No name leads to another namespace, and no other namespace is open.
    for name in [f"{namespace.name}/mine", f"../{namespace.name}/mine"]:
        assert "Invalid value" in blue.refused(naming(secret=name))
        assert "Invalid value" in blue.refused(naming(account=name))
    elsewhere = naming(secret="mine")
    elsewhere["metadata"]["namespace"] = namespace.name
    assert "cannot get resource" in blue.refused(elsewhere) or "cannot create resource" in blue.refused(elsewhere)


def test_what_was_named_by_who_may_is_left_in_peace_until_it_is_named_anew(namespace, tmp_path):
    fill(namespace)
    red, editor = Person("red", namespace, tmp_path), Person("editor", namespace, tmp_path)
    red.may("models", [MODELS, rule("modeldeployments/scale", "get", "patch", "update", group="ortolan.dev")])
    editor.is_editor()
    wait_for("an editor may write models", lambda: editor.refused(naming()) == "", 10)
    made = naming(secret="hidden", account="hidden")
    editor.apply(made)
    red.kubectl("label", "modeldeployment", "it", "team=red")
    red.kubectl("scale", "modeldeployment", "it", "--replicas=2")
    red.kubectl("patch", "modeldeployment", "it", "--type=merge", "--patch", '{"spec": {"server": {"batching": {"maxSize": 8}}}}')
    # A controller that applies the same again and again, from a repository.
    red.apply(made, "--server-side", "--force-conflicts")
    # The operator's own word is heard.
    wait_for("a status", lambda: namespace.status("it"), 30)
    # The credentials would go to another host, the account would read another place.
    moved = naming(uri="https://evil.example.org/m.onnx", secret="hidden", account="hidden")
    words = red.refused(moved)
    assert "names the Secret hidden" in words, words
    assert "names the ServiceAccount mine" in red.refused(naming(account="mine"))
    assert "names the Secret mine" in red.refused(naming(account="hidden", keys="mine"))
    assert "names the Secret mine" in red.refused(naming(account="hidden", tls={"certificateSecret": "mine"}))
    # One account for another, beside a Secret that stays: that is asked about, too.
    assert "names the Secret hidden" in red.refused(naming(secret="hidden", account="mine"))
    assert red.refused(naming()) == "", "to name nothing any more is always allowed"
    assert editor.refused(moved) == ""


def test_the_operator_may_not_read_secrets_nor_grant_anything():
    for question in [
        ("get", "secrets"), ("list", "secrets"), ("watch", "secrets"), ("create", "pods"), ("create", "pods/exec"),
        ("create", "serviceaccounts/token"), ("impersonate", "users"), ("impersonate", "serviceaccounts"),
        ("escalate", "clusterroles"), ("bind", "clusterroles"), ("patch", "modeldeployments"), ("get", "nodes/proxy"),
    ]:
        with pytest.raises(KubectlError) as answer:
            print(kubectl("auth", "can-i", *question, "--all-namespaces", "--as", OPERATOR))
        assert "no" in str(answer.value) or str(answer.value) == "", question
    assert kubectl("auth", "can-i", "patch", "modeldeployments/status", "--subresource=status", "--all-namespaces", "--as", OPERATOR).strip() == "yes"


def test_a_place_that_reaches_beyond_the_namespace_is_refused():
    everything = {"operator": "Exists"}
    for scheduling, words in [
        ({"priorityClassName": "system-cluster-critical"}, "must not begin with system-"),
        ({"tolerations": [everything]}, "tolerations[0].key"),
        ({"tolerations": [{**everything, "key": "node-role.kubernetes.io/control-plane"}]}, "the control plane's nodes"),
        ({"tolerations": [{**everything, "key": "node.kubernetes.io/unschedulable"}]}, "only not-ready and unreachable"),
        ({"nodeSelector": {"a b": "c"}}, "must be a node's label"),
        ({"nodeSelector": {"a": "x" * 64}}, "may not be more than 63"),
        ({"spread": [{"topologyKey": "zone", "maxSkew": 0}]}, "greater than or equal to 1"),
        ({"spread": [{"topologyKey": "zone"}, {"topologyKey": "zone", "maxSkew": 2}]}, "Duplicate value"),
        ({"affinity": {}}, 'unknown field "spec.scheduling.affinity"'),
    ]:
        with pytest.raises(KubectlError) as refused:
            kubectl("apply", "--dry-run=server", "--filename", "-", stdin=json.dumps(naming(scheduling=scheduling)))
        assert words in str(refused.value), f"{scheduling}: {refused.value}"


def processes_of(pod: dict) -> list[pathlib.Path]:
    """Below /proc: the processes of a pod. The nodes of the test cluster are on this machine."""
    uid = pod["metadata"]["uid"]
    found = []
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if uid in (process / "cgroup").read_text() and "ortolan-server" in (process / "cmdline").read_text():
                found.append(process)
        except OSError:
            continue
    return found


SCHEDULING = {
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [
        {"key": "dedicated", "value": "models", "effect": "NoSchedule"},
        {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5},
    ],
    "spread": [{"topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule"}],
}


@pytest.fixture
def classes(namespace):
    """A priority class and a runtime class."""
    name = namespace.name
    namespace.apply({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}, "value": 7})
    namespace.apply({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": name}, "handler": "runc"})
    yield {"priorityClassName": name, "runtimeClassName": name}
    kubectl("delete", f"priorityclass/{name}", f"runtimeclass/{name}", "--wait=false")


@pytest.fixture
def claim(namespace, tmp_path, digits):
    """A claim `models` with the digits model in it."""
    (tmp_path / "m.onnx").write_bytes(digits)
    for folder in [tmp_path, *list(tmp_path.parents)[:3]]:
        folder.chmod(folder.stat().st_mode | 0o055)
    name = f"models-{namespace.name}"[:60]
    wish = {"accessModes": ["ReadOnlyMany"], "storageClassName": "", "volumeName": name, "resources": {"requests": {"storage": "1Mi"}}}
    volume = {"capacity": {"storage": "1Mi"}, "accessModes": ["ReadOnlyMany"], "hostPath": {"path": str(tmp_path)}}
    namespace.apply({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": volume})
    namespace.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "models"}, "spec": wish})
    yield
    namespace.kubectl("delete", "persistentvolume", name, "--wait=false")


def test_every_way_to_serve_runs_under_restricted_without_a_token(namespace, store, digits, claim, classes, tmp_path):
    """All features on; the namespaces of these tests enforce Pod Security `restricted`."""
    namespace.kubectl("create", "secret", "generic", "mine", "--from-literal=token=word")
    (tmp_path / "small.onnx").write_bytes(digits)
    namespace.kubectl("create", "configmap", "small", f"--from-file=m.onnx={tmp_path / 'small.onnx'}")
    sources = {"web": store.add("web.onnx", digits), "claim": "pvc://models/m.onnx", "map": "configmap://small/m.onnx"}
    for name, uri in sources.items():
        namespace.apply(naming(name, uri, "mine" if name == "web" else None, scheduling={**SCHEDULING, **classes}, replicas=2))
    # A quota or a missing class would show here, and what Pod Security refuses.
    for name in sources:
        namespace.wait_served(name, 90)
        for pod in namespace.pods(name):
            spec = pod["spec"]
            assert (spec["nodeSelector"], spec["priority"]) == (SCHEDULING["nodeSelector"], 7)
            assert spec["runtimeClassName"] == classes["runtimeClassName"]
            assert {"key": "dedicated", "operator": "Equal", "value": "models", "effect": "NoSchedule"} in spec["tolerations"]
            assert not any("projected" in volume for volume in spec["volumes"]), spec["volumes"]
            assert all("serviceaccount" not in mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"])
            (process,) = processes_of(pod)
            assert not (process / "root/var/run/secrets").exists() and not (process / "root/run/secrets").exists()
            mounts = (process / "mountinfo").read_text()
            assert "kubernetes.io" not in mounts.replace("kubernetes.io~", ""), mounts
            identity = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines() if ":" in line)
            assert identity["Uid"].split() == ["65532"] * 4 and int(identity["CapEff"], 16) == 0
            assert identity["NoNewPrivs"].strip() == "1" and identity["Seccomp"].strip() == "2"
        assert len({pod["spec"]["nodeName"] for pod in namespace.pods(name)}) == 2, "spread over both nodes"


def test_the_network_policy_of_a_model_is_kept_as_it_is(namespace, store, digits):
    """The network of the test cluster enforces none; what counts here is the object."""
    namespace.apply(manifest("digits", store.add("one.onnx", digits)))
    namespace.wait_served("digits")
    made = namespace.get("networkpolicy", "digits-servers")
    spec = made["spec"]
    assert spec["policyTypes"] == ["Ingress"]
    (pod,) = namespace.pods("digits")
    assert spec["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    serving, operations = spec["ingress"]
    assert [port["port"] for port in serving["ports"]] == [8080, 8081] and "from" not in serving
    assert [port["port"] for port in operations["ports"]] == [9090]
    (reader,) = operations["from"]
    labels = kubectl("get", "namespace", "--selector", "kubernetes.io/metadata.name=ortolan-system", "--output", "name")
    assert reader == {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ortolan-system"}}} and labels
    # Who opens it finds it closed again; who deletes it, made again.
    opened = '[{"op": "add", "path": "/spec/ingress/-", "value": {}}]'
    namespace.kubectl("patch", "networkpolicy", "digits-servers", "--type=json", "--patch", opened)
    wait_for("closed again", lambda: namespace.get("networkpolicy", "digits-servers")["spec"] == spec, 20)
    assert any(event["reason"] == "PutBack" and "NetworkPolicy" in event["message"] for event in namespace.events("digits"))
    namespace.kubectl("delete", "networkpolicy", "digits-servers")
    wait_for("made again", lambda: namespace.items("networkpolicies", "--field-selector", "metadata.name=digits-servers"), 20)
