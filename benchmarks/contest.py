"""Contestants that take turns, in several processes, and what came of it."""

import dataclasses
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

Parts = dict[str, float]
"""Seconds by what they were spent on; most contestants have one part, ``step``."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A contestant that is ready to run.

    Attributes:
        run: do it once; the seconds of each part.
        counts: what was counted exactly, such as bytes of temporaries.
    """

    run: Callable[[], Parts]
    counts: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Case:
    """Contestants that do the same work.

    Attributes:
        name: the work.
        contestants: by name, a function that prepares each.
        reference: the contestant whose time is 1.
        seconds: the time for the rounds of all contestants together.
        rounds: at least so many rounds.
        most: the ratio to the reference that a contestant of ours should not exceed, by its name.
        warm: whether a first run is left out.
    """

    name: str
    contestants: Mapping[str, Callable[[], Prepared]]
    reference: str
    seconds: float = 1.0
    rounds: int = 5
    most: Mapping[str, float] = dataclasses.field(default_factory=dict)
    warm: bool = True


@dataclasses.dataclass(frozen=True)
class Scene:
    """Cases that belong together.

    Attributes:
        name: as in ``--only NAME``.
        title: the heading of its section.
        text: what is measured, for readers.
        cases: the cases of a process; quick ones are smaller.
        processes: how many processes are enough.
        devices: on how many virtual devices, where there is no accelerator.
        cached: whether programs that a process has compiled serve the next ones too; not where compiling is measured.
    """

    name: str
    title: str
    text: str
    cases: Callable[[bool], Iterator[Case]]
    processes: int = 5
    devices: int = 1
    cached: bool = True


def measured(case: Case, seed: int) -> dict[str, dict[str, Any]]:
    """The medians of one process: seconds, and times relative to each other contestant; and the counts.

    Contestants take turns in another order in each round, because one leaves memory and caches to the next. They are
    prepared in turn too: from process to process each moves on by one place. The arrays of the first one lie in memory
    in which the same step takes up to a fifth longer.
    """
    order = random.Random(seed)
    prepared = dict(_prepared(case, seed))
    names = [name for name in case.contestants if name in prepared]
    found: dict[str, list[Parts]] = {name: [] for name in names}
    if case.warm:
        for each in prepared.values():
            each.run()
    end = time.perf_counter() + case.seconds
    while min(map(len, found.values())) < case.rounds or (case.rounds > 1 and time.perf_counter() < end):
        for name in order.sample(names, len(names)):
            found[name].append(prepared[name].run())
    steps = {name: [each["step"] for each in rounds] for name, rounds in found.items()}
    return {
        name: {
            "seconds": {part: statistics.median(each[part] for each in rounds) for part in rounds[0]},
            # By rounds, since a machine may be half as fast a moment later.
            "beside": {
                other: statistics.median(one / each for one, each in zip(steps[name], steps[other], strict=True))
                for other in names
            },
            "counts": dict(prepared[name].counts),
        }
        for name, rounds in found.items()
    }


def _prepared(case: Case, seed: int) -> Iterator[tuple[str, Prepared]]:
    names = list(case.contestants)
    first = seed % len(names)
    for name in names[first:] + names[:first]:
        try:
            yield name, case.contestants[name]()
        except ImportError as error:
            print(f"{case.name}: without {name}, since {error.name} is not installed", file=sys.stderr)


def timed(function: Callable[[], Any]) -> Callable[[], Parts]:
    """A run of `function` until its arrays are ready."""

    def run() -> Parts:
        start = time.perf_counter()
        jax.block_until_ready(function())
        return {"step": time.perf_counter() - start}

    return run
