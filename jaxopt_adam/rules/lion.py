"""Lion (Chen et al., 2023)."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from jaxopt_adam._averages import ema
from jaxopt_adam._hyperparameters import Decay, LearningRate, Mask, Moments, OptionalDtype, WeightDecay
from jaxopt_adam._optimizer import optimizer
from jaxopt_adam._rule import Moment, leafwise


class LionState(NamedTuple):
    """The state of :func:`lion`.

    Attributes:
        count: the number of updates done, int32.
        mu: the average of g, a tree like the parameters.
    """

    count: Array
    mu: Any


@optimizer
def lion(
    learning_rate: LearningRate,
    b1: Decay = 0.9,
    b2: Decay = 0.99,
    mu_dtype: OptionalDtype = None,
    weight_decay: WeightDecay = 1e-3,
    mask: Mask = None,
    *,
    moments: Moments = "float32",
) -> optax.GradientTransformationExtraArgs:
    r"""Lion: the sign of an average, so that every element takes a step of the same size.

    .. math::
        u_t &= -\alpha \left(\operatorname{sign}(\beta_1 m_{t-1} + (1 - \beta_1) g_t) + \lambda \theta_{t-1}\right) \\
        m_t &= \beta_2 m_{t-1} + (1 - \beta_2) g_t

    It has half of Adam's state. Its learning rates are some three to ten times smaller than Adam's, and its weight
    decay is larger by the same factor. (For complex numbers the sign is :math:`z / |z|`.)

    Choose it for large models and batches where memory is short.

    Args:
        learning_rate: α ≥ 0, a number, an array, a schedule, or a tree of these for parts of the parameters. None gives
            the direction alone, unscaled and with the sign of the gradient.
        b1: β₁ in [0, 1), the weight of the past average in the direction.
        b2: β₂ in [0, 1), the decay of the average of the gradients.
        mu_dtype: the storage dtype of `mu`, dithered if it has 16 bits; None for the dtype of the arithmetic, float32
            or wider.
        weight_decay: λ ≥ 0, a number, a schedule, or a tree of these; decoupled, so times α.
        mask: which leaves decay: a tree of booleans, a prefix of one, or a function from the parameters to one; None
            for all.
        moments: the storage of the moments: "float32", "bfloat16", "int8", "int4", or another in :doc:`/memory`.

    Returns:
        An :class:`~jaxopt_adam.Optimizer` with :class:`LionState`. Its `update` needs `params`, unless the
        weight decay is 0.0 and not traced.

    References:
        Chen et al., Symbolic Discovery of Optimization Algorithms, 2023, algorithm 2.

    Example:
        >>> from jaxopt_adam import lion, minimize
        >>> print(minimize(lambda x: (x - 3.0) ** 2, 0.0, lion(0.1), tol=1e-9).x.round(2))
        3.0
    """

    def first(grad, old, step):
        return old._replace(mu=ema(old.mu, grad, b2))

    def second(grad, old, new, step):
        return -step.rate * jnp.sign(ema(old.mu, grad, b1))

    return leafwise(
        LionState,
        first,
        second,
        storage=moments,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        mask=mask,
        mu=Moment(dtype=mu_dtype),
    )
