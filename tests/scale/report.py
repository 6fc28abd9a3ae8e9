"""The table of what was measured."""

import datetime
import os

from measured import machine

# What the project wants of ten thousand models on two processors.
FIGURES = {"reconciled": 15 * 60, "edit p99": 1.0, "restart": 5.0, "memory at rest": 128 << 20}


def missed(results: dict) -> list:
    return [name for name, most in FIGURES.items() if results[name] > most]


def table(options, results: dict) -> str:
    mebibytes = lambda name: f"{results[name] / (1 << 20):.0f} MiB"  # noqa: E731
    seconds = lambda name: f"{results[name]:.1f} s"  # noqa: E731
    rows = [
        ("all children of the models exist", seconds("children"), ""),
        ("every model reconciled, its pod ready and looked at", seconds("reconciled"), "15 min"),
        ("edit of a model to its patched Deployment, p50", f"{results['edit p50'] * 1000:.0f} ms", ""),
        ("… p99", f"{results['edit p99'] * 1000:.0f} ms", "1 s"),
        ("start of a new operator to its first reconcile", seconds("restart"), "5 s"),
        ("… until every model was reconciled", seconds("restart all"), ""),
        ("resident memory at rest", mebibytes("memory at rest"), "128 MiB"),
        ("… after the restart", mebibytes("memory at rest after the restart"), "128 MiB"),
        ("… at most, while all models were made", mebibytes("peak"), ""),
        ("… at most, while a new operator filled its caches", mebibytes("peak after restart"), ""),
        ("calls to the API server for a model, from its creation until it serves", f"{results['calls']:.1f}", ""),
        (f"writes in {options.rest} s at rest", str(results["writes at rest"]), "0"),
        ("… after the restart", str(results["writes at rest after the restart"]), "0"),
        ("processors used at rest", f"{results['cpu at rest']:.2f}", ""),
    ]
    head = (f"{results['models']} models in {options.namespaces} namespaces, a pod each, one of a hundred with requests. "
            f"{machine()}, which also ran the whole control plane, kwok and the fake servers, {datetime.date.today()}; load average of the machine at the end: {os.getloadavg()[1]:.1f}.")
    lines = [head, "", "| | measured | wanted |", "|---|---|---|", *(f"| {a} | {b} | {c} |" for a, b, c in rows), "",
             f"The calls, for each model: {results['by call']}."]
    return "\n".join(lines)
