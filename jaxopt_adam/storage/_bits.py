"""The bit patterns of float32 numbers, as integers; those of numbers that are not negative are ordered as these are."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

INFINITY = np.int32(0x7F800000)
"""The bit pattern of infinity, above which are those of NaN."""

NAN = np.int32(0x7FC00000)
"""The bit pattern of a NaN."""

MAGNITUDE = np.int32(0x7FFFFFFF)
"""All bits but the sign."""


def bits_of(value: Any, dtype: DTypeLike = jnp.int32) -> Array:
    """The bit pattern of a float32, as int32 or uint32."""
    return jax.lax.bitcast_convert_type(value, dtype)


def float_of(bits: Array) -> Array:
    """The float32 with this bit pattern."""
    return jax.lax.bitcast_convert_type(bits, jnp.float32)
