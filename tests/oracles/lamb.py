"""LAMB (You et al., 2020, algorithm 2) with φ(z) = z; the ratio is one where either norm is zero."""

import numpy as np

from ._common import decayed, following, quotient, signed_rate, square, wide


class Lamb:
    def __init__(self, learning_rate, b1=0.9, b2=0.999, eps=1e-6, eps_root=0.0, weight_decay=0.0, mask=None):
        self.learning_rate = learning_rate
        self.b1 = b1
        self.b2 = b2
        self.eps = eps
        self.eps_root = eps_root
        self.weight_decay = weight_decay
        self.mask = mask

    def init(self, param):
        return {"count": 0, "mu": wide(param), "nu": wide(param, real=True)}

    def step(self, grad, param, state):
        step = following(state["count"])
        mu = self.b1 * state["mu"] + (1 - self.b1) * grad
        nu = self.b2 * state["nu"] + (1 - self.b2) * square(grad)
        direction = quotient(mu / (1 - self.b1**step), np.sqrt(nu / (1 - self.b2**step) + self.eps_root) + self.eps)
        direction = decayed(direction, param, self.weight_decay, self.mask, state["count"])
        lengths = np.sqrt(np.sum(square(param))), np.sqrt(np.sum(square(direction)))
        ratio = lengths[0] / lengths[1] if all(lengths) else 1.0
        rate = signed_rate(self.learning_rate, state["count"])
        return rate * ratio * direction, {"count": step, "mu": mu, "nu": nu}
