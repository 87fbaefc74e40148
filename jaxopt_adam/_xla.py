"""Workarounds for the behaviour of compilers, each with its benefit and the versions in which it was measured."""

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


@jax.custom_jvp
def fence(step: Array, arrays: Any) -> Any:
    """The same arrays, written to memory before anything reads them.

    XLA's CPU backend computes an array anew within each loop that reads it, where that is cheap. So a moment that is
    written over the old one and then read for the update is computed twice, from the old one, which must be copied to
    outlive the first. Of an Adam step with moments in two arrays of bfloat16 that makes 36 bytes an element and 4 of
    temporaries in place of 24 and none (JAX 0.9.2 to 0.12). :func:`jax.lax.optimization_barrier` does not help there,
    as it is gone before loops are formed. A loop does help: one that would change the arrays, but whose number of
    turns, known at run time only, is always zero.

    Args:
        step: a count of steps, which is not negative.
        arrays: a pytree of arrays of numbers.
    """

    def on_cpu(step: Array, arrays: Any) -> Any:
        def body(carry: tuple[Array, Any]) -> tuple[Array, Any]:
            turns, arrays = carry
            return turns - 1, jax.tree.map(operator.neg, arrays)

        never = jax.lax.shift_right_logical(step, np.int32(31))
        return jax.lax.while_loop(lambda carry: carry[0] > 0, body, (never, arrays))[1]

    def elsewhere(step: Array, arrays: Any) -> Any:
        return jax.lax.optimization_barrier(arrays)

    return jax.lax.platform_dependent(step, arrays, cpu=on_cpu, default=elsewhere)


@fence.defjvp
def _(primals: Any, tangents: Any) -> tuple[Any, Any]:
    return fence(*primals), tangents[1]


def in_place(zero: Array, function: Callable[[Any, Any], Any], own: Any, operands: Any) -> tuple[Array, Any]:
    """``function(own, operands)``, written over `own`, in a pass that shares nothing with another.

    XLA computes once what two results have in common, and keeps it: of a leaf's step with moments in codes it would
    keep arrays of the leaf's size. Here each pass is a loop of one turn, whose carry is written in place. It reads
    operands to which a zero was added that only a run shows to be one. Of an AdamW step with moments in 8 bits on
    2,048² elements that makes 3 passes and 1.4 MiB of temporaries. With :func:`jax.lax.optimization_barrier` in place
    of the loop it is 5 passes and 41.5 MiB, with the loop but not the zero 6 and 50.2 (JAX 0.10.2). On other platforms
    than the CPU loops are dear, and there is none.

    Args:
        zero: an int32 that is zero, as only a run shows.
        function: the pass, from `own` and `operands` to what replaces `own`.
        own: a pytree of arrays.
        operands: a pytree of what the pass reads besides.

    Returns:
        The zero for what comes after, and the result.
    """
    # Both branches below are traced, the function once.
    function = jax.jit(function)

    def loop(zero: Array, own: Any, operands: Any) -> tuple[Array, Any]:
        def body(carry: tuple[Array, Any]) -> tuple[Array, Any]:
            turn, own = carry
            return turn + 1, function(own, apart(operands, turn >> 31))

        return jax.lax.while_loop(lambda carry: carry[0] < 1, body, (zero, own))

    def plain(zero: Array, own: Any, operands: Any) -> tuple[Array, Any]:
        return zero + 1, function(own, operands)

    turn, own = jax.lax.platform_dependent(zero, own, operands, cpu=loop, default=plain)
    return turn >> 1, own


def apart(tree: Any, zero: Array) -> Any:
    """The same arrays, of which no compiler knows that they are the same."""
    return jax.tree.map(lambda array: array + zero.astype(jnp.result_type(array)), tree)


def largest_of_blocks(measures: Any) -> Any:
    """The largest of each int32 array of a tree over the last two axes, which stay with one element; none below 0.

    All are found in one reduction, which is one pass. XLA's CPU backend fuses a reduction with what it reduces only
    where it has two results at least: with a second one for a single array, a step with a lone moment in 8 bits on
    2,048² elements has 0.5 MiB of temporaries, without it 16.6 (JAX 0.10.2).
    """
    leaves, tree = jax.tree.flatten(measures)
    alone = len(leaves) == 1
    leaves = [*leaves, leaves[0] >> 1] if alone else leaves
    axes = leaves[0].ndim - 2, leaves[0].ndim - 1
    largest = jax.lax.reduce(
        leaves, [np.int32(0)] * len(leaves), lambda one, other: list(map(jnp.maximum, one, other)), axes
    )
    largest = [jnp.maximum(*largest)] if alone else largest
    return jax.tree.unflatten(tree, [each[..., None, None] for each in largest])
