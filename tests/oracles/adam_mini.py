"""Adam-mini (Zhang et al., 2024, algorithm 1): AdamW with one second moment for a block, of the mean of |g|² in it.

`blocks` is the number of equal blocks along each axis; without it a vector or a number is one block, and any other
array has a block for each index of its last axis.
"""

import numpy as np

from ._common import decayed, following, quotient, signed_rate, square, wide


class AdamMini:
    def __init__(self, learning_rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, mask=None, *, blocks=None):
        self.learning_rate = learning_rate
        self.b1 = b1
        self.b2 = b2
        self.eps = eps
        self.weight_decay = weight_decay
        self.mask = mask
        self.blocks = blocks

    def partition(self, shape):
        """The number of blocks along each axis, and their length."""
        default = (1,) * (len(shape) - 1) + shape[-1:] if len(shape) >= 2 else (1,) * len(shape)
        blocks = default if self.blocks is None else self.blocks
        return blocks, tuple(size // max(number, 1) for size, number in zip(shape, blocks, strict=True))

    def init(self, param):
        return {"count": 0, "mu": wide(param), "nu": np.zeros(self.partition(np.shape(param))[0])}

    def step(self, grad, param, state):
        step = following(state["count"])
        blocks, lengths = self.partition(np.shape(param))
        parts = square(grad).reshape([size for pair in zip(blocks, lengths, strict=True) for size in pair])
        means = parts.sum(axis=tuple(range(1, parts.ndim, 2))) / max(np.prod(lengths), 1)
        mu = self.b1 * state["mu"] + (1 - self.b1) * grad
        nu = self.b2 * state["nu"] + (1 - self.b2) * means
        nu_hat = np.kron(nu / (1 - self.b2**step), np.ones(lengths))
        direction = quotient(mu / (1 - self.b1**step), np.sqrt(nu_hat) + self.eps)
        direction = decayed(direction, param, self.weight_decay, self.mask, state["count"])
        return signed_rate(self.learning_rate, state["count"]) * direction, {"count": step, "mu": mu, "nu": nu}
