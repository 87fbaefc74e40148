"""A step of a leaf with moments in codes, in passes: XLA makes one loop of each.

1. One pass reads the old moments and the gradient, and finds the extremes of each block. The new scales follow from
   them.
2. One pass for each word, the array that has the codes of one moment or of two, writes the new codes over the old ones.
3. One pass reads the new moments and computes the update.

The update is that of the moments as they are stored, which costs hardly any exactness: what rounding does to a moment
stays in it for many steps, so the rounding of one more step adds little. In return, the last pass needs an old moment
only if the second half of the rule reads it, as Lion's does; the old numbers are copied then.

Of the leaf's size nothing is made on the way but the update. What two passes both need, each of them computes, because
keeping it would take an array of the leaf's size. XLA would keep it if it could tell that it is the same;
:func:`~jaxopt_adam._xla.in_place` prevents that.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxopt_adam._xla import add_zero, hidden_zero, in_place, largest_of_blocks
from jaxopt_adam.storage._codes import Grid
from jaxopt_adam.storage._layout import Layout
from jaxopt_adam.storage._packing import LANES, Packing, joined_scales, parted_scales
from jaxopt_adam.storage._rounding import along_axes
from jaxopt_adam.storage._rounding import phases as phases_of


class Halves(NamedTuple):
    """The two halves of a rule, for one leaf, as functions of its inputs and the list of its moments.

    Attributes:
        first: ``first(inputs, old) -> new``.
        second: ``second(inputs, old, new) -> update``.
    """

    first: Callable[[Any, Sequence[Array]], Sequence[Array]]
    second: Callable[[Any, Sequence[Array], Sequence[Array]], Array]


class _Word(NamedTuple):
    """The arrays that the pass of a word overwrites.

    The scales and grids, which are small, are here although the pass is given the scales. If they were computed outside
    and inside the pass, the compiler would compute them once for both, in the loop of the first pass.

    Attributes:
        numbers: the numbers of the word.
        grids: the grids of its members' blocks.
        scales: the scales of its members' blocks, joined.
    """

    numbers: Array
    grids: dict[int, Grid]
    scales: Array | None


class _Operands(NamedTuple):
    """The arrays that the pass of a word reads, besides those that it overwrites.

    Attributes:
        inputs: what the rule reads besides the moments.
        numbers: the old numbers of the other words.
        grids: the old grids of the members of the other words.
        scales: the result of :meth:`~jaxopt_adam.storage._packing.Packing.scales` for the word's members.
        phases: the phases of the elements, for each of the word's members.
        step: the number of the step, from 1.
    """

    inputs: Any
    numbers: dict[int, Array]
    grids: dict[int, Grid]
    scales: dict[int, Array]
    phases: list[list[Array]]
    step: Array


def in_passes(
    rule: Halves,
    inputs: Any,
    numbers: Mapping[int, Array],
    scales: Mapping[int, Array],
    packing: Packing,
    step: Array,
) -> tuple[Array, dict[int, Array], dict[int, Array]]:
    """One step of a leaf.

    Args:
        rule: the two halves of the rule.
        inputs: a pytree of its inputs besides the moments; arrays of the leaf's shape, or that broadcast to it.
        numbers: those of each word, by its index among the words.
        scales: those of each moment with a code, by its index among the moments.
        packing: the storage of the moments.
        step: the number of the step, from 1.

    Returns:
        The update in the dtype of the arithmetic, and the numbers and the scales after the step.
    """
    layout = packing.layout
    inputs = jax.tree.map(lambda value: _input_as_blocks(value, layout), inputs)
    old, before = _as_blocks(numbers, scales, packing)
    old_grids = packing.grids(before)
    # No derivative goes through codes and scales.
    fixed, held = jax.lax.stop_gradient((inputs, old))
    measures = packing.measures(rule.first(fixed, packing.decode(held, old_grids)))
    if not layout.fits:
        is_inside = _along_last(layout, jnp.ones(layout.shape[-1], jnp.int32))
        measures = jax.tree.map(lambda measure: measure * is_inside, measures)
    phases = [_phases_as_blocks(layout, m) for m in range(len(packing.members))]
    after = packing.scales(before, largest_of_blocks(measures), step, phases)
    new: dict[int, Array] = {}
    grids: dict[int, Grid] = {}
    zero = hidden_zero(step)
    for index in packing.writing_order:
        word = packing.words[index]
        coded = word.coded
        old_word = _Word(held[index], {m: old_grids[m] for m in coded}, joined_scales([before[m] for m in coded]))
        operands = _Operands(
            fixed,
            {i: other for i, other in held.items() if i != index},
            {m: grid for m, grid in old_grids.items() if m not in coded},
            {m: after[m] for m in coded},
            [phases[m] for m in word.members],
            step,
        )
        zero, new_word = in_place(zero, functools.partial(_written, rule, packing, index), old_word, operands)
        new[index] = new_word.numbers
        grids |= new_word.grids
        after |= zip(coded, parted_scales(new_word.scales, packing.scale_dtypes(word)), strict=True)
    inputs = add_zero(inputs, zero)
    moments = packing.decode(old, old_grids), packing.decode(new, grids)
    if layout.fits:
        update = layout.flat(rule.second(inputs, *moments))
    else:
        # A rule that takes a norm of the leaf must not see the padding.
        whole = jax.tree.map(lambda value: value if jnp.ndim(value) == 0 else layout.flat(value), (inputs, *moments))
        update = rule.second(*whole)
    numbers = {index: layout.flat(new[index], packing.codes_shape(word)) for index, word in enumerate(packing.words)}
    return update, numbers, {m: scale[..., 0, 0] for m, scale in after.items()}


def loaded(numbers: Mapping[int, Array], scales: Mapping[int, Array], packing: Packing) -> list[Array]:
    """The moments in float32, in the leaf's shape."""
    blocks, scales = _as_blocks(numbers, scales, packing)
    return [packing.layout.flat(moment) for moment in packing.decode(blocks, packing.grids(scales))]


def _written(rule: Halves, packing: Packing, index: int, before: _Word, given: _Operands) -> _Word:
    """A word after the step."""
    word = packing.words[index]
    numbers, grids = given.numbers | {index: before.numbers}, given.grids | before.grids
    scales = packing.stored(given.scales)
    new_grids = packing.grids(scales)
    rulers = packing.rulers(new_grids, before.grids, given.scales)
    codes = []
    for lane in (0, 1) if word.two_a_byte else (None,):

        def cut(value: Any, lane: int | None = lane) -> Any:
            """The part of an array as blocks that is in the lane."""
            return value if lane is None or jnp.ndim(value) < 3 else value[..., lane : lane + 1, :]

        of_lane = {i: each if packing.words[i].two_a_byte else cut(each) for i, each in numbers.items()}
        old = packing.decode(of_lane, grids, LANES if lane is None else lane)
        moments = rule.first(jax.tree.map(cut, given.inputs), old)
        own_phases = [[*leading, cut(inner)] for *leading, inner in given.phases]
        codes += packing.encode(word, moments, rulers, given.step, own_phases, lane)
    return _Word(word.joined(codes), new_grids, joined_scales([scales[m] for m in word.coded]))


def _as_blocks(
    numbers: Mapping[int, Array], scales: Mapping[int, Array], packing: Packing
) -> tuple[dict[int, Array], dict[int, Array]]:
    """Numbers and scales as blocks, such that they broadcast to each other."""
    lanes = [1 if word.two_a_byte else None for word in packing.words]
    return (
        {index: packing.layout.as_blocks(own, lanes[index]) for index, own in numbers.items()},
        {m: scale[..., None, None] for m, scale in scales.items()},
    )


def _input_as_blocks(value: Any, layout: Layout) -> Any:
    """An input as blocks; a number stays."""
    return value if jnp.ndim(value) == 0 else layout.as_blocks(jnp.broadcast_to(value, layout.shape))


def _phases_as_blocks(layout: Layout, salt: int) -> list[Array]:
    """The phases of the positions, such that they broadcast to an array as blocks."""
    *leading, inner = phases_of(layout.positions, salt)
    return [*along_axes(leading, len(layout.shape) + 2), inner.reshape(1, layout.lanes, -1)]


def _along_last(layout: Layout, array: Array) -> Array:
    """An array of the length of the last axis, as blocks."""
    return dataclasses.replace(layout, shape=layout.shape[-1:]).as_blocks(array)
