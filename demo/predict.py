#!/usr/bin/env python3
"""Shows some held-out digits with what the served model says, and how often it is right over all of them.

    predict.py URL      (of the model's Service, as http://10.96.0.17)
"""

import json
import pathlib
import sys
import urllib.request

DIGITS = pathlib.Path(__file__).resolve().parents[1] / "examples" / "digits"
SHADES = " .:-=+*#%@"


def ask(url: str, images: list[list[float]]) -> list[int]:
    """The labels of `images` (rows of 64 pixels from 0 to 16)."""
    tensor = {"name": "pixels", "datatype": "FP32", "shape": [len(images), 64], "data": sum(images, [])}
    request = urllib.request.Request(
        f"{url}/v2/models/digits/infer",
        json.dumps({"inputs": [tensor], "outputs": [{"name": "label"}]}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)["outputs"][0]["data"]


def drawn(image: list[float]) -> list[str]:
    """An image as eight lines of text."""
    pixels = [SHADES[min(int(pixel / 16 * 9.99), 9)] * 2 for pixel in image]
    return ["".join(pixels[row * 8 : row * 8 + 8]) for row in range(8)]


def main() -> None:
    url = sys.argv[1]
    held = json.loads((DIGITS / "holdout.json").read_text())
    shown = held["pixels"][:5]
    for lines in zip(*map(drawn, shown)):
        print("   ".join(lines))
    for label in ask(url, shown):
        print(f"{f'that is a {label}':^16}", end="   ")
    labels = sum((ask(url, held["pixels"][start : start + 60]) for start in range(0, 360, 60)), [])
    right = sum(answer == truth for answer, truth in zip(labels, held["labels"], strict=True))
    print(f"\n\n{right} of {len(labels)} images it has never seen are read right: accuracy {right / len(labels):.1%}")


main()
