"""The fraction of updates that are too small to change their parameters."""

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxopt_adam._trees import leaf_name
from jaxopt_adam._xla import counts
from jaxopt_adam.storage._patterns import is_low_precision, to_bits


def stalled_fraction(params: optax.Params, updates: optax.Updates) -> Array:
    """The fraction of the updates that are lost to rounding in the parameter's dtype.

    Of all elements whose update is not zero, it is the fraction that :func:`optax.apply_updates` leaves unchanged. If
    the parameters are in bfloat16, an update below about a 500th of its parameter is lost. If the fraction is large,
    training stands still. Then use :func:`master_weights` or :func:`stochastic_rounding`. None of the updates of these
    wrappers is lost.

    Args:
        params: the parameters before the step.
        updates: what is to be added to them, a tree like `params`.

    Returns:
        A number in [0, 1], float32; 0 if all updates are zero. For a fraction of each leaf use
        ``jax.tree.map(stalled_fraction, params, updates)``.

    Raises:
        ValueError: if `updates` have another tree or other shapes than `params`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxopt_adam import stalled_fraction
        >>> params = jnp.array([1.0, 0.01, 0.0, 2.0], jnp.bfloat16)
        >>> print(f"{stalled_fraction(params, jnp.array([1e-3, 1e-3, 1e-3, 0.0])):.2f}")
        0.33
    """
    pairs = [jnp.zeros(2, jnp.float32)]  # of the lost and of all
    leaves, tree = jax.tree_util.tree_flatten_with_path(params)
    try:
        changes = tree.flatten_up_to(updates)
    except ValueError as error:
        raise ValueError(f"updates must have the tree of params: {error}") from None
    for (path, param), change in zip(leaves, changes, strict=True):
        if jnp.shape(param) != jnp.shape(change):
            raise ValueError(f"{leaf_name(path)}: updates must have shape {jnp.shape(param)}, got {jnp.shape(change)}")
        param, change = jnp.asarray(param), jnp.asarray(change)
        pairs.append(jnp.stack(counts(stays(param, change), change != 0, dtype=jnp.float32)))
    stalled, moving = jnp.stack(pairs).sum(0)
    return stalled / jnp.maximum(moving, 1)


def stays(param: Array, change: Array) -> Array:
    """True for each element whose update is not zero but leaves the parameter as it is."""
    after = (param + change).astype(param.dtype)
    if is_low_precision(param):
        # Compared as numbers, the compiler might spare itself the rounding. The zeros are one number with two patterns.
        before, bits = to_bits(param), to_bits(after)
        same = (before == bits) | (((before | bits) & 0x7FFF) == 0)
    else:
        same = after == param
    return same & (change != 0)
