"""Yogi (Zaheer et al., 2018)."""

import jax.numpy as jnp
import optax

from jaxopt_adam._averages import Denominator, abs_sq, bias_correction, ema, finite_product, finite_quotient
from jaxopt_adam._hyperparameters import Decay, LearningRate, Moments, NonNegative
from jaxopt_adam._optimizer import optimizer
from jaxopt_adam._rule import AdamState, Moment, leafwise


@optimizer
def yogi(
    learning_rate: LearningRate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-3,
    *,
    moments: Moments = "float32",
) -> optax.GradientTransformationExtraArgs:
    r"""Yogi: Adam whose second moment moves towards g² by a fixed fraction of g², however far away it is.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, & \hat m_t &= m_t / (1 - \beta_1^t) \\
        v_t &= v_{t-1} - (1 - \beta_2) \operatorname{sign}(v_{t-1} - |g_t|^2) |g_t|^2, &
        \hat v_t &= v_t / (1 - \beta_2^t) \\
        u_t &= -\alpha \frac{\hat m_t}{\sqrt{\hat v_t} + \varepsilon}

    As in optax both moments start at 1e-6 and are debiased all the same; the paper corrects no bias.

    The second moment falls by a fraction of the current squared gradient. After a single huge gradient it therefore
    hardly falls, and the element stands still. Clip gradients if huge ones may occur.

    Choose it for sparse gradients: in steps without gradient Adam's second moment falls, and its steps grow, too fast.

    Args:
        learning_rate: α ≥ 0, a number, an array, a schedule, or a tree of these for parts of the parameters. None gives
            the direction alone, unscaled and with the sign of the gradient.
        b1: β₁ in [0, 1), the decay of the average of the gradients.
        b2: β₂ in [0, 1); 1 − β₂ is the fraction of g² by which the second moment moves.
        eps: ε ≥ 0, in units of the gradient.
        moments: the storage of the moments: "float32", "bfloat16", "int8", "int4", or another in :doc:`/memory`.

    Returns:
        An :class:`~jaxopt_adam.Optimizer` with :class:`AdamState`.

    References:
        Zaheer et al., Adaptive Methods for Nonconvex Optimization, 2018, algorithm 2.

    Example:
        >>> from jaxopt_adam import yogi, minimize
        >>> print(minimize(lambda x: (x - 3.0) ** 2, 0.0, yogi(0.1), tol=1e-9).x.round(2))
        3.0
    """
    denominator = Denominator(eps)

    def scalars(step):
        c1, c2 = bias_correction(b1, step.count), bias_correction(b2, step.count)
        return {"scale": -step.rate / c1, "c2": c2, "share": 1 - b2, "denominator": denominator}

    def first(grad, old, step):
        square = abs_sq(grad)
        nu = old.nu - finite_product(step.share * jnp.sign(old.nu - square), square)
        return old._replace(mu=ema(old.mu, grad, b1), nu=nu)

    def second(grad, old, new, step):
        return step.scale * new.mu / step.denominator(finite_quotient(new.nu, step.c2))

    return leafwise(
        AdamState,
        first,
        second,
        scalars,
        storage=moments,
        learning_rate=learning_rate,
        mu=Moment(1e-6, over="nu", denominator=denominator),
        nu=Moment(1e-6, real=True),
    )
