"""Muon (Jordan et al., 2024) as in optax: the momentum debiased, and all that is no matrix by AdamW.

Preconditionings: the norm of Frobenius (Jordan); the spectral norm; AOL, every row by the root of its sum in |X Xᵀ|
(Boissin et al., 2025); Schatten's 4-norm, the root of ‖X Xᵀ‖ (Grishina et al., 2025). `consistent_rms` is that of
Liu et al. (2025), `adaptive` the dual norm of Bernstein & Newhouse (2024). Dimension numbers have `reduction_axis` and
`output_axis`, an axis or several each; a function of the parameter gives them, or None for AdamW.
"""

from math import prod

import numpy as np

from ._common import decayed, following, looking_ahead, quotient, rounded, signed_rate, wide
from .adam import Adamw

PRESETS = {
    "standard": (3.4445, -4.7750, 2.0315),
    "dion": (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
}


def preconditioned(x, kind, eps):
    """A matrix with all its singular values at most one (but for ε)."""
    gram = x @ x.conj().T
    if kind == "frobenius":
        return quotient(x, np.linalg.norm(x) + eps)
    if kind == "spectral":
        return quotient(x, np.linalg.svd(x, compute_uv=False).max() + eps)
    if kind == "aol":
        return quotient(x, np.sqrt(np.maximum(np.abs(gram).sum(axis=1, keepdims=True), eps)))
    if kind == "schatten":
        return quotient(x, np.sqrt(np.maximum(np.linalg.norm(gram), eps)))
    raise ValueError(kind)


def orthogonalized(x, coefficients, kind, eps):
    """Newton and Schulz's iteration X ← a X + b (X Xᵀ) X + c (X Xᵀ)² X, for a matrix that is not tall."""
    if x.shape[0] > x.shape[1]:
        return orthogonalized(x.T, coefficients, kind, eps).T
    x = preconditioned(x, kind, eps)
    for a, b, c in coefficients:
        gram = x @ x.conj().T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


class Muon:
    def __init__(
        self,
        learning_rate,
        ns_coeffs=PRESETS["standard"],
        ns_steps=5,
        beta=0.95,
        eps=1e-8,
        weight_decay=0.0,
        weight_decay_mask=None,
        mu_dtype=None,
        *,
        nesterov=True,
        adaptive=False,
        preconditioning="frobenius",
        adam_b1=0.9,
        adam_b2=0.999,
        adam_eps_root=0.0,
        adam_weight_decay=0.0,
        adam_learning_rate=None,
        muon_weight_dimension_numbers=None,
        consistent_rms=None,
    ):
        coefficients = PRESETS[ns_coeffs] if isinstance(ns_coeffs, str) else ns_coeffs
        # Coefficients for each step are themselves the number of steps.
        self.coefficients = coefficients if np.ndim(coefficients) == 2 else [coefficients] * ns_steps
        self.learning_rate = learning_rate
        self.beta = beta
        self.eps = eps
        self.weight_decay = weight_decay
        self.weight_decay_mask = weight_decay_mask
        self.mu_dtype = mu_dtype
        self.nesterov = nesterov
        self.adaptive = adaptive
        self.preconditioning = preconditioning
        self.consistent_rms = consistent_rms
        self.dimension_numbers = muon_weight_dimension_numbers
        self.adam = Adamw(
            learning_rate if adam_learning_rate is None else adam_learning_rate,
            adam_b1,
            adam_b2,
            eps,
            adam_eps_root,
            mu_dtype,
            adam_weight_decay,
            nesterov=nesterov,
        )

    def axes(self, param):
        """The axes that are the matrix's rows and its columns, or None for AdamW."""
        numbers = self.dimension_numbers
        if numbers is None:
            return ((0,), (1,)) if np.ndim(param) == 2 else None
        if callable(numbers):
            numbers = numbers(param)
        if numbers is None:
            return None
        sides = np.atleast_1d(numbers.reduction_axis), np.atleast_1d(numbers.output_axis)
        return tuple(tuple(int(axis) % np.ndim(param) for axis in side) for side in sides)

    def init(self, param):
        return {"count": 0, "mu": wide(param), "nu": None} if self.axes(param) else self.adam.init(param)

    def step(self, grad, param, state):
        axes = self.axes(param)
        if axes is None:
            return self.adam.step(grad, param, state)
        step = following(state["count"])
        mu = self.beta * state["mu"] + (1 - self.beta) * grad
        mu_hat = looking_ahead(mu, grad, self.beta, step) if self.nesterov else mu / (1 - self.beta**step)
        direction = self.orthogonal(mu_hat, *axes)
        if self.adaptive:
            direction = np.sum(mu_hat.conj() * direction) * direction
        fan_in, fan_out = (prod(np.shape(param)[axis] for axis in side) for side in axes)
        if self.consistent_rms is None:
            direction = np.sqrt(max(1.0, fan_out / max(fan_in, 1))) * direction
        else:
            direction = self.consistent_rms * np.sqrt(max(fan_in, fan_out)) * direction
        direction = decayed(direction, param, self.weight_decay, self.weight_decay_mask, state["count"])
        rate = signed_rate(self.learning_rate, state["count"])
        return rate * direction, {"count": step, "mu": rounded(mu, self.mu_dtype), "nu": None}

    def orthogonal(self, x, rows, columns):
        """Every matrix in an array, whose rows and columns may be several axes each, orthogonalized."""
        if x.size == 0:
            return x
        batch = tuple(axis for axis in range(x.ndim) if axis not in rows + columns)
        order = batch + rows + columns
        turned = x.transpose(order)
        height = prod(x.shape[axis] for axis in rows)
        width = prod(x.shape[axis] for axis in columns)
        matrices = turned.reshape(-1, height, width)
        results = [orthogonalized(each, self.coefficients, self.preconditioning, self.eps) for each in matrices]
        return np.stack(results).reshape(turned.shape).transpose(np.argsort(order))
