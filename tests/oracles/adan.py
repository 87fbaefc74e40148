"""Adan (Xie et al., 2022, algorithm 1) as in optax: decays for the paper's 1 − β, debiased, AdamW's weight decay."""

import numpy as np

from ._common import decayed, following, quotient, signed_rate, square, wide


class Adan:
    def __init__(self, learning_rate, b1=0.98, b2=0.92, b3=0.99, eps=1e-8, eps_root=1e-8, weight_decay=0.0, mask=None):
        self.learning_rate = learning_rate
        self.b1 = b1
        self.b2 = b2
        self.b3 = b3
        self.eps = eps
        self.eps_root = eps_root
        self.weight_decay = weight_decay
        self.mask = mask

    def init(self, param):
        return {"count": 0, "m": wide(param), "v": wide(param), "n": wide(param, real=True), "g": wide(param)}

    def step(self, grad, param, state):
        step = following(state["count"])
        change = grad - state["g"] if state["count"] else 0 * grad
        m = self.b1 * state["m"] + (1 - self.b1) * grad
        v = self.b2 * state["v"] + (1 - self.b2) * change
        n = self.b3 * state["n"] + (1 - self.b3) * square(grad + (1 - self.b2) * change)
        ahead = m / (1 - self.b1**step) + (1 - self.b2) * v / (1 - self.b2**step)
        direction = quotient(ahead, np.sqrt(n / (1 - self.b3**step) + self.eps_root) + self.eps)
        direction = decayed(direction, param, self.weight_decay, self.mask, state["count"])
        update = signed_rate(self.learning_rate, state["count"]) * direction
        return update, {"count": step, "m": m, "v": v, "n": n, "g": grad}
