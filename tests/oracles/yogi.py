"""Yogi (Zaheer et al., 2018, algorithm 2), started at 1e-6 and debiased as optax's."""

import numpy as np

from ._common import following, quotient, signed_rate, square, wide


class Yogi:
    def __init__(self, learning_rate, b1=0.9, b2=0.999, eps=1e-3):
        self.learning_rate = learning_rate
        self.b1 = b1
        self.b2 = b2
        self.eps = eps

    def init(self, param):
        return {"count": 0, "mu": wide(param) + 1e-6, "nu": wide(param, real=True) + 1e-6}

    def step(self, grad, param, state):
        step = following(state["count"])
        mu = self.b1 * state["mu"] + (1 - self.b1) * grad
        nu = state["nu"] - (1 - self.b2) * np.sign(state["nu"] - square(grad)) * square(grad)
        direction = quotient(mu / (1 - self.b1**step), np.sqrt(nu / (1 - self.b2**step)) + self.eps)
        return signed_rate(self.learning_rate, state["count"]) * direction, {"count": step, "mu": mu, "nu": nu}
