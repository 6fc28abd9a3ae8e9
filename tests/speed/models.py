"""Graphs of the shapes that people serve, with random weights: what they answer does not matter here, what they cost does."""

import pathlib

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 20


class Graph:
    """Nodes and weights, put together name by name."""

    def __init__(self, seed: int = 7):
        self.nodes, self.weights = [], []
        self._random = np.random.default_rng(seed)
        self._count = 0

    def constant(self, value: np.ndarray) -> str:
        name = self._name("w")
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def random(self, *shape: int, scale: float = 0.05) -> str:
        return self.constant((self._random.standard_normal(shape) * scale).astype(np.float32))

    def node(self, kind: str, *inputs: str, output: str | None = None, **attributes) -> str:
        output = output or self._name(kind)
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def dense(self, x: str, inputs: int, outputs: int, output: str | None = None) -> str:
        """Of any number of dimensions."""
        product = self.node("MatMul", x, self.random(inputs, outputs, scale=inputs**-0.5))
        return self.node("Add", product, self.random(outputs), output=output)

    def save(self, path: pathlib.Path, inputs: list, outputs: list) -> pathlib.Path:
        graph = helper.make_graph(self.nodes, path.stem, inputs, outputs, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10, producer_name="ortolan-speed")
        onnx.checker.check_model(model)
        onnx.save(model, path)
        return path

    def _name(self, kind: str) -> str:
        self._count += 1
        return f"{kind}{self._count}"


def floats(name: str, *shape) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def mlp(path: pathlib.Path, *widths: int) -> pathlib.Path:
    """x [batch, first width] → y [batch, last width], probabilities."""
    graph, x = Graph(), "x"
    for index, (inputs, outputs) in enumerate(zip(widths, widths[1:])):
        x = graph.node("Gemm", x, graph.random(inputs, outputs, scale=inputs**-0.5), graph.random(outputs))
        if index < len(widths) - 2:
            x = graph.node("Relu", x)
    graph.node("Softmax", x, output="y")
    return graph.save(path, [floats("x", "batch", widths[0])], [floats("y", "batch", widths[-1])])


def digits(path: pathlib.Path) -> pathlib.Path:
    """x [batch, 64] → y [batch, 10], probabilities: the model of the example, as scikit-learn trained it, without its labels."""
    model = onnx.load(pathlib.Path(__file__).parents[2] / "examples/digits/digits.onnx")
    names = {"pixels": "x", "probabilities": "y"}
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    (tensor,) = model.graph.input
    tensor.name = "x"
    del model.graph.output[:]
    model.graph.output.append(floats("y", "batch", 10))
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def resnet50(path: pathlib.Path) -> pathlib.Path:
    """x [batch, 3, 224, 224] → y [batch, 1000]: ResNet-50 (v1.5, normalization folded into the convolutions)."""
    graph = Graph()

    def convolution(x: str, inputs: int, outputs: int, size: int, stride: int = 1) -> str:
        weights = graph.random(outputs, inputs, size, size, scale=(inputs * size * size) ** -0.5)
        return graph.node("Conv", x, weights, graph.random(outputs), kernel_shape=[size] * 2, strides=[stride] * 2, pads=[size // 2] * 4)

    x = graph.node("Relu", convolution("x", 3, 64, 7, 2))
    x = graph.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = 64
    for stage, blocks in enumerate([3, 4, 6, 3]):
        width = 64 << stage
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            y = graph.node("Relu", convolution(x, channels, width, 1))
            y = graph.node("Relu", convolution(y, width, width, 3, stride))
            y = convolution(y, width, 4 * width, 1)
            shortcut = x if block else convolution(x, channels, 4 * width, 1, stride)
            x, channels = graph.node("Relu", graph.node("Add", y, shortcut)), 4 * width
    x = graph.node("Flatten", graph.node("GlobalAveragePool", x))
    graph.node("Gemm", x, graph.random(channels, 1000, scale=0.01), graph.random(1000), output="y")
    return graph.save(path, [floats("x", "batch", 3, 224, 224)], [floats("y", "batch", 1000)])


def bert(path: pathlib.Path, layers: int = 12, width: int = 768, heads: int = 12, words: int = 30522) -> pathlib.Path:
    """ids INT64 [batch, length] → y [batch, 2]: BERT-base as a classifier, without padding."""
    graph = Graph()
    numbers = lambda *values: graph.constant(np.array(values, dtype=np.int64))  # noqa: E731
    split, merged = numbers(0, 0, heads, width // heads), numbers(0, 0, width)
    scale = graph.constant(np.array((width // heads) ** -0.5, dtype=np.float32))
    normal = lambda x: graph.node("LayerNormalization", x, graph.constant(np.ones(width, np.float32)), graph.random(width), axis=-1)  # noqa: E731

    def heads_of(x: str, order: list[int]) -> str:
        return graph.node("Transpose", graph.node("Reshape", graph.dense(x, width, width), split), perm=order)

    length = graph.node("Gather", graph.node("Shape", "ids"), numbers(1))
    positions = graph.node("Slice", graph.random(512, width), numbers(0), length, numbers(0))
    x = normal(graph.node("Add", graph.node("Gather", graph.random(words, width), "ids"), positions))
    for _ in range(layers):
        scores = graph.node("MatMul", heads_of(x, [0, 2, 1, 3]), heads_of(x, [0, 2, 3, 1]))
        weights = graph.node("Softmax", graph.node("Mul", scores, scale), axis=-1)
        context = graph.node("Transpose", graph.node("MatMul", weights, heads_of(x, [0, 2, 1, 3])), perm=[0, 2, 1, 3])
        x = normal(graph.node("Add", x, graph.dense(graph.node("Reshape", context, merged), width, width)))
        inner = graph.node("Gelu", graph.dense(x, width, 4 * width))
        x = normal(graph.node("Add", x, graph.dense(inner, 4 * width, width)))
    first = graph.node("Gather", x, graph.constant(np.array(0, dtype=np.int64)), axis=1)
    graph.dense(graph.node("Tanh", graph.dense(first, width, width)), width, 2, output="y")
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "length"])
    return graph.save(path, [ids], [floats("y", "batch", 2)])
