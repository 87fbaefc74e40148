"""The axes that an array of a state shares with its parameter, and the names that flax's boxes give to axes."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

Axes = Sequence[int | None]
"""For each axis of an array the axis of its parameter along which it runs, None for no such axis."""


@functools.cache
def axes_by_length(param_shape: tuple[int, ...], shape: tuple[int, ...]) -> Axes:
    """The axes of a parameter along which those of an array seem to run: of a mean over some axes, or over blocks."""
    if len(shape) == len(param_shape):
        return [
            axis if size == whole or (1 < size < whole and whole % size == 0) else None
            for axis, (size, whole) in enumerate(zip(shape, param_shape, strict=True))
        ]
    left_out = [i for i in range(len(param_shape)) if (*param_shape[:i], *param_shape[i + 1 :]) == shape]
    if len(left_out) != 1:
        return [None] * len(shape)
    return [axis for axis in range(len(param_shape)) if axis != left_out[0]]


def is_box(node: Any) -> bool:
    """True for a node around an array that names its axes: a box of linen's, or a variable of nnx's."""
    kind = type(node)
    return hasattr(kind, "replace_boxed") or (hasattr(kind, "get_metadata") and hasattr(kind, "set_metadata"))


def unboxed(tree: Any) -> Any:
    """The tree with what the boxes hold in their place."""

    def content(node: Any) -> Any:
        if not is_box(node):
            return node
        [held] = jax.tree.leaves(node, is_leaf=lambda part: part is not node)
        return held

    return jax.tree.map(content, tree, is_leaf=is_box)


def fill(tree: Any, arrays: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> Any:
    """``tree.unflatten(arrays)``, in which each box names the axes of its own array.

    A box that was made for a parameter names the axes of that. Around an array of another shape it keeps the names of
    the axes that have the parameter's length, and of codes of which two share a byte.

    Args:
        tree: the structure of the parameters.
        arrays: an array for each leaf, or whatever is in its place.
        shapes: the shapes of the parameters.
    """
    filled = jax.tree.unflatten(tree, arrays)
    others = [array.shape != shape for array, shape in zip(arrays, shapes, strict=True) if hasattr(array, "shape")]
    if not any(others):
        return filled
    indices = jax.tree.unflatten(tree, range(len(arrays)))
    nodes, structure = jax.tree.flatten(indices, is_leaf=is_box)
    # As a list, of which a trace makes no call for each leaf.
    if all([type(node) is int for node in nodes]):  # noqa: C419
        return filled

    def renamed(node: Any) -> Any:
        own = jax.tree.leaves(node)
        if not own:  # a box around what a mask has left out
            return node
        [index] = own
        array, shape = arrays[index], shapes[index]
        if not is_box(node) or not hasattr(array, "shape") or np.shape(array) == shape:
            return jax.tree.unflatten(jax.tree.structure(node), [array])
        axes = axes_by_length(shape, np.shape(array))
        kept = [
            axis if axis is not None and size in (shape[axis], shape[axis] / 2) else None
            for axis, size in zip(axes, np.shape(array), strict=True)
        ]
        if hasattr(node, "names"):
            return node.replace(value=array, names=_names(node.names, shape, kept))
        if not hasattr(node, "get_metadata"):
            return node.replace_boxed(array)
        of_axes = {name: node.get_metadata(name, None) for name in _OF_AXES}
        known = {name: _names(names, shape, kept) for name, names in of_axes.items() if names}
        return node.replace(array, **known)

    return jax.tree.unflatten(structure, list(map(renamed, nodes)))


_OF_AXES = "out_sharding", "sharding", "sharding_names", "optimizer_sharding"
"""The metadata of a variable of nnx's that has an entry for each axis."""


def _names(names: Any, shape: tuple[int, ...], axes: Axes) -> tuple[Any, ...]:
    """The names of an array's axes, from those of its parameter."""
    of_param = [*names, *[None] * (len(shape) - len(names))]
    return tuple(None if axis is None else of_param[axis] for axis in axes)
