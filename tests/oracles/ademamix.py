"""AdEMAMix (Pagliardini et al., 2024, algorithm 1); β₃ and α may be schedules of the number of updates done."""

import numpy as np

from ._common import decayed, following, quotient, rounded, signed_rate, square, wide


def at(value, count):
    return float(value(count) if callable(value) else value)


class Ademamix:
    def __init__(
        self,
        learning_rate,
        b1=0.9,
        b2=0.999,
        b3=0.9999,
        alpha=5.0,
        eps=1e-8,
        eps_root=0.0,
        mu_dtype=None,
        weight_decay=0.0,
        mask=None,
    ):
        self.learning_rate = learning_rate
        self.b1 = b1
        self.b2 = b2
        self.b3 = b3
        self.alpha = alpha
        self.eps = eps
        self.eps_root = eps_root
        self.mu_dtype = mu_dtype
        self.weight_decay = weight_decay
        self.mask = mask

    def init(self, param):
        return {"count": 0, "m1": wide(param), "m2": wide(param), "nu": wide(param, real=True)}

    def step(self, grad, param, state):
        step = following(state["count"])
        b3, alpha = at(self.b3, state["count"]), at(self.alpha, state["count"])
        m1 = self.b1 * state["m1"] + (1 - self.b1) * grad
        m2 = b3 * state["m2"] + (1 - b3) * grad
        nu = self.b2 * state["nu"] + (1 - self.b2) * square(grad)
        mixed = m1 / (1 - self.b1**step) + alpha * m2
        direction = quotient(mixed, np.sqrt(nu / (1 - self.b2**step) + self.eps_root) + self.eps)
        direction = decayed(direction, param, self.weight_decay, self.mask, state["count"])
        rate = signed_rate(self.learning_rate, state["count"])
        m1, m2 = rounded(m1, self.mu_dtype), rounded(m2, self.mu_dtype)
        return rate * direction, {"count": step, "m1": m1, "m2": m2, "nu": nu}
