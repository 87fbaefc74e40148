"""Prodigy (Mishchenko & Defazio, 2023)."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxopt_adam import averages
from jaxopt_adam import hyperparameters as kinds
from jaxopt_adam.averages import abs_sq, ema, finite_product, root, squarable
from jaxopt_adam.dtypes import arithmetic_dtype
from jaxopt_adam.noted import note
from jaxopt_adam.optimizer import optimizer
from jaxopt_adam.transformation import Moment, per_leaf_transformation
from jaxopt_adam.trees import fields, inner_product, real_scalars


class ProdigyState(NamedTuple):
    """The state of :func:`prodigy`.

    Attributes:
        count: the number of updates done, int32.
        mu: the average of dg, a tree like the parameters.
        nu: the average of ``|dg|²``, likewise, real.
        grad_sum: s, the decayed sum of the weighted g, likewise.
        params0: the parameters that it started from, likewise.
        estim_lr: d, the estimate of how far the solution is from there, a scalar in JAX's default float.
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
    r"""Prodigy: :func:`adamw` that finds its learning rate d itself, from how far the parameters have come.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) d_t g_t, \qquad v_t = \beta_2 v_{t-1} + (1 - \beta_2) |d_t g_t|^2 \\
        r_t &= \beta_3 r_{t-1} + w_t \langle g_t, \theta_0 - \theta_{t-1}\rangle,\quad s_t = \beta_3 s_{t-1}+w_t g_t \\
        u_t &= -\alpha_t \left(\frac{m_t}{\sqrt{v_t} + d_t \varepsilon} + \lambda \theta_{t-1}\right), \qquad
               d_{t+1} = \max(d_t, k \, r_t / \|s_t\|_1)

    with :math:`\alpha_t = \gamma_t d_t \sqrt{1 - \beta_2^t} / (1 - \beta_1^t)` and :math:`w_t = \alpha_t d_t / d_1`, r
    and the norm over all leaves. The bias correction, λ, k and d₁ are from the authors' code, as in optax; both have
    dₜ₊₁ε where the paper, and this, has dₜε. The paper corrects no bias, and neither does the authors' code unless it
    is told to: then :math:`\alpha_t = \gamma_t d_t`, and the first step is (1 − β₁) / √(1 − β₂), about 3, times as
    long. Choose it where no learning rate is known; it costs twice Adam's memory.

    Args:
        learning_rate: γ ≥ 0, a factor of d: 1, or a schedule that falls from 1 to 0.
        betas: (β₁, β₂), both in [0, 1), the decays of the averages of the gradients and of their squares.
        beta3: β₃ in [0, 1), the decay of r and s; None for √β₂.
        eps: ε ≥ 0, in units of the gradient.
        estim_lr0: d₁ > 0, the first estimate, in units of the parameters; much less than they will move.
        estim_lr_coef: k ≥ 0, a factor of the later estimates; the one to tune.
        weight_decay: λ ≥ 0, a number, a schedule, or a tree of these; decoupled, so times α.
        safeguard_warmup: whether s has d in place of α, so that a γ that starts small makes no estimate too large.
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

    def at(rate, distance, growth) -> Any:
        def per_leaf(leaf, mu, nu, grad_sum, params0, rate, distance, b3, weight, eps):
            scaled = squarable(distance * leaf.grad)
            mu, nu = ema(mu, scaled, b1), ema(nu, abs_sq(scaled), b2)
            grad_sum = finite_product(b3, grad_sum) + finite_product(weight, leaf.grad)
            return rate * (mu / (root(nu) + eps) + leaf.decay), mu, nu, grad_sum, params0

        return per_leaf_transformation(
            functools.partial(ProdigyState, estim_lr=distance, numerator_weighted=jnp.zeros([])),
            lambda *_: (-rate, distance, b3, growth * (distance if safeguard_warmup else rate), distance * eps),
            per_leaf,
            learning_rate=rate,
            weight_decay=weight_decay,
            whole_leaf=True,
            needs_params=True,
            mu=Moment(),
            nu=Moment(real=True),
            grad_sum=Moment(),
            params0=Moment(from_param=True),
        )

    def init(params):
        start = at(0.0, jnp.array(kinds.single(estim_lr0, "estim_lr0"), jnp.result_type(float)), 0.0)
        return note(start.init(params), learning_rate=learning_rate)

    def update(updates, state, params=None, **_):
        count, start, distance, numerator = fields(
            state, "count", "params0", "estim_lr", "numerator_weighted", of=ProdigyState
        )
        distance, numerator = real_scalars(distance, numerator, of=("estim_lr", "numerator_weighted"))
        step = optax.safe_increment(count)
        rate = distance * kinds.single(kinds.scheduled(learning_rate, count, "learning_rate"), "learning_rate")
        if bias_correction:
            rate = rate * jnp.sqrt(averages.bias_correction(b2, step)) / averages.bias_correction(b1, step)
        growth = distance / kinds.single(estim_lr0, "estim_lr0")
        changes, after = at(rate, distance, growth).update(updates, state, params)
        way = jax.tree.map(jnp.subtract, start, params)
        numerator = b3 * numerator + growth * rate * inner_product(jax.tree.map(_squarable, updates), way)
        size = optax.tree.sum(jax.tree.map(jnp.abs, after.grad_sum))
        estimate = kinds.single(estim_lr_coef, "estim_lr_coef") * numerator / jnp.where(size == 0, jnp.inf, size)
        return changes, after._replace(estim_lr=jnp.maximum(distance, estimate), numerator_weighted=numerator)

    return optax.GradientTransformationExtraArgs(init, update)


def _squarable(grad: jax.Array) -> jax.Array:
    return squarable(jnp.asarray(grad, arithmetic_dtype(jnp.result_type(grad))))
