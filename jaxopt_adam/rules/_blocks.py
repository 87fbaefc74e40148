"""Second moments that many elements share: those of blocks, and of the rows and columns of a matrix."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxopt_adam._averages import mean_square, root
from jaxopt_adam._rule import Moment
from jaxopt_adam._trees import Path, leaf_name

BlocksOfLeaf = Callable[[str, tuple[int, ...]], tuple[int, ...]]
"""The number of equal contiguous blocks of a leaf along each axis, from its path (as a string) and its shape."""


def blocks_by_layout(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The default blocks of :func:`~jaxopt_adam.adam_mini`, as described there."""
    path = path.removesuffix(".value")  # as flax's nnx ends each
    last = len(shape) - 1
    is_stack_of_heads = last == 2
    if last < 1 or _has(path, r"bias\W*$"):
        own = ()
    elif re.search(r"\.weight(_\w+)?$", path):
        own = (0,)
    elif _is_embedding(path):
        own = range(last)
    elif is_stack_of_heads and _has(path, "query|key"):
        own = (1,)
    elif is_stack_of_heads and _has(path, "value"):
        own = (1, 2)
    else:
        own = (last,)
    return tuple(size if axis in own else 1 for axis, size in enumerate(shape))


def _is_embedding(path: str) -> bool:
    """True for a table of embeddings, by the name of the leaf, or of its layer where the leaf's name says nothing."""
    names = [name for name in re.findall(r"[A-Za-z_]\w*", path) if name not in ("w", "weight", "table", "value")]
    words = re.sub("([a-z])([A-Z])", r"\1_\2", names[-1]).lower().rstrip("_0123456789") if names else ""
    # The last word is what a thing is: embed_proj is a projection.
    return re.search(r"(^|_)((emb|embed|embedding|embedder)s?|embed_(tokens|positions|in)|wte|wpe)$", words) is not None


def checked_blocks(blocks: BlocksOfLeaf, path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The result of `blocks` for a leaf; ValueError unless it divides the leaf's shape."""
    numbers = blocks(jax.tree_util.keystr(path), shape)
    whole = isinstance(numbers, tuple) and all(isinstance(number, (int, np.integer)) for number in numbers)
    if not whole or len(numbers) != len(shape) or not all(map(_divides, numbers, shape)):
        raise ValueError(
            f"{leaf_name(path)}: blocks must give whole numbers that divide the shape {shape}, got {numbers!r}"
        )
    return tuple(map(int, numbers))


def mean_square_of_blocks(grad: Array, numbers: tuple[int, ...]) -> Array:
    """The mean of |grad|² over each block, for `numbers` of blocks along the axes; of the shape `numbers`.

    It is that of the gradient bounded in size.
    """
    split = _split(grad.shape, numbers)
    return mean_square(grad.reshape(split), tuple(range(1, len(split), 2)), True)


def spread(moment: Array, shape: tuple[int, ...]) -> Array:
    """The result of :func:`mean_square_of_blocks`, repeated over the blocks of an array of `shape`."""
    split = _split(shape, moment.shape)
    return jnp.broadcast_to(jnp.expand_dims(moment, tuple(range(1, len(split), 2))), split).reshape(shape)


def factored_moments(least: int | None) -> dict[str, Any]:
    """The moments `v_row` and `v_col`, with the shapes of the results of :func:`mean_squares`, and `v` with the leaf's.

    A leaf has the two first if its second largest axis is not less than `least`; otherwise, or for None, the last.
    """

    def shapes(shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        if least is None or len(shape) < 2 or shape[_two_axes(shape)[0]] < least:
            return {"v": shape}
        second, largest = (tuple(np.delete(shape, axis).tolist()) for axis in _two_axes(shape))
        return {"v_row": largest, "v_col": second}

    def axes(name: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        if name not in shapes(shape):
            return None
        left_out = None if name == "v" else _two_axes(shape)[name == "v_row"]
        return tuple(axis for axis in range(len(shape)) if axis != left_out)

    def moment(name: str) -> Moment:
        return Moment(
            real=True,
            shape=lambda path, shape: shapes(shape).get(name),
            axes=lambda path, shape: axes(name, shape),
        )

    return {name: moment(name) for name in ("v_row", "v_col", "v")}


def mean_squares(grad: Array) -> tuple[Array, Array]:
    """The means of |grad|² over the largest axis (those of a wide matrix's rows), and over the second largest.

    They are those of the gradient bounded in size.
    """
    second, largest = _two_axes(grad.shape)
    return mean_square(grad, largest, True), mean_square(grad, second, True)


def over_factored_root(value: Array, rows: Array, columns: Array) -> Array:
    """``value / √(rows · columns / mean(rows))``, for averages of its :func:`mean_squares`."""
    second, largest = _two_axes(value.shape)
    rows, columns = jnp.expand_dims(root(rows), largest), jnp.expand_dims(root(columns), second)
    # Of roots, since the quotient of the means of a row of zeros and of one of huge values would underflow.
    return value * (root(jnp.expand_dims(mean_square(rows, second), second)) / rows) * (1 / columns)


def _two_axes(shape: tuple[int, ...]) -> list[int]:
    """The second largest and the largest axis, as optax has them where sizes tie."""
    return np.argsort(shape).tolist()[-2:]


def _has(path: str, words: str) -> bool:
    """True if one of the words is in the path, and not as a part of a longer one such as monkey."""
    return re.search(rf"(?<![a-zA-Z])({words})(?![a-zA-Z])", path) is not None


def _divides(number: int, size: int) -> bool:
    return number >= min(size, 1) and size % max(number, 1) == 0


def _split(shape: tuple[int, ...], numbers: tuple[int, ...]) -> list[int]:
    """Each axis as two: the blocks along it, and the inside of a block."""
    pairs = ((number, size // max(number, 1)) for number, size in zip(numbers, shape, strict=True))
    return [each for pair in pairs for each in pair]
