"""Models in object stores as other makers write them: Microsoft's Azurite, which checks every signature, and fake-gcs-server."""

import base64
import contextlib
import datetime
import json
import os
import pathlib
import re
import secrets
import socket
import subprocess
import urllib.request

import pytest
from azure.storage.blob import BlobSasPermissions, BlobServiceClient, generate_blob_sas
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from server import MODELS, Server, wait_for

ACCOUNT, CONTAINER, BLOB = "mlmodels", "models", "mlp/1/model.onnx"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def running(port: int, *command: str | pathlib.Path, **environment: str):
    """A program, from when it listens."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | environment)
    try:

        def listens() -> bool:
            assert process.poll() is None, f"{command[0]} has ended"
            with socket.socket() as client:
                return client.connect_ex(("127.0.0.1", port)) == 0

        wait_for(f"{command[0]} listens", listens, 60)
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Azure:
    """A storage account with one model in it."""

    def __init__(self, port: int, key: str):
        self.key, self.endpoint = key, f"http://127.0.0.1:{port}/{ACCOUNT}"
        service = BlobServiceClient(self.endpoint, credential={"account_name": ACCOUNT, "account_key": key})
        with service, service.create_container(CONTAINER) as container:
            container.upload_blob(BLOB, (MODELS / "mlp.onnx").read_bytes())

    def keys(self, **keys: str) -> dict[str, str]:
        return {"AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT, "AZURE_STORAGE_ENDPOINT": self.endpoint} | keys

    def signature(self, lasts: datetime.timedelta, **permissions: bool) -> str:
        """A shared access signature."""
        return generate_blob_sas(
            ACCOUNT, CONTAINER, BLOB, account_key=self.key, permission=BlobSasPermissions(**permissions),
            expiry=datetime.datetime.now(datetime.UTC) + lasts,
        )  # fmt: skip


@pytest.fixture(scope="module")
def azure(tmp_path_factory):
    folder, port, key = tmp_path_factory.mktemp("azurite"), free_port(), base64.b64encode(secrets.token_bytes(64)).decode()
    command = [f"{os.environ['AZURITE']}/azurite-blob", "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", folder,
               "--skipApiVersionCheck", "--disableTelemetry", "--silent"]  # fmt: skip
    with running(port, *command, AZURITE_ACCOUNTS=f"{ACCOUNT}:{key}"):
        yield Azure(port, key)


def secret(folder: pathlib.Path, keys: dict[str, str]) -> pathlib.Path:
    """A folder as a Secret is mounted."""
    folder.mkdir()
    for name, value in keys.items():
        (folder / name).write_text(value)
    return folder


def serves(uri: str, keys: dict[str, str], folder: pathlib.Path):
    """A server fetches the model, and answers with it."""
    flags = ["--credentials-dir", str(secret(folder / "secret", keys)), "--cache-dir", str(folder / "cache")]
    server = Server("mlp", uri, folder / "log", *flags)
    try:
        body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 64], "data": [0.5] * 64}]}).encode()
        request = urllib.request.Request(f"http://{server.http}/v2/models/mlp/infer", body)
        with urllib.request.urlopen(request, timeout=20) as response:
            assert len(json.load(response)["outputs"][0]["data"]) == 10
    finally:
        server.stop()


def refusal(uri: str, keys: dict[str, str], folder: pathlib.Path) -> tuple[str, str]:
    """What a server says in the end that does not get its model: reason and sentence. None of the secrets is in anything that it says."""
    message = folder / "message"
    message.touch()
    command = [os.environ["SERVER"], "serve", "--name", "mlp", "--model", uri, "--address", "127.0.0.1", "--http-port", "0", "--grpc-port", "0",
               "--ops-port", "0", "--credentials-dir", secret(folder / "secret", keys), "--cache-dir", folder / "cache",
               "--termination-message", message]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | {"ORTOLAN_LOG": "trace"}, check=False)
    assert ended.returncode == 1, ended.stderr
    said = ended.stdout + ended.stderr + message.read_text()
    for name, value in keys.items():
        if re.search("KEY$|TOKEN$|json$", name):
            assert value not in said, f"{name} is told"
    found = json.loads(message.read_text())
    return found["reason"], found["message"]


URI = f"az://{CONTAINER}/{BLOB}"
DENIED = "the credentials in the Secret are not accepted"


def test_azure_lets_a_model_in_by_the_accounts_key_and_by_a_shared_access_signature(azure, tmp_path):
    signature = azure.signature(datetime.timedelta(hours=1), read=True)
    for number, keys in enumerate(({"AZURE_STORAGE_ACCOUNT_KEY": azure.key}, {"AZURE_STORAGE_SAS_TOKEN": signature})):
        folder = tmp_path / str(number)
        folder.mkdir()
        serves(URI, azure.keys(**keys), folder)


@pytest.mark.parametrize(
    ("uri", "keys", "reason", "words"),
    [
        (URI, lambda azure: {"AZURE_STORAGE_ACCOUNT_KEY": "aHVzaGh1c2g="}, "SourceForbidden", DENIED),
        (URI, lambda azure: {"AZURE_STORAGE_SAS_TOKEN": azure.signature(-datetime.timedelta(hours=1), read=True)}, "SourceForbidden", DENIED),
        (URI, lambda azure: {"AZURE_STORAGE_SAS_TOKEN": azure.signature(datetime.timedelta(hours=1), write=True)}, "SourceForbidden", DENIED),
        (URI, lambda azure: {}, "SourceForbidden", "is not public"),
        (f"az://{CONTAINER}/mlp/2/model.onnx", lambda azure: {"AZURE_STORAGE_ACCOUNT_KEY": azure.key}, "SourceNotFound", "mlp/2/model.onnx"),
        (f"az://nowhere/{BLOB}", lambda azure: {"AZURE_STORAGE_ACCOUNT_KEY": azure.key}, "SourceNotFound", "container 'nowhere'"),
    ],
    ids=["another key", "an expired signature", "a signature for writing", "nobody", "no blob", "no container"],
)
def test_azure_refuses_and_it_is_said_why(azure, tmp_path, uri, keys, reason, words):
    found = refusal(uri, azure.keys(**keys(azure)), tmp_path)
    print(f"\n{found[0]}: {found[1]}")
    assert found[0] == reason and words in found[1], found


@pytest.fixture(scope="module")
def google(tmp_path_factory):
    folder, port = tmp_path_factory.mktemp("gcs"), free_port()
    place = folder / CONTAINER / BLOB
    place.parent.mkdir(parents=True)
    place.write_bytes((MODELS / "mlp.onnx").read_bytes())
    address = f"127.0.0.1:{port}"
    command = [os.environ["FAKE_GCS_SERVER"], "-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory", "-data", folder,
               "-public-host", address, "-external-url", f"http://{address}"]  # fmt: skip
    with running(port, *command):
        yield f"http://{address}"


def account() -> str:
    """The key of a service account, as Google's console gives it."""
    key = rsa.generate_private_key(65537, 2048)
    text = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()
    return json.dumps({"type": "service_account", "project_id": "ml", "private_key_id": "1", "private_key": text,
                       "client_email": "models@ml.iam.gserviceaccount.com", "client_id": "1"})  # fmt: skip


def test_google_lets_a_model_in_with_the_key_of_a_service_account(google, tmp_path):
    serves(f"gs://{CONTAINER}/{BLOB}", {"GOOGLE_BASE_URL": google, "key.json": account()}, tmp_path)


@pytest.mark.parametrize("uri", [f"gs://{CONTAINER}/mlp/2/model.onnx", f"gs://nowhere/{BLOB}"])
def test_google_has_no_such_model_and_it_is_said(google, tmp_path, uri):
    found = refusal(uri, {"GOOGLE_BASE_URL": google, "key.json": account()}, tmp_path)
    print(f"\n{found[0]}: {found[1]}")
    assert found[0] == "SourceNotFound", found
