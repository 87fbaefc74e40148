"""AMSGrad (Reddi, Kale & Kumar, 2018, algorithm 2), with both averages debiased if wanted, v before the maximum."""

import numpy as np

from ._common import following, quotient, rounded, signed_rate, square, wide


class Amsgrad:
    def __init__(
        self,
        learning_rate,
        b1=0.9,
        b2=0.999,
        eps=1e-8,
        eps_root=0.0,
        mu_dtype=None,
        bias_correction_mu=True,
        bias_correction_nu=True,
    ):
        self.learning_rate = learning_rate
        self.b1 = b1
        self.b2 = b2
        self.eps = eps
        self.eps_root = eps_root
        self.mu_dtype = mu_dtype
        self.bias_correction_mu = bias_correction_mu
        self.bias_correction_nu = bias_correction_nu

    def init(self, param):
        return {"count": 0, "mu": wide(param), "nu": wide(param, real=True), "nu_max": wide(param, real=True)}

    def step(self, grad, param, state):
        step = following(state["count"])
        mu = self.b1 * state["mu"] + (1 - self.b1) * grad
        nu = self.b2 * state["nu"] + (1 - self.b2) * square(grad)
        mu_hat = mu / (1 - self.b1**step) if self.bias_correction_mu else mu
        nu_hat = nu / (1 - self.b2**step) if self.bias_correction_nu else nu
        nu_max = np.maximum(state["nu_max"], nu_hat)
        direction = quotient(mu_hat, np.sqrt(nu_max + self.eps_root) + self.eps)
        update = signed_rate(self.learning_rate, state["count"]) * direction
        return update, {"count": step, "mu": rounded(mu, self.mu_dtype), "nu": nu, "nu_max": nu_max}
