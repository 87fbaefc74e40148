r"""Numbers in 8 or 4 bits: the codes of a moment, given what is known of its block.

Both kinds of code are chosen by the error of the update, m / √v:

- :class:`Root`, for what is never negative, such as v. The code is the place of √v on a grid of the bit patterns of
  float32 numbers, read as whole numbers, which is a logarithm to within a few percent. The lines of a grid are the
  multiples of its spacing, the same for all blocks and steps, so a number that does not change is not rounded again;
  and rounding that is fair between the lines leaves log v unbiased to the second order.
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

    def scale(self, *largest: Array) -> Array:
        """The scale of blocks with these largest measures, in `scale_dtype`."""
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
        # A little less than the largest code, so that what is added before rounding down never passes it.
        return np.float32(2 ** (self.bits - 1) - 1 - 2**-10)

    @property
    def _flatness(self) -> np.float32:
        # Its square is exact, so that zero becomes the level zero.
        return np.float32(0.375 if self.bits == 8 else 0.5)

    def measures(self, value: Array, root: Array) -> tuple[Array, ...]:  # noqa: D102
        return (_bits(jnp.abs(_over(value, root))),)

    def scale(self, *largest: Array) -> Array:  # noqa: D102
        # Rounded up to bfloat16, which is the upper half of a float32; no less than what has a reciprocal.
        upper = jnp.where(largest[0] > 0, jnp.clip(largest[0], _LEAST, _NAN), 0) + 0xFFFF >> 16
        return jax.lax.bitcast_convert_type(upper.astype(jnp.uint16), jnp.bfloat16)

    def grid(self, scale: Array) -> Grid:  # noqa: D102
        scale = scale.astype(jnp.float32)
        return scale, jnp.where(scale > 0, 1 / scale, 0)

    def encode(self, value: Array, root: Array, grid: Grid, threshold: Array) -> Array:  # noqa: D102
        a = self._flatness
        share = _over(value, root) * grid[1]
        size = (jnp.sqrt(a * a + 4 * (1 - a) * jnp.abs(share)) - a) * (self._levels / (2 * (1 - a)))
        return _rounded(jnp.where(share < 0, -size, size), threshold, 2 ** (self.bits - 1)) & (2**self.bits - 1)

    def decode(self, code: Array, root: Array, grid: Grid) -> Array:  # noqa: D102
        level = (code - 2 ** (self.bits - 1)).astype(jnp.float32) * (1 / self._levels)
        share = level * (self._flatness + (1 - self._flatness) * jnp.abs(level))
        return share * grid[0] * jnp.where(root > 0, root, 1)


@dataclasses.dataclass(frozen=True)
class Root:
    """The place of √value on a grid of bit patterns; code 0 is zero, and only zero.

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

    @property
    def _widest(self) -> int:
        # In 4 bits as for a range of 9 octaves: what is below that is raised to the lowest line.
        return 31 if self.bits == 8 else 29

    def measures(self, value: Array, root: Array) -> tuple[Array, ...]:  # noqa: D102
        place = self._place(value)
        return place, jnp.where(place > 0, _INFINITY - place, 0)

    def scale(self, *largest: Array) -> Array:  # noqa: D102
        high = largest[0]
        low = jnp.clip(_INFINITY - largest[1], 0, high)
        spacing, unit, lines = self._spanning(high - low, low)
        for _ in range(2):  # the lowest line is lower than that, which may want a wider spacing
            spacing, unit, lines = self._spanning(high - lines * unit, low)
        raised = _divided(high - self._steps * _spacing(spacing), unit, jnp.ceil)
        lines = jnp.where(spacing == self._widest, jnp.maximum(lines, raised), lines)
        return jnp.where(high >= _INFINITY, _POISON, lines << 5 | spacing).astype(jnp.uint16)

    def _spanning(self, span: Array, low: Array) -> tuple[Array, Array, Array]:
        """The narrowest spacing for such a span, the unit of the lowest line, and how many of it are below `low`."""
        wanted = span.astype(jnp.float32) * np.float32(1 / self._steps)
        # As a float32 with two bits behind the leading one, rounded up.
        spacing = jnp.clip((_bits(wanted) + 0x1FFFFF >> 21) - _LEAST_SPACING, 0, self._widest)
        unit = _unit(spacing)
        return spacing, unit, _divided(low, unit, jnp.floor)

    def grid(self, scale: Array) -> Grid:  # noqa: D102
        scale = scale.astype(jnp.int32)
        spacing = scale & 31
        return (scale >> 5) * _unit(spacing), _spacing(spacing), 1 / _spacing(spacing).astype(jnp.float32)

    def encode(self, value: Array, root: Array, grid: Grid, threshold: Array) -> Array:  # noqa: D102
        lowest, _, per_line = grid
        place = self._place(value)
        line = _rounded((place - lowest).astype(jnp.float32) * per_line, threshold, 0)
        return jnp.where(place > 0, jnp.clip(line - _bits(_WHOLE) + 1, 1, self._steps + 1), 0)

    def decode(self, code: Array, root: Array, grid: Grid) -> Array:  # noqa: D102
        value = self.root(code, grid)
        return value * value

    def root(self, code: Array, grid: Grid) -> Array:
        """The root of what the codes stand for."""
        lowest, spacing, _ = grid
        return jnp.where(code > 0, _float(lowest + (code - 1) * spacing), 0)

    @staticmethod
    def _place(value: Array) -> Array:
        return _bits(jnp.sqrt(value)) & 0x7FFFFFFF  # NaN may have a sign


_INFINITY = np.int32(0x7F800000)
"""The bit pattern of infinity, above which are those of NaN."""
_NAN = np.int32(0x7FC00000)
_LEAST = np.int32(0x04800000)
"""The bit pattern of 2⁻¹¹⁸."""
_LEAST_SPACING = np.int32((127 + 15) << 2)
"""The upper bits of 2¹⁵, the narrowest spacing: a grid of 8 bits then spans an octave."""
_UNIT = 5
"""The unit of the lowest line is 2⁵ narrowest spacings, or more."""
_POISON = np.int32(0x7FF << 5)
"""A grid of nothing but NaN."""
_WHOLE = np.float32(1.5 * 2**23)
"""A float32 of that size has no bits left behind the point."""


def _spacing(index: Array) -> Array:
    return (4 + (index & 3)) << (13 + (index >> 2))


def _unit(index: Array) -> Array:
    return _spacing(index) << jnp.maximum(_UNIT - (index >> 2), 0)


def _divided(number: Array, by: Array, rounded: Callable[[Array], Array]) -> Array:
    return rounded(number.astype(jnp.float32) / by.astype(jnp.float32)).astype(jnp.int32)


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
