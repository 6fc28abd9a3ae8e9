"""A real S3 server (versitygw) on a folder, as pods see it."""

import os
import pathlib
import socket
import subprocess

from harness.kube import wait_for
from harness.models import HOST

REGION = "eu-test-1"
ACCESS_KEY = "AKIAORTOLANTEST00001"
SECRET_KEY = "hush-this-must-not-be-told-anywhere"


class S3:
    """Serves the buckets of one folder; they and their objects are folders and files."""

    def __init__(self, folder: pathlib.Path):
        self.buckets = folder / "buckets"
        self.buckets.mkdir()
        (folder / "accounts").mkdir()
        with socket.socket() as free:
            free.bind((HOST, 0))
            self.port = free.getsockname()[1]
        self.log = folder / "versitygw.log"
        # fmt: off
        self.process = subprocess.Popen(
            [
                os.environ["VERSITYGW"], "--port", f"{HOST}:{self.port}", "--region", REGION, "--quiet",
                "--iam-dir", str(folder / "accounts"),  # without it, unknown access keys are told otherwise than S3 does
                "posix", "--nometa", "--disableotmp", str(self.buckets),
            ],
            env={"ROOT_ACCESS_KEY_ID": ACCESS_KEY, "ROOT_SECRET_ACCESS_KEY": SECRET_KEY, "PATH": os.environ["PATH"]},
            stdout=self.log.open("wb"),
            stderr=subprocess.STDOUT,
        )
        # fmt: on
        wait_for("versitygw listens", self.listens, 20)

    def listens(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with socket.socket() as client:
            return client.connect_ex((HOST, self.port)) == 0

    @property
    def endpoint(self) -> str:
        return f"http://{HOST}:{self.port}"

    def put(self, bucket: str, key: str, content: bytes) -> str:
        """Makes or replaces an object at once; returns its uri."""
        path = self.buckets / bucket / key
        path.parent.mkdir(parents=True, exist_ok=True)
        part = self.buckets.parent / "part"
        part.write_bytes(content)
        part.rename(path)
        return f"s3://{bucket}/{key}"

    def keys(self, **other: str) -> dict[str, str]:
        """The keys of a Secret that lets its bearer in, with changes; None takes a key away."""
        keys = {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": REGION,
            "AWS_ENDPOINT_URL": self.endpoint,
        } | other
        return {key: value for key, value in keys.items() if value is not None}

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=20)


def secret(name: str, keys: dict[str, str]) -> dict:
    """A Secret."""
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": keys}
