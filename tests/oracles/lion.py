"""Lion (Chen et al., 2023, algorithm 2); the sign of a complex number is z / |z|."""

import numpy as np

from ._common import decayed, following, quotient, rounded, signed_rate, wide


class Lion:
    def __init__(self, learning_rate, b1=0.9, b2=0.99, mu_dtype=None, weight_decay=1e-3, mask=None):
        self.learning_rate = learning_rate
        self.b1 = b1
        self.b2 = b2
        self.mu_dtype = mu_dtype
        self.weight_decay = weight_decay
        self.mask = mask

    def init(self, param):
        return {"count": 0, "mu": wide(param)}

    def step(self, grad, param, state):
        mixed = self.b1 * state["mu"] + (1 - self.b1) * grad
        direction = decayed(quotient(mixed, np.abs(mixed)), param, self.weight_decay, self.mask, state["count"])
        mu = rounded(self.b2 * state["mu"] + (1 - self.b2) * grad, self.mu_dtype)
        update = signed_rate(self.learning_rate, state["count"]) * direction
        return update, {"count": following(state["count"]), "mu": mu}
