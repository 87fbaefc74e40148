"""ADOPT (Taniguchi et al., 2024, algorithm 2), with the clipping of the authors' later version, c_t = t^(1/4).

The first gradient is g₀ and only starts v. Nesterov's look ahead is optax's: the momentum once more with the same ĝ.
A complex ĝ is clipped in its modulus.
"""

import numpy as np

from ._common import following, quotient, rounded, signed_rate, square, wide


class Adopt:
    def __init__(
        self,
        learning_rate,
        b1=0.9,
        b2=0.9999,
        eps=1e-6,
        mu_dtype=None,
        *,
        nesterov=False,
        use_clipping=True,
        clip_value_fn=lambda x: x**0.25,
    ):
        self.learning_rate = learning_rate
        self.b1 = b1
        self.b2 = b2
        self.eps = eps
        self.mu_dtype = mu_dtype
        self.nesterov = nesterov
        self.use_clipping = use_clipping
        self.clip_value_fn = clip_value_fn

    def init(self, param):
        return {"count": 0, "mu": wide(param), "nu": wide(param, real=True)}

    def step(self, grad, param, state):
        step = following(state["count"])
        if state["count"] == 0:
            return wide(param), {"count": step, "mu": state["mu"], "nu": square(grad)}
        scale, limit = np.maximum(np.sqrt(state["nu"]), self.eps), self.clip_value_fn(state["count"])
        beyond = self.use_clipping & (np.abs(grad) > limit * scale)
        normalized = quotient(np.where(beyond, 0, grad), scale)
        normalized = np.where(beyond, limit * quotient(grad, np.abs(grad)), normalized)
        mu = self.b1 * state["mu"] + (1 - self.b1) * normalized
        direction = self.b1 * mu + (1 - self.b1) * normalized if self.nesterov else mu
        nu = self.b2 * state["nu"] + (1 - self.b2) * square(grad)
        rate = signed_rate(self.learning_rate, state["count"])
        return rate * direction, {"count": step, "mu": rounded(mu, self.mu_dtype), "nu": nu}
