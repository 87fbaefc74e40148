"""SOAP (Vyas et al., 2024)."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxopt_adam import hyperparameters as kinds
from jaxopt_adam.averages import bias_correction, ema, root
from jaxopt_adam.matrices import gram, refreshed, rotate
from jaxopt_adam.optimizer import optimizer
from jaxopt_adam.transformation import Moment, per_leaf_transformation


class SoapState(NamedTuple):
    """The state of :func:`soap`.

    Attributes:
        count: the number of updates done, int32.
        mu: the average of g, a tree like the parameters.
        nu: the average of the squares of g in the bases, likewise.
        factors: L and R: for each axis a tree of n × n matrices, None for long axes and for leaves without.
        bases: their eigenvectors, as columns, likewise.
    """

    count: Array
    mu: Any
    nu: Any
    factors: Any
    bases: Any


@optimizer
def soap(
    learning_rate: kinds.LearningRate = 3e-3,
    b1: kinds.Decay = 0.95,
    b2: kinds.Decay = 0.95,
    eps: kinds.NonNegative = 1e-8,
    weight_decay: kinds.WeightDecay = 0.01,
    mask: kinds.Mask = None,
    *,
    shampoo_decay: kinds.OptionalDecay = None,
    precondition_frequency: kinds.Size = 10,
    max_precond_dim: kinds.Size = 10000,
) -> optax.GradientTransformationExtraArgs:
    r"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, & v_t &= \beta_2 v_{t-1} + (1 - \beta_2) (Q_L^T g_t Q_R)^2 \\
        u_t &= -\alpha \left(Q_L \frac{Q_L^T \hat m_t Q_R}{\sqrt{\hat v_t} + \varepsilon} Q_R^T
               + \lambda \theta_{t-1}\right) \\
        L_t &= \beta L_{t-1} + (1 - \beta) g_t g_t^T, & R_t &= \beta R_{t-1} + (1 - \beta) g_t^T g_t

    and every `precondition_frequency` steps :math:`Q_L \leftarrow \operatorname{QR}(L_t Q_L)`, likewise for R. Tensors
    have these for each axis, vectors go without. Choose it where fewer steps are worth such matrices and products.

    As in the authors' code the first gradient only makes the factors and their eigenvectors (in these it is diagonal,
    and Adam would blow up the rounding errors beside the diagonal); its update is zero but for the decay, and Adam
    counts from the next. As in the paper, and unlike there, `nu` stays as it is when the bases move.

    Args:
        learning_rate: α ≥ 0, a number, a schedule, or a tree of these; None gives the direction alone (positive).
        b1: β₁ in [0, 1), the decay of the average of the gradients.
        b2: β₂ in [0, 1), the decay of the average of their squares.
        eps: ε ≥ 0, in units of the gradient.
        weight_decay: λ ≥ 0, a number, a schedule, or a tree of these; decoupled, so times α.
        mask: which leaves decay: a tree of booleans, a prefix, or a function from the parameters to one; None for all.
        shampoo_decay: β in [0, 1), the decay of L and R; None for `b2`.
        precondition_frequency: how many steps a basis is kept, a whole number ≥ 1.
        max_precond_dim: the longest axis that has a factor and a basis, a whole number ≥ 1.

    Returns:
        An :class:`~jaxopt_adam.Optimizer` with :class:`SoapState`. Its `update` needs `params` with a weight decay.

    References:
        Vyas et al., SOAP: Improving and Stabilizing Shampoo using Adam, 2024, algorithm 3.

    Example:
        >>> from jaxopt_adam import soap, minimize
        >>> print(minimize(lambda x: (x - 3.0) ** 2, 0.0, soap(0.1, weight_decay=0.0), tol=1e-9).x.round(2))
        3.0
    """
    factor_decay = b2 if shampoo_decay is None else shampoo_decay

    def shapes(_, shape):
        sides = [(size, size) if size <= max_precond_dim else None for size in shape]
        return sides if len(shape) > 1 and 0 not in shape and any(sides) else None

    def per_step(step, rate):
        # Leaves with bases count a step less; at their step 0, for which 1 stands, the update is not used.
        corrections = [bias_correction(decay, at) for at in (step, jnp.maximum(step - 1, 1)) for decay in (b1, b2)]
        return rate, eps, jnp.where(step == 1, 0, 2 - ((step - 1) % precondition_frequency == 0)), *corrections

    def per_leaf(grad, mu, nu, factors, bases, rate, eps, age, *corrections):
        c1, c2 = corrections[:2] if bases is None else corrections[2:]
        axes = bases or ()
        next_mu, next_nu = ema(mu, grad, b1), ema(nu, jnp.square(rotate(grad, axes)), b2)
        change = rotate(rate / c1 * rotate(next_mu, axes) / (root(next_nu / c2) + eps), axes, back=True)
        if bases is None:
            return change, next_mu, next_nu, None, None
        factors = [f if f is None else ema(f, gram(grad, axis), factor_decay) for axis, f in enumerate(factors)]
        news = jax.tree.map(functools.partial(jnp.where, age == 0), (0.0, mu, nu), (change, next_mu, next_nu))
        return *news, factors, jax.tree.map(functools.partial(refreshed, age), factors, bases)

    return per_leaf_transformation(
        SoapState,
        per_step,
        per_leaf,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        weight_decay_mask=mask,
        real_leaves=True,
        mu=Moment(),
        nu=Moment(),
        factors=Moment(shape=shapes),
        bases=Moment(shape=shapes),
    )
