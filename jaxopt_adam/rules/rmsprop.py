"""RMSProp (Tieleman & Hinton, 2012), and centered (Graves, 2013)."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from jaxopt_adam import _averages as averages
from jaxopt_adam._averages import abs_sq, accumulate, ema, finite_quotient, root
from jaxopt_adam._hyperparameters import Decay, Flag, LearningRate, Moments, NonNegative, OptionalDecay
from jaxopt_adam._optimizer import optimizer
from jaxopt_adam._rule import Moment, leafwise


class RmspropState(NamedTuple):
    """The state of :func:`rmsprop`.

    Attributes:
        count: the number of updates done, int32.
        nu: the average of ``|g|²``, a tree like the parameters, real.
        mu: the average of g, a tree like the parameters; None unless centered.
        trace: the decayed sum of the steps, a tree like the parameters; None without momentum.
    """

    count: Array
    nu: Any
    mu: Any = None
    trace: Any = None


@optimizer
def rmsprop(
    learning_rate: LearningRate,
    decay: Decay = 0.9,
    eps: NonNegative = 1e-8,
    initial_scale: NonNegative = 0.0,
    eps_in_sqrt: Flag = True,
    centered: Flag = False,
    momentum: OptionalDecay = None,
    nesterov: Flag = False,
    bias_correction: Flag = False,
    *,
    moments: Moments = "float32",
) -> optax.GradientTransformationExtraArgs:
    r"""RMSProp: each element's step is divided by the root of an average of its squared gradients.

    .. math::
        v_t &= \beta v_{t-1} + (1 - \beta) |g_t|^2 \\
        u_t &= -\alpha \frac{g_t}{\sqrt{\hat v_t + \varepsilon}} \quad\text{or}\quad
               -\alpha \frac{g_t}{\sqrt{\hat v_t} + \varepsilon}

    where :math:`\hat v_t` is :math:`v_t`, or :math:`v_t / (1 - \beta^t)` with `bias_correction`. With `centered` the
    squared average of the gradients is subtracted from it, which leaves their variance :math:`\hat v_t - |\hat m_t|^2`.
    A variance that rounding makes negative counts as zero. With momentum :math:`\mu` the steps are added up:

    .. math:: s_t = u_t + \mu s_{t-1}, \qquad u'_t = s_t \quad\text{or, with } \texttt{nesterov}, \quad u_t + \mu s_t

    Choose it where the gradients' size changes and momentum does harm, as in reinforcement learning. It has half of
    Adam's state.

    Args:
        learning_rate: α ≥ 0, a number, an array, a schedule, or a tree of these for parts of the parameters. None gives
            the direction alone (positive).
        decay: β in [0, 1).
        eps: ε ≥ 0, in units of the gradient, or of its square where it is in the root.
        initial_scale: :math:`v_0 \ge 0`; PyTorch's is 0, TensorFlow 1's was 1.
        eps_in_sqrt: whether ε is added within the root.
        centered: whether to divide by the standard deviation of the gradients rather than by their size.
        momentum: μ in [0, 1); None for no momentum and no state for it.
        nesterov: whether to look ahead as Nesterov does; without momentum it has no effect.
        bias_correction: whether to divide the averages by :math:`1 - \beta^t`. Without that the first steps are
            larger by up to :math:`1 / \sqrt{1 - \beta}`. (With `centered` as well, the first variance is that of one
            value, which is zero, so the first step is the gradient over ε or over √ε.)
        moments: the storage of the moments: "float32", "bfloat16", "int8", "int4", or another in :doc:`/memory`.

    Returns:
        An :class:`~jaxopt_adam.Optimizer` with :class:`RmspropState`.

    References:
        Tieleman & Hinton, Lecture 6.5, COURSERA: Neural Networks for Machine Learning, 2012; Graves, Generating
        Sequences With Recurrent Neural Networks, 2013, equations 38–45 (centered).

    Example:
        >>> from jaxopt_adam import minimize, rmsprop
        >>> print(minimize(lambda x: (x - 3.0) ** 2, 0.0, rmsprop(0.01), tol=1e-9).x.round(2))
        3.0
    """

    def scalars(step):
        correction = averages.bias_correction(decay, step.count) if bias_correction else None
        return {"correction": correction, "momentum": momentum, "eps": eps}

    def direction(grad, moments, step):
        def debiased(average):
            return finite_quotient(average, step.correction) if bias_correction else average

        variance = debiased(moments.nu)
        if centered:
            variance = jnp.maximum(variance - abs_sq(debiased(moments.mu)), 0)
        return -step.rate * grad / (root(variance, step.eps) if eps_in_sqrt else root(variance) + step.eps)

    def first(grad, old, step):
        new = old._replace(nu=ema(old.nu, abs_sq(grad), decay))
        if centered:
            new = new._replace(mu=ema(old.mu, grad, decay))
        if momentum is not None:
            new = new._replace(trace=accumulate(old.trace, direction(grad, new, step), step.momentum))
        return new

    def second(grad, old, new, step):
        if momentum is None:
            return direction(grad, new, step)
        return accumulate(new.trace, direction(grad, new, step), step.momentum) if nesterov else new.trace

    return leafwise(
        RmspropState,
        first,
        second,
        scalars,
        storage=moments,
        learning_rate=learning_rate,
        nu=Moment(initial_scale, real=True, decay=decay),
        mu=Moment(over="nu") if centered else None,
        trace=None if momentum is None else Moment(),
    )
