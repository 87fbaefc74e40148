"""One float32 Adam step with donated buffers, ours against optax's: python benchmarks/adam_step.py [--elements N].

The contestants take turns, so that noise affects both alike. The result is the ratio of the medians. With --table FILE
the figures are written as a table too; that of the documentation is docs/tables/adam_step.md.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

import jaxopt_adam


def contestant(optimizer: optax.GradientTransformation, elements: int) -> Callable[[jax.Array], float]:
    """A function that does one step on an array of that many elements and returns the seconds that it took."""

    def step(params: jax.Array, state: optax.OptState, grads: jax.Array) -> tuple[jax.Array, optax.OptState]:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state  # pyright: ignore[reportReturnType]

    compiled = jax.jit(step, donate_argnums=(0, 1))
    params = jnp.zeros(elements)
    carry = params, optimizer.init(params)

    def timed(grads: jax.Array) -> float:
        nonlocal carry
        start = time.perf_counter()
        carry = jax.block_until_ready(compiled(*carry, grads))
        return time.perf_counter() - start

    return timed


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--elements", type=int, default=32 * 1024 * 1024)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--table", type=Path, help="a file to write the figures to, as a table in Markdown")
    options = parser.parse_args()
    contestants = {
        "jaxopt_adam.adam": contestant(jaxopt_adam.adam(1e-3), options.elements),
        "optax.adam": contestant(optax.adam(1e-3), options.elements),
    }
    grads = jax.random.normal(jax.random.key(0), (options.elements,))
    for timed in contestants.values():
        timed(grads)
    seconds = {name: [] for name in contestants}
    for _ in range(options.rounds):
        for name, timed in contestants.items():
            seconds[name].append(timed(grads))
    ours, theirs = (statistics.median(each) for each in seconds.values())
    for name, each in seconds.items():
        print(f"{name:18} median {1e3 * statistics.median(each):6.1f} ms, least {1e3 * min(each):6.1f} ms")
    device = jax.devices()[0].device_kind
    print(f"{options.elements:,} elements on {device}: ours takes {ours / theirs:.2f} of optax's time")
    if options.table:
        rows = [
            f"On {device}, {options.elements:,} elements in one leaf.",
            "",
            "| step | median | least | of optax's time |",
            "|---|--:|--:|--:|",
        ]
        for name, each in seconds.items():
            median = statistics.median(each)
            rows.append(f"| {name} | {1e3 * median:.1f} ms | {1e3 * min(each):.1f} ms | {median / theirs:.2f} |")
        options.table.write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
