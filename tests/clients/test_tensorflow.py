"""TensorFlow Serving's REST protocol, as its documentation shows it, with a scikit-learn classifier as it is converted by
default."""

import numpy as np
import pytest
import requests
from skl2onnx import to_onnx
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression


@pytest.fixture(scope="module")
def iris(serve, tmp_path_factory):
    features, classes = load_iris(return_X_y=True)
    features = features.astype(np.float32)
    model = LogisticRegression(max_iter=500).fit(features, np.array(["setosa", "versicolor", "virginica"])[classes])
    path = tmp_path_factory.mktemp("iris") / "iris.onnx"
    path.write_bytes(to_onnx(model, features[:1]).SerializeToString())
    return f"http://{serve('iris', path).http}/v1/models/iris", model, features[::10]


def test_status_and_metadata(iris):
    url, _, _ = iris
    [version] = requests.get(url, timeout=10).json()["model_version_status"]
    assert version == {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    signature = requests.get(f"{url}/metadata", timeout=10).json()["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["inputs"]["X"]["dtype"] == "DT_FLOAT"
    assert [dim["size"] for dim in signature["outputs"]["output_probability"]["tensor_shape"]["dim"]] == ["-1", "3"]


def test_predictions_by_row_and_by_column(iris):
    url, model, rows = iris
    by_row = requests.post(f"{url}:predict", json={"instances": rows.tolist()}, timeout=10).json()["predictions"]
    by_column = requests.post(f"{url}/versions/1:predict", json={"inputs": {"X": rows.tolist()}}, timeout=10).json()["outputs"]
    assert [row["output_label"] for row in by_row] == by_column["output_label"] == list(model.predict(rows))
    np.testing.assert_allclose([row["output_probability"] for row in by_row], model.predict_proba(rows), atol=1e-5)
    np.testing.assert_allclose(by_column["output_probability"], model.predict_proba(rows), atol=1e-5)


def test_classes_have_their_names(iris):
    url, model, rows = iris
    examples = [{"X": row.tolist()} for row in rows]
    results = requests.post(f"{url}:classify", json={"signature_name": "serving_default", "examples": examples}, timeout=10).json()["results"]
    assert [max(row, key=lambda entry: entry[1])[0] for row in results] == list(model.predict(rows))


def test_errors(iris):
    url, _, _ = iris
    wrong = requests.post(f"{url}:predict", json={"instances": [[1, 2]]}, timeout=10)
    assert (wrong.status_code, "shape [-1, 4], not [1, 2]" in wrong.json()["error"]) == (400, True)
    assert requests.get(f"{url}x", timeout=10).status_code == 404
