"""Adam (Kingma & Ba, 2015, algorithm 1), and NAdam (Dozat, 2016) with a constant β₁ and no factor β₂ before v̂."""

import numpy as np

from ._common import following, quotient, rounded, signed_rate, square, wide


class Adam:
    def __init__(self, learning_rate, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, mu_dtype=None, *, nesterov=False):
        self.learning_rate = learning_rate
        self.b1 = b1
        self.b2 = b2
        self.eps = eps
        self.eps_root = eps_root
        self.mu_dtype = mu_dtype
        self.nesterov = nesterov

    def init(self, param):
        return {"count": 0, "mu": wide(param), "nu": wide(param, real=True)}

    def step(self, grad, param, state):
        step = following(state["count"])
        mu = self.b1 * state["mu"] + (1 - self.b1) * grad
        nu = self.b2 * state["nu"] + (1 - self.b2) * square(grad)
        if self.nesterov:
            mu_hat = self.b1 * mu / (1 - self.b1 ** (step + 1)) + (1 - self.b1) * grad / (1 - self.b1**step)
        else:
            mu_hat = mu / (1 - self.b1**step)
        nu_hat = nu / (1 - self.b2**step)
        update = quotient(mu_hat, np.sqrt(nu_hat + self.eps_root) + self.eps)
        rate = signed_rate(self.learning_rate, state["count"])
        return rate * update, {"count": step, "mu": rounded(mu, self.mu_dtype), "nu": nu}
