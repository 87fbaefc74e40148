"""The rules, a file each."""

from jaxopt_adam.rules.adadelta import AdadeltaState, adadelta
from jaxopt_adam.rules.adagrad import AdagradState, adagrad
from jaxopt_adam.rules.adam import AdamState, adam
from jaxopt_adam.rules.rmsprop import RmspropState, rmsprop
from jaxopt_adam.rules.sgd import SgdState, sgd

__all__ = [
    "AdadeltaState",
    "AdagradState",
    "AdamState",
    "RmspropState",
    "SgdState",
    "adadelta",
    "adagrad",
    "adam",
    "rmsprop",
    "sgd",
]
