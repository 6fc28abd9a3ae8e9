"""Writes the ONNX models of the inference server's tests, and what they answer.

    pip install onnx==1.23.2 onnxruntime==1.32.0 && python make.py

The answers in expected.json are computed by ONNX Runtime's Python package: the server must give the same.
"""

import json
import pathlib

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto as T
from onnx import helper, numpy_helper

HERE = pathlib.Path(__file__).parent
OPSET = 17
TYPES = {
    "BOOL": T.BOOL, "UINT8": T.UINT8, "UINT16": T.UINT16, "UINT32": T.UINT32, "UINT64": T.UINT64, "INT8": T.INT8,
    "INT16": T.INT16, "INT32": T.INT32, "INT64": T.INT64, "FP16": T.FLOAT16, "BF16": T.BFLOAT16, "FP32": T.FLOAT,
    "FP64": T.DOUBLE, "BYTES": T.STRING,
}  # fmt: skip

# In the order of the columns of the probabilities, which is not that of the maps.
CLASSES = {"zipmap": [3, -7, 11], "zipmap-names": ["red", "green", "blue"]}


def tensor(name, shape, kind=T.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def save(name, nodes, inputs, outputs, initializers=(), opset=OPSET, extra_opsets=(), check=True, data_file=None):
    graph = helper.make_graph(list(nodes), name, inputs, outputs, list(initializers))
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(*pair) for pair in extra_opsets)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="ortolan-tests")
    if check:
        onnx.checker.check_model(model, full_check=True)
    outside = {"save_as_external_data": True, "location": data_file, "size_threshold": 0} if data_file else {}
    if data_file:
        (HERE / data_file).unlink(missing_ok=True)
    onnx.save(model, HERE / f"{name}.onnx", **outside)
    return model


def weights(generator, *shape):
    return generator.standard_normal(shape).astype(np.float32) * 0.5


def served():
    """The models that the server serves."""
    generator = np.random.default_rng(7)
    node = helper.make_node

    def constant(name, value):
        return numpy_helper.from_array(value, name)

    save(
        "mlp",
        [
            node("Gemm", ["x", "w1", "b1"], ["h"]),
            node("Relu", ["h"], ["r"]),
            node("Gemm", ["r", "w2", "b2"], ["l"]),
            node("Softmax", ["l"], ["y"]),
        ],
        [tensor("x", ["batch", 64])],
        [tensor("y", ["batch", 10])],
        [
            constant("w1", weights(generator, 64, 16)), constant("b1", weights(generator, 16)),
            constant("w2", weights(generator, 16, 10)), constant("b2", weights(generator, 10)),
        ],
    )  # fmt: skip
    # The same shape as the first, with its weights in another file.
    save(
        "external",
        [node("Gemm", ["x", "w", "b"], ["l"]), node("Softmax", ["l"], ["y"])],
        [tensor("x", ["batch", 64])],
        [tensor("y", ["batch", 10])],
        [constant("w", weights(np.random.default_rng(13), 64, 10)), constant("b", weights(np.random.default_rng(14), 10))],
        data_file="external.bin",
    )
    save("fixed", [node("Relu", ["x"], ["y"])], [tensor("x", [2, 4])], [tensor("y", [2, 4])])
    save("add", [node("Add", ["a", "b"], ["sum"])], [tensor("a", ["n", 3]), tensor("b", ["n", 3])], [tensor("sum", ["n", 3])])
    save(
        "classifier",
        [
            node("Gemm", ["x", "w"], ["l"]),
            node("Softmax", ["l"], ["probabilities"]),
            node("ArgMax", ["probabilities"], ["label"], axis=1, keepdims=0),
        ],
        [tensor("x", [None, 4])],
        [tensor("label", [None], T.INT64), tensor("probabilities", [None, 3])],
        [constant("w", weights(generator, 4, 3))],
    )
    save(
        "types",
        [node("Identity", [name.lower()], [f"{name.lower()}_out"]) for name in TYPES],
        [tensor(name.lower(), ["n", "m"], kind) for name, kind in TYPES.items()],
        [tensor(f"{name.lower()}_out", ["n", "m"], kind) for name, kind in TYPES.items()],
    )
    # Mixed lengths: only requests of the same length may share a batch.
    save("sequence", [node("CumSum", ["x", "axis"], ["y"])], [tensor("x", ["batch", "time"])], [tensor("y", ["batch", "time"])],
         [constant("axis", np.array(1, np.int64))])  # fmt: skip
    # No batch dimension in the answer.
    save("scalar", [node("ReduceSum", ["x"], ["y"], keepdims=0)], [tensor("x", ["batch", 2])], [tensor("y", [])])
    # Looks like a batch dimension in the answer, but is none: how many elements are not zero.
    save(
        "nonzero",
        [node("NonZero", ["x"], ["t"]), node("Transpose", ["t"], ["y"], perm=[1, 0])],
        [tensor("x", ["batch", 2])],
        [tensor("y", [None, 2], T.INT64)],
    )
    # Two inputs that need not agree about their first dimension.
    save(
        "cross",
        [node("Transpose", ["b"], ["t"], perm=[1, 0]), node("MatMul", ["a", "t"], ["y"])],
        [tensor("a", ["n", 2]), tensor("b", ["m", 2])],
        [tensor("y", ["n", "m"])],
    )
    # Makes NaN and infinities out of ordinary numbers.
    save("log", [node("Log", ["x"], ["y"])], [tensor("x", ["batch", 1])], [tensor("y", ["batch", 1])])
    # Fails for some inputs, at run time: an index out of range.
    save("gather", [node("Gather", ["table", "i"], ["y"])], [tensor("i", ["batch"], T.INT64)], [tensor("y", ["batch"])],
         [constant("table", np.array([10, 20, 30], np.float32))])  # fmt: skip
    # As converters for scikit-learn write classifiers: the probabilities become a list of maps.
    for name, kind, attribute in [
        ("zipmap", T.INT64, "classlabels_int64s"),
        ("zipmap-names", T.STRING, "classlabels_strings"),
    ]:
        classes = helper.make_map_type_proto(kind, helper.make_tensor_type_proto(T.FLOAT, []))
        save(
            name,
            [
                node("Gemm", ["x", "w"], ["l"]),
                node("Softmax", ["l"], ["p"]),
                node("ArgMax", ["p"], ["label"], axis=1, keepdims=0),
                node("ZipMap", ["p"], ["probabilities"], domain="ai.onnx.ml", **{attribute: CLASSES[name]}),
            ],
            [tensor("x", [None, 4])],
            [tensor("label", [None], T.INT64), helper.make_value_info("probabilities", helper.make_sequence_type_proto(classes))],
            [constant("w", weights(np.random.default_rng(9), 4, 3))],
            extra_opsets=[("ai.onnx.ml", 3)],
        )


def refused():
    """The models that the server refuses."""
    node = helper.make_node
    save(
        "refused-sequence",
        [node("SplitToSequence", ["x"], ["y"])],
        [tensor("x", [None, 2])],
        [helper.make_tensor_sequence_value_info("y", T.FLOAT, None)],
    )
    save("refused-operator", [node("Frobnicate", ["x"], ["y"], domain="com.example")], [tensor("x", [1])],
         [tensor("y", [1])], extra_opsets=[("com.example", 1)], check=False)  # fmt: skip
    save("refused-opset", [node("Relu", ["x"], ["y"])], [tensor("x", [1])], [tensor("y", [1])], opset=99, check=False)
    outside = numpy_helper.from_array(np.zeros(4, np.float32), "w")
    outside.ClearField("raw_data")
    outside.data_location = T.EXTERNAL
    outside.external_data.add(key="location", value="../../etc/weights.bin")
    save("refused-external", [node("Add", ["x", "w"], ["y"])], [tensor("x", [4])], [tensor("y", [4])], [outside], check=False)
    # The same, but inside a node's attribute.
    hidden = onnx.TensorProto()
    hidden.CopyFrom(outside)
    save("refused-external-attribute", [node("Constant", [], ["w"], value=hidden), node("Add", ["x", "w"], ["y"])],
         [tensor("x", [4])], [tensor("y", [4])], check=False)  # fmt: skip
    # A loop of 2^63 - 1 rounds: the model loads, and its first run never ends.
    body = helper.make_graph(
        [node("Identity", ["go"], ["go_on"]), node("Add", ["v", "one"], ["v_next"])],
        "body",
        [tensor("round", [], T.INT64), tensor("go", [], T.BOOL), tensor("v", [None, 1])],
        [tensor("go_on", [], T.BOOL), tensor("v_next", [None, 1])],
        [numpy_helper.from_array(np.ones(1, np.float32), "one")],
    )
    rounds = [numpy_helper.from_array(np.array(2**63 - 1), "rounds"), numpy_helper.from_array(np.array(True), "always")]
    save("refused-endless", [node("Loop", ["rounds", "always", "x"], ["y"], body=body)], [tensor("x", [None, 1])],
         [tensor("y", [None, 1])], rounds)  # fmt: skip
    # A well-formed protobuf whose graph refers to a tensor that is not there.
    save("refused-graph", [node("Relu", ["missing"], ["y"])], [tensor("x", [1])], [tensor("y", [1])], check=False)


def expectations():
    generator = np.random.default_rng(11)
    cases = {
        "mlp": [{"x": weights(generator, 1, 64)}, {"x": weights(generator, 5, 64)}],
        "external": [{"x": weights(np.random.default_rng(15), 2, 64)}],
        "fixed": [{"x": np.array([[-1, 2, -3, 4], [5, -6, 7, -8]], np.float32)}],
        "add": [{"a": weights(generator, 2, 3), "b": weights(generator, 2, 3)}],
        "classifier": [{"x": weights(generator, 3, 4)}],
        "sequence": [{"x": weights(generator, 2, 5)}, {"x": weights(generator, 1, 3)}],
        "scalar": [{"x": weights(generator, 3, 2)}],
        "cross": [{"a": weights(generator, 3, 2), "b": weights(generator, 4, 2)}],
        "zipmap": [{"x": weights(generator, 3, 4)}],
        "zipmap-names": [{"x": weights(generator, 1, 4)}],
    }
    found = []
    for name, requests in cases.items():
        session = onnxruntime.InferenceSession(HERE / f"{name}.onnx")
        for request in requests:
            answers = session.run(None, request)
            outputs = {output.name: matrix(answer, CLASSES.get(name)) for output, answer in zip(session.get_outputs(), answers, strict=True)}
            found.append({"model": name, "inputs": plain(request), "outputs": plain(outputs)})
    text = "[\n" + ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in found) + "\n]\n"
    (HERE / "expected.json").write_text(text)


def matrix(answer, classes):
    """What the server makes of a list of maps."""
    return np.array([[row[name] for name in classes] for row in answer], np.float32) if isinstance(answer, list) else answer


def plain(tensors):
    names = {"float32": "FP32", "int64": "INT64"}
    return [
        {
            "name": name,
            "datatype": names[str(value.dtype)],
            "shape": list(value.shape),
            "data": [round(float(number), 7) if value.dtype == np.float32 else int(number) for number in value.flat],
        }
        for name, value in tensors.items()
    ]


if __name__ == "__main__":
    served()
    refused()
    expectations()
