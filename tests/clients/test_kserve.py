"""KServe's Python clients, in both of its protocols."""

import asyncio

import httpx
import numpy as np
import pytest
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig


def request(model: str, data: np.ndarray) -> InferRequest:
    given = InferInput("x", list(data.shape), "FP32")
    given.set_data_from_numpy(data, binary_data=True)
    return InferRequest(model, [given], request_id="7")


def test_the_rest_client(serve):
    url, data = f"http://{serve('mlp').http}", np.full((2, 64), 0.25, np.float32)

    async def ask():
        client = InferenceRESTClient(RESTConfig(protocol="v2"))
        assert await client.is_server_live(url) and await client.is_server_ready(url)
        assert await client.is_model_ready(url, "mlp") and not await client.is_model_ready(url, "other")
        answer = await client.infer(url, request("mlp", data), model_name="mlp")
        with pytest.raises(httpx.HTTPStatusError):
            await client.infer(url, request("mlp", data[:, :5]), model_name="mlp")
        return answer

    answer = asyncio.run(ask())
    assert (answer.id, answer.model_name, answer.outputs[0].as_numpy().shape) == ("7", "mlp", (2, 10))


def test_the_rest_client_in_its_first_protocol(serve):
    url = f"http://{serve('mlp').http}"

    async def ask():
        client = InferenceRESTClient(RESTConfig(protocol="v1"))
        assert await client.is_model_ready(url, "mlp")
        return await client.infer(url, {"instances": [[0.25] * 64] * 3}, model_name="mlp")

    assert np.array(asyncio.run(ask())["predictions"]).shape == (3, 10)


def test_the_grpc_client(serve):
    data = np.full((2, 64), 0.25, np.float32)

    async def ask():
        async with InferenceGRPCClient(serve("mlp").grpc) as client:
            assert await client.is_server_live() and await client.is_server_ready() and await client.is_model_ready("mlp")
            return await client.infer(request("mlp", data))

    answer = asyncio.run(ask())
    assert (answer.id, answer.outputs[0].as_numpy().shape) == ("7", (2, 10))
