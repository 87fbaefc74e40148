"""AdaBelief (Zhuang et al., 2020)."""

import optax

from jaxopt_adam._averages import (
    Denominator,
    abs_sq,
    bias_correction,
    debiasing_weights,
    ema,
    finite_quotient,
    squarable,
    weighted,
)
from jaxopt_adam._hyperparameters import Decay, Flag, LearningRate, Moments, NonNegative
from jaxopt_adam._optimizer import optimizer
from jaxopt_adam._rule import AdamState, Moment, leafwise


@optimizer
def adabelief(
    learning_rate: LearningRate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-16,
    eps_root: NonNegative = 1e-16,
    *,
    nesterov: Flag = False,
    moments: Moments = "float32",
) -> optax.GradientTransformationExtraArgs:
    r"""AdaBelief: large steps where the gradient is as expected, small ones where it surprises.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, & \hat m_t &= m_t / (1 - \beta_1^t) \\
        s_t &= \beta_2 s_{t-1} + (1 - \beta_2) |g_t - m_t|^2 + \bar\varepsilon, & \hat s_t &= s_t / (1 - \beta_2^t) \\
        u_t &= -\alpha \frac{\hat m_t}{\sqrt{\hat s_t} + \varepsilon}

    Choose it where steady gradients should make large steps, as the paper does for GANs. It is more sensitive to ε than
    Adam.

    Args:
        learning_rate: α ≥ 0, a number, an array, a schedule, or a tree of these for parts of the parameters. None gives
            the direction alone, unscaled and with the sign of the gradient.
        b1: β₁ in [0, 1), the decay of the average of the gradients.
        b2: β₂ in [0, 1), the decay of the average of their squared deviations from it.
        eps: ε ≥ 0, in units of the gradient.
        eps_root: ε̄ ≥ 0, in units of the squared gradient; added to the average at every step.
        nesterov: whether the average of the gradients looks one step ahead, as in :func:`nadam`.
        moments: the storage of the moments: "float32", "bfloat16", "int8", "int4", or another in :doc:`/memory`.

    Returns:
        An :class:`~jaxopt_adam.Optimizer` with :class:`AdamState`.

    References:
        Zhuang et al., AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed Gradients, 2020, algorithm 2.

    Example:
        >>> from jaxopt_adam import adabelief, minimize
        >>> print(minimize(lambda x: (x - 3.0) ** 2, 0.0, adabelief(0.1), tol=1e-9).x.round(2))
        3.0
    """
    denominator = Denominator(eps)

    def scalars(step):
        weights = debiasing_weights(-step.rate, b1, step.count, nesterov=nesterov)
        c2 = bias_correction(b2, step.count)
        return {"weights": weights, "c2": c2, "eps_root": eps_root, "denominator": denominator}

    def first(grad, old, step):
        mu = step.keep(ema(old.mu, grad, b1))
        surprise = squarable(step.again(step.grad, step.count)) - mu
        return old._replace(mu=mu, nu=step.keep(ema(old.nu, abs_sq(surprise), b2) + step.eps_root))

    def second(grad, old, new, step):
        return weighted(new.mu, grad, *step.weights) / step.denominator(finite_quotient(new.nu, step.c2))

    return leafwise(
        AdamState,
        first,
        second,
        scalars,
        storage=moments,
        learning_rate=learning_rate,
        mu=Moment(over="nu", denominator=denominator, apart=True),
        nu=Moment(real=True, decay=b2),
    )
