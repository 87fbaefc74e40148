"""The figures, in one style: labelled axes, legible in print and on a phone, distinct for the colour-blind."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxopt_adam.lab.averages import Averages, over_time
from jaxopt_adam.lab.race import Outcome

# Okabe and Ito's palette, grey in place of its yellow, which is too light for a line on white.
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


def style(index: int) -> dict:
    """The colour and the dashes of the line of that index. Lines of similar colours differ in their dashes."""
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": DASHES[index % len(DASHES)], "linewidth": 1.8}


def new_figure(
    columns: int = 1,
    *,
    width: float = 7.0,
    height: float = 4.2,
    sharey: bool = False,
    width_ratios: Sequence[float] | None = None,
) -> tuple[Figure, list[Axes]]:
    """A figure with some axes side by side. It is made without pyplot, which has global state."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=160)
    (row,) = figure.subplots(1, columns, sharey=sharey, width_ratios=width_ratios, squeeze=False)
    for axes in row:
        axes.grid(visible=True, color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, list(row)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, without the date and version that would make equal figures differ."""
    figure.savefig(path, metadata={"Software": None})


def cost_figure(outcomes: Sequence[Outcome]) -> Figure:
    """The cost against iterations, each rule at its best learning rate, smoothed as the article smooths."""
    figure, (axes,) = new_figure()
    for index, outcome in enumerate(outcomes):
        cost = _smooth(outcome.cost[outcome.best].mean(axis=0))
        axes.plot(np.arange(1, len(cost) + 1), cost, label=_label(outcome), **style(index))
    axes.set(
        xlabel="iterations",
        ylabel="cost of the batch, averaged (β = 0.9)",
        yscale="log",
        title="Cost against iterations, each rule at its best learning rate",
    )
    _legend(figure, axes)
    return figure


def accuracy_figure(outcomes: Sequence[Outcome]) -> Figure:
    """The test accuracy against iterations, each rule at its best learning rate, with the spread over the seeds."""
    figure, (axes,) = new_figure()
    for index, outcome in enumerate(outcomes):
        test = 100 * outcome.test[outcome.best]
        axes.plot(outcome.at, test.mean(axis=0), label=_label(outcome), **style(index))
        axes.fill_between(outcome.at, test.min(axis=0), test.max(axis=0), color=style(index)["color"], alpha=0.12, lw=0)
    for accuracy in (90, 94):
        axes.axhline(accuracy, color="#555555", linewidth=0.8, linestyle=":")
        axes.annotate(
            f"{accuracy} %", (1, accuracy), xycoords=("axes fraction", "data"), fontsize=8, va="bottom", ha="right"
        )
    axes.set(
        xlabel="iterations",
        ylabel="test accuracy (%)",
        ylim=(50, 100),
        title="Accuracy against iterations, each rule at its best learning rate",
    )
    _legend(figure, axes)
    return figure


def batches_figure(outcomes: Mapping[str, Outcome]) -> Figure:
    """The cost of gradient descent with three batch sizes: the smaller the batch, the noisier the path.

    All have one learning rate, the smallest of their best ones.
    """
    rate = min(outcome.best for outcome in outcomes.values())
    learning_rate = next(iter(outcomes.values())).learning_rates[rate]
    figure, panels = new_figure(len(outcomes), width=9.0, height=3.4, sharey=True)
    for index, (axes, (title, outcome)) in enumerate(zip(panels, outcomes.items(), strict=True)):
        cost = outcome.cost[rate, 0]
        steps = np.arange(1, len(cost) + 1)
        axes.plot(steps, cost, color=COLOURS[5], linewidth=0.7, alpha=0.55, label="cost of the batch")
        axes.plot(steps, _smooth(cost), color=COLOURS[6], linewidth=1.8, label="average, β = 0.9, debiased")
        axes.set(xlabel="iterations", title=title, yscale="log")
        if index == 0:
            axes.set_ylabel("cost")
    # A single example that is classified with certainty costs next to nothing. The axis need not reach that far.
    lowest = min(_smooth(outcome.cost[rate, 0]).min() for outcome in outcomes.values())
    panels[0].set_ylim(bottom=max(lowest / 3, 1e-4))
    panels[-1].legend(fontsize=8, frameon=False, loc="lower left")
    figure.suptitle(f"Gradient descent with a learning rate of {learning_rate:g}")
    return figure


def rates_figure(outcomes: Sequence[Outcome]) -> Figure:
    """The final test accuracy against the learning rate: the sensitivity of each rule."""
    figure, (axes,) = new_figure()
    for index, outcome in enumerate(outcomes):
        axes.plot(
            outcome.learning_rates,
            100 * outcome.test[..., -1].mean(axis=1),
            marker="o",
            markersize=4,
            label=outcome.entry.name,
            **style(index),
        )
    axes.set(
        xlabel="learning rate",
        xscale="log",
        ylabel="final test accuracy (%)",
        ylim=(0, 100),
        title="Accuracy after the last iteration against the learning rate",
    )
    _legend(figure, axes)
    return figure


def observed_figure(outcomes: Sequence[Outcome]) -> Figure:
    """The figures of the steps, a panel each: each rule at its best learning rate, with the first seed."""
    panels = {
        name: label
        for name, label in OBSERVED.items()
        if any(np.isfinite(outcome.observed.get(name, np.nan)).any() for outcome in outcomes)
    }
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(9.0, 2.6 * rows + 0.9), layout="constrained", dpi=160)
    grid = figure.subplots(rows, 2, squeeze=False, sharex=True).ravel()
    for axes, (name, label) in zip(grid, panels.items(), strict=False):
        axes.grid(visible=True, color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        for index, outcome in enumerate(outcomes):
            if name in outcome.observed:
                axes.plot(
                    outcome.at[1:], outcome.observed[name][outcome.best, 0], label=_label(outcome), **style(index)
                )
        axes.set(ylabel=label)
        if name not in SHARES and any(np.nanmax(line.get_ydata(), initial=0) > 0 for line in axes.lines):
            axes.set_yscale("log")
    for axes in grid[len(panels) :]:
        axes.remove()
    for axes in grid[max(0, len(panels) - 2) : len(panels)]:
        axes.set_xlabel("iterations")
        axes.tick_params(labelbottom=True)
    figure.suptitle("What the steps did, each rule at its best learning rate")
    _legend(figure, grid[0])
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


def _label(outcome: Outcome) -> str:
    return f"{outcome.entry.name} ({outcome.learning_rates[outcome.best]:g})"


def _legend(figure: Figure, axes: Axes) -> None:
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8, frameon=False)


def _smooth(values: np.ndarray, decay: float = 0.9) -> np.ndarray:
    return np.asarray(over_time(jnp.asarray(values, jnp.float32), decay)[1])
