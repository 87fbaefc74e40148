"""The distance of 16-bit weights from where small updates should take them: python benchmarks/weights_bias.py.

A matrix of weights of 1 in bfloat16 is trained by AdamW for 3,000 steps with given gradients, which drift beneath noise
or are all alike. The exact way is the sum of the same updates in twice float32's precision. Takes a
minute, and writes docs/tables/weights_bias.md.
"""

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxopt_adam import adamw, master_params, master_weights, sgd, stochastic_rounding

STEPS = 3000
SHAPE = (32, 512)
RATES = (1e-3, 1e-4, 1e-5, 1e-6)
ROOT = Path(__file__).parents[1]

State = tuple[Array, Any]
"""Weights in bfloat16, and the state of their wrapper."""


def wrapped(optimizer: optax.GradientTransformation, update: Array, now: State) -> State:
    """A step of a wrapper of ``sgd(1.0)``."""
    params, state = now
    moved, state = optimizer.update(-update, state, params)
    return jnp.asarray(optax.apply_updates(params, moved)), state


def kahan(update: Array, now: State) -> State:
    """A step of Kahan's sum with the remainder in bfloat16, as other libraries have it."""
    params, compensation = now
    total = compensation.astype(jnp.float32) + update
    # Without the barriers the compiler might leave out the roundings.
    after = jax.lax.optimization_barrier((params.astype(jnp.float32) + total).astype(jnp.bfloat16))
    remainder = total - (after.astype(jnp.float32) - params.astype(jnp.float32))
    return after, jax.lax.optimization_barrier(remainder.astype(jnp.bfloat16))


def plain(update: Array, now: State) -> State:
    """A step of a plain bfloat16 weight."""
    params, _ = now
    return (params.astype(jnp.float32) + update).astype(jnp.bfloat16), None


MASTERS = {f"{bits} bits": master_weights(sgd(1.0), bits=bits) for bits in (24, 32)}
STOCHASTIC = stochastic_rounding(sgd(1.0))
CONTESTANTS: dict[str, tuple[Callable[..., Any], Callable[[Array, State], State], Callable[[State], Any]]] = {
    **{
        name: (each.init, functools.partial(wrapped, each), lambda now: master_params(*now))
        for name, each in MASTERS.items()
    },
    "stochastic rounding": (
        STOCHASTIC.init,
        functools.partial(wrapped, STOCHASTIC),
        lambda now: now[0].astype(jnp.float32),
    ),
    "Kahan's sum in bfloat16": (jnp.zeros_like, kahan, lambda now: now[0].astype(jnp.float32) + now[1]),
    "bfloat16": (lambda params: None, plain, lambda now: now[0].astype(jnp.float32)),
}
"""By name: the initial state, a step, and the weights that bfloat16 and state stand for together."""


def drifting(t: Array) -> Array:
    """Gradients whose mean comes and goes beneath noise of the same size, another for each weight."""
    drift = jax.random.normal(jax.random.key(0), SHAPE)
    return drift * jnp.cos(t / 500) + jax.random.normal(jax.random.fold_in(jax.random.key(1), t), SHAPE)


def equal(t: Array) -> Array:
    """Gradients of 1, for which an update of AdamW is the learning rate."""
    return jnp.ones(SHAPE)


GRADIENTS = {"drifting": drifting, "equal": equal}


@functools.partial(jax.jit, static_argnums=0)
def ends(gradients: Callable[[Array], Array], rate: Array) -> tuple[Array, Array, list[Array]]:
    """The exact way of the weights, as a sum of two numbers, and the weights of each contestant at its end."""
    inner = adamw(rate, weight_decay=0.0)
    start = jnp.ones(SHAPE, jnp.bfloat16)

    def step(t: Array, carry: Any) -> Any:
        inner_state, total, lost, several = carry
        update, inner_state = inner.update(gradients(t), inner_state)
        update = jnp.asarray(update)
        several = [move(update, now) for (_, move, _), now in zip(CONTESTANTS.values(), several, strict=True)]
        owed = update - lost
        new = total + owed
        return inner_state, new, (new - total) - owed, several

    several = [(start, init(start)) for init, _, _ in CONTESTANTS.values()]
    zeros = jnp.zeros(SHAPE)
    _, total, lost, several = jax.lax.fori_loop(0, STEPS, step, (inner.init(zeros), zeros, zeros, several))
    return total, lost, [read(now) for (_, _, read), now in zip(CONTESTANTS.values(), several, strict=True)]


def table() -> str:
    """A Markdown table: the bias and the error of each contestant, in percent of the way."""
    rows = [
        f"| gradients | rate | way | {' | '.join(CONTESTANTS)} |",
        f"|---|--:|--:|{'--:|' * len(CONTESTANTS)}",
    ]
    for name, gradients in GRADIENTS.items():
        for rate in RATES:
            total, lost, weights = jax.tree.map(np.float64, ends(gradients, jnp.float32(rate)))
            way = total - lost
            size = np.mean(way**2)
            cells = [f"{name}", f"{rate:g}", f"{np.sqrt(size):.2g}"]
            for each in weights:
                apart = each - 1 - way
                bias, error = np.mean(apart * way) / size, np.sqrt(np.mean(apart**2) / size)
                cells.append(f"{_percent(bias, sign=True)}, {_percent(error)}")
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _percent(share: float, sign: bool = False) -> str:
    digits = 0 if abs(share) >= 0.1 else 1 if abs(share) >= 0.01 else 2
    return f"{100 * share:{'+' if sign else ''}.{digits}f} %".replace("-", "−")


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    found = table()
    print(found)
    (ROOT / "docs" / "tables").mkdir(exist_ok=True)
    (ROOT / "docs" / "tables" / "weights_bias.md").write_text(f"{found}\n")


if __name__ == "__main__":
    main()
