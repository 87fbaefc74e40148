"""Exponentially weighted averages of a noisy signal, with and without bias correction."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from jaxopt_adam import debias, ema
from jaxopt_adam.lab.figures import COLOURS, new_figure, style


@dataclasses.dataclass(frozen=True)
class Averages:
    """A noisy signal and its averages.

    Args:
        signal: the values, shape (length,).
        truth: the signal without the noise.
        decays: the β of each average.
        biased: the averages as they come, shape (decays, length).
        debiased: the same with bias correction.
    """

    signal: np.ndarray
    truth: np.ndarray
    decays: tuple[float, ...]
    biased: np.ndarray
    debiased: np.ndarray


def average(
    decays: Sequence[float] = (0.5, 0.9, 0.98), *, length: int = 200, noise: float = 3.0, seed: int = 0
) -> Averages:
    """Average a year's temperatures, as it were: a slow wave around 15 with noise on every value.

    Args:
        decays: the β to average with, in [0, 1).
        length: how many values.
        noise: the standard deviation of the noise, in the signal's units.
        seed: of the noise.
    """
    truth = 15 - 8 * np.cos(2 * np.pi * np.arange(length) / max(length, 2))
    signal = truth + noise * np.random.default_rng(seed).standard_normal(length)

    def over_time(decay: jax.Array) -> tuple[jax.Array, jax.Array]:
        def step(past: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
            new = ema(past, value, decay)
            return new, new

        averages = jax.lax.scan(step, jnp.zeros([]), jnp.asarray(signal, float))[1]
        return averages, debias(averages, decay, jnp.arange(1, length + 1))

    biased, debiased = jax.vmap(over_time)(jnp.asarray(decays, float))
    return Averages(signal, truth, tuple(decays), np.asarray(biased), np.asarray(debiased))


def figure(averages: Averages) -> Figure:
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
