"""LaProp (Ziyin, Wang & Ueda, 2020)."""

from typing import Any, NamedTuple

import optax
from jax import Array

from jaxopt_adam._averages import Denominator, abs_sq, bias_correction, ema, finite_quotient
from jaxopt_adam._hyperparameters import Decay, LearningRate, Mask, Moments, NonNegative, WeightDecay
from jaxopt_adam._optimizer import optimizer
from jaxopt_adam._rule import Moment, leafwise


class LapropState(NamedTuple):
    """The state of :func:`laprop`.

    Attributes:
        count: the number of updates done, int32.
        mu: the average of the normalized gradients, a tree like the parameters.
        nu: the average of ``|g|²``, a tree like the parameters, real.
    """

    count: Array
    mu: Any
    nu: Any


@optimizer
def laprop(
    learning_rate: LearningRate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-15,
    weight_decay: WeightDecay = 0.0,
    mask: Mask = None,
    *,
    moments: Moments = "float32",
) -> optax.GradientTransformationExtraArgs:
    r"""LaProp: gradients that are normalized first and then averaged, so that momentum and adaptivity do not interfere.

    .. math::
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) |g_t|^2, & \hat v_t &= v_t / (1 - \beta_2^t) \\
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) \frac{g_t}{\sqrt{\hat v_t} + \varepsilon}, &
        \hat m_t &= m_t / (1 - \beta_1^t) \\
        u_t &= -\alpha (\hat m_t + \lambda \theta_{t-1})

    Choose it over :func:`adam` when a large β₁ or a small β₂ makes Adam unstable: the update stays bounded for any two
    decays.

    Args:
        learning_rate: α ≥ 0, a number, an array, a schedule, or a tree of these for parts of the parameters. None gives
            the direction alone, unscaled and with the sign of the gradient.
        b1: β₁ in [0, 1), the decay of the average of the normalized gradients.
        b2: β₂ in [0, 1), the decay of the average of the squared gradients.
        eps: ε ≥ 0, in units of the gradient.
        weight_decay: λ ≥ 0, a number, a schedule, or a tree of these; decoupled, so times α.
        mask: which leaves decay: a tree of booleans, a prefix of one, or a function from the parameters to one; None
            for all.
        moments: the storage of the moments: "float32", "bfloat16", "int8", "int4", or another in :doc:`/memory`.

    Returns:
        An :class:`~jaxopt_adam.Optimizer` with :class:`LapropState`. Its `update` needs `params`, unless the
        weight decay is 0.0 and not traced.

    References:
        Ziyin, Wang & Ueda, LaProp: Separating Momentum and Adaptivity in Adam, 2020, algorithm 1.

    Example:
        >>> from jaxopt_adam import laprop, minimize
        >>> print(minimize(lambda x: (x - 3.0) ** 2, 0.0, laprop(0.1), tol=1e-9).x.round(2))
        3.0
    """

    def scalars(step):
        c1, c2 = bias_correction(b1, step.count), bias_correction(b2, step.count)
        return {"scale": -step.rate / c1, "c2": c2, "denominator": Denominator(eps)}

    def first(grad, old, step):
        nu = ema(old.nu, abs_sq(grad), b2)
        return old._replace(mu=ema(old.mu, grad / step.denominator(finite_quotient(nu, step.c2)), b1), nu=nu)

    def second(grad, old, new, step):
        return step.scale * new.mu

    return leafwise(
        LapropState,
        first,
        second,
        scalars,
        storage=moments,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        mask=mask,
        mu=Moment(),
        nu=Moment(real=True, decay=b2),
    )
