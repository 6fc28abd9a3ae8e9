"""Open-loop load by vegeta: requests leave on time whether or not the last ones were answered."""

import dataclasses
import datetime
import json
import os
import pathlib
import subprocess
import tempfile

import numpy as np


@dataclasses.dataclass
class Answer:
    """One request: when it was sent (seconds since the epoch), how long it took (seconds), and what came back."""

    sent: float
    seconds: float
    code: int
    error: str


class Load:
    """A running attack on one url with one body, each request over a connection of its own.

    A kept connection stays with the pod it once reached, since a Service balances connections and not requests; `kept` keeps
    connections all the same, as most clients do, for what only they would notice. `authority`: the file of the one that a
    server with TLS must have its certificate of.
    """

    def __init__(
        self, url: str, body: bytes, rate: int, seconds: int, kept: bool = False, timeout: int = 20, source: str = "0.0.0.0",
        authority: pathlib.Path | None = None,
    ):  # fmt: skip
        self.folder = tempfile.TemporaryDirectory()
        folder = pathlib.Path(self.folder.name)
        (folder / "body").write_bytes(body)
        (folder / "target").write_text(f"POST {url}\nContent-Type: application/json\n@{folder / 'body'}\n")
        self.results = folder / "results"
        self.process = subprocess.Popen(
            [
                os.environ["VEGETA"], "attack", "-targets", str(folder / "target"), "-rate", f"{rate}/s",
                "-duration", f"{seconds}s", "-timeout", f"{timeout}s", f"-keepalive={str(kept).lower()}",
                "-laddr", source, "-output", str(self.results), *(["-root-certs", str(authority)] if authority else []),
            ]
        )

    def running(self) -> bool:
        return self.process.poll() is None

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()

    def answers(self) -> list[Answer]:
        """All answers, once the attack is over."""
        self.process.wait()
        text = subprocess.run(
            [os.environ["VEGETA"], "encode", "-to", "json", str(self.results)], capture_output=True, text=True, check=True
        ).stdout
        self.folder.cleanup()
        answers = []
        for line in text.splitlines():
            result = json.loads(line)
            # Nanoseconds are more digits than fromisoformat takes.
            stamp = datetime.datetime.fromisoformat(result["timestamp"])
            answers.append(Answer(stamp.timestamp(), result["latency"] / 1e9, result["code"], result["error"]))
        return answers


def failures(answers: list[Answer]) -> list[str]:
    """What went wrong, each once, with how often."""
    texts = [f"{answer.code} {answer.error}" for answer in answers if answer.code != 200]
    return [f"{texts.count(text)} × {text}" for text in sorted(set(texts))]


def p99(answers: list[Answer]) -> float:
    """The 99th percentile of the latency in seconds; not a number without answers."""
    return float(np.quantile([answer.seconds for answer in answers], 0.99)) if answers else float("nan")
