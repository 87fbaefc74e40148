"""RAdam (Liu et al., 2020, algorithm 2), with a threshold for ρ_t that is included, and Nesterov's look ahead.

ρ_t = ρ_∞ − 2 t β₂^t / (1 − β₂^t) is about t, a difference of two numbers that may be a hundred thousand times as large;
it is therefore taken in decimals.
"""

from decimal import Decimal, localcontext

import numpy as np

from ._common import following, looking_ahead, quotient, signed_rate, square, wide


def length(b2, step):
    """ρ_∞ and ρ_t, the lengths of the simple averages that are as certain as the exponential ones."""
    with localcontext(prec=60):
        decay, step = Decimal(float(b2)), Decimal(step)
        limit = 2 / (1 - decay) - 1
        power = decay**step
        return float(limit), float(limit - 2 * step * power / (1 - power))


class Radam:
    def __init__(self, learning_rate, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, threshold=5.0, *, nesterov=False):
        self.learning_rate = learning_rate
        self.b1 = b1
        self.b2 = b2
        self.eps = eps
        self.eps_root = eps_root
        self.threshold = threshold
        self.nesterov = nesterov

    def init(self, param):
        return {"count": 0, "mu": wide(param), "nu": wide(param, real=True)}

    def step(self, grad, param, state):
        step = following(state["count"])
        mu = self.b1 * state["mu"] + (1 - self.b1) * grad
        nu = self.b2 * state["nu"] + (1 - self.b2) * square(grad)
        direction = looking_ahead(mu, grad, self.b1, step) if self.nesterov else mu / (1 - self.b1**step)
        limit, now = length(self.b2, step)
        if now >= self.threshold:
            share = np.sqrt((now - 4) * (now - 2) * limit / ((limit - 4) * (limit - 2) * now))
            nu_hat = nu / (1 - self.b2**step)
            direction = share * quotient(direction, np.sqrt(nu_hat + self.eps_root) + self.eps)
        return signed_rate(self.learning_rate, state["count"]) * direction, {"count": step, "mu": mu, "nu": nu}
