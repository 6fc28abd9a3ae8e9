"""Certificates, as a company's own authority or cert-manager makes them."""

import base64
import pathlib
import subprocess

KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]


def openssl(*arguments: str | pathlib.Path) -> None:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


class Certificate:
    """A certificate and its key, each in a file."""

    def __init__(self, folder: pathlib.Path):
        self.certificate, self.key = folder / "tls.crt", folder / "tls.key"


class Authority:
    """Signs certificates of servers and clients."""

    def __init__(self, folder: pathlib.Path, name: str):
        self.folder, self.file, self._key = folder / name, folder / name / "ca.crt", folder / name / "ca.key"
        self.folder.mkdir()
        openssl("req", "-x509", *KEY, "-days", "2", "-subj", f"/CN={name}", "-keyout", self._key, "-out", self.file)

    def sign(self, name: str, *addresses: str) -> Certificate:
        """For a server at these addresses, or for a client."""
        folder = self.folder / name
        folder.mkdir()
        made = Certificate(folder)
        request, extensions = folder / "request", folder / "extensions"
        openssl("req", *KEY, "-subj", f"/CN={name}", "-keyout", made.key, "-out", request)
        names = ",".join([f"DNS:{name}", *(f"IP:{address}" for address in addresses)])
        extensions.write_text(f"subjectAltName={names}\nextendedKeyUsage=serverAuth,clientAuth\n")
        openssl("x509", "-req", "-in", request, "-CA", self.file, "-CAkey", self._key, "-CAcreateserial", "-days", "1",
                "-extfile", extensions, "-out", made.certificate)  # fmt: skip
        return made

    def secret(self, name: str, certificate: Certificate) -> dict:
        """A Secret as cert-manager writes it."""
        files = {"tls.crt": certificate.certificate, "tls.key": certificate.key, "ca.crt": self.file}
        # Not stringData: what goes from it stays in the Secret.
        data = {key: base64.b64encode(file.read_bytes()).decode() for key, file in files.items()}
        return {"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": {"name": name}, "data": data}
