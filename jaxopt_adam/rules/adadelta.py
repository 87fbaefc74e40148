"""AdaDelta (Zeiler, 2012)."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from jaxopt_adam._averages import abs_sq, ema, root
from jaxopt_adam._hyperparameters import Decay, LearningRate, Mask, Moments, NonNegative, WeightDecay
from jaxopt_adam._optimizer import optimizer
from jaxopt_adam._rule import Moment, leafwise


class AdadeltaState(NamedTuple):
    """The state of :func:`adadelta`.

    Attributes:
        count: the number of updates done, int32.
        e_g: the average of ``|g|²``, a tree like the parameters, real.
        e_x: the average of the squared steps ``|Δx|²`` (before the learning rate), likewise.
    """

    count: Array
    e_g: Any
    e_x: Any


@optimizer
def adadelta(
    learning_rate: LearningRate = None,
    rho: Decay = 0.9,
    eps: NonNegative = 1e-6,
    weight_decay: WeightDecay = 0.0,
    weight_decay_mask: Mask = None,
    *,
    moments: Moments = "float32",
) -> optax.GradientTransformationExtraArgs:
    r"""AdaDelta: the size of past steps scales the gradient, so that a step has the units of the parameter.

    .. math::
        E[g^2]_t &= \rho E[g^2]_{t-1} + (1 - \rho) |g_t|^2 \\
        \Delta x_t &= \frac{\sqrt{E[\Delta x^2]_{t-1} + \varepsilon}}{\sqrt{E[g^2]_t + \varepsilon}} \, g_t \\
        E[\Delta x^2]_t &= \rho E[\Delta x^2]_{t-1} + (1 - \rho) |\Delta x_t|^2 \\
        u_t &= -\alpha \Delta x_t

    Choose it where no learning rate can be found: with α = 1 it finds the size of its steps by itself, though
    slowly.

    Args:
        learning_rate: α ≥ 0, a number, an array, a schedule, or a tree of these; the paper's is 1. None gives
            :math:`+\Delta x_t`.
        rho: ρ in [0, 1), the decay of both averages.
        eps: ε ≥ 0; it gives the first steps their size, about :math:`\sqrt{\varepsilon / (1 - \rho)}`.
        weight_decay: λ ≥ 0, a number, a schedule or a tree of these; :math:`\lambda x` is added to the gradient.
        weight_decay_mask: which leaves decay: a tree of booleans, a prefix of one, or a function from the parameters
            to one; None for all.
        moments: the storage of the moments: "float32", "bfloat16", "int8", "int4", or another in :doc:`/memory`.

    Returns:
        An :class:`~jaxopt_adam.Optimizer` with :class:`AdadeltaState`. Its `update` needs `params`, unless the weight
        decay is 0.0 and not traced.

    References:
        Zeiler, ADADELTA: An Adaptive Learning Rate Method, 2012, algorithm 1.

    Example:
        >>> from jaxopt_adam import adadelta, minimize
        >>> print(minimize(lambda x: (x - 3.0) ** 2, 0.0, adadelta(10.0), tol=1e-9).x.round(2))
        3.0
    """

    def scalars(step):
        return {"eps": eps}

    def delta(grad, e_g, e_x, step):
        return jnp.sqrt(e_x + step.eps) / root(e_g, step.eps) * (grad + step.decay)

    def first(grad, old, step):
        e_g = ema(old.e_g, abs_sq(grad + step.decay), rho)
        return old._replace(e_g=e_g, e_x=ema(old.e_x, abs_sq(delta(grad, e_g, old.e_x, step)), rho))

    def second(grad, old, new, step):
        return -step.rate * delta(grad, new.e_g, old.e_x, step)

    return leafwise(
        AdadeltaState,
        first,
        second,
        scalars,
        storage=moments,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        mask=weight_decay_mask,
        sees_to_decay=True,
        e_g=Moment(real=True, decay=rho),
        e_x=Moment(real=True, decay=rho),
    )
