"""LaProp (Ziyin, Wang & Ueda, 2020, algorithm 1, with the bias corrections), and decoupled weight decay."""

import numpy as np

from ._common import decayed, following, quotient, signed_rate, square, wide


class Laprop:
    def __init__(self, learning_rate, b1=0.9, b2=0.999, eps=1e-15, weight_decay=0.0, mask=None):
        self.learning_rate = learning_rate
        self.b1 = b1
        self.b2 = b2
        self.eps = eps
        self.weight_decay = weight_decay
        self.mask = mask

    def init(self, param):
        return {"count": 0, "mu": wide(param), "nu": wide(param, real=True)}

    def step(self, grad, param, state):
        step = following(state["count"])
        nu = self.b2 * state["nu"] + (1 - self.b2) * square(grad)
        normalized = quotient(grad, np.sqrt(nu / (1 - self.b2**step)) + self.eps)
        mu = self.b1 * state["mu"] + (1 - self.b1) * normalized
        direction = decayed(mu / (1 - self.b1**step), param, self.weight_decay, self.mask, state["count"])
        return signed_rate(self.learning_rate, state["count"]) * direction, {"count": step, "mu": mu, "nu": nu}
