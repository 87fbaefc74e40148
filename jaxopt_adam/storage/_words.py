"""The packing of a leaf's codes into words.

A second moment and a first moment that is relative to it have their codes in the same numbers: neither is read without
the other, so what reads or writes both has one array to go through. Their scales are in the same numbers too. So two
such moments are two arrays, of which the state has the codes in place of the first moment and the scales in place of
the second. Where a moment of 4 bits is alone, two of its elements share a byte.
"""

import functools
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


class Word(NamedTuple):
    """The codes that share one array of numbers.

    Attributes:
        members: the places, among the leaf's moments, of those whose codes it has, from the lowest bits on.
        bits: of each of the codes; None for a moment without codes.
    """

    members: tuple[int, ...]
    bits: int | None

    @property
    def halved(self) -> bool:
        """True if two elements share a byte."""
        return self.bits == 4 and len(self.members) == 1

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the numbers in which codes lie."""
        assert self.bits is not None
        return np.dtype(jnp.uint16 if self.bits * len(self.members) == 16 else jnp.uint8)

    def shift(self, place: Any) -> Any:
        """By how many bits the codes of the member at `place`, or of one of the elements of a byte, are shifted."""
        assert self.bits is not None
        return self.bits * place

    def joined(self, codes: Sequence[Array]) -> Array:
        """The numbers made of int32 codes, shifted to their places."""
        return functools.reduce(operator.or_, codes).astype(self.dtype)

    def parted(self, numbers: Array, place: Any) -> Array:
        """The int32 codes of the member at `place`, or of one of the elements of a byte."""
        assert self.bits is not None
        return numbers.astype(jnp.int32) >> self.shift(place) & 2**self.bits - 1


def words(bits: Sequence[int | None], over: Sequence[int | None]) -> list[Word]:
    """The words of moments with codes of these bits, of which each is relative to another, or to None."""
    guests: dict[int, int] = {}
    for guest, host in enumerate(over):
        if host is not None and bits[guest] is not None and bits[guest] == bits[host]:
            guests.setdefault(host, guest)
    return [
        Word((index, guests[index]) if index in guests else (index,), width)
        for index, width in enumerate(bits)
        if index not in guests.values()
    ]


def joined_scales(scales: Sequence[Array]) -> Array:
    """The scales of the members of a word: of two in one uint32, the first in the lower half; of one as they are."""
    if len(scales) == 1:
        return scales[0]
    low, high = (jax.lax.bitcast_convert_type(each, jnp.uint16).astype(jnp.uint32) for each in scales)
    return low | high << np.uint32(16)


def parted_scales(scales: Array, dtypes: Sequence[np.dtype]) -> list[Array]:
    """The scales of two members, of dtypes of 16 bits."""
    halves = scales, scales >> np.uint32(16)
    return [
        jax.lax.bitcast_convert_type(half.astype(jnp.uint16), dtype) for half, dtype in zip(halves, dtypes, strict=True)
    ]
