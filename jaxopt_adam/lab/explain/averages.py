"""Section 3: exponentially weighted averages of a noisy signal, and the weight of each value in them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxopt_adam.lab import averages as averages_lab
from jaxopt_adam.lab.explain.drawing import number
from jaxopt_adam.lab.explain.section import Control, Field, Plot, Section, Trace

LENGTH = 200
DECAYS = (0.0, 0.2, 0.5, 0.7, 0.8, 0.85, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.985, 0.99)
MOMENTS = (1, 2, 3, 5, 10, 20, 50, 100, 200)
LAGS = 120


_over_time = jax.jit(averages_lab.over_time)


def _weights(decays: Any) -> np.ndarray:
    """The weight of each value in the average at each time: the derivative of the average with respect to the value.

    Shape (decays, 2 for biased and debiased, times, lags), the newest value first.
    """
    jacobians = np.asarray(_jacobians(jnp.zeros(LENGTH), jnp.asarray(decays, float)))
    weights = np.zeros((len(decays), 2, len(MOMENTS), LAGS))
    for index, moment in enumerate(MOMENTS):
        newest_first = jacobians[:, :, moment - 1, moment - 1 :: -1] if moment < LENGTH else jacobians[:, :, -1, ::-1]
        lags = min(moment, LAGS)
        weights[:, :, index, :lags] = newest_first[..., :lags]
    return weights


@jax.jit
def _jacobians(signal: Array, decays: Array) -> Array:
    """The derivatives of all averages with respect to all values, shape (decays, 2, averages, values)."""
    by_time = jax.jacrev(lambda signal, decay: jnp.stack(_over_time(signal, decay)))
    return jax.vmap(by_time, in_axes=(None, 0))(signal, decays)


def _static() -> dict[str, np.ndarray]:
    signal = averages_lab.average([0.0], length=LENGTH)
    return {"t": np.arange(1, LENGTH + 1), "signal": signal.signal, "truth": signal.truth, "lag": np.arange(LAGS)}


def _memory(decay: float) -> np.ndarray:
    return np.full(2, 1 / (1 - decay))


@functools.cache
def _grid() -> tuple[np.ndarray, np.ndarray]:
    found = averages_lab.average(DECAYS, length=LENGTH)
    return np.stack([found.biased, found.debiased], axis=1), _weights(DECAYS)


def _top(decay: float, moment: int) -> float:
    """The newest value's weight with bias correction: the largest that the figure shows with it and without."""
    return (1 - decay) / (1 - decay**moment)


def _oldest(decay: float, moment: int) -> float:
    """The right end of the figure of the weights, which has room for the line that marks the memory."""
    return 1.03 * max(min(moment, LAGS), 1 / (1 - decay))


def single(beta: float, bias_correction: bool, moment: int) -> dict[str, np.ndarray]:
    """The fields for one setting."""
    signal = _static()
    average = _over_time(jnp.asarray(signal["signal"], float), jnp.asarray(beta, float))[int(bias_correction)]
    weights = _weights([beta])[0, int(bias_correction), MOMENTS.index(moment)]
    return signal | {
        "average": np.asarray(average),
        "weights": weights,
        "lags": np.array(min(moment, LAGS)),
        "memory-x": _memory(beta),
        "memory-y": np.array([0, _top(beta, moment)]),
        "now-x": np.array([moment]),
        "now-y": np.asarray(average)[moment - 1 : moment],
    }


def fields() -> dict[str, Field]:
    """The fields for all settings."""
    averages, weights = _grid()
    everything = ("beta", "bias_correction", "moment")
    now = averages[:, :, np.array(MOMENTS) - 1][..., None]
    sentences = [
        [
            [
                _sentence(decay, corrected, moment, weights[row, corrected, column])
                for column, moment in enumerate(MOMENTS)
            ]
            for corrected in (0, 1)
        ]
        for row, decay in enumerate(DECAYS)
    ]
    return {name: Field((), values) for name, values in _static().items()} | {
        "average": Field(("beta", "bias_correction"), averages),
        "weights": Field(everything, weights),
        "lags": Field(("moment",), np.minimum(MOMENTS, LAGS)),
        "memory-x": Field(("beta",), np.stack([_memory(decay) for decay in DECAYS])),
        "memory-y": Field(
            ("beta", "moment"), np.array([[[0, _top(decay, moment)] for moment in MOMENTS] for decay in DECAYS])
        ),
        # The ranges are the same with bias correction and without, so that the bars can be compared.
        "weights-range": Field(
            ("beta", "moment"), [[[0, 1.05 * _top(decay, moment)] for moment in MOMENTS] for decay in DECAYS]
        ),
        "ages-range": Field(
            ("beta", "moment"), [[[-0.6, _oldest(decay, moment)] for moment in MOMENTS] for decay in DECAYS]
        ),
        "now-x": Field(("moment",), np.array(MOMENTS)[:, None]),
        "now-y": Field(everything, now),
        "sentence": Field(everything, sentences),
    }


def _sentence(decay: float, corrected: int, moment: int, weights: np.ndarray) -> str:
    memory = 1 / (1 - decay)
    recent = weights[: round(memory)].sum() / weights.sum()
    # Weights beyond the lags that are drawn are negligible unless the decay is close to one.
    total = "1" if corrected else number(float(1 - decay**moment))
    values = "value. Its weight is" if moment == 1 else "values. Their weights sum to"
    after = f", because {'it was' if moment == 1 else 'they were'} divided by 1 − βᵗ" if corrected else ""
    last = "last value has" if round(memory) == 1 else f"last {round(memory)} values have"
    share = f" The {last} {100 * recent:.0f} % of this sum." if moment > round(memory) else ""
    return f"At t = {moment} the average contains {moment} {values} {total}{after}.{share}"


def _plots() -> tuple[Plot, ...]:
    signal = Plot(
        "averages-signal",
        "Noisy values and their average",
        "Two hundred noisy values like the temperatures of a year, the wave without the noise, and the weighted "
        "average that runs through them.",
        (
            Trace(
                "signal",
                "values xₜ",
                "t",
                "signal",
                style={"mode": "markers", "marker": {"size": 4, "color": "--faint"}},
            ),
            Trace(
                "truth",
                "without noise",
                "t",
                "truth",
                style={"mode": "lines", "line": {"color": "--ink", "width": 2, "dash": "dot"}},
            ),
            Trace(
                "average",
                "average mₜ",
                "t",
                "average",
                style={"mode": "lines", "line": {"color": "--average", "width": 3}},
            ),
            Trace(
                "now",
                "average at this t",
                "now-x",
                "now-y",
                style={"mode": "markers", "marker": {"size": 12, "color": "--stop", "symbol": "diamond"}},
            ),
        ),
        {"xaxis": {"title": "t"}, "yaxis": {"title": "value (°C)", "range": [-2, 32]}},
        shape="wide",
    )
    weights = Plot(
        "averages-weights",
        "The weight of each value",
        "The weight of each past value in the average, which falls geometrically with the age of the value, and a line "
        "at the age 1 over 1 minus beta.",
        (
            Trace(
                "weights",
                "weight",
                "lag",
                "weights",
                length="lags",
                style={"type": "bar", "marker": {"color": "--average"}},
            ),
            Trace(
                "memory",
                "1/(1 − β)",
                "memory-x",
                "memory-y",
                style={"mode": "lines", "line": {"color": "--stop", "width": 2.5, "dash": "dash"}},
            ),
        ),
        {
            "xaxis": {"title": "age of the value, in steps", "range": {"field": "ages-range"}},
            "yaxis": {"title": "weight", "range": {"field": "weights-range"}},
            "bargap": 0.15,
        },
        shape="wide",
    )
    return signal, weights


AVERAGES = Section(
    "averages",
    (
        Control("beta", "Decay β", DECAYS, 0.9),
        Control("moment", "Show the weights at t", MOMENTS, 50),
        Control("bias_correction", "Bias correction", (False, True), False),
    ),
    _plots(),
    fields,
    single,
    "sentence",
)
