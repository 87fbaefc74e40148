"""The codes of a leaf: which moments share numbers, and how a tile of the leaf is decoded and encoded.

A second moment and a first moment that is relative to it have their codes in the same numbers: neither is read without
the other, so what reads or writes both has one array to go through. Where a moment of 4 bits is alone, two of its
elements share a byte; the leaf then has two lanes, and a byte is of the same place in either lane.

A tile is a part of the leaf in whole blocks. Its arrays broadcast to (..., lanes, width), or to one lane of that.
"""

import dataclasses
import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxopt_adam.storage._codes import Code, Root
from jaxopt_adam.storage._dense import dithered, is_dithered, undithered
from jaxopt_adam.storage._layout import Layout, block_length
from jaxopt_adam.storage._rounding import ROUNDINGS

LANES = np.array([[0], [1]], np.int32)
"""Both lanes, in place of the number of one."""

_LEAST_EPS = 1e-30
"""An ε above this is positive in float32 too."""


class Member(NamedTuple):
    """The storage of one moment of the leaf.

    Attributes:
        code: its code, None for a moment that is stored as numbers.
        dtype: the dtype in which it is stored if it has no code.
        over: the place among the moments of the second moment by whose root the update divides this one, None for none;
            its code is then relative to that root plus `eps`.
        eps: what the update adds to the root; a Python number, or a scalar of float32.
        rounding: how its codes are rounded.
    """

    code: Code | None
    dtype: np.dtype
    over: int | None = None
    eps: Any = 0.0
    rounding: str = "dither"

    def over_of(self, roots: Any) -> Array | None:
        """The denominator of its code, out of the roots of second moments by their places."""
        if self.over is None:
            return None
        over = roots[self.over] + self.eps
        known = isinstance(self.eps, float) and self.eps > _LEAST_EPS
        return over if known else jnp.where(over > 0, over, 1)


class Word(NamedTuple):
    """The moments that share one array of numbers.

    Attributes:
        members: their places among the leaf's moments, from the lowest bits on.
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
        """The dtype of the numbers."""
        assert self.bits is not None
        return np.dtype(jnp.uint16 if self.bits * len(self.members) == 16 else jnp.uint8)

    def joined(self, codes: Sequence[Array]) -> Array:
        """The numbers made of int32 codes that are shifted to their places; without codes the only ones."""
        return codes[0] if self.bits is None else functools.reduce(operator.or_, codes).astype(self.dtype)

    def parted(self, numbers: Array, place: Any) -> Array:
        """The int32 codes of the member at `place`, or of that lane where two elements share a byte."""
        if self.bits is None:
            return numbers
        return numbers.astype(jnp.int32) >> self.bits * place & 2**self.bits - 1


@dataclasses.dataclass(frozen=True)
class Packing:
    """The storage of all moments of a leaf, of which at least one has codes.

    Args:
        members: the storage of each moment.
        shape: the leaf's.
        longest: the number of elements of a block at most.
    """

    members: tuple[Member, ...]
    shape: tuple[int, ...]
    longest: int

    @functools.cached_property
    def words(self) -> list[Word]:
        """The arrays of numbers; codes of as many bits that are relative to each other share one."""
        bits = [None if how.code is None else how.code.bits for how in self.members]
        guests: dict[int, int] = {}
        for guest, how in enumerate(self.members):
            if how.over is not None and bits[guest] is not None and bits[guest] == bits[how.over]:
                guests.setdefault(how.over, guest)
        return [
            Word((index, guests[index]) if index in guests else (index,), width)
            for index, width in enumerate(bits)
            if index not in guests.values()
        ]

    @functools.cached_property
    def layout(self) -> Layout:
        """The blocks of the leaf, which are the same for all moments, so that one pass can see to them all."""
        lanes = 2 if any(word.halved for word in self.words) else 1
        return Layout(self.shape, block_length(self.shape[-1], self.longest), lanes)

    @functools.cached_property
    def _order(self) -> list[int]:
        """The moments' places, those that others are relative to first."""
        return sorted(range(len(self.members)), key=lambda index: self.members[index].over is not None)

    def codes_shape(self, word: Word) -> tuple[int, ...]:
        """The shape of a word's numbers."""
        return self.layout.codes_shape(halved=word.halved)

    def scale_dtypes(self, word: Word) -> list[Any]:
        """The dtypes of the scales of a word's members, None for one without a code."""
        return [how.code and how.code.scale_dtype for how in map(self.members.__getitem__, word.members)]

    def grids(self, scales: Mapping[int, Any]) -> dict[int, Any]:
        """The decoding parameters of these moments' blocks, None for one without a code."""
        codes = {index: self.members[index].code for index in scales}
        return {index: code and code.grid(scales[index]) for index, code in codes.items()}

    def decode(self, numbers: Mapping[int, Array], grids: Mapping[int, Any], lane: Any = LANES) -> list[Array]:
        """The moments of a tile in float32, out of each word's numbers."""
        codes: dict[int, Array] = {}
        for index, word in enumerate(self.words):
            for place, member in enumerate(word.members):
                codes[member] = word.parted(numbers[index], lane if word.halved else place)
        moments: list[Any] = [None] * len(codes)
        roots: list[Any] = [None] * len(codes)
        for index in self._order:
            how = self.members[index]
            if how.code is None:
                moments[index] = undithered(codes[index])
                roots[index] = jnp.sqrt(jnp.abs(moments[index]))
            elif isinstance(how.code, Root):
                roots[index] = how.code.root(codes[index], grids[index])
                moments[index] = roots[index] * roots[index]
            else:
                moments[index] = how.code.decode(codes[index], how.over_of(roots), grids[index])
        return moments

    def measures(self, moments: Sequence[Array]) -> dict[int, tuple[Array, ...]]:
        """Int32 numbers of each element for each moment with a code; the largest in a block determine its scale."""
        roots = self._roots(moments)
        return {
            index: how.code.measures(moments[index], how.over_of(roots))
            for index, how in enumerate(self.members)
            if how.code is not None
        }

    def scales(self, before: Mapping[int, Any], largest: Mapping[int, tuple[Array, ...]]) -> dict[int, Any]:
        """The scale of each moment's blocks, None for one without a code, from the largest :meth:`measures`."""
        codes = {index: self.members[index].code for index in before}
        return {index: code and code.scale(before[index], *largest[index]) for index, code in codes.items()}

    def encode(
        self,
        word: Word,
        moments: Sequence[Array],
        grids: Mapping[int, Any],
        step: Array,
        phases: Sequence[Sequence[Array]],
        lane: Any = None,
    ) -> list[Array]:
        """The codes of a word's members, shifted to their places; of a word without codes its numbers.

        `phases` has those of the tile's elements for each member, see :mod:`jaxopt_adam.storage._rounding`.
        """
        if word.bits is None:
            [member], [own] = word.members, phases
            dtype = self.members[member].dtype
            threshold = ROUNDINGS["dither"](step, own) if is_dithered(dtype) else None
            return [moments[member].astype(dtype) if threshold is None else dithered(moments[member], dtype, threshold)]
        roots = self._roots(moments)
        encoded = []
        for place, (member, own) in enumerate(zip(word.members, phases, strict=True)):
            how = self.members[member]
            assert how.code is not None
            threshold = ROUNDINGS[how.rounding](step, own)
            shift = word.bits * (lane if word.halved else place)
            encoded.append(how.code.encode(moments[member], how.over_of(roots), grids[member], threshold, shift))
        return encoded

    def _roots(self, moments: Sequence[Array]) -> dict[int, Array]:
        """The roots of second moments to which others are relative, before they are rounded."""
        return {how.over: jnp.sqrt(moments[how.over]) for how in self.members if how.over is not None}


def joined_scales(scales: Sequence[Array]) -> Array:
    """The scales of the members of a word: of two in one uint32, the first in the lower half; of one as they are."""
    if len(scales) == 1:
        return scales[0]
    low, high = (jax.lax.bitcast_convert_type(each, jnp.uint16).astype(jnp.uint32) for each in scales)
    return low | high << np.uint32(16)


def parted_scales(scales: Any, dtypes: Sequence[np.dtype]) -> list[Any]:
    """The scales of the members of a word, of these dtypes of 16 bits."""
    if len(dtypes) == 1:
        return [scales]
    halves = scales, scales >> np.uint32(16)
    return [
        jax.lax.bitcast_convert_type(half.astype(jnp.uint16), dtype) for half, dtype in zip(halves, dtypes, strict=True)
    ]
