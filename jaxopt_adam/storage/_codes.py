r"""Numbers in 8 or 4 bits: the codes of a moment, given what is known of its block.

The codes are chosen by the error of the update, m / √v, and so that they take little arithmetic:

- :class:`Root`, for what is never negative, such as v. The code is the place of √v on a grid of the bit patterns of
  float32 numbers, read as whole numbers, which is a logarithm to within a few percent. The lines of a grid are the
  multiples of its spacing, so while that stays a number that does not change is not rounded again; therefore a block
  keeps its spacing while that is wide enough and little wider than it must be.
- :class:`Quotient`, for what may have either sign, such as m. The code stands for m / (√v + ε), which is the update
  itself, and does not depend on how unlike each other the gradients of a block are.

A scale is the few bits that a block's codes have in common.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

Grid = tuple[Array, ...]
"""Decoding parameters of the block of each element."""


class Code(Protocol):
    """A code; codes are whole numbers from 0 to 2**bits - 1.

    `value` is float32, and so is `over`, what the code of a value is relative to, which is positive; None for nothing.
    """

    @property
    def bits(self) -> int:
        """The bits of a code, 8 or 4."""
        ...

    @property
    def scale_dtype(self) -> np.dtype:
        """The dtype of a scale."""
        ...

    def measures(self, value: Array, over: Array | None) -> tuple[Array, ...]:
        """Int32 numbers of each element; the largest in a block, and none below zero, determine its scale."""
        ...

    def scale(self, before: Array, *largest: Array) -> Array:
        """The scale of blocks with these largest measures, whose scale was `before`, in `scale_dtype`."""
        ...

    def grid(self, scale: Array) -> Grid:
        """The decoding parameters that a scale stands for, in 32 bits, which processors compute in fastest."""
        ...

    def encode(self, value: Array, over: Array | None, grid: Grid, threshold: Array, shift: int = 0) -> Array:
        """The codes as int32, shifted to the left.

        `threshold` says how to round, see :mod:`jaxopt_adam.storage._rounding`.
        """
        ...

    def decode(self, code: Array, over: Array | None, grid: Grid) -> Array:
        """The float32 numbers that the int32 codes stand for."""
        ...


@dataclasses.dataclass(frozen=True)
class Quotient:
    """The sign of value / over and its share of the block's largest; the scale is that, in bfloat16.

    The shares are those of float32 numbers from c to 4 c, less c, whose bit patterns are evenly spaced. So they lie the
    closer the smaller they are, zero is one of them, and what is half way between two bit patterns is half way between
    their numbers: powers of two are among them.
    """

    bits: int

    @property
    def scale_dtype(self) -> np.dtype:
        return np.dtype(jnp.bfloat16)

    @functools.cached_property
    def _spare(self) -> int:
        # A pattern's bits behind those of the code; two octaves have all codes but the sign.
        return 25 - self.bits

    @functools.cached_property
    def _least(self) -> np.float32:
        return np.float32(85 / 256 if self.bits == 8 else 7 / 16)

    @functools.cached_property
    def _most(self) -> np.float32:
        # A little less than the largest code, so that what is added before rounding down never passes it. The largest
        # code then stands for a little more than the scale: less than any average decays in a step, or it would grow.
        last = self._least.view(np.int32) + ((2 ** (self.bits - 1) - 1) << self._spare)
        return (np.int32(last).view(np.float32) - self._least) * np.float32(1 - 2**-19)

    def measures(self, value: Array, over: Array | None) -> tuple[Array, ...]:
        return (_bits(_over(jnp.abs(value), over)),)

    def scale(self, before: Array, *largest: Array) -> Array:
        # Rounded up to bfloat16, which is the upper half of a float32; no less than what has a reciprocal.
        pattern = jnp.where(largest[0] >= _INFINITY, _NAN, jnp.maximum(largest[0], _LEAST))
        upper = jnp.where(largest[0] > 0, pattern, 0) + 0xFFFF >> 16
        return jax.lax.bitcast_convert_type(upper.astype(jnp.uint16), jnp.bfloat16)

    def grid(self, scale: Array) -> Grid:
        scale = scale.astype(jnp.float32)
        return scale * (1 / self._most), jnp.where(scale > 0, self._most / scale, 0)

    def encode(self, value: Array, over: Array | None, grid: Grid, threshold: Array, shift: int = 0) -> Array:
        share = _over(jnp.abs(value) * grid[1], over)
        place = _bits(share + self._least) - self._least.view(np.int32)
        raised = place + (threshold >> np.uint32(32 - self._spare)).astype(jnp.int32)
        sign = 2 ** (self.bits - 1) << shift
        return (raised >> self._spare - shift & sign - (1 << shift)) | _bits(value) >> 32 - self.bits - shift & sign

    def decode(self, code: Array, over: Array | None, grid: Grid) -> Array:
        sign = 2 ** (self.bits - 1)
        size = _float(((code & sign - 1) << self._spare) + self._least.view(np.int32)) - self._least
        share = _float(_bits(size) | (code & sign) << 32 - self.bits) * grid[0]
        return share if over is None else share * over


@dataclasses.dataclass(frozen=True)
class Root:
    """The place of √value on a grid of bit patterns; code 0 is zero, and only zero.

    The scale is a number of 16 bits. The five lower ones are the grid's spacing, which is 4, 5, 6 or 7 times a power of
    two; the eleven upper ones are its lowest line, in units of the spacing times a power of two.
    """

    bits: int

    @property
    def scale_dtype(self) -> np.dtype:
        return np.dtype(np.uint16)

    @functools.cached_property
    def _steps(self) -> int:
        return 2**self.bits - 2

    def measures(self, value: Array, over: Array | None) -> tuple[Array, ...]:
        # The order of the numbers is that of their roots.
        pattern = _bits(value) & _MAGNITUDE
        # Of the second the largest is that of the smallest number but zero, for which it wraps around to the least.
        return pattern, _WRAP - pattern

    def scale(self, before: Array, *largest: Array) -> Array:
        high = jnp.maximum(_place(_float(largest[0])), _ORIGIN)
        low = jnp.clip(_place(_float(_WRAP - largest[1])), _ORIGIN, high)
        # The narrowest that spans these, as a float32 with two bits behind the leading one, rounded up.
        wanted = (high - low).astype(jnp.float32) * np.float32(1 / self._steps)
        spacing = jnp.clip((_bits(wanted) + 0x1FFFFF >> 21) - _LEAST_SPACING, 0 if self.bits == 8 else 8, _WIDEST)

        def short(spacing: Array) -> Array:
            # The lowest line is below `low`, by so much that the highest may be below `high`.
            return high - _line(_lines(low, spacing), spacing) > self._steps * _spacing(spacing)

        for _ in range(2 if self.bits == 8 else 4):
            spacing = jnp.where(short(spacing), jnp.minimum(spacing + 1, _WIDEST), spacing)
        # Where the extremes come and go about what a spacing spans, it would change every few steps, and each time all
        # numbers of the block would be rounded anew. These errors add up to more than a somewhat wider spacing costs.
        kept = before.astype(jnp.int32) & 31
        wider = kept - spacing
        spacing = jnp.where((wider > 0) & (wider <= (1 if self.bits == 8 else 2)) & ~short(kept), kept, spacing)
        raised = _lines(high - self._steps * _spacing(spacing), spacing, jnp.ceil)
        lines = _lines(low, spacing)
        lines = jnp.where(spacing == _WIDEST, jnp.maximum(lines, raised), lines)
        return jnp.where(largest[0] >= _INFINITY, _POISON, lines << 5 | spacing).astype(jnp.uint16)

    def grid(self, scale: Array) -> Grid:
        scale = scale.astype(jnp.int32)
        index = scale & 31
        poisoned = scale == _POISON
        spacing = _spacing(index)
        lowest = jnp.maximum(_line(scale >> 5, index), _LEAST_PLACE)
        # The line of code 0, if that stood for one.
        origin = jnp.where(poisoned, _NAN, lowest - spacing)
        return origin, jnp.where(poisoned, 0, spacing), 1 / spacing.astype(jnp.float32)

    def encode(self, value: Array, over: Array | None, grid: Grid, threshold: Array, shift: int = 0) -> Array:
        origin, _, per_line = grid
        place = _place(value)
        line = (place - origin).astype(jnp.float32) * per_line
        # The threshold as a share of a line, less a half. Adding _WHOLE rounds to the nearest whole number. With the
        # half taken off, that is rounding down.
        share = _float(threshold >> np.uint32(9) | np.uint32(_ONE)) - 1.5
        code = jnp.clip(_bits(line + share + _WHOLE), _WHOLE_BITS + 1, _WHOLE_BITS + self._steps + 1) & 0xFFFF
        return jnp.where(place != 0, code << shift, 0)

    def decode(self, code: Array, over: Array | None, grid: Grid) -> Array:
        root = self.root(code, grid)
        return root * root

    def root(self, code: Array, grid: Grid) -> Array:
        """The root of what the codes stand for."""
        origin, spacing, _ = grid
        return jnp.where(code > 0, _float(origin + code * spacing), 0)


_INFINITY = np.int32(0x7F800000)
"""The bit pattern of infinity, above which are those of NaN."""
_NAN = np.int32(0x7FC00000)
_MAGNITUDE = np.int32(0x7FFFFFFF)
_WRAP = np.int32(-(2**31))
_ONE = np.int32(0x3F800000)
_LEAST = np.int32(0x04800000)
"""The bit pattern of 2⁻¹¹⁸."""
_ORIGIN = np.int32((127 - 80) << 23)
"""The bit pattern of 2⁻⁸⁰, below the root of any float32; about here the lines of all grids begin."""
_LEAST_PLACE = np.float32(2**-63 * (1 + 2**-23)).view(np.int32)
"""The bit pattern of the root of the least float32 that computers do not flush to zero, 2⁻¹²⁶, or just above it."""
_LEAST_SPACING = np.int32((127 + 15) << 2)
"""The upper bits of 2¹⁵, the narrowest spacing: a grid of 8 bits then spans two octaves."""
_WIDEST = 31
"""The index of the widest spacing: a grid of 4 bits then spans 24 octaves, and what is below is raised to it."""
_UNIT = 5
"""The unit of the lowest line is 2⁵ narrowest spacings, or more."""
_POISON = np.int32(0xFFFF)
"""A grid of nothing but NaN."""
_WHOLE = np.float32(1.5 * 2**23)
"""A float32 of that size has no bits left behind the point."""
_WHOLE_BITS = _WHOLE.view(np.int32)
"""The bits of that; the lower sixteen are zero."""


def _over(value: Array, over: Array | None) -> Array:
    return value if over is None else value / over


def _place(value: Array) -> Array:
    return _bits(jnp.sqrt(value))


def _spacing(index: Array) -> Array:
    return (4 + (index & 3)) << (13 + (index >> 2))


def _unit(index: Array) -> Array:
    return _spacing(index) << jnp.maximum(_UNIT - (index >> 2), 0)


def _first(index: Array) -> Array:
    """The place of the first line of all grids of a spacing.

    Where the lines of an octave lie determines how fast a number that only decays falls. A pattern counts 1.4 times the
    octaves just below a power of two, and 0.7 times those just above it. Shares that are linear in patterns are fair
    in log √v where the lines of an octave lie evenly about its middle, which the spacing's lowest bit says: that is the
    distance of two lines of different octaves. With a line on every power of two, numbers fall too fast, in 4 bits by
    up to a fifth. They also fall by a few percent too fast because evenly spread thresholds come back sooner to a
    number whose decay has just become slower. Lines that are lower by a sixteenth of the spacing make up for that.
    """
    spacing = _spacing(index)
    return _ORIGIN - ((spacing & -spacing) >> 1) - (spacing >> 4)


def _lines(place: Array, index: Array, rounded: Callable[[Array], Array] = jnp.floor) -> Array:
    """The number of units from the first line to the one below a place, which is the lowest line of a grid."""
    return rounded((place - _first(index)).astype(jnp.float32) / _unit(index).astype(jnp.float32)).astype(jnp.int32)


def _line(lines: Array, index: Array) -> Array:
    """The place of the lowest line of a grid."""
    return _first(index) + lines * _unit(index)


def _bits(value: Any) -> Array:
    return jax.lax.bitcast_convert_type(value, jnp.int32)


def _float(bits: Array) -> Array:
    return jax.lax.bitcast_convert_type(bits, jnp.float32)
