"""The division of an array into blocks along its last axis, and of its codes into bytes."""

import dataclasses

import jax.numpy as jnp
from jax import Array

SHORTEST = 16
"""The least length of a block, unless the axis itself is shorter or eight devices could not have whole blocks."""

SHORTEST_OF_EIGHT = 12
"""The least length of a block where it is the share of one of eight devices: below, scales would take too much.

It is 8 where two elements share a byte, because half of such a block cannot be the share of a device.
"""


def block_length(length: int, longest: int, *, is_limit: bool = True, lanes: int = 1) -> int:
    """The length of the blocks of an axis: the longest, up to `longest`, that divides it.

    A length that leaves a multiple of eight blocks is preferred, and then one that leaves a multiple of four or of two,
    so that the axis can be divided among devices. Where their shares are even fractions of a block, the codes are
    divided too, and each device has the scales of all blocks. An axis without a suitable divisor is padded with zeros
    during a step.

    Args:
        length: of the axis.
        longest: the length of a block at most.
        is_limit: whether no block may be longer. Otherwise, blocks may be up to twice as long where no others are
            suitable.
        lanes: two if two elements share a byte, otherwise one.
    """
    shortest = SHORTEST_OF_EIGHT if lanes == 1 else SHORTEST // 2
    preferred = min(longest, 2 * SHORTEST)

    def fitting(parts: int, least: int, most: int, step: int = 2) -> int | None:
        sizes = [size for size in range(least, min(most, length) + 1, step) if length % (size * parts) == 0]
        return max(sizes, default=None)

    most = longest if is_limit else 2 * longest
    return (
        fitting(8, SHORTEST, longest)
        or fitting(8, shortest, longest, 1)
        or fitting(8, shortest, most, 1)
        or fitting(4, preferred, longest)
        or fitting(2, preferred, longest)
        or fitting(1, preferred, longest)
        or fitting(2, SHORTEST, longest)
        or fitting(1, SHORTEST, longest)
        or fitting(4, SHORTEST, most)
        or fitting(2, SHORTEST, most)
        or fitting(1, SHORTEST, most)
        or min(longest, length + length % 2)
    )


@dataclasses.dataclass(frozen=True)
class Layout:
    """An array of `shape` in blocks of `length` along its last axis, each in one lane or in two.

    As blocks it has the shape (..., blocks, lanes, slots / lanes). Where two elements share a byte, there are two
    lanes, and a byte has the elements with the same position in either lane. A block of odd length then has a slot more
    than it has elements.
    """

    shape: tuple[int, ...]
    length: int
    lanes: int

    @property
    def blocks(self) -> tuple[int, ...]:
        """The shape of an array with one element for each block."""
        return *self.shape[:-1], -(-self.shape[-1] // self.length)

    @property
    def slots(self) -> int:
        """The number of elements of a block, with its padding."""
        return self.length + self.length % self.lanes

    @property
    def positions(self) -> tuple[int, ...]:
        """The axes along which an element has a position: the array's, the last of them by blocks and within one."""
        return *self.blocks, self.slots

    @property
    def fits(self) -> bool:
        """True if the blocks fill the axis, so that there is no padding."""
        return self.blocks[-1] * self.slots == self.shape[-1]

    @property
    def divides(self) -> bool:
        """True if the blocks divide the axis, so that the last one is as long as the others."""
        return self.shape[-1] % self.length == 0

    def codes_shape(self, *, two_a_byte: bool) -> tuple[int, ...]:
        """The shape of an array of codes: this one's, or with the last axis halved where two elements share a byte."""
        return (*self.shape[:-1], self.blocks[-1] * self.slots // 2) if two_a_byte else self.shape

    def as_blocks(self, array: Array, lanes: int | None = None) -> Array:
        """An array of the shape as blocks.

        It may also be an array of bytes that two elements share. Its last axis is half as long, and `lanes` must be 1.
        """
        lanes = self.lanes if lanes is None else lanes
        width = self.slots // self.lanes
        length = self.length if lanes == self.lanes else width
        array = _padded(array, self.blocks[-1] * length)
        blocks = array.reshape(*array.shape[:-1], self.blocks[-1], length)
        return _padded(blocks, lanes * width).reshape(*blocks.shape[:-1], lanes, width)

    def flat(self, blocks: Array, shape: tuple[int, ...] | None = None) -> Array:
        """The inverse of :meth:`as_blocks`: an array of this shape, or of another that differs in the last axis."""
        shape = self.shape if shape is None else shape
        rows = blocks.reshape(*blocks.shape[:-2], -1)
        if shape == self.shape and rows.shape[-1] != self.length:
            rows = rows[..., : self.length]
        array = rows.reshape(*shape[:-1], -1)
        return array if array.shape == shape else array[..., : shape[-1]]


def _padded(array: Array, length: int) -> Array:
    """The array with zeros at the end of its last axis, which then has this length."""
    missing = length - array.shape[-1]
    return jnp.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, missing)]) if missing else array
