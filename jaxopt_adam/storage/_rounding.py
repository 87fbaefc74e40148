"""The rounding of numbers between two codes: with little bias, and the same bits on any layout of devices."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

Thresholds = Callable[[Array, Sequence[Array]], Array]
"""``thresholds(step, phases)``: a uint32 u for each element; u / 2³² of a spacing is added before rounding down."""

_GOLDEN = np.uint32(2654435769)
"""2³² times the golden ratio's 0.618…, whose multiples fill the circle as evenly as can be."""

NEAREST = np.uint32(1 << 31)
"""One half, the threshold that turns rounding down into rounding to nearest."""


def phases(shape: tuple[int, ...], salt: int) -> list[Array]:
    """A uint32 for each position along each axis; an element's phase is the sum of those of its positions.

    `salt` is another number for each moment, whose roundings must have nothing to do with each other.
    """
    return [mixed(jax.lax.iota(jnp.uint32, size) + salted(salt, axis)) for axis, size in enumerate(shape)]


def along_axes(vectors: Sequence[Array], axes: int) -> list[Array]:
    """Vectors, each along an axis of its own, such that they broadcast to an array of so many axes; the first first."""
    return [vector.reshape(-1, *[1] * (axes - 1 - axis)) for axis, vector in enumerate(vectors)]


@functools.cache
def salted(salt: int, axis: int) -> np.uint32:
    """The number that is added to a position along `axis` before it is hashed to its phase."""
    return np.uint32(0x9E3779B1 * (16 * salt + axis + 1) & 0xFFFFFFFF)


def _nearest(step: Array, phases: Sequence[Array]) -> Array:
    return jnp.asarray(NEAREST)


def _dither(step: Array, phases: Sequence[Array]) -> Array:
    """U = phase + t · 0.618… (mod 1): over any stretch of steps an element is rounded up with the right frequency."""
    return sum(phases, step.astype(jnp.uint32) * _GOLDEN)


def _stochastic(step: Array, phases: Sequence[Array]) -> Array:
    """Random numbers that are a function of the step and the position."""
    return mixed(sum(phases, mixed(step.astype(jnp.uint32) * _GOLDEN)))


ROUNDINGS: dict[str, Thresholds] = {"dither": _dither, "stochastic": _stochastic, "nearest": _nearest}


def mixed(bits: Array) -> Array:
    """A hash of 32 bits, the last lines of MurmurHash3: each bit of the result depends on each bit of the argument."""
    bits = (bits ^ (bits >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return bits ^ (bits >> np.uint32(16))
