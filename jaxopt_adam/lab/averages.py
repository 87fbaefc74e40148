"""Exponentially weighted averages of a noisy signal, with and without bias correction."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxopt_adam import debias, ema


@dataclasses.dataclass(frozen=True)
class Averages:
    """A noisy signal and its averages.

    Args:
        signal: the values, shape (length,).
        truth: the signal without the noise.
        decays: the β of each average.
        biased: the averages without bias correction, shape (decays, length).
        debiased: the averages with bias correction.
    """

    signal: np.ndarray
    truth: np.ndarray
    decays: tuple[float, ...]
    biased: np.ndarray
    debiased: np.ndarray


def over_time(signal: Array, decay: ArrayLike) -> tuple[Array, Array]:
    """The averages of a signal up to each of its values, without bias correction and with."""

    def step(past: Array, value: Array) -> tuple[Array, Array]:
        new = ema(past, value, decay)
        return new, new

    averages = jax.lax.scan(step, jnp.zeros([], signal.dtype), signal)[1]
    return averages, debias(averages, decay, jnp.arange(1, len(signal) + 1))


def average(
    decays: Sequence[float] = (0.5, 0.9, 0.98), *, length: int = 200, noise: float = 3.0, seed: int = 0
) -> Averages:
    """Average a signal like a year's temperatures: a slow wave around 15 with noise on every value.

    Args:
        decays: the decays β of the averages, in [0, 1).
        length: the number of values.
        noise: the standard deviation of the noise, in the signal's units.
        seed: the seed of the noise.
    """
    truth = 15 - 8 * np.cos(2 * np.pi * np.arange(length) / max(length, 2))
    signal = truth + noise * np.random.default_rng(seed).standard_normal(length)

    biased, debiased = jax.vmap(over_time, in_axes=(None, 0))(jnp.asarray(signal, float), jnp.asarray(decays, float))
    return Averages(signal, truth, tuple(decays), np.asarray(biased), np.asarray(debiased))
