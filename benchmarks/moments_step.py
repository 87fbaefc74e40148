"""One AdamW step with moments in codes against optax's in float32: python benchmarks/moments_step.py [--elements N].

The contestants take turns, so that noise affects all alike. Each round has another order, because a step depends on the
state in which its predecessor leaves memory and caches. The results are the ratios of the medians. The table also has
the bytes of temporaries of the compiled step, and the share of the memory's bandwidth that the step reaches, counting
each byte of parameters, gradients and state once; the bandwidth is that of a plain loop. Writes
docs/tables/moments_step.md.

With --profile it prints instead the times of the operations of the compiled steps.
"""

import argparse
import collections
import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxopt_adam
from jaxopt_adam.storage import Blockwise

ROOT = Path(__file__).parents[1]


def contestants() -> dict[str, optax.GradientTransformation]:
    """The optimizers by name, optax's first."""
    made: dict[str, optax.GradientTransformation] = {"optax.adamw, float32": optax.adamw(1e-3)}
    for moments in ("float32", "bfloat16"):
        made[f"adamw, {moments}"] = jaxopt_adam.adamw(1e-3, moments=moments)
    for bits in (8, 4):
        for rounding in ("nearest", "dither"):
            made[f"adamw, int{bits}, {rounding}"] = jaxopt_adam.adamw(1e-3, moments=Blockwise(bits, rounding=rounding))
    if jax.default_backend() == "gpu":
        for implementation in ("xla", "pallas"):
            storage = Blockwise(8, implementation=implementation)
            made[f"adamw, int8, dither, {implementation}"] = jaxopt_adam.adamw(1e-3, moments=storage)
    return made


def prepared(
    optimizer: optax.GradientTransformation, shape: tuple[int, ...]
) -> tuple[Callable[[jax.Array], float], int, int]:
    """A function that does a step and returns its seconds; its bytes of temporaries; the bytes that it has to move."""

    def step(params: jax.Array, state: optax.OptState, grads: jax.Array) -> tuple[Any, optax.OptState]:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = jnp.zeros(shape)
    carry: Any = params, optimizer.init(params)
    moved = 2 * jaxopt_adam.nbytes(carry) + params.nbytes
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*carry, params).compile()
    analysis = compiled.memory_analysis()
    temporaries = -1 if analysis is None else analysis.temp_size_in_bytes

    def timed(grads: jax.Array) -> float:
        nonlocal carry
        start = time.perf_counter()
        carry = jax.block_until_ready(compiled(*carry, grads))
        return time.perf_counter() - start

    return timed, temporaries, moved


def bandwidth(shape: tuple[int, ...]) -> float:
    """Bytes a second that a plain in-place loop reads and writes."""
    compiled = jax.jit(lambda x: x + 1, donate_argnums=0)
    array, seconds = compiled(jnp.zeros(shape)), []
    for _ in range(20):
        start = time.perf_counter()
        array = jax.block_until_ready(compiled(array))
        seconds.append(time.perf_counter() - start)
    return 8 * math.prod(shape) / statistics.median(seconds)


def profile(timed: Callable[[jax.Array], float], grads: jax.Array, repetitions: int = 20) -> str:
    """A Markdown table of the slowest operations of a step, by XLA's names for them."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(repetitions):
                timed(grads)
        (file,) = Path(folder).rglob("*.xplane.pb")
        found = collections.defaultdict(list)
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
            for line in plane.lines:
                for event in line.events:
                    if "fusion" in event.name and ":" not in event.name:
                        found[event.name].append(event.duration_ns / 1e6)
    rows = sorted(((statistics.median(each), name) for name, each in found.items()), reverse=True)
    shown = [f"| {name} | {median:.2f} ms |" for median, name in rows[:5]]
    rest = sum(median for median, _ in rows[5:])
    return "\n".join(["| operation | median |", "|---|--:|", *shown, f"| {len(rows) - 5} others | {rest:.2f} ms |", ""])


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--elements", type=int, default=4096 * 4096, help="a multiple of 4,096")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--profile", action="store_true", help="print the times of the operations of steps in codes")
    options = parser.parse_args()
    if options.elements < 4096 or options.elements % 4096:
        parser.error(f"--elements must be a multiple of 4096, got {options.elements}")
    shape = (options.elements // 4096, 4096)
    grads = jax.random.normal(jax.random.key(0), shape)
    steps = {name: prepared(optimizer, shape) for name, optimizer in contestants().items()}
    for timed, _, _ in steps.values():
        timed(grads)
    if options.profile:
        for name in steps:
            if "int" in name:
                print(f"{name}:\n\n{profile(steps[name][0], grads)}")
        return
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    order = random.Random(0)
    for _ in range(options.rounds):
        for name in order.sample(list(steps), len(steps)):
            seconds[name].append(steps[name][0](grads))
    speed = bandwidth(shape)
    first = statistics.median(next(iter(seconds.values())))
    device = jax.devices()[0]
    rows = [
        f"On {device.device_kind} ({device.platform}, {options.elements:,} elements in one leaf).",
        "",
        "| step | median | of optax's time | temporaries | of the memory's bandwidth |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, (_, temporaries, moved) in steps.items():
        median = statistics.median(seconds[name])
        rows.append(
            f"| {name} | {1e3 * median:.1f} ms | {median / first:.2f} | {temporaries / 2**20:.1f} MiB | "
            f"{moved / median / speed:.0%} |"
        )
    table = "\n".join(rows) + "\n"
    print(table)
    target = ROOT / "docs" / "tables" / "moments_step.md"
    target.parent.mkdir(exist_ok=True)
    target.write_text(table, encoding="utf-8")


if __name__ == "__main__":
    main()
