"""Walks of a rule down a surface, with its moments at each step; one by one, or a grid of them."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import jaxopt_adam
from jaxopt_adam import debias
from jaxopt_adam.lab.explain import rules
from jaxopt_adam.lab.explain.surfaces import BOX, SURFACES
from jaxopt_adam.lab.landscape import Landscape

STEPS = 60
"""The steps of every walk. In a longer walk RMSProp would amplify the rounding errors of a vanished gradient."""

NEAR = 0.01


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rule with the settings that the page offers.

    Args:
        title: its name in sentences.
        factories: the rule without bias correction and with; the same twice where there is nothing to correct.
        axes: the values of each slider.
        usual: the usual values of all sliders but the learning rate.
        corrected: whether bias correction is usual.
        arguments: the factory's names for the page's axes, where they differ.
        fixed: the factory's other arguments.
    """

    title: str
    factories: tuple[Callable[..., jaxopt_adam.Optimizer], Callable[..., jaxopt_adam.Optimizer]]
    axes: Mapping[str, Sequence[float]]
    usual: Mapping[str, float]
    corrected: bool = False
    arguments: Mapping[str, str] = dataclasses.field(default_factory=dict)
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def factory(self, *, bias_correction: bool) -> Callable[..., jaxopt_adam.Optimizer]:
        """The factory of the one or the other kind, which takes the page's names."""
        return self.factories[bias_correction]

    def given(self, setting: Mapping[str, Any]) -> dict[str, Any]:
        """The factory's arguments for a setting of the sliders (or for their axes)."""
        return {self.arguments.get(axis, axis): setting[axis] for axis in self.axes} | dict(self.fixed)


RULES = {
    "descent": Rule(
        "gradient descent",
        (jaxopt_adam.sgd, jaxopt_adam.sgd),
        {"learning_rate": (0.005, 0.01, 0.0125, 0.015, 0.0175, 0.019, 0.0195, 0.02, 0.03, 0.05, 0.1, 0.15, 0.2)},
        {},
    ),
    "momentum": Rule(
        "momentum",
        (rules.momentum, functools.partial(rules.momentum, bias_correction=True)),
        {
            "learning_rate": (0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5),
            "b1": (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98),
        },
        {"b1": 0.9},
    ),
    "rmsprop": Rule(
        "RMSProp",
        (jaxopt_adam.rmsprop, functools.partial(jaxopt_adam.rmsprop, bias_correction=True)),
        {
            # None between 0.1 and 0.3, where some walks amplify rounding errors before the last step.
            "learning_rate": (0.01, 0.03, 0.05, 0.1, 0.3, 0.5, 1.0),
            "b2": (0.5, 0.9, 0.99, 0.999),
            "eps": (1e-8, 1.0, 30.0),
        },
        {"b2": 0.9, "eps": 1e-8},
        arguments={"b2": "decay"},
        fixed={"eps_in_sqrt": False},
    ),
    "adam": Rule(
        "Adam",
        (rules.uncorrected_adam, jaxopt_adam.adam),
        {
            "learning_rate": (0.01, 0.03, 0.1, 0.3, 0.5, 1.0),
            "b1": (0.0, 0.5, 0.9, 0.95),
            "b2": (0.5, 0.9, 0.99, 0.999),
            "eps": (1e-8, 1.0, 30.0),
        },
        {"b1": 0.9, "b2": 0.999, "eps": 1e-8},
        corrected=True,
    ),
}
"""The rules by the names of their sections."""


def inside(x: np.ndarray) -> np.ndarray:
    """The number of points of paths, shape (…, points, 2), before the first one outside of the box."""
    left, right, bottom, top = BOX
    fits = (x >= [left, bottom]).all(-1) & (x <= [right, top]).all(-1)  # false for NaN
    return np.where(fits.all(-1), x.shape[-2], fits.argmin(-1))


def walk(
    optimizer: jaxopt_adam.Optimizer, surface: Landscape, start: Any = None, b1: Any = None, b2: Any = None
) -> dict[str, Array]:
    """The path of a rule: the points and values, and for each step the update and the moments after it.

    Args:
        optimizer: the rule.
        surface: the function and its usual start.
        start: the first point, shape (2,); None for the surface's own.
        b1: the decay of the rule's `mu`, if it has one.
        b2: the decay of its `nu`, likewise.

    Returns:
        ``x`` of shape (STEPS + 1, 2), ``value`` of shape (STEPS + 1,), and of shape (STEPS, 2) ``step`` and, as far as
        there are any, ``mu``, ``mu_hat``, ``nu`` and ``nu_hat``.
    """

    def step(carry: tuple[Array, Any], count: Array) -> tuple[tuple[Array, Any], dict[str, Array]]:
        x, state = carry
        value, grad = jax.value_and_grad(surface.function)(x)
        update, state = optimizer.update(grad, state, x)
        kept = {"x": x, "value": value, "step": update}
        for name, decay in (("mu", b1), ("nu", b2)):
            if decay is not None:
                moment = getattr(state, name)
                kept |= {name: moment, f"{name}_hat": debias(moment, decay, count)}
        return (optax.apply_updates(x, update), state), kept  # pyright: ignore[reportReturnType]

    start = jnp.asarray(surface.start if start is None else start, float)
    (last, _), way = jax.lax.scan(step, (start, optimizer.init(start)), jnp.arange(1, STEPS + 1))
    way["x"] = jnp.concatenate([way["x"], last[None]])
    way["value"] = jnp.append(way["value"], surface.function(last))
    return way


_one = jax.jit(walk, static_argnames="surface")


def one(
    rule: Rule,
    surface: str,
    setting: Mapping[str, Any],
    *,
    bias_correction: bool = False,
    start: tuple[float, float] | None = None,
) -> dict[str, np.ndarray]:
    """The walk of a rule with one setting."""
    optimizer = rule.factory(bias_correction=bias_correction)(**rule.given(setting))
    way = _one(optimizer, SURFACES[surface], start, setting.get("b1"), setting.get("b2"))
    return {name: np.asarray(values) for name, values in way.items()}


def walk_grid(
    rule: Rule, surface: str, *, bias_correction: bool = False, starts: Sequence[tuple[float, float]] | None = None
) -> dict[str, np.ndarray]:
    """The walks of a rule with every setting of its sliders, which are the leading axes of the arrays.

    Args:
        rule: the rule, with the settings of its sliders.
        surface: the name of the surface.
        bias_correction: the kind of the rule.
        starts: the first points, whose axis is then the first; None for the surface's own, without an axis.
    """
    optimizers, table = jaxopt_adam.grid(
        rule.factory(bias_correction=bias_correction),
        **rule.given({axis: list(each) for axis, each in rule.axes.items()}),
    )
    decays = {
        name: jnp.array([row[rule.arguments.get(name, name)] for row in table], float)
        for name in ("b1", "b2")
        if name in rule.axes
    }
    program = jax.vmap(lambda start, each, decays: walk(each, SURFACES[surface], start, **decays), (None, 0, 0))
    shape = tuple(map(len, rule.axes.values()))
    if starts is None:
        ways = jax.jit(program)(None, optimizers, decays)
    else:
        program, shape = jax.vmap(program, (0, None, None)), (len(starts), *shape)
        ways = jax.jit(program)(jnp.array(starts, float), optimizers, decays)
    leading = 1 if starts is None else 2
    return {name: np.asarray(values).reshape(*shape, *values.shape[leading:]) for name, values in ways.items()}


def usual(name: str) -> Rule:
    """A rule with its usual settings, where only the learning rate has more than one value."""
    rule = RULES[name]
    return dataclasses.replace(rule, axes=dict(rule.axes) | {axis: (value,) for axis, value in rule.usual.items()})


def settled(values: np.ndarray, points: int) -> int | None:
    """The first step after which all values are below a hundredth of the first value; None if there is none.

    Args:
        values: the values along a path.
        points: the number of points of the path before the first one outside of the box.
    """
    if points < len(values):
        return None
    above = np.flatnonzero(values >= NEAR * values[0])
    return None if above[-1] == len(values) - 1 else int(above[-1]) + 1


@functools.cache
def best(name: str, surface: str) -> dict[str, Any]:
    """A rule's usual setting at the learning rate that settles first; among equals, that of the least sum of values."""
    rule = RULES[name]
    ways = walk_grid(usual(name), surface, bias_correction=rule.corrected)
    values = ways["value"].reshape(-1, STEPS + 1)
    points = inside(ways["x"]).ravel()

    def slowness(row: int) -> tuple[float, float]:
        needed = settled(values[row], points[row])
        total = values[row].sum() if points[row] > STEPS else np.inf
        return np.inf if needed is None else needed, total

    chosen = min(range(len(values)), key=slowness)
    return {"learning_rate": rule.axes["learning_rate"][chosen]} | dict(rule.usual)
