"""A client of the Kubernetes API of a hundred lines: this harness must not be what is slow."""

import http.client
import json
import socket
import ssl
import threading
import urllib.parse


class ApiError(Exception):
    """The API server's refusal."""


class LostConnection(ApiError):
    """No answer came."""


class Api:
    """One connection a thread."""

    def __init__(self, server: str, token: str):
        url = urllib.parse.urlparse(server)
        self.host, self.port, self.token = url.hostname, url.port, token
        self.local = threading.local()

    def connect(self, timeout: float = 60) -> http.client.HTTPSConnection:
        context = ssl._create_unverified_context()  # noqa: S323 - nobody else is in this network namespace
        return http.client.HTTPSConnection(self.host, self.port, context=context, timeout=timeout)

    def headers(self, **more) -> dict:
        return {"Authorization": f"Bearer {self.token}", "Accept": "application/json", **more}

    def call(self, method: str, path: str, body=None, kind: str = "application/json", text: bool = False):
        """One call; what does no harm twice is tried twice, as the API server may close a connection that rested."""
        try:
            return self._call(method, path, body, kind, text)
        except LostConnection:
            if method == "POST":
                raise
            return self._call(method, path, body, kind, text)

    def _call(self, method: str, path: str, body, kind: str, text: bool):
        if getattr(self.local, "connection", None) is None:
            self.local.connection = self.connect()
        connection = self.local.connection
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, self.headers(**{"Content-Type": kind}))
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            self.local.connection = None
            raise LostConnection(f"{method} {path}: {error!r}") from error
        if response.status >= 300:
            raise ApiError(f"{method} {path}: {response.status} {answer[:500]!r}")
        return answer.decode() if text else json.loads(answer)

    def get(self, path: str, **options):
        return self.call("GET", path, **options)

    def post(self, path: str, body: dict):
        return self.call("POST", path, body)

    def merge(self, path: str, body: dict):
        return self.call("PATCH", path, body, "application/merge-patch+json")

    def count(self, path: str, selector: str = "") -> int:
        """How many objects there are. With a selector all are listed, in pages."""
        if not selector:
            answer = self.get(f"{path}?limit=1")
            return len(answer["items"]) + answer["metadata"].get("remainingItemCount", 0)
        number, more = 0, ""
        while True:
            answer = self.get(f"{path}?labelSelector={urllib.parse.quote(selector)}&limit=1000&continue={more}")
            number += len(answer["items"])
            more = answer["metadata"].get("continue", "")
            if not more:
                return number

    def watch(self, path: str, version: str) -> "Watch":
        return Watch(self, path, version)


class Watch:
    """The events of a watch, `(type, object)`, also over its ends; another thread may end it for good."""

    def __init__(self, api: Api, path: str, version: str):
        self.api, self.path, self.version = api, path, version
        self.ended = False
        self._connect()

    def _connect(self):
        self.connection = self.api.connect(timeout=None)
        query = f"{self.path}?watch=true&resourceVersion={self.version}&allowWatchBookmarks=true"
        self.connection.request("GET", query, headers=self.api.headers())
        self.response = self.connection.getresponse()
        if self.response.status != 200:
            raise ApiError(f"watch {self.path}: {self.response.status} {self.response.read()[:500]!r}")

    def __iter__(self):
        rest = b""
        while not self.ended:
            try:
                chunk = self.response.read1(1 << 20)
            except (OSError, http.client.HTTPException):
                chunk = b""
            if not chunk and not self.ended:
                # Its time was up, or the API server had no patience with a slow reader.
                rest = b""
                self._connect()
                continue
            *lines, rest = (rest + chunk).split(b"\n")
            for line in filter(None, lines):
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise ApiError(f"watch {self.path}: {event['object']}")
                self.version = event["object"]["metadata"]["resourceVersion"]
                if event["type"] != "BOOKMARK":
                    yield event["type"], event["object"]

    def end(self):
        self.ended = True
        self.connection.sock.shutdown(socket.SHUT_RDWR)
