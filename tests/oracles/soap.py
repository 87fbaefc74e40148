"""SOAP (Vyas et al., 2024, algorithms 3 and 4), debiased, for tensors: a factor and a basis for each axis not too long.

As in the authors' code the first gradient only makes the factors and their eigenvectors, those of the largest
eigenvalues first, so that no gradient is seen in a basis of its own; Adam counts from the second. The momentum is kept
in the space of the parameters and turned at every step; the second moment is in the bases and stays as it is when they
move, or with `sort_by_eigenvalue`, as in the authors' code, goes with the vectors that are put in order before each QR.

The library's clipping of the update is here too: with decays of which the second is not the smaller, Adam's elements in
bases that stay are bounded by Cauchy and Schwarz, and no root mean square of a direction is more than 4 times that.
What it does to rounding errors is not: gradients for this oracle have full rank.

An axis longer than the product of all others plus one leaves its first factor a null space of two dimensions or more.
Its basis is then whatever rounding makes it, and no two implementations need agree.
"""

import numpy as np

from ._common import decayed, following, quotient, signed_rate, square, wide


def outer(grad, axis):
    """G Gᵀ for one axis, contracted over all others."""
    others = [other for other in range(grad.ndim) if other != axis]
    return np.tensordot(grad, grad, axes=(others, others))


def turned(value, bases, back=False):
    """A tensor in the bases, Q_Lᵀ G Q_R for a matrix, or from them back."""
    for axis, basis in enumerate(bases or []):
        if basis is not None:
            value = np.moveaxis(np.tensordot(basis, value, axes=(1 if back else 0, axis)), 0, axis)
    return value


class Soap:
    def __init__(
        self,
        learning_rate=3e-3,
        b1=0.95,
        b2=0.95,
        eps=1e-8,
        weight_decay=0.01,
        mask=None,
        *,
        shampoo_decay=None,
        precondition_frequency=10,
        max_precond_dim=10000,
        sort_by_eigenvalue=False,
    ):
        self.learning_rate = learning_rate
        self.b1 = b1
        self.b2 = b2
        self.eps = eps
        self.weight_decay = weight_decay
        self.mask = mask
        self.shampoo_decay = b2 if shampoo_decay is None else shampoo_decay
        self.precondition_frequency = precondition_frequency
        self.max_precond_dim = max_precond_dim
        self.sort_by_eigenvalue = sort_by_eigenvalue

    def init(self, param):
        short = [size <= self.max_precond_dim for size in np.shape(param)]
        factors = bases = None
        if len(short) >= 2 and any(short):
            factors = [np.zeros((n, n)) if fits else None for n, fits in zip(np.shape(param), short, strict=True)]
            bases = [np.eye(n) if fits else None for n, fits in zip(np.shape(param), short, strict=True)]
        return {"count": 0, "mu": wide(param), "nu": wide(param, real=True), "factors": factors, "bases": bases}

    def step(self, grad, param, state):
        step = following(state["count"])
        rate = signed_rate(self.learning_rate, state["count"])
        mu, nu, factors, bases = (state[name] for name in ("mu", "nu", "factors", "bases"))
        direction = wide(param)
        first = factors is not None and state["count"] == 0
        adam_step = step if factors is None else step - 1
        if not first:
            mu = self.b1 * mu + (1 - self.b1) * grad
            nu = self.b2 * nu + (1 - self.b2) * square(turned(grad, bases))
            mu_hat, nu_hat = mu / (1 - self.b1**adam_step), nu / (1 - self.b2**adam_step)
            direction = turned(quotient(turned(mu_hat, bases), np.sqrt(nu_hat) + self.eps), bases, back=True)
            if factors is not None and self.b1 <= self.b2:
                weights = [(1 - decay) / (1 - decay**adam_step) for decay in (self.b1, self.b2)]
                limit = 4 * np.sqrt(weights[0] / weights[1])
                direction = direction / max(1.0, np.sqrt(np.mean(square(direction))) / limit)
        direction = decayed(direction, param, self.weight_decay, self.mask, state["count"])
        if factors is not None:
            beta = self.shampoo_decay
            factors = [
                None if factor is None else beta * factor + (1 - beta) * outer(grad, axis)
                for axis, factor in enumerate(factors)
            ]
            pairs = list(zip(factors, bases, strict=True))
            if first:
                bases = [None if factor is None else np.linalg.eigh(factor)[1][:, ::-1] for factor in factors]
            elif adam_step % self.precondition_frequency == 0:
                if self.sort_by_eigenvalue:
                    for axis, (factor, basis) in enumerate(pairs):
                        if factor is not None:
                            order = np.argsort(-np.diag(basis.T @ factor @ basis))
                            pairs[axis], nu = (factor, basis[:, order]), np.take(nu, order, axis)
                bases = [None if factor is None else np.linalg.qr(factor @ basis)[0] for factor, basis in pairs]
        return rate * direction, {"count": step, "mu": mu, "nu": nu, "factors": factors, "bases": bases}
