"""What EKS puts around a cluster for IAM roles of service accounts: the change that its webhook makes to pods, and a token service
that gives the keys of an S3 server to whoever brings a token that this cluster's API server knows."""

import http.server
import json
import threading
import urllib.parse

from harness.kube import kubectl
from harness.models import HOST
from harness.s3 import S3
from harness.sabotage import Sabotage, add

AUDIENCE = "sts.amazonaws.com"
ROLE = "arn:aws:iam::000000000000:role/model-reader"
MOUNT = "/var/run/secrets/eks.amazonaws.com/serviceaccount"


class TokenService:
    """Answers AssumeRoleWithWebIdentity as AWS does. `trusted`: the user (system:serviceaccount:…) that the role trusts."""

    def __init__(self, s3: S3, trusted: str):
        self.s3, self.trusted = s3, trusted
        # The users that asked, or why they are none.
        self.asked: list[str] = []
        service = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
                query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query) | urllib.parse.parse_qs(body)
                status, text = service.answer({name: values[0] for name, values in query.items()})
                self.send_response(status)
                self.send_header("Content-Type", "text/xml")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer((HOST, 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server.server_port}"

    def answer(self, query: dict[str, str]) -> tuple[int, str]:
        user = review(query.get("WebIdentityToken", ""))
        self.asked.append(user)
        if (query.get("Action"), query.get("RoleArn"), user) != ("AssumeRoleWithWebIdentity", ROLE, self.trusted):
            error = "<Type>Sender</Type><Code>AccessDenied</Code><Message>Not authorized to perform sts:AssumeRoleWithWebIdentity</Message>"
            return 403, f"<ErrorResponse><Error>{error}</Error></ErrorResponse>"
        keys = self.s3.keys()
        given = {
            "AccessKeyId": keys["AWS_ACCESS_KEY_ID"],
            "SecretAccessKey": keys["AWS_SECRET_ACCESS_KEY"],
            # versitygw's own keys are not temporary: a token beside them is refused.
            "SessionToken": "",
            "Expiration": "2999-01-01T00:00:00Z",
        }
        credentials = "".join(f"<{name}>{value}</{name}>" for name, value in given.items())
        result = f"<AssumeRoleWithWebIdentityResult><Credentials>{credentials}</Credentials></AssumeRoleWithWebIdentityResult>"
        return 200, f"<AssumeRoleWithWebIdentityResponse>{result}</AssumeRoleWithWebIdentityResponse>"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def review(token: str) -> str:
    """Whose token it is, as the API server says."""
    asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token, "audiences": [AUDIENCE]}}
    status = json.loads(kubectl("create", "--output", "json", "--filename", "-", stdin=json.dumps(asked)))["status"]
    return status["user"]["username"] if status.get("authenticated") else f"nobody: {status.get('error')}"


def give_identity(sabotage: Sabotage, model: str, sts: TokenService) -> None:
    """What the webhook of EKS adds to the pods of an annotated ServiceAccount: a token for AWS, and where it is."""
    token = {"serviceAccountToken": {"audience": AUDIENCE, "expirationSeconds": 3600, "path": "token"}}
    environment = {"AWS_ROLE_ARN": ROLE, "AWS_WEB_IDENTITY_TOKEN_FILE": f"{MOUNT}/token", "AWS_ENDPOINT_URL_STS": sts.url}
    sabotage.change(
        model,
        add("/spec/volumes/-", {"name": "aws-iam-token", "projected": {"sources": [token]}}),
        add("/spec/containers/0/volumeMounts/-", {"name": "aws-iam-token", "mountPath": MOUNT, "readOnly": True}),
        add("/spec/containers/0/env", [{"name": name, "value": value} for name, value in environment.items()]),
    )
