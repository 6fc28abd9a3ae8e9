"""What documents say that a benchmark has measured."""

import os
import pathlib
import re


def machine() -> str:
    """The processors of this machine."""
    model = re.search(r"^model name\s*:\s*(.+)$", pathlib.Path("/proc/cpuinfo").read_text(), re.M)
    return f"{os.cpu_count()} × {model[1] if model else 'an unnamed processor'}"


def write(path: pathlib.Path, by: str, text: str):
    """Puts a text where a document has room for what is measured `by` a command."""
    begin, end = f"<!-- measured: {by} -->", "<!-- end -->"
    old = path.read_text()
    assert begin in old and end in old.split(begin, 1)[1], f"{path} has no place for what is measured: {begin} … {end}"
    before, rest = old.split(begin, 1)
    path.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end, 1)[1]}")
