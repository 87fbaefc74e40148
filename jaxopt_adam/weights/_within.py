"""Code shared by the wrappers: an inner optimizer that sees float32, and updates that give an exact 16-bit weight."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxopt_adam._trees import Path, array_like, inexact_dtype, leaf_name, leaves_like
from jaxopt_adam.storage._patterns import from_bits, is_low_precision, to_bits

_CONDITIONAL = {"apply_if_finite", "conditionally_mask", "conditionally_transform"}
"""The wrappers of optax whose updates have, in some steps, the dtype of the gradients."""


BY_POSITION = "its weights are rounded by the positions of the elements in the whole leaf"
"""The reason for which a weight is refused within shard_map."""


class Move(NamedTuple):
    """A step of one leaf of low precision, in float32.

    Attributes:
        path: the path of the leaf.
        param: the parameter.
        memory: the part of the state that belongs to it.
        weight: the weight before the step.
        change: the update of the inner optimizer, to be added to the weight.
    """

    path: Path
    param: Array
    memory: Any
    weight: Array
    change: Array


def for_each(rule: Callable[[Array], Any], params: optax.Params, otherwise: Any) -> Any:
    """The tree of the results of `rule` for the leaves of low precision, with `otherwise` in place of all others."""
    return jax.tree.map(lambda leaf: rule(jnp.asarray(leaf)) if is_low_precision(leaf) else otherwise, params)


def in_float32(params: optax.Params) -> optax.Params:
    """The same parameters, those of low precision in float32."""
    return jax.tree.map(
        lambda leaf: from_bits(to_bits(jnp.asarray(leaf)), leaf.dtype) if is_low_precision(leaf) else leaf, params
    )


def update_within(
    name: str,
    inner: optax.GradientTransformationExtraArgs,
    updates: optax.Updates,
    inner_state: optax.OptState,
    params: optax.Params | None,
    memories: Any,
    weight: Callable[[Path, Array, Any], Array],
    extra_args: Mapping[str, Any],
) -> tuple[Any, list[Any], optax.OptState]:
    """The update of the inner optimizer, which sees low-precision leaves in float32.

    Args:
        name: the wrapper's name, for errors.
        inner: the inner optimizer.
        updates: the gradients.
        inner_state: its state.
        params: the parameters.
        memories: the part of the state for each parameter of low precision, a tree like the parameters; or None.
        weight: ``weight(path, param, memory)``: the weight that the two represent together, in float32.
        extra_args: the extra arguments of `update`.

    Returns:
        The structure of the gradients; for each leaf a :class:`Move`, or the update itself if the leaf is of another
        dtype; the new state of the inner optimizer.
    """
    if params is None:
        raise ValueError(f"{name} needs the parameters: call update(gradients, state, params)")
    leaves, tree = jax.tree_util.tree_flatten_with_path(updates)
    paths, grads = [path for path, _ in leaves], [grad for _, grad in leaves]
    thetas = leaves_like(tree, params, "params")
    notes = [None] * len(leaves) if memories is None else leaves_like(tree, memories, "the state")
    low = list(map(is_low_precision, thetas))
    weights = list(thetas)
    _refuse_conditional(name, grads, low)
    for i, (path, grad, theta, note) in enumerate(zip(paths, grads, thetas, notes, strict=True)):
        if low[i]:
            inexact_dtype(path, grad)
            thetas[i] = array_like(path, grad, theta, None, "the parameter")
            weights[i] = weight(path, thetas[i], note)
            grads[i] = jnp.asarray(grad, jnp.float32)
        elif not (note is None or isinstance(note, optax.MaskedNode)):
            raise ValueError(
                f"{leaf_name(path)}: init was given a parameter of dtype bfloat16 or float16, update one of dtype "
                f"{jnp.result_type(theta)}"
            )
    changes, inner_state = inner.update(
        jax.tree.unflatten(tree, grads), inner_state, jax.tree.unflatten(tree, weights), **extra_args
    )
    moves = leaves_like(tree, changes, "the update")
    for i, path in enumerate(paths):
        if low[i]:
            change = array_like(path, grads[i], moves[i], None, "the update").astype(jnp.float32)
            moves[i] = Move(path, thetas[i], notes[i], weights[i], change)
    return tree, moves, inner_state


def _refuse_conditional(name: str, grads: list[Any], low: list[bool]) -> None:
    """TypeError where optax is about to choose between the updates, in float32, and gradients or zeros in 16 bits.

    :func:`jax.lax.cond` would say that dtypes differ, but not how to mend it. Only the call stack shows the situation.
    """
    if not any(is_low_precision(grad) for grad, each in zip(grads, low, strict=True) if each):
        return
    frame = inspect.currentframe()
    while frame is not None:
        wrapper = frame.f_code.co_qualname.split(".")[0]
        if wrapper in _CONDITIONAL and str(frame.f_globals.get("__name__")).startswith("optax."):
            raise TypeError(
                f"optax.{wrapper} cannot be around {name}, whose updates are in float32 where the gradients have 16 "
                f"bits; put it within: {name}(optax.{wrapper}(...)) does the same"
            )
        frame = frame.f_back


def remembered(path: Path, param: Array, memory: Any, dtype: np.dtype, what: str) -> Array:
    """The memory of `param` in the state, which must be an array of its shape and of `dtype`."""
    given = (np.shape(memory), getattr(memory, "dtype", None))
    if given != (param.shape, dtype):
        raise ValueError(
            f"{leaf_name(path)}: for a parameter of dtype {param.dtype} {what} must have dtype {jnp.dtype(dtype)} and "
            f"shape {param.shape}, got {f'{given[1]} and {given[0]}' if given[1] else repr(memory)}; give init the "
            "parameters in the dtypes in which they are trained"
        )
    return jnp.asarray(memory)


def move_to(bits: Array, param: Array) -> Array:
    """The update, in float32, that takes a parameter to the number with the given bits.

    :func:`optax.apply_updates` adds in float32 and rounds the sum, which gives that number exactly. There are three
    exceptions. No sum makes −0 of +0. No sum leads back from infinity or NaN. In a number below 2⁻¹⁷ of the parameter,
    digits below 2⁻²⁴ of the parameter are lost, as they are for weights in float32.
    """
    start = to_bits(param)
    # −0 and not +0 where nothing changes, as +0 would turn a −0 over.
    return jnp.where(start == bits, np.float32(-0.0), from_bits(bits, param.dtype) - from_bits(start, param.dtype))
