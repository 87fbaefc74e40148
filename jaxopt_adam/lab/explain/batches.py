"""Section 2: gradient descent by all examples, by mini-batches and by single ones, on handwritten digits."""

import functools
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxopt_adam import Optimizer, grid, sgd
from jaxopt_adam.lab import data, interrupt, network
from jaxopt_adam.lab.explain.drawing import framed, ground, line, number, ticks
from jaxopt_adam.lab.explain.section import Control, Field, Plot, Section, Trace

STEPS = 400
SIZES = {"all": None, "mini": 16, "one": 1}
"""The batch sizes; None for all examples."""
RATES = (0.03, 0.1, 0.3, 1.0)
AGAINST = ("iterations", "examples", "time")
COST_RANGE = (0.1, 15.0)
COST_TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10)
LOOKS = {
    "all": ("faint", "circle", "solid"),
    "mini": ("average", "square", "dash"),
    "one": ("across", "diamond", "dot"),
}


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    images, labels = data.embedded().train
    return images.astype(float), labels


def _start() -> network.Layers:
    return [{"w": jnp.zeros((_digits()[0].shape[1], 10), float), "b": jnp.zeros(10, float)}]


def _orders(size: int | None) -> np.ndarray:
    return data.orders(len(_digits()[1]), STEPS, size, seed=0)


@jax.jit
def _train(optimizer: Optimizer, images: Array, labels: Array, orders: Array) -> Any:
    """The weights before each step, and those after the last."""

    def step(carry: Any, batch: Array) -> tuple[Any, Any]:
        params, state = carry
        chosen = (images[batch], labels[batch]) if batch.size else (images, labels)
        updates, state = optimizer.update(jax.grad(network.cost)(params, *chosen), state, params)
        return (optax.apply_updates(params, updates), state), params

    start = _start()
    (last, _), way = jax.lax.scan(step, (start, optimizer.init(start)), orders)
    return jax.tree.map(lambda way, end: jnp.concatenate([way, end[None]]), way, last)


@jax.jit
def _costs(way: Any, images: Array, labels: Array) -> Array:
    """The cost of all examples with the weights of each step."""
    return jax.lax.map(lambda params: network.cost(params, images, labels), way, batch_size=16)


def _flat(way: network.Layers) -> np.ndarray:
    (layer,) = way
    weights, biases = np.asarray(layer["w"]), np.asarray(layer["b"])
    return np.concatenate([weights.reshape(*weights.shape[:-2], -1), biases], axis=-1)


@functools.cache
def _grid() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The weights, shape (rates, STEPS + 1, weights), and the costs, for each batch size."""
    images, labels = map(jnp.asarray, _digits())
    optimizers, _ = grid(sgd, learning_rate=list(RATES))
    found = {}
    for name, size in SIZES.items():
        interrupt.check()
        way = jax.jit(jax.vmap(_train, in_axes=(0, None, None, None)))(optimizers, images, labels, _orders(size))
        found[name] = _flat(way), np.asarray(jax.vmap(_costs, in_axes=(0, None, None))(way, images, labels))
    return found


@functools.cache
def _seconds() -> dict[str, float]:
    """The seconds of an iteration with each batch size: the least of three runs after compilation."""
    images, labels = map(jnp.asarray, _digits())
    found = {}
    for name, size in SIZES.items():
        orders, spent = _orders(size), []
        for _ in range(4):
            start = time.perf_counter()
            jax.block_until_ready(_train(sgd(RATES[0]), images, labels, orders))
            spent.append(time.perf_counter() - start)
        found[name] = min(spent[1:]) / STEPS
    return found


@functools.cache
def _plane() -> tuple[np.ndarray, np.ndarray]:
    """The mean of the weights on all paths, and the two directions in which they vary most, shape (weights, 2)."""
    weights = np.concatenate([each.reshape(-1, each.shape[-1]) for each, _ in _grid().values()])
    mean = weights.mean(axis=0)
    _, vectors = np.linalg.eigh(np.cov(weights, rowvar=False))
    directions = vectors[:, :-3:-1]
    # A principal direction has no sign of its own. With these signs the paths go to the right and mostly up.
    return mean, directions * np.where(((weights[STEPS] - mean) @ directions) < 0, -1, 1)


def _ground(places: np.ndarray) -> dict[str, np.ndarray]:
    """The cost in the part of the plane that contains some points, shape (points, 2)."""
    images, labels = map(jnp.asarray, _digits())
    mean, directions = _plane()
    low, high = places.min(axis=0), places.max(axis=0)
    margin = 0.08 * (high - low)
    x, y = (np.linspace(low[i] - margin[i], high[i] + margin[i], 33) for i in (0, 1))
    across, up = np.meshgrid(x, y)
    weights = mean + across.reshape(-1, 1) * directions[:, 0] + up.reshape(-1, 1) * directions[:, 1]
    params = [{"w": jnp.asarray(weights[:, :-10].reshape(-1, images.shape[1], 10)), "b": jnp.asarray(weights[:, -10:])}]
    # Contours of the logarithm show the floor of the valley as well as its walls.
    return {"ground-x": x, "ground-y": y, "ground-z": np.log(_costs(params, images, labels)).reshape(across.shape)}


def _grounds(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return _ground(np.concatenate([np.stack([found[f"{name}-x"], found[f"{name}-y"]], axis=-1) for name in SIZES]))


def _placed(name: str, weights: np.ndarray, costs: np.ndarray) -> dict[str, np.ndarray]:
    """The fields of paths with any leading axes."""
    mean, directions = _plane()
    places = (weights - mean) @ directions
    return {f"{name}-x": places[..., 0], f"{name}-y": places[..., 1], f"{name}-cost": costs}


def _unit(name: str, against: str) -> float:
    """The cost of one iteration: 1, its examples, or its milliseconds."""
    if against == "examples":
        return SIZES[name] or len(_digits()[1])
    return 1000 * _seconds()[name] if against == "time" else 1


def _origin(against: str) -> float:
    """The place of step 0. A logarithmic axis has no zero, so there it is a little to the left of the first step."""
    return 0.0 if against == "iterations" else min(_unit(name, against) for name in SIZES) / 3


def _abscissa(name: str, against: str) -> np.ndarray:
    return np.append(_origin(against), np.arange(1, STEPS + 1) * _unit(name, against))


def _ticks(against: str) -> dict[float, str]:
    """The labels of the axis by their places: hundreds of iterations, or 0 and powers of ten."""
    if against == "iterations":
        return {each: str(each) for each in range(0, STEPS + 1, 100)}
    units = [_unit(name, against) for name in SIZES]
    first, last = math.ceil(math.log10(min(units))), math.floor(math.log10(STEPS * max(units)))
    labels = {_origin(against): "0"}
    for power in range(first, last + 1):
        labels[10.0**power] = f"{10 ** (power - 3)}k" if power >= 3 else f"{10.0**power:g}"
    return labels


def single(learning_rate: float, against: str) -> dict[str, np.ndarray]:
    """The fields for one learning rate, in the plane of all learning rates together."""
    images, labels = map(jnp.asarray, _digits())
    found: dict[str, np.ndarray] = {}
    for name, size in SIZES.items():
        way = _train(sgd(learning_rate), images, labels, _orders(size))
        found |= _placed(name, _flat(way), np.asarray(_costs(way, images, labels)))
        if against != "time":  # measured anew each time, so no two results are equal
            found[f"{name}-at"] = _abscissa(name, against)
    return found | _grounds(found)


def fields() -> dict[str, Field]:
    """The fields for all learning rates."""
    placed = {field: values for name in SIZES for field, values in _placed(name, *_grid()[name]).items()}
    grounds = [_grounds({field: values[row] for field, values in placed.items()}) for row in range(len(RATES))]
    placed |= {field: np.stack([ground[field] for ground in grounds]) for field in grounds[0]}
    found = {field: Field(("learning_rate",), values) for field, values in placed.items()}
    for name in SIZES:
        found[f"{name}-at"] = Field(("against",), np.stack([_abscissa(name, each) for each in AGAINST]))
    units = ["iterations", "examples seen", "milliseconds"]
    found["against-title"] = Field(("against",), units)
    labels = [_ticks(each) for each in AGAINST]
    found["against-places"] = Field(("against",), [list(each) for each in labels])
    found["against-labels"] = Field(("against",), [list(each.values()) for each in labels])
    found["against-type"] = Field(("against",), ["linear", "log", "log"])
    found["sentence"] = Field(("learning_rate",), [_sentence(row) for row in range(len(RATES))])
    return found


def _sentence(row: int) -> str:
    examples = len(_digits()[1])
    parts = []
    for name, size in SIZES.items():
        cost = number(float(_grid()[name][1][row, -1]))
        what = {"all": f"All {examples:,} examples", "mini": f"Mini-batches of {size}", "one": "Single examples"}[name]
        spent, seen = STEPS * _seconds()[name], STEPS * (size or examples)
        parts.append(f"{what}: cost {cost}, {seen:,} examples seen, {number(1000 * spent)} ms.")
    return f"After {STEPS} iterations. {' '.join(parts)}"


def facts() -> dict[str, str]:
    """Numbers for the text."""
    seconds = _seconds()
    return {
        "batches-examples": f"{len(_digits()[1]):,}",
        "batches-steps": str(STEPS),
        "batches-size": str(SIZES["mini"]),
    } | {
        f"batches-{name}-{what}": number(1e6 * seconds[name] / each)
        for name, size in SIZES.items()
        for what, each in (("time", 1), ("share", size or len(_digits()[1])))
    }


def _plots() -> tuple[Plot, ...]:
    titles = {"all": "all examples", "mini": f"mini-batches of {SIZES['mini']}", "one": "single examples"}

    def look(name: str, *, marked: bool) -> dict[str, Any]:
        colour, symbol, dash = LOOKS[name]
        marker = {"symbol": symbol, "size": 6, "maxdisplayed": 12} if marked else None
        style = line(colour, width=5 if name == "all" else 2, dash="solid" if marked else dash, marker=marker)
        if not marked:
            style["line"]["shape"] = "hv"  # the cost stays what it is until an iteration is done
        return style

    way = Plot(
        "batches-path",
        "The path of the weights",
        "The paths of the weights for the three batch sizes over the contours of the cost, projected on the plane in "
        "which the weights vary most. The path is smooth with all examples, rougher with mini-batches, and staggers "
        "with single examples.",
        (
            ground(18),
            *(
                Trace(name, titles[name], f"{name}-x", f"{name}-y", style=look(name, marked=True))
                for name in ("all", "one", "mini")  # the widest line is the lowest
            ),
        ),
        framed(76, xaxis={"title": "first direction"}, yaxis={"title": "second direction"}),
        shape="wide",
        walked=True,
    )
    cost = Plot(
        "batches-cost",
        "Cost over all training examples",
        "The cost over all training examples for the three batch sizes, on a logarithmic scale.",
        tuple(
            Trace(name, titles[name], f"{name}-at", f"{name}-cost", style=look(name, marked=False))
            for name in ("all", "one", "mini")  # the widest line is the lowest
        ),
        {
            "xaxis": {
                "title": {"field": "against-title"},
                "type": {"field": "against-type"},
                "tickmode": "array",
                "tickvals": {"field": "against-places"},
                "ticktext": {"field": "against-labels"},
            },
            "yaxis": {
                "title": "cost (nats per example)",
                "type": "log",
                "range": [math.log10(each) for each in COST_RANGE],
            }
            | ticks(COST_TICKS),
        },
        shape="wide",
    )
    return way, cost


BATCHES = Section(
    "batches",
    (
        Control("learning_rate", "Learning rate α", RATES, 0.3),
        Control("against", "Horizontal axis", AGAINST, "iterations", ["iterations", "examples seen", "time"]),
    ),
    _plots(),
    fields,
    single,
    "sentence",
    steps=STEPS,
)
