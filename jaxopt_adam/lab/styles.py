"""The colours and lines of the rules, the same in every figure, in the report and on the page.

Relatives have similar hues: gradient descent is grey, with momentum it is blue. Adam's line is the widest and its
colour the most saturated, because these figures are about Adam. Readers with any of the three kinds of colour blindness
can tell the lines apart, and each has a contrast of 3 to 1 or more with the background. Tests compute both.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal

Scheme = Literal["light", "dark"]


@dataclasses.dataclass(frozen=True)
class Style:
    """The look of one rule.

    Args:
        light: its colour on a light background, as ``#rrggbb``.
        dark: its colour on a dark background.
        dash: the dashes of its line: a key of :data:`DASHES`.
        width: the width of its line: in points in figures, in pixels on the page.
        marker: the shape of its markers: a key of :data:`MARKERS`.
    """

    light: str
    dark: str
    dash: str = "solid"
    width: float = 1.8
    marker: str = "circle"

    def colour(self, scheme: Scheme) -> str:
        """Its colour on a background of that scheme."""
        return self.light if scheme == "light" else self.dark


DASHES: Mapping[str, tuple[float, ...]] = {
    "solid": (),
    "dot": (1, 1.2),
    "dash": (4, 1.5),
    "shortdash": (2, 1),
    "longdash": (8, 2),
    "dashdot": (4, 1.2, 1, 1.2),
    "dashdotdot": (4, 1, 1, 1, 1, 1),
}
"""The lengths of dashes and gaps in turn, in units of the line's width. The names are Plotly's where it has one."""

MARKERS = {
    "circle": "o",
    "square": "s",
    "diamond": "D",
    "triangle-up": "^",
    "triangle-down": "v",
    "cross": "P",
    "x": "X",
    "pentagon": "p",
}
"""The shapes of markers by Plotly's names, with Matplotlib's."""

RULES: Mapping[str, Style] = {
    "adam": Style("#cc1100", "#ff5a3c", width=3.0, marker="triangle-up"),
    "batch": Style("#8c8c94", "#9a9089", "dot", marker="pentagon"),
    "sgd": Style("#3a3d40", "#e3e8ee", marker="circle"),
    "momentum": Style("#0a4c9e", "#6c93ee", "dash", marker="square"),
    "nesterov": Style("#5f86b5", "#a8ccfa", "shortdash", marker="cross"),
    "adagrad": Style("#a98a00", "#f2d64b", "dashdotdot", marker="x"),
    "adadelta": Style("#7a3a78", "#d873b8", "longdash", marker="triangle-down"),
    "rmsprop": Style("#008a60", "#4fe39a", "dashdot", marker="diamond"),
}
"""The rules by the names that the command takes."""

COLOURS: Mapping[str, tuple[str, str]] = {
    "background": ("#fbfaf7", "#14181c"),
    "card": ("#ffffff", "#1b2026"),
    "ink": ("#1c2024", "#eceff1"),
    "muted": ("#50575e", "#b3bcc4"),
    "grid": ("#dddddd", "#333a42"),
    "average": ("#7a4ab0", "#c3a1f7"),
}
"""Other colours by their names: on a light background and on a dark one."""


def adam_first(names: Iterable[str]) -> list[str]:
    """The rules in the order of a legend."""
    return sorted(names, key=lambda name: name != "adam")


def line(rule: str, scheme: Scheme = "light") -> dict[str, Any]:
    """The look of a rule's line, for Matplotlib. Adam's is above the others."""
    style = RULES[rule]
    return {
        "color": style.colour(scheme),
        "linestyle": (0, DASHES[style.dash]) if DASHES[style.dash] else "-",
        "linewidth": style.width,
        "zorder": 2.5 if rule == "adam" else 2,
    }


def variables(scheme: Scheme) -> str:
    """All colours as declarations of CSS variables, as in ``--adam: #cc1100;``."""
    colours = {name: pair[scheme == "dark"] for name, pair in COLOURS.items()}
    return " ".join([*(f"--{name}: {colour};" for name, colour in colours.items()), rule_variables(scheme)])


def rule_variables(scheme: Scheme) -> str:
    """The rules' colours as declarations of CSS variables."""
    return " ".join(f"--{name}: {style.colour(scheme)};" for name, style in RULES.items())


def page_styles() -> str:
    """The rules' colours for the page of the article, which has a switch for its scheme.

    There plain gradient descent is called ``descent``.
    """
    renamed = {scheme: rule_variables(scheme).replace("--sgd:", "--descent:") for scheme in ("light", "dark")}
    return f':root {{ {renamed["light"]} }}\n:root[data-theme="dark"] {{ {renamed["dark"]} }}\n'


def on_page(name: str) -> Style | None:
    """The style of a rule by the page's name of it; None if there is no such rule."""
    return RULES.get({"descent": "sgd"}.get(name, name))
