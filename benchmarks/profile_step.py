"""The times of the operations in a step: python -m benchmarks.profile_step [--elements N] [--moments NAME ...].

For each storage of the moments a table of the slowest operations of the compiled AdamW step, by XLA's names for them.
"""

import argparse
import collections
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

import jaxopt_adam
from benchmarks import report, work

NAMES = ("float32", "bfloat16", "int8", "int4")


def profile(run: Callable[[], Any], repetitions: int = 20) -> str:
    """A Markdown table of the slowest operations."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(repetitions):
                run()
        (file,) = Path(folder).rglob("*.xplane.pb")
        found = collections.defaultdict(list)
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
            for line in plane.lines:
                for event in line.events:
                    if "fusion" in event.name and ":" not in event.name:
                        found[event.name].append(event.duration_ns / 1e9)
    rows = sorted(((statistics.median(each), name) for name, each in found.items()), reverse=True)
    shown = [[name, report.seconds(median)] for median, name in rows[:5]]
    rest = sum(median for median, _ in rows[5:])
    return report.table(["operation", "median"], [*shown, [f"{len(rows[5:])} others", report.seconds(rest)]])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", type=int, default=4096 * 4096, help="a multiple of 4,096")
    parser.add_argument("--moments", nargs="+", choices=NAMES, default=NAMES)
    options = parser.parse_args()
    if options.elements < 4096 or options.elements % 4096:
        parser.error(f"--elements must be a multiple of 4096, got {options.elements}")
    for name in options.moments:
        optimizer = jaxopt_adam.adamw(1e-3, moments=name)
        prepared = work.step(optimizer, {"w": (options.elements // 4096, 4096)})()
        prepared.run()
        print(f"moments={name!r}:\n\n{profile(prepared.run)}")


if __name__ == "__main__":
    main()
