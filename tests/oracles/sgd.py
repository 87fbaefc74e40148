"""Gradient descent, with Polyak's and Nesterov's momentum in the form of Sutskever et al., 2013.

Sutskever's velocity is v_t = μ v_{t-1} − α g_t; for a constant α this is −α times the decayed sum of the gradients.
"""

from ._common import following, rounded, signed_rate, wide


class Sgd:
    def __init__(self, learning_rate, momentum=None, nesterov=False, accumulator_dtype=None):
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.nesterov = nesterov
        self.accumulator_dtype = accumulator_dtype

    def init(self, param):
        return {"count": 0, "trace": wide(param)}

    def step(self, grad, param, state):
        rate = signed_rate(self.learning_rate, state["count"])
        if self.momentum is None:
            return rate * grad, {"count": following(state["count"]), "trace": state["trace"]}
        trace = self.momentum * state["trace"] + grad
        direction = self.momentum * trace + grad if self.nesterov else trace
        rest = rounded(trace, self.accumulator_dtype)
        return rate * direction, {"count": following(state["count"]), "trace": rest}
