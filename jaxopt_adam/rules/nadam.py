"""NAdam (Dozat, 2016), and with decoupled weight decay."""

import optax

from jaxopt_adam._data import rule_of
from jaxopt_adam._hyperparameters import (
    Decay,
    Flag,
    LearningRate,
    Mask,
    Moments,
    NonNegative,
    OptionalDtype,
    WeightDecay,
)
from jaxopt_adam._optimizer import optimizer
from jaxopt_adam.rules.adamw import adamw


@optimizer
def nadam(
    learning_rate: LearningRate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    mu_dtype: OptionalDtype = None,
    *,
    nesterov: Flag = True,
    moments: Moments = "float32",
) -> optax.GradientTransformationExtraArgs:
    r"""NAdam: :func:`adam` with Nesterov's look ahead.

    .. math::
        \hat m_t &= \frac{\beta_1 m_t}{1 - \beta_1^{t+1}} + \frac{(1 - \beta_1) g_t}{1 - \beta_1^t} \\
        u_t &= -\alpha \frac{\hat m_t}{\sqrt{\hat v_t + \bar\varepsilon} + \varepsilon}

    with the :math:`m_t` and :math:`\hat v_t` of :func:`adam`. As in optax, but not in the paper's algorithm,
    :math:`\hat v_t` has no further factor :math:`\beta_2`, and :math:`\beta_1` has no schedule.

    Choose it where :func:`adam` reacts too late; the difference is small.

    Args:
        learning_rate: α ≥ 0, a number, an array, a schedule, or a tree of these for parts of the parameters. None gives
            the direction alone, unscaled and with the sign of the gradient.
        b1: β₁ in [0, 1), the decay of the average of the gradients.
        b2: β₂ in [0, 1), the decay of the average of their squares.
        eps: ε ≥ 0, in units of the gradient.
        eps_root: ε̄ ≥ 0, in units of the squared gradient.
        mu_dtype: the storage dtype of `mu`, dithered if it has 16 bits; None for the dtype of the arithmetic, float32
            or wider.
        nesterov: whether to look ahead at all.
        moments: the storage of the moments: "float32", "bfloat16", "int8", "int4", or another in :doc:`/memory`.

    Returns:
        An :class:`~jaxopt_adam.Optimizer` with :class:`AdamState`.

    References:
        Dozat, Incorporating Nesterov Momentum into Adam, 2016.

    Example:
        >>> from jaxopt_adam import nadam, minimize
        >>> print(minimize(lambda x: (x - 3.0) ** 2, 0.0, nadam(0.1), tol=1e-9).x.round(2))
        3.0
    """
    return rule_of(adamw)(
        learning_rate, b1, b2, eps, eps_root, mu_dtype, weight_decay=0.0, nesterov=nesterov, moments=moments
    )


@optimizer
def nadamw(
    learning_rate: LearningRate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    mu_dtype: OptionalDtype = None,
    weight_decay: WeightDecay = 1e-4,
    mask: Mask = None,
    *,
    nesterov: Flag = True,
    moments: Moments = "float32",
) -> optax.GradientTransformationExtraArgs:
    r"""NAdamW: :func:`nadam` with the decoupled weight decay of :func:`adamw`.

    .. math:: u_t = -\alpha \left(\frac{\hat m_t}{\sqrt{\hat v_t + \bar\varepsilon} + \varepsilon}
              + \lambda \theta_{t-1}\right)

    Choose it where :func:`adamw` reacts too late; the difference is small.

    Args:
        learning_rate: α ≥ 0, a number, an array, a schedule, or a tree of these for parts of the parameters. None gives
            the direction alone, unscaled and with the sign of the gradient.
        b1: β₁ in [0, 1), the decay of the average of the gradients.
        b2: β₂ in [0, 1), the decay of the average of their squares.
        eps: ε ≥ 0, in units of the gradient.
        eps_root: ε̄ ≥ 0, in units of the squared gradient.
        mu_dtype: the storage dtype of `mu`, dithered if it has 16 bits; None for the dtype of the arithmetic, float32
            or wider.
        weight_decay: λ ≥ 0, a number, a schedule, or a tree of these; decoupled, so times α.
        mask: which leaves decay: a tree of booleans, a prefix of one, or a function from the parameters to one; None
            for all.
        nesterov: whether to look ahead at all.
        moments: the storage of the moments: "float32", "bfloat16", "int8", "int4", or another in :doc:`/memory`.

    Returns:
        An :class:`~jaxopt_adam.Optimizer` with :class:`AdamState`. Its `update` needs `params`, unless the
        weight decay is 0.0 and not traced.

    References:
        Dozat, Incorporating Nesterov Momentum into Adam, 2016; Loshchilov & Hutter, Decoupled Weight Decay
        Regularization, 2019.

    Example:
        >>> from jaxopt_adam import nadamw, minimize
        >>> print(minimize(lambda x: (x - 3.0) ** 2, 0.0, nadamw(0.1), tol=1e-9).x.round(2))
        3.0
    """
    return rule_of(adamw)(
        learning_rate, b1, b2, eps, eps_root, mu_dtype, weight_decay, mask, nesterov=nesterov, moments=moments
    )
