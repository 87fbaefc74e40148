"""Adan (Xie et al., 2022, algorithm 1), line by line in the paper's β, which are 1 minus the decays that are given.

The averages start at zero and are debiased, as in the authors' code; there is no restart. The weight decay is AdamW's,
which is that code's `no_prox`. ε̄ within the root is optax's `eps_root`.
"""

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
        beta_1, beta_2, beta_3 = 1 - self.b1, 1 - self.b2, 1 - self.b3
        k = following(state["count"])
        previous = grad if k == 1 else state["g"]
        m = (1 - beta_1) * state["m"] + beta_1 * grad
        v = (1 - beta_2) * state["v"] + beta_2 * (grad - previous)
        n = (1 - beta_3) * state["n"] + beta_3 * square(grad + (1 - beta_2) * (grad - previous))
        m_hat, v_hat, n_hat = (
            average / (1 - decay**k) for average, decay in ((m, self.b1), (v, self.b2), (n, self.b3))
        )
        direction = quotient(m_hat + (1 - beta_2) * v_hat, np.sqrt(n_hat + self.eps_root) + self.eps)
        direction = decayed(direction, param, self.weight_decay, self.mask, state["count"])
        update = signed_rate(self.learning_rate, state["count"]) * direction
        return update, {"count": k, "m": m, "v": v, "n": n, "g": grad}
