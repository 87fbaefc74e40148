"""AdaBelief (Zhuang et al., 2020, algorithm 2), whose ε within the average is optax's `eps_root`."""

import numpy as np

from ._common import following, looking_ahead, quotient, signed_rate, square, wide


class Adabelief:
    def __init__(self, learning_rate, b1=0.9, b2=0.999, eps=1e-16, eps_root=1e-16, *, nesterov=False):
        self.learning_rate = learning_rate
        self.b1 = b1
        self.b2 = b2
        self.eps = eps
        self.eps_root = eps_root
        self.nesterov = nesterov

    def init(self, param):
        return {"count": 0, "mu": wide(param), "nu": wide(param, real=True)}

    def step(self, grad, param, state):
        step = following(state["count"])
        mu = self.b1 * state["mu"] + (1 - self.b1) * grad
        nu = self.b2 * state["nu"] + (1 - self.b2) * square(grad - mu) + self.eps_root
        mu_hat = looking_ahead(mu, grad, self.b1, step) if self.nesterov else mu / (1 - self.b1**step)
        direction = quotient(mu_hat, np.sqrt(nu / (1 - self.b2**step)) + self.eps)
        return signed_rate(self.learning_rate, state["count"]) * direction, {"count": step, "mu": mu, "nu": nu}
