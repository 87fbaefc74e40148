"""Drawings that several sections share: the surface and paths on it, curves over the steps."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxopt_adam.lab import styles
from jaxopt_adam.lab.explain.section import Field, Plot, Trace
from jaxopt_adam.lab.explain.surfaces import BOX, SURFACES, grid_points
from jaxopt_adam.lab.landscape import heights

HEIGHT_RANGE = (1e-5, 1000.0)
HEIGHT_TICKS = (1e-4, 1e-2, 1, 100)


def number(value: float) -> str:
    """A number for a sentence: three digits, and powers of ten for very small or large numbers."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    exponent = math.floor(math.log10(abs(value)))
    power = "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    factor = f"{value / 10**exponent:.2g}"
    return power if factor == "1" else f"{factor}·{power}"


def held(values: np.ndarray, length: np.ndarray) -> np.ndarray:
    """`values` with all but the first `length` along the last axis replaced by the last of these."""
    last = np.minimum(np.arange(values.shape[-1]), np.maximum(length - 1, 0)[..., None])
    return np.take_along_axis(values, np.broadcast_to(last, values.shape), axis=-1)


def surface_single(name: str, start: tuple[float, float] | None = None) -> dict[str, np.ndarray]:
    """The fields of one surface, with its own start or another."""
    x, y = grid_points()
    surface = SURFACES[name]
    start = surface.start if start is None else start
    minima = np.array([surface.minima[0], surface.minima[-1]], float)
    return {
        "ground-x": x,
        "ground-y": y,
        # Contours of the roots are evenly spaced. Those of the heights themselves would crowd at the rim.
        "ground-z": np.sqrt(heights(surface, x, y)),
        "start-x": np.array(start[:1]),
        "start-y": np.array(start[1:]),
        "minimum-x": minima[:, 0],
        "minimum-y": minima[:, 1],
    }


def ground_fields() -> dict[str, Field]:
    """The fields of every surface."""
    each = [surface_single(name) for name in SURFACES]
    return {
        name: Field((), each[0][name])
        if name in ("ground-x", "ground-y")
        else Field(("surface",), np.stack([one[name] for one in each]))
        for name in each[0]
    }


def look(rule: str, *, own: bool = True) -> dict[str, Any]:
    """The width and dashes of a rule's line; it is wider in the rule's `own` section."""
    style = styles.on_page(rule)
    if style is None:
        return {"width": 2.5, "dash": "solid"}
    return {"width": max(style.width, 2.5) if own else 0.85 * style.width, "dash": style.dash}


def rank(rule: str) -> dict[str, Any]:
    """The place in the legend: Adam is the first, although it is drawn last."""
    return {"legendrank": 1} if rule == "adam" else {}


def ticks(values: Sequence[float]) -> dict[str, Any]:
    """The labels of a logarithmic axis, each a whole number. Plotly's own would be 1, 2, 5, 10, 2, 5."""
    return {
        "tickmode": "array",
        "tickvals": list(values),
        "ticktext": [np.format_float_positional(each, trim="-") for each in values],
    }


def line(colour: str, *, width: float, dash: str, marker: dict[str, Any] | None = None) -> dict[str, Any]:
    """The style of a line, with markers in its colour if they are described."""
    style = {"mode": "lines", "line": {"color": f"--{colour}", "width": width, "dash": dash}} | rank(colour)
    if marker is not None:
        style |= {"mode": "lines+markers", "marker": {"color": f"--{colour}"} | marker}
    return style


def curve(
    key: str,
    name: str,
    y: str,
    colour: str,
    *,
    x: str = "t",
    length: str | None = "steps",
    symbol: str | None = None,
    **own: Any,
) -> Trace:
    """A line over the steps; with a symbol, also some marks, which show where there is one step alone."""
    style: dict[str, Any] = {"mode": "lines", "line": {"color": f"--{colour}"} | look(colour) | own} | rank(colour)
    if symbol:
        marker = {"color": f"--{colour}", "symbol": symbol, "size": 6, "maxdisplayed": 9}
        style |= {"mode": "lines+markers", "marker": marker}
    return Trace(key, name, x, y, length=length, style=style)


def path(
    key: str,
    name: str,
    colour: str,
    *,
    x: str,
    y: str,
    length: str,
    symbol: str,
    thin: bool = False,
) -> Trace:
    """A path over the surface, with a marker at each step."""
    marker = {"size": 4 if thin else 6, "symbol": symbol}
    style = line(colour, **look(colour, own=not thin), marker=marker)
    return Trace(key, name, x, y, length=length, style=style)


def ground(contours: int) -> Trace:
    """The contours of a surface, about this number of them."""
    return Trace(
        "ground",
        "",
        "ground-x",
        "ground-y",
        z="ground-z",
        style={
            "type": "contour",
            "colorscale": "--ground",
            "showscale": False,
            "hoverinfo": "skip",
            "ncontours": contours,
            "contours": {"coloring": "fill"},
            "line": {"color": "--contour", "width": 0.8},
        },
    )


def framed(left: int, **axes: dict[str, Any]) -> dict[str, Any]:
    """The layout of a plot with contours. With margins that Plotly measures, it would draw the contours twice."""
    margin = {"l": left, "r": 20, "t": 20, "b": 58}
    own = {"zeroline": False, "showgrid": False, "automargin": False}
    return {"margin": margin} | {name: own | axis for name, axis in axes.items()}


def path_plot(plot: str, title: str, label: str, *paths: Trace) -> Plot:
    """The contours of the surface with paths over it."""
    mark = {"mode": "markers", "hoverinfo": "skip"}
    start = Trace(
        "start",
        "start",
        "start-x",
        "start-y",
        style=mark | {"marker": {"symbol": "circle-open", "size": 13, "color": "--ink", "line": {"width": 2}}},
    )
    minimum = Trace(
        "minimum",
        "lowest point",
        "minimum-x",
        "minimum-y",
        style=mark | {"marker": {"symbol": "star", "size": 12, "color": "--ink"}},
    )
    layout = framed(
        56,
        xaxis={"title": "x", "range": list(BOX[:2]), "constrain": "domain"},
        yaxis={"title": "y", "range": list(BOX[2:]), "scaleanchor": "x", "constrain": "domain"},
    )
    return Plot(plot, title, label, (ground(16), *paths, start, minimum), layout, shape="wide", walked=True)


def curves(
    plot: str,
    title: str,
    label: str,
    y_title: str,
    *traces: Trace,
    log: bool = False,
    shape: str = "small",
    steps: int,
    note: str | None = None,
    **y_axis: Any,
) -> Plot:
    """Lines over so many steps, with the sentence of the field `note` over them."""
    axis: dict[str, Any] = {"title": y_title} | y_axis
    if log:
        axis |= {
            "type": "log",
            "range": [math.log10(each) for each in HEIGHT_RANGE],
        } | ticks(HEIGHT_TICKS)
    layout: dict[str, Any] = {"xaxis": {"title": "step t", "range": [0, steps]}, "yaxis": axis}
    if note:
        place = {"x": 0, "xref": "paper", "xanchor": "left", "y": 1, "yref": "paper", "yanchor": "bottom"}
        layout["title"] = {"text": {"field": note}, "font": {"size": 14}, "pad": {"b": 8}} | place
    return Plot(plot, title, label, traces, layout, shape)
