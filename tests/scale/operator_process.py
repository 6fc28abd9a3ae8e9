"""The operator as a process: what it uses, what it says, and what it calls."""

import collections
import http.client
import json
import os
import re
import signal

from control_plane import OPERATOR, ControlPlane, wait

PORT = 9191
WRITES = {"create", "update", "patch", "delete", "deletecollection"}


class Operator:
    """`ortolan run`, as released."""

    def __init__(self, plane: ControlPlane):
        self.plane = plane
        self.process = None
        self._calls, self._read = Calls(), 0

    def start(self):
        self.process = self.plane.run(
            "operator", "run", "--server-image=ortolan-server:scale", f"--operations-address=127.0.0.1:{PORT}", "--instance=scale",
            program=os.environ["OPERATOR"],
            environment={"KUBECONFIG": str(self.plane.kubeconfig(OPERATOR)), "ORTOLAN_LOG": "warn", "POD_NAMESPACE": "ortolan-system"},
        )

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        del self.plane.processes["operator"]

    def _status(self, key: str) -> int:
        text = open(f"/proc/{self.process.pid}/status").read()
        return int(re.search(rf"^{key}:\s+(\d+) kB", text, re.M)[1]) << 10

    def memory(self) -> int:
        """Resident bytes."""
        return self._status("VmRSS")

    def peak(self) -> int:
        """The most resident bytes so far."""
        return self._status("VmHWM")

    def cpu_seconds(self) -> float:
        fields = open(f"/proc/{self.process.pid}/stat").read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def reconciles(self) -> int:
        return int(self.metric("ortolan_reconcile_duration_seconds_count"))

    def metric(self, name: str) -> float:
        connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=5)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)", text, re.M))

    def calls(self) -> "Calls":
        """All calls of the operator so far, by the API server's own account."""
        with self.plane.audit.open("rb") as log:
            log.seek(self._read)
            text = log.read()
        whole = text.rfind(b"\n") + 1
        self._read += whole
        for line in text[:whole].splitlines():
            self._calls.take(json.loads(line))
        return self._calls.copy()


class Calls:
    """Calls by verb and resource."""

    def __init__(self):
        self.by_kind = collections.Counter()
        self.last = collections.deque(maxlen=8)

    def take(self, event: dict):
        what = event.get("objectRef", {})
        resource = "/".join(filter(None, [what.get("resource", event["requestURI"]), what.get("subresource")]))
        self.by_kind[event["verb"], resource] += 1
        if event["verb"] in WRITES:
            self.last.append(f"{event['verb']} {event['requestURI']} → {event['responseStatus'].get('code')}")

    def copy(self) -> "Calls":
        copied = Calls()
        copied.by_kind, copied.last = self.by_kind.copy(), self.last.copy()
        return copied

    @property
    def total(self) -> int:
        return sum(self.by_kind.values())

    @property
    def writes(self) -> int:
        """Leases are kept alive whatever happens: they are no news of the world."""
        return sum(number for (verb, resource), number in self.by_kind.items() if verb in WRITES and resource != "leases")

    def last_writes(self) -> list:
        return list(self.last)

    def each(self, models: int) -> str:
        parts = [f"{verb} {resource} {number / models:.1f}" for (verb, resource), number in self.by_kind.most_common()
                 if number / models >= 0.05]
        return ", ".join(parts)
