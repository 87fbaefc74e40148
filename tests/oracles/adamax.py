"""AdaMax (Kingma & Ba, 2015, algorithm 2) with optax's ε beside |g|, and AdaMaxW with decoupled weight decay."""

import numpy as np

from ._common import decayed, following, quotient, signed_rate, square, wide


class Adamax:
    def __init__(self, learning_rate, b1=0.9, b2=0.999, eps=1e-8):
        self.learning_rate = learning_rate
        self.b1 = b1
        self.b2 = b2
        self.eps = eps
        self.weight_decay = 0.0
        self.mask = None

    def init(self, param):
        return {"count": 0, "mu": wide(param), "nu": wide(param, real=True)}

    def step(self, grad, param, state):
        step = following(state["count"])
        mu = self.b1 * state["mu"] + (1 - self.b1) * grad
        nu = np.maximum(self.b2 * state["nu"], np.sqrt(square(grad)) + self.eps)
        direction = quotient(mu, (1 - self.b1**step) * nu)
        direction = decayed(direction, param, self.weight_decay, self.mask, state["count"])
        return signed_rate(self.learning_rate, state["count"]) * direction, {"count": step, "mu": mu, "nu": nu}


class Adamaxw(Adamax):
    def __init__(self, learning_rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=1e-4, mask=None):
        super().__init__(learning_rate, b1, b2, eps)
        self.weight_decay = weight_decay
        self.mask = mask
