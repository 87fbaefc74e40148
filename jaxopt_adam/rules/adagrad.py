"""AdaGrad (Duchi, Hazan & Singer, 2011)."""

from typing import Any, NamedTuple

import optax
from jax import Array

from jaxopt_adam._averages import abs_sq, root
from jaxopt_adam._hyperparameters import LearningRate, Moments, NonNegative
from jaxopt_adam._optimizer import optimizer
from jaxopt_adam._rule import Moment, leafwise


class AdagradState(NamedTuple):
    """The state of :func:`adagrad`.

    Attributes:
        count: the number of updates done, int32.
        sum_of_squares: the sum of ``|g|²`` so far, a tree like the parameters, real.
    """

    count: Array
    sum_of_squares: Any


@optimizer
def adagrad(
    learning_rate: LearningRate,
    initial_accumulator_value: NonNegative = 0.1,
    eps: NonNegative = 1e-7,
    *,
    moments: Moments = "float32",
) -> optax.GradientTransformationExtraArgs:
    r"""AdaGrad: each element's step is divided by the root of the sum of all its squared gradients.

    .. math::
        s_t &= s_{t-1} + |g_t|^2 \\
        u_t &= -\alpha \frac{g_t}{\sqrt{s_t + \varepsilon}}

    Rarely used features keep a large step. The sum only grows, so all steps keep shrinking, and after a single huge
    gradient its element hardly moves again.

    Choose it for sparse features, and for convex problems.

    Args:
        learning_rate: α ≥ 0, a number, an array, a schedule, or a tree of these for parts of the parameters. None gives
            the direction alone (positive).
        initial_accumulator_value: :math:`s_0 \ge 0`.
        eps: ε ≥ 0, in units of the squared gradient; with 0 an element without gradient still gets the update 0.
        moments: the storage of the moments: "float32", "bfloat16", "int8", "int4", or another in :doc:`/memory`.

    Returns:
        An :class:`~jaxopt_adam.Optimizer` with :class:`AdagradState`.

    References:
        Duchi, Hazan & Singer, Adaptive Subgradient Methods for Online Learning and Stochastic Optimization, 2011.

    Example:
        >>> from jaxopt_adam import adagrad, minimize
        >>> print(minimize(lambda x: (x - 3.0) ** 2, 0.0, adagrad(1.0), tol=1e-9).x.round(2))
        3.0
    """

    def scalars(step):
        return {"eps": eps}

    def first(grad, old, step):
        return old._replace(sum_of_squares=old.sum_of_squares + abs_sq(grad))

    def second(grad, old, new, step):
        return -step.rate * grad / root(new.sum_of_squares, step.eps)

    return leafwise(
        AdagradState,
        first,
        second,
        scalars,
        storage=moments,
        learning_rate=learning_rate,
        sum_of_squares=Moment(initial_accumulator_value, real=True),
    )
