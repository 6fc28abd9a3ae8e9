"""Hours in short: requests of ever other shapes, over new and old connections, right ones and wrong ones; the memory stays."""

import concurrent.futures
import pathlib
import re

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

ROUND = 600
# A server that keeps 2 KiB of each request grows by more than this in every round.
STEADY_MIB = 1.0
STEADY_ROUNDS = 3
MOST_ROUNDS = 25
CLIENTS = 4


def anonymous_mib(pid: int) -> float:
    """The memory that a process has taken and not given back, without the files that it has mapped."""
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+) kB", text).group(1)) / 1024


def shapes() -> list[tuple[int, int]]:
    """The same in every round, so that the largest one is not a matter of luck."""
    random = np.random.default_rng(17)
    return [(int(random.integers(1, 9)), int(random.integers(1, 4000))) for _ in range(ROUND)]


def part(server, numbers: list[tuple[int, tuple[int, int]]]) -> None:
    """One client's part of a round: it connects anew, and answers are looked at."""
    web, grpc = triton_http.InferenceServerClient(server.http), triton_grpc.InferenceServerClient(server.grpc)
    for number, (rows, length) in numbers:
        module, client = ((triton_http, web), (triton_grpc, grpc))[number % 2]
        data = np.full((rows, length), 0.5, np.float32)
        given = module.InferInput("x", [rows, length], "FP32")
        given.set_data_from_numpy(data, **({"binary_data": number % 4 == 0} if module is triton_http else {}))
        if number % 10 == 9:
            given.set_shape([rows, length + 1])
            try:
                client.infer("sequence", [given])
            except InferenceServerException:
                continue
            raise AssertionError("a tensor that lacks data was taken")
        found = client.infer("sequence", [given]).as_numpy("y")
        assert found.shape == (rows, length) and found[-1, -1] == length / 2
    web.close()
    grpc.close()


def test_memory_is_steady_under_requests_of_all_shapes(serve):
    server, numbers = serve("sequence"), list(enumerate(shapes()))
    grown, memory = [], anonymous_mib(server.pid)
    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as clients:
        while not (len(grown) >= STEADY_ROUNDS and max(grown[-STEADY_ROUNDS:]) <= STEADY_MIB):
            assert len(grown) < MOST_ROUNDS, f"memory grows from round to round, by MiB: {[round(mib, 1) for mib in grown]}"
            list(clients.map(lambda client: part(server, numbers[client::CLIENTS]), range(CLIENTS)))
            before, memory = memory, anonymous_mib(server.pid)
            grown.append(memory - before)
    print(f"\n{memory:.0f} MiB after {len(grown) * ROUND} requests; grown by MiB: {[round(mib, 1) for mib in grown]}")
