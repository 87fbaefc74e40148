r"""The grids of averages in 4 bits, which slide down as the averages decay.

In 4 bits the lines of a grid are far apart: an average ν with the decay 0.9999 takes 12,000 steps to fall from one to
the next where they are widest. Whether it falls depends on the gradient of the one step in which its threshold is
lowest, so errors add up at random. Where ν averages new gradients, they take the errors back. Where squared gradients
fall faster than ν can, nothing does.

So the lines of a wide grid are multiplied by a factor that decays as ν does. What only decays keeps its code for ever,
and only what gradients add is rounded.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxopt_adam.storage._bits import INFINITY, float_of
from jaxopt_adam.storage._codes import POISON, WIDEST, Grid, Root, spacing_of, uniform

_SLIDING = 24
"""The index of the least spacing of a grid that slides. Its scale has this index less 24, which no other grid has."""
_ONE = np.int32(0x3F800000)
_BITS = 4
"""The bits of a position that count within an octave."""
_PARTS = 1 << _BITS
_FIRST = np.int32((127 - 64) << 23)
"""The bit pattern of 2⁻⁶⁴, from which positions are counted."""
_LEAST = _PARTS + 1
"""The position of the least factor, above 2⁻⁶³: the square of the lowest line must not be flushed to zero."""
_TENTH = np.int32(0.1 * 2**23)
"""A tenth of an octave in bit patterns, which as logarithms are too low by less than that."""
_STAYS = 1 << 16
"""A bit that no scale has."""
_HARDLY = np.float32(2.0**-20)
"""The share by which rounding in float32 may put a number beside the line that it is on."""


class SlidingRoot(Root):
    """A :class:`Root` in 4 bits of an average, whose wide grids slide.

    The root of code n is a factor times the float32 with the bit pattern *one + (n − 1) · spacing*. The eleven upper
    bits of the scale are the factor's logarithm in sixteenths of an octave, dithered. The error of that is the same for
    all numbers of a block, and the next step does not know of it. So numbers are encoded with the factor from before it
    was rounded, the *aim*: what only decays is on a line then.

    Narrow grids have the scales of a :class:`Root`.
    """

    def slid(self, before: Array, decay: Any, threshold: Array, *largest: Array) -> Array:
        """The scale of blocks with these largest measures in int32, plus `_STAYS` for the old grid, slid.

        Args:
            before: the scale before the step.
            decay: the number by which the average is multiplied in a step before something is added.
            threshold: how to round the factor, see :mod:`jaxopt_adam.storage._rounding`.
            *largest: the largest :meth:`measures` of each block.
        """
        old, slides, index = _parted(before)
        scale = self.scale((old << 5) | index, *largest).astype(jnp.int32)
        low, high = self.extremes(*largest)
        spacing = scale & 31
        # The old grid, slid. As many parts of an octave as √decay takes away are as often taken from the position.
        aim = _factor(old) * jnp.sqrt(decay)
        slid = old + jnp.floor(uniform(threshold) - 1 + (_PARTS / 2) * jnp.log2(decay)).astype(jnp.int32)
        top = aim * self._span(index)
        spans = (float_of(low) >= aim * (1 - _HARDLY)) & (float_of(high) <= top * (1 + _HARDLY))
        stays = slides & spans & (index - spacing <= 2) & (slid >= _LEAST)
        # A new grid, whose lowest line is below `low`. It may need the next spacing, and at the widest a higher line.
        lowest = _position(low)
        over = high + _TENTH - _pattern(lowest)
        spacing = jnp.where(over > self.steps * spacing_of(spacing), jnp.minimum(spacing + 1, WIDEST), spacing)
        raised = _position(high + _TENTH - self.steps * spacing_of(spacing)) + 1
        lowest = jnp.where(spacing == WIDEST, jnp.maximum(lowest, raised), lowest)
        # A wide grid that does not slide is of a state from before grids did, and stays as it is while it fits.
        renewed = (spacing >= _SLIDING) & (slides | (spacing != index))
        new = jnp.where(renewed, (jnp.maximum(lowest, _LEAST) << 5) | (spacing - _SLIDING), scale)
        scale = jnp.where(stays, (slid << 5) | (index - _SLIDING) | _STAYS, new)
        return jnp.where(largest[0] >= INFINITY, POISON, scale)

    def grid(self, scale: Array) -> Grid:
        """The grid that a scale stands for."""
        position, slides, index = _parted(scale)
        origin, spacing = super().grid((position << 5) | index)
        return jnp.where(slides, _ONE - spacing_of(index), origin), spacing, jnp.where(slides, _factor(position), 1)

    def aimed(self, grid: Grid, before: Grid, slid: Array, decay: Any) -> Grid:
        """The ruler of the `grid` that :meth:`slid` has made of the one `before`."""
        aim = jnp.where(slid >= _STAYS, before[2] * jnp.sqrt(decay), grid[2])
        return *super().ruler(grid), 1 / aim

    def ruler(self, grid: Grid) -> Grid:
        """The ruler of a grid that does not slide."""
        return *super().ruler(grid), 1 / grid[2]

    def root(self, code: Array, grid: Grid) -> Array:
        """The square roots of the numbers that the codes stand for."""
        return super().root(code, grid) * grid[2]

    def scaled_root(self, value: Array, ruler: Grid) -> Array:
        """The root whose position among the lines is the code."""
        return jnp.sqrt(value) * ruler[2]

    def _span(self, index: Array) -> Array:
        """The highest line of a grid that slides over the lowest."""
        return float_of(_ONE + self.steps * spacing_of(index))


def _parted(scale: Array) -> tuple[Array, Array, Array]:
    """The upper bits of a scale, whether the grid slides, and the index of its spacing."""
    scale = scale.astype(jnp.int32)
    index = scale & 31
    slides = index <= WIDEST - _SLIDING
    return scale >> 5, slides, jnp.where(slides, index + _SLIDING, index)


def _factor(position: Array) -> Array:
    """The factor with this position among those of all scales, 2 to the power of (position / `_PARTS` − 64)."""
    factor = float_of(((position >> _BITS) + (127 - 64)) << 23)
    for bit in range(_BITS):
        factor = factor * jnp.where(position & 1 << bit, np.float32(2.0 ** (2.0**bit / _PARTS)), 1)
    return factor


def _pattern(position: Array) -> Array:
    """The logarithm of the factor with this position, as a bit pattern says it of a power of two."""
    return (position << (23 - _BITS)) + _FIRST


def _position(pattern: Array) -> Array:
    """The position of a factor that is at most the float32 with this bit pattern, and hardly less."""
    # The bit pattern is a logarithm that is too low by less than a tenth of an octave.
    return (pattern - _FIRST) >> (23 - _BITS)
