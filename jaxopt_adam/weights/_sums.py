"""Sums that are rounded up or down, so that they are right on average."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxopt_adam.storage._patterns import MAGNITUDE, SIGN, from_pattern, infinity, to_pattern


def rounded_sum(weight: Array, change: Array, low: np.dtype, unit: ArrayLike, threshold: Array) -> Array:
    """The pattern of ``weight + change`` as a multiple of `unit`, one of the two next to the sum.

    The larger is taken for a fraction of the thresholds that equals the position of the sum between the two. The mean
    over evenly spread thresholds is therefore the sum itself. Bits that an addition in float32 drops count as well. A
    sum that needs no rounding stays as it is.

    Args:
        weight: float32.
        change: float32.
        low: the dtype of the pattern, bfloat16 or float16.
        unit: a power of two, of which the pattern becomes a multiple; one number, or a uint32 for each element.
        threshold: uint32 u, an array that broadcasts to the weight; u / 2³² of the spacing is added before rounding
            down.

    Returns:
        The pattern. A finite sum is not rounded to infinity.
    """
    unit = jnp.asarray(unit, jnp.uint32)
    total = weight + change
    # Knuth's TwoSum: exactly what the addition dropped, whichever of the two numbers is larger.
    moved = total - weight
    rest = (weight - (total - moved)) + (change - moved)
    pattern = to_pattern(total, low)
    last = pattern & (unit - np.uint32(1))
    below = (pattern - last) & MAGNITUDE
    # A magnitude is rounded, so where it grows downwards the threshold is counted from the other end.
    negative = pattern >= SIGN
    threshold = threshold ^ (np.uint32(0) - (pattern >> 31))
    # The pattern has rounded the sum once more where the numbers of float16 are evenly spaced.
    rest = jnp.where(negative, -rest, rest) + (jnp.abs(total) - from_pattern(pattern & MAGNITUDE, low))
    spacing = from_pattern(below + unit, low) - from_pattern(below, low)
    share = last.astype(jnp.float32) * _reciprocal(unit.astype(jnp.float32)) + rest * _reciprocal(spacing)
    # By one down where the addition rounded up to a number that needs no rounding. Below zero there is none.
    carry = jnp.clip(jnp.floor(share + _fraction(threshold)), jnp.where(below == 0, 0, -1), 1).astype(jnp.int32)
    carry = jnp.where(below + unit < infinity(low), jax.lax.bitcast_convert_type(carry, jnp.uint32), np.uint32(0))
    return (pattern - last) + carry * unit


def _reciprocal(power: Array) -> Array:
    """The exact reciprocal of a power of two; powers below 2⁻¹²⁶, which processors may flush to zero, count as 2⁻¹²⁶.

    A division would be too dear for the compiler to repeat, and it would keep an array as large as the leaf.
    """
    bits = jax.lax.bitcast_convert_type(jnp.maximum(power, np.float32(2.0**-126)), jnp.uint32)
    return jax.lax.bitcast_convert_type(np.uint32(254 << 23) - bits, jnp.float32)


def _fraction(threshold: Array) -> Array:
    """A uint32 as a number in [0, 1), in float32, which has room for 24 bits of it."""
    return (threshold >> 8).astype(jnp.float32) * np.float32(2.0**-24)
