"""A sweep of learning rates in one program against a loop that jits an optax step for each: python benchmarks/sweep.py.

Both train the same digit classifier from the same weights on the same mini-batches; compilation is included. With
--table FILE the figures are written as a table too; that of the documentation is docs/tables/sweep.md.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from sklearn.datasets import load_digits

import jaxopt_adam


def initial() -> dict[str, Array]:
    """The weights that every training starts from."""
    one, two = jax.random.split(jax.random.key(0))
    return {
        "w1": jax.random.normal(one, (64, 32)) / 8,
        "b1": jnp.zeros(32),
        "w2": jax.random.normal(two, (32, 10)) / 32**0.5,
        "b2": jnp.zeros(10),
    }


def cost(params: dict[str, Array], images: Array, labels: Array) -> Array:
    """The cross-entropy of a network with one hidden layer."""
    hidden = jax.nn.relu(images @ params["w1"] + params["b1"])
    logits = hidden @ params["w2"] + params["b2"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def step(optimizer: Any, params: Any, state: Any, images: Array, labels: Array) -> tuple[Any, Any, Array]:
    """One step of training."""
    value, grads = jax.value_and_grad(cost)(params, images, labels)
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state, value


def in_one_program(rates: np.ndarray, images: Array, labels: Array, order: np.ndarray) -> np.ndarray:
    """The final costs, by one vmapped scan over a batch of optimizers."""
    optimizers, _ = jaxopt_adam.grid(jaxopt_adam.adam, learning_rate=rates)

    @jax.jit
    def train(optimizers: jaxopt_adam.Optimizer, order: Array) -> Array:
        def one(optimizer: jaxopt_adam.Optimizer) -> Array:
            def body(carry: Any, batch: Array) -> tuple[Any, None]:
                params, state, _ = step(optimizer, carry[0], carry[1], images[batch], labels[batch])
                return (params, state), None

            params = initial()
            (params, _), _ = jax.lax.scan(body, (params, optimizer.init(params)), order)
            return cost(params, images, labels)

        return jax.vmap(one)(optimizers)

    return np.asarray(train(optimizers, jnp.asarray(order)))


def in_a_loop(rates: np.ndarray, images: Array, labels: Array, order: np.ndarray) -> np.ndarray:
    """The final costs, by a new optax optimizer and a newly jitted step for each learning rate."""
    final = []
    for rate in rates:
        optimizer = optax.adam(float(rate))

        @jax.jit
        def jitted(params: Any, state: Any, images: Array, labels: Array, optimizer: Any = optimizer) -> Any:
            return step(optimizer, params, state, images, labels)

        params = initial()
        state = optimizer.init(params)
        for batch in order:
            params, state, _ = jitted(params, state, images[batch], labels[batch])
        final.append(float(cost(params, images, labels)))
    return np.array(final)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", type=int, default=64)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--table", type=Path, help="a file to write the figures to, as a table in Markdown")
    options = parser.parse_args()
    data, target = load_digits(return_X_y=True)
    images, labels = jnp.asarray(data / 16, jnp.float32), jnp.asarray(target)
    order = np.random.default_rng(0).integers(len(target), size=(options.steps, 64))
    rates = np.geomspace(1e-4, 1e-1, options.rates)
    seconds, costs = {}, {}
    for name, sweep in (("one program", in_one_program), ("a loop of optax steps", in_a_loop)):
        start = time.perf_counter()
        costs[name] = sweep(rates, images, labels, order)
        seconds[name] = time.perf_counter() - start
        print(f"{options.rates} learning rates × {options.steps} steps by {name}: {seconds[name]:.1f} s")
    ours, theirs = costs.values()
    difference = f"median difference of the final costs: {np.median(np.abs(ours - theirs) / theirs):.1e} relative"
    print(difference)
    ours, theirs = seconds.values()
    print(f"the one program is {theirs / ours:.0f} times faster, compilation included")
    if options.table:
        rows = [
            f"On {jax.devices()[0].device_kind}, {options.rates} learning rates × {options.steps} steps; {difference}.",
            "",
            "| sweep | seconds | times the one program's |",
            "|---|--:|--:|",
            *(f"| {name} | {each:.1f} | {each / ours:.1f} |" for name, each in seconds.items()),
        ]
        options.table.write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
