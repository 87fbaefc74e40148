"""Workarounds for the behaviour of compilers, each with its benefit and the versions in which it was measured."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from jaxopt_adam._trees import varying_axes


def is_staged() -> bool:
    """True while a program is traced that is compiled as a whole; False where each operation runs as it is called.

    So it is also within a transformation such as :func:`jax.vmap` that is called without :func:`jax.jit`. There every
    new function that is jitted, and every loop, would be compiled at each call.
    """
    return isinstance(jnp.zeros([], np.int32), Tracer)


def hidden_zero(count: Array) -> Array:
    """An int32 zero that the compiler takes for an unknown number: the sign bit of a count, which is not negative."""
    return jax.lax.shift_right_logical(_of_batch(count), np.int32(31))


@jax.custom_batching.custom_vmap
def _of_batch(count: Array) -> Array:
    """The count, one for a whole batch: so a loop on its zero is no loop for each row, which checkify refuses."""
    return count


@_of_batch.def_vmap
def _(axis_size: int, in_batched: Any, count: Array) -> tuple[Array, bool]:
    return _of_batch(jnp.max(count)), False


def divisor(root: Array) -> Array:
    """The same root, ≥ 0, by which the compiler divides.

    In place of ``x / sqrt(y)`` it computes ``x * rsqrt(y)``, whose last bit may depend on the length of the array: a
    leaf divided among devices would not get the update that it gets on one (rmsprop, adagrad and adadelta on a CPU with
    JAX 0.12). It leaves a root with a sign removed as it is (JAX 0.9.2 to 0.12).
    """
    return jnp.abs(root)


def add_zero(tree: Any, zero: Array) -> Any:
    """The same arrays, plus a hidden zero; to the compiler they are other arrays."""
    arrays, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, [array + zero.astype(jnp.result_type(array)) for array in arrays])


def again(tree: Any, count: Array) -> Any:
    """The same arrays; to the compiler they are others, so what is computed of them is not kept for a second use.

    Args:
        tree: a pytree of arrays.
        count: a count of steps, which is not negative.
    """
    return add_zero(tree, hidden_zero(count)) if is_staged() else tree


@jax.custom_jvp
def fence(step: Array, arrays: Any) -> Any:
    """The same arrays, written to memory before anything reads them.

    Problem: XLA's CPU backend computes an array anew within each loop that reads it, where that is cheap. A new moment
    is written over the old one and then read for the update. XLA computes it twice, the second time from the old
    moment, which it must copy for that. An Adam step with moments in two arrays of bfloat16 then moves 36 bytes an
    element and has 4 of temporaries, in place of 24 and none (JAX 0.9.2 to 0.12).

    Cure, on a CPU: a loop that would change the arrays, with a number of turns that is a hidden zero. XLA has to write
    the arrays before the loop. :func:`jax.lax.optimization_barrier` does not help on a CPU, because XLA removes it
    before it forms loops. It is what other platforms get.

    Args:
        step: a count of steps, which is not negative.
        arrays: a pytree of arrays of numbers or booleans.
    """
    if not is_staged():
        return arrays

    def on_cpu(step: Array, arrays: Any) -> Any:
        def body(carry: tuple[Array, Any]) -> tuple[Array, Any]:
            turns, arrays = carry
            return turns - 1, jax.tree.map(lambda array: ~array if array.dtype == bool else -array, arrays)

        return jax.lax.while_loop(lambda carry: carry[0] > 0, body, (hidden_zero(step), arrays))[1]

    def elsewhere(step: Array, arrays: Any) -> Any:
        # Within shard_map, what goes through a barrier together varies over the same axes.
        leaves, tree = jax.tree.flatten(arrays)
        kinds = list(map(varying_axes, leaves))
        for kind in dict.fromkeys(kinds):
            those = [index for index, each in enumerate(kinds) if each == kind]
            for index, leaf in zip(those, jax.lax.optimization_barrier([leaves[i] for i in those]), strict=True):
                leaves[index] = leaf
        return jax.tree.unflatten(tree, leaves)

    return jax.lax.platform_dependent(step, arrays, cpu=on_cpu, default=elsewhere)


@fence.defjvp
def _(primals: Any, tangents: Any) -> tuple[Any, Any]:
    return fence(*primals), tangents[1]


def written(step: Array, array: Array) -> Array:
    """The same array, written to memory on a CPU, for two results that are computed from it in one loop each.

    XLA's CPU backend would compute it in both loops, after it has copied the old values of what the first one
    overwrites (JAX 0.10.2). Other platforms compute both results in one loop, without the array.
    """
    if not is_staged():
        return array
    return jax.lax.platform_dependent(step, array, cpu=fence, default=lambda step, array: array)


def in_place(zero: Array, function: Callable[[Any, Any], Any], old: Any, operands: Any) -> tuple[Array, Any]:
    """Replace `old` by ``function(old, operands)`` in the memory of `old`.

    Problem: XLA computes what two passes share once and keeps it. In a step on moments in codes that is an array of the
    leaf's size.

    Cure, on a CPU: the pass is a loop of one turn, whose carry is written in place, and a hidden zero is added to its
    operands. The passes then share nothing that XLA could see. An AdamW step with moments in 8 bits on 2,048² elements
    has 3 passes and 1.4 MiB of temporaries. With :func:`jax.lax.optimization_barrier` in place of the loop it has 5
    passes and 41.5 MiB, with the loop but no zero 6 passes and 50.2 MiB (JAX 0.10.2). On other platforms a loop costs
    much, and the function is called without it.

    Args:
        zero: a hidden zero.
        function: the pass, from `old` and `operands` to what replaces `old`.
        old: a pytree of arrays.
        operands: a pytree of what the pass reads besides.

    Returns:
        A hidden zero that depends on the pass, for what comes after it; and what replaces `old`.
    """
    if not is_staged():
        return zero, function(old, operands)
    # Both branches below are traced; so the function is, but only once.
    function = jax.jit(function)

    def loop(zero: Array, old: Any, operands: Any) -> tuple[Array, Any]:
        def body(carry: tuple[Array, Any]) -> tuple[Array, Any]:
            turn, old = carry
            # The loop counts its turn from zero, but the compiler does not know that `turn >> 31` is zero.
            return turn + 1, function(old, add_zero(operands, turn >> 31))

        return jax.lax.while_loop(lambda carry: carry[0] < 1, body, (zero, old))

    def plain(zero: Array, old: Any, operands: Any) -> tuple[Array, Any]:
        return zero + 1, function(old, operands)

    turns, new = jax.lax.platform_dependent(zero, old, operands, cpu=loop, default=plain)
    # One turn is done, so this is zero again.
    return turns >> 1, new


def quick_or_careful(quick: Callable[[Any], tuple[Any, Array]], careful: Callable[[Any], Any], value: Any) -> Any:
    """The result of ``careful(value)``, taken from ``quick(value)`` where that says that it is right.

    Problem: XLA's CPU backend has a fast loop for the sum of the squares of an array in memory, and for its extremes.
    For a sum of anything else it writes what it adds up to memory first.

    Cure, on a CPU: `careful`, which scales the squares or bounds them, is computed only where the squares as they are
    do not do. With this and a :func:`fence` a step of LAMB on 1,024² elements takes half the time, and has 4 bytes an
    element of temporaries in place of 16 (JAX 0.10.2). On other platforms, which fuse the sum with what it adds up,
    `careful` is always computed.

    Args:
        quick: from `value` to the result and whether it is right.
        careful: from `value` to the result.
        value: a pytree of arrays.
    """
    if not is_staged():
        return careful(value)

    def on_cpu(value: Any) -> Any:
        result, is_right = quick(value)
        return jax.lax.cond(is_right, lambda value: result, careful, value)

    return jax.lax.platform_dependent(value, cpu=on_cpu, default=careful)


def fused_sum(value: Array, axis: int | tuple[int, ...] | None = None) -> Array:
    """The sum of `value` over `axis`, with no array in memory for `value`, if it is computed for the sum only.

    XLA's CPU backend fuses a reduction with what it reduces only if it has two results at least. Such a reduction is
    slower than one of an array in memory.
    """
    axes = tuple(range(value.ndim) if axis is None else (each % value.ndim for each in np.atleast_1d(axis).tolist()))
    if not axes or not is_staged():
        return jnp.sum(value, axes)

    def on_cpu(value: Array) -> Array:
        # Over the last axis that is not of one element first. Different threads compute different results of it.
        *others, last = sorted(sorted(axes), key=lambda axis: value.shape[axis] > 1)
        whole, half = jax.lax.reduce([value, 0.5 * value], [np.zeros([], value.dtype)] * 2, _sums, (last,))
        return jnp.sum(0.5 * whole + half, tuple(other - (other > last) for other in others))

    return jax.lax.platform_dependent(value, cpu=on_cpu, default=lambda value: jnp.sum(value, axes))


def _sums(one: Any, other: Any) -> list[Array]:
    return list(map(jnp.add, one, other))


def largest_of_blocks(measures: Any) -> Any:
    """The largest of each int32 array of a tree over the last two axes, which keep one element; at least 0.

    All are found in one reduction, which is one pass. XLA's CPU backend fuses a reduction with what it reduces only if
    it has two results at least. A single array is therefore reduced together with a second one, which changes nothing:
    a step with a lone moment in 8 bits on 2,048² elements then has 0.5 MiB of temporaries, in place of 16.6 (JAX
    0.10.2).
    """
    leaves, tree = jax.tree.flatten(measures)
    is_alone = len(leaves) == 1
    # Half a number that is not negative is no larger than the number.
    leaves = [*leaves, leaves[0] >> 1] if is_alone else leaves
    axes = leaves[0].ndim - 2, leaves[0].ndim - 1
    largest = jax.lax.reduce(leaves, [np.int32(0)] * len(leaves), _larger, axes)
    largest = [jnp.maximum(*largest)] if is_alone else largest
    return jax.tree.unflatten(tree, [each[..., None, None] for each in largest])


def _larger(one: Any, other: Any) -> list[Array]:
    # Not within the function above: JAX knows a reduction that it has compiled by its function.
    return list(map(jnp.maximum, one, other))


def counts(*masks: Array, dtype: Any) -> list[Array]:
    """The number of true elements of each of some masks of one shape, as numbers of `dtype`, in one pass where it can.

    Of 4,096² elements of float32 :func:`~jaxopt_adam.stalled_fraction` then reads 8 bytes each and has 4 MiB of
    temporaries, where counts one by one access 28 bytes and have 130 MiB (JAX 0.10.2).
    """
    of_rows = sums_of_rows([mask.astype(np.int8) for mask in masks])
    if of_rows is None:
        # Row by row, since float32 counts only to 2²⁴ and int32 only to 2³¹.
        of_rows = [jnp.sum(mask, axis=-1, dtype=np.int32) if mask.ndim else mask for mask in masks]
    return [jnp.sum(row, dtype=dtype) for row in of_rows]


_ROWS, _DEVICES = 8, 16


def sums_of_rows(arrays: Sequence[Array]) -> list[Array] | None:
    """Arrays of one shape, with eight rows of each added; None if the shape has no such groups.

    XLA's CPU backend fuses a reduction with what it reduces only if it has two results at least. In such a loop it does
    not vectorize floating-point sums along a row, as that would change the order of the additions. But it does
    vectorize the loop over the columns if it can unroll the addition of a few rows (JAX 0.10.2).

    The groups are such that each of up to 16 devices has whole groups, along whichever axis the arrays are divided
    among them. Otherwise the arrays would be gathered.
    """
    *first, last = arrays[0].shape or (1,)
    if first and first[-1] % (_ROWS * _DEVICES) == 0:
        *outer, rows = first
        blocks = *outer, rows // _ROWS, _ROWS, last
    elif last % (128 * _ROWS * _DEVICES) == 0:
        blocks = *first, last // (128 * _ROWS), _ROWS, 128
    else:
        return None
    values = [array.reshape(blocks) for array in arrays]
    return jax.lax.reduce(values, [np.zeros([], value.dtype) for value in values], _sum, [len(blocks) - 2])


def _sum(one: Any, other: Any) -> list[Array]:
    return list(map(jnp.add, one, other))
