"""AdaMaxW: AdaMax (Kingma & Ba, 2015) with decoupled weight decay."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from jaxopt_adam.averages import bias_correction, ema
from jaxopt_adam.hyperparameters import Decay, LearningRate, Mask, Moments, NonNegative, WeightDecay
from jaxopt_adam.optimizer import optimizer
from jaxopt_adam.transformation import Moment, per_leaf_transformation


class AdamaxState(NamedTuple):
    """The state of :func:`adamax` and :func:`adamaxw`.

    Attributes:
        count: the number of updates done, int32.
        mu: the average of g, a tree like the parameters.
        nu: the decayed maximum of ``|g|``, a tree like the parameters, real.
    """

    count: Array
    mu: Any
    nu: Any


@optimizer
def adamaxw(
    learning_rate: LearningRate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: WeightDecay = 1e-4,
    mask: Mask = None,
    *,
    moments: Moments = "float32",
) -> optax.GradientTransformationExtraArgs:
    r"""AdaMaxW: :func:`adamax` with the decoupled weight decay of :func:`adamw`.

    .. math:: u_t = -\alpha \left(\frac{m_t}{(1 - \beta_1^t) \, n_t} + \lambda \theta_{t-1}\right)

    Choose it over :func:`adamax` whenever the weights should stay small.

    Args:
        learning_rate: α ≥ 0, a number, an array, a schedule, or a tree of these for parts of the parameters; None gives
            the direction alone (positive).
        b1: β₁ in [0, 1), the decay of the average of the gradients.
        b2: β₂ in [0, 1), the decay of the maximum of their sizes.
        eps: ε ≥ 0, in units of the gradient.
        weight_decay: λ ≥ 0, a number, a schedule, or a tree of these; decoupled, so times α.
        mask: which leaves decay: a tree of booleans, a prefix of one, or a function from the parameters to one; None
            for all.
        moments: how the moments rest: "float32", "bfloat16", "int8", "int4", or as in :doc:`/memory`.

    Returns:
        An :class:`~jaxopt_adam.Optimizer` with :class:`AdamaxState`. Its `update` needs `params`, unless the
        weight decay is 0.0 and not traced.

    References:
        Kingma & Ba, Adam: A Method for Stochastic Optimization, 2015; Loshchilov & Hutter, Decoupled Weight Decay
        Regularization, 2019.

    Example:
        >>> from jaxopt_adam import adamaxw, minimize
        >>> print(minimize(lambda x: (x - 3.0) ** 2, 0.0, adamaxw(0.1), tol=1e-9).x.round(2))
        3.0
    """

    def per_step(step, rate):
        return rate / bias_correction(b1, step), b2, eps

    def per_leaf(grad, mu, nu, scale, b2, eps):
        mu = ema(mu, grad, b1)
        nu = jnp.maximum(b2 * nu, jnp.abs(grad) + eps)
        return scale * mu / jnp.maximum(nu, jnp.finfo(nu.dtype).tiny), mu, nu

    return per_leaf_transformation(
        AdamaxState,
        per_step,
        per_leaf,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        weight_decay_mask=mask,
        storage=moments,
        mu=Moment(over="nu"),
        nu=Moment(real=True),
    )
