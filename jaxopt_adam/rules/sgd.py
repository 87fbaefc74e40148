"""Gradient descent, with momentum (Polyak, 1964) or Nesterov's."""

from typing import Any, NamedTuple

import optax
from jax import Array

from jaxopt_adam._averages import accumulate
from jaxopt_adam._hyperparameters import Flag, LearningRate, Moments, OptionalDecay, OptionalDtype
from jaxopt_adam._optimizer import optimizer
from jaxopt_adam._rule import Moment, leafwise


class SgdState(NamedTuple):
    """The state of :func:`sgd`.

    It is the whole state: the trace is ``state.trace``. In optax it is ``state[0].trace``, because the state is that of
    a chain. Here ``state[0].trace`` raises no error: it is a method of the count.

    Attributes:
        count: the number of updates done, int32.
        trace: the decayed sum of the gradients, a tree like the parameters; None without momentum.
    """

    count: Array
    trace: Any = None


@optimizer
def sgd(
    learning_rate: LearningRate,
    momentum: OptionalDecay = None,
    nesterov: Flag = False,
    accumulator_dtype: OptionalDtype = None,
    *,
    moments: Moments = "float32",
) -> optax.GradientTransformationExtraArgs:
    r"""Gradient descent: down the slope, by the gradient times the learning rate.

    .. math:: u_t = -\alpha g_t

    and with momentum :math:`\mu` the step is a decayed sum of the gradients, in which their common part adds up and
    their oscillation cancels:

    .. math::
        s_t &= g_t + \mu s_{t-1} \\
        u_t &= -\alpha s_t \quad\text{or, with } \texttt{nesterov}, \quad u_t = -\alpha (g_t + \mu s_t)

    Whether the gradient is that of all data (batch), of some (mini-batch) or of one example is the caller's choice.

    Choose it where its learning rate and schedule are known, as for convolutional networks with momentum, or as the
    plain case to compare with; it has the smallest state.

    Args:
        learning_rate: α ≥ 0, a number, an array, a schedule, or a tree of these for parts of the parameters. None gives
            the direction alone, unscaled and with the sign of the gradient.
        momentum: μ in [0, 1); None for no momentum and no state for it.
        nesterov: whether to look ahead as Nesterov does; without momentum it has no effect.
        accumulator_dtype: the storage dtype of the trace, dithered if it has 16 bits; None for that of the arithmetic,
            float32 or wider. (With None optax takes the parameter's dtype: in bfloat16 a sum loses gradients below a
            256th of it.)
        moments: the storage of the moments: "float32", "bfloat16", "int8", "int4", or another in :doc:`/memory`.

    Returns:
        An :class:`~jaxopt_adam.Optimizer` with :class:`SgdState`.

    References:
        Polyak, Some methods of speeding up the convergence of iteration methods, 1964; Nesterov, A method for solving
        a convex programming problem with convergence rate O(1/k²), 1983, in the form of Sutskever et al., On the
        importance of initialization and momentum in deep learning, 2013.

    Example:
        >>> from jaxopt_adam import minimize, sgd
        >>> print(minimize(lambda x: (x - 3.0) ** 2, 0.0, sgd(0.1, momentum=0.5), tol=1e-9).x.round(2))
        3.0
    """

    def scalars(step):
        return {"momentum": momentum}

    def first(grad, old, step):
        return old if momentum is None else old._replace(trace=accumulate(old.trace, grad, step.momentum))

    def second(grad, old, new, step):
        if momentum is None:
            return -step.rate * grad
        return -step.rate * (accumulate(new.trace, grad, step.momentum) if nesterov else new.trace)

    return leafwise(
        SgdState,
        first,
        second,
        scalars,
        storage=moments,
        learning_rate=learning_rate,
        trace=None if momentum is None else Moment(dtype=accumulator_dtype),
    )
