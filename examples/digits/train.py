"""Trains the digits example and writes every generated file of this folder.

A picture of a handwritten digit is 8 by 8 pixels, each from 0 (paper) to 16 (ink). A small neural network,
trained by stochastic gradient descent, tells which of the ten digits it shows. One fifth of the pictures never
takes part in the training: they measure the accuracy here, and the quality of the served model in the tests.

Two builds come out, `digits` and `digits-v2`: the same task with another size and seed, so that their answers
differ a little and a rollout from one to the other can be observed.

    python examples/digits/train.py [--output FOLDER]
"""

import argparse
import base64
import hashlib
import json
from pathlib import Path

import numpy as np
import onnxruntime
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

PIXELS = 64
BUILDS = {
    "digits": {"hidden": 48, "seed": 0},
    "digits-v2": {"hidden": 64, "seed": 2},
}
ACCURACY_FLOOR = 0.96
# Another processor adds numbers up in another order, and the last digits of a weight come out otherwise.
# On this grid they are equal all the same, so the files are too, byte for byte; it costs no accuracy.
WEIGHT_GRID = 2.0**-12


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder to write to")
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)

    pixels, labels = load_digits(return_X_y=True)
    train_pixels, holdout_pixels, train_labels, holdout_labels = train_test_split(
        pixels, labels, test_size=0.2, stratify=labels, random_state=0
    )

    for name, build in BUILDS.items():
        model = train(train_pixels, train_labels, **build)
        onnx = export(model, name)
        accuracy = check(onnx, model, holdout_pixels, holdout_labels)
        (output / f"{name}.onnx").write_bytes(onnx)
        print(f"{name}.onnx: accuracy {accuracy:.4f} on {len(holdout_labels)} held-out images, {len(onnx)} bytes")

    (output / "holdout.json").write_text(holdout_json(holdout_pixels, holdout_labels))
    (output / "request.json").write_text(request_json(holdout_pixels[:3]))
    (output / "modeldeployment.yaml").write_text(manifest((output / "digits.onnx").read_bytes()))


def train(pixels: np.ndarray, labels: np.ndarray, hidden: int, seed: int) -> Pipeline:
    """Trains on `pixels` [n, 64] (0 to 16) and `labels` [n] with one layer of `hidden` neurons."""
    model = make_pipeline(
        StandardScaler(),
        MLPClassifier(
            hidden_layer_sizes=(hidden,),
            solver="sgd",
            learning_rate_init=0.05,
            batch_size=32,
            alpha=0.01,
            max_iter=200,
            random_state=seed,
        ),
    )
    # One thread: how a sum is split over threads must not change the result.
    with threadpool_limits(limits=1):
        model.fit(pixels, labels)
    network = model[-1]
    network.coefs_ = [on_grid(weights) for weights in network.coefs_]
    network.intercepts_ = [on_grid(weights) for weights in network.intercepts_]
    return model


def on_grid(weights: np.ndarray) -> np.ndarray:
    """Rounds to multiples of WEIGHT_GRID; the shape stays."""
    return np.round(weights / WEIGHT_GRID) * WEIGHT_GRID


def export(model: Pipeline, name: str) -> bytes:
    """The ONNX file: `pixels` FP32 [batch, 64] to `label` INT64 [batch] and `probabilities` FP32 [batch, 10]."""
    proto = to_onnx(
        model,
        name=name,
        initial_types=[("pixels", FloatTensorType([None, PIXELS]))],
        # One tensor instead of a sequence of maps: what clients of every protocol can read.
        options={"zipmap": False},
        target_opset={"": 18, "ai.onnx.ml": 3},
    )
    for tensor in [*proto.graph.input, *proto.graph.output]:
        tensor.type.tensor_type.shape.dim[0].dim_param = "batch"
    return proto.SerializeToString(deterministic=True)


def check(onnx: bytes, model: Pipeline, pixels: np.ndarray, labels: np.ndarray) -> float:
    """The accuracy (0 to 1) of the exported file in ONNX Runtime on `pixels` [n, 64] and `labels` [n].

    Fails when the file answers otherwise than the model it was made from, or worse than ACCURACY_FLOOR.
    """
    session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    answers, probabilities = session.run(["label", "probabilities"], {"pixels": pixels.astype(np.float32)})
    np.testing.assert_array_equal(answers, model.predict(pixels))
    np.testing.assert_allclose(probabilities, model.predict_proba(pixels), atol=1e-5)
    accuracy = float(np.mean(answers == labels))
    if accuracy < ACCURACY_FLOOR:
        raise ValueError(f"accuracy {accuracy:.4f} is below {ACCURACY_FLOOR}")
    return accuracy


def holdout_json(pixels: np.ndarray, labels: np.ndarray) -> str:
    """The held-out images, one a line: `pixels` [n, 64] whole numbers from 0 to 16, and `labels` [n]."""
    rows = ",\n".join(json.dumps(row, separators=(",", ":")) for row in pixels.astype(int).tolist())
    return f'{{"labels":{json.dumps(labels.tolist(), separators=(",", ":"))},\n"pixels":[\n{rows}\n]}}\n'


def request_json(pixels: np.ndarray) -> str:
    """An Open Inference Protocol v2 request for `pixels` [n, 64]."""
    tensor = {
        "name": "pixels",
        "shape": list(pixels.shape),
        "datatype": "FP32",
        "data": pixels.astype(int).ravel().tolist(),
    }
    return json.dumps({"inputs": [tensor]}, separators=(",", ":")) + "\n"


def manifest(onnx: bytes) -> str:
    """The model in a ConfigMap and the ModelDeployment that serves it, for `kubectl apply`."""
    return f"""\
# Written by train.py. The model is small enough to travel in a ConfigMap, so that this one file is all it takes;
# larger ones are fetched from a web or object store (`uri: https://…`) or a volume (`uri: pvc://…`).
apiVersion: v1
kind: ConfigMap
metadata:
  name: digits-model
binaryData:
  digits.onnx: {base64.b64encode(onnx).decode()}
---
apiVersion: ortolan.dev/v1alpha1
kind: ModelDeployment
metadata:
  name: digits
spec:
  model:
    uri: configmap://digits-model/digits.onnx
    sha256: {hashlib.sha256(onnx).hexdigest()}
  server:
    resources:
      requests: {{cpu: 100m, memory: 64Mi}}
      limits: {{cpu: 200m, memory: 256Mi}}
    batching:
      maxSize: 64
  scaling:
    minReplicas: 1
    maxReplicas: 4
    latency:
      quantile: p99
      target: 100ms
"""


if __name__ == "__main__":
    main()
