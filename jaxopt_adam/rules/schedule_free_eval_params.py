"""The result of Schedule-Free AdamW (Defazio et al., 2024)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from optax.transforms import MonitorState, SnapshotState

from jaxopt_adam.dtypes import arithmetic_dtype, real_dtype
from jaxopt_adam.rules.schedule_free_adamw import ScheduleFreeAdamwState
from jaxopt_adam.trees import Path, inexact_dtype, leaf_name, scalar_like


def schedule_free_eval_params(state: optax.OptState, params: optax.Params) -> optax.Params:
    r"""The parameters at which to evaluate what :func:`~jaxopt_adam.schedule_free_adamw` trains.

    .. math:: x = \frac{y - (1 - \beta_1) z}{\beta_1} = z + \frac{y - z}{\beta_1}

    That holds as long as the parameters are the y that the state was made for. Whatever else changed them, a clipping
    of the updates after the rule, say, becomes x as well, 1/β₁ times as large, and nothing in x shows it. What can be
    seen is refused: a part with a state that follows the rule in a chain, and, where values are known, parameters that
    are not z before the second update, when x, y and z are one. A part without a state, as :func:`optax.clip`, is not
    seen after that.

    Args:
        state: its state, or one that holds it, such as a chain's.
        params: y, the parameters that are trained.

    Returns:
        x, of the shapes and dtypes of `params`; what the state is masked for stays as it is.

    Raises:
        ValueError: if there is no such state in `state`, if in a chain another part comes after it, or if `params` is
            of another tree or other shapes, or is not y as far as can be seen.

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
    awake = arithmetic_dtype(dtype)
    rounding = 4 * max(float(jnp.finfo(jnp.result_type(each)).eps) for each in (y, z))
    z, y = jnp.asarray(z, awake), jnp.asarray(y, awake)
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
    return (z + (y - z) / scalar_like(path, y, state.b1, real_dtype(awake))).astype(dtype)


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
