"""The world of the fault tests: a real control plane whose nodes and pods are kwok's, and a command in it.

Started by `run`, alone in its namespaces. Pods take a moment to be ready and to be gone; `/stats` is answered on their
addresses by the responder of the scale tests, so that digests are found as they are in life.
"""

import os
import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "scale"))
from control_plane import ADMIN, OPERATOR, STAGES, ControlPlane, wait  # noqa: E402

# A node takes a thousand.
PODS = 2000
MODELS = "customresourcedefinitions/modeldeployments.ortolan.dev"


def main():
    folder, command = pathlib.Path(sys.argv[1]), sys.argv[2:]
    plane = ControlPlane(folder)
    api = plane.start()
    plane.start_nodes(api, PODS, slow_stages(folder))
    # Nobody has requests: a model at rest is at rest.
    plane.run("responder", "0", program=os.environ["RESPONDER"])
    # All that an installation has. The operator itself runs here, with the rights that it has there.
    kubectl = ["kubectl", "--kubeconfig", plane.kubeconfig(ADMIN), "--cache-dir", folder / "kubectl"]
    subprocess.run([*kubectl, "apply", "--server-side", "-k", "deploy/"], check=True, capture_output=True)
    subprocess.run([*kubectl, "--namespace", "ortolan-system", "scale", "deployment/ortolan", "--replicas", "0"],
                   check=True, capture_output=True)
    subprocess.run([*kubectl, "wait", "--for", "condition=Established", MODELS], check=True, capture_output=True)
    wait("a node", 60, lambda: ready(api))
    environment = {**os.environ, "KUBECONFIG": str(plane.kubeconfig(ADMIN)), "FAULTS_TOKEN": OPERATOR}
    status = subprocess.run(command, env=environment).returncode
    plane.check()
    sys.exit(status)


def slow_stages(folder: pathlib.Path) -> pathlib.Path:
    """What kwok does with pods in the scale tests, but not at once: between these milliseconds."""
    text = STAGES.read_text()
    for stage, shortest, longest in ("pod-ready", 200, 1200), ("pod-delete", 200, 800):
        head = f"metadata: {{name: {stage}}}\nspec:\n"
        assert head in text, f"tests/scale/stages.yaml has no {stage}"
        delay = f"  delay: {{durationMilliseconds: {shortest}, jitterDurationMilliseconds: {longest}}}\n"
        text = text.replace(head, head + delay)
    stages = folder / "stages.yaml"
    stages.write_text(text)
    return stages


def ready(api) -> bool:
    nodes = api.get("/api/v1/nodes")["items"]
    conditions = [condition for node in nodes for condition in node["status"].get("conditions", [])]
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


if __name__ == "__main__":
    main()
