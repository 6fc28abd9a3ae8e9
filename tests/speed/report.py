"""The tables of what was measured, and the plot."""

import datetime
import pathlib

import matplotlib

import measured

NAMES = {"ortolan": "Ortolan", "mlserver": "MLServer 1.7.1", "kserve": "KServe 0.21.0", "litserve": "LitServe 0.2.19"}
MIB = 1 << 20


def rows(head: list[str], lines: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(line)} |" for line in lines), ""]


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def tables(results: dict) -> str:
    lines = [f"{measured.machine()}, {datetime.date.today()}: the server on one processor, the tool that loads it on another.", ""]
    for part, found in results.items():
        lines += PARTS[part](found)
    return "\n".join(lines).rstrip()


def small(title: str, found: dict) -> list[str]:
    raw, cells = found["raw"], found["cells"]
    lines = [f"**{title}**, one row a request. ONNX Runtime alone: {raw * 1e6:.1f} µs a run, from Python "
             f"{found['python'] * 1e6:.1f}. A program that answers without looking at the request: p50 {found['floor'] * 1e6:.0f} µs over HTTP at one connection.", ""]  # fmt: skip
    table = []
    for kind, protocol in dict.fromkeys((kind, protocol) for kind, protocol, _ in cells):
        of = {connections: cells[kind, protocol, connections] for connections in (1, 8, 64)}
        over = (of[1].p50 - raw - found["floor"]) * 1e6
        table.append([
            f"{NAMES[kind]}, {protocol}", *(number(of[connections].rate) for connections in (1, 8, 64)),
            f"{of[1].p50 * 1e6:.0f} / {of[1].p99 * 1e6:.0f}", f"{over:.0f}", f"{of[64].p99 * 1e3:.1f}", f"{of[64].cpu:.3f}",
            f"{found['memory'][kind] / MIB:.0f}",
        ])  # fmt: skip
    lines += rows(["", "requests/s, 1 connection", "8", "64", "p50 / p99 at 1, µs", "p50 over both, µs", "p99 at 64, ms",
                   "CPU s for 1,000 at 64", "peak MiB"], table)  # fmt: skip
    ratios = []
    for kind, protocol, connections in cells:
        if kind == "ortolan" or connections == 1:
            continue
        ratios.append(f"{cells['ortolan', protocol, connections].rate / cells[kind, protocol, connections].rate:.0f} × {NAMES[kind]} ({protocol}, {connections})")
    lines += ["Requests a second: " + ", ".join(ratios) + ".", ""]
    started = ", ".join(f"{NAMES[kind]} {seconds * 1e3:.0f} ms" for kind, seconds in found["started"].items())
    return [*lines, f"From the start of the process until it is ready: {started}.", ""]


def large(title: str, found: dict) -> list[str]:
    lines = [f"**{title}**, random weights, {found['size'] / MIB:.0f} MiB, gRPC. ONNX Runtime alone: {found['single']:.1f} rows/s one by one, "
             f"{found['raw']:.1f} at best; its session takes {found['session']:.2f} s to make.", ""]  # fmt: skip
    table = []
    for kind in dict.fromkeys(kind for kind, _ in found["cells"]):
        of = {connections: found["cells"][kind, connections] for connections in (1, 8)}
        table.append([NAMES[kind], f"{of[1].rate:.1f}", f"{of[8].rate:.1f}", f"{of[8].rate / found['raw']:.0%}", f"{of[1].p50 * 1e3:.1f} / {of[1].p99 * 1e3:.1f}",
                      f"{found['memory'][kind] / MIB:.0f}", f"{found['started'][kind]:.2f}"])  # fmt: skip
    return lines + rows(["", "rows/s, 1 connection", "8", "of ONNX Runtime at best", "p50 / p99 at 1, ms", "peak MiB", "ready after, s"], table)


def texts(found: dict) -> list[str]:
    lengths, cells = sorted(found["lengths"]), found["cells"]
    lines = [f"**Texts of {lengths[0]} to {lengths[-1]} tokens**, {lengths[len(lengths) // 2]} at the median, one a request over REST JSON, in MiniLM-L6's shape "
             f"with random weights. ONNX Runtime alone: {found['raw']:.0f} texts/s one by one.", ""]  # fmt: skip
    table = []
    for kind in dict.fromkeys(kind for kind, _ in cells):
        of = {connections: cells[kind, connections] for connections in (1, 8, 64)}
        table.append([NAMES[kind], *(number(of[connections].rate) for connections in (1, 8, 64)), f"{of[64].rate / found['raw']:.0%}",
                      *(f"{of[connections].p50 * 1e3:.1f} / {of[connections].p99 * 1e3:.1f}" for connections in (1, 64)), f"{of[64].cpu:.2f}",
                      f"{found['memory'][kind] / MIB:.0f}"])  # fmt: skip
    return lines + rows(["", "texts/s, 1 connection", "8", "64", "of ONNX Runtime one by one", "p50 / p99 at 1, ms", "at 64, ms", "CPU s for 1,000 at 64", "peak MiB"], table)


def overload(found: dict) -> list[str]:
    lines = ["**Overload**: MLP 64-4096-4096-4096-10 over REST, requests at a rate, whose clients leave after 100 ms. Answers in time, as a share of "
             "what the server answers at most:", ""]  # fmt: skip
    multiples = list(next(iter(found.values()))[1])
    table = [[NAMES[kind], number(most), *(f"{curve[times]:.0%}" for times in multiples)] for kind, (most, curve) in found.items()]
    return lines + rows(["", "at most, requests/s", *(f"{times} ×" for times in multiples)], table) + ["![Answers in time under overload](overload.svg)", ""]


PARTS = {
    "mlp": lambda found: small("MLP 64-256-256-10", found),
    "digits": lambda found: small("The example's digits", found),
    "bert": lambda found: large("BERT-base's shape, 32 tokens", found),
    "resnet50": lambda found: large("ResNet-50's shape, 224 × 224", found),
    "texts": texts,
    "overload": overload,
}


def plot(found: dict, path: pathlib.Path):
    matplotlib.use("svg")
    # The same picture for the same figures.
    matplotlib.rcParams["svg.hashsalt"] = "ortolan"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    for kind, (_, curve) in found.items():
        axes.plot(list(curve), [100 * share for share in curve.values()], marker="o", label=NAMES[kind])
    axes.plot([0, 1, max(curve)], [0, 100, 100], color="0.7", linestyle="--", label="all that is possible", zorder=0)
    axes.set(xlabel="requests that come, as a multiple of what the server answers at most", ylabel="answered in time, %", xlim=0, ylim=0)
    axes.legend()
    figure.savefig(path, metadata={"Date": None})


def write(path: pathlib.Path, text: str, results: dict):
    measured.write(path, "make speed-bench", text)
    if "overload" in results:
        plot(results["overload"], path.with_name("overload.svg"))
