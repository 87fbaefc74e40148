"""Schedule-Free AdamW (Defazio et al., 2024)."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from jaxopt_adam import hyperparameters as kinds
from jaxopt_adam._rule import Moment, leafwise
from jaxopt_adam.averages import Denominator, abs_sq, bias_correction, ema, finite_product, finite_quotient
from jaxopt_adam.optimizer import optimizer


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
        state_dtype: the dtype that `z` is stored in, dithered if it has 16 bits; None for at least float32.
        moments: how the moments are stored: "float32", "bfloat16", "int8", "int4", or as in :doc:`/memory`.

    Returns:
        An :class:`~jaxopt_adam.Optimizer` with :class:`ScheduleFreeAdamwState`. Its `update` needs `params`.

    References:
        Defazio et al., The Road Less Scheduled, 2024, algorithm 1.

    Example:
        >>> from jaxopt_adam import minimize, schedule_free_adamw
        >>> print(minimize(lambda x: (x - 3.0) ** 2, 0.0, schedule_free_adamw(0.1), tol=1e-9).x.round(2))
        3.0
    """

    def scalars(step):
        rate = kinds.single(step.rate, "learning_rate") * jnp.minimum(1.0, step.count / float(warmup_steps or 1))
        largest = jnp.maximum(step.state.max_learning_rate, rate)
        weight = largest ** kinds.single(weight_lr_power, "weight_lr_power")
        weight_sum = step.state.weight_sum + weight
        share = weight / jnp.where(weight_sum == 0, 1, weight_sum)
        return {
            "rate": rate,
            "max_learning_rate": largest,
            "weight_sum": weight_sum,
            "share": share,
            "weight": 1 - b1 + b1 * share,
            "c2": bias_correction(b2, step.count),
            "denominator": Denominator(eps),
        }

    def move_of_z(grad, nu, step):
        return finite_product(-step.rate, grad / step.denominator(finite_quotient(nu, step.c2)) + step.decay)

    def first(grad, old, step):
        nu = ema(old.nu, abs_sq(grad), b2)
        return old._replace(nu=nu, z=old.z + move_of_z(grad, nu, step))

    def second(grad, old, new, step):
        # The difference of y with x written in y and z, so that what is common to both is not there to be rounded.
        # In fewer bits z moves by what is stored, as x is found from that.
        move = move_of_z(grad, new.nu, step) if state_dtype is None else new.z - old.z
        return finite_product(step.weight, move) + finite_product(step.share, old.z - step.param)

    def finish(step, grads, params, moments):
        return {
            "b1": jnp.asarray(b1, float),
            "weight_sum": step.weight_sum,
            "max_learning_rate": step.max_learning_rate,
        }

    return leafwise(
        ScheduleFreeAdamwState,
        first,
        second,
        scalars,
        storage=moments,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        sees_to_decay=True,
        needs_params=True,
        others={"b1": b1, "weight_sum": 0.0, "max_learning_rate": 0.0},
        finish=finish,
        nu=Moment(real=True),
        z=Moment(dtype=state_dtype, from_param=True),
    )
