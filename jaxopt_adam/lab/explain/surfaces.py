"""The surfaces that the rules walk down, all in one frame."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

BOX = (-5.0, 5.0, -3.0, 3.0)
"""What is drawn: left, right, bottom, top. A path is drawn until its first point outside."""

STEEPNESS = 100.0
"""How many times more the valley curves across than along."""

TURN = math.radians(30)


@dataclasses.dataclass(frozen=True)
class Surface:
    """A function of two variables whose lowest value is 0.

    Args:
        title: its name.
        function: takes an array of shape (2,) to a scalar.
        start: where every walk starts.
        minima: where it is 0.
    """

    title: str
    function: Callable[[Array], Array]
    start: tuple[float, float]
    minima: tuple[tuple[float, float], ...]


def _valley(x: Array) -> Array:
    return 0.5 * (x[0] ** 2 + STEEPNESS * x[1] ** 2)


def _turned(x: Array) -> Array:
    along = math.cos(TURN) * x[0] + math.sin(TURN) * x[1]
    across = -math.sin(TURN) * x[0] + math.cos(TURN) * x[1]
    return _valley(jnp.stack([along, across]))


def _saddle(x: Array) -> Array:
    return (x[0] ** 2 - 9) ** 2 / 36 + 4 * x[1] ** 2


_START = (-4.2, 1.0)

SURFACES = {
    "valley": Surface("Long valley", _valley, _START, ((0, 0),)),
    "turned": Surface(
        "The same valley, turned by 30°",
        _turned,
        (
            math.cos(TURN) * _START[0] - math.sin(TURN) * _START[1],
            math.sin(TURN) * _START[0] + math.cos(TURN) * _START[1],
        ),
        ((0, 0),),
    ),
    "saddle": Surface("Saddle between two hollows", _saddle, (0.001, 2.0), ((-3, 0), (3, 0))),
}
"""The surfaces by the names that their control has."""


def grid_points(columns: int = 81, rows: int = 49) -> tuple[np.ndarray, np.ndarray]:
    """The coordinates of a grid over the box: one array along x, one along y."""
    return np.linspace(*BOX[:2], columns), np.linspace(*BOX[2:], rows)


def heights(surface: Surface) -> np.ndarray:
    """The function on :func:`grid_points`, shape (rows, columns)."""
    x, y = np.meshgrid(*grid_points())
    return np.asarray(jax.vmap(surface.function)(jnp.stack([x.ravel(), y.ravel()], axis=1))).reshape(x.shape)
