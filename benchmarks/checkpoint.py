"""Bytes and times of a checkpoint: python -m benchmarks.checkpoint [--parameters N] [--moments NAME] [--folder FOLDER].

The bytes on disk of AdamW's state beside those in memory; the time that a save takes, and that for which it holds up
the training; and the time to read the checkpoint, with its files checked. It prints the results and writes no table.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import jaxopt_adam
from benchmarks import report
from jaxopt_adam.checkpoint import Checkpoints

SHAPE = (1000, 4000)
"""The shape of a leaf."""

NAMES = ("float32", "bfloat16", "int8", "int4")


def seconds(run: Callable[[], Any]) -> float:
    """The time of a call, with what it has started on the devices."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def measure(optimizer: Any, leaves: int, folder: Path, steps: int) -> str:
    """A Markdown table of bytes and times."""
    params = {f"w{index}": jnp.full(SHAPE, 1.0 + index, jnp.bfloat16) for index in range(leaves)}
    state = optimizer.init(params)

    @jax.jit(donate_argnums=(0, 1))
    def step(params: Any, state: Any) -> Any:
        gradients = jax.tree.map(lambda leaf: leaf * jnp.linspace(-1.0, 1.0, leaf.shape[-1], dtype=leaf.dtype), params)
        updates, state = optimizer.update(gradients, state, params)
        return jax.tree.map(lambda leaf, update: leaf + update, params, updates), state

    def run() -> Any:
        nonlocal params, state
        params, state = step(params, state)
        return params, state

    run_times = [seconds(run) for _ in range(steps + 1)][1:]
    with Checkpoints(folder, optimizer, keep=1) as checkpoints:
        start = time.perf_counter()
        checkpoints.save(1, state)
        held_alone = time.perf_counter() - start
        checkpoints.wait()
        alone = time.perf_counter() - start
        on_disk = sum(each.stat().st_size for each in (folder / "1").rglob("*") if each.is_file())
        start = time.perf_counter()
        checkpoints.save(2, state)
        held = time.perf_counter() - start
        beside = [seconds(run) for _ in range(steps)]
        checkpoints.wait()
        reading = seconds(lambda: checkpoints.restore(state))
    in_memory = jaxopt_adam.nbytes(state)
    rows = [
        ["bytes in memory", f"{in_memory:,}"],
        ["bytes on disk", f"{on_disk:,} ({100 * (on_disk / in_memory - 1):+.3f} %)"],
        ["a save, until it is whole", report.seconds(alone)],
        ["of which the call of `save`", f"{report.seconds(held_alone)} ({100 * held_alone / alone:.1f} %)"],
        ["the call of `save` between steps", f"{report.seconds(held)} ({100 * held / alone:.1f} %)"],
        ["a step", report.seconds(statistics.median(run_times))],
        ["the first step after `save`", report.seconds(beside[0])],
        ["a step while it is written", report.seconds(statistics.median(beside))],
        ["to read it", report.seconds(reading)],
    ]
    return report.table(["AdamW's state", f"{leaves * SHAPE[0] * SHAPE[1]:,} parameters"], rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=float, default=2e8, help="rounded up to whole leaves of 4 million")
    parser.add_argument("--moments", choices=NAMES, default="int8")
    parser.add_argument(
        "--folder", type=Path, help="where the checkpoint is written, and deleted; by default a new one"
    )
    parser.add_argument("--steps", type=int, default=5, help="how many steps are timed before and after the save")
    options = parser.parse_args()
    leaves = -int(-options.parameters // (SHAPE[0] * SHAPE[1]))
    if leaves < 1 or options.steps < 1:
        parser.error("--parameters and --steps must be positive")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        optimizer = jaxopt_adam.adamw(1e-3, moments=options.moments)
        print(measure(optimizer, leaves, Path(folder) / "checkpoints", options.steps))


if __name__ == "__main__":
    main()
