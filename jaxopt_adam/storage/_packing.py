"""The codes of a leaf: the packing of moments into integers, and the decoding and encoding of a tile of the leaf.

A second moment and a first moment that is relative to it have their codes in the same numbers: neither is read without
the other, so what reads or writes both has one array to go through. Where a moment of 4 bits is alone, two of its
elements share a byte. Each block of the leaf then has two lanes, its halves, and a byte has an element of either lane.

A moment has an index `m` among those of the leaf; a word, which is an array of numbers, has an `index` among the words.
A slot is a code's position in a number, counted from the lowest bits.

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

from jaxopt_adam.storage._codes import Code, Grid, Root
from jaxopt_adam.storage._dense import dithered, is_dithered, undithered
from jaxopt_adam.storage._layout import Layout, block_length
from jaxopt_adam.storage._rounding import ROUNDINGS
from jaxopt_adam.storage._sliding import SlidingRoot

LANES = np.array([[0], [1]], np.int32)
"""The numbers of both lanes, in place of a single number."""

_LEAST_EPS = 1e-30
"""An ε above this is positive in float32 too, and so is a root plus it."""


class Member(NamedTuple):
    """The storage of one moment of the leaf.

    Attributes:
        code: its code, None for a moment that is stored as numbers.
        dtype: the dtype in which it is stored if it has no code.
        rounding: how it is rounded, a key of :data:`~jaxopt_adam.storage._rounding.ROUNDINGS`.
        over: the index of the second moment by whose root the update divides this one, None for none; its code is then
            relative to that root plus `eps`.
        eps: what the update adds to the root; a Python number, or a scalar of float32.
        decay: by what an average decays in a step, for one with a
            :class:`~jaxopt_adam.storage._sliding.SlidingRoot`; a number or an array, None for another.
    """

    code: Code | None
    dtype: np.dtype
    rounding: str
    over: int | None = None
    eps: Any = 0.0
    decay: Any = None

    @property
    def slowest(self) -> Any:
        """The largest of the decays, None for none: a NumPy number or a scalar, of float32."""
        if self.decay is None or isinstance(self.decay, int | float):
            return self.decay if self.decay is None else np.float32(self.decay)
        # It decides what is rounded, but not what the moment is. So it has no derivative.
        return jnp.max(jax.lax.stop_gradient(jnp.asarray(self.decay, jnp.float32)))

    def denominator(self, roots: Any) -> Array | None:
        """The number that its code is relative to, from the roots of second moments by their indices; None for none.

        It is positive. Where the root and `eps` are zero it is 1.
        """
        if self.over is None:
            return None
        denominator = roots[self.over] + self.eps
        known_positive = isinstance(self.eps, float) and self.eps > _LEAST_EPS
        return denominator if known_positive else jnp.where(denominator > 0, denominator, 1)


@dataclasses.dataclass(frozen=True)
class Word:
    """The moments that share one array of numbers.

    Attributes:
        members: their indices among the leaf's moments, from the lowest bits on.
        bits: of each of the codes; None for a moment without codes.
    """

    members: tuple[int, ...]
    bits: int | None

    @functools.cached_property
    def coded(self) -> tuple[int, ...]:
        """Those of the members that have codes: all or none."""
        return () if self.bits is None else self.members

    @functools.cached_property
    def two_a_byte(self) -> bool:
        """True if two elements share a byte."""
        return self.bits == 4 and len(self.members) == 1

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the numbers."""
        assert self.bits is not None
        return np.dtype(jnp.uint16 if self.bits * len(self.members) == 16 else jnp.uint8)

    def joined(self, codes: Sequence[Array]) -> Array:
        """The numbers made of int32 codes, each shifted to its slot; without codes the only ones."""
        return codes[0] if self.bits is None else functools.reduce(operator.or_, codes).astype(self.dtype)

    def parted(self, numbers: Array, slot: Any) -> Array:
        """The int32 codes in a slot of the numbers: of a member, or of a lane where two elements share a byte."""
        if self.bits is None:
            return numbers
        return (numbers.astype(jnp.int32) >> (self.bits * slot)) & (2**self.bits - 1)


@dataclasses.dataclass(frozen=True)
class Packing:
    """The storage of all moments of a leaf, of which at least one has codes.

    Args:
        members: the storage of each moment.
        shape: the leaf's.
        longest: the number of elements of a block at most.
        is_limit: whether no block may be longer, see :func:`~jaxopt_adam.storage._layout.block_length`.
    """

    members: tuple[Member, ...]
    shape: tuple[int, ...]
    longest: int
    is_limit: bool = True

    @functools.cached_property
    def words(self) -> list[Word]:
        """The arrays of numbers; a moment shares that of the second moment it is relative to, if their bits agree."""
        bits = [None if member.code is None else member.code.bits for member in self.members]
        guests: dict[int, int] = {}
        for m, member in enumerate(self.members):
            if member.over is not None and bits[m] is not None and bits[m] == bits[member.over]:
                guests.setdefault(member.over, m)
        return [
            Word((m, guests[m]) if m in guests else (m,), bits[m])
            for m in range(len(self.members))
            if m not in guests.values()
        ]

    @functools.cached_property
    def layout(self) -> Layout:
        """The blocks of the leaf, which are the same for all moments, so that one pass can process them all."""
        lanes = 2 if any(word.two_a_byte for word in self.words) else 1
        length = block_length(self.shape[-1], self.longest, is_limit=self.is_limit, lanes=lanes)
        return Layout(self.shape, length, lanes)

    @functools.cached_property
    def writing_order(self) -> list[int]:
        """The order in which the words are written: each, if possible, before those whose old numbers it is made of.

        What is read after it was overwritten has to be copied. A moment that is relative to one of another word is made
        of that one, so it comes first. Of the others the later come first, because rules tend to compute a later moment
        from earlier ones: AMSGrad's `nu_max` follows from `nu`. In the opposite order a step of AMSGrad with moments in
        8 bits on 2,048² elements has 6.1 MiB of temporaries in place of 1.9 (JAX 0.10.2).
        """
        is_relative = [self.members[word.members[0]].over is not None for word in self.words]
        return sorted(range(len(self.words)), key=lambda index: (not is_relative[index], -index))

    @functools.cached_property
    def codes(self) -> dict[int, Code]:
        """The codes of the moments that have one."""
        return {m: member.code for m, member in enumerate(self.members) if member.code is not None}

    @functools.cached_property
    def _in_order(self) -> list[tuple[int, Member]]:
        """The moments with their indices, those that others are relative to first."""
        return sorted(enumerate(self.members), key=lambda pair: pair[1].over is not None)

    def codes_shape(self, word: Word) -> tuple[int, ...]:
        """The shape of a word's numbers."""
        return self.layout.codes_shape(two_a_byte=word.two_a_byte)

    def scale_dtypes(self, word: Word) -> list[Any]:
        """The dtypes of the scales of a word's members; of a word without codes there are none."""
        return [self.codes[m].scale_dtype for m in word.coded]

    def grids(self, scales: Mapping[int, Any]) -> dict[int, Grid]:
        """The grids of these moments' blocks, from their scales."""
        return {m: self.codes[m].grid(scale) for m, scale in scales.items()}

    def rulers(
        self, grids: Mapping[int, Grid], before: Mapping[int, Grid], scales: Mapping[int, Any]
    ) -> dict[int, Grid]:
        """The rulers of these grids, from those before the step and the result of :meth:`scales`."""
        rulers = {}
        for m, grid in grids.items():
            code = self.codes[m]
            if isinstance(code, SlidingRoot):
                rulers[m] = code.aimed(grid, before[m], scales[m], self.members[m].slowest)
            else:
                rulers[m] = code.ruler(grid)
        return rulers

    def stored(self, scales: Mapping[int, Any]) -> dict[int, Any]:
        """The scales as they are stored, from the result of :meth:`scales`."""
        return dict(scales) | {m: scales[m].astype(np.uint16) for m in scales if m in self.sliding}

    def decode(self, numbers: Mapping[int, Array], grids: Mapping[int, Grid], lane: Any = LANES) -> list[Array]:
        """The moments of a tile in float32, out of each word's numbers."""
        codes: dict[int, Array] = {}
        for index, word in enumerate(self.words):
            for slot, m in enumerate(word.members):
                codes[m] = word.parted(numbers[index], lane if word.two_a_byte else slot)
        moments: list[Any] = [None] * len(codes)
        roots: list[Any] = [None] * len(codes)
        for m, member in self._in_order:
            if member.code is None:
                moments[m] = undithered(codes[m])
                roots[m] = jnp.sqrt(jnp.abs(moments[m]))
            elif isinstance(member.code, Root):
                roots[m] = member.code.root(codes[m], grids[m])
                moments[m] = roots[m] * roots[m]
            else:
                moments[m] = member.code.decode(codes[m], member.denominator(roots), grids[m])
        return moments

    def measures(self, moments: Sequence[Array]) -> dict[int, tuple[Array, ...]]:
        """Int32 numbers of each element for each moment with a code; the largest in a block determine its scale."""
        roots = self._roots(moments)
        return {m: code.measures(moments[m], self.members[m].denominator(roots)) for m, code in self.codes.items()}

    @functools.cached_property
    def sliding(self) -> list[int]:
        """The moments whose grids slide."""
        return [m for m, code in self.codes.items() if isinstance(code, SlidingRoot)]

    def scales(
        self,
        before: Mapping[int, Any],
        largest: Mapping[int, tuple[Array, ...]],
        step: Array,
        phases: Sequence[Sequence[Array | None]],
    ) -> dict[int, Array]:
        """The scale of the blocks of each moment with a code, and whether its grid has slid.

        Args:
            before: the scales before the step.
            largest: the largest :meth:`measures` of each block.
            step: the number of the step, from 1.
            phases: the phases of each moment's elements, see :mod:`jaxopt_adam.storage._rounding`. The last ones are
                of the positions in a block.
        """
        scales = {}
        for m, scale in before.items():
            code, member = self.codes[m], self.members[m]
            if isinstance(code, SlidingRoot):
                leading: Any = phases[m][:-1]
                threshold = ROUNDINGS[member.rounding](step, leading)
                scales[m] = code.slid(scale, member.slowest, threshold, *largest[m])
            else:
                scales[m] = code.scale(scale, *largest[m])
        return scales

    def encode(
        self,
        word: Word,
        moments: Sequence[Array],
        rulers: Mapping[int, Grid],
        step: Array,
        phases: Sequence[Sequence[Array]],
        lane: Any = None,
    ) -> list[Array]:
        """The codes of a word's members, each shifted to its slot; of a word without codes its numbers.

        `phases` has those of the tile's elements for each member, see :mod:`jaxopt_adam.storage._rounding`.
        """
        if word.bits is None:
            [m] = word.members
            dtype = self.members[m].dtype
            if not is_dithered(dtype):
                return [moments[m].astype(dtype)]
            return [dithered(moments[m], dtype, ROUNDINGS[self.members[m].rounding](step, phases[0]))]
        roots = self._roots(moments)
        encoded = []
        for slot, m in enumerate(word.members):
            member = self.members[m]
            threshold = ROUNDINGS[member.rounding](step, phases[slot])
            shift = word.bits * (lane if word.two_a_byte else slot)
            code = self.codes[m].encode(moments[m], member.denominator(roots), rulers[m], threshold, shift)
            encoded.append(code)
        return encoded

    def _roots(self, moments: Sequence[Array]) -> dict[int, Array]:
        """The roots of second moments to which others are relative, before they are rounded."""
        return {member.over: jnp.sqrt(moments[member.over]) for member in self.members if member.over is not None}


def joined_scales(scales: Sequence[Array]) -> Array | None:
    """The scales of the members of a word: of two in one uint32, the first in the lower half; of one as they are.

    None if there are none.
    """
    if len(scales) < 2:
        return scales[0] if scales else None
    low, high = (jax.lax.bitcast_convert_type(each, jnp.uint16).astype(jnp.uint32) for each in scales)
    return low | high << np.uint32(16)


def parted_scales(scales: Any, dtypes: Sequence[np.dtype]) -> list[Any]:
    """The inverse of :func:`joined_scales`, for scales of these dtypes of 16 bits."""
    if len(dtypes) < 2:
        return [scales] if dtypes else []
    halves = scales, scales >> np.uint32(16)
    return [
        jax.lax.bitcast_convert_type(half.astype(jnp.uint16), dtype) for half, dtype in zip(halves, dtypes, strict=True)
    ]
