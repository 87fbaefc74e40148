"""Workarounds for the behaviour of compilers, each with its benefit and the versions in which it was measured."""

import operator
from typing import Any

import jax
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
