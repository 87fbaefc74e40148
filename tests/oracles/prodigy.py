"""Prodigy (Mishchenko & Defazio, 2023, algorithm 4), with Adam's bias correction in γ_k as in optax, or without.

The estimate d, its numerator r and its denominator ‖s‖₁ are of all leaves together: `init_leaves` and `step_leaves` are
for a list of them, `init` and `step` for one alone. r and s are the paper's over (1 − β₃) d₀, which their quotient does
not see. As in the paper ε is times d_k, the estimate before this step's; optax and the authors' code take d_{k+1}.
"""

import numpy as np

from ._common import decayed, following, quotient, signed_rate, square, wide

OF_LEAVES = ("mu", "nu", "grad_sum", "params0")


class Prodigy:
    def __init__(
        self,
        learning_rate=1.0,
        betas=(0.9, 0.999),
        beta3=None,
        eps=1e-8,
        estim_lr0=1e-6,
        estim_lr_coef=1.0,
        weight_decay=0.0,
        safeguard_warmup=False,
        bias_correction=True,
    ):
        self.learning_rate = learning_rate
        self.betas = betas
        self.beta3 = np.sqrt(betas[1]) if beta3 is None else beta3
        self.eps = eps
        self.estim_lr0 = estim_lr0
        self.estim_lr_coef = estim_lr_coef
        self.weight_decay = weight_decay
        self.safeguard_warmup = safeguard_warmup
        self.bias_correction = bias_correction

    def init_leaves(self, params):
        return {
            "count": 0,
            "mu": [wide(param) for param in params],
            "nu": [wide(param, real=True) for param in params],
            "grad_sum": [wide(param) for param in params],
            "params0": [wide(param) + param for param in params],
            "estim_lr": self.estim_lr0,
            "numerator_weighted": 0.0,
        }

    def step_leaves(self, grads, params, state):
        step = following(state["count"])
        (b1, b2), b3 = self.betas, self.beta3
        d, ratio = state["estim_lr"], state["estim_lr"] / self.estim_lr0
        gamma = -signed_rate(self.learning_rate, state["count"])
        if self.bias_correction:
            gamma *= np.sqrt(1 - b2**step) / (1 - b1**step)
        mu = [b1 * m + (1 - b1) * d * grad for m, grad in zip(state["mu"], grads, strict=True)]
        nu = [b2 * v + (1 - b2) * square(d * grad) for v, grad in zip(state["nu"], grads, strict=True)]
        way = sum(
            np.real(np.vdot(grad, start - param))
            for grad, start, param in zip(grads, state["params0"], params, strict=True)
        )
        numerator = b3 * state["numerator_weighted"] + ratio * gamma * d * way
        weight = ratio * d * (1.0 if self.safeguard_warmup else gamma)
        grad_sum = [b3 * s + weight * grad for s, grad in zip(state["grad_sum"], grads, strict=True)]
        denominator = sum(np.sum(np.abs(s)) for s in grad_sum)
        directions = [quotient(m, np.sqrt(v) + d * self.eps) for m, v in zip(mu, nu, strict=True)]
        updates = [
            -gamma * d * decayed(direction, param, self.weight_decay, None, state["count"])
            for direction, param in zip(directions, params, strict=True)
        ]
        return updates, {
            "count": step,
            "mu": mu,
            "nu": nu,
            "grad_sum": grad_sum,
            "params0": state["params0"],
            "estim_lr": max(d, float(self.estim_lr_coef * quotient(numerator, denominator))),
            "numerator_weighted": numerator,
        }

    def init(self, param):
        return self.alone(self.init_leaves([param]))

    def step(self, grad, param, state):
        leaves = {name: [value] if name in OF_LEAVES else value for name, value in state.items()}
        updates, leaves = self.step_leaves([grad], [param], leaves)
        return updates[0], self.alone(leaves)

    @staticmethod
    def alone(state):
        return {name: value[0] if name in OF_LEAVES else value for name, value in state.items()}
