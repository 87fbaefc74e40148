"""The picture at the top of the page: gradient descent and Adam, down the same valley."""

import functools
import html
from typing import Any

import contourpy
import numpy as np

from jaxopt_adam.lab.explain.drawing import held, number, path
from jaxopt_adam.lab.explain.section import Field, Plot, Section, Trace
from jaxopt_adam.lab.explain.starts import STARTS, moved, start_fields
from jaxopt_adam.lab.explain.surfaces import SURFACES
from jaxopt_adam.lab.explain.walks import RULES, STEPS, inside, one, usual, walk_grid
from jaxopt_adam.lab.landscape import heights

SURFACE = "valley"
SHOWN = ("descent", "adam")
BOX = (-5.0, 5.0, -2.5, 2.5)
"""The part of the surface in the picture: left, right, bottom, top."""
LEVELS = 16


@functools.cache
def rate(rule: str) -> float:
    """The learning rate, of those in the rule's section, with which the walk is lowest after its last step."""
    rates = RULES[rule].axes["learning_rate"]
    way = walk_grid(usual(rule), SURFACE, bias_correction=RULES[rule].corrected)
    last = np.where(inside(way["x"]) > STEPS, way["value"][..., -1], np.inf).reshape(len(rates))
    return rates[int(last.argmin())]


def single(start: tuple[float, float] | None = None) -> dict[str, np.ndarray]:
    """The fields from one start; None for the surface's own."""
    own = SURFACES[SURFACE].start if start is None else start
    found = {"start-x": np.array(own[:1]), "start-y": np.array(own[1:])}
    for name in SHOWN:
        setting = {"learning_rate": rate(name)} | dict(RULES[name].usual)
        way = one(RULES[name], SURFACE, setting, bias_correction=RULES[name].corrected, start=start)
        length = inside(way["x"])
        found |= {
            f"{name}-x": held(way["x"][:, 0], length),
            f"{name}-y": held(way["x"][:, 1], length),
            f"{name}-value": held(way["value"], length),
            f"{name}-points": length,
        }
    return found


def fields() -> dict[str, Field]:
    """The fields from all starts."""
    others = [single(start) for start in STARTS]
    each = {name: np.stack([other[name] for other in others]) for name in others[0] if not name.startswith("start")}
    return {name: Field((), values) for name, values in single().items()} | moved(("start",), each) | start_fields()


def _plot() -> Plot:
    ways = [
        path(name, RULES[name].title, name, x=f"{name}-x", y=f"{name}-y", length=f"{name}-points", symbol=symbol)
        for name, symbol in zip(SHOWN, ("circle", "triangle-up"), strict=True)
    ]
    start = Trace("start", "", "start-x", "start-y", style={"mode": "markers"})
    return Plot("hero", "", "", (*ways, start), {"box": list(BOX)}, walked=True)


HERO = Section("hero", (), (_plot(),), fields, single, steps=STEPS, starts=STARTS)
"""The picture as a section without controls. It is not one of the article's sections."""


def _points(points: Any) -> str:
    left, right, bottom, top = BOX
    across, up = (points[:, 0] - left) / (right - left) * 1000, (top - points[:, 1]) / (top - bottom) * 500
    return "M" + "L".join(f"{x:.0f},{y:.0f}" for x, y in zip(across, up, strict=True))


def picture() -> str:
    """The ground and the whole paths as SVG. It is all that is seen where scripts are switched off."""
    x, y = np.linspace(*BOX[:2], 201), np.linspace(*BOX[2:], 101)
    roots = np.sqrt(heights(SURFACES[SURFACE], x, y))
    lines = contourpy.contour_generator(x, y, roots, fill_type="OuterOffset")
    levels = np.linspace(0, roots.max(), LEVELS + 1)[1:]
    ground = "".join(
        f'<path d="{_points(points)}z" style="--level:{100 * level / levels[-1]:.0f}%"/>'
        for level in levels[::-1]
        for points in lines.filled(-1, level)[0]
    )
    found = single()
    ways = "".join(
        f'<path d="{_points(np.stack([found[f"{name}-x"], found[f"{name}-y"]], 1)[: found[f"{name}-points"]])}" '
        f'style="stroke:var(--{name})"/>'
        for name in SHOWN
    )
    return (
        f'<svg viewBox="0 0 1000 500" role="img" aria-label="{html.escape(label())}">'
        f'<g class="ground">{ground}</g><g class="whole">{ways}</g></svg>'
    )


def label() -> str:
    """The picture in words."""
    found = single()
    descent, adam = (number(float(found[f"{name}-value"][-1])) for name in SHOWN)
    return (
        f"A long valley seen from above, and two paths of {STEPS} steps from its left end. Gradient descent jumps from "
        f"wall to wall and ends at a height of {descent}. Adam swings past the lowest point and back. It ends at a "
        f"height of {adam}."
    )


def facts() -> dict[str, str]:
    """The learning rates for the text."""
    return {f"hero {name}": number(rate(name)) for name in SHOWN}
