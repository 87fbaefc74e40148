"""The rules once more, in NumPy and float64 for one array, from the papers' equations, to hold the library against.

An oracle is made with a rule's hyperparameters and has ``init(param) -> state``, a dictionary, and
``step(grad, param, state) -> (update, state)``. The update is to be added to the parameter. Without a learning rate it
is the direction alone, positive. Every state has the number of updates done, `count`; a schedule is called with it.
"""

import numpy as np

from .adadelta import Adadelta
from .adagrad import Adagrad
from .adam import Adam
from .rmsprop import Rmsprop
from .sgd import Sgd

ORACLES = {"sgd": Sgd, "adagrad": Adagrad, "adadelta": Adadelta, "rmsprop": Rmsprop, "adam": Adam}


def walk(oracle, param, gradients, state=None):
    """The updates for a sequence of gradients, and the state after the last; the parameter moves along."""
    state = oracle.init(param) if state is None else state
    updates = []
    for grad in gradients:
        update, state = oracle.step(grad, param, state)
        param = param + update
        updates.append(update)
    return np.stack(updates), state
