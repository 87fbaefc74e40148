"""Schedule-Free AdamW (Defazio et al., 2024)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.core import Tracer
from optax.transforms import MonitorState, SnapshotState

from jaxopt_adam import _hyperparameters as kinds
from jaxopt_adam._averages import Denominator, abs_sq, bias_correction, ema, finite_product, finite_quotient, squarable
from jaxopt_adam._optimizer import optimizer
from jaxopt_adam._rule import Moment, leafwise
from jaxopt_adam._trees import Path, arithmetic_dtype, inexact_dtype, leaf_name, real_dtype, scalar_like


class ScheduleFreeAdamwState(NamedTuple):
    """The state of :func:`schedule_free_adamw`.

    Attributes:
        count: the number of updates done, int32.
        nu: the average of ``|g|²``, a tree like the parameters, real.
        z: the iterate that takes the steps, likewise; it starts as a copy of the parameters.
        b1: β₁, a scalar in JAX's default float, with which :func:`schedule_free_eval_params` computes x.
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

    The parameters are y, where gradients are taken. The result is x, from :func:`schedule_free_eval_params`. γ_t is the
    learning rate, times t / `warmup_steps` until that is one, alike for the steps and for the weights w (in optax they
    differ). v is debiased, as in optax and in the authors' newer code; the paper's experiments had √(1 − β₂ᵗ) in γ_t
    instead.

    Choose it where the length of the run is not known beforehand. It needs as much memory as Adam, with z in place of
    m.

    Nothing after it may change its updates, because x is computed from y. Clip and decay before it in a chain, as in
    ``optax.chain(optax.clip_by_global_norm(1.0), schedule_free_adamw())``, and let nothing else change the parameters.
    :func:`optax.clip` after it would make x wrong without an error, though y still learns.

    Args:
        learning_rate: γ ≥ 0, a number or a schedule; the method is meant for a constant one.
        warmup_steps: the number of steps over which γ rises linearly; None or 0 for no warm-up.
        b1: β₁ in (0, 1), the weight of x in y.
        b2: β₂ in [0, 1), the decay of the average of the squares.
        eps: ε ≥ 0, in units of the gradient.
        weight_decay: λ ≥ 0, a number, a schedule, or a tree of these; decoupled, so times γ.
        weight_lr_power: p ≥ 0; 0 weighs all iterates alike.
        state_dtype: the storage dtype of `z`, dithered if it has 16 bits; None for the dtype of the arithmetic, float32
            or wider.
        moments: the storage of the moments: "float32", "bfloat16", "int8", "int4", or another in :doc:`/memory`.

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
            "step_size": rate,
            "max_learning_rate": largest,
            "weight_sum": weight_sum,
            "share": share,
            "weight": (1 - b1) * (1 - share),
            "c2": bias_correction(b2, step.count),
            "denominator": Denominator(eps),
        }

    def move_of_z(grad, nu, step):
        return finite_product(-step.step_size, grad / step.denominator(finite_quotient(nu, step.c2)) + step.decay)

    def first(grad, old, step):
        count, nu = step.keep((step.count, ema(old.nu, abs_sq(grad), b2)))
        return old._replace(nu=nu, z=old.z + move_of_z(squarable(step.again(step.grad, count)), nu, step))

    def second(grad, old, new, step):
        # The difference of y with x written in y and z, so that what is common to both is not there to be rounded. Of z
        # it has the new one, so that the old one need not outlive it.
        # In fewer bits z moves by what is stored, as x is found from that.
        if state_dtype is None:
            grad, nu = squarable(step.again(step.grad, step.count)), step.again(new.nu, step.count)
            move = move_of_z(grad, nu, step)
        else:
            move = new.z - old.z
        return finite_product(step.weight, move) + finite_product(step.share, new.z - step.param)

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
        nu=Moment(real=True, decay=b2),
        z=Moment(dtype=state_dtype, from_param=True),
    )


def schedule_free_eval_params(state: optax.OptState, params: optax.Params) -> optax.Params:
    r"""The parameters at which to evaluate what :func:`~jaxopt_adam.schedule_free_adamw` trains.

    .. math:: x = \frac{y - (1 - \beta_1) z}{\beta_1} = z + \frac{y - z}{\beta_1}

    This holds as long as the parameters are the y that belongs to the state. Any other change of the parameters, such
    as clipping the updates after the rule, enters x as well, 1/β₁ times as large, and cannot be seen in x. Two mistakes
    are detected and raise ValueError: a part with a state that follows the rule in a chain; and, where values are
    known, parameters that differ from z before the second update, when x, y and z are still equal. A part without a
    state, such as :func:`optax.clip`, is not detected later.

    Args:
        state: the state of :func:`schedule_free_adamw`, or one that holds it, such as a chain's.
        params: y, the parameters that are trained.

    Returns:
        x, of the shapes and dtypes of `params`; leaves that are masked in the state stay as they are.

    Raises:
        ValueError: if there is no such state in `state`, if in a chain another part comes after it, or if `params` has
            another tree or other shapes, or is found not to be y.

    References:
        Defazio et al., The Road Less Scheduled, 2024, algorithm 1.

    Example:
        >>> import jax, optax
        >>> from jaxopt_adam import schedule_free_adamw, schedule_free_eval_params
        >>> optimizer, params = schedule_free_adamw(0.1), jax.numpy.array(0.0)
        >>> state, step = optimizer.init(params), jax.jit(optimizer.update)
        >>> for _ in range(1000):
        ...     updates, state = step(2 * (params - 3.0), state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> print(schedule_free_eval_params(state, params).round(2))
        3.0
    """
    states = [node for node in jax.tree.leaves(state, is_leaf=_is_state) if _is_state(node)]
    if not states:
        raise ValueError(f"state must be or hold the state of schedule_free_adamw, got {type(state).__name__}")
    _refuse_what_follows(state)
    for each in states:
        leaves, tree = jax.tree_util.tree_flatten_with_path(each.z, is_leaf=_is_masked)
        try:
            parts = tree.flatten_up_to(params)
        except ValueError as error:
            raise ValueError(f"params must have the tree of the state's z: {error}") from None
        averages = [_average(path, z, y, each) for (path, z), y in zip(leaves, parts, strict=True)]
        params = jax.tree.unflatten(tree, averages)
    return params


def _average(path: Path, z: Any, y: Any, state: ScheduleFreeAdamwState) -> Any:
    if _is_masked(z):
        return y
    dtype = inexact_dtype(path, y)
    if np.shape(z) != np.shape(y):
        raise ValueError(f"{leaf_name(path)}: params must have the shape of z, {np.shape(z)}, got {np.shape(y)}")
    compute = arithmetic_dtype(dtype)
    rounding = 4 * max(float(jnp.finfo(jnp.result_type(each)).eps) for each in (y, z))
    z, y = jnp.asarray(z, compute), jnp.asarray(y, compute)
    # The first x is the first z, so y is as well; later there is nothing to hold it against.
    known = not any(
        isinstance(each, Tracer) or not each.is_fully_addressable for each in map(jnp.asarray, (state.count, y, z))
    )
    if known and np.all(state.count <= 1) and np.any(np.abs(y - z) > rounding * (np.abs(y) + np.abs(z))):
        raise ValueError(
            f"{leaf_name(path)}: params must be those that schedule_free_adamw trains, which after {state.count} "
            f"updates are its z, but differ from it by up to {np.max(np.abs(y - z)):.3g}; no other transformation may "
            "come after it, and nothing else change the parameters"
        )
    return (z + (y - z) / scalar_like(path, y, state.b1, real_dtype(compute))).astype(dtype)


def _refuse_what_follows(state: Any) -> None:
    """Raise ValueError if, in a chain's state, a part with a state comes after that of the rule."""
    parts = jax.tree.leaves(state, is_leaf=lambda node: node is not state)
    if type(state) in (tuple, list):
        own = [
            index for index, part in enumerate(parts) if any(map(_is_state, jax.tree.leaves(part, is_leaf=_is_state)))
        ]
        for part in parts[own[0] + 1 :] if own else []:
            after = [node for node in jax.tree.leaves(part, is_leaf=_is_known) if not isinstance(node, _HARMLESS)]
            if after:
                raise ValueError(
                    f"state has a {type(part).__name__} after that of schedule_free_adamw: what comes after it in a "
                    "chain changes its updates, and then the result is not found from the parameters; put it before"
                )
    if not _is_state(state):
        for part in parts:
            if part is not state:
                _refuse_what_follows(part)


_HARMLESS = (ScheduleFreeAdamwState, optax.MaskedState, optax.EmptyState, MonitorState, SnapshotState)
"""States of what leaves the updates alone; what is masked is on trust, as it may be for other leaves."""


def _is_known(node: Any) -> bool:
    return isinstance(node, _HARMLESS)


def _is_state(node: Any) -> bool:
    return isinstance(node, ScheduleFreeAdamwState)


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)
