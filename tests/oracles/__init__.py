"""The rules once more, in NumPy and float64 for one array, from the papers' equations, to hold the library against.

An oracle is made with a rule's hyperparameters and has ``init(param) -> state``, a dictionary, and
``step(grad, param, state) -> (update, state)``. The update is to be added to the parameter. Without a learning rate it
is the direction alone, positive. Every state has the number of updates done, `count`; a schedule is called with it.
"""

import numpy as np

from .adabelief import Adabelief
from .adadelta import Adadelta
from .adafactor import Adafactor
from .adagrad import Adagrad
from .adam import Adam, Adamw
from .adam_atan2 import AdamAtan2
from .adam_mini import AdamMini
from .adamax import Adamax, Adamaxw
from .adan import Adan
from .ademamix import Ademamix
from .adopt import Adopt
from .amsgrad import Amsgrad
from .cautious import Cautious
from .lamb import Lamb
from .laprop import Laprop
from .lion import Lion
from .muon import Muon
from .nadam import Nadam, Nadamw
from .novograd import Novograd
from .prodigy import Prodigy
from .radam import Radam
from .rmsprop import Rmsprop
from .schedule_free_adamw import ScheduleFreeAdamw
from .sgd import Sgd
from .soap import Soap
from .stable_adamw import StableAdamw
from .yogi import Yogi

ORACLES = {
    "sgd": Sgd,
    "adagrad": Adagrad,
    "adadelta": Adadelta,
    "rmsprop": Rmsprop,
    "adam": Adam,
    "adamw": Adamw,
    "nadam": Nadam,
    "nadamw": Nadamw,
    "adamax": Adamax,
    "adamaxw": Adamaxw,
    "amsgrad": Amsgrad,
    "radam": Radam,
    "adabelief": Adabelief,
    "yogi": Yogi,
    "lion": Lion,
    "adan": Adan,
    "laprop": Laprop,
    "adam_atan2": AdamAtan2,
    "adopt": Adopt,
    "ademamix": Ademamix,
}
"""The rules whose elements know nothing of each other."""

WHOLE_LEAF_ORACLES = {
    "lamb": Lamb,
    "novograd": Novograd,
    "adafactor": Adafactor,
    "schedule_free_adamw": ScheduleFreeAdamw,
    "muon": Muon,
    "prodigy": Prodigy,
    "soap": Soap,
    "adam_mini": AdamMini,
    "stable_adamw": StableAdamw,
    "cautious": Cautious,
}
"""The rules that see a whole leaf, or the parameters."""


def walk(oracle, param, gradients, state=None, *, moving=True):
    """The updates for a sequence of gradients, and the state after the last; the parameter moves along, or stays."""
    state = oracle.init(param) if state is None else state
    updates = []
    for grad in gradients:
        update, state = oracle.step(grad, param, state)
        param = param + update if moving else param
        updates.append(update)
    return np.stack(updates), state
