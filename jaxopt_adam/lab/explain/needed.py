"""The steps that each rule needs on each surface: the table of section 6, and the figures in its text."""

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxopt_adam.lab.explain.drawing import number
from jaxopt_adam.lab.explain.surfaces import SURFACES
from jaxopt_adam.lab.explain.walks import RULES, STEPS, best, inside, one, settled, walk_grid
from jaxopt_adam.lab.landscape import STEEPNESS

TUNED = ("momentum", "adam")
"""The rules of the last rows of the table, whose β₁ is best of its slider as well as the learning rate."""

SYMBOLS = {"learning_rate": "α", "b1": "β₁"}


@functools.cache
def tuned(name: str, surface: str) -> dict[str, Any]:
    """The α and β₁ of a rule that settle first, with its other settings as usual; among equals, the least values."""
    rule = RULES[name]
    others = {axis: (value,) for axis, value in rule.usual.items() if axis != "b1"}
    rule = dataclasses.replace(rule, axes=dict(rule.axes) | others)
    ways = walk_grid(rule, surface, bias_correction=rule.corrected)
    points = inside(ways["x"])

    def slowness(place: tuple[int, ...]) -> tuple[float, float]:
        needed = settled(ways["value"][place], points[place])
        return (np.inf, np.inf) if needed is None else (needed, ways["value"][place].sum())

    chosen = min(itertools.product(*map(range, points.shape)), key=slowness)
    return {axis: values[i] for (axis, values), i in zip(rule.axes.items(), chosen, strict=True)}


def needed(
    name: str,
    surface: str,
    setting: Mapping[str, Any],
    *,
    bias_correction: bool | None = None,
    start: tuple[float, float] | None = None,
) -> str:
    """The steps after which a walk stays below 1 % of its starting height, in words."""
    corrected = RULES[name].corrected if bias_correction is None else bias_correction
    way = one(RULES[name], surface, setting, bias_correction=corrected, start=start)
    steps = settled(way["value"], int(inside(way["x"])))
    return f"more than {STEPS}" if steps is None else str(steps)


def _row(title: str, name: str, choose: Any, shown: tuple[str, ...]) -> str:
    cells = []
    for surface in SURFACES:
        setting = choose(name, surface)
        chosen = "".join(f"<small>{SYMBOLS[axis]} = {number(setting[axis])}</small>" for axis in shown)
        steps = needed(name, surface, setting).replace("more than ", "&gt; ")
        cells.append(f"<td>{steps} {chosen}</td>")
    return f'<tr><th scope="row">{title}</th>{"".join(cells)}</tr>'


def table() -> str:
    """The rows of the table, as HTML."""
    rows = [_row(rule.title, name, best, ("learning_rate",)) for name, rule in RULES.items()]
    rows += [_row(f"{RULES[name].title}, best β₁ too", name, tuned, ("learning_rate", "b1")) for name in TUNED]
    return "\n".join(rows)


HOVERING = {"learning_rate": 0.3, "b2": 0.5, "eps": 1e-8}
"""RMSProp with a memory so short that it does not settle in the long valley."""

WALL = (-2.0, 2.0)
"""A start high up a wall of the long valley."""


def hovers() -> int:
    """The first step of RMSProp from which on each is as long as the learning rate, to 1 %, in both coordinates."""
    steps = one(RULES["rmsprop"], "valley", HOVERING)["step"]
    off = np.flatnonzero((np.abs(np.abs(steps) / HOVERING["learning_rate"] - 1) > 0.01).any(axis=-1))
    return int(off[-1]) + 2  # step 1 is the first of the array


def facts() -> dict[str, str]:
    """Figures for the text."""
    found = {"steps": str(STEPS), "steepness": number(STEEPNESS)}
    found |= {f"needed {rule} turned": needed(rule, "turned", best(rule, "turned")) for rule in RULES}
    found |= {
        f"needed tuned-{rule} {surface}": needed(rule, surface, tuned(rule, surface))
        for rule in TUNED
        for surface in ("valley", "turned")
    }
    # Adam in the long valley, as the text tries it.
    usual = {"learning_rate": 0.3} | dict(RULES["adam"].usual)
    first = one(RULES["adam"], "valley", usual)["step"][0]
    # RMSProp, likewise, with a memory as long as Adam's.
    long = {"learning_rate": 0.1, "b2": 0.999, "eps": 1e-8}
    found |= {
        "rmsprop first": number(float(np.abs(one(RULES["rmsprop"], "valley", long)["step"][0]).max())),
        "rmsprop uncorrected": needed("rmsprop", "valley", long, bias_correction=False),
        "rmsprop corrected": needed("rmsprop", "valley", long, bias_correction=True),
        "rmsprop hovers": str(hovers()),
    }
    short = {"learning_rate": 0.1} | dict(RULES["rmsprop"].usual)
    found |= {f"rmsprop {surface}": needed("rmsprop", surface, short) for surface in ("valley", "turned")}
    found |= {
        f"wall {rule}": needed(rule, "valley", best(rule, "valley"), start=WALL) for rule in ("descent", "momentum")
    }
    return found | {
        "first uncorrected": number(float(np.abs(first).max())),
        "valley corrected": needed("adam", "valley", usual),
        "valley uncorrected": needed("adam", "valley", usual, bias_correction=False),
        "valley slow": needed("adam", "valley", usual | {"b1": 0.95}),
        "valley short": needed("adam", "valley", usual | {"b2": 0.5}),
        "valley medium": needed("adam", "valley", usual | {"b2": 0.99}),
        "valley smaller": needed("adam", "valley", usual | {"learning_rate": 0.03}, bias_correction=False),
    }
