"""The traces of reconciles, as a receiver of OTLP gets them from the operator."""

import http.server
import threading

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from harness.kube import manifest, wait_for
from harness.models import HOST
from harness.operator import SYSTEM, rolled_out

VERBS = {"observe", "decide", "render", "apply", "report"}


class Receiver:
    """Takes OTLP over HTTP and keeps the spans."""

    def __init__(self):
        self.spans, self.services = [], set()
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                assert (self.path, self.headers["content-type"]) == ("/v1/traces", "application/x-protobuf")
                request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
                for resource in request.resource_spans:
                    attributes = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
                    receiver.services.add((attributes["service.name"], attributes["service.instance.id"]))
                    for scope in resource.scope_spans:
                        receiver.spans.extend(scope.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer((HOST, 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def children(self, parent) -> list:
        return [span for span in self.spans if span.parent_span_id == parent.span_id]


def attributes(span) -> dict[str, str]:
    return {pair.key: pair.value.string_value for pair in span.attributes}


@pytest.fixture
def receiver():
    """What the operator sends its traces to, for the time of the test."""
    made = Receiver()
    set_endpoint(f"OTEL_EXPORTER_OTLP_ENDPOINT=http://{HOST}:{made.server.server_port}")
    yield made
    set_endpoint("OTEL_EXPORTER_OTLP_ENDPOINT-")
    made.server.shutdown()
    made.server.server_close()


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
