"""Schedule-Free AdamW (Defazio et al., 2024)."""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from jaxopt_adam import hyperparameters as kinds
from jaxopt_adam.averages import abs_sq, bias_correction, ema, finite_product, finite_quotient, root
from jaxopt_adam.dtypes import rounded
from jaxopt_adam.noted import note
from jaxopt_adam.optimizer import optimizer
from jaxopt_adam.transformation import Moment, per_leaf_transformation
from jaxopt_adam.trees import fields, real_scalars


class ScheduleFreeAdamwState(NamedTuple):
    """The state of :func:`schedule_free_adamw`.

    Attributes:
        count: the number of updates done, int32.
        nu: the average of ``|g|²``, a tree like the parameters, real.
        z: the iterate that takes the steps, likewise; it starts as a copy of the parameters.
        b1: β₁, a scalar in JAX's default float, by which :func:`schedule_free_eval_params` finds x.
        weight_sum: the sum of the weights of the average x, a scalar.
        max_learning_rate: the largest γ so far, likewise.
    """

    count: Array
    nu: Any
    z: Any
    b1: Array
    weight_sum: Array
    max_learning_rate: Array


@optimizer
def schedule_free_adamw(
    learning_rate: kinds.OneLearningRate = 0.0025,
    warmup_steps: kinds.OptionalSteps = None,
    b1: kinds.PositiveDecay = 0.9,
    b2: kinds.Decay = 0.999,
    eps: kinds.NonNegative = 1e-8,
    weight_decay: kinds.WeightDecay = 0.0,
    weight_lr_power: kinds.NonNegative = 2.0,
    state_dtype: kinds.OptionalDtype = None,
    *,
    moments: kinds.Moments = "float32",
) -> optax.GradientTransformationExtraArgs:
    r"""Schedule-Free AdamW: AdamW that averages its iterates, so that no learning rate need fall towards the end.

    .. math::
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) |g_t|^2, \qquad \hat v_t = v_t / (1 - \beta_2^t) \\
        z_t &= z_{t-1} - \gamma_t \left(\frac{g_t}{\sqrt{\hat v_t} + \varepsilon} + \lambda y_{t-1}\right) \\
        x_t &= (1 - c_t) x_{t-1} + c_t z_t, \quad c_t = w_t / \sum_i w_i, \quad w_t = \max_{i \le t} \gamma_i^p \\
        y_t &= \beta_1 x_t + (1 - \beta_1) z_t, \qquad u_t = y_t - y_{t-1}

    The parameters are y, where gradients are taken; the result is x, from :func:`schedule_free_eval_params`. γ_t is the
    learning rate, times t / `warmup_steps` until that is one, for steps and weights alike (not so in optax). As in the
    authors' newer code and in optax v is debiased; the experiments had √(1 − β₂ᵗ) in γ_t instead.
    Choose it where the length of the run is not known beforehand. It costs Adam's memory, with z in place of m.

    What comes after it must leave its updates alone, since x is found from y: clip and decay before it in a chain, as
    in ``optax.chain(optax.clip_by_global_norm(1.0), schedule_free_adamw())``, and let nothing else change the
    parameters. :func:`optax.clip` after it would ruin x in silence, though y still learns.

    Args:
        learning_rate: γ ≥ 0, a number or a schedule; constant for what the method is meant for.
        warmup_steps: over how many steps γ rises linearly; None or 0 for none.
        b1: β₁ in (0, 1), the share of x in y.
        b2: β₂ in [0, 1), the decay of the average of the squares.
        eps: ε ≥ 0, in units of the gradient.
        weight_decay: λ ≥ 0, a number, a schedule, or a tree of these; decoupled, so times γ.
        weight_lr_power: p ≥ 0; 0 weighs all iterates alike.
        state_dtype: the dtype in which `z` rests; None for float32, or the gradient's if that is wider.
        moments: how the moments rest: "float32", "bfloat16", "int8", "int4", or as in :doc:`/memory`.

    Returns:
        An :class:`~jaxopt_adam.Optimizer` with :class:`ScheduleFreeAdamwState`. Its `update` needs `params`.

    References:
        Defazio et al., The Road Less Scheduled, 2024, algorithm 1.

    Example:
        >>> from jaxopt_adam import minimize, schedule_free_adamw
        >>> print(minimize(lambda x: (x - 3.0) ** 2, 0.0, schedule_free_adamw(0.1), tol=1e-9).x.round(2))
        3.0
    """

    def at(rate, share, **scalars):
        def per_leaf(leaf, nu, z, rate, c2, eps, share, weight):
            nu = ema(nu, abs_sq(leaf.grad), b2)
            change = finite_product(rate, leaf.grad / (root(finite_quotient(nu, c2)) + eps) + leaf.decay)
            if state_dtype is not None:  # x is found from the z that rests, so that is the one that counts
                change = rounded(z + change, state_dtype) - z
            # The difference of y with x written in y and z, so that what is common to both is not there to be rounded.
            step = finite_product(weight, change) + finite_product(share, z - leaf.param)
            return step, nu, z + change

        return per_leaf_transformation(
            functools.partial(ScheduleFreeAdamwState, b1=jnp.array(b1, jnp.result_type(float)), **scalars),
            lambda step, rate: (rate, bias_correction(b2, step), eps, share, 1 - b1 + b1 * share),
            per_leaf,
            learning_rate=rate,
            weight_decay=weight_decay,
            whole_leaf=True,
            needs_params=True,
            storage=moments,
            nu=Moment(real=True),
            z=Moment(dtype=state_dtype, from_param=True),
        )

    def update(updates, state, params=None, **rest):
        count, weight_sum, largest = fields(
            state, "count", "weight_sum", "max_learning_rate", of=ScheduleFreeAdamwState
        )
        weight_sum, largest = real_scalars(weight_sum, largest, of=("weight_sum", "max_learning_rate"))
        rate = kinds.single(kinds.scheduled(learning_rate, count, "learning_rate"), "learning_rate")
        rate = rate * jnp.minimum(1.0, optax.safe_increment(count) / float(warmup_steps or 1))
        largest = jnp.maximum(largest, rate)
        weight = largest ** kinds.single(weight_lr_power, "weight_lr_power")
        weight_sum = weight_sum + weight
        share = weight / jnp.where(weight_sum == 0, 1, weight_sum)
        return at(rate, share, weight_sum=weight_sum, max_learning_rate=largest).update(updates, state, params, **rest)

    def init(params):
        start = at(0.0, 0.0, weight_sum=jnp.zeros([]), max_learning_rate=jnp.zeros([]))
        return note(start.init(params), learning_rate=learning_rate)

    return optax.GradientTransformationExtraArgs(init, update)
