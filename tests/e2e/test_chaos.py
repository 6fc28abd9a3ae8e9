"""Whatever dies, models go on being served: under steady load by new and by kept connections. By `make chaos-test`,
since it takes about nine minutes."""

import collections
import json
import os
import random
import signal
import threading
import time

import pytest

from harness.chaos import SteadyLoad, Untouched, another_address, check_children, cluster, operator_processes
from harness.helm import CHART, helm
from harness.kube import KubectlError, Namespace, check_operator_log, kubectl, manifest, wait_for
from harness.load import failures
from harness.operator import SELECTOR, SYSTEM, rolled_out
from test_chart import by_kubectl_afterwards, install_by_kubectl  # noqa: F401 (the first is a fixture)

pytestmark = pytest.mark.chaos
BODY = json.dumps({"inputs": [{"name": "pixels", "datatype": "FP32", "shape": [1, 64], "data": [0.0] * 64}]}).encode()
KILLS = 100
# Seconds for which clients are watched that come when the lost servers are out of the Service.
NEWCOMERS = 15
# Until a node whose kubelet says nothing is NotReady (12 s), looked at every 2 s, and its pods are out of every packet filter.
NOTICED = 20
WAIT = ("--wait", "--timeout", "120s")


@pytest.fixture(autouse=True)
def operator_afterwards():
    """The operator is well again after each test, and was refused nothing as far as its log reaches."""
    yield
    rolled_out()


def servers_by_node(namespace: Namespace) -> dict[str, int]:
    """Ready servers of `digits` on each node."""
    nodes: dict[str, int] = {}
    for pod in namespace.pods("digits"):
        ready = any(condition["type"] == "Ready" and condition["status"] == "True" for condition in pod["status"].get("conditions", []))
        if ready:
            nodes[pod["spec"]["nodeName"]] = nodes.get(pod["spec"]["nodeName"], 0) + 1
    return nodes


def ready(namespace: Namespace) -> int:
    """How many servers of `digits` the status calls ready."""
    variants = namespace.status("digits").get("variants", [])
    return variants[0]["ready"] if variants else 0


def words(namespace: Namespace) -> str:
    """What the conditions of `digits` say that are not as they should be."""
    conditions = namespace.status("digits").get("conditions", [])
    said = [f"{c['type']}={c['status']} {c['reason']}: {c['message']}" for c in conditions]
    return "; ".join(said)


def test_rolling_update_scale_in_and_a_drained_node_lose_no_request(namespace, store, digits):
    """What people do on purpose costs no request: a new revision, fewer servers, and `kubectl drain`, which evicts two of
    four servers of a node, one after the other as the disruption budget says, and the operator's pod besides."""
    uri = store.add("one.onnx", digits)
    namespace.apply(manifest("digits", uri, replicas=5))
    namespace.wait_served("digits")
    load = SteadyLoad(namespace, "digits", BODY)
    fewest, draining = [], threading.Event()

    def look() -> None:
        while draining.is_set():
            fewest.append(sum(servers_by_node(namespace).values()))

    try:
        namespace.apply(manifest("digits", uri, replicas=5, server={"batching": {"maxSize": 16}}))
        namespace.wait_served("digits", 120)
        namespace.kubectl("scale", "modeldeployment", "digits", "--replicas=4")
        namespace.wait_served("digits")
        check_children(namespace, "digits", 4)
        before = servers_by_node(namespace)
        draining.set()
        watcher = threading.Thread(target=look)
        watcher.start()
        started = time.monotonic()
        kubectl("drain", "node-1", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=120s", timeout=130)
        took = time.monotonic() - started
        wait_for("all servers on the other node", lambda: servers_by_node(namespace) == {"node-0": 4}, 60)
        draining.clear()
        watcher.join()
        print(f"\nservers by node before the drain: {before}; drained in {took:.1f} s; fewest ready servers meanwhile: {min(fewest)}")
        assert before.get("node-1", 0) >= 1 and min(fewest) >= 3, "one server at a time"
        check_children(namespace, "digits", 4)
    finally:
        draining.clear()
        kubectl("uncordon", "node-1")
        load.end_without_failures()


def test_an_upgraded_operator_that_renders_differently_rolls_no_pod_and_neither_does_a_rollback(
    namespace, store, digits, by_kubectl_afterwards  # noqa: F811
):
    """A revision is rendered by the version of the rendering that it was made with. The upgrade brings an operator whose
    pods look different (a switch for this test adds an annotation, which would roll every pod of a plain Deployment): old
    revisions stay as they are, new ones get the new look. Rolled back, the old operator does not know that look: it leaves such pods as
    they are, and goes on scaling them with the look that they have."""
    uri = store.add("one.onnx", digits)
    namespace.apply(manifest("digits", uri, replicas=2))
    namespace.wait_served("digits")
    install_by_kubectl("--server-side", "--field-manager", "helm", "--force-conflicts")
    helm("install", "ortolan", str(CHART), "--take-ownership", *WAIT)

    def looks() -> list[str]:
        return [pod["metadata"].get("annotations", {}).get("ortolan.dev/renderer", "as before") for pod in namespace.pods("digits")]

    load = SteadyLoad(namespace, "digits", BODY)
    try:
        old = Untouched(namespace, "digits")
        helm("upgrade", "ortolan", str(CHART), "--set-string", "extraEnv[0].name=ORTOLAN_TRIAL_RENDERER,extraEnv[0].value=true", *WAIT)
        # The upgraded operator acts on the model, so it has looked at the old revision, and more of its servers look as before.
        namespace.kubectl("scale", "modeldeployment", "digits", "--replicas=3")
        namespace.wait_served("digits")
        assert set(old.before) <= set(old.servers()) and looks() == ["as before"] * 3

        namespace.apply(manifest("digits", uri, replicas=3, server={"batching": {"maxSize": 16}}))
        namespace.wait_served("digits")
        check_children(namespace, "digits", 3)
        assert looks() == ["trial"] * 3

        new = Untouched(namespace, "digits")
        helm("rollback", "ortolan", "1", *WAIT)
        namespace.kubectl("scale", "modeldeployment", "digits", "--replicas=4")
        namespace.wait_served("digits")
        assert set(new.before) <= set(new.servers()) and looks() == ["trial"] * 4
        assert all(restarts == 0 for restarts in new.servers().values())

        namespace.apply(manifest("digits", uri, replicas=2, server={"batching": {"maxSize": 8}}))
        namespace.wait_served("digits")
        check_children(namespace, "digits", 2)
        assert looks() == ["as before"] * 2
        check_operator_log()
    finally:
        load.end_without_failures()


def test_serving_does_not_notice_that_api_server_and_etcd_are_killed(namespace, store, digits):
    """Five times API server and etcd are killed at once and started again. No request fails, no server is restarted, and
    the operator acts on an edit again within 60 s of the API server's return."""
    uri = store.add("one.onnx", digits)
    namespace.apply(manifest("digits", uri, replicas=2))
    namespace.apply(manifest("edited", uri, replicas=1))
    namespace.wait_served("digits")
    namespace.wait_served("edited")
    servers, load = Untouched(namespace, "digits"), SteadyLoad(namespace, "digits", BODY)
    try:
        for replicas in [2, 1, 2, 1, 2]:
            killed = time.monotonic()
            cluster("component", "kill", "etcd", "kube-apiserver")
            with pytest.raises(KubectlError):
                namespace.model("edited")
            cluster("component", "start", "etcd", "kube-apiserver")
            back = time.monotonic()
            edited = lambda: namespace.kubectl("scale", "modeldeployment", "edited", f"--replicas={replicas}") or True
            wait_for("an edit is taken", lambda: quietly(edited), 30)
            namespace.wait_served("edited", 60)
            recovery = time.monotonic() - back
            print(f"\nAPI away for {back - killed:.1f} s, an edit carried out {recovery:.1f} s after its return")
            assert recovery <= 60
        servers.check()
        check_children(namespace, "digits", 2)
        check_children(namespace, "edited", 2)
    finally:
        load.end_without_failures()
        # An API server that has just started refuses calls for want of roles; what its log tells of that is no defect.
        SYSTEM.kubectl("delete", "pod", *SELECTOR, timeout=90)


def quietly(act) -> bool:
    """Whether it could be done; an API server that has just started may refuse for a moment."""
    try:
        return act()
    except KubectlError:
        return False


def test_a_lost_node_costs_requests_only_until_kubernetes_notices_and_its_servers_come_back_elsewhere(namespace, store, digits):
    """A node loses its power, then (after it came back) its cable. Kubernetes calls a node lost when its kubelet has said
    nothing for 12 s here (40 s by default); until then the Service sends half of all new connections to servers that are gone,
    and those time out. Nothing that Ortolan does could be quicker without a router in front. After that the lost servers are
    out of the Service, the status does not count servers of the lost node, others are started elsewhere, and when the node comes back
    there are none too many."""
    namespace.apply(manifest("digits", store.add("one.onnx", digits), replicas=2))
    namespace.wait_served("digits")
    for lose, restore in [(("node", "stop", "node-1"), ("node", "start", "node-1")), (("node", "cut", "node-1"), ("node", "join", "node-1"))]:
        both = {"node-0": 1, "node-1": 1}
        if servers_by_node(namespace) != both:
            spread_again(namespace)
        assert servers_by_node(namespace) == both
        load = SteadyLoad(namespace, "digits", BODY)
        try:
            lost = time.time()
            cluster(*lose)
            wait_for("the status counts one ready server", lambda: ready(namespace) == 1, NOTICED + 20)
            print(f"\n{' '.join(lose)}: the status counts one ready server after {time.time() - lost:.1f} s: {words(namespace)}")
            wait_for("two servers on the other node", lambda: servers_by_node(namespace).get("node-0") == 2, 60)
            wait_for("the status counts both", lambda: ready(namespace) == 2, 15)
            print(f"two servers elsewhere after {time.time() - lost:.1f} s")
            with another_address() as address:
                newcomers = SteadyLoad(namespace, "digits", BODY, rate=40, source=address)
                time.sleep(NEWCOMERS)  # how long they are watched
                newcomers.end_without_failures()
        finally:
            returned = time.time()
            cluster(*restore)
            kubectl("wait", "--for=condition=Ready", "node/node-1", "--timeout=60s", timeout=70)
            answers = load.end()
        check_children(namespace, "digits", 2)
        namespace.wait_served("digits")
        tell_what_was_lost(answers, lost, returned)


def spread_again(namespace: Namespace) -> None:
    """One server on each node, as a new revision is placed."""
    pod = next(pod for pod in namespace.pods("digits") if pod["spec"]["nodeName"] == "node-0")
    kubectl("cordon", "node-0")
    try:
        namespace.kubectl("delete", "pod", pod["metadata"]["name"])
        namespace.wait_served("digits")
        wait_for("one server on each node", lambda: len(servers_by_node(namespace)) == 2, 60)
    finally:
        kubectl("uncordon", "node-0")


def tell_what_was_lost(answers: dict, lost: float, returned: float) -> None:
    """Prints which requests failed and when, and fails unless they are explained by a node that nobody knows to be lost."""
    for kind, found in answers.items():
        failed = [answer for answer in found if answer.code != 200]
        seconds = collections.Counter(int(answer.sent - lost) for answer in failed)
        print(f"{len(failed)} of {len(found)} requests over {kind} connections failed: {failures(found)}")
        print(f"sent so many seconds after the loss: {dict(sorted(seconds.items()))}; the node came back after {returned - lost:.1f} s")
        assert all(answer.code == 0 for answer in failed), "no server answered wrongly"
        assert all(answer.sent >= lost - 1 for answer in failed)
    # Only new connections are spread anew for each request: half of them for as long as the node counts as there. A kept
    # one is given up by its client only when a request on it has timed out.
    failed = [answer for answer in answers["new"] if answer.code != 200]
    assert len(failed) <= 20 * NOTICED * 0.65
    # Of the clients that tried before, some still meet the dead: the kernel keeps the way of an attempt that nobody answered for
    # two minutes, and a new connection that happens on the same port takes it. Clients that come now do not (see above).
    later = [answer.code for answer in answers["new"] if lost + NOTICED < answer.sent < returned]
    print(f"after the loss was noticed {sum(code != 200 for code in later)} of {len(later)} of the old clients' requests failed")
    assert sum(code != 200 for code in later) <= len(later) / 20, "the lost servers are out of the Service"


def test_an_operator_killed_a_hundred_times_is_not_noticed(namespace, store, digits):
    """The operator is killed (SIGKILL, the real process) a hundred times, each time some moment after it has begun to work
    on a model that is edited all the time. Another model's requests do not fail, its servers are the same and were not restarted; the
    edited one ends as it was asked for last, with no child too many. Pods of killed operators are deleted, since the
    kubelet would let them wait 10 s before each start, and so is the lease of a dead leader, for which its follower would wait 15 s."""
    uri = store.add("one.onnx", digits)
    namespace.apply(manifest("digits", uri, replicas=2))
    namespace.apply(manifest("edited", uri, replicas=1))
    namespace.wait_served("digits")
    namespace.wait_served("edited")
    servers, load = Untouched(namespace, "digits"), SteadyLoad(namespace, "digits", BODY)
    editor = Editor(namespace, uri)
    killed, rounds, started = 0, 0, time.monotonic()
    try:
        while killed < KILLS:
            pod, uid = wait_for("an operator leads", leading, 60, every=0.02)
            time.sleep(random.uniform(0, 0.5))  # so that kills come at any moment of the work
            rounds += 1
            # Every other time the follower goes, too.
            killed += kill(pod, uid if rounds % 2 else "")
        took = time.monotonic() - started
        edits = editor.end()
        print(f"\n{killed} kills of {rounds} leaders and their followers in {took:.0f} s, {edits} edits meanwhile")
        namespace.apply(manifest("edited", uri, replicas=2, server={"batching": {"maxSize": 64}}))
        since = time.monotonic()
        namespace.wait_served("edited", 90)
        print(f"the last edit was carried out {time.monotonic() - since:.1f} s after the last kill")
        servers.check()
        check_children(namespace, "edited", 2)
        check_children(namespace, "digits", 2)
    finally:
        editor.end()
        load.end_without_failures()


class Editor:
    """Edits the model `edited` about once a second: its number of servers, and now and then its revision."""

    def __init__(self, namespace: Namespace, uri: str):
        self.namespace, self.uri, self.edits = namespace, uri, 0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        while not self.ended.wait(1):
            self.edits += 1
            batching = {"maxSize": 8 + self.edits // 10}
            self.namespace.apply(manifest("edited", self.uri, replicas=1 + self.edits % 2, server={"batching": batching}))

    def end(self) -> int:
        """Stops; how many edits there were."""
        self.ended.set()
        self.thread.join()
        return self.edits


def leading() -> tuple[str, str] | None:
    """The name and the uid of the operator's pod that holds the lease and whose process runs; nothing while there is none."""
    holder = SYSTEM.kubectl("get", "lease", "ortolan", "--ignore-not-found", "--output", "jsonpath={.spec.holderIdentity}")
    if not holder:
        return None
    name = holder.partition("_")[0]
    uid = SYSTEM.kubectl("get", "pod", name, "--ignore-not-found", "--output", "jsonpath={.metadata.uid}")
    if not uid:
        # One that was on its way out when its pod was deleted, and took the lease all the same.
        SYSTEM.kubectl("delete", "lease", "ortolan", "--ignore-not-found")
    return (name, uid) if uid and any(uid in group for group in operator_processes().values()) else None


def kill(leader: str, uid: str) -> int:
    """Kills the operator's process in the pod with this uid, or all there are, and has the pods replaced at once; how many
    processes that were."""
    victims = {process: group for process, group in operator_processes().items() if uid in group}
    for process in victims:
        os.kill(process, signal.SIGKILL)
    away = ("--force", "--grace-period=0", "--wait=false", "--ignore-not-found")
    SYSTEM.kubectl("delete", *away, f"pod/{leader}", "lease/ortolan")
    if not uid:
        SYSTEM.kubectl("delete", *away, "pod", *SELECTOR)
    return len(victims)
