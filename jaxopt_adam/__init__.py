"""Adam and its family for JAX: exact, lean, and visible."""

from jaxopt_adam.averages import bias_correction, debias, ema
from jaxopt_adam.optimizer import Optimizer, grid, optimizer
from jaxopt_adam.rules import (
    AdadeltaState,
    AdagradState,
    AdamState,
    RmspropState,
    SgdState,
    adadelta,
    adagrad,
    adam,
    rmsprop,
    sgd,
)
from jaxopt_adam.solve import Result, Status, Trajectory, descend, minimize

__version__ = "0.1.0"

__all__ = [
    "AdadeltaState",
    "AdagradState",
    "AdamState",
    "Optimizer",
    "Result",
    "RmspropState",
    "SgdState",
    "Status",
    "Trajectory",
    "adadelta",
    "adagrad",
    "adam",
    "bias_correction",
    "debias",
    "descend",
    "ema",
    "grid",
    "minimize",
    "optimizer",
    "rmsprop",
    "sgd",
]
