"""How fast the inference server is beside ONNX Runtime alone and beside other servers: see --help and tests/speed/run."""

import argparse
import collections
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

import numpy as np
import onnxruntime

import models
import report
from load import Measured, Request, floor, goodput, measure
from servers import PEERS, SERVER_CPU, Server

SERVERS = ["ortolan", "mlserver", "kserve", "litserve"]
CONNECTIONS = [1, 8, 64]
MULTIPLES = [0.5, 1, 1.5, 2, 3]
DEADLINE = 0.1
TOKENS = 32
TEXTS = 48


def say(text: str):
    print(f"speed: {text}", file=sys.stderr, flush=True)


def raw(path: pathlib.Path, rows: list[int], seconds: float = 1, length: int = TOKENS) -> dict:
    """ONNX Runtime alone, on the server's processor: the median seconds of a run by rows, and those of making the session."""
    command = ["taskset", "--cpu-list", SERVER_CPU, os.environ["RAW"], str(path), "--rows", ",".join(map(str, rows)),
               "--length", str(length), "--seconds", str(seconds)]  # fmt: skip
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {"session": found["session"], "medians": {int(rows): seconds for rows, seconds in found["medians"].items()}}


def raw_python(path: pathlib.Path, seconds: float = 1) -> float:
    """The same in a Python program, with one row."""
    command = ["taskset", "--cpu-list", SERVER_CPU, sys.executable, str(PEERS / "alone.py"), str(path), str(seconds)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def request_to(name: str, path: pathlib.Path, values: np.ndarray, timeout: float | None = None) -> Request:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (tensor,) = session.get_inputs()
    (answer,) = session.run(["y"], {tensor.name: values})
    return Request(name, tensor.name, values, answer, timeout)


def middle(found: list[Measured]) -> Measured:
    """The medians of all rounds, each figure by itself."""
    return Measured(*(statistics.median(getattr(one, name) for one in found) for name in ("rate", "p50", "p99", "cpu")))


def small(options, folder: pathlib.Path, name: str, path: pathlib.Path) -> dict:
    """A model of 64 numbers that costs next to nothing: what the way to it and back costs."""
    request = request_to(name, path, np.random.default_rng(1).random((1, 64), np.float32))
    alone, in_python, nothing, cells, started, memory = [], [], [], collections.defaultdict(list), collections.defaultdict(list), {}
    for turn in range(options.rounds):
        alone.append(raw(path, [1])["medians"][1])
        in_python.append(raw_python(path))
        nothing.append(floor(request, options.seconds))
        for kind in options.servers:
            with Server(kind, name, path, fresh(folder)) as server:
                started[kind].append(server.started)
                for protocol in protocols(kind):
                    for connections in CONNECTIONS:
                        found = measure(server, protocol, [request], connections, options.seconds)
                        cells[kind, protocol, connections].append(found)
                        say(f"{turn + 1}/{options.rounds} {name}, {kind}, {protocol}, {connections} connections: {found.rate:.0f}/s")
                memory[kind] = max(memory.get(kind, 0), server.peak_memory())
    started = {kind: statistics.median(times) for kind, times in started.items()}
    return {"raw": statistics.median(alone), "python": statistics.median(in_python), "floor": statistics.median(nothing), "cells": {cell: middle(found) for cell, found in cells.items()}, "started": started, "memory": memory}


def protocols(kind: str) -> list[str]:
    # MLServer has no binary tensors over REST, LitServe a protocol of its own.
    return {"mlserver": ["REST JSON", "gRPC"], "litserve": ["REST JSON"]}.get(kind, ["REST JSON", "REST binary", "gRPC"])


def large(options, folder: pathlib.Path, name: str, make, values: np.ndarray) -> dict:
    """A model that takes all the time there is; ONNX Runtime alone is measured in turns with the servers."""
    path = make(folder / f"{name}.onnx")
    request = request_to(name, path, values)
    alone, cells, started, memory = [], collections.defaultdict(list), {}, {}
    for turn in range(options.rounds):
        for kind in filter(lambda kind: "gRPC" in protocols(kind), options.servers):
            alone.append(raw(path, [1, 8], options.seconds))
            with Server(kind, name, path, fresh(folder)) as server:
                started[kind] = server.started
                for connections in (1, 8):
                    found = measure(server, "gRPC", [request], connections, 3 * options.seconds)
                    cells[kind, connections].append(found)
                    say(f"{turn + 1}/{options.rounds} {name}, {kind}, {connections} connections: {found.rate:.1f}/s")
                memory[kind] = max(memory.get(kind, 0), server.peak_memory())
    best = statistics.median(max(rows / seconds for rows, seconds in one["medians"].items()) for one in alone)
    session = statistics.median(one["session"] for one in alone)
    single = statistics.median(1 / one["medians"][1] for one in alone)
    return {"raw": best, "single": single, "session": session, "size": path.stat().st_size, "started": started, "memory": memory,
            "cells": {cell: middle(found) for cell, found in cells.items()}}  # fmt: skip


def texts(options, folder: pathlib.Path) -> dict:
    """Requests with texts of different lengths, which only those of one length can be run together with."""
    path, random = models.bert(folder / "texts.onnx", layers=6, width=384), np.random.default_rng(1)
    lengths = np.clip(np.round(random.lognormal(3, 0.6, TEXTS)), 4, 128).astype(int).tolist()
    requests = [request_to("texts", path, random.integers(0, 30000, (1, length))) for length in lengths]
    alone, cells, memory = [], collections.defaultdict(list), {}
    for turn in range(options.rounds):
        alone.append(statistics.mean(raw(path, [1], 0.2, length)["medians"][1] for length in lengths))
        for kind in options.servers:
            with Server(kind, "texts", path, fresh(folder)) as server:
                for connections in CONNECTIONS:
                    found = measure(server, "REST JSON", requests, connections, 2 * options.seconds)
                    cells[kind, connections].append(found)
                    say(f"{turn + 1}/{options.rounds} texts, {kind}, {connections} connections: {found.rate:.1f}/s")
                memory[kind] = max(memory.get(kind, 0), server.peak_memory())
    return {"raw": 1 / statistics.median(alone), "lengths": lengths, "memory": memory, "cells": {cell: middle(found) for cell, found in cells.items()}}


def overload(options, folder: pathlib.Path) -> dict:
    """What is left of a server's rate when more comes than it can answer: requests at a rate, and a client that waits 100 ms."""
    path = models.mlp(folder / "wide.onnx", 64, 4096, 4096, 4096, 10)
    request = request_to("wide", path, np.random.default_rng(1).standard_normal((1, 64)).astype(np.float32), DEADLINE)
    most, answered = collections.defaultdict(list), collections.defaultdict(list)
    for turn in range(options.rounds):
        for kind in options.servers:
            with Server(kind, "wide", path, fresh(folder)) as server:
                most[kind].append(measure(server, "REST JSON", [request], 64, options.seconds).rate)
                answered[kind].append([goodput(server, request, times * most[kind][-1], 3 * options.seconds, DEADLINE) for times in MULTIPLES])
            shares = [f"{rate / most[kind][-1]:.2f}" for rate in answered[kind][-1]]
            say(f"{turn + 1}/{options.rounds} {kind}: {most[kind][-1]:.0f}/s at most; of that within {DEADLINE * 1000:.0f} ms: {', '.join(shares)}")
    shares = {kind: zip(*([rate / most for rate in rates] for most, rates in zip(most[kind], answered[kind]))) for kind in most}
    return {kind: (statistics.median(most[kind]), dict(zip(MULTIPLES, map(statistics.median, shares[kind])))) for kind in most}


def fresh(folder: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(tempfile.mkdtemp(dir=folder))


def mlp(options, folder: pathlib.Path) -> dict:
    return small(options, folder, "mlp", models.mlp(folder / "mlp.onnx", 64, 256, 256, 10))


def digits(options, folder: pathlib.Path) -> dict:
    return small(options, folder, "digits", models.digits(folder / "digits.onnx"))


def bert(options, folder: pathlib.Path) -> dict:
    return large(options, folder, "bert", models.bert, np.random.default_rng(1).integers(0, 30000, (1, TOKENS)))


def resnet50(options, folder: pathlib.Path) -> dict:
    image = np.random.default_rng(1).standard_normal((1, 3, 224, 224)).astype(np.float32)
    return large(options, folder, "resnet50", models.resnet50, image)


PARTS = {"mlp": mlp, "digits": digits, "bert": bert, "resnet50": resnet50, "texts": texts, "overload": overload}


def some_of(known):
    """Reads a list with commas, of known names."""

    def read(text: str) -> list[str]:
        for name in (names := text.split(",")):
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return names

    return read


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=3, help="of which the medians count")
    parser.add_argument("--parts", type=some_of(PARTS), default=list(PARTS), help="what is measured")
    parser.add_argument("--servers", type=some_of(SERVERS), default=SERVERS)
    parser.add_argument("--report", type=pathlib.Path, help="a document that the tables go into, and the plot beside it")
    options = parser.parse_args()
    results, failed = {}, []
    with tempfile.TemporaryDirectory() as folder:
        for part in options.parts:
            # What was measured before something fails is told all the same.
            try:
                results[part] = PARTS[part](options, pathlib.Path(folder))
            except (AssertionError, OSError, subprocess.SubprocessError) as error:
                failed.append(f"{part}: {error}")
    text = report.tables(results)
    print(text)
    if options.report:
        report.write(options.report, text, results)
    if failed:
        sys.exit("not measured: " + "; ".join(failed))


if __name__ == "__main__":
    main()
