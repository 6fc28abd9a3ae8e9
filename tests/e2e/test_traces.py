"""Traces as a receiver of OTLP gets them: of reconciles from the operator, of requests from models' servers."""

import http.server
import secrets
import threading

import httpx
import numpy as np
import pytest
import tritonclient.grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from harness.kube import KubectlError, manifest, wait_for
from harness.models import HOST
from harness.operator import SYSTEM, rolled_out

VERBS = {"observe", "decide", "render", "apply", "report"}
PIXELS = {"name": "pixels", "datatype": "FP32", "shape": [2, 64], "data": [0.0] * 128}


class Receiver:
    """Takes OTLP over HTTP and keeps the spans."""

    def __init__(self):
        self.spans, self.services, self.namespaces = [], set(), set()
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                assert (self.path, self.headers["content-type"]) == ("/v1/traces", "application/x-protobuf")
                request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
                for resource in request.resource_spans:
                    about = attributes(resource.resource)
                    receiver.services.add((about["service.name"], about["service.instance.id"]))
                    receiver.namespaces.add(about.get("k8s.namespace.name"))
                    for scope in resource.scope_spans:
                        receiver.spans.extend(scope.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer((HOST, 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.endpoint = f"http://{HOST}:{self.server.server_port}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def children(self, parent) -> list:
        return [span for span in self.spans if span.parent_span_id == parent.span_id]


def attributes(span) -> dict[str, str | int]:
    """Of a span or a resource."""
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in span.attributes}


@pytest.fixture
def receiver():
    """What the operator sends its traces to, for the time of the test."""
    made = Receiver()
    set_endpoint(f"OTEL_EXPORTER_OTLP_ENDPOINT={made.endpoint}")
    yield made
    set_endpoint("OTEL_EXPORTER_OTLP_ENDPOINT-")
    made.close()


@pytest.fixture
def collector():
    """What models send their traces to."""
    made = Receiver()
    yield made
    made.close()


def set_endpoint(change: str) -> None:
    SYSTEM.kubectl("set", "env", "deployment/ortolan", change)
    rolled_out()


def test_a_reconcile_is_a_trace_of_five_verbs_and_their_requests(namespace, store, digits, receiver):
    namespace.apply(manifest("digits", store.add("one.onnx", digits), replicas=1))
    namespace.wait_served("digits")

    def first():
        """The reconcile that made the Deployment, once all of it has come."""
        for reconcile in [span for span in receiver.spans if span.name == "reconcile"]:
            verbs = {span.name: span for span in receiver.children(reconcile)}
            about = attributes(reconcile)
            if VERBS <= verbs.keys() and (about["namespace"], about["name"]) == (namespace.name, "digits"):
                calls = [attributes(call) for call in receiver.children(verbs["apply"])]
                if ("patch", "deployments") in [(call["verb"], call["resource"]) for call in calls]:
                    return reconcile, verbs, calls
        return None

    # Spans are sent every five seconds.
    reconcile, verbs, calls = wait_for("the trace of the first reconcile", first, 30)
    assert not reconcile.parent_span_id
    assert all(span.trace_id == reconcile.trace_id for span in verbs.values())
    inside = lambda span: reconcile.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano <= reconcile.end_time_unix_nano
    assert all(inside(span) for span in verbs.values())
    assert {call["code"] for call in calls} <= {"200", "201", "404"}
    written = [attributes(call) for call in receiver.children(verbs["report"])]
    assert ("patch", "modeldeployments/status") in [(call["verb"], call["resource"]) for call in written]
    ((service, instance),) = receiver.services
    assert service == "ortolan" and instance.startswith("ortolan-")


def test_a_request_is_a_part_of_its_clients_trace(namespace, store, digits, collector):
    uri = store.add("one.onnx", digits)
    traced = lambda endpoint: manifest("digits", uri, server={"tracing": {"endpoint": endpoint, "sampleRatio": "0"}, "requestLog": {"sampleRatio": "1"}})
    with pytest.raises(KubectlError, match="must not hold a user name or password"):
        namespace.apply(traced("http://user:word@collector:4318"))
    namespace.apply(traced(collector.endpoint))
    namespace.wait_served("digits")
    (pod,) = [pod["metadata"]["name"] for pod in namespace.pods("digits")]
    address = namespace.address("digits")
    trace, caller = secrets.token_hex(16), secrets.token_hex(8)

    def rest(name: str, **headers: str) -> None:
        answer = httpx.post(f"http://{address}/v2/models/digits/infer", json={"id": name, "inputs": [PIXELS]}, headers=headers)
        assert answer.status_code == 200, answer.text

    rest("alone")
    rest("unsampled", traceparent=f"00-{trace}-{caller}-00")
    rest("by-rest", traceparent=f"00-{trace}-{caller}-01")
    tensor = tritonclient.grpc.InferInput("pixels", [2, 64], "FP32")
    tensor.set_data_from_numpy(np.zeros((2, 64), dtype=np.float32))
    client = tritonclient.grpc.InferenceServerClient(f"{address}:8081")
    client.infer("digits", [tensor], request_id="by-grpc", headers={"traceparent": f"00-{trace}-{caller}-01"})

    def requests() -> dict:
        return {attributes(span)["ortolan.request.id"]: span for span in list(collector.spans) if "ortolan.request.id" in attributes(span)}

    # Spans are sent every five seconds.
    wait_for("the spans of both requests", lambda: {"by-rest", "by-grpc"} <= requests().keys(), 30)
    assert requests().keys() == {"by-rest", "by-grpc"}, "nobody asked for the others"
    revision = namespace.status("digits")["stable"]["revision"]
    for name, protocol in [("by-rest", "rest"), ("by-grpc", "grpc")]:
        span = requests()[name]
        assert (span.trace_id.hex(), span.parent_span_id.hex()) == (trace, caller)
        told = attributes(span)
        print(f"\n{span.name}: {told}")
        assert (told["ortolan.model.name"], told["ortolan.model.version"]) == ("digits", revision)
        assert (told["ortolan.protocol"], told["ortolan.outcome"], told["ortolan.request.rows"]) == (protocol, "completed", 2)
        steps = {step.name: step for step in collector.children(span)}
        assert steps.keys() == {"parse", "queue", "execute", "write"}
        batch = attributes(steps["execute"])
        assert (batch["ortolan.batch.rows"], batch["ortolan.batch.requests"]) == (2, 1)
    assert (collector.services, collector.namespaces) == ({("digits", pod)}, {namespace.name})

    lines = [line for line in namespace.kubectl("logs", pod).splitlines() if "total_us=" in line]
    for name, told in [("alone", ""), ("unsampled", trace), ("by-rest", trace), ("by-grpc", trace)]:
        (line,) = [line for line in lines if f'id="{name}"' in line]
        assert told in line
    assert len(lines) == 4, lines
