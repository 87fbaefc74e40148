"""Patterns of 32 bits for low-precision weights: a number of 16 bits, and 16 further bits.

A pattern is an unsigned integer of 32 bits. Its upper half is a number in bfloat16 or float16. Its lower half says how
far to go from there towards the next larger magnitude. So patterns are ordered as magnitudes are. Those of bfloat16
are the bits of float32. Those of float16 have an exponent of 5 bits, and where that is 0 they count units of 2⁻⁴⁰.

Everything here is done with integers: the compiler may drop a cast to 16 bits and back, but not these.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxopt_adam.storage._bits import INFINITY, bits_of, float_of
from jaxopt_adam.storage._bits import MAGNITUDE as _MAGNITUDE

SIGN = np.uint32(1 << 31)
MAGNITUDE = np.uint32(_MAGNITUDE)
EXPONENT_SHIFT = np.uint32((127 - 15) << 23)  # between the exponents of float32 and float16
UNIT = np.float32(2.0**-40)  # one pattern of float16, where its exponent is 0


def is_low_precision(leaf: Any) -> bool:
    """True for an array of bfloat16 or float16."""
    return getattr(leaf, "dtype", None) in (jnp.bfloat16, jnp.float16)


def infinity(dtype: np.dtype) -> np.uint32:
    """The pattern of the infinity of `dtype`; larger magnitudes are NaN."""
    return np.uint32(INFINITY if dtype == jnp.bfloat16 else 0x7C000000)


def to_bits(low: Array) -> Array:
    """The upper half of the pattern of a number of 16 bits, uint16."""
    return jax.lax.bitcast_convert_type(low, jnp.uint16)


def from_bits(bits: Array, dtype: np.dtype) -> Array:
    """The number of `dtype` that has these 16 bits, in float32."""
    return from_pattern(bits.astype(jnp.uint32) << 16, dtype)


def to_pattern(value: Array, dtype: np.dtype) -> Array:
    """The pattern of a float32; rounded to the nearest below float16's normal numbers, exact elsewhere."""
    bits = bits_of(value, jnp.uint32)
    magnitude = bits & MAGNITUDE
    if dtype == jnp.bfloat16:
        pattern = magnitude
    else:
        normal = jnp.minimum(magnitude - EXPONENT_SHIFT, np.uint32(31 << 23)) << 3
        small = jnp.round(jnp.minimum(jnp.abs(value), np.float32(2.0**-14)) / UNIT).astype(jnp.uint32)
        pattern = jnp.where(magnitude < EXPONENT_SHIFT + np.uint32(1 << 23), small, normal)
    # One NaN for all, whose lower half is zero: no carry out of it can reach the sign.
    quiet = infinity(dtype) | np.uint32(1 << (22 if dtype == jnp.bfloat16 else 25))
    return (bits & SIGN) | jnp.where(magnitude > np.uint32(INFINITY), quiet, pattern)


def from_pattern(pattern: Array, dtype: np.dtype) -> Array:
    """The float32 that has a pattern of `dtype`."""
    if dtype == jnp.bfloat16:
        return float_of(pattern)
    magnitude = pattern & MAGNITUDE
    normal = (magnitude >> 3) + EXPONENT_SHIFT
    small = bits_of(magnitude.astype(jnp.float32) * UNIT, jnp.uint32)
    bits = jnp.where(magnitude < np.uint32(1 << 26), small, normal)
    special = np.uint32(INFINITY) | (jnp.minimum(magnitude - infinity(dtype), np.uint32(1)) << 22)
    bits = jnp.where(magnitude < infinity(dtype), bits, special)
    return float_of((pattern & SIGN) | bits)
