"""The tables of the page that compares libraries, from the measurements in docs/tables."""

import itertools
import json
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from IPython.display import Markdown

TABLES = Path(__file__).parent / "tables"
SPEED = json.loads((TABLES / "speed.json").read_text())
OTHERS = ("optax", "torch", "bitsandbytes", "optimistix", "a ")
"""The first letters of the names of contestants that are not of this library."""


def speed(
    library: str | tuple[str, ...], scenes: Iterable[str] = tuple(SPEED), pairs: Mapping[str, str] | None = None
) -> Markdown:
    """The times of this library beside those of another one.

    Args:
        library: the first letters of the names of the other library's contestants, or several such.
        scenes: the keys of the scenes in the measurements.
        pairs: for contestants of this library that of the other one; None for all pairs.
    """
    rows = [_row(*case) for case in _cases(library, scenes, pairs)]
    return _table(["work", "here / there", "here", "there"], rows)


def versions(*names: str) -> Markdown:
    """A sentence with the machine and the versions that were measured."""
    about = SPEED["step"]
    known = ", ".join(f"{name} {about['versions'][name]}" for name in names)
    return Markdown(f"Measured on {about['date']}, {about['machine']}: {known}.")


def errors(training: str) -> Markdown:
    """The bytes and the errors of each storage of moments, as far as they matter to compare libraries."""
    lines = (TABLES / "moments_error.md").read_text().splitlines()
    head = "training | moments | bytes a parameter | once: | largest | replayed: | largest | mean log error of ν"
    names = [re.sub(r":.*", ":", cell) for cell in _cells(lines[0])]
    assert names == head.split(" | "), lines[0]
    rows = []
    for line in lines[2:]:
        if line.startswith("|") and _cells(line)[0] == training:
            _, moments, size, _, _, replayed, largest, bias = _cells(line)
            rows.append([moments, size, *replayed.split(", "), largest, bias])
    (steps,) = re.findall(r"replayed: error at ([\d, ]+\d)", lines[0])
    errors = [f"error at {step}" for step in steps.split(", ")]
    return _table(["moments", "bytes a parameter", *errors, "largest", "mean log error of ν"], rows)


def _cases(
    library: str | tuple[str, ...], scenes: Iterable[str], pairs: Mapping[str, str] | None
) -> Iterator[tuple[str, dict[str, Any], str, str]]:
    """Each case of the scenes with each contestant of this library and each of the other one."""
    for scene in map(SPEED.__getitem__, scenes):
        for name, case in scene["cases"].items():
            for here, there in itertools.permutations(case["contestants"], 2):
                theirs = there.startswith(library) and not here.startswith(OTHERS)
                if theirs and (pairs is None or pairs.get(here) == there):
                    yield f"{scene['title']}: {name}", case, here, there


def _row(work: str, case: dict[str, Any], here: str, there: str) -> list[str]:
    timed = [f"{name}: {_seconds(case['contestants'][name]['seconds']['step'])}" for name in (here, there)]
    relative = statistics.median(case["contestants"][here]["beside"][there])
    return [work, f"{relative:.2f}" if relative >= 0.095 else f"{relative:.1g}", *timed]


def _seconds(values: list[float]) -> str:
    value = statistics.median(values)
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= size:
            return f"{value / size:.3g}\N{NO-BREAK SPACE}{unit}"
    raise ValueError(value)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _table(head: list[str], rows: list[list[str]]) -> Markdown:
    assert rows
    words = {"work", "here", "there", "moments"}
    rule = ["---" if name in words else "--:" for name in head]
    return Markdown("\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *rows]))
