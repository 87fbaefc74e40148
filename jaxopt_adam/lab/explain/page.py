"""The whole page: the text with its controls and figures, their data, the styles and the script."""

import html
import importlib.resources
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxopt_adam.lab import interrupt, styles
from jaxopt_adam.lab.explain import batches, descent, digits, encoding, hero, needed, paths
from jaxopt_adam.lab.explain.averages import AVERAGES
from jaxopt_adam.lab.explain.drawing import number
from jaxopt_adam.lab.explain.legend import legend
from jaxopt_adam.lab.explain.section import Control, Field, Section
from jaxopt_adam.lab.explain.usage import CODE

SECTIONS: Mapping[str, Section] = {
    each.name: each
    for each in (
        descent.DESCENT,
        batches.BATCHES,
        AVERAGES,
        paths.MOMENTUM,
        paths.RMSPROP,
        paths.ADAM,
        digits.RACE,
    )
}
"""The sections by their ids, in the order of the page."""


def build(progress: Callable[[str], None] = lambda _: None) -> str:
    """The page, with everything in it computed anew.

    Args:
        progress: called with the id of each section before it is computed.
    """
    # In float64 a path is the same whether it was computed alone or in a grid. In float32 some would diverge.
    with jax.enable_x64(True):
        fields = {}
        for name, section in SECTIONS.items():
            interrupt.check()
            progress(name)
            fields[name] = section.fields()
        hero_fields = hero.HERO.fields()
        parts = _facts() | {"hero picture": hero.picture(), "table needed": needed.table()}
    interrupt.check()
    for name, section in SECTIONS.items():
        parts[f"controls {name}"] = "\n".join(
            _control(section, control, section.plots_of(control.axis, fields[name])) for control in section.controls
        )
        parts |= {
            f"plots {name} {part}": figures for part, figures in zip(("first", "rest"), _figures(section), strict=True)
        }
        parts[f"player {name}"] = _player(section)
    everything = [(hero.HERO, hero_fields), *((section, fields[name]) for name, section in SECTIONS.items())]
    parts["data"] = "\n".join(
        f'<script type="text/plain" id="data-{section.name}">{encoding.text(_content(section, each))}</script>'
        for section, each in everything
    )
    parts["plotly"] = encoding.text(_plotly().encode())
    parts["style"] = styles.page_styles() + _file("page.css")
    parts["script"] = _file("walks.js") + _file("page.js")
    return _unbroken(re.sub(r"\{\{([^{}]+)\}\}", lambda match: _part(match[1], parts), _file("page.html")))


def expected(
    section: str, *, start: tuple[float, float] | None = None, **setting: Any
) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """The values that the plots of a section should show at a setting, computed for that setting alone.

    The result lacks what no single setting has: the measured seconds of the batches, and the race's results over all
    learning rates.

    Args:
        section: the id of the section.
        start: one of the section's starts; None for the surface's own.
        **setting: values by the names of the controls' axes; a control that is not named has its default.

    Returns:
        ``{plot id: {key: {"x": …, "y": …, and perhaps "z": …}}}``.

    Raises:
        TypeError: if there is no such control.
        ValueError: if there is no such section, the section has no such start, or a control has no such value.

    Example:
        >>> from jaxopt_adam.lab.explain import expected
        >>> expected("gradient-descent", learning_rate=0.01)["descent-path"]["path"]["x"][:3].round(3)
        array([-4.2  , -4.158, -4.116])
    """
    if section not in SECTIONS:
        raise ValueError(f"section must be one of {', '.join(SECTIONS)}, got {section!r}")
    chosen = SECTIONS[section]
    if start is not None and start not in chosen.starts:
        raise ValueError(f"{section}: start must be one of {list(chosen.starts)}, got {start!r}")
    given = {} if start is None else {"start": start}
    with jax.enable_x64(True):
        fields = chosen.single(**chosen.setting(**setting), **given)
    found: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    for plot in chosen.plots:
        found[plot.id] = {}
        for trace in plot.traces:
            names = {axis: name for axis, name in (("x", trace.x), ("y", trace.y), ("z", trace.z)) if name}
            if all(name in fields for name in names.values()):
                length = None if trace.length is None else int(fields[trace.length])
                found[plot.id][trace.key] = {axis: fields[name][:length] for axis, name in names.items()}
    return found


def _part(name: str, parts: Mapping[str, str]) -> str:
    """The text for ``{{name}}``; ``{{try section axis=value …: label}}`` is a button that moves the controls."""
    if not name.startswith("try "):
        return parts[name]
    order, label = name.removeprefix("try ").split(":", 1)
    section, *settings = order.split()
    chosen = SECTIONS[section]
    controls = {control.axis: control for control in chosen.controls}
    given = {axis: json.loads(value) for axis, value in (each.split("=") for each in settings)}
    # It sets all controls, because its sentence depends on them: those that it does not name are as on a new page.
    places = {axis: list(controls[axis].values).index(value) for axis, value in chosen.setting(**given).items()}
    data = html.escape(json.dumps(places))
    return f'<button type="button" class="try" data-set="{data}">{html.escape(label.strip())}</button>'


def _unbroken(text: str) -> str:
    """The text with no-break spaces in equations such as "α = 0.1", and before per cent."""
    text = re.sub(r"(?<=[αβε₁₂>]) = (?=[\d−])|(?<=\bt) = (?=\d)", "\u00a0=\u00a0", text)
    return re.sub(r"(?<=\d) %", "\u00a0%", text)


def _control(section: Section, control: Control, plots: list[str]) -> str:
    """The element of a control, with its label."""
    name = f"{section.name}-{control.axis}"
    common = f'data-axis="{control.axis}" data-plots="{" ".join(plots)}"'
    if control.turns_off:
        common += f' data-off="{control.turns_off}"'
    label = html.escape(control.label)
    if control.kind == "checkbox":
        checked = " checked" if control.default else ""
        return (
            f'<div class="control switch"><input type="checkbox" id="{name}" {common}{checked}>'
            f'<label for="{name}">{label}</label></div>'
        )
    if control.kind == "radio":
        buttons = "".join(
            f'<span><input type="radio" name="{name}" id="{name}-{value}" value="{value}" {common}'
            f"{' checked' if value == control.default else ''}>"
            f'<label for="{name}-{value}">{html.escape(title)}</label></span>'
            for value, title in zip(control.values, control.titles, strict=True)
        )
        return f'<fieldset class="control choice"><legend>{label}</legend>{buttons}</fieldset>'
    shown = number(control.default)
    values = html.escape(json.dumps(list(control.values)))
    texts = html.escape(json.dumps([number(value) for value in control.values], ensure_ascii=False))
    return (
        f'<div class="control slider"><label for="{name}">{label}</label><output for="{name}">{shown}</output>'
        f'<input type="range" id="{name}" min="0" max="{len(control.values) - 1}" step="1" value="{control.index}" '
        f'aria-valuetext="{shown}" data-values="{values}" data-texts="{texts}" {common}></div>'
    )


def _figures(section: Section) -> tuple[str, str]:
    """The first figure, which is beside the controls, and the others."""
    first, *rest = (
        f'<figure class="{plot.shape}"><figcaption>{html.escape(plot.title)}</figcaption>{legend(plot)}'
        f'<div class="plot" id="{plot.id}" role="img" aria-label="{html.escape(plot.label)}"></div></figure>'
        for plot in section.plots
    )
    return first, "\n".join(rest)


def _player(section: Section) -> str:
    """The element that walks.js fills with play, pause and the step, and a note on the starts."""
    player = f'<div class="player" data-of="{section.name}" data-steps="{section.steps}"></div>'
    if not section.starts:
        return f'<div class="walking">{player}</div>'
    note = (
        f"Drag the circle to one of {len(section.starts)} other starting points, or move it with the arrow keys. The "
        "Home key puts it back."
    )
    if section.usual:
        letters = {"b1": "β₁", "b2": "β₂", "eps": "ε"}
        *most, last = (
            f"{letter} to {number(section.usual[axis])}" for axis, letter in letters.items() if axis in section.usual
        )
        usual = f"{', '.join(most)} and {last}," if most else last
        kind = "on" if section.usual["bias_correction"] else "off"
        note += (
            f" Moving the circle resets {usual} and turns bias correction {kind}. If you then change one of these "
            "settings, the circle returns to its original place."
        )
    return f'<div class="walking">{player}<p class="note">{note}</p></div>'


def _content(section: Section, fields: Mapping[str, Field]) -> bytes:
    """A section's description, as JSON after its length, and its numbers."""
    table, numbers = encoding.packed(fields)
    controls = {control.axis: control for control in section.controls}
    description = {
        "axes": {control.axis: len(control.values) for control in section.controls} | {"start": len(section.starts)},
        "sentence": section.sentence,
        "steps": section.steps,
        "starts": section.starts,
        "usual": {axis: list(controls[axis].values).index(value) for axis, value in section.usual.items()},
        "plots": [
            {
                "id": plot.id,
                "label": plot.label,
                "layout": plot.layout,
                "walked": plot.walked,
                "traces": [
                    {
                        "key": trace.key,
                        "name": trace.name,
                        "x": trace.x,
                        "y": trace.y,
                        "z": trace.z,
                        "corners": trace.corners,
                        "length": trace.length,
                        "style": dict(trace.style),
                    }
                    for trace in plot.traces
                ],
            }
            for plot in section.plots
        ],
        "fields": table,
    }
    head = _unbroken(json.dumps(description, ensure_ascii=False, allow_nan=False, separators=(",", ":"))).encode()
    return len(head).to_bytes(4, "little") + head + numbers


def _facts() -> dict[str, str]:
    """Numbers and sentences for the text."""
    found = descent.facts() | batches.facts() | digits.facts() | needed.facts() | hero.facts()
    found |= {f"code {name}": code for name, code in CODE.items()}
    return {name: html.escape(value) for name, value in found.items()}


def _plotly() -> str:
    from plotly.offline import get_plotlyjs  # slow to import

    return get_plotlyjs()


def _file(name: str) -> str:
    return importlib.resources.files("jaxopt_adam.lab.explain").joinpath(name).read_text(encoding="utf-8")
