"""What the operator's roles grant, and what it did with them, as the API server wrote it down."""

import collections
import json
import os
import pathlib

from .kube import kubectl

# Granted for what no run of these tests does.
NEVER_CALLED = {
    # No call: whether the operator may do this is asked when it writes an owner reference, by an admission plugin
    # (OwnerReferencesPermissionEnforcement) that is off here.
    ("ortolan.dev", "modeldeployments/finalizers", "update"),
}

# What everybody may ask, by the built-in role system:discovery.
DISCOVERY = ("/api", "/apis", "/version", "/healthz", "/livez", "/readyz", "/openapi")


def calls() -> list[dict]:
    """Every call of the operator's service account since the cluster was started."""
    folder = pathlib.Path(os.environ["KUBECONFIG"]).parent
    files = [file for place in [folder, *folder.parents[:1]] for file in sorted(place.glob("logs/audit*.json"))]
    return [json.loads(line) for file in files for line in file.read_text().splitlines() if line.endswith("}")]


def right(call: dict) -> tuple[str, str, str]:
    """The API group, the resource with its subresource, and the verb that a call needed."""
    reference = call["objectRef"]
    resource = "/".join(part for part in [reference["resource"], reference.get("subresource")] if part)
    return reference.get("apiGroup", ""), resource, call["verb"]


def used() -> dict[tuple[str, str, str], int]:
    """How often each right was used."""
    rights = collections.Counter()
    for call in calls():
        if "objectRef" not in call:
            assert call["requestURI"].startswith(DISCOVERY), call["requestURI"]
            continue
        rights[right(call)] += 1
        # Server-side apply of what is not there needs the verb create as well.
        if call["verb"] == "patch" and call.get("responseStatus", {}).get("code") == 201:
            group, resource, _ = right(call)
            rights[(group, resource, "create")] += 1
    return rights


def granted() -> set[tuple[str, str, str]]:
    """What the roles that are bound to the operator grant."""
    roles = [json.loads(kubectl("get", "clusterrole", "ortolan", "--output", "json"))]
    roles += json.loads(kubectl("--namespace", "ortolan-system", "get", "roles", "--output", "json"))["items"]
    return {
        (group, resource, verb)
        for role in roles
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def check(complete: bool) -> None:
    """Fails where a call was made that the roles do not grant; after a `complete` run also where they grant what was never
    called."""
    made, may = used(), granted()
    assert made, "the API server wrote down no call of the operator: is --audit-log-path set (tests/cluster)?"
    # A call that was refused although it is granted came while the roles were not there: Helm takes them away before the
    # operator's last call, and an API server that has just started does not know them yet.
    beyond = set(made) - may
    assert not beyond, f"calls that the operator's own roles do not grant: {sorted(beyond)}"
    unused = may - set(made) - NEVER_CALLED
    print(f"\nrights of the operator: {len(may)} granted, {len(set(made) & may)} used in {sum(made.values())} calls")
    if unused:
        print(f"never used: {sorted(unused)}")
    assert not (complete and unused), f"granted and never used by all of the tests: {sorted(unused)}"
