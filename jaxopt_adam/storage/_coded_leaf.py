"""The storage of the moments of one leaf, with some of them in codes: their start, and a step of them."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxopt_adam._trees import Path
from jaxopt_adam.storage._blockwise import Blocks, Blockwise
from jaxopt_adam.storage._kernel import in_one_pass, suits
from jaxopt_adam.storage._layout import Layout
from jaxopt_adam.storage._leaf import LeafStorage, array_texts
from jaxopt_adam.storage._packing import Member, Packing, joined_scales, parted_scales
from jaxopt_adam.storage._passes import Halves, in_passes, loaded
from jaxopt_adam.storage._placing import full_beside


class CodedLeafStorage(LeafStorage):
    """The storage of the moments of one leaf, some of them in codes with scales, alone or two together.

    Args:
        coded: the storages of the moments in codes, by index.
        *of_leaf: the arguments of :class:`LeafStorage`.
    """

    def __init__(self, coded: Mapping[int, Blockwise], *of_leaf: Any):
        super().__init__(*of_leaf)
        self._encoded = self._coded = coded
        self.is_plain = self._is_elementwise = False
        longest = min(storage.longest(math.prod(self.shape)) for storage in coded.values())
        is_limit = any(storage.block_size is not None for storage in coded.values())
        self._packing = Packing(tuple(map(self._member, range(len(self.names)))), self.shape, longest, is_limit)

    def _member(self, index: int) -> Member:
        moment, storage = self._declared[index], self._coded.get(index)
        return Member(
            code=storage and storage.code(nonnegative=moment.real, decays=moment.decay is not None),
            dtype=self._dtypes[index],
            rounding=storage.rounding if storage else "dither",
            over=self._over[index],
            eps=moment.added,
            decay=moment.decay,
        )

    def in_words(self, name: str) -> str | None:
        """The storage of a moment in a few words; None if it is stored as arrays of its own numbers."""
        storage = self._coded.get(self.names.index(name))
        return storage and f"{storage.bits} bits, blocks of {self._packing.layout.length}"

    @property
    def blocks(self) -> int:
        """The number of blocks along the last axis."""
        return self._packing.layout.blocks[-1]

    @functools.cached_property
    def entries(self) -> list[Any]:
        """The entry of each moment in the state, as :class:`jax.ShapeDtypeStruct` in place of arrays."""
        entries = list(super().entries)
        for word in self._packing.words:
            if word.bits is None:
                continue
            blocks, dtypes = self._packing.layout.blocks, self._packing.scale_dtypes(word)
            codes = jax.ShapeDtypeStruct(self._packing.codes_shape(word), word.dtype)
            if len(word.members) == 1:
                entries[word.members[0]] = Blocks(codes, jax.ShapeDtypeStruct(blocks, dtypes[0]))
            else:
                nu, mu = word.members
                entries[mu], entries[nu] = codes, jax.ShapeDtypeStruct(blocks, jnp.uint32)
        return entries

    def start(self, path: Path, param: Any) -> list[Any]:
        """The entries of the parameter `param` before the first step."""
        layout = self._packing.layout
        axes: list[int | None] = list(range(len(self.shape)))
        starts = {m: self._initial_code(m) for m in self._coded}
        numbers = {}
        for index, word in enumerate(self._packing.words):
            if word.bits is None:
                numbers[index] = self._start(word.members[0], path, param)
            else:
                codes = [starts[m][0] for m in word.members] * (2 if word.two_a_byte else 1)
                number = word.joined([code << (word.bits * slot) for slot, code in enumerate(codes)])
                shape = self._packing.codes_shape(word)
                # Without padding each device has as many bytes as pairs of elements, if not of the same elements.
                is_padded = word.two_a_byte and 2 * shape[-1] != self.shape[-1]
                bytes_of = functools.partial(_bytes_of, layout, shape) if is_padded else None
                numbers[index] = full_beside(param, shape, number, axes, bytes_of)
        # Of blocks that do not divide the axis no device has its part.
        axes = axes if layout.divides else [*axes[:-1], None]
        scales = {m: scale for m, (_, scale) in starts.items()}

        def full(scale: Array) -> Array:
            return full_beside(
                param, layout.blocks, scale, axes, lambda values: jnp.any(layout.as_blocks(values), (-2, -1))
            )

        return _joined(self._packing, numbers, scales, full)

    def _initial_code(self, m: int) -> tuple[Array, Array]:
        """The code and the scale of a moment before the first step."""
        moment, over = self._declared[m], self._over[m]
        initial = jnp.asarray(moment.initial, jnp.float32)
        if over is not None:
            root = jnp.sqrt(jnp.asarray(self._declared[over].initial, jnp.float32)) + moment.added
            initial = initial / jnp.where(root > 0, root, 1)
        return self._coded[m].start(initial, nonnegative=moment.real)

    def _expected_text(self, index: int) -> str:
        """A description of the entry of a moment in codes, for errors."""
        [word] = [word for word in self._packing.words if index in word.members]
        if len(word.members) == 1:
            kinds = ["codes", "scales"]
        else:
            nu, _ = word.members
            kinds = ["scales"] if index == nu else ["codes"]
        structs = array_texts(self.entries[index])
        texts = [f"{kind} {struct}" for kind, struct in zip(kinds, structs, strict=True)]
        of = " and ".join(self.names[m] for m in reversed(word.members))
        return f"{' and '.join(texts)} of {of} in {word.bits} bits"

    def load(self, entries: Sequence[Any]) -> list[Any]:
        """The moments in the dtype of the arithmetic, of entries that are checked."""
        return loaded(*_parted(self._packing, entries), self._packing)

    def _step(self, rule: Halves, given: Any, entries: Sequence[Any]) -> tuple[Array, Sequence[Any]]:
        wants_kernel = any(storage.implementation == "pallas" for storage in self._coded.values())
        run = in_one_pass if wants_kernel and suits(self._packing.layout) else in_passes
        *inputs, step = given
        update, numbers, scales = run(rule, tuple(inputs), *_parted(self._packing, entries), self._packing, step)
        return update, _joined(self._packing, numbers, scales)


def _bytes_of(layout: Layout, shape: tuple[int, ...], values: Array) -> Array:
    """Booleans for each byte, from those of the elements: whether it is true of one of the two that share it."""
    return layout.flat(jnp.any(layout.as_blocks(values), -2, keepdims=True), shape)


def _parted(packing: Packing, entries: Sequence[Any]) -> tuple[dict[int, Array], dict[int, Array]]:
    """The numbers of each word and the scales of each moment with a code, out of the entries of the state."""
    numbers: dict[int, Array] = {}
    scales: dict[int, Array] = {}
    for index, word in enumerate(packing.words):
        if word.bits is None:
            numbers[index] = entries[word.members[0]]
            continue
        if len(word.members) == 1:
            numbers[index], joined = entries[word.members[0]]
        else:
            nu, mu = word.members
            numbers[index], joined = entries[mu], entries[nu]
        scales |= zip(word.members, parted_scales(joined, packing.scale_dtypes(word)), strict=True)
    return numbers, dict(sorted(scales.items()))


def _joined(
    packing: Packing,
    numbers: Mapping[int, Array],
    scales: Mapping[int, Array],
    full: Callable[[Any], Any] = lambda scales: scales,
) -> list[Any]:
    """The inverse of :func:`_parted`; `full` is applied to the scales of each word."""
    entries: dict[int, Any] = {}
    for index, word in enumerate(packing.words):
        if word.bits is None:
            entries[word.members[0]] = numbers[index]
            continue
        joined = full(joined_scales([scales[m] for m in word.members]))
        if len(word.members) == 1:
            entries[word.members[0]] = Blocks(numbers[index], joined)
        else:
            nu, mu = word.members
            entries[mu], entries[nu] = numbers[index], joined
    return [entries[m] for m in sorted(entries)]
