"""AdaMax (Kingma & Ba, 2015)."""

import optax

from jaxopt_adam._data import rule_of
from jaxopt_adam._hyperparameters import Decay, LearningRate, Moments, NonNegative
from jaxopt_adam._optimizer import optimizer
from jaxopt_adam.rules.adamaxw import adamaxw


@optimizer
def adamax(
    learning_rate: LearningRate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    *,
    moments: Moments = "float32",
) -> optax.GradientTransformationExtraArgs:
    r"""AdaMax: Adam with a decayed maximum in place of the second moment's root.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        n_t &= \max(\beta_2 n_{t-1}, |g_t| + \varepsilon) \\
        u_t &= -\alpha \frac{m_t}{(1 - \beta_1^t) \, n_t}

    Choose it where rare large gradients matter, as for embeddings: a maximum does not average them away, and
    squares nothing that could overflow.

    Args:
        learning_rate: α ≥ 0, a number, an array, a schedule, or a tree of these for parts of the parameters. None gives
            the direction alone, unscaled and with the sign of the gradient.
        b1: β₁ in [0, 1), the decay of the average of the gradients.
        b2: β₂ in [0, 1), the decay of the maximum of their sizes.
        eps: ε ≥ 0, in units of the gradient; the paper has none.
        moments: the storage of the moments: "float32", "bfloat16", "int8", "int4", or another in :doc:`/memory`.

    Returns:
        An :class:`~jaxopt_adam.Optimizer` with :class:`AdamaxState`.

    References:
        Kingma & Ba, Adam: A Method for Stochastic Optimization, 2015, algorithm 2.

    Example:
        >>> from jaxopt_adam import adamax, minimize
        >>> print(minimize(lambda x: (x - 3.0) ** 2, 0.0, adamax(0.1), tol=1e-9).x.round(2))
        3.0
    """
    return rule_of(adamaxw)(learning_rate, b1, b2, eps, weight_decay=0.0, moments=moments)
