"""Model deployments out of a repository: applied over and over in every way, and read by GitOps tools."""

import json
import shutil

import pytest
import yaml

from harness.gitops import ROOT, WAYS, Reapplied, Repository, Watch, capture, condition
from harness.kube import KubectlError, kubectl, manifest, wait_for
from harness.load import Load
from harness.models import heavy

CURRENT, IN_PROGRESS, FAILED = ("Current", "Healthy"), ("InProgress", "Progressing"), ("Failed", "Degraded")
ROWS = 16
BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [ROWS, 64], "data": [0.5] * (64 * ROWS)}]}).encode()


def spec_managers(model: dict) -> set[str]:
    """Who owns fields of `spec`."""
    return {entry["manager"] for entry in model["metadata"]["managedFields"] if "f:spec" in entry["fieldsV1"]}


def operator_writes(namespace) -> list[tuple[str, str]]:
    """(kind, name) of every child that the operators wrote, from their logs."""
    log = kubectl("--namespace", "ortolan-system", "logs", "--selector", "app.kubernetes.io/name=ortolan", "--tail=-1")
    entries = [json.loads(line) for line in log.splitlines() if '"applied"' in line]
    fields = [entry.get("fields", entry) for entry in entries]
    writes = [(entry["kind"], entry["name"]) for entry in fields]
    return [(kind, name.split("/")[1]) for kind, name in writes if name.startswith(f"{namespace.name}/")]


def children(namespace, kind: str) -> list[dict]:
    return namespace.items(kind, "--selector", "app.kubernetes.io/managed-by=ortolan")


def test_applying_every_second_in_each_way_is_no_fight(namespace, store, tmp_path):
    """Three models, one for each way of applying, while load scales them and while they roll out."""
    uri = store.add("heavy.onnx", heavy(width=1000, layers=16))
    models = {
        way: manifest(
            way,
            uri,
            server={"resources": {"requests": {"cpu": "50m"}, "limits": {"cpu": "100m"}}, "batching": {"maxSize": ROWS}},
            scaling={"minReplicas": 1, "maxReplicas": 2, "latency": {"target": "500ms"}},
        )
        for way in WAYS
    }
    repositories = {way: Repository(tmp_path / way, namespace) for way in WAYS}
    for way, repository in repositories.items():
        repository.write(models[way])
        repository.apply(way)
    for way in WAYS:
        namespace.wait_served(way)
    watches = {way: Watch(namespace, way) for way in WAYS}
    for way, watch in watches.items():
        wait_for(f"the watch of {way} has begun", lambda watch=watch: watch.answers, 20)
    served = {way: namespace.model(way) for way in WAYS}
    loops = {way: Reapplied(repository, way) for way, repository in repositories.items()}
    # More than one server carries, however fast the machine is at the moment: 140 to 460 rows a second were seen.
    loads = [Load(namespace.infer_url(way), BODY, rate=60, seconds=120) for way in WAYS]
    two_answer = lambda way: namespace.status(way)["variants"][0]["ready"] == 2
    try:
        for way in WAYS:
            wait_for(f"load has scaled {way} up", lambda way=way: two_answer(way), 90)
        by_load = {way: len(watch.answers) for way, watch in watches.items()}
        capture("scaling-up-by-load", watches["server"].first(lambda seen: "1 of 2" in condition(seen, "WorkloadAvailable").get("message", "")))
        for load in loads:
            load.stop()
        for way, loop in loops.items():
            models[way]["spec"]["server"]["batching"]["maxSize"] = 2 * ROWS
            loop.commit(models[way])
        other = lambda way: namespace.status(way)["stable"]["revision"] != served[way]["status"]["stable"]["revision"]
        for way in WAYS:
            wait_for(f"{way} rolls out", lambda way=way: other(way), 60)
            namespace.wait_served(way)
    finally:
        for load in loads:
            load.stop()
        for loop in loops.values():
            loop.stop()
        judged = {way: watch.stop() for way, watch in watches.items()}
    print()
    for way, loop in loops.items():
        print(f"{way}: applied {loop.times} times in {len(judged[way])} states: {' → '.join('/'.join(pair) for pair in watches[way].pairs())}")
        assert loop.wrong == [], loop.wrong[0]
        assert loop.times >= 10
        check_states(judged[way])
        # Servers that load adds make nobody believe that a change is under way; a rollout does, until it is over.
        assert set(watches[way].pairs()[:1]) == {CURRENT}
        assert {(seen["judged"]["kstatus"], seen["judged"]["argo"]) for seen in judged[way][: by_load[way]]} == {CURRENT}
        assert watches[way].pairs() == [CURRENT, IN_PROGRESS, CURRENT]
        model = json.loads(namespace.kubectl("get", "modeldeployment", way, "--show-managed-fields", "--output", "json"))
        assert model["metadata"]["generation"] == served[way]["metadata"]["generation"] + 1, "one commit, one generation"
        assert spec_managers(model) == {"kubectl-client-side-apply" if way == "client" else "kubectl"}
    check_writes(namespace)


def check_states(answers: list[dict]) -> None:
    """Each state of an object differs from the one before in its status, or has another generation."""
    for before, after in zip(answers, answers[1:]):
        before, after = before["object"], after["object"]
        if before["metadata"]["generation"] == after["metadata"]["generation"]:
            assert before["spec"] == after["spec"]
            assert before["status"] != after["status"], f"resourceVersion {after['metadata']['resourceVersion']} for nothing"
        for entry in after["metadata"]["managedFields"]:
            assert entry["manager"] != "ortolan-status" or (entry["subresource"] == "status" and "f:spec" not in entry["fieldsV1"])


def check_writes(namespace) -> None:
    """The operator wrote each child once, and a Deployment again only for a number of servers that changed."""
    writes = operator_writes(namespace)
    once = {(kind, child["metadata"]["name"]) for kind, plural in CHILDREN.items() for child in children(namespace, plural)}
    assert len(once) == 3 * (1 + 1 + 1 + 2), sorted(once)
    for child in once:
        assert writes.count(child) == 1, f"{child} was written {writes.count(child)} times"
    for deployment in children(namespace, "deployments"):
        name, generation = deployment["metadata"]["name"], deployment["metadata"]["generation"]
        assert writes.count(("Deployment", name)) == generation, f"{name} has generation {generation}"


CHILDREN = {
    "Service": "services",
    "NetworkPolicy": "networkpolicies",
    "PodDisruptionBudget": "poddisruptionbudgets",
    "ControllerRevision": "controllerrevisions",
}


def test_the_way_of_applying_can_change_and_spellings_do_not_drift(namespace, tmp_path):
    """Nothing has to serve here: what is looked at is the object and who owns it."""
    repository = Repository(tmp_path, namespace)
    resources = {"requests": {"cpu": 1, "memory": "64Mi"}, "limits": {"cpu": "1000m", "memory": "0.5Gi"}}
    model = manifest("digits", "file:///nowhere/m.onnx", server={"resources": resources})
    managed = lambda: json.loads(namespace.kubectl("get", "modeldeployment", "digits", "--show-managed-fields", "--output", "json"))
    generation = 0
    print()
    for step, way in enumerate(["client", "server", "client", "force", "server", "client"]):
        model["spec"]["server"]["batching"] = {"maxSize": step + 1}
        model["spec"]["server"]["threads"] = 2
        if step % 2:
            # A field that leaves the manifest leaves the object, whoever applied it before.
            del model["spec"]["server"]["threads"]
        repository.write(model)
        repository.apply(way)
        before, generation = generation, managed()["metadata"]["generation"]
        # kubectl applies twice where it takes over from client-side apply and a field leaves the manifest.
        assert before < generation <= before + 2
        for _ in range(2):
            assert repository.drift(way) == ""
            repository.apply(way)
        seen = managed()
        print(f"{way}: spec is of {sorted(spec_managers(seen))}")
        assert seen["metadata"]["generation"] == generation
        assert seen["spec"]["server"]["batching"]["maxSize"] == step + 1
        assert ("threads" in seen["spec"]["server"]) == (step % 2 == 0)
        assert spec_managers(seen) <= {"kubectl", "kubectl-client-side-apply"}
        # The text of a quantity stays as it was written.
        assert seen["spec"]["server"]["resources"] == resources
    # What an export holds besides the spec (status, generation, defaults) is no change either.
    namespace.wait_condition("digits", "Stalled", "True")
    for way in WAYS:
        exported = namespace.kubectl("get", "modeldeployment", "digits", "--output", "yaml")
        content = yaml.safe_load(exported)
        assert content["status"] and content["spec"]["scaling"]["minReplicas"] == 1
        # An object that was read can be applied while it is the one that was read; a repository keeps no versions.
        del content["metadata"]["resourceVersion"]
        repository.write(content)
        repository.apply(way)
        assert repository.drift(way) == ""
        assert namespace.model("digits")["metadata"]["generation"] == generation
    # A status in a repository is nobody's wish.
    model["status"] = {"replicas": 7, "observedGeneration": 99}
    repository.write(model)
    for way in WAYS:
        repository.apply(way)
        assert repository.drift(way) == ""
    assert namespace.status("digits")["observedGeneration"] == namespace.model("digits")["metadata"]["generation"]
    assert len(children(namespace, "deployments")) <= 6
    assert len(operator_writes(namespace)) == len(set(operator_writes(namespace))), "no child was written twice"


def test_pruning_takes_what_left_the_repository_and_no_child_of_what_stays(namespace, tmp_path):
    one, two = (manifest(name, "file:///nowhere/m.onnx") for name in ("one", "two"))
    for model in (one, two):
        model["metadata"]["labels"] = {"app.kubernetes.io/part-of": "models"}
    kinds = "deployments,services,poddisruptionbudgets,controllerrevisions"
    uids = lambda name: {(item["kind"], item["metadata"]["uid"]) for item in namespace.items(kinds, "--selector", f"ortolan.dev/model={name}")}
    everything = ["ortolan.dev/v1alpha1/ModelDeployment", "apps/v1/Deployment", "core/v1/Service", "core/v1/ConfigMap"]
    by_label = ["--prune", "--selector", "app.kubernetes.io/part-of=models"] + [f"--prune-allowlist={kind}" for kind in everything]
    for way, prune in [("client", by_label), ("server", ["--prune", "--applyset=applied"])]:
        repository = Repository(tmp_path / way, namespace)
        repository.write(one, "one.yaml")
        repository.write(two, "two.yaml")
        apply = lambda: applyset(repository, way, prune)
        apply()
        wait_for("both models have their children", lambda: len(uids("one")) == 4 and len(uids("two")) == 4, 30)
        kept = uids("one")
        apply()
        (repository.folder / "two.yaml").unlink()
        assert "modeldeployment.ortolan.dev/two pruned" in apply()
        apply()
        wait_for("the children of the pruned model are gone", lambda: not uids("two"), 60)
        assert uids("one") == kept


def applyset(repository: Repository, way: str, prune: list[str]) -> str:
    """`kubectl apply --prune`; kubectl has the sets of applied objects only where this variable is set."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("KUBECTL_APPLYSET", "true")
        return repository.apply(way, *prune)


def test_every_state_of_a_rollout_is_understood_by_kstatus_and_argo_cd(namespace, store, digits, digits_v2):
    first, second = store.add("one.onnx", digits), store.add("two.onnx", digits_v2)
    bad, missing = store.add("bad.onnx", b"these are not the weights\n"), store.uri("missing.onnx")
    watch, broken, single = (Watch(namespace, name) for name in ("digits", "broken", "single"))
    says = lambda pair, since=0: lambda: pair in watch.pairs(since)
    try:
        namespace.apply(manifest("digits", first, replicas=2))
        namespace.apply(manifest("broken", missing, replicas=2))
        namespace.apply(manifest("single", first))
        namespace.wait_served("digits")
        wait_for("the first revision is current", says(CURRENT), 20)
        assert watch.pairs() == [IN_PROGRESS, CURRENT]

        mark = len(watch.answers)
        namespace.apply(manifest("digits", second, replicas=2))
        namespace.wait_served("digits")
        wait_for("the second revision is current", says(CURRENT, mark), 20)
        assert watch.pairs(mark) == [IN_PROGRESS, CURRENT]

        mark = len(watch.answers)
        namespace.apply(manifest("digits", bad, replicas=2))
        wait_for("a revision that cannot load is failed", says(FAILED, mark), 60)
        assert set(watch.pairs(mark)) == {IN_PROGRESS, FAILED}, "a rollout is never current"

        # There and back again: to the first revision, and back to the second one in the middle of it.
        mark = len(watch.answers)
        namespace.apply(manifest("digits", first, replicas=2))
        wait_for("the rollout is under way", lambda: namespace.status("digits")["replicas"] > 2, 30)
        namespace.apply(manifest("digits", second, replicas=2))
        namespace.wait_served("digits")
        wait_for("the second revision is current again", says(CURRENT, mark), 20)
        assert len(children(namespace, "deployments")) == 3, "of digits, broken and single"
        assert watch.pairs(mark)[-2:] == [IN_PROGRESS, CURRENT]
        assert set(watch.pairs(mark)) <= {IN_PROGRESS, FAILED, CURRENT}

        wait_for("a first revision that cannot be had is failed", lambda: FAILED in broken.pairs(), 60)
        wait_for("a single server serves", lambda: single.pairs()[-1:] == [CURRENT], 60)
        mark = len(single.answers)
        namespace.kubectl("delete", "pods", "--selector", "ortolan.dev/model=single", "--grace-period=1", "--wait=false")
        wait_for("it does not answer", lambda: ("InProgress", "Degraded") in single.pairs(mark), 30)
        wait_for("it answers again", lambda: single.pairs(mark)[-1] == CURRENT, 60)

        namespace.kubectl("delete", "modeldeployment", "digits", "--cascade=foreground", timeout=90)
        wait_for("it is gone", says(("NotFound", "Missing")), 20)
        assert ("Terminating", "Progressing") in watch.pairs()
    finally:
        seen = {name: one.stop() for name, one in (("digits", watch), ("broken", broken), ("single", single))}
    print()
    for name, answers in seen.items():
        assert answers, name
        pairs = {"digits": watch, "broken": broken, "single": single}[name].pairs()
        print(f"{name}: {' → '.join('/'.join(pair) for pair in pairs)}")
        for answer in answers:
            check_verdict(answer)
    keep_fixtures(watch, broken, single)


def check_verdict(answer: dict) -> None:
    """What holds for every state that any tool may meet."""
    judged, model = answer["judged"], answer["object"]
    status, generation = model["status"], model["metadata"]["generation"]
    same = {CURRENT, IN_PROGRESS, FAILED, ("Terminating", "Progressing"), ("NotFound", "Missing"), ("InProgress", "Degraded")}
    assert (judged["kstatus"], judged["argo"]) in same, answer
    assert judged["fluxStatus"] == judged["kstatus"], answer
    if judged["kstatus"] != "Terminating":
        assert judged["fluxExpression"] == judged["kstatus"], answer
    if judged["kstatus"] in ("Current", "Failed"):
        assert status["observedGeneration"] == generation, answer
    if judged["kstatus"] == "Current":
        assert "candidate" not in status and status["replicas"] == status["scaling"]["desired"], answer
    if (judged["kstatus"], judged["argo"]) == ("InProgress", "Degraded"):
        assert condition(answer, "Ready")["status"] == "False", answer


def keep_fixtures(watch: Watch, broken: Watch, single: Watch) -> None:
    says = lambda status: lambda seen: seen["judged"]["kstatus"] == status
    reason = lambda kind, name: lambda seen: condition(seen, kind).get("reason") == name
    capture("new", watch.first(lambda seen: seen["event"] == "ADDED"))
    capture("starting", watch.first(reason("Reconciling", "Starting")))
    capture("healthy", watch.first(says("Current")))
    stale = lambda seen: 0 < seen["object"]["status"]["observedGeneration"] < seen["object"]["metadata"]["generation"]
    capture("stale-generation", watch.first(stale))
    capture("rolling-out", watch.first(reason("Reconciling", "RollingOut")))
    capture("candidate-stalled-beside-stable", watch.first(says("Failed")))
    capture("terminating", watch.first(says("Terminating")))
    capture("degraded", broken.first(says("Failed")))
    capture("not-answering", single.first(lambda seen: seen["judged"]["argo"] == "Degraded"))


def test_the_example_repository_works_as_it_is_written(namespace, store, digits, digits_v2, tmp_path):
    """Both overlays, with the model store of this test in the place of the example's."""
    for name, content in (("digits.onnx", digits), ("digits-v2.onnx", digits_v2)):
        store.add(name, content)
    copy = shutil.copytree(ROOT / "examples" / "gitops" / "models", tmp_path / "models")
    for file in copy.rglob("*.yaml"):
        text = file.read_text().replace("https://models.example.org/", store.uri(""))
        file.write_text(text.replace("models-dev", namespace.name).replace("models-prod", namespace.name))
    for overlay in ("dev", "prod", "dev"):
        namespace.kubectl("apply", "--dry-run=server", "--kustomize", str(copy / overlay))
        namespace.kubectl("apply", "--server-side", "--kustomize", str(copy / overlay))
        namespace.wait_served("digits")
        spec, status = namespace.model("digits")["spec"], namespace.status("digits")
        assert ("latency" in spec["scaling"], status["replicas"]) == ((True, 2) if overlay == "prod" else (False, 1))
        assert spec["server"]["resources"]["limits"] == {"cpu": "500m" if overlay == "prod" else "200m", "memory": "256Mi"}
    settings = (ROOT / "examples" / "gitops" / "argocd" / "health.yaml").read_text().replace("namespace: argocd", f"namespace: {namespace.name}")
    namespace.kubectl("apply", "--dry-run=server", "--filename", "-", stdin=settings)


def test_the_operator_of_the_flux_and_argo_cd_examples_is_the_charts(tmp_path):
    """The values that the examples give are values that the chart has: its schema refuses any other."""
    from harness.helm import CHART, helm

    release = list(yaml.safe_load_all((ROOT / "examples/gitops/flux/ortolan/release.yaml").read_text()))[-1]
    application = yaml.safe_load((ROOT / "examples/gitops/argocd/ortolan.yaml").read_text())
    for number, values in enumerate([release["spec"]["values"], application["spec"]["source"]["helm"]["valuesObject"]]):
        file = tmp_path / f"{number}.yaml"
        file.write_text(yaml.safe_dump(values))
        assert "kind: Deployment" in helm("template", "ortolan", str(CHART), "--values", str(file))


def test_a_cluster_without_the_schema_is_told_so(tmp_path):
    """Why the CustomResourceDefinition comes first: kubectl's words where it is missing."""
    unknown = json.dumps({**manifest("digits", "https://h/m.onnx"), "apiVersion": "ortolan.dev/v9"})
    with pytest.raises(KubectlError, match="ensure CRDs are installed first"):
        kubectl("apply", "--dry-run=server", "--filename", "-", stdin=unknown)
