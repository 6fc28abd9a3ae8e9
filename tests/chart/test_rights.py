"""What the roles grant is what docs/security.md says, word by word, and nothing that would grant more."""

import re

from chart import ROOT, Rendered, render

DOCUMENT = (ROOT / "docs" / "security.md").read_text()


def documented(role: str) -> list[tuple]:
    """The rows of the table below a heading, as (API group, resources, names, verbs)."""
    (table,) = re.findall(rf"^#+ `{re.escape(role)}`.*?\n(\|.*?)\n\n", DOCUMENT, re.MULTILINE | re.DOTALL)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    for row in rows:
        assert row[3], f"{role}: no reason is given for {row}"
    plain = lambda cell: tuple(re.findall(r"`([^`]+)`", cell))
    return sorted((plain(group) or ("",), plain(resources), plain(verbs)) for group, resources, verbs, _ in rows)


def rendered_roles(rendered: Rendered) -> dict[str, list[dict]]:
    found = [found for found in rendered.objects if found["kind"] in ("ClusterRole", "Role")]
    return {f"{role['kind']} {role['metadata']['name']}": role["rules"] for role in found}


def test_the_roles_are_the_documented_ones():
    for role, rules in rendered_roles(render()).items():
        named = lambda rule: tuple(rule["resources"]) + tuple(f"{name}" for name in rule.get("resourceNames", []))
        granted = sorted((tuple(rule["apiGroups"]), named(rule), tuple(rule["verbs"])) for rule in rules)
        assert granted == documented(role), f"{role}: docs/security.md says another thing than templates/rbac.yaml"


def test_no_role_grants_more_than_is_named_nor_a_way_to_more():
    for role, rules in rendered_roles(render()).items():
        for rule in rules:
            words = [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
            assert not any("*" in word for word in words), f"{role}: {rule}"
            assert not {"secrets", "serviceaccounts", "serviceaccounts/token"} & set(rule["resources"]), f"{role}: {rule}"
            assert not {"escalate", "bind", "impersonate", "use"} & set(rule["verbs"]), f"{role}: {rule}"
            # Into a running pod leads no way either.
            assert not {"pods/exec", "pods/attach", "pods/portforward", "pods/proxy", "nodes/proxy"} & set(rule["resources"])
            assert "nonResourceURLs" not in rule and "rbac.authorization.k8s.io" not in rule["apiGroups"], f"{role}: {rule}"


def test_the_roles_are_bound_to_the_operator_alone():
    bindings = [found for found in render().objects if found["kind"] in ("ClusterRoleBinding", "RoleBinding")]
    assert bindings
    for binding in bindings:
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "ortolan", "namespace": "elsewhere"}]
        assert binding["roleRef"]["name"] == "ortolan"
