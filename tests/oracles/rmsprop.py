"""RMSProp (Tieleman & Hinton, 2012; centered: Graves, 2013, equations 38–45), with momentum on the scaled steps."""

import numpy as np

from ._common import following, quotient, signed_rate, square, wide


class Rmsprop:
    def __init__(
        self,
        learning_rate,
        decay=0.9,
        eps=1e-8,
        initial_scale=0.0,
        eps_in_sqrt=True,
        centered=False,
        momentum=None,
        nesterov=False,
        bias_correction=False,
    ):
        self.learning_rate = learning_rate
        self.decay = decay
        self.eps = eps
        self.initial_scale = initial_scale
        self.eps_in_sqrt = eps_in_sqrt
        self.centered = centered
        self.momentum = momentum
        self.nesterov = nesterov
        self.bias_correction = bias_correction

    def init(self, param):
        nu = wide(param, real=True) + self.initial_scale
        return {"count": 0, "nu": nu, "mu": wide(param), "trace": wide(param)}

    def step(self, grad, param, state):
        step = following(state["count"])
        nu = self.decay * state["nu"] + (1 - self.decay) * square(grad)
        mu = self.decay * state["mu"] + (1 - self.decay) * grad
        weight = -np.expm1(step * np.log(self.decay)) if self.bias_correction and self.decay > 0 else 1.0
        spread = nu / weight
        if self.centered:
            spread = np.maximum(spread - square(mu / weight), 0.0)
        size = np.sqrt(spread + self.eps) if self.eps_in_sqrt else np.sqrt(spread) + self.eps
        update = signed_rate(self.learning_rate, state["count"]) * quotient(grad, size)
        trace = state["trace"]
        if self.momentum is not None:
            trace = update + self.momentum * trace
            update = update + self.momentum * trace if self.nesterov else trace
        return update, {"count": step, "nu": nu, "mu": mu, "trace": trace}
