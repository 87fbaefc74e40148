"""AdEMAMix (Pagliardini et al., 2024)."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from jaxopt_adam import _hyperparameters as kinds
from jaxopt_adam._averages import Denominator, Shares, abs_sq, bias_correction, ema, weighted
from jaxopt_adam._optimizer import optimizer
from jaxopt_adam._rule import Moment, leafwise


class AdemamixState(NamedTuple):
    """The state of :func:`ademamix`.

    Attributes:
        count: the number of updates done, int32.
        m1: the fast average of g, a tree like the parameters.
        m2: the slow average of g, likewise.
        nu: the average of ``|g|²``, likewise, real.
    """

    count: Array
    m1: Any
    m2: Any
    nu: Any


@optimizer
def ademamix(
    learning_rate: kinds.LearningRate,
    b1: kinds.Decay = 0.9,
    b2: kinds.Decay = 0.999,
    b3: kinds.ScheduledDecay = 0.9999,
    alpha: kinds.ScheduledNonNegative = 5.0,
    eps: kinds.NonNegative = 1e-8,
    eps_root: kinds.NonNegative = 0.0,
    mu_dtype: kinds.OptionalDtype = None,
    weight_decay: kinds.WeightDecay = 0.0,
    mask: kinds.Mask = None,
    *,
    moments: kinds.Moments = "float32",
) -> optax.GradientTransformationExtraArgs:
    r"""AdEMAMix: :func:`adamw` with a second, slow average of the gradients beside the fast one.

    .. math::
        m^{(1)}_t &= \beta_1 m^{(1)}_{t-1} + (1 - \beta_1) g_t, & \hat m^{(1)}_t &= m^{(1)}_t / (1 - \beta_1^t) \\
        m^{(2)}_t &= \beta_3 m^{(2)}_{t-1} + (1 - \beta_3) g_t \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) |g_t|^2, & \hat v_t &= v_t / (1 - \beta_2^t) \\
        u_t &= -\eta \left(\frac{\hat m^{(1)}_t + \alpha m^{(2)}_t}{\sqrt{\hat v_t + \bar\varepsilon} + \varepsilon}
               + \lambda \theta_{t-1}\right)

    The slow average is not debiased. Debiased, it would at first be the mean of a few gradients, with α times the
    weight of the fast average. Its influence therefore grows as slowly as it fills. In long runs the paper also lets β₃
    and α rise. After a single huge gradient the slow average outlasts the second moment, and the steps become huge.
    Clip gradients if huge ones may occur.

    Choose it over :func:`adamw` for long runs on data that do not change, where gradients of ten thousand steps ago
    still help, at the price of a third moment. In short runs take a smaller β₃, such as 0.999.

    Args:
        learning_rate: η ≥ 0, a number, an array, a schedule, or a tree of these. None gives the direction alone,
            unscaled and with the sign of the gradient.
        b1: β₁ in [0, 1), the decay of the fast average.
        b2: β₂ in [0, 1), the decay of the average of the squares.
        b3: β₃ in [0, 1), the decay of the slow average, or a schedule.
        alpha: α ≥ 0, the weight of the slow average, or a schedule.
        eps: ε ≥ 0, in units of the gradient.
        eps_root: ε̄ ≥ 0, in units of the squared gradient.
        mu_dtype: the storage dtype of `m1` and `m2` (in optax of `nu` too); None for the dtype of the arithmetic,
            float32 or wider.
        weight_decay: λ ≥ 0, a number, a schedule, or a tree of these; decoupled, so times η.
        mask: which leaves decay: a tree of booleans, a prefix of one, or a function to one; None for all.
        moments: the storage of the moments: "float32", "bfloat16", "int8", "int4", or another in :doc:`/memory`.

    Returns:
        An :class:`~jaxopt_adam.Optimizer` with :class:`AdemamixState`. Its `update` needs `params`, unless the
        weight decay is 0.0 and not traced.

    References:
        Pagliardini et al., The AdEMAMix Optimizer: Better, Faster, Older, 2024, algorithm 1.

    Example:
        >>> from jaxopt_adam import ademamix, minimize
        >>> print(minimize(lambda x: (x - 3.0) ** 2, 0.0, ademamix(0.1, b3=0.99), tol=1e-9).x.round(2))
        3.0
    """
    denominator = Denominator(eps, eps_root)

    def scalars(step):
        c1, c2 = bias_correction(b1, step.count), bias_correction(b2, step.count)
        scale = -step.rate * jnp.sqrt(c2)
        return {
            "b3": Shares.of(kinds.scheduled(b3, step.count - 1, "b3")),
            "weights": (scale / c1, scale * kinds.scheduled(alpha, step.count - 1, "alpha")),
            "denominator": denominator.times(c2),
        }

    def first(grad, old, step):
        m1, m2 = ema(old.m1, grad, b1), ema(old.m2, grad, step.b3)
        return old._replace(m1=m1, m2=m2, nu=ema(old.nu, abs_sq(grad), b2))

    def second(grad, old, new, step):
        return weighted(new.m1, new.m2, *step.weights) / step.denominator(new.nu)

    return leafwise(
        AdemamixState,
        first,
        second,
        scalars,
        storage=moments,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        mask=mask,
        m1=Moment(dtype=mu_dtype, over="nu", denominator=denominator),
        m2=Moment(dtype=mu_dtype, over="nu", denominator=denominator),
        nu=Moment(real=True, decay=b2),
    )
