"""The legend of a figure, as HTML that wraps like text, with a small drawing for each entry."""

import html
import math
from collections.abc import Mapping
from typing import Any

from jaxopt_adam.lab import styles
from jaxopt_adam.lab.explain.section import Plot

WIDTH, HEIGHT, RADIUS = 36, 14, 4.5
"""The size of a drawing and of the marks in it, in pixels."""


def legend(plot: Plot) -> str:
    """The entries of the traces that have a name, Adam's first.

    Traces of one name, such as a path from two sides, share an entry.
    """
    styles: dict[str, Mapping[str, Any]] = {}
    for trace in sorted(plot.traces, key=lambda trace: trace.style.get("legendrank", 1000)):
        if trace.name:
            styles.setdefault(trace.name, trace.style)
    entries = "".join(f"<li>{_drawing(style)}{html.escape(name)}</li>" for name, style in styles.items())
    return f'<ul class="legend">{entries}</ul>'


def _drawing(style: Mapping[str, Any]) -> str:
    mode, middle, parts = style.get("mode", ""), (WIDTH / 2, HEIGHT / 2), []
    if style.get("type") == "bar":
        parts.append(f'<path d="{_mark("square", *middle)}" fill="var({style["marker"]["color"]})"/>')
    if "lines" in mode:
        line = style["line"]
        width = min(line["width"], 3)
        dash = " ".join(f"{width * length:g}" for length in styles.DASHES[line.get("dash", "solid")])
        parts.append(
            f'<path d="M0 {middle[1]:g}H{WIDTH}" stroke="var({line["color"]})" stroke-width="{width:g}" '
            f'stroke-dasharray="{dash or "none"}"/>'
        )
    if "markers" in mode:
        marker = style["marker"]
        symbol, colour = marker.get("symbol", "circle"), f"var({marker['color']})"
        hollow = symbol.endswith("-open") or symbol == "x"
        paint = f'fill="none" stroke="{colour}" stroke-width="2.5"' if hollow else f'fill="{colour}"'
        parts.append(f'<path d="{_mark(symbol.removesuffix("-open"), *middle)}" {paint}/>')
    size = f'width="{WIDTH}" height="{HEIGHT}"'
    return f'<svg {size} viewBox="0 0 {WIDTH} {HEIGHT}" aria-hidden="true">{"".join(parts)}</svg>'


def _mark(symbol: str, x: float, y: float) -> str:
    """The outline of a symbol of Plotly."""
    if symbol == "circle":
        return f"M{x - RADIUS:g} {y:g}a{RADIUS} {RADIUS} 0 1 0 {2 * RADIUS} 0a{RADIUS} {RADIUS} 0 1 0 {-2 * RADIUS} 0z"
    if symbol == "x":
        a, b = RADIUS, 2 * RADIUS
        return f"M{x - a:g} {y - a:g}l{b:g} {b:g}m0 {-b:g}l{-b:g} {b:g}"
    corners = {"square": 4, "diamond": 4, "triangle-up": 3, "star": 10}[symbol]
    turn = math.pi / 4 if symbol == "square" else 0.0
    reach = [1.35 * RADIUS * (0.45 if symbol == "star" and i % 2 else 1) for i in range(corners)]
    angles = [turn + 2 * math.pi * i / corners for i in range(corners)]
    points = [(x + r * math.sin(a), y - r * math.cos(a)) for r, a in zip(reach, angles, strict=True)]
    return "M" + "L".join(f"{left:.1f} {top:.1f}" for left, top in points) + "z"
