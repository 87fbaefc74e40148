"""Moments that are stored as numbers of a floating-point dtype."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from jaxopt_adam.storage._bits import float_of
from jaxopt_adam.storage._patterns import MAGNITUDE, infinity, to_pattern


@dataclasses.dataclass(frozen=True)
class Dense:
    """Moments that are stored as they are, or rounded to a dtype.

    An average that moves by less than half the spacing of a 16-bit dtype would stand still if it were rounded to the
    nearest. So in bfloat16 and float16 it is dithered: a value a quarter of the way from one number to the next is
    rounded up in a quarter of the steps, evenly spread. The bits are the same on any layout of devices.

    Args:
        dtype: the floating-point dtype; None for that of the arithmetic, at least float32.

    Raises:
        ValueError: if `dtype` is no floating-point dtype.
    """

    dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        if self.dtype is not None and not jnp.issubdtype(jnp.dtype(self.dtype), jnp.floating):
            raise ValueError(f"Dense: dtype must be a floating-point dtype or None, got {self.dtype!r}")


SQUARES = np.dtype(np.uint16)
"""The dtype that stores a moment in bfloat16 if it is never negative.

The bit that a bfloat16 has for the sign is one more digit here, which halves the spacing: these are the 16 bits of a
float32 that follow the sign.
"""


def is_dithered(dtype: np.dtype) -> bool:
    """True if a moment that is stored in `dtype` is dithered."""
    return dtype in (jnp.bfloat16, jnp.float16, SQUARES)


def dithered(value: Array, dtype: np.dtype, threshold: ArrayLike) -> Array:
    """A real `value` in a 16-bit dtype, rounded towards zero after `threshold` / 2³² of a spacing is added to its size.

    What is finite stays finite.
    """
    pattern = to_pattern(value.astype(jnp.float32), jnp.bfloat16 if dtype == SQUARES else dtype)
    infinite = infinity(jnp.bfloat16 if dtype == SQUARES else dtype)
    dropped = np.uint32(15 if dtype == SQUARES else 16)
    raised = pattern + (jnp.asarray(threshold, jnp.uint32) >> (np.uint32(32) - dropped))
    overflows = (pattern & MAGNITUDE < infinite) & (raised & MAGNITUDE >= infinite)
    bits = (jnp.where(overflows, pattern, raised) >> dropped).astype(jnp.uint16)
    return bits if dtype == SQUARES else jax.lax.bitcast_convert_type(bits, dtype)


def undithered(stored: Array) -> Array:
    """The value, in float32, of a moment that was stored in 16 bits."""
    if stored.dtype != SQUARES:
        return stored.astype(jnp.float32)
    return float_of(stored.astype(jnp.uint32) << np.uint32(15))


@jax.custom_jvp
def as_stored(value: Array, loaded: Array) -> Array:
    """A moment as it is loaded after it was stored, with the derivative of what it was before."""
    return loaded.astype(value.dtype)


@as_stored.defjvp
def _(primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Array, Array]:
    return as_stored(*primals), tangents[0]
