"""A step of a leaf with moments in codes: in passes of which each fits one loop of the compiler.

Nothing of the leaf's size is made on the way but the update itself. There are three kinds of passes:

1. over the old moments and the gradient, for what the scales of the new ones follow from;
2. one for each word, which has the codes of a moment or of two: it writes the new codes over the old ones;
3. over the new moments: the update. So the update is that of the moments as they are stored, which costs hardly any of
   its exactness, since what rounding does to a moment stays in it for many steps, and it needs no old moment any more.

Whatever two passes have in common is computed in both, since to keep it would take an array of the leaf's size. A
compiler would keep it if it could; :func:`~jaxopt_adam._xla.in_place` sees to it that it cannot.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxopt_adam._xla import apart, in_place, largest_of_blocks
from jaxopt_adam.storage._layout import Layout
from jaxopt_adam.storage._packing import LANES, Packing, joined_scales, parted_scales
from jaxopt_adam.storage._rounding import phases


class Halves(NamedTuple):
    """The two halves of a rule, for one leaf, as functions of what it reads and the list of its moments.

    Attributes:
        moments: ``moments(inputs, old) -> new``.
        update: ``update(inputs, old, new) -> update``.
    """

    moments: Callable[[Any, Sequence[Array]], Sequence[Array]]
    update: Callable[[Any, Sequence[Array], Sequence[Array]], Array]


def in_passes(
    rule: Halves,
    inputs: Any,
    numbers: Mapping[int, Array],
    scales: Mapping[int, Any],
    packing: Packing,
    step: Array,
) -> tuple[Array, dict[int, Array], dict[int, Any]]:
    """One step of a leaf.

    Args:
        rule: the two halves of the rule.
        inputs: a pytree of what it reads besides the moments; arrays of the leaf's shape, or that broadcast to it.
        numbers: those of each word, by its place among the words.
        scales: those of each moment by its place, None for one without a code.
        packing: the storage of the moments.
        step: which step it is, from 1.

    Returns:
        The update in the dtype of the arithmetic, and the numbers and the scales after the step.
    """
    layout = packing.layout
    inputs = jax.tree.map(lambda value: _by_blocks(value, layout), inputs)
    old, before = _as_blocks(numbers, scales, packing)
    old_grids = packing.grids(before)
    fixed, held = jax.lax.stop_gradient((inputs, old))
    measures = packing.measures(rule.moments(fixed, packing.decode(held, old_grids)))
    if not layout.fits:
        inside = _along_last(layout, jnp.ones(layout.shape[-1], jnp.int32))
        measures = jax.tree.map(lambda measure: measure * inside, measures)
    after = packing.scales(before, largest_of_blocks(measures))
    new, grids = dict(held), dict(old_grids)
    # Zero, which it takes a run to know: a count never passes int32's maximum.
    zero = jax.lax.shift_right_logical(step, np.int32(31))
    # First what is relative to moments in other words, while these are there.
    relative = [packing.members[word.members[0]].over is not None for word in packing.words]
    for index in sorted(new, key=lambda index: (not relative[index], -index)):
        word = packing.words[index]
        own = new[index], {m: grids[m] for m in word.members}, joined_scales([before[m] for m in word.members])
        others = (
            {i: other for i, other in held.items() if i != index},
            {m: grid for m, grid in old_grids.items() if m not in word.members},
        )
        of_word = {m: after[m] for m in word.members}, [_places(layout, m) for m in word.members]
        write = functools.partial(_written, rule, packing, index)
        zero, (new[index], own_grids, joined) = in_place(zero, write, own, (fixed, others, *of_word, step))
        grids |= own_grids
        after |= dict(zip(word.members, parted_scales(joined, packing.scale_dtypes(word)), strict=True))
    inputs = apart(inputs, zero)
    moments = packing.decode(old, old_grids), packing.decode(new, grids)
    if layout.fits:
        update = layout.flat(rule.update(inputs, *moments))
    else:
        # A rule that takes a norm of the leaf must not see the padding.
        whole = jax.tree.map(lambda value: value if jnp.ndim(value) == 0 else layout.flat(value), (inputs, *moments))
        update = rule.update(*whole)
    numbers = {index: layout.flat(new[index], packing.codes_shape(word)) for index, word in enumerate(packing.words)}
    return update, numbers, {m: None if scale is None else scale[..., 0, 0] for m, scale in after.items()}


def loaded(numbers: Mapping[int, Array], scales: Mapping[int, Any], packing: Packing) -> list[Array]:
    """The moments in float32, in the leaf's shape."""
    blocks, scales = _as_blocks(numbers, scales, packing)
    return [packing.layout.flat(moment) for moment in packing.decode(blocks, packing.grids(scales))]


def _written(rule: Halves, packing: Packing, index: int, own: Any, given: Any) -> Any:
    """One word after the step: its numbers, decoding parameters and joined scales, as `own` has them before it."""
    word = packing.words[index]
    numbers, grids, _ = own
    inputs, (other_numbers, other_grids), scales, places, step = given
    numbers, grids, new_grids = other_numbers | {index: numbers}, other_grids | grids, packing.grids(scales)
    codes = []
    for lane in (0, 1) if word.halved else (None,):

        def cut(value: Any, lane: int | None = lane) -> Any:
            return value if lane is None or jnp.ndim(value) < 3 else value[..., lane : lane + 1, :]

        of_lane = {i: each if packing.words[i].halved else cut(each) for i, each in numbers.items()}
        old = packing.decode(of_lane, grids, LANES if lane is None else lane)
        moments = rule.moments(jax.tree.map(cut, inputs), old)
        phases = [[*leading, cut(inner)] for *leading, inner in places]
        codes += packing.encode(word, moments, new_grids, step, phases, lane)
    # The scales are here too, or the compiler would compute them once for the state and once for this pass.
    return word.joined(codes), new_grids, joined_scales([scales[member] for member in word.members])


def _as_blocks(
    numbers: Mapping[int, Array], scales: Mapping[int, Any], packing: Packing
) -> tuple[dict[int, Array], dict[int, Any]]:
    """Numbers and scales as blocks, such that they broadcast to each other."""
    lanes = [1 if word.halved else None for word in packing.words]
    return (
        {index: packing.layout.as_blocks(own, lanes[index]) for index, own in numbers.items()},
        {m: None if scale is None else scale[..., None, None] for m, scale in scales.items()},
    )


def _by_blocks(value: Any, layout: Layout) -> Any:
    """An input as blocks; a number stays."""
    return value if jnp.ndim(value) == 0 else layout.as_blocks(jnp.broadcast_to(value, layout.shape))


def _places(layout: Layout, salt: int) -> list[Array]:
    """The phases of the positions, such that they broadcast to an array as blocks."""
    *leading, inner = phases(layout.positions, salt)
    axes = len(layout.shape) + 2
    return [
        *(each.reshape(-1, *[1] * (axes - 1 - axis)) for axis, each in enumerate(leading)),
        inner.reshape(1, layout.lanes, -1),
    ]


def _along_last(layout: Layout, array: Array) -> Array:
    """An array of the length of the last axis, as blocks."""
    return dataclasses.replace(layout, shape=layout.shape[-1:]).as_blocks(array)
