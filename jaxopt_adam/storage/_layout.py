"""The division of an array into blocks along its last axis, and of its codes into bytes."""

import dataclasses

import jax.numpy as jnp
from jax import Array

SHORTEST = 16
"""The length of blocks at least, unless the axis itself is shorter."""


def block_length(length: int, longest: int) -> int:
    """The even length of the blocks of an axis: the longest, up to `longest`, that divides it.

    One that leaves a multiple of eight blocks, or of two, is preferred, so that the axis can be divided among devices.
    An axis without such a divisor is filled up with zeros while it is looked at.
    """
    preferred = min(longest, 2 * SHORTEST)
    for parts, least in ((8, SHORTEST), *((parts, preferred) for parts in (4, 2, 1)), (2, SHORTEST), (1, SHORTEST)):
        fitting = [each for each in range(least, min(longest, length) + 1, 2) if length % (each * parts) == 0]
        if fitting:
            return fitting[-1]
    return min(longest, length + length % 2)


@dataclasses.dataclass(frozen=True)
class Layout:
    """An array of `shape` in blocks of `length` along its last axis, each in one lane or in two.

    As blocks it has the shape (..., blocks, lanes, length / lanes). Where two elements share a byte, those of the
    same place in either lane do.
    """

    shape: tuple[int, ...]
    length: int
    lanes: int

    @property
    def blocks(self) -> tuple[int, ...]:
        """The shape of what there is one of for each block."""
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
        """An array of the shape, or of bytes that two elements share with but one lane, by blocks."""
        lanes = self.lanes if lanes is None else lanes
        width = self.length // self.lanes
        missing = self.blocks[-1] * lanes * width - array.shape[-1]
        if missing:
            array = jnp.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, missing)])
        return array.reshape(*array.shape[:-1], self.blocks[-1], lanes, width)

    def flat(self, blocks: Array, shape: tuple[int, ...] | None = None) -> Array:
        """The array of the shape, or of another that differs in the last axis, that is given as blocks."""
        shape = self.shape if shape is None else shape
        array = blocks.reshape(*shape[:-1], -1)
        return array if array.shape == shape else array[..., : shape[-1]]
