"""Sections 4 to 6: momentum, RMSProp and Adam, down the same surfaces from the same start."""

import functools
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxopt_adam.lab.explain import exits
from jaxopt_adam.lab.explain.drawing import (
    curve,
    curves,
    ground_fields,
    held,
    look,
    number,
    path,
    path_plot,
    surface_single,
)
from jaxopt_adam.lab.explain.section import Control, Field, Plot, Section
from jaxopt_adam.lab.explain.starts import STARTS, moved, start_fields
from jaxopt_adam.lab.explain.surfaces import SURFACES
from jaxopt_adam.lab.explain.walks import RULES, STEPS, best, inside, one, settled, usual, walk_grid

SYMBOLS = {"descent": "circle", "momentum": "square", "rmsprop": "diamond", "adam": "triangle-up"}
MOMENTS = {"mu": "m", "nu": "v"}
LABELS = {
    "learning_rate": "Learning rate α",
    "b1": "β₁, decay of m",
    "b2": "β₂, decay of v",
    "eps": "ε",
}
COORDINATES = ("x", "y")


def _named(way: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The fields of walks with any leading axes; those of moments have one more axis, of the coordinates."""
    points = inside(way["x"])
    shown = exits.drawn(points, STEPS)
    path = exits.to_border(way["x"], points)
    named = {"path-x": path[..., 0], "path-y": path[..., 1], "value": way["value"], "points": points, "drawn": shown}
    named |= {"steps": shown - 1, "step-x": way["step"][..., 0], "step-y": way["step"][..., 1]}
    return named | {
        name.replace("_", "-"): np.swapaxes(way[name], -1, -2)
        for name in ("mu", "mu_hat", "nu", "nu_hat")
        if name in way
    }


@functools.cache
def _reference(name: str, surface: str, start: tuple[float, float] | None = None) -> dict[str, np.ndarray]:
    """The walk of another rule at the setting that is best from the surface's own start."""
    named = _named(one(RULES[name], surface, best(name, surface), bias_correction=RULES[name].corrected, start=start))
    return {f"{name}-{field}": named[field] for field in ("path-x", "path-y", "value", "points", "drawn")}


def _axes(rule: str) -> tuple[str, ...]:
    return ("surface", "bias_correction", *RULES[rule].axes)


def _steps() -> dict[str, np.ndarray]:
    return {"t": np.arange(1, STEPS + 1), "t0": np.arange(STEPS + 1), "rate-t": np.array([1, STEPS])}


def _single(
    rule: str, others: tuple[str, ...], *, start: tuple[float, float] | None = None, **setting: Any
) -> dict[str, np.ndarray]:
    surface, coordinate = setting["surface"], COORDINATES.index(setting["coordinate"])
    named = _named(one(RULES[rule], surface, setting, bias_correction=setting["bias_correction"], start=start))
    moments = {name: named[name][coordinate] for name in named if name.partition("-")[0] in MOMENTS}
    rate = np.full(2, setting["learning_rate"])
    return (
        surface_single(surface, start)
        | _steps()
        | named
        | moments
        | {"rate-up": rate, "rate-down": -rate}
        | {name: values for other in others for name, values in _reference(other, surface, start).items()}
    )


def _fields(rule: str, others: tuple[str, ...]) -> dict[str, Field]:
    ways = [
        [_named(walk_grid(RULES[rule], surface, bias_correction=corrected)) for corrected in (False, True)]
        for surface in SURFACES
    ]
    named = {name: np.array([[one[name] for one in row] for row in ways]) for name in ways[0][0]}
    axes = _axes(rule)
    fields = ground_fields() | {name: Field((), values) for name, values in _steps().items()}
    for name, values in _within(named).items():
        fields[name] = Field((*axes, "coordinate") if name.partition("-")[0] in MOMENTS else axes, values)
    for other in others:
        each = [_reference(other, surface) for surface in SURFACES]
        for name in each[0]:
            fields[name] = Field(("surface",), np.stack([row[name] for row in each]))
    rates = np.array(RULES[rule].axes["learning_rate"])[:, None] * np.ones(2)
    fields |= {"rate-up": Field(("learning_rate",), rates), "rate-down": Field(("learning_rate",), -rates)}
    beside = np.array([_beside(others, surface, None) for surface in SURFACES], object)
    fields |= {"sentence": Field(axes, _sentences(named, beside)), "exit": _exit(axes, named)}
    return fields | _moved(rule, others)


def _moved(rule: str, others: tuple[str, ...]) -> dict[str, Field]:
    """The fields for the starts that a reader can choose, with the rule's usual setting but for the learning rate."""
    ways = []
    for surface in SURFACES:
        way = walk_grid(usual(rule), surface, bias_correction=RULES[rule].corrected, starts=STARTS)
        ways.append(
            _named({name: each.squeeze(tuple(range(2, 2 + len(RULES[rule].usual)))) for name, each in way.items()})
        )
    named = {name: np.stack([way[name] for way in ways]) for name in ways[0]}
    axes = ("surface", "start", "learning_rate")
    fields = moved(axes, _within(named)) | start_fields()
    beside = np.empty((len(SURFACES), len(STARTS)), object)
    each = {
        other: [[_reference(other, surface, start) for start in STARTS] for surface in SURFACES] for other in others
    }
    for other, rows in each.items():
        stacked = {name: np.array([[one[name] for one in row] for row in rows]) for name in rows[0][0]}
        length = stacked[f"{other}-drawn"]
        fields |= moved(
            axes[:2], {name: each if each.ndim == 2 else held(each, length) for name, each in stacked.items()}
        )
    for i, surface in enumerate(SURFACES):
        for j, start in enumerate(STARTS):
            beside[i, j] = _beside(others, surface, start)
    return fields | {"moved sentence": Field(axes, _sentences(named, beside)), "moved exit": _exit(axes, named)}


def _exit(axes: tuple[str, ...], named: Mapping[str, np.ndarray]) -> Field:
    return Field(axes, exits.words(named["points"], STEPS))


def _within(named: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The fields of walks with each row held after the last step that is drawn."""
    found = dict(named)
    for name, values in named.items():
        if name.partition("-")[0] in MOMENTS:
            found[name] = held(values, named["steps"][..., None])
        elif name not in ("points", "drawn", "steps"):
            found[name] = held(values, named["steps" if name.startswith("step-") else "drawn"])
    return found


def _beside(others: tuple[str, ...], surface: str, start: tuple[float, float] | None) -> str:
    """The other rules' results, as a sentence."""
    return _capital("; ".join(_compared(other, surface, start) for other in others))


def _sentences(named: Mapping[str, np.ndarray], beside: np.ndarray) -> Any:
    """The sentences for each walk; `beside` has the first axes of the walks."""
    shape = named["points"].shape
    sentences = np.empty(shape, object)
    for place in itertools.product(*map(range, shape)):
        points, values = int(named["points"][place]), named["value"][place]
        needed = settled(values, points)
        if points <= STEPS:
            text = f"Leaves: step {points} ends outside the picture"
        elif needed is not None:
            text = f"Arrives: from step {needed} on, the height stays below 1 % of its starting value"
        else:
            part = number(100 * values[-1] / values[0])
            text = f"Unfinished: after {STEPS} steps the height is still {part} % of its starting value"
        sentences[place] = f"{text}. {beside[place[: beside.ndim]]}."
    return sentences.tolist()


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _compared(rule: str, surface: str, start: tuple[float, float] | None) -> str:
    walk = _reference(rule, surface, start)
    points = int(walk[f"{rule}-points"])
    needed = settled(walk[f"{rule}-value"], points)
    rate = number(best(rule, surface)["learning_rate"])
    if points <= STEPS:
        return f"{RULES[rule].title} (α = {rate}) leaves the picture"
    return f"{RULES[rule].title} (α = {rate}) needs {f'more than {STEPS}' if needed is None else needed} steps"


def _listed(names: list[str]) -> str:
    """Names in a sentence."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _plots(rule: str, others: tuple[str, ...]) -> tuple[Plot, ...]:
    axes = RULES[rule].axes
    title = RULES[rule].title
    names = [RULES[other].title for other in others]
    thinner = f"Thinner lines show {_listed(names)}, each" if names[1:] else f"A thinner line shows {names[0]}"
    ways = [
        path(
            other,
            RULES[other].title,
            other,
            x=f"{other}-path-x",
            y=f"{other}-path-y",
            length=f"{other}-drawn",
            symbol=SYMBOLS[other],
            thin=True,
        )
        for other in others
    ]
    plots = [
        path_plot(
            f"{rule}-path",
            "The path",
            f"Contours of the surface and the path of {title} over it. {thinner} at its best learning rate.",
            # Gradient descent lies over the others: its line is thin, and often along theirs.
            *ways[1:],
            path("path", title, rule, x="path-x", y="path-y", length="drawn", symbol=SYMBOLS[rule]),
            *ways[:1],
        ),
        curves(
            f"{rule}-value",
            "Height at each step",
            f"The height that {title} has reached at each step, on a logarithmic scale, beside {_listed(names)}.",
            "height f",
            *(
                curve(
                    other,
                    RULES[other].title,
                    f"{other}-value",
                    other,
                    x="t0",
                    length=f"{other}-drawn",
                    **look(other, own=False),
                )
                for other in others
            ),
            curve("value", title, "value", rule, x="t0", length="drawn"),
            log=True,
            steps=STEPS,
            note="exit",
        ),
    ]
    for moment, letter in MOMENTS.items():
        if {"mu": "b1", "nu": "b2"}[moment] in axes:
            what = "average gradient" if moment == "mu" else "average squared gradient"
            plots.append(
                curves(
                    f"{rule}-{moment}",
                    f"{letter} and {letter}̂: the {what}",
                    f"The {what} {letter} of {title} in one coordinate at each step, and {letter} hat, which is "
                    f"{letter} with bias correction.",
                    f"{letter}, {letter}̂",
                    curve(moment, letter, moment, "plain", symbol="circle", dash="dash"),
                    curve(
                        f"{moment}_hat", f"{letter}̂, corrected", f"{moment}-hat", rule, symbol=SYMBOLS[rule], width=2
                    ),
                    steps=STEPS,
                    note="exit",
                )
            )
    bounds = (
        [
            curve("rate-up", "±α", "rate-up", "plain", x="rate-t", length=None, width=2, dash="dot"),
            curve("rate-down", "", "rate-down", "plain", x="rate-t", length=None, width=2, dash="dot"),
        ]
        if "b2" in axes
        else []
    )
    plots.append(
        curves(
            f"{rule}-step",
            "The change of each coordinate in a step",
            f"The distance that {title} moves along x and along y in each step.",
            "change",
            curve("step-x", "along x", "step-x", "along", symbol="circle"),
            curve("step-y", "along y", "step-y", "across", symbol="square", dash="dash", width=2),
            *bounds,
            steps=STEPS,
            note="exit",
        )
    )
    return tuple(plots)


def _section(rule: str, others: tuple[str, ...], learning_rate: float, surface: str = "valley") -> Section:
    usual = {"learning_rate": learning_rate} | dict(RULES[rule].usual)
    controls = [
        Control("surface", "Surface", tuple(SURFACES), surface, [each.title for each in SURFACES.values()]),
        *(Control(axis, LABELS[axis], values, usual[axis]) for axis, values in RULES[rule].axes.items()),
        Control("bias_correction", "Bias correction", (False, True), RULES[rule].corrected),
        Control("coordinate", "Averages shown below", COORDINATES, "y", ["along x", "along y"]),
    ]
    return Section(
        rule,
        tuple(controls),
        _plots(rule, others),
        functools.partial(_fields, rule, others),
        functools.partial(_single, rule, others),
        "sentence",
        steps=STEPS,
        starts=STARTS,
        usual=dict(RULES[rule].usual) | {"bias_correction": RULES[rule].corrected},
    )


MOMENTUM = _section("momentum", ("descent",), 0.1)
RMSPROP = _section("rmsprop", ("descent", "momentum"), 0.1)
ADAM = _section("adam", ("descent", "momentum", "rmsprop"), 1.0, surface="turned")
