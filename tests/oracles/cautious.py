"""Cautious optimizers (Liang et al., 2024, algorithm 1): only the parts of an update that the gradient agrees with.

What is left is divided by the share that is, plus ε. The state is that of the oracle within, which must have a
learning rate.
"""

import numpy as np


class Cautious:
    def __init__(self, inner, eps=1e-8):
        self.inner = inner
        self.eps = eps

    def init(self, param):
        return self.inner.init(param)

    def step(self, grad, param, state):
        update, state = self.inner.step(grad, param, state)
        kept = np.real(update * np.conj(-grad)) > 0
        return np.where(kept, update, 0) / (np.sum(kept) / max(kept.size, 1) + self.eps), state
