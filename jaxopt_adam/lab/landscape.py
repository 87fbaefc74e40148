"""Functions of two variables, and the paths of the rules down them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import jaxopt_adam
from jaxopt_adam.lab import race, styles
from jaxopt_adam.lab.figures import logarithmic, new_figure, title

RULES = {name: rule for name, rule in race.RULES.items() if name != "batch"} | {
    "sgd": ("gradient descent", jaxopt_adam.sgd, {})
}
"""The rules of the race but `batch`, because a function of two variables has no batches."""


@dataclasses.dataclass(frozen=True)
class Landscape:
    """A function of two variables, its minima, and the part of it that is drawn.

    Args:
        title: its name.
        function: a function from an array of shape (2,) to a scalar, whose lowest value is 0.
        minima: the points where it is 0.
        start: the default start of walks.
        limits: the part that is drawn: (left, right, bottom, top).
    """

    title: str
    function: Callable[[Array], Array]
    minima: tuple[tuple[float, float], ...]
    start: tuple[float, float]
    limits: tuple[float, float, float, float]


def _sphere(x: Array) -> Array:
    return x[0] ** 2 + x[1] ** 2


STEEPNESS = 100.0
"""The curvature of the bowl along its second axis, relative to that along its first."""


def bowl(x: Array) -> Array:
    """A quadratic function with axes of different curvature; from near, a long valley."""
    return 0.5 * (x[0] ** 2 + STEEPNESS * x[1] ** 2)


def _rosenbrock(x: Array) -> Array:
    return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2


def _beale(x: Array) -> Array:
    return (
        (1.5 - x[0] + x[0] * x[1]) ** 2 + (2.25 - x[0] + x[0] * x[1] ** 2) ** 2 + (2.625 - x[0] + x[0] * x[1] ** 3) ** 2
    )


def _himmelblau(x: Array) -> Array:
    return (x[0] ** 2 + x[1] - 11) ** 2 + (x[0] + x[1] ** 2 - 7) ** 2


LANDSCAPES: Mapping[str, Landscape] = {
    "sphere": Landscape("Sphere", _sphere, ((0, 0),), (-2.5, 1.5), (-3, 3, -2.5, 2.5)),
    "bowl": Landscape("Ill-conditioned bowl (condition number 100)", bowl, ((0, 0),), (-8, 0.8), (-9, 4, -1.2, 1.2)),
    "rosenbrock": Landscape("Rosenbrock", _rosenbrock, ((1, 1),), (-1.2, 1), (-2, 2, -1, 2.5)),
    "beale": Landscape("Beale", _beale, ((3, 0.5),), (1, 1.5), (-0.5, 4.5, -1.5, 2)),
    "himmelblau": Landscape(
        "Himmelblau",
        _himmelblau,
        ((3, 2), (-2.805118, 3.131312), (-3.779310, -3.283186), (3.584428, -1.848126)),
        (0, -1),
        (-5, 5, -5, 5),
    ),
}
"""The functions by the names that the command takes."""

LEARNING_RATES = (*(float(f"{each}e{power}") for power in range(-5, 1) for each in (1, 1.5, 2, 3, 5, 7)), 10.0)


@dataclasses.dataclass(frozen=True)
class Walk:
    """The path of a rule down a landscape.

    Args:
        name: the rule's key in :data:`RULES`.
        rule: its name to show.
        learning_rate: the one of the grid that led lowest without climbing far above the start.
        path: the points, shape (steps + 1, 2), the start first.
        values: the function at each point.
    """

    name: str
    rule: str
    learning_rate: float
    path: np.ndarray
    values: np.ndarray

    @property
    def zigzag(self) -> float:
        """The length of the path over the diagonal of the box around it: 1 for a straight line, 0 for one point."""
        found = self.path[np.isfinite(self.path).all(axis=1)].astype(float)  # float32 would overflow
        length = np.linalg.norm(np.diff(found, axis=0), axis=1).sum()
        return float(length / max(np.linalg.norm(np.ptp(found, axis=0)), 1e-30))

    @property
    def label(self) -> str:
        """The rule with its learning rate."""
        return f"{self.rule} ({self.learning_rate:g})"


def walk(
    landscape: Landscape,
    rule: str,
    *,
    start: tuple[float, float] | None = None,
    steps: int = 200,
    learning_rates: Sequence[float] = LEARNING_RATES,
) -> Walk:
    """The path of a rule at the best of some learning rates, all tried in one program.

    Args:
        landscape: the function.
        rule: a key of :data:`RULES`.
        start: the first point; None for the landscape's own.
        steps: the number of steps, 0 or more.
        learning_rates: the learning rates to try.
    """
    shown, factory, arguments = RULES[rule]
    optimizers, table = jaxopt_adam.grid(factory, learning_rate=list(learning_rates), **arguments)
    first = jnp.asarray(landscape.start if start is None else start, float)
    paths = jax.vmap(lambda each: jaxopt_adam.descend(landscape.function, first, each, steps))(optimizers)
    values = np.asarray(paths.value)
    # A walk that climbs high above its start may end low by luck, and its picture shows nothing else.
    calm = np.isfinite(values).all(axis=1) & (values.max(axis=1) <= 1.5 * values[:, :1].max(axis=1))
    best = int(np.argmin(np.where(calm if calm.any() else np.isfinite(values[:, -1]), values[:, -1], np.inf)))
    return Walk(rule, shown, table[best]["learning_rate"], np.asarray(paths.x)[best], values[best])


GROUND = ("#c9dbe9", "#fbfaf7")
"""The colours of the lowest ground and of the highest, as on the page."""


def heights(landscape: Landscape, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The function on a grid of the coordinates, shape (y, x)."""
    across, up = np.meshgrid(x, y)
    points = jnp.stack([across.ravel(), up.ravel()], axis=1)
    return np.asarray(jax.vmap(landscape.function)(points)).reshape(across.shape)


def draw_ground(axes: Axes, landscape: Landscape, *, filled: bool = False) -> None:
    """Draw the contours of a landscape and its minima.

    Args:
        axes: where to draw.
        landscape: the function.
        filled: whether to colour the ground by its height.
    """
    x, y = np.linspace(*landscape.limits[:2], 300), np.linspace(*landscape.limits[2:], 300)
    z = heights(landscape, x, y)
    levels = np.geomspace(max(z.min(), z.max() * 1e-5), z.max(), 18)
    if filled:
        colours = LinearSegmentedColormap.from_list("ground", GROUND)(np.linspace(0, 1, len(levels)))
        axes.contourf(x, y, z, levels=levels, colors=colours, extend="both")
    axes.contour(x, y, z, levels=levels, colors="#9fb3c2" if filled else "#bbbbbb", linewidths=0.7)
    minima = np.transpose(landscape.minima)
    axes.plot(*minima, "*", color="black", markersize=11, linestyle="none", label="minimum", zorder=2.2)
    axes.set(xlim=landscape.limits[:2], ylim=landscape.limits[2:])


def path_look(walk: Walk) -> dict[str, Any]:
    """The look of a path. The more it zigzags, the thinner and paler it is, and the lower it lies."""
    look = styles.line(walk.name)
    calm = min(1.0, 3 / max(walk.zigzag, 1.0))
    # The dashes of a zigzag would make no line.
    dashes = {} if calm > 0.5 else {"linestyle": "-"}
    return (
        look
        | dashes
        | {
            "linewidth": max(0.6, calm * look["linewidth"]),
            "alpha": 0.4 + 0.6 * calm,
            "zorder": look["zorder"] - 0.2 * (1 - calm),
        }
    )


def figure(landscape: Landscape, walks: Sequence[Walk]) -> Figure:
    """The paths over the function's contours, and the function's value along each. A marker shows where a path ends."""
    drawn, (left, right) = new_figure(2, width=9.0, height=4.6, width_ratios=(1.25, 1))
    walks = sorted(walks, key=lambda each: each.name != "adam")
    draw_ground(left, landscape)
    for each in walks:
        left.plot(*each.path.T, **path_look(each))
        left.plot(*each.path[-1:].T, **head_look(each.name))
        right.plot(np.arange(len(each.values)), np.maximum(each.values, 1e-12), **styles.line(each.name))
    lowest = min(each.values.min() for each in walks)
    left.plot(*walks[0].path[:1].T, "o", color="black", markersize=8, fillstyle="none", label="start")
    left.set(xlabel="x", ylabel="y")
    title(left, landscape.title)
    right.set(xlabel="steps", ylabel="value, or 10⁻¹² where it is less" if lowest < 1e-12 else "value")
    logarithmic(right, "y")
    title(right, "Value along the path")
    handles = [*(legend_line(each.name, each.label) for each in walks), *left.get_legend_handles_labels()[0]]
    drawn.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=9, frameon=False, handlelength=3.2)
    return drawn


def legend_line(rule: str, label: str) -> Line2D:
    """A rule's line with its marker, for a legend."""
    return Line2D([], [], label=label, **head_look(rule) | styles.line(rule))


def head_look(rule: str, *, size: float = 7) -> dict[str, Any]:
    """The look of the marker at the end of a rule's path."""
    style = styles.RULES[rule]
    return {
        "color": style.light,
        "marker": styles.MARKERS[style.marker],
        "markersize": size + 2 if rule == "adam" else size,
        "markeredgecolor": "white",
        "linestyle": "none",
        "zorder": 2.9 if rule == "adam" else 2.8,
    }
