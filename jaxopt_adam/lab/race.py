"""The race: every rule over a grid of learning rates and several seeds, one compiled program for each."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxopt_adam
from jaxopt_adam.lab import data, network


@dataclasses.dataclass(frozen=True)
class Entry:
    """One entrant of the race.

    Args:
        name: its name in tables and figures.
        factory: makes its optimizer from a learning rate.
        arguments: the factory's other arguments.
        batch_size: examples in a step; None for all of them.
    """

    name: str
    factory: Callable[..., jaxopt_adam.Optimizer]
    arguments: Mapping[str, Any]
    batch_size: int | None


RULES: Mapping[str, tuple[str, Callable[..., jaxopt_adam.Optimizer], Mapping[str, Any]]] = {
    "batch": ("batch gradient descent", jaxopt_adam.sgd, {}),
    "sgd": ("mini-batch gradient descent", jaxopt_adam.sgd, {}),
    "momentum": ("momentum", jaxopt_adam.sgd, {"momentum": 0.9}),
    "nesterov": ("Nesterov momentum", jaxopt_adam.sgd, {"momentum": 0.9, "nesterov": True}),
    "adagrad": ("AdaGrad", jaxopt_adam.adagrad, {}),
    "adadelta": ("AdaDelta", jaxopt_adam.adadelta, {}),
    "rmsprop": ("RMSProp", jaxopt_adam.rmsprop, {}),
    "adam": ("Adam", jaxopt_adam.adam, {}),
}
"""The rules by the names that the command takes: the name to show, the factory and its arguments."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings that all entrants of a race share.

    Args:
        learning_rates: the grid.
        seeds: the number of initial weights and orders of the examples to try each learning rate with.
        steps: iterations.
        every: iterations between two measurements of the accuracy.
        batch_size: examples in a mini-batch.
        hidden: units in the one hidden layer.
        observe: whether to keep the figures of :func:`jaxopt_adam.observe`.
        devices: how many of :func:`jax.devices` the runs are divided among. A run is a learning rate with a seed.
    """

    learning_rates: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    seeds: int = 3
    steps: int = 300
    every: int = 5
    batch_size: int = 64
    hidden: int = 32
    observe: bool = False
    devices: int = 1


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of one entrant. The arrays have an axis of learning rates and one of seeds before the last.

    Args:
        entry: the entrant.
        learning_rates: those of the first axis, shape (rates,).
        cost: the cost of the batch at each iteration, shape (rates, seeds, steps).
        at: the iterations at which the accuracies were measured, shape (points,).
        validation: accuracies on the validation data, shape (rates, seeds, points), from 0 to 1.
        test: accuracies on the test data, likewise.
        seconds: the time that it took, compilation included.
        observed: the figures of :func:`jaxopt_adam.summary` by name, for the last step before each measurement but the
            first, shape (rates, seeds, points - 1). Empty if the race is not observed.
    """

    entry: Entry
    learning_rates: np.ndarray
    cost: np.ndarray
    at: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    seconds: float
    observed: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def best(self) -> int:
        """The index of the learning rate with the best final validation accuracy; among equals, with the lower cost."""
        accuracy = self.validation[..., -1].mean(axis=1)
        tail = max(1, self.cost.shape[-1] // 20)
        cost = np.nan_to_num(self.cost[..., -tail:].mean(axis=(1, 2)), nan=np.inf)
        return int(np.lexsort((cost, -accuracy))[0])

    @property
    def at_edge(self) -> bool:
        """True if the best learning rate is the least or the largest of the grid: a better one may be outside."""
        return self.best in (0, len(self.learning_rates) - 1)

    def iterations_to(self, accuracy: float, rate: int | None = None) -> int | None:
        """The iterations until the mean test accuracy over the seeds first reached `accuracy`; None if it never did."""
        reached = self.test[self.best if rate is None else rate].mean(axis=0) >= accuracy
        return int(self.at[np.argmax(reached)]) if reached.any() else None


def entries(names: list[str], settings: Settings) -> list[Entry]:
    """The entrants by the command's names of their rules."""
    return [
        Entry(title, factory, arguments, None if name == "batch" else settings.batch_size)
        for name in names
        for title, factory, arguments in [RULES[name]]
    ]


def run(entry: Entry, digits: data.Digits, settings: Settings, *, chunks: int = 10) -> Iterator[float | Outcome]:
    """Train an entrant over the grid; yields the fraction done from time to time, and its :class:`Outcome` last.

    The optimizer is an argument of the program, batched over the runs: each learning rate with each seed. So one
    compilation serves the whole grid, and several devices take a part of the runs each. The program trains for `every`
    iterations and measures the accuracies; a loop in Python repeats it.
    """
    start = time.perf_counter()
    optimizers, table = jaxopt_adam.grid(entry.factory, learning_rate=list(settings.learning_rates), **entry.arguments)
    if settings.observe:
        optimizers = jaxopt_adam.observe(optimizers, every=1)
    grid_shape = (len(table), settings.seeds)
    runs = math.prod(grid_shape)
    devices = min(settings.devices, runs)
    mesh = jax.make_mesh((devices,), ("runs",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    whole = NamedSharding(mesh, PartitionSpec())
    # On one device the two are the same, but in other words, for which all would be compiled again.
    divided = whole if devices == 1 else NamedSharding(mesh, PartitionSpec("runs"))
    train, validation, test = jax.device_put((digits.train, digits.validation, digits.test), whole)
    # The learning rate and the seed of each run. The last run is repeated until the devices divide their number.
    rows = np.arange(-(-runs // devices) * devices)
    rates, seeds = np.divmod(np.minimum(rows, runs - 1), settings.seeds)
    params = jax.vmap(lambda key: initial(key, train[0].shape[1], settings.hidden))(seed_keys(settings))
    optimizers, params = jax.device_put(
        (jax.tree.map(lambda leaf: leaf[rates], optimizers), jax.tree.map(lambda leaf: leaf[seeds], params)), divided
    )
    begin = jax.vmap(lambda optimizer, params: (params, optimizer.init(params)))
    carry = jax.jit(begin, out_shardings=divided)(optimizers, params)
    measure = functools.partial(_measure, validation=validation, test=test)
    costs, accuracies, observed = [], [measure(carry[0])], []
    orders = np.stack(
        [
            data.orders(len(digits.train[1]), settings.steps, entry.batch_size, seed=seed)
            for seed in range(settings.seeds)
        ]
    )

    def as_grid(values: Any) -> np.ndarray:
        return np.asarray(values)[:runs].reshape(*grid_shape, *np.shape(values)[1:])

    points = range(0, settings.steps, settings.every)
    for done in points:
        order = jax.device_put(orders[seeds, done : done + settings.every], divided)
        carry, cost = _train(optimizers, carry, train, order)
        costs.append(cost)
        accuracies.append(measure(carry[0]))
        if settings.observe:
            observed.append({name: as_grid(each) for name, each in jaxopt_adam.summary(carry[1]).items()})
        if (done // settings.every) % max(1, len(points) // chunks) == 0:
            jax.block_until_ready(cost)
            yield done / settings.steps
    validation_accuracy, test_accuracy = (np.stack([as_grid(pair[i]) for pair in accuracies], axis=-1) for i in (0, 1))
    yield Outcome(
        entry,
        np.array([row["learning_rate"] for row in table]),
        np.concatenate([as_grid(cost) for cost in costs], axis=-1),
        np.minimum(np.arange(len(accuracies)) * settings.every, settings.steps),
        validation_accuracy,
        test_accuracy,
        time.perf_counter() - start,
        _over_time(observed),
    )


def _over_time(summaries: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The figures by name, with time as the last axis; NaN where a summary lacks one."""
    names = dict.fromkeys(name for each in summaries for name in each if name != "step")
    return {
        name: np.stack([each.get(name, np.full_like(each["step"], np.nan, float)) for each in summaries], axis=-1)
        for name in names
    }


def seed_keys(settings: Settings) -> Array:
    """The random keys of the initial weights, one a seed."""
    return jax.random.split(jax.random.key(0), settings.seeds)


def initial(key: Array, pixels: int, hidden: int) -> network.Layers:
    """The initial weights of a network with one hidden layer, for the ten digits."""
    return network.initial(jax.random.split(key, 2), (pixels, hidden, 10))


@jax.jit
def _train(
    optimizers: jaxopt_adam.Optimizer, carry: Any, train: tuple[Array, Array], orders: Array
) -> tuple[Any, Array]:
    """Some iterations of every run (axis 0); also the cost at each."""

    def one(optimizer: jaxopt_adam.Optimizer, carry: Any, order: Array) -> tuple[Any, Array]:
        def step(carry: Any, batch: Array) -> tuple[Any, Array]:
            params, state = carry
            images, labels = (part[batch] for part in train) if batch.size else train
            cost, grads = jax.value_and_grad(network.cost)(params, images, labels)
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), cost

        return jax.lax.scan(step, carry, order)

    return jax.vmap(one)(optimizers, carry, orders)


@jax.jit
def _measure(params: Any, validation: tuple[Array, Array], test: tuple[Array, Array]) -> tuple[Array, Array]:
    def accuracy(params: Any, part: tuple[Array, Array]) -> Array:
        return jnp.mean(jnp.argmax(network.logits(params, part[0]), axis=-1) == part[1])

    return jax.vmap(lambda params: (accuracy(params, validation), accuracy(params, test)))(params)
