"""Rules of the article that the library has in another form: momentum as an average, Adam without bias correction."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

import jaxopt_adam
from jaxopt_adam import Decay, Flag, LearningRate, Moment, NonNegative, abs_sq, ema, leafwise, optimizer


class MomentumState(NamedTuple):
    """The state of :func:`momentum`.

    Attributes:
        count: the number of updates done, int32.
        mu: the average of g, a tree like the parameters.
    """

    count: Array
    mu: Any


class UncorrectedAdamState(NamedTuple):
    """The state of :func:`uncorrected_adam`.

    Attributes:
        count: the number of updates done, int32.
        mu: the average of g, a tree like the parameters.
        nu: the average of ``|g|²``, likewise, real.
    """

    count: Array
    mu: Any
    nu: Any


@optimizer
def momentum(
    learning_rate: LearningRate, b1: Decay = 0.9, bias_correction: Flag = False
) -> optax.GradientTransformationExtraArgs:
    r"""Momentum as the article has it: a step along the average of the gradients.

    .. math:: m_t = \beta m_{t-1} + (1 - \beta) g_t, \qquad u_t = -\alpha m_t

    :func:`~jaxopt_adam.sgd` adds the gradients up instead. It makes the same steps with the learning rate α (1 − β).

    Args:
        learning_rate: α ≥ 0.
        b1: β in [0, 1).
        bias_correction: whether to divide the average by :math:`1 - \beta^t`.

    Returns:
        An :class:`~jaxopt_adam.Optimizer` with :class:`MomentumState`.
    """

    def scalars(step):
        return {"correction": jaxopt_adam.bias_correction(b1, step.count) if bias_correction else None}

    def first(grad, old, step):
        return old._replace(mu=ema(old.mu, grad, b1))

    def second(grad, old, new, step):
        return -step.rate * (new.mu / step.correction if bias_correction else new.mu)

    return leafwise(MomentumState, first, second, scalars, storage="float32", learning_rate=learning_rate, mu=Moment())


@optimizer
def uncorrected_adam(
    learning_rate: LearningRate, b1: Decay = 0.9, b2: Decay = 0.999, eps: NonNegative = 1e-8
) -> optax.GradientTransformationExtraArgs:
    r"""Adam without its bias correction, to show the effect of that.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) |g_t|^2 \\
        u_t &= -\alpha \frac{m_t}{\sqrt{v_t} + \varepsilon}

    Args:
        learning_rate: α ≥ 0.
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        eps: ε ≥ 0, in units of the gradient.

    Returns:
        An :class:`~jaxopt_adam.Optimizer` with :class:`UncorrectedAdamState`.
    """

    def scalars(step):
        return {"eps": eps}

    def first(grad, old, step):
        return old._replace(mu=ema(old.mu, grad, b1), nu=ema(old.nu, abs_sq(grad), b2))

    def second(grad, old, new, step):
        return -step.rate * new.mu / (jnp.sqrt(new.nu) + step.eps)

    return leafwise(
        UncorrectedAdamState,
        first,
        second,
        scalars,
        storage="float32",
        learning_rate=learning_rate,
        mu=Moment(),
        nu=Moment(real=True),
    )
