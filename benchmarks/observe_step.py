"""The cost of observe for a float32 Adam step with donated buffers: python benchmarks/observe_step.py [--elements N].

Steps with and without it take turns. At this size every hundredth step is observed, so there are hundreds of rounds.
The result is the ratio of the means. With --table FILE the figures are written as a table too; that of the
documentation is docs/tables/observe_step.md.
"""

import argparse
import statistics
from pathlib import Path

import jax
from adam_step import contestant

from jaxopt_adam import adam, observe


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", type=int, default=32 * 1024 * 1024)
    parser.add_argument("--hundreds", type=int, default=2, help="how many hundreds of steps")
    parser.add_argument("--table", type=Path, help="a file to write the figures to, as a table in Markdown")
    options = parser.parse_args()
    contestants = {
        "adam": contestant(adam(1e-3), options.elements),
        "observe(adam)": contestant(observe(adam(1e-3)), options.elements),
    }
    grads = jax.random.normal(jax.random.key(0), (options.elements,))
    seconds = {name: [] for name in contestants}
    for _ in range(100 * options.hundreds + 1):
        for name, timed in contestants.items():
            seconds[name].append(timed(grads))
    device = jax.devices()[0].device_kind
    rows = [
        f"On {device}, {options.elements:,} elements in one leaf, {100 * options.hundreds} steps.",
        "",
        "| step | median | longest | mean | mean, of that without |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, each in seconds.items():
        # The first step differs from the others, because its buffers are new.
        mean, without = (statistics.mean(of[1:]) for of in (each, seconds["adam"]))
        median, longest = statistics.median(each[1:]), max(each[1:])
        rows.append(
            f"| {name} | {1e3 * median:.1f} ms | {1e3 * longest:.0f} ms | {1e3 * mean:.1f} ms | {mean / without:.2f} |"
        )
    print("\n".join(rows))
    if options.table:
        options.table.write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
