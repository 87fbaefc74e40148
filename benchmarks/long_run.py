"""Adam's update with moments in fewer bits over a long run: python benchmarks/long_run.py.

Random gradients, each element's times a scale of its own, shrink as those of a training run do. They go to Adam with
moments in fewer bits and in float32. The table shows the error and the projection of the update on the exact one, and
the mean logarithm of ν over the exact ν, at several steps. None of these should depend on the step. Writes
docs/tables/long_run.md.
"""

import argparse
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxopt_adam import adam, load_moments
from jaxopt_adam.storage import StorageName

SHAPE = (32, 256)
DECADES = 3.0
"""The decades that the scales of a block's gradients span."""
SHRINKS = 15_000
"""The number of steps in which gradients shrink by e."""
DECAYS = 0.999, 0.9999
"""The decays of ν."""
STRETCH = 500
"""The number of steps whose errors are averaged."""
SHOWN = 5_000, 10_000, 20_000, 40_000
STORAGES: dict[str, StorageName] = {"16 bits": "bfloat16", "8 bits": "int8", "4 bits": "int4"}

ROOT = Path(__file__).parents[1]


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def compared(moments: StorageName, b2: Array, stretches: int, seed: int) -> Array:
    """For each stretch of steps the error, the projection and the mean log error of ν."""
    key, of_scales = jax.random.split(jax.random.key(seed))
    exact, stored = adam(None, b2=b2), adam(None, b2=b2, moments=moments)
    scales = 10.0 ** jax.random.uniform(of_scales, SHAPE, minval=-DECADES / 2, maxval=DECADES / 2)

    def step(states: Any, step: Array) -> tuple[Any, Array]:
        size = jnp.exp(-step.astype(jnp.float32) / SHRINKS)
        gradients = size * scales * jax.random.normal(jax.random.fold_in(key, step), SHAPE)
        updates: list[Any] = [exact.update(gradients, states[0]), stored.update(gradients, states[1])]
        (right, one), (update, other) = updates
        norm = jnp.linalg.norm(right)
        return (one, other), jnp.array([jnp.linalg.norm(update - right) / norm, jnp.vdot(update, right) / norm**2])

    def stretch(states: Any, first: Array) -> tuple[Any, Array]:
        states, found = jax.lax.scan(step, states, first + jnp.arange(STRETCH))
        like: Any = jax.ShapeDtypeStruct(SHAPE, jnp.float32)
        nu: Any = load_moments(states[1], stored, like)
        return states, jnp.append(found.mean(0), jnp.log(nu.nu / states[0].nu).mean())

    zeros = jnp.zeros(SHAPE)
    return jax.lax.scan(stretch, (exact.init(zeros), stored.init(zeros)), STRETCH * jnp.arange(stretches))[1]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    lines = [
        "| moments | decay of ν | error, projection, mean log error of ν at "
        + " | at ".join(f"{step:,}" for step in SHOWN)
        + " |",
        "|---|--:|" + "--:|" * len(SHOWN),
    ]
    for name, moments in STORAGES.items():
        both = jax.vmap(lambda b2, moments=moments: compared(moments, b2, max(SHOWN) // STRETCH, options.seed))
        for b2, found in zip(DECAYS, np.asarray(both(jnp.array(DECAYS))), strict=True):
            shown = [found[step // STRETCH - 1] for step in SHOWN]
            cells = [f"{error:.3f}, {projection:.3f}, {bias:+.3f}" for error, projection, bias in shown]
            lines.append(f"| {name} | {b2} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    (ROOT / "docs" / "tables" / "long_run.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
