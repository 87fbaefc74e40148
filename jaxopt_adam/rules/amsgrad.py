"""AMSGrad (Reddi, Kale & Kumar, 2018)."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from jaxopt_adam._averages import Denominator, abs_sq, bias_correction, ema
from jaxopt_adam._hyperparameters import Decay, Flag, LearningRate, Moments, NonNegative, OptionalDtype
from jaxopt_adam._optimizer import optimizer
from jaxopt_adam._rule import Moment, leafwise


class AmsgradState(NamedTuple):
    """The state of :func:`amsgrad`.

    Attributes:
        count: the number of updates done, int32.
        mu: the average of g, a tree like the parameters.
        nu: the average of ``|g|²``, a tree like the parameters, real.
        nu_max: the largest `nu` so far, debiased unless ``bias_correction_nu=False``, likewise.
    """

    count: Array
    mu: Any
    nu: Any
    nu_max: Any


@optimizer
def amsgrad(
    learning_rate: LearningRate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    mu_dtype: OptionalDtype = None,
    bias_correction_mu: Flag = True,
    bias_correction_nu: Flag = True,
    *,
    moments: Moments = "float32",
) -> optax.GradientTransformationExtraArgs:
    r"""AMSGrad: Adam whose second moment never falls, so that the effective step size never grows.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, & \hat m_t &= m_t / (1 - \beta_1^t) \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) |g_t|^2, & \hat v_t &= v_t / (1 - \beta_2^t) \\
        \bar v_t &= \max(\bar v_{t-1}, \hat v_t), & u_t &= -\alpha \frac{\hat m_t}{\sqrt{\bar v_t + \bar\varepsilon}
                    + \varepsilon}

    The maximum never falls, so after a single huge gradient its element hardly moves again. Clip gradients if huge ones
    may occur. The paper corrects no bias. Here, as in optax, both averages are debiased unless a flag turns that off.
    PyTorch divides the largest of the plain v by 1 − β₂ᵗ. That is ``bias_correction_nu=False`` at the rate
    :math:`\alpha \sqrt{1 - \beta_2^t}`, except for ε, which PyTorch adds after that division.

    Choose it where Adam does not settle because it forgets rare large gradients. It needs half as much state again.

    Args:
        learning_rate: α ≥ 0, a number, an array, a schedule, or a tree of these for parts of the parameters. None gives
            the direction alone, unscaled and with the sign of the gradient.
        b1: β₁ in [0, 1), the decay of the average of the gradients.
        b2: β₂ in [0, 1), the decay of the average of their squares.
        eps: ε ≥ 0, in units of the gradient.
        eps_root: ε̄ ≥ 0, in units of the squared gradient.
        mu_dtype: the storage dtype of `mu`, dithered if it has 16 bits; None for the dtype of the arithmetic, float32
            or wider.
        bias_correction_mu: whether the average of the gradients is debiased.
        bias_correction_nu: whether the average of their squares is debiased, before the maximum is taken.
        moments: the storage of the moments: "float32", "bfloat16", "int8", "int4", or another in :doc:`/memory`.

    Returns:
        An :class:`~jaxopt_adam.Optimizer` with :class:`AmsgradState`.

    References:
        Reddi, Kale & Kumar, On the Convergence of Adam and Beyond, 2018, algorithm 2.

    Example:
        >>> from jaxopt_adam import amsgrad, minimize
        >>> print(minimize(lambda x: (x - 3.0) ** 2, 0.0, amsgrad(0.1), tol=1e-9).x.round(2))
        3.0
    """
    denominator = Denominator(eps, eps_root)

    def scalars(step):
        c1 = bias_correction(b1, step.count) if bias_correction_mu else 1.0
        c2 = bias_correction(b2, step.count) if bias_correction_nu else 1.0
        return {"scale": -step.rate / c1, "c2": c2, "denominator": denominator}

    def first(grad, old, step):
        nu = ema(old.nu, abs_sq(grad), b2)
        return old._replace(mu=ema(old.mu, grad, b1), nu=nu, nu_max=jnp.maximum(old.nu_max, nu / step.c2))

    def second(grad, old, new, step):
        return step.scale * new.mu / step.denominator(new.nu_max)

    return leafwise(
        AmsgradState,
        first,
        second,
        scalars,
        storage=moments,
        learning_rate=learning_rate,
        mu=Moment(dtype=mu_dtype, over="nu_max", denominator=denominator),
        nu=Moment(real=True, decay=b2),
        nu_max=Moment(real=True),
    )
