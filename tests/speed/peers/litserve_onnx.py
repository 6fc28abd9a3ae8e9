"""An ONNX model in LitServe, asked and answering as the others over REST:  python litserve_onnx.py NAME FILE PORT"""

import sys

import litserve
import numpy as np

from onnx_session import session

TYPES = {"FP32": np.float32, "INT64": np.int64}


class OnnxModel(litserve.LitAPI):
    def __init__(self, name: str, path: str):
        super().__init__(api_path=f"/v2/models/{name}/infer")
        self._path = path

    def setup(self, device):
        self._session = session(self._path)
        self._names = [output.name for output in self._session.get_outputs()]

    def decode_request(self, request):
        return {tensor["name"]: np.array(tensor["data"], TYPES[tensor["datatype"]]).reshape(tensor["shape"]) for tensor in request["inputs"]}

    def predict(self, inputs):
        return self._session.run(self._names, inputs)

    def encode_response(self, values):
        outputs = [{"name": name, "datatype": "FP32", "shape": value.shape, "data": value.ravel().tolist()} for name, value in zip(self._names, values)]
        return {"outputs": outputs}


if __name__ == "__main__":
    name, path, port = sys.argv[1:]
    server = litserve.LitServer(OnnxModel(name, path), accelerator="cpu", healthcheck_path=f"/v2/models/{name}/ready")
    server.run(host="127.0.0.1", port=int(port), generate_client_file=False, log_level="error")
