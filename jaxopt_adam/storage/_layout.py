"""The division of an array into blocks along its last axis, and of its codes into bytes."""

import dataclasses

import jax.numpy as jnp
from jax import Array

SHORTEST = 16
"""The least length of a block, unless the axis itself is shorter."""


def block_length(length: int, longest: int) -> int:
    """The even length of the blocks of an axis: the longest, up to `longest`, that divides it.

    A length that leaves a multiple of eight blocks, or of two, is preferred, so that the axis can be divided among
    devices. An axis without an even divisor is padded with zeros during a step.
    """
    preferred = min(longest, 2 * SHORTEST)
    for parts, least in ((8, SHORTEST), *((parts, preferred) for parts in (4, 2, 1)), (2, SHORTEST), (1, SHORTEST)):
        fitting = [size for size in range(least, min(longest, length) + 1, 2) if length % (size * parts) == 0]
        if fitting:
            return fitting[-1]
    return min(longest, length + length % 2)


@dataclasses.dataclass(frozen=True)
class Layout:
    """An array of `shape` in blocks of `length` along its last axis, each in one lane or in two.

    As blocks it has the shape (..., blocks, lanes, length / lanes). Where two elements share a byte, there are two
    lanes, and a byte has the elements with the same position in either lane.
    """

    shape: tuple[int, ...]
    length: int
    lanes: int

    @property
    def blocks(self) -> tuple[int, ...]:
        """The shape of an array with one element for each block."""
        return *self.shape[:-1], -(-self.shape[-1] // self.length)

    @property
    def positions(self) -> tuple[int, ...]:
        """The axes along which an element has a position: the array's, the last of them by blocks and within one."""
        return *self.blocks, self.length

    @property
    def fits(self) -> bool:
        """True if the blocks fill the axis, so that there is no padding."""
        return self.blocks[-1] * self.length == self.shape[-1]

    def codes_shape(self, *, two_a_byte: bool) -> tuple[int, ...]:
        """The shape of an array of codes: this one's, or with the last axis halved where two elements share a byte."""
        return (*self.shape[:-1], self.blocks[-1] * self.length // 2) if two_a_byte else self.shape

    def as_blocks(self, array: Array, lanes: int | None = None) -> Array:
        """An array of the shape as blocks.

        It may also be an array of bytes that two elements share. Its last axis is half as long, and `lanes` must be 1.
        """
        lanes = self.lanes if lanes is None else lanes
        width = self.length // self.lanes
        missing = self.blocks[-1] * lanes * width - array.shape[-1]
        if missing:
            array = jnp.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, missing)])
        return array.reshape(*array.shape[:-1], self.blocks[-1], lanes, width)

    def flat(self, blocks: Array, shape: tuple[int, ...] | None = None) -> Array:
        """The inverse of :meth:`as_blocks`: an array of this shape, or of another that differs in the last axis."""
        shape = self.shape if shape is None else shape
        array = blocks.reshape(*shape[:-1], -1)
        return array if array.shape == shape else array[..., : shape[-1]]
