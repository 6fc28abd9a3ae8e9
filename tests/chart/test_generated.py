"""Files that are made from the chart are what it would make now. `make generate` writes them anew."""

import re
import subprocess

import yaml

from chart import CHART, ROOT, render


def test_deploy_is_the_default_rendering():
    rendered = subprocess.run([ROOT / "tools" / "deploy"], capture_output=True, text=True, check=True).stdout
    committed = (ROOT / "deploy" / "ortolan.yaml").read_text()
    assert committed == rendered, "deploy/ortolan.yaml is not what the chart renders: run `make generate` and commit the result"


def test_deploy_adds_nothing_but_its_namespace():
    kustomization = yaml.safe_load((ROOT / "deploy" / "kustomization.yaml").read_text())
    assert kustomization == {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["namespace.yaml", "ortolan.yaml"],
    }
    assert yaml.safe_load((ROOT / "deploy" / "namespace.yaml").read_text())["kind"] == "Namespace"


def test_the_readme_explains_the_values():
    subprocess.run([ROOT / "tools" / "chart-readme", "--check"], check=True)


def test_the_example_for_artifact_hub_fits_the_definition():
    """Every field of it exists, down to where the schema ends."""
    annotations = yaml.safe_load((CHART / "Chart.yaml").read_text())["annotations"]
    (example,) = yaml.safe_load(annotations["artifacthub.io/crdsExamples"])
    definition = render().get("CustomResourceDefinition", "modeldeployments.ortolan.dev")["spec"]
    (version,) = definition["versions"]
    assert example["apiVersion"] == f"{definition['group']}/{version['name']}"

    def fits(value: object, schema: dict) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                fits(inner, schema["properties"][name])
        elif isinstance(value, str) and "enum" in schema:
            assert value in schema["enum"]

    fits(example["spec"], version["schema"]["openAPIV3Schema"]["properties"]["spec"])
    # The notes show the same.
    (shown,) = re.findall(r"<<EOF\n(.*?)EOF", (CHART / "templates" / "NOTES.txt").read_text(), re.DOTALL)
    assert yaml.safe_load(shown) == example
