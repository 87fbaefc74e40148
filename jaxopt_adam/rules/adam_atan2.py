"""Adam-atan2 (Everett et al., 2024)."""

import math

import jax.numpy as jnp
import optax

from jaxopt_adam._arc_tangent import atan2
from jaxopt_adam._averages import abs_sq, bias_correction, ema
from jaxopt_adam._hyperparameters import Decay, LearningRate, Mask, Moments, NonNegative, WeightDecay
from jaxopt_adam._optimizer import optimizer
from jaxopt_adam._rule import AdamState, Moment, leafwise


@optimizer
def adam_atan2(
    learning_rate: LearningRate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    a: NonNegative = 4 / math.pi,
    b: NonNegative = 1.0,
    weight_decay: WeightDecay = 0.0,
    mask: Mask = None,
    *,
    moments: Moments = "float32",
) -> optax.GradientTransformationExtraArgs:
    r"""Adam-atan2: Adam without ε, whose updates do not change when all gradients are multiplied by a positive number.

    .. math::
        u_t = -\alpha \left(a \operatorname{atan2}\left(\hat m_t, b \sqrt{\hat v_t}\right)
              + \lambda \theta_{t-1}\right)

    with the :math:`\hat m_t` and :math:`\hat v_t` of :func:`adam`. For small ratios it is :func:`adam`'s update times
    :math:`a / b`; no update is larger than :math:`\alpha a \pi / 2`. With the default a = 4 / π a ratio of one
    gives a step of α.

    Choose it where the gradients' size is unknown or so small that ε would matter.

    Args:
        learning_rate: α ≥ 0, a number, an array, a schedule, or a tree of these for parts of the parameters. None gives
            the direction alone, unscaled and with the sign of the gradient.
        b1: β₁ in [0, 1), the decay of the average of the gradients.
        b2: β₂ in [0, 1), the decay of the average of their squares.
        a: the factor before the arc tangent, ≥ 0.
        b: the factor of the root within it, ≥ 0.
        weight_decay: λ ≥ 0, a number, a schedule, or a tree of these; decoupled, so times α.
        mask: which leaves decay: a tree of booleans, a prefix of one, or a function from the parameters to one; None
            for all.
        moments: the storage of the moments: "float32", "bfloat16", "int8", "int4", or another in :doc:`/memory`.

    Returns:
        An :class:`~jaxopt_adam.Optimizer` with :class:`AdamState`. Its `update` needs `params`, unless the
        weight decay is 0.0 and not traced.

    References:
        Everett et al., Scaling Exponents Across Parameterizations and Optimizers, 2024, section 5.

    Example:
        >>> from jaxopt_adam import adam_atan2, minimize
        >>> print(minimize(lambda x: (x - 3.0) ** 2, 0.0, adam_atan2(0.1), tol=1e-9).x.round(2))
        3.0
    """

    def scalars(step):
        c1, c2 = bias_correction(b1, step.count), bias_correction(b2, step.count)
        return {"scale": -step.rate * a, "weight_of_root": b * c1 / jnp.sqrt(c2)}

    def first(grad, old, step):
        return old._replace(mu=ema(old.mu, grad, b1), nu=ema(old.nu, abs_sq(grad), b2))

    def second(grad, old, new, step):
        return step.scale * atan2(new.mu, step.weight_of_root * jnp.sqrt(new.nu))

    return leafwise(
        AdamState,
        first,
        second,
        scalars,
        storage=moments,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        mask=mask,
        real_leaves=True,
        mu=Moment(over="nu"),
        nu=Moment(real=True, decay=b2),
    )
