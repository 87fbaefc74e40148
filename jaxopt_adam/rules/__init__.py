"""The rules, a file each."""

from jaxopt_adam.rules.adabelief import AdabeliefState, adabelief
from jaxopt_adam.rules.adadelta import AdadeltaState, adadelta
from jaxopt_adam.rules.adafactor import AdafactorState, adafactor
from jaxopt_adam.rules.adagrad import AdagradState, adagrad
from jaxopt_adam.rules.adam import adam
from jaxopt_adam.rules.adam_atan2 import AdamAtan2State, adam_atan2
from jaxopt_adam.rules.adam_mini import AdamMiniState, adam_mini
from jaxopt_adam.rules.adamax import adamax
from jaxopt_adam.rules.adamaxw import AdamaxState, adamaxw
from jaxopt_adam.rules.adamw import AdamState, adamw
from jaxopt_adam.rules.adan import AdanState, adan
from jaxopt_adam.rules.ademamix import AdemamixState, ademamix
from jaxopt_adam.rules.adopt import AdoptState, adopt
from jaxopt_adam.rules.amsgrad import AmsgradState, amsgrad
from jaxopt_adam.rules.lamb import LambState, lamb
from jaxopt_adam.rules.laprop import LapropState, laprop
from jaxopt_adam.rules.lion import LionState, lion
from jaxopt_adam.rules.muon import muon
from jaxopt_adam.rules.muon_rule import MuonState
from jaxopt_adam.rules.nadam import nadam, nadamw
from jaxopt_adam.rules.novograd import NovogradState, novograd
from jaxopt_adam.rules.prodigy import ProdigyState, prodigy
from jaxopt_adam.rules.radam import RadamState, radam
from jaxopt_adam.rules.rmsprop import RmspropState, rmsprop
from jaxopt_adam.rules.schedule_free_adamw import ScheduleFreeAdamwState, schedule_free_adamw
from jaxopt_adam.rules.sgd import SgdState, sgd
from jaxopt_adam.rules.soap import SoapState, soap
from jaxopt_adam.rules.stable_adamw import StableAdamwState, stable_adamw
from jaxopt_adam.rules.yogi import YogiState, yogi

__all__ = [
    "AdabeliefState",
    "AdadeltaState",
    "AdafactorState",
    "AdagradState",
    "AdamAtan2State",
    "AdamMiniState",
    "AdamState",
    "AdamaxState",
    "AdanState",
    "AdemamixState",
    "AdoptState",
    "AmsgradState",
    "LambState",
    "LapropState",
    "LionState",
    "MuonState",
    "NovogradState",
    "ProdigyState",
    "RadamState",
    "RmspropState",
    "ScheduleFreeAdamwState",
    "SgdState",
    "SoapState",
    "StableAdamwState",
    "YogiState",
    "adabelief",
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adam_atan2",
    "adam_mini",
    "adamax",
    "adamaxw",
    "adamw",
    "adan",
    "ademamix",
    "adopt",
    "amsgrad",
    "lamb",
    "laprop",
    "lion",
    "muon",
    "nadam",
    "nadamw",
    "novograd",
    "prodigy",
    "radam",
    "rmsprop",
    "schedule_free_adamw",
    "sgd",
    "soap",
    "stable_adamw",
    "yogi",
]
