r"""Numbers in 8 or 4 bits: the codes of a moment, given what is known of its block.

Both kinds of code are chosen by the error of the update, m / √v:

- :class:`Root`, for what is never negative, such as v. The code is the place of v^¼ on a grid of the bit patterns of
  float32 numbers, read as whole numbers, which is a logarithm to within a few percent. The lines of a grid are the
  multiples of its spacing, so while that stays a number that does not change is not rounded again; therefore a block
  keeps its spacing while that is wide enough and at most one wider than it must be.
  How fair rounding is in v^¼ and in its logarithm decides how log v is biased over many steps.
- :class:`Quotient`, for what may have either sign, such as m. The code stands for m / √v, which is the update itself,
  and does not depend on how unlike each other the gradients of a block are. Its levels lie closer near zero.

A scale is the few bits that a block's codes have in common.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

__all__ = ["Code", "Quotient", "Root"]


Grid = tuple[Array, ...]
"""What a code has to know of the block of each element."""


class Code(Protocol):
    """A code; codes are whole numbers from 0 to 2**bits - 1.

    `value` is float32, and `root` the root of the second moment that the code may be relative to, or 1.
    """

    @property
    def bits(self) -> int:
        """The bits of a code, 8 or 4."""
        ...

    @property
    def scale_dtype(self) -> np.dtype:
        """The dtype of a scale."""
        ...

    def measures(self, value: Array, root: Array) -> tuple[Array, ...]:
        """Nonnegative int32 numbers of each element, whose largest in a block determine its scale."""
        ...

    def scale(self, before: Array, *largest: Array) -> Array:
        """The scale of blocks with these largest measures, whose scale was `before`, in `scale_dtype`."""
        ...

    def grid(self, scale: Array) -> Grid:
        """What a scale says, in numbers of 32 bits, in which computers compute fastest."""
        ...

    def encode(self, value: Array, root: Array, grid: Grid, threshold: Array) -> Array:
        """The codes as int32; `threshold` says how to round, see :mod:`jaxopt_adam.storage.rounding`."""
        ...

    def decode(self, code: Array, root: Array, grid: Grid) -> Array:
        """The float32 numbers that the int32 codes stand for."""
        ...


@dataclasses.dataclass(frozen=True)
class Quotient:
    """The levels of value / root, from minus the block's largest to the largest; the scale is that, in bfloat16.

    Level y, from -1 to 1, stands for the share y (a + (1 - a) |y|) of the largest, with a < 1.
    """

    bits: int

    @property
    def scale_dtype(self) -> np.dtype:  # noqa: D102
        return np.dtype(jnp.bfloat16)

    @property
    def _levels(self) -> np.float32:
        # A little less than the largest code, so that what is added before rounding down never passes it. The largest
        # code then stands for a little more than the scale: less than any average decays in a step, or it would grow.
        return np.float32((2 ** (self.bits - 1) - 1) * (1 - 2**-18))

    @property
    def _flatness(self) -> np.float32:
        # Its square is exact, so that zero becomes the level zero.
        return np.float32(0.375 if self.bits == 8 else 0.5)

    def measures(self, value: Array, root: Array) -> tuple[Array, ...]:  # noqa: D102
        return (_bits(jnp.abs(_over(value, root))),)

    def scale(self, before: Array, *largest: Array) -> Array:  # noqa: D102
        # Rounded up to bfloat16, which is the upper half of a float32; no less than what has a reciprocal.
        pattern = jnp.where(largest[0] >= _INFINITY, _NAN, jnp.maximum(largest[0], _LEAST))
        upper = jnp.where(largest[0] > 0, pattern, 0) + 0xFFFF >> 16
        return jax.lax.bitcast_convert_type(upper.astype(jnp.uint16), jnp.bfloat16)

    def grid(self, scale: Array) -> Grid:  # noqa: D102
        scale = scale.astype(jnp.float32)
        return scale, jnp.where(scale > 0, 1 / scale, 0)

    def encode(self, value: Array, root: Array, grid: Grid, threshold: Array) -> Array:  # noqa: D102
        a = self._flatness
        share = _over(value, root) * grid[1]
        size = (jnp.sqrt(a * a + 4 * (1 - a) * jnp.abs(share)) - a) * (self._levels / (2 * (1 - a)))
        return _rounded(_float(_bits(size) | _bits(share) & _SIGN), threshold, 2 ** (self.bits - 1)) & (
            2**self.bits - 1
        )

    def decode(self, code: Array, root: Array, grid: Grid) -> Array:  # noqa: D102
        level = (code - 2 ** (self.bits - 1)).astype(jnp.float32) * (1 / self._levels)
        share = level * (self._flatness + (1 - self._flatness) * jnp.abs(level))
        return share * grid[0] * jnp.where(root > 0, root, 1)


@dataclasses.dataclass(frozen=True)
class Root:
    """The place of value^¼ on a grid of bit patterns; code 0 is zero, and only zero.

    The scale is a number of 16 bits. The five lower ones are the grid's spacing, which is 4, 5, 6 or 7 times a power of
    two; the eleven upper ones are its lowest line, in units of the spacing times a power of two.
    """

    bits: int

    @property
    def scale_dtype(self) -> np.dtype:  # noqa: D102
        return np.dtype(np.uint16)

    @property
    def _steps(self) -> int:
        return 2**self.bits - 2

    def measures(self, value: Array, root: Array) -> tuple[Array, ...]:  # noqa: D102
        place = self._place(value)
        return place, jnp.where(place > 0, _INFINITY - place, 0)

    def scale(self, before: Array, *largest: Array) -> Array:  # noqa: D102
        high = jnp.maximum(largest[0], _ORIGIN)
        low = jnp.clip(_INFINITY - largest[1], _ORIGIN, high) - _ORIGIN
        high = high - _ORIGIN
        # The narrowest that spans these, as a float32 with two bits behind the leading one, rounded up.
        wanted = (high - low).astype(jnp.float32) * np.float32(1 / self._steps)
        spacing = jnp.clip((_bits(wanted) + 0x1FFFFF >> 21) - _LEAST_SPACING, 0 if self.bits == 8 else 8, _WIDEST)

        def short(spacing: Array) -> Array:
            # The lowest line is below `low`, by so much that the highest may be below `high`.
            return high - _lines(low, spacing) * _unit(spacing) > self._steps * _spacing(spacing)

        for _ in range(2 if self.bits == 8 else 4):
            spacing = jnp.where(short(spacing), jnp.minimum(spacing + 1, _WIDEST), spacing)
        # Where the extremes come and go about what a spacing spans, it would change every few steps, and each time all
        # numbers of the block would be rounded anew. These errors add up to more than a somewhat wider spacing costs.
        kept = before.astype(jnp.int32) & 31
        spacing = jnp.where((kept == spacing + 1) & ~short(kept), kept, spacing)
        raised = _lines(high - self._steps * _spacing(spacing), spacing, jnp.ceil)
        lines = _lines(low, spacing)
        lines = jnp.where(spacing == _WIDEST, jnp.maximum(lines, raised), lines)
        return jnp.where(largest[0] >= _INFINITY, _POISON, lines << 5 | spacing).astype(jnp.uint16)

    def grid(self, scale: Array) -> Grid:  # noqa: D102
        scale = scale.astype(jnp.int32)
        index = scale & 31
        poisoned = scale == _POISON
        lowest = jnp.maximum(_ORIGIN + (scale >> 5) * _unit(index), _LEAST_PLACE)
        lowest = jnp.where(poisoned, _NAN, lowest)
        spacing = _spacing(index)
        fairness = spacing.astype(jnp.float32) * np.float32(self._fairness * 0.72 * 2.0**-24)
        return lowest, jnp.where(poisoned, 0, spacing), 1 / spacing.astype(jnp.float32), fairness

    def encode(self, value: Array, root: Array, grid: Grid, threshold: Array) -> Array:  # noqa: D102
        lowest, _, per_line, fairness = grid
        place = self._place(value)
        line = (place - lowest).astype(jnp.float32) * per_line
        if jnp.ndim(threshold):  # rounding to nearest is not fair anyway
            part = line - jnp.floor(line)
            line = line + fairness * part * (1 - part)
        line = _rounded(line, threshold, 0)
        return jnp.where(place > 0, jnp.clip(line - _WHOLE_BITS + 1, 1, self._steps + 1), 0)

    def decode(self, code: Array, root: Array, grid: Grid) -> Array:  # noqa: D102
        value = self.root(code, grid)
        return value * value

    def root(self, code: Array, grid: Grid) -> Array:
        """The root of what the codes stand for."""
        lowest, spacing, _, _ = grid
        fourth = jnp.where(code > 0, _float(lowest + (code - 1) * spacing), 0)
        return fourth * fourth

    @property
    def _fairness(self) -> float:
        # Rounding by shares that are linear in value^¼ would be fair in that (0), and bias the logarithm of what only
        # decays by half a spacing of its decay. Rounding that is fair in the logarithm (1) biases that of what is fed
        # by gradients, by half the variance that rounding gives it; in 8 bits that is little.
        return 1.0 if self.bits == 8 else 0.75

    @staticmethod
    def _place(value: Array) -> Array:
        return _bits(jnp.sqrt(jnp.sqrt(value))) & 0x7FFFFFFF  # NaN may have a sign


_INFINITY = np.int32(0x7F800000)
"""The bit pattern of infinity, above which are those of NaN."""
_NAN = np.int32(0x7FC00000)
_SIGN = np.int32(-(2**31))
_LEAST = np.int32(0x04800000)
"""The bit pattern of 2⁻¹¹⁸."""
_ORIGIN = np.int32((127 - 40) << 23)
"""The bit pattern of 2⁻⁴⁰, below the fourth root of any float32; from here the lines of all grids are counted."""
_LEAST_PLACE = np.float32(2**-31.5 * (1 + 2**-23)).view(np.int32)
"""The bit pattern of the fourth root of the least float32 that computers do not flush to zero, 2⁻¹²⁶."""
_LEAST_SPACING = np.int32((127 + 14) << 2)
"""The upper bits of 2¹⁴, the narrowest spacing: a grid of 8 bits then spans two octaves."""
_WIDEST = 31
"""The index of the widest spacing: a grid of 4 bits then spans 24 octaves, and what is below is raised to it."""
_UNIT = 5
"""The unit of the lowest line is 2⁵ narrowest spacings, or more."""
_POISON = np.int32(0xFFFF)
"""A grid of nothing but NaN."""
_WHOLE = np.float32(1.5 * 2**23)
"""A float32 of that size has no bits left behind the point."""
_WHOLE_BITS = _WHOLE.view(np.int32)


def _spacing(index: Array) -> Array:
    return (4 + (index & 3)) << (12 + (index >> 2))


def _unit(index: Array) -> Array:
    return _spacing(index) << jnp.maximum(_UNIT - (index >> 2), 0)


def _lines(place: Array, index: Array, rounded: Callable[[Array], Array] = jnp.floor) -> Array:
    """How many units of the lowest line are below a place."""
    return rounded(place.astype(jnp.float32) / _unit(index).astype(jnp.float32)).astype(jnp.int32)


def _rounded(number: Array, threshold: Array, offset: int) -> Array:
    """`number` plus the threshold's share of one, rounded down, plus `offset`: in the lower bits of a pattern."""
    share = _float(threshold >> np.uint32(9) | np.uint32(0x3F800000)) - 1.5
    return _bits(number + share + (_WHOLE + offset))


def _over(value: Array, root: Array) -> Array:
    return value / jnp.where(root > 0, root, 1)


def _bits(value: Any) -> Array:
    return jax.lax.bitcast_convert_type(value, jnp.int32)


def _float(bits: Array) -> Array:
    return jax.lax.bitcast_convert_type(bits, jnp.float32)
