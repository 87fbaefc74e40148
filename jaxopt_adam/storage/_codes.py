r"""Numbers in 8 or 4 bits: the codes of a moment, given what is known of its block.

The codes are chosen by the error of the update, m / √v, and so that they take little arithmetic:

- :class:`Root`, for what is never negative, such as v. The code is the number of a line of a grid, on which √v lies or
  next to which it lies. The lines are evenly spaced as bit patterns, read as whole numbers; the bit pattern of a number
  is its logarithm to within a few percent. The lines of a grid are multiples of its spacing, counted from a line that
  the spacing determines. So while a block keeps its spacing, a number that does not change is not rounded again.
  Therefore a block keeps its spacing as long as that is wide enough and little wider than it must be.
- :class:`Quotient`, for what may have either sign, such as m. The code stands for m / (√v + ε), which is the update
  itself. So its error does not depend on how unlike each other the gradients of a block are.

A scale is 16 bits that the codes of a block have in common. The two classes have the same methods, whose arguments are

- `value`: the numbers, float32;
- `denominator`: what the codes of the numbers are relative to, float32 and positive; None for nothing;
- `code`: whole numbers from 0 to 2**bits − 1, int32;
- `grid`: what decodes the numbers of a block, see :data:`Grid`;
- `ruler`: what encodes them, from :meth:`ruler`;
- `threshold`: how to round, see :mod:`jaxopt_adam.storage._rounding`.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxopt_adam.storage._bits import INFINITY, MAGNITUDE, NAN, bits_of, float_of

Grid = tuple[Array, ...]
"""The grid of a block: its scale, taken apart into the 32-bit numbers that decoding or encoding computes with."""


@dataclasses.dataclass(frozen=True)
class Quotient:
    """The sign of value / denominator, and its size as a share of the largest in the block.

    The scale is the largest size, in bfloat16. The shares from 0 to 1 are mapped to the float32 numbers from c to just
    below 4 c, by a factor and the addition of c. The code is the upper bits of such a number's bit pattern, counted
    from those of c. So 0 has a code. In each of the two octaves the numbers with a code are evenly spaced, in the upper
    one twice as far apart. Powers of two have codes too. Therefore what is half way between the bit patterns of two
    neighbours is half way between the numbers.
    """

    bits: int

    @property
    def scale_dtype(self) -> np.dtype:
        """The dtype of a scale."""
        return np.dtype(jnp.bfloat16)

    @functools.cached_property
    def _dropped(self) -> int:
        """The number of a pattern's lower bits that are not in a code. The codes but the sign fill two octaves."""
        return 25 - self.bits

    @functools.cached_property
    def _least(self) -> np.float32:
        """The constant c, a number from 1/4 to 1/2 whose dropped bits are zero.

        It decides at which shares the spacing doubles. That matters little: with dither and shares that are distributed
        as the normal, the Laplace or a wider distribution, the error is within 2 percent of that with the best c, and
        the worst c adds 6 percent.
        """
        return np.float32(85 / 256 if self.bits == 8 else 7 / 16)

    @functools.cached_property
    def _most(self) -> np.float32:
        """The number to which the largest size of a block is scaled, before c is added.

        It is a little less than the number of the largest code, so that with the threshold added no number passes that.
        The largest code then stands for a little more than the scale. The excess is less than any average decays in a
        step, or else the average would grow.
        """
        last = self._least.view(np.int32) + ((2 ** (self.bits - 1) - 1) << self._dropped)
        return (np.int32(last).view(np.float32) - self._least) * np.float32(1 - 2**-19)

    def measures(self, value: Array, denominator: Array | None) -> tuple[Array, ...]:
        """Int32 numbers of each element; the largest in a block determine its scale. What is below zero counts as 0."""
        return (bits_of(_divided(jnp.abs(value), denominator)),)

    def scale(self, before: Array, *largest: Array) -> Array:
        """The scale of blocks with these largest measures, whose scale was `before`."""
        # Rounded up to bfloat16, which is the upper half of a float32; no less than what has a reciprocal.
        pattern = jnp.where(largest[0] >= INFINITY, NAN, jnp.maximum(largest[0], _LEAST))
        upper = (jnp.where(largest[0] > 0, pattern, 0) + 0xFFFF) >> 16
        return jax.lax.bitcast_convert_type(upper.astype(jnp.uint16), jnp.bfloat16)

    def grid(self, scale: Array) -> Grid:
        """The grid that a scale stands for."""
        return (scale.astype(jnp.float32) * (1 / self._most),)

    def ruler(self, grid: Grid) -> Grid:
        """The numbers that encoding to the lines of a grid computes with."""
        (unit,) = grid
        is_positive = unit > 0
        return (jnp.where(is_positive, 1 / jnp.where(is_positive, unit, 1), 0),)

    def encode(self, value: Array, denominator: Array | None, ruler: Grid, threshold: Array, shift: int = 0) -> Array:
        """The codes, shifted to the left."""
        share = _divided(jnp.abs(value) * ruler[0], denominator)
        distance = bits_of(share + self._least) - self._least.view(np.int32)
        raised = distance + (threshold >> np.uint32(32 - self._dropped)).astype(jnp.int32)
        sign = 2 ** (self.bits - 1) << shift
        size = (raised >> (self._dropped - shift)) & (sign - (1 << shift))
        return size | ((bits_of(value) >> (32 - self.bits - shift)) & sign)

    def decode(self, code: Array, denominator: Array | None, grid: Grid) -> Array:
        """The float32 numbers that the codes stand for."""
        sign = 2 ** (self.bits - 1)
        size = float_of(((code & (sign - 1)) << self._dropped) + self._least.view(np.int32)) - self._least
        share = float_of(bits_of(size) | ((code & sign) << (32 - self.bits))) * grid[0]
        return share if denominator is None else share * denominator


@dataclasses.dataclass(frozen=True)
class Root:
    """The number of a line of a grid, next to √value; code 0 is zero, and only zero.

    The line of code n has the bit pattern *lowest + (n − 1) · spacing*. Both come from the scale, 16 bits. The five
    lower bits are an index of the spacing, which is 4, 5, 6 or 7 times a power of two. The eleven upper bits say how
    far the lowest line is from the first line that grids of this spacing have, in units of a multiple of the spacing.
    """

    bits: int

    @property
    def scale_dtype(self) -> np.dtype:
        """The dtype of a scale."""
        return np.dtype(np.uint16)

    @functools.cached_property
    def steps(self) -> int:
        """The number of spacings from the lowest line of a grid to the highest."""
        return 2**self.bits - 2

    def measures(self, value: Array, denominator: Array | None) -> tuple[Array, ...]:
        """Int32 numbers of each element; the largest in a block determine its scale. What is below zero counts as 0."""
        # Bit patterns are ordered as the numbers are, and as their roots. The largest of the first is that of the
        # largest number. The second is 2³¹ less the pattern, so the largest is that of the smallest number but zero;
        # for zero 2³¹ wraps around to −2³¹, the least.
        pattern = bits_of(value) & MAGNITUDE
        return pattern, _WRAP - pattern

    def extremes(self, *largest: Array) -> tuple[Array, Array]:
        """The bit patterns of the least root but zero and of the largest in blocks with these largest measures."""
        high = jnp.maximum(_root_pattern(float_of(largest[0])), _ORIGIN)
        return jnp.clip(_root_pattern(float_of(_WRAP - largest[1])), _ORIGIN, high), high

    def scale(self, before: Array, *largest: Array) -> Array:
        """The scale of blocks with these largest measures, whose scale was `before`."""
        low, high = self.extremes(*largest)
        # The narrowest that spans these, as a float32 with two bits behind the leading one, rounded up.
        wanted = (high - low).astype(jnp.float32) * np.float32(1 / self.steps)
        spacing = jnp.clip(((bits_of(wanted) + 0x1FFFFF) >> 21) - _LEAST_SPACING, 0 if self.bits == 8 else 8, WIDEST)

        def short(spacing: Array) -> Array:
            # The lowest line is below `low`, by so much that the highest may be below `high`.
            first, unit = _first_line(spacing), _unit(spacing)
            lowest = first + _lines(low, first, unit) * unit
            return high - lowest > self.steps * spacing_of(spacing)

        for _ in range(2 if self.bits == 8 else 4):
            spacing = jnp.where(short(spacing), jnp.minimum(spacing + 1, WIDEST), spacing)
        # Where the extremes come and go about what a spacing spans, it would change every few steps, and each time all
        # numbers of the block would be rounded anew. These errors add up to more than a somewhat wider spacing costs.
        kept = before.astype(jnp.int32) & 31
        wider = kept - spacing
        spacing = jnp.where((wider > 0) & (wider <= (1 if self.bits == 8 else 2)) & ~short(kept), kept, spacing)
        first, unit = _first_line(spacing), _unit(spacing)
        raised = _lines(high - self.steps * spacing_of(spacing), first, unit, jnp.ceil)
        lines = _lines(low, first, unit)
        lines = jnp.where(spacing == WIDEST, jnp.maximum(lines, raised), lines)
        return jnp.where(largest[0] >= INFINITY, POISON, (lines << 5) | spacing).astype(jnp.uint16)

    def grid(self, scale: Array) -> Grid:
        """The grid that a scale stands for."""
        scale = scale.astype(jnp.int32)
        index = scale & 31
        poisoned = scale == POISON
        lowest = jnp.maximum(_lowest_line(scale >> 5, index), _LEAST_PATTERN)
        # The line of code 0, if that stood for one, and the index of the spacing, a byte for each block. With the least
        # NaN and the narrowest spacing all lines are NaN.
        origin = jnp.where(poisoned, INFINITY + 1, lowest - spacing_of(index))
        return origin, jnp.where(poisoned, 0, index).astype(jnp.uint8)

    def ruler(self, grid: Grid) -> Grid:
        """The numbers that encoding to the lines of a grid computes with."""
        origin, index, *_ = grid
        return origin, 1 / spacing_of(index.astype(jnp.int32)).astype(jnp.float32)

    def encode(self, value: Array, denominator: Array | None, ruler: Grid, threshold: Array, shift: int = 0) -> Array:
        """The codes, shifted to the left."""
        origin, per_spacing, *_ = ruler
        pattern = bits_of(self.scaled_root(value, ruler))
        line = (pattern - origin).astype(jnp.float32) * per_spacing
        # The threshold as a share of a spacing, less a half. Adding _WHOLE rounds to the nearest whole number. With the
        # half taken off, that is rounding down.
        code = bits_of(line + (uniform(threshold) - 1.5) + _WHOLE) - _WHOLE_BITS
        return jnp.where(pattern != 0, jnp.clip(code, 1, self.steps + 1) << shift, 0)

    def scaled_root(self, value: Array, ruler: Grid) -> Array:
        """The root whose position among the lines is the code."""
        return jnp.sqrt(value)

    def decode(self, code: Array, denominator: Array | None, grid: Grid) -> Array:
        """The float32 numbers that the codes stand for."""
        root = self.root(code, grid)
        return root * root

    def root(self, code: Array, grid: Grid) -> Array:
        """The square roots of the numbers that the codes stand for."""
        origin, index, *_ = grid
        return jnp.where(code > 0, float_of(origin + code * spacing_of(index.astype(jnp.int32))), 0)


Code = Quotient | Root


_WRAP = np.int32(-(2**31))
"""The integer 2³¹, as int32 has it."""
_ONE = np.int32(0x3F800000)
"""The bit pattern of 1."""
_LEAST = np.int32(0x04800000)
"""The bit pattern of 2⁻¹¹⁸, the least scale of a quotient that is not zero."""
_ORIGIN = np.int32((127 - 80) << 23)
"""The bit pattern of 2⁻⁸⁰, below the root of any float32; about here the lines of all grids begin."""
_LEAST_PATTERN = np.float32(2**-63 * (1 + 2**-23)).view(np.int32)
"""The bit pattern of the root of the least float32 that computers do not flush to zero, 2⁻¹²⁶, or just above it."""
_LEAST_SPACING = np.int32((127 + 15) << 2)
"""The upper bits of 2¹⁵, the narrowest spacing: a grid of 8 bits then spans two octaves."""
WIDEST = 31
"""The index of the widest spacing: a grid of 4 bits then spans 24 octaves, and smaller numbers are raised to it."""
_UNIT = 5
"""The unit of the lowest line is 2⁵ narrowest spacings, or more."""
POISON = np.int32(0xFFFF)
"""A grid of nothing but NaN."""
_WHOLE = np.float32(1.5 * 2**23)
"""A float32 of that size has no fractional bits."""
_WHOLE_BITS = _WHOLE.view(np.int32)
"""The bits of that."""


def uniform(threshold: Array) -> Array:
    """One and the threshold / 2³²."""
    return float_of((threshold >> np.uint32(9)) | np.uint32(_ONE))


def _divided(value: Array, denominator: Array | None) -> Array:
    return value if denominator is None else value / denominator


def _root_pattern(value: Array) -> Array:
    """The bit pattern of the root."""
    return bits_of(jnp.sqrt(value))


def spacing_of(index: Array) -> Array:
    """The spacing with this index, from 0 to 31."""
    return (4 + (index & 3)) << (13 + (index >> 2))


def _unit(index: Array) -> Array:
    """The unit in which the lowest line of a grid is counted from the first line."""
    return spacing_of(index) << jnp.maximum(_UNIT - (index >> 2), 0)


def _first_line(index: Array) -> Array:
    """The bit pattern of the first line of all grids of a spacing.

    Where the lines of an octave lie decides how fast a number that only decays falls. Rounding with dither has no bias
    in the bit pattern; the decay is one of log √v. With the logarithm a pattern grows 0.7 times as fast as on average
    just above a power of two, and 1.4 times as fast just below one. These errors cancel where the lines of an octave
    lie evenly about its middle. Two lines of different octaves differ, up to whole octaves and spacings, by the lowest
    bit of the spacing that is set. So lines that are lower than the powers of two by half of that lie evenly. With a
    line on every power of two, numbers fall too fast, in 4 bits by up to a fifth.

    Numbers also fall a few percent too fast for another reason: evenly spread thresholds come back sooner to a number
    whose decay has just become slower. Lines that are lower by a sixteenth of the spacing make up for that.
    """
    spacing = spacing_of(index)
    return _ORIGIN - ((spacing & -spacing) >> 1) - (spacing >> 4)


def _lines(pattern: Array, first: Array, unit: Array, rounded: Callable[[Array], Array] = jnp.floor) -> Array:
    """The number of units from the first line to the one below a bit pattern, which is the lowest line of a grid."""
    return rounded((pattern - first).astype(jnp.float32) / unit.astype(jnp.float32)).astype(jnp.int32)


def _lowest_line(lines: Array, index: Array) -> Array:
    """The bit pattern of the lowest line of a grid, so many units from the first line."""
    return _first_line(index) + lines * _unit(index)
