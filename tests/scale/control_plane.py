"""A real Kubernetes control plane with kwok's nodes, of ordinary processes in the present network namespace.

Who starts it is alone in the namespace: certificates are not checked, and there is nobody else to keep out.
"""

import json
import os
import pathlib
import subprocess
import time

from api import Api, ApiError

SERVER = "https://127.0.0.1:6443"
ADMIN = "admin"
# The operator has the rights that the manifests give it, and the queue of the API server that its pod would have.
OPERATOR = "operator"
OPERATOR_USER = "system:serviceaccount:ortolan-system:ortolan"
POD_RANGE = "10.246.0.0/16"
STAGES = pathlib.Path(__file__).with_name("stages.yaml")
ADDRESS = "10.246.255.254"
PODS_PER_NODE = 1000

TOKENS = f"""admin,admin,1,"system:masters"
{OPERATOR},{OPERATOR_USER},2,"system:serviceaccounts,system:serviceaccounts:ortolan-system"
"""

# What the operator calls, one line a call.
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived", "ResponseStarted"],
    "rules": [{"level": "Metadata", "users": [OPERATOR_USER]}, {"level": "None"}],
}


# Memory is plenty here and processors are not: what is Go collects its garbage more rarely than by default (100).
RARE_COLLECTION = {"GOGC": "300"}


class ControlPlane:
    """etcd, kube-apiserver, kube-controller-manager, kube-scheduler and kwok."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.logs = folder / "logs"
        self.logs.mkdir()
        self.audit = self.logs / "audit.log"
        self.processes = {}

    def start(self):
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        # Fake pods have addresses of this machine: what is sent to them is answered or refused here, at once.
        subprocess.run(["ip", "route", "add", "local", POD_RANGE, "dev", "lo"], check=True)
        self._write_files()
        self._start_api_server()
        api = Api(SERVER, ADMIN)

        def ready():
            self.check()
            return api.get("/readyz", text=True) == "ok"

        wait("the API server", 60, ready)
        self._start_controllers()
        wait("the default service account", 60, lambda: api.get("/api/v1/namespaces/default/serviceaccounts/default"))
        return api

    def _write_files(self):
        (self.folder / "tokens.csv").write_text(TOKENS)
        (self.folder / "audit.json").write_text(json.dumps(AUDIT_POLICY))
        key = self.folder / "service-accounts.key"
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
        for user in (ADMIN, OPERATOR):
            self.kubeconfig(user).write_text(json.dumps(kubeconfig(user)))

    def _start_api_server(self):
        folder, key = self.folder, self.folder / "service-accounts.key"
        # What it stores does not outlive the test, so it need not wait for the disk.
        self.run("etcd", f"--data-dir={folder}/etcd", "--unsafe-no-fsync", "--log-level=warn", "--quota-backend-bytes=8589934592")
        self.run(
            "kube-apiserver", "--etcd-servers=http://127.0.0.1:2379", "--bind-address=127.0.0.1",
            # There is no default route from which it could guess one.
            f"--advertise-address={ADDRESS}",
            f"--cert-dir={folder}/pki", f"--token-auth-file={folder}/tokens.csv", "--authorization-mode=RBAC",
            "--service-account-issuer=https://kubernetes.default.svc", f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}", "--service-cluster-ip-range=10.96.0.0/16",
            f"--audit-policy-file={folder}/audit.json", f"--audit-log-path={self.audit}", "--audit-log-maxsize=4000",
            "--profiling=false", "--event-ttl=1h",
        )

    def _start_controllers(self):
        # The controller manager's own limit is 20 calls a second: with it ten thousand Deployments take an hour,
        # whatever the operator does.
        common = [f"--kubeconfig={self.kubeconfig(ADMIN)}", "--leader-elect=false", "--profiling=false",
                  "--kube-api-qps=1000", "--kube-api-burst=2000", "--bind-address=127.0.0.1"]
        self.run(
            "kube-controller-manager", *common,
            f"--service-account-private-key-file={self.folder}/service-accounts.key",
            "--concurrent-deployment-syncs=10", "--concurrent-replicaset-syncs=10",
            # Fake nodes are never lost.
            "--node-monitor-period=30s", "--node-monitor-grace-period=24h",
        )
        self.run("kube-scheduler", *common)

    def start_nodes(self, api: Api, pods: int, stages: pathlib.Path = STAGES):
        self.run("kwok", f"--kubeconfig={self.kubeconfig(ADMIN)}", "--manage-all-nodes=true", f"--cidr={POD_RANGE}",
                 f"--config={stages}",
                 program=os.environ["KWOK"])
        for number in range(pods // PODS_PER_NODE + 2):
            amounts = {"cpu": "100k", "memory": "100Ti", "pods": str(PODS_PER_NODE)}
            api.post("/api/v1/nodes", {
                "apiVersion": "v1", "kind": "Node",
                "metadata": {"name": f"fake-{number}", "labels": {"kubernetes.io/hostname": f"fake-{number}"}},
                "status": {"allocatable": amounts, "capacity": amounts},
            })

    def kubeconfig(self, user: str) -> pathlib.Path:
        return self.folder / f"{user}.kubeconfig"

    def run(self, name: str, *arguments, program: str | None = None, environment: dict | None = None):
        """Starts a program; its words go to its log."""
        log = (self.logs / f"{name}.log").open("ab")
        self.processes[name] = subprocess.Popen(
            [program or name, *arguments], stdout=log, stderr=log, env={**os.environ, **RARE_COLLECTION, **(environment or {})})
        return self.processes[name]

    def check(self):
        """Nothing has ended by itself."""
        for name, process in self.processes.items():
            if process.poll() is not None:
                tail = (self.logs / f"{name}.log").read_text(errors="replace")[-3000:]
                raise AssertionError(f"{name} ended with {process.returncode}:\n{tail}")


def kubeconfig(user: str) -> dict:
    return {
        "apiVersion": "v1", "kind": "Config", "current-context": "it",
        "clusters": [{"name": "it", "cluster": {"server": SERVER, "insecure-skip-tls-verify": True}}],
        "users": [{"name": "it", "user": {"token": user}}],
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
    }


def wait(what: str, seconds: float, condition, pause: float = 0.2):
    """Waits until `condition()` is true; errors of the API and of the connection count as not yet."""
    deadline, last = time.monotonic() + seconds, None
    while time.monotonic() < deadline:
        try:
            result = condition()
            if result:
                return result
            last = result
        except (ApiError, OSError) as error:
            last = error
        time.sleep(pause)
    raise AssertionError(f"{what}: not within {seconds} s; last: {last!r}")
