"""Prodigy (Mishchenko & Defazio, 2023)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxopt_adam import _averages as averages
from jaxopt_adam import _hyperparameters as kinds
from jaxopt_adam._averages import abs_sq, bounded_product, ema, finite_product, root, squarable
from jaxopt_adam._optimizer import optimizer
from jaxopt_adam._rule import Moment, leafwise
from jaxopt_adam._trees import arithmetic_dtype
from jaxopt_adam._xla import fence


class ProdigyState(NamedTuple):
    """The state of :func:`prodigy`.

    Attributes:
        count: the number of updates done, int32.
        mu: the average of dg, a tree like the parameters.
        nu: the average of ``|dg|²``, likewise, real.
        grad_sum: s, the decayed sum of the weighted g, likewise.
        params0: the parameters that it started from, likewise.
        estim_lr: d, the estimate of the distance from there to the solution, a scalar in JAX's default float.
        numerator_weighted: r, the numerator of the estimate, likewise.
    """

    count: jax.Array
    mu: Any
    nu: Any
    grad_sum: Any
    params0: Any
    estim_lr: jax.Array
    numerator_weighted: jax.Array


@optimizer
def prodigy(
    learning_rate: kinds.OneLearningRate = 1.0,
    betas: kinds.TwoDecays = (0.9, 0.999),
    beta3: kinds.OptionalDecay = None,
    eps: kinds.NonNegative = 1e-8,
    estim_lr0: kinds.Positive = 1e-6,
    estim_lr_coef: kinds.NonNegative = 1.0,
    weight_decay: kinds.WeightDecay = 0.0,
    safeguard_warmup: kinds.Flag = False,
    *,
    bias_correction: kinds.Flag = True,
) -> optax.GradientTransformationExtraArgs:
    r"""Prodigy: :func:`adamw` that estimates its learning rate d from the distance that the parameters have moved.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) d_t g_t, \qquad v_t = \beta_2 v_{t-1} + (1 - \beta_2) |d_t g_t|^2 \\
        r_t &= \beta_3 r_{t-1} + w_t \langle g_t, \theta_0 - \theta_{t-1}\rangle,\quad s_t = \beta_3 s_{t-1}+w_t g_t \\
        u_t &= -\alpha_t \left(\frac{m_t}{\sqrt{v_t} + d_t \varepsilon} + \lambda \theta_{t-1}\right), \qquad
               d_{t+1} = \max(d_t, k \, r_t / \|s_t\|_1)

    with :math:`\alpha_t = \gamma_t d_t \sqrt{1 - \beta_2^t} / (1 - \beta_1^t)` and :math:`w_t = \alpha_t d_t / d_1`. r
    and the norm are over all leaves. The bias correction, λ, k and d₁ are from the authors' code, as in optax. Both of
    these use dₜ₊₁ε; the paper and this rule use dₜε. The paper corrects no bias, and the authors' code does so only on
    request. Without the correction :math:`\alpha_t = \gamma_t d_t`, and the first step is (1 − β₁) / √(1 − β₂), about
    3, times as long.

    Choose it where no learning rate is known. It needs twice Adam's memory.

    Args:
        learning_rate: γ ≥ 0, a factor of d: 1, or a schedule that falls from 1 to 0.
        betas: (β₁, β₂), both in [0, 1), the decays of the averages of the gradients and of their squares.
        beta3: β₃ in [0, 1), the decay of r and s; None for √β₂.
        eps: ε ≥ 0, in units of the gradient.
        estim_lr0: d₁ > 0, the first estimate, in units of the parameters; much less than the distance that they will
            move.
        estim_lr_coef: k ≥ 0, a factor of the later estimates; the one to tune.
        weight_decay: λ ≥ 0, a number, a schedule, or a tree of these; decoupled, so times α.
        safeguard_warmup: whether s has d in place of α, so that a small γ at the start makes no estimate too large.
        bias_correction: whether α has the factor :math:`\sqrt{1 - \beta_2^t} / (1 - \beta_1^t)`, as in optax; False is
            the paper's, and the default of the authors' code.

    Returns:
        An :class:`~jaxopt_adam.Optimizer` with :class:`ProdigyState`. Its `update` needs `params`.

    References:
        Mishchenko & Defazio, Prodigy: An Expeditiously Adaptive Parameter-Free Learner, 2023, algorithm 4.

    Example:
        >>> from jaxopt_adam import minimize, prodigy
        >>> print(minimize(lambda x: (x - 3.0) ** 2, 0.0, prodigy(), tol=1e-9).x.round(2))
        3.0
    """
    b1, b2 = betas
    b3 = b2**0.5 if beta3 is None else kinds.single(beta3, "beta3")

    def scalars(step):
        distance = step.state.estim_lr
        rate = distance * kinds.single(step.rate, "learning_rate")
        if bias_correction:
            rate = rate * jnp.sqrt(averages.bias_correction(b2, step.count)) / averages.bias_correction(b1, step.count)
        growth = distance / kinds.single(estim_lr0, "estim_lr0")
        change = optax.tree.sum(jax.tree.map(_product_with_way, step.grads, step.moments.params0, step.params))
        # The update, which needs the rate, then comes after the parameters are read here. It may overwrite them.
        rate, change = fence(step.count, (rate, change))
        return {
            "change": change,
            "step_size": rate,
            "distance": distance,
            "growth": growth,
            "b3": b3,
            "weight": growth * (distance if safeguard_warmup else rate),
            "eps": distance * eps,
        }

    def first(grad, old, step):
        scaled = squarable(step.distance * step.grad)
        return old._replace(
            mu=ema(old.mu, scaled, b1),
            nu=ema(old.nu, abs_sq(scaled), b2),
            grad_sum=finite_product(step.b3, old.grad_sum) + finite_product(step.weight, grad),
        )

    def second(grad, old, new, step):
        return -step.step_size * (new.mu / (root(new.nu) + step.eps) + step.decay)

    def finish(step, grads, params, moments):
        numerator = b3 * step.state.numerator_weighted + step.growth * step.step_size * step.change
        size = optax.tree.sum(jax.tree.map(jnp.abs, moments.grad_sum))
        estimate = kinds.single(estim_lr_coef, "estim_lr_coef") * numerator / jnp.where(size == 0, jnp.inf, size)
        return {"estim_lr": jnp.maximum(step.distance, estimate), "numerator_weighted": numerator}

    return leafwise(
        ProdigyState,
        first,
        second,
        scalars,
        storage="float32",
        elementwise=False,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        sees_to_decay=True,
        needs_params=True,
        others={"estim_lr": kinds.single(estim_lr0, "estim_lr0"), "numerator_weighted": 0.0},
        finish=finish,
        mu=Moment(),
        nu=Moment(real=True),
        grad_sum=Moment(),
        params0=Moment(from_param=True),
    )


def _product_with_way(grad: jax.Array, start: jax.Array, param: jax.Array) -> jax.Array:
    """Re⟨grad, start - param⟩ for a leaf, of the gradient bounded in size."""
    return bounded_product(jnp.asarray(grad, arithmetic_dtype(jnp.result_type(grad))), start, param)
