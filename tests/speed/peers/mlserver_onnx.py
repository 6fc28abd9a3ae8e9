"""ONNX models in MLServer, which has no runtime for them of its own."""

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

from onnx_session import session


class OnnxModel(MLModel):
    async def load(self) -> bool:
        self._session = session(self.settings.parameters.uri)
        self._names = [output.name for output in self._session.get_outputs()]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        inputs = {tensor.name: NumpyCodec.decode_input(tensor) for tensor in payload.inputs}
        values = self._session.run(self._names, inputs)
        outputs = [NumpyCodec.encode_output(name, value) for name, value in zip(self._names, values)]
        return InferenceResponse(model_name=self.name, outputs=outputs)
