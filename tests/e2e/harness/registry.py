"""A real OCI registry (distribution) that wants a password, as pods see it, and the client that people push with (oras)."""

import json
import os
import pathlib
import socket
import subprocess

from harness.kube import wait_for
from harness.models import HOST

USER = "ml"
PASSWORD = "hush-this-must-not-be-told-either"
# Of the password, by bcrypt, which is what the registry takes.
HASH = "$2b$05$LQbs/2uFtvy./eYvous67eO5So0JTxFCYpWjJzRniinPWQ5TdPXRC"


class Registry:
    """Keeps what is pushed in one folder."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        with socket.socket() as free:
            free.bind((HOST, 0))
            self.address = f"{HOST}:{free.getsockname()[1]}"
        (folder / "users").write_text(f"{USER}:{HASH}\n")
        settings = {
            "version": 0.1,
            "log": {"level": "warn"},
            "storage": {"filesystem": {"rootdirectory": str(folder / "storage")}, "delete": {"enabled": True}},
            "http": {"addr": self.address},
            "auth": {"htpasswd": {"realm": "models", "path": str(folder / "users")}},
        }
        (folder / "registry.yaml").write_text(json.dumps(settings))
        self.log = folder / "registry.log"
        command = [os.environ["REGISTRY"], "serve", str(folder / "registry.yaml")]
        self.process = subprocess.Popen(command, stdout=self.log.open("wb"), stderr=subprocess.STDOUT)
        wait_for("the registry listens", self.listens, 20)

    def listens(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        host, port = self.address.split(":")
        with socket.socket() as client:
            return client.connect_ex((host, int(port))) == 0

    def oras(self, *arguments: str, folder: pathlib.Path | None = None) -> str:
        login = ["--plain-http", "--username", USER, "--password", PASSWORD]
        command = [os.environ["ORAS"], *arguments, *login]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def push(self, name: str, files: dict[str, bytes], paths: list[str] | None = None) -> str:
        """Pushes an artifact of these files, or of folders with them; returns the digest of its manifest."""
        place = self.folder / "pushed"
        for path, content in files.items():
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            (place / path).write_bytes(content)
        told = self.oras("push", "--format", "json", f"{self.address}/{name}", *(paths or files), folder=place)
        return json.loads(told)["digest"]

    def delete(self, name: str) -> None:
        """Deletes a manifest."""
        self.oras("manifest", "delete", "--force", f"{self.address}/{name}")

    def uri(self, name: str) -> str:
        return f"oci+http://{self.address}/{name}"

    def login(self, name: str, password: str = PASSWORD) -> dict:
        """A Secret, as `kubectl create secret docker-registry` makes it."""
        auths = {self.address: {"username": USER, "password": password}}
        data = {".dockerconfigjson": json.dumps({"auths": auths})}
        return {"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/dockerconfigjson", "metadata": {"name": name}, "stringData": data}

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=20)
