"""The surfaces that the rules walk down, all in one frame."""

import math

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxopt_adam.lab.landscape import Landscape, bowl

BOX = (-5.0, 5.0, -3.0, 3.0)
"""The part that is drawn: left, right, bottom, top. A path is drawn until its first point outside."""

TURN = math.radians(30)


def _turned(x: Array) -> Array:
    along = math.cos(TURN) * x[0] + math.sin(TURN) * x[1]
    across = -math.sin(TURN) * x[0] + math.cos(TURN) * x[1]
    return bowl(jnp.stack([along, across]))


def _saddle(x: Array) -> Array:
    return (x[0] ** 2 - 9) ** 2 / 36 + 4 * x[1] ** 2


_START = (-4.2, 1.0)

SURFACES = {
    "valley": Landscape("Long valley", bowl, ((0, 0),), _START, BOX),
    "turned": Landscape(
        "The same valley, turned by 30°",
        _turned,
        ((0, 0),),
        (
            math.cos(TURN) * _START[0] - math.sin(TURN) * _START[1],
            math.sin(TURN) * _START[0] + math.cos(TURN) * _START[1],
        ),
        BOX,
    ),
    "saddle": Landscape("Saddle between two hollows", _saddle, ((-3, 0), (3, 0)), (0.001, 2.0), BOX),
}
"""The surfaces by the names in their control."""


def grid_points(columns: int = 81, rows: int = 49) -> tuple[np.ndarray, np.ndarray]:
    """The coordinates of a grid over the box: one array along x, one along y."""
    return np.linspace(*BOX[:2], columns), np.linspace(*BOX[2:], rows)
