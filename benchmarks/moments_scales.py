"""Adam's update with codes for moments, for gradients of unlike sizes: python benchmarks/moments_scales.py.

Random gradients, in which each element has a scale of its own, go to Adam with moments in codes and in float32. Blocks
have the length of those of small leaves and the length of those of large leaves. Writes docs/tables/moments_scales.md.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxopt_adam import adam
from jaxopt_adam.storage import Blockwise

SHAPE = (128, 256)
DECADES = {"of like sizes": 0.0, "over two decades": 2.0, "over four decades": 4.0, "over eight decades": 8.0}
BLOCKS = {("8 bits", "small"): 32, ("8 bits", "large"): 128, ("4 bits", "small"): 16, ("4 bits", "large"): 64}
"""The longest blocks of small leaves, and those of leaves with a million elements or more."""

ROOT = Path(__file__).parents[1]


def compared(bits: int, block_size: int, decades: float, steps: int, seed: int) -> Array:
    """The error of the last updates and their projection on the exact ones, relative to the norm of these."""
    key, of_scales = jax.random.split(jax.random.key(seed))
    exact, coded = adam(1.0), adam(1.0, moments=Blockwise(bits, block_size=block_size))
    scales = 10.0 ** jax.random.uniform(of_scales, SHAPE, minval=-decades / 2, maxval=decades / 2)

    def step(states: Any, step: Array) -> tuple[Any, Array]:
        gradients = scales * jax.random.normal(jax.random.fold_in(key, step), SHAPE)
        updates: list[Any] = [exact.update(gradients, states[0]), coded.update(gradients, states[1])]
        (right, one), (update, other) = updates
        norm = jnp.linalg.norm(right)
        return (one, other), jnp.array([jnp.linalg.norm(update - right) / norm, jnp.vdot(update, right) / norm**2])

    zeros = jnp.zeros(SHAPE)
    _, found = jax.lax.scan(step, (exact.init(zeros), coded.init(zeros)), jnp.arange(steps))
    return found[-100:].mean(0)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    heads = [f"{bits}, blocks of {BLOCKS[bits, leaf]} ({leaf} leaves)" for bits, leaf in BLOCKS]
    lines = [
        "| gradients in a block | " + " | ".join(f"{head}: error, projection" for head in heads) + " |",
        "|---|" + "--:|" * len(heads),
    ]
    found = {
        (each, name): jax.jit(compared, static_argnums=(0, 1, 3))(
            int(each[0][0]), BLOCKS[each], decades, options.steps, options.seed
        )
        for each in BLOCKS
        for name, decades in DECADES.items()
    }
    for name in DECADES:
        cells = [f"{found[each, name][0]:.3f}, {found[each, name][1]:.2f}" for each in BLOCKS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    table = "\n".join(lines)
    print(table)
    (ROOT / "docs" / "tables" / "moments_scales.md").write_text(table + "\n")


if __name__ == "__main__":
    main()
