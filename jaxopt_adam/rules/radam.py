"""RAdam (Liu et al., 2020)."""

import jax.numpy as jnp
import optax

from jaxopt_adam._averages import (
    Denominator,
    abs_sq,
    bias_correction,
    debiasing_weights,
    ema,
    finite_quotient,
    weighted,
)
from jaxopt_adam._hyperparameters import Decay, Flag, LearningRate, Moments, NonNegative
from jaxopt_adam._optimizer import optimizer
from jaxopt_adam._rule import AdamState, Moment, leafwise


@optimizer
def radam(
    learning_rate: LearningRate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    threshold: NonNegative = 5.0,
    *,
    nesterov: Flag = False,
    moments: Moments = "float32",
) -> optax.GradientTransformationExtraArgs:
    r"""RAdam: Adam with a factor that takes the variance out of its first steps, which is the reason for a warm-up.

    With the :math:`\hat m_t` and :math:`\hat v_t` of :func:`adam`, :math:`\rho_\infty = 2 / (1 - \beta_2) - 1` and
    :math:`\rho_t = \rho_\infty - 2 t \beta_2^t / (1 - \beta_2^t)`,

    .. math::
        u_t = \begin{cases}
          -\alpha \sqrt{\dfrac{(\rho_t - 4)(\rho_t - 2) \rho_\infty}{(\rho_\infty - 4)(\rho_\infty - 2) \rho_t}} \;
            \dfrac{\hat m_t}{\sqrt{\hat v_t + \bar\varepsilon} + \varepsilon} &
            \text{if } \rho_t \ge \text{threshold} \\
          -\alpha \hat m_t & \text{else}
        \end{cases}

    Choose it in place of a warm-up of the learning rate.

    Args:
        learning_rate: α ≥ 0, a number, an array, a schedule, or a tree of these for parts of the parameters. None gives
            the direction alone, unscaled and with the sign of the gradient.
        b1: β₁ in [0, 1), the decay of the average of the gradients.
        b2: β₂ in [0, 1), the decay of the average of their squares.
        eps: ε ≥ 0, in units of the gradient.
        eps_root: ε̄ ≥ 0, in units of the squared gradient.
        threshold: the least ρ_t at which the second moment is used. The paper's is 4. One below 4 acts like 4, because
            the factor is real only for ρ_t above 4.
        nesterov: whether the average of the gradients looks one step ahead, as in :func:`nadam`.
        moments: the storage of the moments: "float32", "bfloat16", "int8", "int4", or another in :doc:`/memory`.

    Returns:
        An :class:`~jaxopt_adam.Optimizer` with :class:`AdamState`.

    References:
        Liu et al., On the Variance of the Adaptive Learning Rate and Beyond, 2020, algorithm 2.

    Example:
        >>> from jaxopt_adam import radam, minimize
        >>> print(minimize(lambda x: (x - 3.0) ** 2, 0.0, radam(0.1), tol=1e-9).x.round(2))
        3.0
    """
    denominator = Denominator(eps, eps_root)

    def scalars(step):
        c2 = bias_correction(b2, step.count)
        limit = 2 / (1 - b2) - 1
        length = _length(1 - b2, step.count.astype(c2.dtype), c2)
        settled = ~((length < threshold) | (length <= 4))  # and so where the length is NaN
        ratio = (length - 4) * (length - 2) * limit / ((limit - 4) * (limit - 2) * length)
        rectified = -step.rate * jnp.where(settled, jnp.sqrt(jnp.where(settled, ratio, 1)), 1)
        weights = debiasing_weights(rectified, b1, step.count, nesterov=nesterov)
        return {"weights": weights, "c2": c2, "settled": settled, "denominator": denominator}

    def first(grad, old, step):
        return old._replace(mu=ema(old.mu, grad, b1), nu=ema(old.nu, abs_sq(grad), b2))

    def second(grad, old, new, step):
        denominator = jnp.where(step.settled, step.denominator(finite_quotient(new.nu, step.c2)), 1)
        return weighted(new.mu, grad, *step.weights) / denominator

    return leafwise(
        AdamState,
        first,
        second,
        scalars,
        storage=moments,
        learning_rate=learning_rate,
        mu=Moment(over="nu", denominator=denominator),
        nu=Moment(real=True, decay=b2),
    )


def _length(share, step, c2):
    """ρ_t for a decay of 1 − `share`: a series in t log β₂ while that is small, then a difference of large numbers."""
    rate = -jnp.log1p(-jnp.asarray(share, c2.dtype))
    age = step * rate
    young = share * (1 / 6 + share * (1 / 12 + share * (19 / 360 + share * (3 / 80 + share * 863 / 30240))))
    young = young + step * (1 - age * (1 / 6 - age**2 * (1 / 360 - age**2 / 15120)))
    small = 0.25 if c2.dtype == jnp.float32 else 0.01
    return jnp.where(age < small, young, 2 / share - 1 - 2 * step * (1 - c2) / c2)
