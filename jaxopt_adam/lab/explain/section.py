"""The parts of a section of the page: controls, plots, and the computed fields that the plots draw."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np


@dataclasses.dataclass(frozen=True)
class Control:
    """A slider, switch or choice: an axis of the grids.

    Args:
        axis: its name, also that of the argument of ``expected``.
        label: its title on the page, plain text.
        values: the axis: numbers for a slider, False and True for a switch, names for a choice.
        default: the first value that is shown.
        titles: the titles of the values of a choice.
        units: the units after a slider's number.
        turns_off: the axis of a switch that is turned off when a reader moves this control; empty for none.
    """

    axis: str
    label: str
    values: Sequence[Any]
    default: Any
    titles: Sequence[str] = ()
    units: str = ""
    turns_off: str = ""

    @property
    def kind(self) -> Literal["range", "checkbox", "radio"]:
        """The type of input."""
        if tuple(self.values) == (False, True):
            return "checkbox"
        return "radio" if isinstance(self.values[0], str) else "range"

    @property
    def index(self) -> int:
        """The place of the default among the values."""
        return list(self.values).index(self.default)


@dataclasses.dataclass(frozen=True)
class Field:
    """Computed values for every setting of some controls.

    Args:
        axes: the controls that it depends on, by name; the leading axes of `values`.
        values: an array of numbers, or a nested list of sentences.
        bits: the precision of each row, as a part of its range; None for the usual one.
        log: whether the numbers are decimal logarithms of those that are drawn.
    """

    axes: tuple[str, ...]
    values: Any
    bits: int | None = None
    log: bool = False


@dataclasses.dataclass(frozen=True)
class Trace:
    """One thing in a plot.

    Args:
        key: its identifier in the plot.
        name: its title in the legend; empty for no entry.
        x: the field with its x.
        y: the field with its y.
        z: the field with its z, if there is one.
        corners: the three fields with the corners of triangles, as indices of the points, if it is made of triangles.
        length: the field with the number of points that are drawn; None for all.
        style: further attributes for Plotly; a colour is the name of one in page.css.
    """

    key: str
    name: str
    x: str
    y: str
    z: str | None = None
    corners: tuple[str, ...] = ()
    length: str | None = None
    style: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Plot:
    """A figure.

    Args:
        id: the id of its element.
        title: its heading.
        label: a description for readers who do not see it.
        traces: what is drawn, the lowest first.
        layout: further attributes for Plotly; ``{"field": name}`` stands for the sentence of that field.
        shape: "wide", "tall" or "small", for its place and height.
        walked: whether its paths are walks, drawn by walks.js, with a point that goes along them.
    """

    id: str
    title: str
    label: str
    traces: tuple[Trace, ...]
    layout: Mapping[str, Any]
    shape: str = "small"
    walked: bool = False


@dataclasses.dataclass(frozen=True)
class Section:
    """The interactive part of a section.

    Args:
        name: the section's id on the page.
        controls: its controls, in order.
        plots: its figures, in order.
        fields: a function that computes every field, over the whole grid, in one vmapped program for each structure.
        single: a function that computes the fields that traces draw for one setting, given by name, without the grid.
        sentence: the field with the sentence that describes the plots; None for none.
        steps: the steps of the walks; None where nothing walks.
        starts: the points to which a reader can move the start. A field named ``moved …`` with the axis ``start`` is
            drawn in place of the field ``…`` while it is moved.
        usual: the values of some controls with which the moved walks were computed.
    """

    name: str
    controls: tuple[Control, ...]
    plots: tuple[Plot, ...]
    fields: Callable[[], dict[str, Field]]
    single: Callable[..., dict[str, np.ndarray]]
    sentence: str | None = None
    steps: int | None = None
    starts: Sequence[tuple[float, float]] = ()
    usual: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def plots_of(self, axis: str, fields: Mapping[str, Field]) -> list[str]:
        """The ids of the plots that a control moves."""

        def used(plot: Plot) -> set[str]:
            names = {
                name for each in plot.traces for name in (each.x, each.y, each.z, *each.corners, each.length) if name
            }
            return names | _named(plot.layout)

        return [plot.id for plot in self.plots if any(axis in fields[name].axes for name in used(plot))]

    def setting(self, **given: Any) -> dict[str, Any]:
        """The value of every control: what is given, and the defaults.

        Raises:
            TypeError: if there is no such control.
            ValueError: if a control has no such value.
        """
        controls = {control.axis: control for control in self.controls}
        for axis, value in given.items():
            if axis not in controls:
                raise TypeError(f"{self.name} has no control {axis}; it has {', '.join(controls)}")
            if value not in controls[axis].values:
                raise ValueError(f"{self.name}: {axis} must be one of {list(controls[axis].values)}, got {value!r}")
        return {axis: control.default for axis, control in controls.items()} | given


def _named(layout: Any) -> set[str]:
    if isinstance(layout, Mapping):
        if set(layout) == {"field"}:
            return {layout["field"]}
        return set().union(*map(_named, layout.values())) if layout else set()
    return set()
