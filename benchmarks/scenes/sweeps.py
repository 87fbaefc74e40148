"""Many training runs in one program."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from sklearn.datasets import load_digits

import jaxopt_adam
from benchmarks.contest import Case, Parts, Prepared, Scene
from benchmarks.work import stepped


def initial(seed: Any) -> dict[str, Array]:
    """The weights of a network with one hidden layer."""
    one, two = jax.random.split(jax.random.key(seed))
    return {
        "w1": jax.random.normal(one, (64, 32)) / 8,
        "b1": jnp.zeros(32),
        "w2": jax.random.normal(two, (32, 10)) / 32**0.5,
        "b2": jnp.zeros(10),
    }


def cost(params: dict[str, Array], images: Array, labels: Array) -> Array:
    """The cross-entropy of the network."""
    hidden = jax.nn.relu(images @ params["w1"] + params["b1"])
    logits = hidden @ params["w2"] + params["b2"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


Data = tuple[np.ndarray, np.ndarray, np.ndarray]


def digits(steps: int) -> Data:
    """Images, labels, and the rows of each mini-batch."""
    images, labels = map(np.asarray, load_digits(return_X_y=True))
    order = np.random.default_rng(0).integers(len(labels), size=(steps, 64))
    return (images / 16).astype(np.float32), labels, order


def once(train: Callable[[], Any]) -> Callable[[], Prepared]:
    """A contestant that is run once, its compilation included."""

    def run() -> Parts:
        jax.clear_caches()
        start = time.perf_counter()
        costs = np.asarray(train())
        assert np.isfinite(costs).all()
        return {"step": time.perf_counter() - start}

    return lambda: Prepared(run)


def in_one_program(rates: np.ndarray, seeds: int, data: Data) -> Callable[[], Any]:
    """The final costs, by one scan over a batch of optimizers and seeds."""
    images, labels, order = data

    def train() -> Any:
        optimizers, _ = jaxopt_adam.grid(jaxopt_adam.adam, learning_rate=rates)

        @jax.jit
        def together(optimizers: Any, images: Array, labels: Array, order: Array) -> Array:
            def one(optimizer: Any, seed: Array) -> Array:
                def body(carry: Any, batch: Array) -> tuple[Any, None]:
                    grads = jax.grad(cost)(carry[0], images[batch], labels[batch])
                    return stepped(optimizer, carry[0], carry[1], grads), None

                params = initial(seed)
                (params, _), _ = jax.lax.scan(body, (params, optimizer.init(params)), order)
                return cost(params, images, labels)

            return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(optimizers, jnp.arange(seeds))

        return together(optimizers, images, labels, order)

    return train


def in_a_loop(rates: np.ndarray, seeds: int, data: Data) -> Callable[[], Any]:
    """The final costs, by a new optax optimizer and a newly jitted step for each rate and seed."""
    images, labels, order = data

    def train() -> Any:
        final = []
        for rate in rates:
            for seed in range(seeds):
                optimizer = optax.adam(float(rate))

                @jax.jit
                def step(params: Any, state: Any, images: Any, labels: Any, optimizer: Any = optimizer) -> Any:
                    return stepped(optimizer, params, state, jax.grad(cost)(params, images, labels))

                params = initial(seed)
                state = optimizer.init(params)
                for batch in order:
                    params, state = step(params, state, images[batch], labels[batch])
                final.append(float(cost(params, jnp.asarray(images), jnp.asarray(labels))))
        return np.array(final)

    return train


def himmelblau(x: Array) -> Array:
    """A function with four minima."""
    return (x[0] ** 2 + x[1] - 11) ** 2 + (x[0] + x[1] ** 2 - 7) ** 2


def minimized(starts: Array, steps: int) -> Callable[[], Prepared]:
    """A contestant: our `minimize` from many starts."""

    def prepare() -> Prepared:
        one = lambda start: jaxopt_adam.minimize(himmelblau, start, jaxopt_adam.adam(0.1), max_steps=steps, tol=0.0)
        return _compiled(jax.vmap(one), starts)

    return prepare


def by_optimistix(starts: Array, steps: int) -> Callable[[], Prepared]:
    """A contestant: optimistix with `optax.adam`."""

    def prepare() -> Prepared:
        import optimistix

        solver = optimistix.OptaxMinimiser(optax.adam(0.1), rtol=0.0, atol=0.0)

        def one(start: Array) -> Any:
            found = optimistix.minimise(lambda x, _: himmelblau(x), solver, start, max_steps=steps, throw=False)
            return found.value

        return _compiled(jax.vmap(one), starts)

    return prepare


def _compiled(function: Callable[[Array], Any], starts: Array) -> Prepared:
    compiled = jax.jit(function).lower(starts).compile()

    def run() -> Parts:
        start = time.perf_counter()
        jax.block_until_ready(compiled(starts))
        return {"step": time.perf_counter() - start}

    return Prepared(run)


def cases(quick: bool) -> Iterator[Case]:
    """A sweep of digits, and minima from many starts."""
    rates, seeds, steps = (8, 1, 100) if quick else (64, 4, 100)
    data, grid = digits(steps), np.geomspace(1e-4, 1e-1, rates)
    contestants = {
        "one program": once(in_one_program(grid, seeds, data)),
        "a loop of optax steps": once(in_a_loop(grid, seeds, data)),
    }
    name = f"{rates} learning rates × {seeds} seeds, {steps} steps"
    most = {"one program": 0.05} if not quick else {}
    yield Case(name, contestants, "a loop of optax steps", rounds=1, warm=False, most=most)
    starts = jax.random.uniform(jax.random.key(0), (10_000, 2), minval=-5.0, maxval=5.0)
    contestants = {"minimize": minimized(starts, 500), "optimistix with optax.adam": by_optimistix(starts, 500)}
    yield Case(
        "500 steps from 10,000 starts", contestants, "optimistix with optax.adam", seconds=1, most={"minimize": 0.5}
    )


SCENE = Scene(
    "sweeps",
    "Many training runs in one program",
    "A small network trained with many learning rates: in one program, by `vmap` over a grid of optimizers, and in a "
    "loop that jits an optax step for each. Compilation is included, because the loop spends most of its time on it. "
    "And the minima of a function of two numbers from many starts.",
    cases,
    processes=1,
    cached=False,
)
