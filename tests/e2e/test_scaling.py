"""Replicas follow the observed load and latency, and nobody notices."""

import json
import time

from harness.kube import manifest, wait_for
from harness.load import Load, failures, p99
from harness.models import heavy

TARGET = 0.3
ROWS = 32
BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [ROWS, 64], "data": [0.5] * (64 * ROWS)}]}).encode()
# Requests a second. One server of a quarter CPU carries about 20: what it cannot carry for the seconds until a second one
# is there must fit into its queue, or it turns requests away, as it should.
QUIET, RISING, BUSY = 2, 30, 50


def test_load_scales_up_and_its_end_scales_down_without_a_failed_request(namespace, store):
    namespace.apply(
        manifest(
            "heavy",
            store.add("heavy.onnx", heavy(width=1000, layers=16)),
            server={"resources": {"requests": {"cpu": "100m"}, "limits": {"cpu": "250m"}}, "batching": {"maxSize": ROWS}},
            scaling={"minReplicas": 1, "maxReplicas": 4, "latency": {"quantile": "p99", "target": f"{int(TARGET * 1000)}ms"}},
        )
    )
    namespace.wait_served("heavy")
    url = namespace.infer_url("heavy")
    line = Timeline(namespace)
    answers = []
    for rate, seconds in [(QUIET, 15), (RISING, 20), (BUSY, 45)]:
        load = Load(url, BODY, rate, seconds)
        while load.running():
            line.look()
        answers += load.answers()
    # A trickle stays, so that a request that scale-in loses would be seen.
    load = Load(url, BODY, QUIET, 240)
    wait_for("back to one server", lambda: line.look() == (1, 1), 200)
    load.stop()
    answers += load.answers()
    line.show(answers)
    print(namespace.kubectl("get", "events", "--field-selector", "involvedObject.name=heavy", "--output", "custom-columns=REASON:.reason,MESSAGE:.message"))

    assert failures(answers) == []
    busy = answers[0].sent + 15  # when the load begins to rise
    breach = min((a.sent + a.seconds for a in answers if a.sent >= busy and a.seconds > TARGET), default=None)
    raised = next((at for at, desired, _ in line.looks if desired > 1), None)
    assert raised is not None, "the load asked for no more servers"
    if breach is not None:
        print(f"first answer over {TARGET} s at {breach - busy:.1f} s of load, more servers asked for at {raised - busy:.1f} s")
        assert raised <= breach + 10
    settled = [a for a in answers if busy + 50 <= a.sent < busy + 65]
    print(f"p99 in the last 15 s of the load: {p99(settled) * 1000:.0f} ms")
    assert p99(settled) <= TARGET
    reasons = {event["reason"] for event in namespace.events("heavy")}
    assert {"ScaledUp", "ScaledDown"} <= reasons


class Timeline:
    """Desired and ready servers, looked at twice a second."""

    def __init__(self, namespace):
        self.namespace = namespace
        self.looks: list[tuple[float, int, int]] = []

    def look(self) -> tuple[int, int]:
        status = self.namespace.status("heavy")
        seen = status["scaling"]["desired"], status["variants"][0]["ready"]
        self.looks.append((time.time(), *seen))
        time.sleep(0.5)
        return seen

    def show(self, answers) -> None:
        """A line for every five seconds."""
        begin, end = answers[0].sent, answers[-1].sent
        print("\nseconds  requests/s  p99 ms  failed  desired  ready")
        start = begin
        while start < end:
            within = [a for a in answers if start <= a.sent < start + 5]
            looks = [look for look in self.looks if look[0] < start + 5]
            desired, ready = looks[-1][1:] if looks else (0, 0)
            failed = sum(a.code != 200 for a in within)
            print(f"{start - begin:7.0f}  {len(within) / 5:10.1f}  {p99(within) * 1000:6.0f}  {failed:6}  {desired:7}  {ready:5}")
            start += 5
