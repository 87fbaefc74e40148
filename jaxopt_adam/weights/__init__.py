"""Wrappers for low-precision weights, which keep or dither the part that rounding drops."""

from jaxopt_adam.weights.master import MasterWeightsState, master_params, master_weights, with_master_params
from jaxopt_adam.weights.stalled import stalled_fraction
from jaxopt_adam.weights.stochastic import StochasticRoundingState, stochastic_rounding

__all__ = [
    "MasterWeightsState",
    "StochasticRoundingState",
    "master_params",
    "master_weights",
    "stalled_fraction",
    "stochastic_rounding",
    "with_master_params",
]
