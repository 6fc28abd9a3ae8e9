"""A model whose clients need keys, and which remembers its answers."""

import base64
import hashlib
import json
import secrets

import httpx

from harness.kube import manifest, wait_for

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
    url = f"http://{namespace.address('digits')}/v2/models/digits/infer"
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
