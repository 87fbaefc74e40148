"""The figures, in one style: labelled axes, legible in print and on a phone, distinct for the colour-blind."""

import functools
import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from jaxopt_adam.lab import race, styles
from jaxopt_adam.lab.averages import Averages, over_time
from jaxopt_adam.lab.race import Outcome

# For lines that are no rules'. Okabe and Ito's palette, grey in place of its yellow, which is too light for a line on
# white.
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#7F7F7F", "#0072B2", "#D55E00", "#CC79A7")
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (3, 1, 1, 1)), "-", (0, (5, 1.5)), (0, (1, 1)), "-")


OBSERVED = {
    "gradient_norm": "norm of the gradient",
    "update_norm": "norm of the update",
    "update_to_weight": "update ÷ weight (norms)",
    "effective_learning_rate": "update ÷ learning rate (RMS)",
    "signal_to_noise": "signal to noise, mean |m̂|/√v̂",
    "under_eps": "share of elements with √v̂ < ε",
    "lost_to_rounding": "share of updates lost to rounding",
}
"""The figures of a step that are drawn, with their labels."""

SHARES = ("signal_to_noise", "under_eps", "lost_to_rounding")

INK, GRID, AVERAGE = (styles.COLOURS[name][0] for name in ("ink", "grid", "average"))

NARROW = 3.6
"""The width in inches of a figure for a phone: 346 of its pixels, of 96 an inch."""


def style(index: int) -> dict:
    """The colour and the dashes of a line that is no rule's. Lines of similar colours differ in their dashes."""
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": DASHES[index % len(DASHES)], "linewidth": 1.8}


def new_figure(
    columns: int = 1,
    *,
    width: float = 7.0,
    height: float = 4.2,
    sharey: bool = False,
    width_ratios: Sequence[float] | None = None,
    narrow: bool = False,
) -> tuple[Figure, list[Axes]]:
    """A figure with some axes side by side, or one above the other in a narrow one.

    It is made without pyplot, which has global state.
    """
    shape, size = ((columns, 1), (NARROW, 1.1 * height)) if narrow else ((1, columns), (width, height))
    figure = Figure(figsize=size, layout="constrained", dpi=160)
    ratios = None if narrow else width_ratios
    panels = figure.subplots(*shape, sharey=sharey, width_ratios=ratios, squeeze=False).ravel()
    for axes in panels:
        _clean(axes, narrow=narrow)
    return figure, list(panels)


def _clean(axes: Axes, *, narrow: bool) -> None:
    axes.grid(visible=True, color=GRID, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=_size(narrow=narrow))
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_fontsize(_size(narrow=narrow))


def _size(*, narrow: bool) -> float:
    """The size of text in points: 11 pixels or more where a browser shows the figure."""
    return 8.5 if narrow else 10


def title(axes: Axes, text: str, *, narrow: bool = False) -> None:
    """Write a title, over several lines in a narrow figure."""
    axes.set_title(textwrap.fill(text, 46) if narrow else text, fontsize=9.5 if narrow else 11.5)


def logarithmic(axes: Axes, which: Literal["x", "y"], *, narrow: bool = False) -> None:
    """Make an axis logarithmic, with plain numbers: one, two or three a decade, the fewer the more decades."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axes.set(**{f"{which}scale": "log"})
    low, high = np.log10(np.clip(axis.get_data_interval(), 1e-30, None))
    decades = (high - low) * (1.5 if narrow else 1)
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2 else (1, 3) if decades < 3.5 else (1,)))
    axis.set_minor_locator(NullLocator())
    if decades < 6:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, without the date and version that would make equal figures differ."""
    figure.savefig(path, metadata={"Software": None})


def svg(figure: Figure, name: str) -> str:
    """A figure as an element of a page, with text as text and with the page's variables in place of its colours.

    Args:
        figure: the figure, on a light background.
        name: a word to begin the element's ids with, unlike those of the page's other figures.
    """
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    element = buffer.getvalue()
    element = element[element.index("<svg") :]
    element = re.sub(r' (?:width|height)="[\d.]+pt"', "", element, count=2)  # the page's styles give it a size
    element = re.sub(r"<metadata>.*?</metadata>\s*", "", element, flags=re.DOTALL)
    element = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{name}-", element)
    known = {colour: each for each, (colour, _) in styles.COLOURS.items()} | {"#000000": "ink"}
    known |= {each.light: rule for rule, each in styles.RULES.items()}
    return re.sub(r"#[0-9a-f]{6}\b", lambda match: f"var(--{known[match[0]]})", element)


def cost_figure(outcomes: Sequence[Outcome], *, narrow: bool = False) -> Figure:
    """The cost against iterations, each rule at its best learning rate, smoothed as the article smooths."""
    figure, (axes,) = new_figure(narrow=narrow)
    for outcome in adam_first(outcomes):
        cost = _smooth(outcome.cost[outcome.best].mean(axis=0))
        axes.plot(np.arange(1, len(cost) + 1), cost, label=_label(outcome), **line(outcome))
    axes.set(xlabel="iterations", ylabel="cost of the batch, averaged (β = 0.9)")
    title(axes, "Cost against iterations, each rule at its best learning rate", narrow=narrow)
    logarithmic(axes, "y")
    _legend(figure, axes, narrow=narrow)
    return figure


def accuracy_figure(outcomes: Sequence[Outcome], *, narrow: bool = False) -> Figure:
    """The test accuracy against iterations, each rule at its best learning rate.

    The axis is logarithmic in the distance from 100 %, so that 97 % and 98 % are well apart. Each point is the mean
    over the seeds and over five measurements. Around Adam's line is the spread over the seeds.
    """
    figure, (axes,) = new_figure(height=4.8, narrow=narrow)
    tests = {rule(outcome): _centred(100 * outcome.test[outcome.best]) for outcome in outcomes}
    errors = np.concatenate([100 - test.mean(axis=0) for test in tests.values()])
    least = min(errors[errors > 0.05], default=1.0) / 1.15
    for outcome in adam_first(outcomes):
        test = tests[rule(outcome)].clip(max=100 - least)
        axes.plot(outcome.at, test.mean(axis=0), label=_label(outcome), **line(outcome))
        if rule(outcome) == "adam":
            colour = styles.RULES["adam"].light
            axes.fill_between(outcome.at, test.min(axis=0), test.max(axis=0), color=colour, alpha=0.14, lw=0)
    axes.set(xlabel="iterations", ylabel="test accuracy (%), mean of 5 measurements")
    title(axes, "Accuracy against iterations, each rule at its best learning rate", narrow=narrow)
    axes.set_yscale("function", functions=(_to_error, _from_error))
    axes.set_ylim(50, 100 - least)
    axes.yaxis.set_major_locator(FixedLocator([50, 70, 80, 90, 94, 96, 97, 98, 98.5, 99, 99.5, 99.9]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    _legend(figure, axes, narrow=narrow)
    return figure


def batches_figure(outcomes: Mapping[str, Outcome], *, narrow: bool = False) -> Figure:
    """The cost of gradient descent with three batch sizes: the smaller the batch, the noisier the path.

    All have one learning rate, the smallest of their best ones.
    """
    rate = min(outcome.best for outcome in outcomes.values())
    learning_rate = next(iter(outcomes.values())).learning_rates[rate]
    figure, panels = new_figure(len(outcomes), width=9.0, height=7.0 if narrow else 3.6, sharey=True, narrow=narrow)
    for index, (axes, (name, outcome)) in enumerate(zip(panels, outcomes.items(), strict=True)):
        cost = outcome.cost[rate, 0]
        steps = np.arange(1, len(cost) + 1)
        axes.plot(steps, cost, color=styles.RULES["sgd"].light, linewidth=0.7, alpha=0.6, label="cost of the batch")
        axes.plot(steps, _smooth(cost), color=AVERAGE, linewidth=2.2, label="average, β = 0.9, debiased")
        title(axes, name, narrow=narrow)
        if narrow or index == 0:
            axes.set_ylabel("cost")
        if not narrow or index == len(panels) - 1:
            axes.set_xlabel("iterations")
    logarithmic(panels[0], "y")
    # A single example that is classified with certainty costs next to nothing. The axis need not reach that far.
    lowest = min(_smooth(outcome.cost[rate, 0]).min() for outcome in outcomes.values())
    panels[0].set_ylim(bottom=max(lowest / 3, 1e-4))
    figure.suptitle(f"Gradient descent with a learning rate of {learning_rate:g}", fontsize=10 if narrow else 12)
    _legend(figure, panels[0], narrow=narrow)
    return figure


def rates_figure(outcomes: Sequence[Outcome], *, narrow: bool = False) -> Figure:
    """The final test accuracy against the learning rate: the sensitivity of each rule."""
    figure, (axes,) = new_figure(narrow=narrow)
    for outcome in adam_first(outcomes):
        axes.plot(
            outcome.learning_rates,
            100 * outcome.test[..., -1].mean(axis=1),
            marker=styles.MARKERS[styles.RULES[rule(outcome)].marker],
            markersize=6,
            label=outcome.entry.name,
            **line(outcome),
        )
    axes.set(xlabel="learning rate", ylabel="final test accuracy (%)", ylim=(0, 100))
    title(axes, "Accuracy after the last iteration against the learning rate", narrow=narrow)
    logarithmic(axes, "x", narrow=narrow)
    _legend(figure, axes, narrow=narrow)
    return figure


def observed_figure(outcomes: Sequence[Outcome], *, narrow: bool = False) -> Figure:
    """The figures of the steps, a panel each: each rule at its best learning rate, with the first seed."""
    labels = {
        name: label
        for name, label in OBSERVED.items()
        if any(np.isfinite(outcome.observed.get(name, np.nan)).any() for outcome in outcomes)
    }
    columns = 1 if narrow else 2
    rows = -(-len(labels) // columns)
    size = (NARROW, 2.3 * rows + 1.6) if narrow else (9.0, 2.6 * rows + 0.9)
    figure = Figure(figsize=size, layout="constrained", dpi=160)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    for axes, (name, label) in zip(panels, labels.items(), strict=False):
        _clean(axes, narrow=narrow)
        for outcome in adam_first(outcomes):
            if name in outcome.observed:
                axes.plot(
                    outcome.at[1:], outcome.observed[name][outcome.best, 0], label=_label(outcome), **line(outcome)
                )
        axes.set(ylabel=label)
        if name not in SHARES and any(np.nanmax(each.get_ydata(), initial=0) > 0 for each in axes.lines):
            logarithmic(axes, "y")
    for axes in panels[len(labels) :]:
        axes.remove()
    for axes in panels[max(0, len(labels) - columns) : len(labels)]:
        axes.set_xlabel("iterations")
        axes.tick_params(labelbottom=True)
    heading = "What the steps did, each rule at its best learning rate"
    figure.suptitle(textwrap.fill(heading, 46) if narrow else heading, fontsize=10 if narrow else 12)
    _legend(figure, panels[0], narrow=narrow)
    return figure


def averages_figure(averages: Averages) -> Figure:
    """The averages without bias correction and with, side by side over the signal."""
    drawn, panels = new_figure(2, width=10.0, height=4.4, sharey=True)
    steps = np.arange(1, len(averages.signal) + 1)
    for axes, curves, title in (
        (panels[0], averages.biased, "without bias correction: starts at zero"),
        (panels[1], averages.debiased, "with bias correction: divided by 1 − βᵗ"),
    ):
        axes.plot(steps, averages.signal, ".", color="#999999", markersize=3, label="signal")
        axes.plot(steps, averages.truth, color=COLOURS[0], linewidth=1, label="without noise")
        for index, (decay, curve) in enumerate(zip(averages.decays, curves, strict=True)):
            memory = f"{1 / (1 - decay):.3g}"
            axes.plot(steps, curve, label=f"β = {decay:g} (about the last {memory})", **style(index + 5))
        axes.set(xlabel="t", title=title)
    panels[0].set_ylabel("value")
    drawn.legend(*panels[1].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return drawn


def rule(outcome: Outcome) -> str:
    """The command's name of an entrant's rule; that of gradient descent for an entrant without one."""
    return _names().get(outcome.entry.name, "sgd")


def line(outcome: Outcome) -> dict:
    """The look of an entrant's line."""
    return styles.line(rule(outcome))


def adam_first(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The entrants in the order of a legend."""
    return sorted(outcomes, key=lambda outcome: rule(outcome) != "adam")


@functools.cache
def _names() -> dict[str, str]:
    return {title: name for name, (title, *_) in race.RULES.items()}


def _to_error(accuracy: np.ndarray) -> np.ndarray:
    """The place of an accuracy in % on an axis that is logarithmic in the distance from 100 %."""
    return -np.log10(np.maximum(100 - np.asarray(accuracy), 1e-6))


def _from_error(place: np.ndarray) -> np.ndarray:
    return 100 - 10 ** -np.asarray(place)


def _centred(values: np.ndarray, most: int = 2) -> np.ndarray:
    """The mean of each value and its neighbours along the last axis: two on each side, fewer near the ends."""
    last = values.shape[-1] - 1
    near = [min(most, at, last - at) for at in range(last + 1)]
    return np.stack([values[..., at - n : at + n + 1].mean(axis=-1) for at, n in enumerate(near)], axis=-1)


def _label(outcome: Outcome) -> str:
    return f"{outcome.entry.name} ({outcome.learning_rates[outcome.best]:g})"


def _legend(figure: Figure, axes: Axes, *, narrow: bool = False) -> None:
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=1 if narrow else 3,
        fontsize=_size(narrow=narrow) if narrow else 9,
        frameon=False,
        handlelength=3.5,
        labelspacing=0.3,
    )


def _smooth(values: np.ndarray, decay: float = 0.9) -> np.ndarray:
    return np.asarray(over_time(jnp.asarray(values, jnp.float32), decay)[1])
