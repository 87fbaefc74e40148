"""Adam-atan2 (Everett et al., 2024, section 5), for real numbers."""

import numpy as np

from ._common import decayed, following, signed_rate, square, wide


class AdamAtan2:
    def __init__(self, learning_rate, b1=0.9, b2=0.999, a=4 / np.pi, b=1.0, weight_decay=0.0, mask=None):
        self.learning_rate = learning_rate
        self.b1 = b1
        self.b2 = b2
        self.a = a
        self.b = b
        self.weight_decay = weight_decay
        self.mask = mask

    def init(self, param):
        return {"count": 0, "mu": wide(param), "nu": wide(param)}

    def step(self, grad, param, state):
        step = following(state["count"])
        mu = self.b1 * state["mu"] + (1 - self.b1) * grad
        nu = self.b2 * state["nu"] + (1 - self.b2) * square(grad)
        direction = self.a * np.arctan2(mu / (1 - self.b1**step), self.b * np.sqrt(nu / (1 - self.b2**step)))
        direction = decayed(direction, param, self.weight_decay, self.mask, state["count"])
        return signed_rate(self.learning_rate, state["count"]) * direction, {"count": step, "mu": mu, "nu": nu}
