"""TLS and certificates of clients, as curl and Triton's client for gRPC use them."""

import json
import pathlib
import subprocess

import numpy as np
import pytest
import tritonclient.grpc

from server import MODELS, Server, wait_for

BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 64], "data": [0.5] * 64}]})


def openssl(*arguments: str | pathlib.Path):
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=60)


class Authority:
    """Signs certificates, each with its key in a folder laid out as a Secret of TLS is."""

    def __init__(self, folder: pathlib.Path, name: str):
        self.folder, self.file, self._key = folder, folder / "ca.crt", folder / "ca.key"
        folder.mkdir(parents=True)
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                "-subj", f"/CN={name}", "-keyout", self._key, "-out", self.file)  # fmt: skip

    def sign(self, folder: pathlib.Path, name: str) -> pathlib.Path:
        folder.mkdir(exist_ok=True)
        request, extensions, made = folder / "request", folder / "extensions", folder / "new"
        openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}",
                "-keyout", folder / "tls.key", "-out", request)  # fmt: skip
        extensions.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n")
        openssl("x509", "-req", "-in", request, "-CA", self.file, "-CAkey", self._key, "-CAcreateserial", "-days", "1",
                "-extfile", extensions, "-out", made)  # fmt: skip
        made.rename(folder / "tls.crt")
        return folder


def curl(server: Server, *options: str | pathlib.Path) -> subprocess.CompletedProcess:
    command = ["curl", "--silent", "--show-error", "--fail", "--data", BODY, *options, f"https://{server.http}/v2/models/mlp/infer"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def by_grpc(server: Server, authority: Authority, certificate: pathlib.Path | None = None) -> np.ndarray:
    files = {"private_key": str(certificate / "tls.key"), "certificate_chain": str(certificate / "tls.crt")} if certificate else {}
    client = tritonclient.grpc.InferenceServerClient(server.grpc, ssl=True, root_certificates=str(authority.file), **files)
    tensor = tritonclient.grpc.InferInput("x", [1, 64], "FP32")
    tensor.set_data_from_numpy(np.full((1, 64), 0.5, np.float32))
    return client.infer("mlp", [tensor], client_timeout=20).as_numpy("y")


@pytest.fixture
def authority(tmp_path) -> Authority:
    return Authority(tmp_path / "authority", "servers")


@pytest.fixture
def secure(tmp_path, authority):
    """Starts a server with a certificate, and more flags."""
    running = []

    def start(*flags: str | pathlib.Path) -> Server:
        folder = authority.sign(tmp_path / "server", "first")
        running.append(Server("mlp", MODELS / "mlp.onnx", tmp_path / "log", "--tls-dir", folder, *flags))
        return running[-1]

    yield start
    for server in running:
        server.stop()


def test_rest_and_grpc_over_tls_and_nothing_without(secure, authority):
    server = secure()
    for version in ["--http1.1", "--http2"]:
        answer = curl(server, "--cacert", authority.file, version, "--write-out", "%{stderr}%{http_version}")
        assert json.loads(answer.stdout)["outputs"][0]["shape"] == [1, 10], answer.stderr
        assert answer.stderr == version.removeprefix("--http")
    np.testing.assert_allclose(by_grpc(server, authority).sum(), 1, rtol=1e-5)
    assert "certificate" in curl(server).stderr, "an authority that nobody knows"
    plain = subprocess.run(["curl", "--silent", "--fail", f"http://{server.http}/v2/health/live"], timeout=60, check=False)
    assert plain.returncode != 0
    # The operator and the kubelet look at this port as before.
    subprocess.run(["curl", "--silent", "--fail", "--output", "/dev/null", f"http://{server.ops}/stats"], timeout=60, check=True)


def test_clients_show_their_certificate_where_it_is_wanted(secure, authority, tmp_path):
    of_clients, strangers = Authority(tmp_path / "clients", "clients"), Authority(tmp_path / "strangers", "strangers")
    server = secure("--tls-client-ca-dir", of_clients.folder)
    own, other = of_clients.sign(tmp_path / "own", "client"), strangers.sign(tmp_path / "other", "client")
    shown = lambda folder: ("--cert", folder / "tls.crt", "--key", folder / "tls.key")  # noqa: E731
    assert curl(server, "--cacert", authority.file, *shown(own)).returncode == 0
    assert curl(server, "--cacert", authority.file, *shown(other)).returncode != 0
    assert curl(server, "--cacert", authority.file).returncode != 0
    np.testing.assert_allclose(by_grpc(server, authority, own).sum(), 1, rtol=1e-5)
    with pytest.raises(tritonclient.grpc.InferenceServerException):
        by_grpc(server, authority)


def test_a_new_certificate_counts_without_a_restart(secure, authority, tmp_path):
    server = secure()
    other = Authority(tmp_path / "next", "next")
    assert curl(server, "--cacert", other.file).returncode != 0
    other.sign(tmp_path / "server", "second")
    wait_for("the new certificate is shown", lambda: curl(server, "--cacert", other.file).returncode == 0, 30)
    assert curl(server, "--cacert", authority.file).returncode != 0
