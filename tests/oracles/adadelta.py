"""ADADELTA (Zeiler, 2012), algorithm 1, with L2 regularization and a learning rate.

Zeiler's Δx_t is −RMS[Δx]_{t-1} / RMS[g]_t · g_t, with RMS[y] = √(E[y²] + ε).
"""

import numpy as np

from ._common import following, quotient, signed_rate, square, wide


class Adadelta:
    def __init__(self, learning_rate=None, rho=0.9, eps=1e-6, weight_decay=0.0):
        self.learning_rate = learning_rate
        self.rho = rho
        self.eps = eps
        self.weight_decay = weight_decay

    def init(self, param):
        return {"count": 0, "e_g": wide(param, real=True), "e_x": wide(param, real=True)}

    def step(self, grad, param, state):
        count = state["count"]
        weight_decay = self.weight_decay(count) if callable(self.weight_decay) else self.weight_decay
        grad = grad + weight_decay * param
        e_g = self.rho * state["e_g"] + (1 - self.rho) * square(grad)
        root_of_gradients = np.sqrt(e_g + self.eps)
        root_of_steps = np.sqrt(state["e_x"] + self.eps)
        ascent = quotient(root_of_steps * grad, root_of_gradients)
        e_x = self.rho * state["e_x"] + (1 - self.rho) * square(ascent)
        return signed_rate(self.learning_rate, count) * ascent, {"count": following(count), "e_g": e_g, "e_x": e_x}
