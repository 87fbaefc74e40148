"""Sums that are rounded up or down, so that they are right on average."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxopt_adam.storage._bits import bits_of, float_of
from jaxopt_adam.storage._patterns import MAGNITUDE, from_pattern, infinity, to_pattern

_DIGITS = 24
"""The binary digits of a position between two multiples, and of the threshold that is added to it."""

_TO_INTEGER = np.float32(1.5 * 2**23)
"""A number whose sum with a small one has that, rounded to an integer, as its last bits."""


def rounded_sum(weight: Array, change: Array, low: np.dtype, shift: ArrayLike, threshold: Array) -> Array:
    """The pattern of ``weight + change`` as a multiple of ``1 << shift``, one of the two next to the sum.

    The larger is taken for a fraction of the thresholds that equals the position of the sum between the two. The mean
    over evenly spread thresholds is therefore the sum itself. Bits that an addition in float32 drops count as well. A
    sum that needs no rounding stays as it is.

    Args:
        weight: float32.
        change: float32.
        low: the dtype of the pattern, bfloat16 or float16.
        shift: from 8 to 16, one number, or a uint32 for each element.
        threshold: uint32 u, an array that broadcasts to the weight; u / 2³² of the spacing, of which 24 bits count, is
            added before rounding down.

    Returns:
        The pattern. A finite sum is not rounded to infinity.
    """
    shift = jnp.asarray(shift, jnp.uint32)
    unit = np.uint32(1) << shift
    total = weight + change
    # Knuth's TwoSum: exactly what the addition dropped, whichever of the two numbers is larger.
    moved = total - weight
    rest = (weight - (total - moved)) + (change - moved)
    pattern = to_pattern(total, low)
    magnitude = pattern & MAGNITUDE
    # A magnitude is rounded, so where it grows downwards the threshold is counted from the other end.
    sign = bits_of(total, jnp.uint32) >> 31
    threshold = threshold ^ (np.uint32(0) - sign)
    rest = float_of(bits_of(rest, jnp.uint32) ^ (sign << 31))
    if low != jnp.bfloat16:
        # The pattern has rounded the sum once more where the numbers of float16 are evenly spaced.
        rest = rest + (jnp.abs(total) - from_pattern(magnitude, low))
    # As an integer, in units of 2⁻²⁴ of the spacing. A conversion to integers would cost more, since it also minds
    # numbers that are too large for them.
    rest = rest * np.float32(2.0**_DIGITS) * _reciprocal_of_spacing(total, low, shift) + _TO_INTEGER
    rest = bits_of(rest, jnp.uint32) - bits_of(jnp.asarray(_TO_INTEGER), jnp.uint32)
    further = jax.lax.bitcast_convert_type(rest + (threshold >> (32 - _DIGITS)), jnp.int32)
    further = jax.lax.shift_right_arithmetic(further, jax.lax.bitcast_convert_type(_DIGITS - shift, jnp.int32))
    raised = pattern + jax.lax.bitcast_convert_type(further, jnp.uint32)
    return jnp.where(magnitude < infinity(low) - unit, raised, pattern) & (np.uint32(0) - unit)


def _reciprocal_of_spacing(total: Array, low: np.dtype, shift: Array) -> Array:
    """The reciprocal of the size of ``1 << shift`` patterns next to `total`, a power of two.

    Of a spacing below 2⁻¹²⁶ it is that of 2⁻¹²⁶, as processors may flush smaller numbers to zero.
    """
    exponent = (bits_of(total, jnp.uint32) >> 23) & np.uint32(255)
    # A pattern of float16 is an eighth of float32's spacing, and below 2⁻¹⁴ always the same.
    one, smallest = np.uint32(280), np.uint32(113)
    if low == jnp.bfloat16:
        one, smallest = np.uint32(277), np.uint32(23) - shift
    return float_of((one - shift - jnp.maximum(exponent, smallest)) << 23)
