"""Schedule-Free AdamW (Defazio et al., 2024, algorithm 1); the parameters are y, and x is found again from y and z.

The rate of a step is the schedule at the number of updates done, times the paper's warmup min(1, t / warmup_steps); it
moves z and weighs the average alike. The weight is the largest rate so far to a power, as in the authors' code; with a
rate that never falls and the power two it is the paper's γ_t².
"""

import numpy as np

from ._common import following, quotient, rounded, signed_rate, square, wide


def evaluation_params(state, param, b1):
    """x, the average, from the parameters y."""
    return (param - (1 - b1) * state["z"]) / b1


class ScheduleFreeAdamw:
    def __init__(
        self,
        learning_rate=0.0025,
        warmup_steps=None,
        b1=0.9,
        b2=0.999,
        eps=1e-8,
        weight_decay=0.0,
        weight_lr_power=2.0,
        state_dtype=None,
    ):
        self.learning_rate = learning_rate
        self.warmup_steps = warmup_steps
        self.b1 = b1
        self.b2 = b2
        self.eps = eps
        self.weight_decay = weight_decay
        self.weight_lr_power = weight_lr_power
        self.state_dtype = state_dtype

    def init(self, param):
        z = rounded(wide(param) + param, self.state_dtype)
        return {"count": 0, "nu": wide(param, real=True), "z": z, "weight_sum": 0.0, "max_learning_rate": 0.0}

    def step(self, grad, param, state):
        step = following(state["count"])
        rate = -signed_rate(self.learning_rate, state["count"])
        if self.warmup_steps:
            rate *= min(1.0, step / self.warmup_steps)
        largest = max(state["max_learning_rate"], rate)
        weight = largest**self.weight_lr_power
        weight_sum = state["weight_sum"] + weight
        nu = self.b2 * state["nu"] + (1 - self.b2) * square(grad)
        direction = quotient(grad, np.sqrt(nu / (1 - self.b2**step)) + self.eps) + self.weight_decay * param
        x = evaluation_params(state, param, self.b1)
        z = rounded(state["z"] - rate * direction, self.state_dtype)
        share = quotient(weight, weight_sum)
        x = (1 - share) * x + share * z
        update = self.b1 * x + (1 - self.b1) * z - param
        return update, {"count": step, "nu": nu, "z": z, "weight_sum": weight_sum, "max_learning_rate": largest}
