"""Adafactor (Shazeer & Stern, 2018, algorithm 4 with β̂₂ = 1 − t^−0.8), with the options of optax in optax's order.

With R and C the means over the columns and the rows, where the paper has sums, V̂ = R C / mean(R) is the same. The rate
comes after the clipping, then the scale of the parameter, momentum, and a weight decay that no rate multiplies. Without
a learning rate the rate is one; the update descends all the same.
"""

import numpy as np

from ._common import decayed, following, quotient, rounded, signed_rate, square, wide

LEAST_SCALE = 1e-3


def root_mean_square(value):
    return np.sqrt(np.sum(square(value)) / max(np.size(value), 1))


class Adafactor:
    def __init__(
        self,
        learning_rate=None,
        min_dim_size_to_factor=128,
        decay_rate=0.8,
        decay_offset=0,
        multiply_by_parameter_scale=True,
        clipping_threshold=1.0,
        momentum=None,
        dtype_momentum=None,
        weight_decay_rate=None,
        eps=1e-30,
        factored=True,
        weight_decay_mask=None,
    ):
        self.learning_rate = learning_rate
        self.min_dim_size_to_factor = min_dim_size_to_factor
        self.decay_rate = decay_rate
        self.decay_offset = decay_offset
        self.multiply_by_parameter_scale = multiply_by_parameter_scale
        self.clipping_threshold = clipping_threshold
        self.momentum = momentum
        self.dtype_momentum = dtype_momentum
        self.weight_decay_rate = weight_decay_rate
        self.eps = eps
        self.factored = factored
        self.weight_decay_mask = weight_decay_mask

    def axes(self, shape):
        """The longest axis but one, and the longest; of equals the last is the longest. None: not to be factored."""
        if not self.factored or len(shape) < 2:
            return None
        *_, second, longest = sorted(range(len(shape)), key=lambda axis: shape[axis])
        return (second, longest) if shape[second] >= self.min_dim_size_to_factor else None

    def init(self, param):
        axes = self.axes(np.shape(param))
        zeros = wide(param, real=True)
        return {
            "count": 0,
            "v_row": None if axes is None else zeros.sum(axes[1]),
            "v_col": None if axes is None else zeros.sum(axes[0]),
            "v": zeros if axes is None else None,
            "mu": None if self.momentum is None else wide(param),
        }

    def step(self, grad, param, state):
        step = following(state["count"])
        decay = 1 - float(step - self.decay_offset) ** -self.decay_rate
        squares = square(grad) + self.eps
        v_row = v_col = v = None
        if axes := self.axes(np.shape(param)):
            second, longest = axes
            rows, columns = squares.mean(longest, keepdims=True), squares.mean(second, keepdims=True)
            rows = decay * np.expand_dims(state["v_row"], longest) + (1 - decay) * rows
            columns = decay * np.expand_dims(state["v_col"], second) + (1 - decay) * columns
            estimate = quotient(rows, rows.mean(second, keepdims=True)) * columns
            v_row, v_col = rows.squeeze(longest), columns.squeeze(second)
        else:
            estimate = v = decay * state["v"] + (1 - decay) * squares
        update = quotient(grad, np.sqrt(estimate))
        if self.clipping_threshold is not None:
            update = update / max(1.0, root_mean_square(update) / self.clipping_threshold)
        if self.learning_rate is not None:
            update = -signed_rate(self.learning_rate, state["count"]) * update
        if self.multiply_by_parameter_scale:
            update = max(LEAST_SCALE, root_mean_square(param)) * update
        mu = None
        if self.momentum is not None:
            update = self.momentum * state["mu"] + (1 - self.momentum) * update
            mu = rounded(update, self.dtype_momentum)
        if self.weight_decay_rate is not None:
            update = decayed(update, param, self.weight_decay_rate, self.weight_decay_mask, state["count"])
        return -update, {"count": step, "v_row": v_row, "v_col": v_col, "v": v, "mu": mu}
