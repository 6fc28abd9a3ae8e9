"""A source of external metrics, as an adapter for a queue or a Prometheus would be one: what the real autoscaler asks.

The controller manager's HorizontalPodAutoscaler reads external.metrics.k8s.io, which an APIService leads to a web
server of this test. It holds one number.
"""

import datetime
import http.server
import json
import pathlib
import ssl
import subprocess
import threading

from harness.kube import kubectl, wait_for
from harness.models import HOST

GROUP, VERSION, METRIC = "external.metrics.k8s.io", "v1beta1", "waiting"


class ExternalMetrics:
    """Answers every question for the metric `waiting` with `value`."""

    def __init__(self, namespace, folder: pathlib.Path):
        self.value = 0
        self.questions = 0
        source = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                body = json.dumps(source._answer(self.path.split("?")[0])).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer((HOST, 0), Handler)
        self.server.socket = self._encrypted(folder).wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self._register(namespace)

    def _answer(self, path: str) -> dict:
        if not path.endswith(f"/{METRIC}"):
            resource = {"name": METRIC, "singularName": "", "namespaced": True, "kind": "ExternalMetricValueList", "verbs": ["get"]}
            return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": f"{GROUP}/{VERSION}", "resources": [resource]}
        self.questions += 1
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        item = {"metricName": METRIC, "metricLabels": {}, "timestamp": now, "value": str(self.value)}
        return {"kind": "ExternalMetricValueList", "apiVersion": f"{GROUP}/{VERSION}", "metadata": {}, "items": [item]}

    def _encrypted(self, folder: pathlib.Path) -> ssl.SSLContext:
        key, certificate = folder / "metrics.key", folder / "metrics.crt"
        made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        subprocess.run([*made, "-subj", "/CN=metrics", "-keyout", key, "-out", certificate], check=True, capture_output=True)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        return context

    def _register(self, namespace) -> None:
        service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "metrics"}, "spec": {"ports": [{"port": 443, "name": "https"}]}}
        place = {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": "metrics", "labels": {"kubernetes.io/service-name": "metrics"}},
            "addressType": "IPv4",
            "ports": [{"name": "https", "port": self.server.server_port}],
            "endpoints": [{"addresses": [HOST]}],
        }
        for made in (service, place):
            namespace.apply(made)
        registered = {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": f"{VERSION}.{GROUP}"},
            "spec": {
                "group": GROUP, "version": VERSION, "groupPriorityMinimum": 100, "versionPriority": 100, "insecureSkipTLSVerify": True,
                "service": {"name": "metrics", "namespace": namespace.name, "port": 443},
            },
        }
        kubectl("apply", "--filename", "-", stdin=json.dumps(registered))
        wait_for("the metrics are registered", self._available, 60)

    def _available(self) -> bool:
        service = json.loads(kubectl("get", "apiservice", f"{VERSION}.{GROUP}", "--output", "json"))
        conditions = service.get("status", {}).get("conditions", [])
        return any(found["type"] == "Available" and found["status"] == "True" for found in conditions)

    def close(self) -> None:
        """A registration that leads nowhere would keep every namespace of the cluster from being deleted."""
        kubectl("delete", "apiservice", f"{VERSION}.{GROUP}", "--ignore-not-found")
        self.server.shutdown()
        self.server.server_close()
