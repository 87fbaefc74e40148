"""AdaMaxW: AdaMax (Kingma & Ba, 2015) with decoupled weight decay."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from jaxopt_adam._averages import bias_correction, ema
from jaxopt_adam._hyperparameters import Decay, LearningRate, Mask, Moments, NonNegative, WeightDecay
from jaxopt_adam._optimizer import optimizer
from jaxopt_adam._rule import Moment, leafwise


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
        learning_rate: α ≥ 0, a number, an array, a schedule, or a tree of these for parts of the parameters. None gives
            the direction alone, unscaled and with the sign of the gradient.
        b1: β₁ in [0, 1), the decay of the average of the gradients.
        b2: β₂ in [0, 1), the decay of the maximum of their sizes.
        eps: ε ≥ 0, in units of the gradient.
        weight_decay: λ ≥ 0, a number, a schedule, or a tree of these; decoupled, so times α.
        mask: which leaves decay: a tree of booleans, a prefix of one, or a function from the parameters to one; None
            for all.
        moments: the storage of the moments: "float32", "bfloat16", "int8", "int4", or another in :doc:`/memory`.

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

    def scalars(step):
        return {"scale": -step.rate / bias_correction(b1, step.count), "b2": b2, "eps": eps}

    def first(grad, old, step):
        return old._replace(mu=ema(old.mu, grad, b1), nu=jnp.maximum(step.b2 * old.nu, jnp.abs(grad) + step.eps))

    def second(grad, old, new, step):
        return step.scale * new.mu / jnp.maximum(new.nu, jnp.finfo(new.nu.dtype).tiny)

    return leafwise(
        AdamaxState,
        first,
        second,
        scalars,
        storage=moments,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        mask=mask,
        mu=Moment(over="nu", apart=True),
        nu=Moment(real=True, decay=b2),
    )
