"""StableAdamW (Wortsman et al., 2023, algorithm 2): AdamW with the update clipping of Adafactor."""

import numpy as np

from ._common import decayed, following, quotient, signed_rate, square, wide


class StableAdamw:
    def __init__(self, learning_rate, b1=0.9, b2=0.99, eps=1e-8, weight_decay=1e-4, mask=None):
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
        mu = self.b1 * state["mu"] + (1 - self.b1) * grad
        nu = self.b2 * state["nu"] + (1 - self.b2) * square(grad)
        nu_hat = nu / (1 - self.b2**step)
        ratios = quotient(square(grad), np.maximum(nu_hat, self.eps**2))
        rms = np.sqrt(np.sum(ratios) / max(ratios.size, 1))
        direction = quotient(mu / (1 - self.b1**step), np.sqrt(nu_hat) + self.eps)
        direction = decayed(direction, param, self.weight_decay, self.mask, state["count"])
        rate = signed_rate(self.learning_rate, state["count"]) / max(1.0, rms)
        return rate * direction, {"count": step, "mu": mu, "nu": nu}
