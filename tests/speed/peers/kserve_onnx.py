"""An ONNX model in KServe's Python server:  python kserve_onnx.py NAME FILE HTTP_PORT GRPC_PORT"""

import sys

from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
from kserve.utils.numpy_codec import from_np_dtype

from onnx_session import session


class OnnxModel(Model):
    def __init__(self, name: str, path: str):
        super().__init__(name)
        self._session = session(path)
        self._names = [output.name for output in self._session.get_outputs()]
        self.ready = True

    async def predict(self, payload: InferRequest, headers=None, response_headers=None) -> InferResponse:
        values = self._session.run(self._names, {tensor.name: tensor.as_numpy() for tensor in payload.inputs})
        outputs = []
        for name, value in zip(self._names, values):
            output = InferOutput(name=name, shape=list(value.shape), datatype=from_np_dtype(value.dtype))
            output.set_data_from_numpy(value, binary_data=payload.from_grpc)
            outputs.append(output)
        return InferResponse(response_id=payload.id or "none", model_name=self.name, infer_outputs=outputs)


if __name__ == "__main__":
    name, path, http, grpc = sys.argv[1:]
    server = ModelServer(http_port=int(http), grpc_port=int(grpc), workers=1, enable_docs_url=False, access_log_format=None)
    server.start([OnnxModel(name, path)])
