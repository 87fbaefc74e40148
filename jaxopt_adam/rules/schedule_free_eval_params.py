"""The result of Schedule-Free AdamW (Defazio et al., 2024)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxopt_adam.dtypes import arithmetic_dtype, real_dtype
from jaxopt_adam.rules.schedule_free_adamw import ScheduleFreeAdamwState
from jaxopt_adam.trees import Path, inexact_dtype, leaf_name, scalar_like


def schedule_free_eval_params(state: optax.OptState, params: optax.Params) -> optax.Params:
    r"""The parameters at which to evaluate what :func:`~jaxopt_adam.schedule_free_adamw` trains.

    .. math:: x = \frac{y - (1 - \beta_1) z}{\beta_1} = z + \frac{y - z}{\beta_1}

    Args:
        state: its state, or one that holds it, such as a chain's.
        params: y, the parameters that are trained.

    Returns:
        x, of the shapes and dtypes of `params`; what the state is masked for stays as it is.

    Raises:
        ValueError: if there is no such state in `state`, or if `params` is of another tree or other shapes.

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
    for each in states:
        leaves, tree = jax.tree_util.tree_flatten_with_path(each.z, is_leaf=_is_masked)
        try:
            parts = tree.flatten_up_to(params)
        except ValueError as error:
            raise ValueError(f"params must have the tree of the state's z: {error}") from None
        averages = [_average(path, z, y, each.b1) for (path, z), y in zip(leaves, parts, strict=True)]
        params = jax.tree.unflatten(tree, averages)
    return params


def _average(path: Path, z: Any, y: Any, b1: Array) -> Any:
    if _is_masked(z):
        return y
    dtype = inexact_dtype(path, y)
    if np.shape(z) != np.shape(y):
        raise ValueError(f"{leaf_name(path)}: params must have the shape of z, {np.shape(z)}, got {np.shape(y)}")
    awake = arithmetic_dtype(dtype)
    z, y = jnp.asarray(z, awake), jnp.asarray(y, awake)
    return (z + (y - z) / scalar_like(path, y, b1, real_dtype(awake))).astype(dtype)


def _is_state(node: Any) -> bool:
    return isinstance(node, ScheduleFreeAdamwState)


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)
