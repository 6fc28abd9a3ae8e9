"""NVIDIA's tritonclient, over HTTP and gRPC."""

import asyncio
import queue

import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from tritonclient.utils import InferenceServerException

TYPES = {"FP32": np.float32, "INT64": np.int64}


@pytest.fixture(params=["http", "grpc"])
def module(request):
    return {"http": triton_http, "grpc": triton_grpc}[request.param]


def connect(module, server):
    return module.InferenceServerClient(server.http if module is triton_http else server.grpc)


def tensor(module, name, data, datatype, **options):
    made = module.InferInput(name, list(data.shape), datatype)
    made.set_data_from_numpy(data, **options)
    return made


def plain(message):
    """Answers are objects over HTTP and messages over gRPC."""
    return message if isinstance(message, dict | list) else {
        field.name: getattr(message, field.name) for field in message.DESCRIPTOR.fields
    }


@pytest.mark.parametrize("model", ["mlp", "add", "classifier", "zipmap", "scalar"])
def test_answers_are_those_of_onnx_runtime(module, serve, expected, model):
    client, case = connect(module, serve(model)), expected[model]
    inputs = [
        tensor(module, given["name"], np.array(given["data"], np.float32).reshape(given["shape"]), given["datatype"])
        for given in case["inputs"]
    ]
    answer = client.infer(model, inputs, request_id="7")
    assert plain(answer.get_response())["id"] == "7"
    for output in case["outputs"]:
        found = answer.as_numpy(output["name"])
        assert (list(found.shape), found.dtype) == (output["shape"], TYPES[output["datatype"]])
        np.testing.assert_allclose(found.ravel(), output["data"], atol=1e-5)


@pytest.mark.parametrize(("binary_in", "binary_out"), [(True, True), (True, False), (False, True), (False, False)])
def test_http_tensors_in_binary_and_in_json(serve, binary_in, binary_out):
    client = connect(triton_http, serve("mlp"))
    data = np.linspace(-1, 1, 128, dtype=np.float32).reshape(2, 64)
    outputs = [triton_http.InferRequestedOutput("y", binary_data=binary_out)]
    answer = client.infer("mlp", [tensor(triton_http, "x", data, "FP32", binary_data=binary_in)], outputs=outputs)
    assert ("data" in answer.get_output("y")) is not binary_out
    assert answer.as_numpy("y").sum(axis=1) == pytest.approx([1, 1], abs=1e-5)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests_and_answers(serve, algorithm):
    data = np.arange(2000, dtype=np.float32).reshape(1, 2000)
    server = serve("sequence")
    http = connect(triton_http, server).infer(
        "sequence", [tensor(triton_http, "x", data, "FP32")],
        request_compression_algorithm=algorithm, response_compression_algorithm=algorithm,
    )  # fmt: skip
    grpc = connect(triton_grpc, server).infer(
        "sequence", [tensor(triton_grpc, "x", data, "FP32")], compression_algorithm=algorithm
    )
    for answer in (http, grpc):
        np.testing.assert_allclose(answer.as_numpy("y"), data.cumsum(axis=1), rtol=1e-5)


def all_types():
    data = {
        "bool": np.array([[True, False]]), "fp16": np.array([[0.5, -2]], np.float16), "bytes": np.array([["ä", ""]], np.object_),
        "bf16": np.array([[0.5, -2]], ml_dtypes.bfloat16), "fp32": np.array([[0.1, -1]], np.float32), "fp64": np.array([[0.1, -1]]),
    }  # fmt: skip
    for size in (8, 16, 32, 64):
        for sign in ("", "u"):
            kind = np.dtype(f"{sign}int{size}")
            data[kind.name] = np.array([[np.iinfo(kind).min, np.iinfo(kind).max]], kind)
    return data


def test_every_data_type(module, serve):
    client, data = connect(module, serve("types")), all_types()
    inputs = [tensor(module, name, values, name.upper()) for name, values in data.items()]
    answer = client.infer("types", inputs)
    for name, values in data.items():
        found = answer.as_numpy(f"{name}_out")
        if name == "bytes":
            assert [text.decode() for text in found.ravel()] == ["ä", ""]
        else:
            np.testing.assert_array_equal(found, values)


def test_no_rows(module, serve):
    client = connect(module, serve("mlp"))
    answer = client.infer("mlp", [tensor(module, "x", np.zeros((0, 64), np.float32), "FP32")])
    assert answer.as_numpy("y").shape == (0, 10)


def test_classes(module, serve):
    client = connect(module, serve("zipmap-names"))
    outputs = [module.InferRequestedOutput("probabilities", class_count=2)]
    answer = client.infer("zipmap-names", [tensor(module, "x", np.zeros((1, 4), np.float32), "FP32")], outputs=outputs)
    assert [text.decode().split(":")[1:] for text in answer.as_numpy("probabilities")[0]] == [["0", "red"], ["1", "green"]]


def test_what_a_server_tells_about_itself(module, serve):
    client = connect(module, serve("mlp"))
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("mlp")
    assert plain(client.get_server_metadata())["name"] == "ortolan"
    metadata = plain(client.get_model_metadata("mlp"))
    assert (metadata["name"], list(metadata["versions"])) == ("mlp", ["1"])
    config = plain(client.get_model_config("mlp"))
    config = plain(config.get("config", config))
    assert (config["name"], config["max_batch_size"]) == ("mlp", 256)
    client.infer("mlp", [tensor(module, "x", np.zeros((1, 64), np.float32), "FP32")])
    for name in ("mlp", ""):
        statistics = plain(client.get_inference_statistics(name))["model_stats"][0]
        count = statistics["execution_count"] if isinstance(statistics, dict) else statistics.execution_count
        assert count > 0
    index = client.get_model_repository_index()
    [entry] = index if isinstance(index, list) else index.models
    assert (entry["state"] if isinstance(entry, dict) else entry.state) == "READY"


def test_errors_are_told(module, serve):
    client = connect(module, serve("mlp"))
    with pytest.raises(InferenceServerException, match="no input 'z'"):
        client.infer("mlp", [tensor(module, "z", np.zeros((1, 64), np.float32), "FP32")])
    with pytest.raises(InferenceServerException, match="no model 'other'"):
        client.infer("other", [tensor(module, "x", np.zeros((1, 64), np.float32), "FP32")])
    assert not client.is_model_ready("other") if module is triton_http else True


@pytest.mark.parametrize("call", ["load_model", "unload_model", "get_trace_settings", "get_log_settings", "get_system_shared_memory_status"])
def test_what_changes_a_server_is_not_there(module, serve, call):
    client = connect(module, serve("mlp"))
    with pytest.raises(InferenceServerException):
        getattr(client, call)(*(["mlp"] if "load" in call else []))


def test_many_requests_at_once(serve):
    server, data = serve("mlp"), np.random.default_rng(3).standard_normal((1, 64)).astype(np.float32)
    answers = queue.Queue()
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        for number in range(200):
            client.async_infer("mlp", [tensor(triton_grpc, "x", data, "FP32")],
                               lambda result, error: answers.put((result, error)), request_id=str(number))  # fmt: skip
        found = [answers.get(timeout=30) for _ in range(200)]
    assert not any(error for _, error in found)
    assert {result.get_response().id for result, _ in found} == {str(number) for number in range(200)}
    with triton_http.InferenceServerClient(server.http, concurrency=8) as client:
        under_way = [client.async_infer("mlp", [tensor(triton_http, "x", data, "FP32")]) for _ in range(200)]
        rows = {tuple(np.round(answer.get_result(timeout=30).as_numpy("y")[0], 5)) for answer in under_way}
    assert len(rows) == 1


def test_the_asynchronous_clients(serve):
    server, data = serve("mlp"), np.zeros((1, 64), np.float32)

    async def ask(module, address):
        base = triton_http if module is triton_http_aio else triton_grpc
        async with module.InferenceServerClient(address) as client:
            answers = await asyncio.gather(*(client.infer("mlp", [tensor(base, "x", data, "FP32")]) for _ in range(20)))
            return [answer.as_numpy("y").shape for answer in answers]

    assert asyncio.run(ask(triton_http_aio, server.http)) == [(1, 10)] * 20
    assert asyncio.run(ask(triton_grpc_aio, server.grpc)) == [(1, 10)] * 20


def test_a_stream(serve):
    server, data = serve("mlp"), np.zeros((1, 64), np.float32)
    answers = queue.Queue()
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for number in range(50):
            name = "other" if number == 7 else "mlp"
            client.async_stream_infer(name, [tensor(triton_grpc, "x", data, "FP32")], request_id=str(number))
        found = [answers.get(timeout=30) for _ in range(50)]
        client.stop_stream()
    assert [number for number, (_, error) in enumerate(found) if error] == [7]
    assert "no model 'other'" in found[7][1].message()
    assert [result.get_response().id for result, error in found if not error] == [str(n) for n in range(50) if n != 7]
