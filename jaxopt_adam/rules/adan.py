"""Adan (Xie et al., 2022)."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from jaxopt_adam._averages import Denominator, abs_sq, bias_correction, ema, finite_product, finite_quotient, squarable
from jaxopt_adam._hyperparameters import Decay, LearningRate, Mask, Moments, NonNegative, WeightDecay
from jaxopt_adam._optimizer import optimizer
from jaxopt_adam._rule import Moment, leafwise


class AdanState(NamedTuple):
    """The state of :func:`adan`.

    Attributes:
        count: the number of updates done, int32.
        m: the average of g, a tree like the parameters.
        v: the average of the differences of successive gradients, likewise.
        n: the average of ``|g + b2 (g − previous g)|²``, likewise, real.
        g: the previous gradient, likewise.
    """

    count: Array
    m: Any
    v: Any
    n: Any
    g: Any


@optimizer
def adan(
    learning_rate: LearningRate,
    b1: Decay = 0.98,
    b2: Decay = 0.92,
    b3: Decay = 0.99,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 1e-8,
    weight_decay: WeightDecay = 0.0,
    mask: Mask = None,
    *,
    moments: Moments = "float32",
) -> optax.GradientTransformationExtraArgs:
    r"""Adan: Adam with Nesterov's look ahead, estimated from the differences of successive gradients.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) (g_t - g_{t-1}) \\
        n_t &= \beta_3 n_{t-1} + (1 - \beta_3) |g_t + \beta_2 (g_t - g_{t-1})|^2 \\
        u_t &= -\alpha \left(\frac{\hat m_t + \beta_2 \hat v_t}{\sqrt{\hat n_t + \bar\varepsilon} + \varepsilon}
               + \lambda \theta_{t-1}\right)

    with :math:`g_0 = g_1`. Hats denote debiased averages. The decays are written as for :func:`adam`: each β here is
    1 − β in the paper. The averages start at zero and are debiased, as in the authors' code; the paper starts them from
    the first gradient. The weight decay is that of :func:`adamw`; the paper divides by :math:`1 + \alpha \lambda`
    instead.

    **Not optax's numbers:** :func:`optax.adan` weighs the differences by :math:`1 - \beta_2`, that is by 0.08 with the
    default `b2`, where the paper and the authors' code weigh them by 0.92. The two agree for ``b2=0.5``.

    Choose it for large batches, if there is room for twice Adam's state.

    Args:
        learning_rate: α ≥ 0, a number, an array, a schedule, or a tree of these for parts of the parameters. None gives
            the direction alone, unscaled and with the sign of the gradient.
        b1: β₁ in [0, 1), the decay of the average of the gradients.
        b2: β₂ in [0, 1), the decay of the average of their differences.
        b3: β₃ in [0, 1), the decay of the average of the squares.
        eps: ε ≥ 0, in units of the gradient.
        eps_root: ε̄ ≥ 0, in units of the squared gradient.
        weight_decay: λ ≥ 0, a number, a schedule, or a tree of these; decoupled, so times α.
        mask: which leaves decay: a tree of booleans, a prefix of one, or a function from the parameters to one; None
            for all.
        moments: the storage of the moments: "float32", "bfloat16", "int8", "int4", or another in :doc:`/memory`.

    Returns:
        An :class:`~jaxopt_adam.Optimizer` with :class:`AdanState`. Its `update` needs `params`, unless the
        weight decay is 0.0 and not traced.

    References:
        Xie et al., Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models, 2022, algorithm 1.

    Example:
        >>> from jaxopt_adam import adan, minimize
        >>> print(minimize(lambda x: (x - 3.0) ** 2, 0.0, adan(0.1), tol=1e-9).x.round(2))
        3.0
    """
    denominator = Denominator(eps, eps_root)

    def scalars(step):
        c1, c2, c3 = (bias_correction(decay, step.count) for decay in (b1, b2, b3))
        return {
            "weight_of_m": -step.rate / c1,
            "weight_of_v": -step.rate * b2 / c2,
            "c3": c3,
            "b2": b2,
            "denominator": denominator,
        }

    def first(grad, old, step):
        difference = jnp.where(step.count > 1, grad - old.g, 0)
        m, v = ema(old.m, grad, b1), ema(old.v, difference, b2)
        n = ema(old.n, abs_sq(grad + finite_product(step.b2, difference)), b3)
        # The new g, written over the old one, comes last.
        count, v, n = step.keep((step.count, v, n))
        return old._replace(m=m, v=v, n=n, g=squarable(step.again(step.grad, count)))

    def second(grad, old, new, step):
        direction = finite_product(step.weight_of_m, new.m) + finite_product(step.weight_of_v, new.v)
        return direction / step.denominator(finite_quotient(new.n, step.c3))

    return leafwise(
        AdanState,
        first,
        second,
        scalars,
        storage=moments,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        mask=mask,
        m=Moment(over="n", denominator=denominator),
        v=Moment(over="n", denominator=denominator),
        n=Moment(real=True, decay=b3),
        g=Moment(over="n", denominator=denominator),
    )
