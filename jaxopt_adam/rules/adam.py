"""Adam (Kingma & Ba, 2015)."""

import optax

from jaxopt_adam._data import rule_of
from jaxopt_adam._hyperparameters import Decay, Flag, LearningRate, Moments, NonNegative, OptionalDtype
from jaxopt_adam._optimizer import optimizer
from jaxopt_adam.rules.adamw import adamw


@optimizer
def adam(
    learning_rate: LearningRate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    mu_dtype: OptionalDtype = None,
    *,
    nesterov: Flag = False,
    moments: Moments = "float32",
) -> optax.GradientTransformationExtraArgs:
    r"""Adam: the average of the gradients over the root of the average of their squares, both debiased.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, & \hat m_t &= m_t / (1 - \beta_1^t) \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) |g_t|^2, & \hat v_t &= v_t / (1 - \beta_2^t) \\
        u_t &= -\alpha \frac{\hat m_t}{\sqrt{\hat v_t + \bar\varepsilon} + \varepsilon}

    With `nesterov` (NAdam) the average looks one step ahead:

    .. math:: \hat m_t = \frac{\beta_1 m_t}{1 - \beta_1^{t+1}} + \frac{(1 - \beta_1) g_t}{1 - \beta_1^t}

    As in optax and PyTorch, and unlike in Dozat's algorithm, :math:`\hat v_t` has no further factor :math:`\beta_2`.

    Choose it first: it needs the least tuning of all. With weight decay take :func:`adamw`.

    Args:
        learning_rate: α ≥ 0, a number, an array, a schedule, or a tree of these for parts of the parameters; about the
            size of each element's step. The paper's is 0.001. None gives the direction alone, unscaled and with the
            sign of the gradient.
        b1: β₁ in [0, 1), the decay of the average of the gradients.
        b2: β₂ in [0, 1), the decay of the average of their squares.
        eps: ε ≥ 0, in units of the gradient; elements whose gradients are far below it get smaller steps.
        eps_root: ε̄ ≥ 0, in units of the squared gradient; smooths the update where gradients are near zero.
        mu_dtype: the storage dtype of `mu`, dithered if it has 16 bits; None for the dtype of the arithmetic, float32
            or wider. (With None, optax stores both moments in the dtype of the parameter. In bfloat16 the moments then
            lose small changes.)
        nesterov: whether to look ahead.
        moments: the storage of the moments: "float32", "bfloat16", "int8", "int4", or another in :doc:`/memory`.

    Returns:
        An :class:`~jaxopt_adam.Optimizer` with :class:`AdamState`.

    References:
        Kingma & Ba, Adam: A Method for Stochastic Optimization, 2015, algorithm 1; Dozat, Incorporating Nesterov
        Momentum into Adam, 2016.

    Example:
        >>> from jaxopt_adam import adam, minimize
        >>> print(minimize(lambda x: (x - 3.0) ** 2, 0.0, adam(0.1), tol=1e-9).x.round(2))
        3.0
    """
    return rule_of(adamw)(
        learning_rate, b1, b2, eps, eps_root, mu_dtype, weight_decay=0.0, nesterov=nesterov, moments=moments
    )
