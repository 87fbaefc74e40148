"""The rules, a file each."""

from jaxopt_adam.rules.adabelief import AdabeliefState, adabelief
from jaxopt_adam.rules.adadelta import AdadeltaState, adadelta
from jaxopt_adam.rules.adagrad import AdagradState, adagrad
from jaxopt_adam.rules.adam import adam
from jaxopt_adam.rules.adam_atan2 import AdamAtan2State, adam_atan2
from jaxopt_adam.rules.adamax import AdamaxState, adamax, adamaxw
from jaxopt_adam.rules.adamw import AdamState, adamw
from jaxopt_adam.rules.adan import AdanState, adan
from jaxopt_adam.rules.amsgrad import AmsgradState, amsgrad
from jaxopt_adam.rules.laprop import LapropState, laprop
from jaxopt_adam.rules.lion import LionState, lion
from jaxopt_adam.rules.nadam import nadam, nadamw
from jaxopt_adam.rules.radam import RadamState, radam
from jaxopt_adam.rules.rmsprop import RmspropState, rmsprop
from jaxopt_adam.rules.sgd import SgdState, sgd
from jaxopt_adam.rules.yogi import YogiState, yogi

__all__ = [
    "AdabeliefState",
    "AdadeltaState",
    "AdagradState",
    "AdamAtan2State",
    "AdamState",
    "AdamaxState",
    "AdanState",
    "AmsgradState",
    "LapropState",
    "LionState",
    "RadamState",
    "RmspropState",
    "SgdState",
    "YogiState",
    "adabelief",
    "adadelta",
    "adagrad",
    "adam",
    "adam_atan2",
    "adamax",
    "adamaxw",
    "adamw",
    "adan",
    "amsgrad",
    "laprop",
    "lion",
    "nadam",
    "nadamw",
    "radam",
    "rmsprop",
    "sgd",
    "yogi",
]
