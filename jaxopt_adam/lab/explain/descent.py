"""Section 1: gradient descent down a bowl, and when to stop."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxopt_adam import descend, grid, sgd
from jaxopt_adam.lab.explain import exits
from jaxopt_adam.lab.explain.drawing import curve, curves, held, number, path, path_plot, surface_single
from jaxopt_adam.lab.explain.section import Control, Field, Plot, Section, Trace
from jaxopt_adam.lab.explain.starts import STARTS, moved, start_fields
from jaxopt_adam.lab.explain.surfaces import SURFACES, grid_points
from jaxopt_adam.lab.explain.walks import inside
from jaxopt_adam.lab.landscape import heights

STEPS = 300
TOLERANCE = 1e-4
MOST = 100_000
DIVERGED = 1e9
RATES = (
    *(0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.007, 0.008, 0.009, 0.01, 0.011, 0.012, 0.013),
    *(
        0.014,
        0.015,
        0.016,
        0.017,
        0.018,
        0.0185,
        0.019,
        0.0195,
        0.0198,
        0.02,
        0.0201,
        0.0202,
        0.0205,
        0.021,
        0.022,
        0.025,
    ),
)
VALLEY = SURFACES["valley"]
CORNERS = ("corner 0", "corner 1", "corner 2")
POLE = 150.0
"""The height of the pole that marks the stop in three dimensions, where the wall in front would hide a cross."""

# An orthographic view from above, for browsers without WebGL: a row for each of the picture's axes.
TALLEST = 465.0
VIEW = np.array([[0.155, -0.115, 0.0], [0.05, 0.085, 0.9 / TALLEST]])


@jax.jit
def _walks(optimizer: Any, start: Any = VALLEY.start) -> dict[str, Any]:
    start = jnp.asarray(start, float)
    way = descend(VALLEY.function, start, optimizer, STEPS)
    return {"x": way.x, "value": way.value, "end": _stop(optimizer, start)}


class _Stop(NamedTuple):
    """The point where the article's rule stops a walk; :func:`~jaxopt_adam.minimize` asks for more and may walk on."""

    x: Any
    value: Any
    steps: Any
    stopped: Any


def _stop(optimizer: Any, x: Array) -> _Stop:
    def step(carry: tuple[_Stop, Any]) -> tuple[_Stop, Any]:
        at, state = carry
        updates, state = optimizer.update(jax.grad(VALLEY.function)(at.x), state, at.x)
        x = at.x + updates
        value = VALLEY.function(x)
        return _Stop(x, value, at.steps + 1, jnp.abs(value - at.value) < TOLERANCE), state

    def walking(carry: tuple[_Stop, Any]) -> Any:
        at, _ = carry
        return ~at.stopped & (at.value < DIVERGED) & (at.steps < MOST)

    start = _Stop(x, VALLEY.function(x), jnp.array(0), jnp.array(False))
    end, _ = jax.lax.while_loop(walking, step, (start, optimizer.init(x)))
    return end


def _named(walks: dict[str, Any]) -> dict[str, np.ndarray]:
    """The fields of walks with any leading axes."""
    x, value, end = np.asarray(walks["x"]), np.asarray(walks["value"]), walks["end"]
    points = inside(x)
    path = exits.to_border(x, points)
    where, height, steps = np.asarray(end.x), np.asarray(end.value), np.asarray(end.steps)
    shown = np.asarray(end.stopped) & (steps < points)
    where, height = np.where(shown[..., None], where, 0), np.where(shown, height, 0)
    return {
        "path-x": path[..., 0],
        "path-y": path[..., 1],
        "value": value,
        "points": points,
        "drawn": exits.drawn(points, STEPS),
        "stop-x": where[..., :1],
        "stop-y": where[..., 1:],
        "stop-step": steps[..., None],
        "stop-value": height[..., None],
        "stops": shown.astype(int),
        "path-across": _across(x[..., 0], x[..., 1], value),
        "path-up": _up(x[..., 0], x[..., 1], value),
        "pole-x": where[..., [0, 0]],
        "pole-y": where[..., [1, 1]],
        "pole-value": height[..., None] + [0.0, POLE],
        "poles": 2 * shown.astype(int),
        "stop-across": _across(where[..., :1], where[..., 1:], height[..., None]),
        "stop-up": _up(where[..., :1], where[..., 1:], height[..., None]),
    }


def _across(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    return VIEW[0, 0] * x + VIEW[0, 1] * y + VIEW[0, 2] * z


def _up(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    return VIEW[1, 0] * x + VIEW[1, 1] * y + VIEW[1, 2] * z


def _wires(rows: int = 13, columns: int = 21, points: int = 41) -> dict[str, np.ndarray]:
    """The surface as wires, in space and projected as the paths are; NaN between two wires."""
    along_x = np.meshgrid(*grid_points(points, rows))
    along_y = np.meshgrid(*grid_points(columns, points), indexing="ij")
    x, y = (np.vstack(each) for each in zip(along_x, along_y, strict=True))
    z = np.asarray(jax.vmap(VALLEY.function)(jnp.stack([x.ravel(), y.ravel()], axis=1))).reshape(x.shape)
    x, y, z = (np.pad(each, ((0, 0), (0, 1)), constant_values=np.nan).ravel() for each in (x, y, z))
    return {"wires-x": x, "wires-y": y, "wires-z": z, "wires-across": _across(x, y, z), "wires-up": _up(x, y, z)}


def _solid(columns: int = 41, rows: int = 25) -> dict[str, np.ndarray]:
    """The surface as triangles, two for each cell of a grid."""
    x, y = grid_points(columns, rows)
    each = np.arange(rows * columns).reshape(rows, columns)
    here, right, above, across = each[:-1, :-1], each[:-1, 1:], each[1:, :-1], each[1:, 1:]
    lower, upper = (here, right, above), (right, across, above)
    corners = np.reshape([lower, upper], (2, 3, -1)).swapaxes(0, 1).reshape(3, -1)
    return {
        "solid-x": np.tile(x, rows),
        "solid-y": np.repeat(y, columns),
        "solid-z": heights(VALLEY, x, y).ravel(),
    } | dict(zip(CORNERS, corners, strict=True))


def _static(start: tuple[float, float] | None = None) -> dict[str, np.ndarray]:
    return surface_single("valley", start) | _wires() | _solid() | {"t0": np.arange(STEPS + 1)}


def single(learning_rate: float, start: tuple[float, float] | None = None) -> dict[str, np.ndarray]:
    """The fields for one learning rate."""
    return _static(start) | _named(_walks(sgd(learning_rate), VALLEY.start if start is None else start))


@functools.cache
def _rows() -> tuple[dict[str, np.ndarray], Any]:
    optimizers, _ = grid(sgd, learning_rate=list(RATES))
    walks = jax.jit(jax.vmap(_walks))(optimizers)
    return _within(_named(walks)), walks["end"]


def _within(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The fields with each row held after the last point that is drawn."""
    return rows | {
        name: held(rows[name], rows[length])
        for length, names in (("drawn", ("path-x", "path-y", "value")), ("points", ("path-across", "path-up")))
        for name in names
    }


def fields() -> dict[str, Field]:
    """The fields for all learning rates."""
    rows, end = _rows()
    each = {name: Field(("learning_rate",), values) for name, values in rows.items()}
    each |= {name: Field((), values) for name, values in _static().items()}
    each["sentence"] = Field(("learning_rate",), [_sentence(row, rows, end) for row in range(len(RATES))])
    each["exit"] = Field(("learning_rate",), exits.words(rows["points"], STEPS))
    return each | _moved()


def facts() -> dict[str, str]:
    """The steps after which the stopping rule ends two of the walks, for the text."""
    _, end = _rows()
    return {"stop steps": str(STEPS)} | {
        f"stop {rate}": str(int(end.steps[RATES.index(rate)])) for rate in (0.01, 0.0195)
    }


def _moved() -> dict[str, Field]:
    """The fields for the starts that a reader can choose."""
    optimizers, _ = grid(sgd, learning_rate=list(RATES))
    walks = jax.jit(jax.vmap(jax.vmap(_walks, (0, None)), (None, 0)))(optimizers, jnp.array(STARTS))
    rows, axes = _within(_named(walks)), ("start", "learning_rate")
    sentences = [[_sentence((i, j), rows, walks["end"]) for j in range(len(RATES))] for i in range(len(STARTS))]
    words = {"moved sentence": Field(axes, sentences), "moved exit": Field(axes, exits.words(rows["points"], STEPS))}
    return moved(axes, rows) | start_fields() | words


def _sentence(row: Any, rows: dict[str, np.ndarray], end: Any) -> str:
    points, steps = int(rows["points"][row]), int(end.steps[row])
    height, last = _height(float(end.value[row])), _height(float(rows["value"][row][-1]))
    if points <= STEPS:
        return f"Diverges: every step ends higher up on the opposite wall, and step {points} leaves the picture."
    if end.value[row] > 1:
        return (
            f"Bounces: the path jumps from wall to wall and never settles on the floor. The stopping rule is fooled: "
            f"it ends the walk after {steps} steps at a height of {height}."
        )
    if steps > STEPS:
        return (
            f"Crawls: after {STEPS} steps the path is still at a height of {last}. The stopping rule would end the "
            f"walk after {steps:,} steps at a height of {height}."
        )
    # Each step multiplies y by one factor. A factor that is zero on paper may be a rounding error of either sign.
    before, after = rows["path-y"][row][:2]
    if after / before < -1e-9:
        return (
            f"Oscillates: the path jumps from wall to wall, lower each time. The stopping rule ends the walk "
            f"after {steps} steps at a height of {height}."
        )
    return (
        f"Converges: the path slides down without overshooting. The stopping rule ends the walk after {steps} "
        f"steps at a height of {height}."
    )


def _height(value: float) -> str:
    return number(value) if value > 1e-10 else "0"


def _lines_in_space(colour: str, width: float) -> dict[str, Any]:
    return {"type": "scatter3d", "mode": "lines", "line": {"color": colour, "width": width}, "hoverinfo": "skip"}


def _plots() -> tuple[Plot, ...]:
    stop = {"mode": "markers", "marker": {"symbol": "x", "size": 12, "color": "--stop", "line": {"width": 1}}}
    flat = path_plot(
        "descent-path",
        "From above",
        "Contours of a long valley, seen from above, and the path of gradient descent from the left towards the lowest "
        "point in the middle.",
        path("path", "gradient descent", "descent", x="path-x", y="path-y", length="drawn", symbol="circle"),
        Trace("stop", "stops here", "stop-x", "stop-y", length="stops", style=stop),
    )
    line = {"color": "--descent", "width": 5}
    solid = Plot(
        "descent-surface",
        "In three dimensions",
        "The valley as a surface in three dimensions, with the same path on it.",
        (
            Trace(
                "surface",
                "",
                "solid-x",
                "solid-y",
                z="solid-z",
                corners=CORNERS,
                # Plotly refines a trace of the type surface to 180 points a side, which is slower to draw.
                style={
                    "type": "mesh3d",
                    "colorscale": "--ground",
                    "showscale": False,
                    "lighting": {"ambient": 0.85, "diffuse": 0.3, "specular": 0.05},
                    "hoverinfo": "skip",
                },
            ),
            Trace(
                "net",
                "",
                "wires-x",
                "wires-y",
                z="wires-z",
                style=_lines_in_space("--contour", 1),
            ),
            Trace(
                "path",
                "gradient descent",
                "path-x",
                "path-y",
                z="value",
                length="points",
                style={
                    "type": "scatter3d",
                    "mode": "lines+markers",
                    "line": line,
                    "marker": {"size": 3, "color": "--descent"},
                },
            ),
            Trace(
                "stop",
                "stops here",
                "pole-x",
                "pole-y",
                z="pole-value",
                length="poles",
                style=_lines_in_space("--stop", 7),
            ),
            Trace(
                "wires",
                "",
                "wires-across",
                "wires-up",
                style={
                    "mode": "lines",
                    "line": {"color": "--contour", "width": 0.8},
                    "hoverinfo": "skip",
                    "connectgaps": False,
                },
            ),
            path(
                "path-projected",
                "gradient descent",
                "descent",
                x="path-across",
                y="path-up",
                length="points",
                symbol="circle",
            ),
            Trace("stop-projected", "stops here", "stop-across", "stop-up", length="stops", style=stop),
        ),
        {
            "showlegend": False,
            "scene": {
                "xaxis": {"title": "x", "tickvals": [-4, 0, 4]},
                "yaxis": {"title": "y", "tickvals": [-2, 0, 2]},
                "zaxis": {"title": "height f", "tickvals": [0, 200, 400]},
            },
            "xaxis": {"visible": False},
            "yaxis": {"visible": False},
        },
        shape="wide",
    )
    value = curves(
        "descent-value",
        "Height at each step",
        "The height at each step, on a logarithmic scale.",
        "height f",
        curve("value", "height", "value", "descent", x="t0", length="drawn"),
        Trace("stop", "stops here", "stop-step", "stop-value", length="stops", style=stop),
        log=True,
        shape="wide",
        steps=STEPS,
        note="exit",
    )
    return flat, solid, value


DESCENT = Section(
    "gradient-descent",
    (Control("learning_rate", "Learning rate α", RATES, 0.019),),
    _plots(),
    fields,
    single,
    "sentence",
    steps=STEPS,
    starts=STARTS,
)
