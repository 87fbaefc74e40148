"""NovoGrad (Ginsburg et al., 2019, algorithm 1): one second moment for a layer, and weight decay in the momentum."""

import numpy as np

from ._common import decayed, following, quotient, signed_rate, square, wide


class Novograd:
    def __init__(self, learning_rate, b1=0.9, b2=0.25, eps=1e-6, eps_root=0.0, weight_decay=0.0):
        self.learning_rate = learning_rate
        self.b1 = b1
        self.b2 = b2
        self.eps = eps
        self.eps_root = eps_root
        self.weight_decay = weight_decay

    def init(self, param):
        return {"count": 0, "mu": wide(param), "nu": np.float64(0)}

    def step(self, grad, param, state):
        b2 = self.b2 if state["count"] else 0.0
        nu = b2 * state["nu"] + (1 - b2) * np.sum(square(grad))
        normalized = quotient(grad, np.sqrt(nu + self.eps_root) + self.eps)
        mu = self.b1 * state["mu"] + decayed(normalized, param, self.weight_decay, None, state["count"])
        rate = signed_rate(self.learning_rate, state["count"])
        return rate * mu, {"count": following(state["count"]), "mu": mu, "nu": nu}
