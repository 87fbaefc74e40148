"""Trees of parameters and gradients: their leaves with their paths, and errors that name the leaf."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

__all__ = [
    "Path",
    "array_like",
    "broadcast_prefix",
    "choose",
    "fields",
    "inexact_dtype",
    "inner_product",
    "leaf_name",
    "leaves_like",
    "scalar_like",
]

Path = tuple[Any, ...]
"""The way to a leaf, as in :func:`jax.tree_util.tree_flatten_with_path`."""


def inexact_dtype(path: Path, leaf: Any, *, real: bool = False) -> np.dtype:
    """The dtype of a leaf, which must be a floating-point or complex one, or only `real`; TypeError if it is not."""
    try:
        dtype = jnp.result_type(leaf)
    except TypeError:
        raise TypeError(f"{leaf_name(path)} must be an array, got {leaf!r} ({type(leaf).__name__})") from None
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise TypeError(
            f"{leaf_name(path)} must have a floating-point dtype, got {dtype}; leave it out with optax.masked or "
            "optax.partition, or keep it out of the tree of parameters"
        )
    if real and jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(
            f"{leaf_name(path)} must be real for this rule, which has no meaning for complex numbers, got {dtype}"
        )
    return dtype


def array_like(
    path: Path, grad: Any, value: Any, dtype: np.dtype | None, what: str, shape: tuple[int, ...] | None = None
) -> Array:
    """`value` as an array, which must have `shape`, by default that of the gradient at `path`, and `dtype` if given."""
    shape = np.shape(grad) if shape is None else shape
    if value is None or np.shape(value) != shape:
        raise ValueError(
            f"{leaf_name(path)}: for a gradient of shape {np.shape(grad)} {what} must have shape {shape}, got "
            f"{None if value is None else np.shape(value)}"
        )
    if dtype is not None and jnp.result_type(value) != dtype:
        raise TypeError(
            f"{leaf_name(path)}: for a gradient of dtype {jnp.result_type(grad)} {what} must have dtype {dtype}, got "
            f"{jnp.result_type(value)}; give init parameters of the dtype that the gradients have"
        )
    return jnp.asarray(value)


def scalar_like(path: Path, grad: Any, scalar: ArrayLike | None, dtype: np.dtype) -> Array | None:
    """`scalar` in `dtype`: a number, or an array that broadcasts to the gradient at `path`; None stays."""
    if scalar is None:
        return None
    shape = np.shape(scalar)
    pairs = zip(shape[::-1], np.shape(grad)[::-1], strict=False)
    if len(shape) > np.ndim(grad) or any(size not in (1, whole) for size, whole in pairs):
        raise ValueError(
            f"{leaf_name(path)}: a hyperparameter of shape {shape} does not broadcast to the gradient's shape "
            f"{np.shape(grad)}; for a batch of optimizers use jax.vmap"
        )
    return jnp.asarray(scalar, dtype)


def fields(state: Any, *names: str) -> list[Any]:
    """The fields of a state, which must have them."""
    for name in names:
        if not hasattr(state, name):
            raise TypeError(f"state must have {name}, as what init returns has, got {type(state).__name__}")
    return [getattr(state, name) for name in names]


def leaves_like(tree: Any, other: Any, what: str) -> list[Any]:
    """The leaves of `other`, which must have the structure `tree`, the gradients'; ValueError names what differs."""
    try:
        return tree.flatten_up_to(other)
    except ValueError:
        pass
    expected = _paths(other)
    given = _paths(jax.tree.unflatten(tree, range(tree.num_leaves)))
    lacking = [f"they have no leaf {path}" for path in expected if path not in given]
    lacking += [f"it has no leaf {path}" for path in given if path not in expected]
    why = lacking[0] if lacking else f"they are {tree}, it is {jax.tree.structure(other)}"
    raise ValueError(f"the gradients must have the same tree as {what}, but {why}")


def broadcast_prefix(
    prefix: Any, params: Any, what: str, is_leaf: Callable[[Any], bool] = callable
) -> list[Any]:
    """The entry of `prefix` for each leaf of `params`, whose tree or a prefix of it it must have.

    What `is_leaf` is true of is an entry; so functions are, unless the whole prefix is a tree like the parameters, as
    a model that can be called is.
    """
    alike = jax.tree.structure(prefix) == jax.tree.structure(params)
    entries: list[Any] = []
    try:
        jax.tree.map(
            lambda entry, part: entries.extend([entry] * len(jax.tree.leaves(part))),
            prefix,
            params,
            is_leaf=None if alike else is_leaf,
        )
    except ValueError as error:
        heads = [path for path, _ in jax.tree_util.tree_leaves_with_path(prefix, is_leaf=is_leaf)]
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        why = [
            f"they have no {jax.tree_util.keystr(head)}"
            for head in heads
            if not any(path[: len(head)] == head for path in paths)
        ]
        why += [
            f"it has nothing for {leaf_name(path)}"
            for path in paths
            if not any(path[: len(head)] == head for head in heads)
        ]
        raise ValueError(
            f"{what} must have the tree of the parameters, or a prefix of it, but {why[0] if why else error}"
        ) from None
    return entries


def choose(tree: Any, chosen: list[bool], one: Any, other: Any, what: str) -> Any:
    """The tree that has, for each leaf of `tree`, the entry of `one` where it is chosen and of `other` where not.

    Both are prefixes of the tree, whose entries may be functions.
    """
    entries = zip(chosen, broadcast_prefix(one, tree, what), broadcast_prefix(other, tree, what), strict=True)
    return jax.tree.unflatten(jax.tree.structure(tree), [a if first else b for first, a, b in entries])


def inner_product(one: Any, other: Any) -> ArrayLike:
    """Re⟨one, other⟩ over two trees of like arrays, in the wider of their dtypes."""
    # Not as a dot product, for which leaves that are sharded would be gathered, and accelerators round to fewer digits.
    return optax.tree.sum(jax.tree.map(lambda x, y: jnp.real(jnp.conj(x) * y), one, other))


def leaf_name(path: Path) -> str:
    """A leaf as errors call it."""
    return f"leaf {jax.tree_util.keystr(path)}" if path else "the only leaf"


def _paths(tree: Any) -> list[str]:
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
