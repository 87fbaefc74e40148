"""AdaGrad (Duchi, Hazan & Singer, 2011), with the diagonal of the sum of outer products."""

import numpy as np

from ._common import following, quotient, signed_rate, square, wide


class Adagrad:
    def __init__(self, learning_rate, initial_accumulator_value=0.1, eps=1e-7):
        self.learning_rate = learning_rate
        self.initial_accumulator_value = initial_accumulator_value
        self.eps = eps

    def init(self, param):
        return {"count": 0, "sum_of_squares": wide(param, real=True) + self.initial_accumulator_value}

    def step(self, grad, param, state):
        total = state["sum_of_squares"] + square(grad)
        direction = quotient(grad, np.sqrt(total + self.eps))
        update = signed_rate(self.learning_rate, state["count"]) * direction
        return update, {"count": following(state["count"]), "sum_of_squares": total}
