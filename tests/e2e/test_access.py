"""Who may ask a model: keys, TLS, certificates of clients, limits; and a model that remembers its answers."""

import base64
import collections
import datetime
import hashlib
import json
import secrets
import ssl

import httpx
import numpy as np
import pytest
import tritonclient.grpc

from harness.authority import Authority, Certificate
from harness.kube import Namespace, manifest, wait_for
from harness.load import Load, failures

BODY = {"inputs": [{"name": "pixels", "datatype": "FP32", "shape": [1, 64], "data": [0.0] * 64}]}


def keys_of(**clients: str) -> dict:
    """A Secret with the hashes of the clients' keys."""
    hashes = {client: hashlib.sha256(key.encode()).hexdigest() for client, key in clients.items()}
    # Not stringData: what goes from it stays in the Secret.
    data = {client: base64.b64encode(hash.encode()).decode() for client, hash in hashes.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "clients"}, "data": data}


def test_only_clients_with_a_key_are_answered_and_repeated_questions_from_memory(namespace, store, digits):
    red, blue = secrets.token_hex(16), secrets.token_hex(16)
    namespace.apply(keys_of(red=red))
    namespace.apply(manifest("digits", store.add("one.onnx", digits), server={"apiKeysSecret": "clients", "responseCache": "1Mi"}))
    namespace.wait_served("digits")
    url = namespace.infer_url("digits")
    ask = lambda key: httpx.post(url, json=BODY, headers={"authorization": f"Bearer {key}"})

    refused = httpx.post(url, json=BODY)
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    print("\n" + refused.text)
    assert ask(blue).status_code == 401
    first, second = ask(red), ask(red)
    assert first.status_code == second.status_code == 200
    assert first.json()["outputs"] == second.json()["outputs"]
    pod = namespace.pods("digits")[0]["metadata"]["name"]
    metrics = namespace.kubectl("get", "--raw", f"/api/v1/namespaces/{namespace.name}/pods/{pod}:9090/proxy/metrics")
    lookups = [line for line in metrics.splitlines() if line.startswith("ortolan_server_response_cache_lookups")]
    assert sorted(line.rpartition(" ")[2] for line in lookups) == ["1", "1"], lookups

    # Keys come and go without a new pod. The kubelet looks at a pod's volumes when the pod changes, or every minute or so.
    namespace.apply(keys_of(blue=blue))
    namespace.kubectl("annotate", "pod", pod, "look=again")
    wait_for("the new key counts", lambda: ask(blue).status_code == 200, 30)
    assert ask(red).status_code == 401
    assert [found["metadata"]["name"] for found in namespace.pods("digits")] == [pod]
    told = json.dumps(namespace.get("modeldeployment", "digits")) + namespace.kubectl("logs", pod)
    assert red not in told and blue not in told


PLAIN = {"http": 80, "grpc": 8081}
TLS = {"https": 443, "grpcs": 8443}


def trust(authority: Authority, client: Certificate | None = None) -> ssl.SSLContext:
    """What a client believes, and shows of itself."""
    context = ssl.create_default_context(cafile=str(authority.file))
    if client:
        context.load_cert_chain(client.certificate, client.key)
    return context


def by_rest(address: str, context: ssl.SSLContext) -> httpx.Response:
    """An answer over a connection of its own."""
    return httpx.post(f"https://{address}/v2/models/digits/infer", json=BODY, verify=context, timeout=20)


def by_grpc(address: str, authority: Authority | None = None, client: Certificate | None = None) -> np.ndarray:
    """The label of an empty image; over TLS where there is an authority."""
    files = {"private_key": str(client.key), "certificate_chain": str(client.certificate)} if client else {}
    secure = {"ssl": True, "root_certificates": str(authority.file), **files} if authority else {}
    server = tritonclient.grpc.InferenceServerClient(f"{address}:{TLS['grpcs'] if authority else PLAIN['grpc']}", **secure)
    tensor = tritonclient.grpc.InferInput("pixels", [1, 64], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 64), np.float32))
    try:
        return server.infer("digits", [tensor], client_timeout=20).as_numpy("label")
    finally:
        server.close()


def ports(namespace: Namespace) -> dict[str, int]:
    return {port["name"]: port["port"] for port in namespace.get("service", "digits")["spec"]["ports"]}


def servers(namespace: Namespace) -> set[str]:
    return {pod["metadata"]["uid"] for pod in namespace.pods("digits")}


def look_again(namespace: Namespace) -> None:
    """The kubelet looks at a pod's volumes when the pod changes, or every minute or so."""
    for pod in namespace.pods("digits"):
        namespace.kubectl("annotate", "pod", pod["metadata"]["name"], f"look={secrets.token_hex(4)}")


def test_tls_by_a_secret_whose_certificate_is_renewed_and_certificates_of_clients(namespace, store, digits, tmp_path):
    uri = store.add("one.onnx", digits)
    # Without TLS first: the Service's address stands in the certificate.
    namespace.apply(manifest("digits", uri))
    namespace.wait_served("digits")
    address = namespace.address("digits")
    assert (namespace.status("digits")["url"], ports(namespace)) == (f"http://digits.{namespace.name}.svc", PLAIN)
    first, second, strangers = (Authority(tmp_path, name) for name in ["first", "second", "strangers"])
    server = f"digits.{namespace.name}.svc"
    namespace.apply(first.secret("web", first.sign(server, address)))
    tls = {"certificateSecret": "web"}
    namespace.apply(manifest("digits", uri, server={"tls": tls}))
    namespace.wait_served("digits")
    assert namespace.status("digits")["url"] == f"https://{server}"
    wait_for("the ports without TLS are gone with the last server", lambda: ports(namespace) == TLS, 60)

    assert by_rest(address, trust(first)).status_code == 200
    assert by_grpc(address, first).shape == (1,)
    with pytest.raises(httpx.TransportError, match="certificate"):
        by_rest(address, trust(second))
    with pytest.raises(tritonclient.grpc.InferenceServerException):
        by_grpc(address, second)
    with pytest.raises(httpx.TransportError):
        httpx.post(f"http://{address}/v2/models/digits/infer", json=BODY, timeout=5)
    # The operator reads numbers, and the kubelet probes, as before.
    wait_for("numbers are read", lambda: "p99" in namespace.status("digits")["variants"][0].get("latency", {}), 30)

    # Another certificate, of another authority, without another pod.
    before = servers(namespace)
    namespace.apply(second.secret("web", second.sign(server, address)))
    look_again(namespace)

    def is_renewed() -> bool:
        try:
            return by_rest(address, trust(second)).status_code == 200
        except httpx.TransportError:
            return False

    wait_for("the new certificate is shown", is_renewed, 90)
    assert by_grpc(address, second).shape == (1,)
    assert servers(namespace) == before

    # Clients must show a certificate: the authority's file in a Secret that holds more, of which nothing else is mounted.
    of_clients = Authority(tmp_path, "clients")
    own, other = of_clients.sign("own"), strangers.sign("other")
    namespace.apply(of_clients.secret("clients", of_clients.sign("unused")))
    namespace.apply(manifest("digits", uri, server={"tls": {**tls, "clientCASecret": "clients"}}))
    namespace.wait_served("digits")
    wait_for("the servers that ask for none are gone", lambda: not servers(namespace) & before, 60)
    assert by_rest(address, trust(second, own)).status_code == 200
    assert by_grpc(address, second, own).shape == (1,)
    for client in [None, other]:
        with pytest.raises(httpx.TransportError):
            by_rest(address, trust(second, client))
        with pytest.raises(tritonclient.grpc.InferenceServerException):
            by_grpc(address, second, client)
    (pod,) = namespace.pods("digits")
    mounted = {volume["name"]: volume["secret"] for volume in pod["spec"]["volumes"] if "secret" in volume}
    keys = {name: [item["key"] for item in secret["items"]] for name, secret in mounted.items()}
    assert keys == {"tls": ["tls.crt", "tls.key"], "client-ca": ["ca.crt"]}


def told_to_stop(namespace: Namespace, seen: dict[str, float]) -> None:
    """Adds when each pod of the model that is on its way out was told so, in seconds since the epoch, rounded down."""
    for pod in namespace.items("pods", "--selector", "ortolan.dev/model=digits"):
        ends = pod["metadata"].get("deletionTimestamp")
        if ends:
            begun = datetime.datetime.fromisoformat(ends).timestamp() - pod["metadata"]["deletionGracePeriodSeconds"]
            seen.setdefault(pod["metadata"]["uid"], begun)


def change(namespace: Namespace, made: dict, expected: dict[str, int]) -> float:
    """Applies what makes servers of the other kind, until the Service has only their ports; when the last one of the old kind was
    told to stop."""
    old, stopped, seen_both = servers(namespace), {}, []
    namespace.apply(made)

    def is_done() -> bool:
        told_to_stop(namespace, stopped)
        there = ports(namespace)
        seen_both.append(there == PLAIN | TLS)
        return there == expected

    wait_for(f"the Service has {expected}", is_done, 120, every=0.1)
    namespace.wait_served("digits")
    assert any(seen_both), "the ports of both kinds were never there together"
    assert old <= stopped.keys(), "the ports went before the servers"
    return max(stopped[uid] for uid in old)


def judge(what: str, load: Load, left: float) -> None:
    """Ends a load. None of the requests may have failed that were sent before the last server of their kind was told to stop."""
    load.stop()
    answers = load.answers()
    while_there = [answer for answer in answers if answer.sent < left]
    print(f"\n{what}: {len(while_there)} requests while there were servers, failed: {failures(while_there) or 'none'}; "
          f"afterwards: {failures([answer for answer in answers if answer.sent >= left]) or 'none'}")  # fmt: skip
    assert len(while_there) > 50 and failures(while_there) == []


def test_from_plain_to_tls_and_back_no_request_is_lost_while_servers_of_its_kind_live(namespace, store, digits, tmp_path):
    """What is promised: as long as a server of a kind is there and was not told to stop, each request to the ports of this kind is
    answered by a server of this kind."""
    uri = store.add("one.onnx", digits)
    plain = manifest("digits", uri, replicas=3)
    namespace.apply(plain)
    namespace.wait_served("digits")
    address = namespace.address("digits")
    authority, body = Authority(tmp_path, "authority"), json.dumps(BODY).encode()
    namespace.apply(authority.secret("web", authority.sign(f"digits.{namespace.name}.svc", address)))
    path = "v2/models/digits/infer"
    on_plain = Load(f"http://{address}/{path}", body, rate=50, seconds=300)
    loads = [on_plain]
    try:
        left = change(namespace, manifest("digits", uri, replicas=3, server={"tls": {"certificateSecret": "web"}}), TLS)
        judge("to TLS, without it", on_plain, left)

        on_tls = Load(f"https://{address}/{path}", body, rate=50, seconds=300, authority=authority.file)
        loads.append(on_tls)
        left = change(namespace, plain, PLAIN)
        judge("from TLS, with it", on_tls, left)
    finally:
        for load in loads:
            load.stop()
    assert namespace.status("digits")["url"] == f"http://digits.{namespace.name}.svc"
    # As if nothing had been: an operator from before there was TLS would render the same.
    service = namespace.get("service", "digits")["spec"]["ports"]
    assert [(port["name"], port["targetPort"]) for port in service] == [("http", 8080), ("grpc", 8081)]
    assert by_grpc(address).shape == (1,)


def test_who_comes_with_tls_is_answered_from_the_first_server_with_it_on(namespace, store, digits, tmp_path):
    uri = store.add("one.onnx", digits)
    namespace.apply(manifest("digits", uri, replicas=3))
    namespace.wait_served("digits")
    address = namespace.address("digits")
    authority = Authority(tmp_path, "authority")
    namespace.apply(authority.secret("web", authority.sign(f"digits.{namespace.name}.svc", address)))
    namespace.apply(manifest("digits", uri, replicas=3, server={"tls": {"certificateSecret": "web"}}))

    def answers() -> bool:
        try:
            return by_rest(address, trust(authority)).status_code == 200
        except httpx.TransportError:
            return False

    wait_for("a first answer with TLS", answers, 60, every=0.1)
    load = Load(f"https://{address}/v2/models/digits/infer", json.dumps(BODY).encode(), rate=50, seconds=300, authority=authority.file)
    try:
        namespace.wait_served("digits")
        wait_for("the ports without TLS are gone", lambda: ports(namespace) == TLS, 60)
    finally:
        load.stop()
    found = load.answers()
    print(f"\n{len(found)} requests with TLS, failed: {failures(found) or 'none'}")
    assert len(found) > 50 and failures(found) == []


def test_one_client_cannot_ask_more_than_its_limit_and_others_are_not_held_up_by_it(namespace, store, digits):
    red, blue = secrets.token_hex(16), secrets.token_hex(16)
    namespace.apply(keys_of(red=red, blue=blue))
    limit = {"requestsPerSecond": 1, "burst": 20}
    uri = store.add("one.onnx", digits)
    namespace.apply(manifest("digits", uri, server={"clientLimit": limit}))
    namespace.wait_served("digits")
    url = namespace.infer_url("digits")

    def ask(client: httpx.Client, times: int, **headers: str) -> collections.Counter:
        found = [client.post(url, json=BODY, headers=headers) for _ in range(times)]
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in found if answer.status_code == 429)
        return collections.Counter(answer.status_code for answer in found)

    with httpx.Client() as client:
        # By address; what a client writes of where it comes from counts for nothing.
        found = ask(client, 20)
        assert found == {200: 20}
        found = ask(client, 60, **{"x-forwarded-for": f"192.0.2.{secrets.randbelow(250)}"})
        print(f"\nbeyond the limit of an address: {dict(found)}")
        # Some come back meanwhile, one a second.
        assert set(found) == {200, 429} or set(found) == {429}
        assert found[429] >= 30
        (pod,) = namespace.pods("digits")
        pod = pod["metadata"]["name"]
        metrics = namespace.kubectl("get", "--raw", f"/api/v1/namespaces/{namespace.name}/pods/{pod}:9090/proxy/metrics")
        (refused,) = [line for line in metrics.splitlines() if line.startswith("ortolan_server_requests_total{") and 'outcome="refused"' in line]
        assert int(refused.rpartition(" ")[2]) == found[429], refused

        # By key, from one address.
        namespace.apply(manifest("digits", uri, server={"clientLimit": limit, "apiKeysSecret": "clients"}))
        namespace.wait_served("digits")
        wait_for("one server", lambda: len(namespace.items("pods", "--selector", "ortolan.dev/model=digits")) == 1, 60)
        bearer = lambda key: {"authorization": f"Bearer {key}"}
        assert ask(client, 80, **bearer(red))[429] >= 30
        assert ask(client, 20, **bearer(blue)) == {200: 20}, "another client has its own limit"
