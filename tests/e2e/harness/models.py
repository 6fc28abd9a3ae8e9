"""A web server with model files, as pods see it, and graphs of the right shape with random weights."""

import http.server
import pathlib
import threading

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# The bridge of the test cluster: pods on both nodes reach what listens here.
HOST = "10.244.0.1"


class ModelStore:
    """Serves the files of one folder over HTTP; names in `answers` are answered with that status instead."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.answers: dict[str, int] = {}
        store = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *arguments):
                super().__init__(*arguments, directory=str(store.folder))

            def do_GET(self):
                status = store.answers.get(self.path.lstrip("/"))
                if status:
                    self.send_error(status)
                else:
                    super().do_GET()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer((HOST, 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def add(self, name: str, content: bytes) -> str:
        """Puts a file there; returns its uri."""
        (self.folder / name).write_bytes(content)
        return self.uri(name)

    def uri(self, name: str) -> str:
        return f"http://{HOST}:{self.server.server_port}/{name}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def heavy(width: int, layers: int, in_nodes: bool = False) -> bytes:
    """An ONNX graph `x` [batch, 64] → `y` [batch, 10] that multiplies by one `width`² matrix `layers` times, FP32.

    `in_nodes`: its weights are values of nodes, which cannot stay in the file while it is loaded.
    """
    random = np.random.default_rng(7)

    def weights(name, *shape):
        return numpy_helper.from_array((random.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32), name)

    nodes = [helper.make_node("MatMul", ["x", "first"], ["h0"])]
    for layer in range(layers):
        nodes.append(helper.make_node("MatMul", [f"h{layer}", "middle"], [f"m{layer}"]))
        nodes.append(helper.make_node("Relu", [f"m{layer}"], [f"h{layer + 1}"]))
    nodes.append(helper.make_node("MatMul", [f"h{layers}", "last"], ["y"]))
    tensors = [weights("first", 64, width), weights("middle", width, width), weights("last", width, 10)]
    if in_nodes:
        nodes = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in tensors] + nodes
    graph = helper.make_graph(
        nodes,
        "heavy",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 10])],
        [] if in_nodes else tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()
