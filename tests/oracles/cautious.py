"""Cautious optimizers (Liang et al., 2024, algorithm 1): only the parts of an update that the gradient agrees with.

What is left is divided by its share, plus ε, of those elements whose update and gradient are not zero (of all in the
paper), but becomes larger by `max_scale` at most. The state is that of the oracle within, which must have a learning
rate.
"""

import numpy as np


class Cautious:
    def __init__(self, inner, eps=1e-8, max_scale=10.0):
        self.inner = inner
        self.eps = eps
        self.max_scale = max_scale

    def init(self, param):
        return self.inner.init(param)

    def step(self, grad, param, state):
        update, state = self.inner.step(grad, param, state)
        kept = np.real(update * np.conj(-grad)) > 0
        voices = np.count_nonzero((update != 0) & (grad != 0))
        share = np.count_nonzero(kept) / max(voices, 1)
        return np.where(kept, update, 0) * min(1 / (share + self.eps) if share else 1.0, self.max_scale), state
