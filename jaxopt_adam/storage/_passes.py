"""A step of one leaf whose moments are stored in codes: in passes of which each fits one loop of the compiler.

Nothing of the leaf's size is made on the way but the update itself. There are three kinds of passes:

1. over the old moments and the gradient, for what the scales of the new ones follow from;
2. one for each word, which has the codes of a moment or of two: it writes the new codes over the old ones;
3. over the new moments: the update. So the update is that of the moments as they are stored, which costs hardly any of
   its exactness, since what rounding does to a moment stays in it for many steps, and it needs no old moment any more.

Whatever two passes have in common is computed in both, since to keep it would take an array of the leaf's size. A
compiler would keep it if it could, so what a pass reads is changed by a zero that only a run shows to be one.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxopt_adam.storage._blockwise import Blocks
from jaxopt_adam.storage._codes import Code, Root
from jaxopt_adam.storage._dense import dithered, is_dithered, undithered
from jaxopt_adam.storage._layout import Layout
from jaxopt_adam.storage._rounding import ROUNDINGS, phases
from jaxopt_adam.storage._words import Word, joined_scales, parted_scales, words

_LEAST_EPS = 1e-30
"""An ε above this is positive in float32 too."""
_LANES = np.array([[0], [1]], np.int32)


class Halves(NamedTuple):
    """The two halves of a rule, for one leaf, as functions of what it reads and the list of its moments.

    Attributes:
        moments: ``moments(inputs, old) -> new``.
        update: ``update(inputs, old, new) -> update``.
    """

    moments: Callable[[Any, Sequence[Array]], Sequence[Array]]
    update: Callable[[Any, Sequence[Array], Sequence[Array]], Array]


class Kept(NamedTuple):
    """The storage of one moment of the leaf.

    Attributes:
        code: its code, None for a moment that rests as it is.
        dtype: the dtype in which it rests if it has no code.
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


def in_place(
    rule: Halves, inputs: Any, resting: Sequence[Any], kept: Sequence[Kept], layout: Layout, step: Array
) -> tuple[Array, list[Any]]:
    """One step of a leaf.

    Args:
        rule: the two halves of the rule.
        inputs: a pytree of what it reads besides the moments; arrays of the leaf's shape, or that broadcast to it.
        resting: the moments; where they have a code, :class:`~jaxopt_adam.storage.Blocks` of this leaf's arrays. Of a
            first moment whose codes are in a second moment's numbers its `codes` are None.
        kept: how each of them is kept.
        layout: the leaf's blocks.
        step: which step it is, from 1.

    Returns:
        The update in the dtype of the arithmetic, and the moments after the step.
    """
    lying = words_of(kept)
    inputs = jax.tree.map(lambda value: _seen(value, layout), inputs)
    old = _by_blocks(resting, kept, lying, layout)
    unmoved = jax.lax.stop_gradient((inputs, old))
    before: list[Any] = [None if how.code is None else value.scales for value, how in zip(resting, kept, strict=True)]
    scales = _scales(rule, *unmoved, before, kept, lying, layout)
    # Zero, which it takes a run to know: a count never passes int32's maximum.
    zero = jax.lax.shift_right_logical(step, np.int32(31))
    new = list(unmoved[1])
    for index in _order(lying, kept):

        def rewritten(own: Any, operands: Any, index: int = index) -> Any:
            inputs, others, scales, *rest = operands
            resting = [*others[:index], own[0], *others[index:]]
            own = _rewritten(rule, inputs, resting, kept, lying, index, scales, *rest)
            # Here, or the compiler would compute the scales once for the state and once for the pass.
            return own, joined_scales(scales) if len(scales) == 2 else scales

        others = [*unmoved[1][:index], *unmoved[1][index + 1 :]]
        members = lying[index].members
        places = [_places(layout, member) for member in members]
        operands = unmoved[0], others, [scales[member] for member in members], places, step
        olds = [before[member] for member in members]
        own = new[index], joined_scales(olds) if len(olds) == 2 else olds
        zero, (new[index], joined) = _once(zero, rewritten, own, operands)
        halves = parted_scales(joined, [each.dtype for each in olds]) if len(olds) == 2 else joined
        for member, half in zip(members, halves, strict=True):
            scales[member] = half
    inputs = _apart(inputs, zero)
    moments = _awake(old, kept, lying), _awake(new, kept, lying)
    if layout.fits:
        update = layout.flat(rule.update(inputs, *moments))
    else:
        # A rule that takes a norm of the leaf must not see the padding.
        whole = jax.tree.map(lambda value: value if jnp.ndim(value) == 0 else layout.flat(value), (inputs, *moments))
        update = rule.update(*whole)
    after: list[Any] = [None if scale is None else Blocks(None, scale) for scale in scales]
    for each, word in zip(new, lying, strict=True):
        holder, *_ = word.members
        numbers = layout.flat(each.numbers, layout.codes_shape(halved=word.halved))
        after[holder] = numbers if word.bits is None else Blocks(numbers, scales[holder])
    return update, after


def unrounded(
    rule: Halves, inputs: Any, resting: Sequence[Any], kept: Sequence[Kept], layout: Layout
) -> tuple[Array, list[Any]]:
    """The step of :func:`in_place` without rounding: the moments after it are in float32."""
    old = loaded(resting, kept, layout)
    after = rule.moments(inputs, old)
    return rule.update(inputs, old, after), list(after)


def loaded(resting: Sequence[Any], kept: Sequence[Kept], layout: Layout) -> list[Array]:
    """The moments in float32, in the leaf's shape."""
    lying = words_of(kept)
    return [layout.flat(value) for value in _awake(_by_blocks(resting, kept, lying, layout), kept, lying)]


def words_of(kept: Sequence[Kept]) -> list[Word]:
    """The words in which the codes of these moments are packed."""
    bits = [None if how.code is None else how.code.bits for how in kept]
    return words(bits, [how.over for how in kept])


class _Resting(NamedTuple):
    """One word as blocks: its numbers, and the decoding parameters of each of its members."""

    numbers: Array
    grids: tuple[tuple[Array, ...], ...]


def _order(lying: Sequence[Word], kept: Sequence[Kept]) -> list[int]:
    """In which order words are written: first what is relative to moments in others, while these are there."""
    relative = [kept[word.members[0]].over is not None for word in lying]
    return sorted(range(len(lying)), key=lambda index: (not relative[index], -index))


def _scales(
    rule: Halves,
    inputs: Any,
    resting: Sequence[_Resting],
    before: Sequence[Any],
    kept: Sequence[Kept],
    lying: Sequence[Word],
    layout: Layout,
) -> list[Any]:
    """The scale of each block after the step, None for a moment without a code, as they are in `before`."""
    after = rule.moments(inputs, _awake(resting, kept, lying))
    measures = [
        how.code.measures(value, over_of(after, how)) if how.code else ()
        for how, value in zip(kept, after, strict=True)
    ]
    flat = [measure for group in measures for measure in group]
    if not layout.fits:
        inside = _along_last(layout, jnp.ones(layout.shape[-1], jnp.int32))
        flat = [measure * inside for measure in flat]
    axes = (flat[0].ndim - 2, flat[0].ndim - 1)
    # One reduction for all, which takes one pass; of two at least, since XLA fuses no other with what it reduces.
    alone = len(flat) == 1
    flat = [*flat, flat[0] >> 1] if alone else flat
    largest = jax.lax.reduce(
        flat, [np.int32(0)] * len(flat), lambda one, other: list(map(jnp.maximum, one, other)), axes
    )
    each = iter([jnp.maximum(*largest)] if alone else largest)
    return [
        how.code.scale(own, *(next(each) for _ in group)) if how.code else None
        for how, own, group in zip(kept, before, measures, strict=True)
    ]


def _rewritten(
    rule: Halves,
    inputs: Any,
    resting: Sequence[_Resting],
    kept: Sequence[Kept],
    lying: Sequence[Word],
    index: int,
    scales: Sequence[Any],
    places: Sequence[Sequence[Array]],
    step: Array,
) -> _Resting:
    """One word after the step."""
    word = lying[index]
    if word.bits is None:
        [member] = word.members
        value = rule.moments(inputs, _awake(resting, kept, lying))[member]
        return _Resting(as_kept(value, kept[member], step, places[0]), ())
    grids = tuple(_code(kept[member]).grid(scale) for member, scale in zip(word.members, scales, strict=True))

    def codes(lane: int | None) -> list[Array]:
        def cut(value: Any) -> Any:
            return value if lane is None or jnp.ndim(value) < 3 else value[..., lane : lane + 1, :]

        after = rule.moments(jax.tree.map(cut, inputs), _awake(resting, kept, lying, lane))
        encoded = []
        for place, (member, grid, (*leading, within)) in enumerate(zip(word.members, grids, places, strict=True)):
            how = kept[member]
            threshold = ROUNDINGS[how.rounding](step, [*leading, cut(within)])
            shift = word.shift(place if lane is None else lane)
            encoded.append(_code(how).encode(after[member], over_of(after, how), _spread(grid), threshold, shift))
        return encoded

    each = [code for lane in (0, 1) for code in codes(lane)] if word.halved else codes(None)
    return _Resting(word.joined(each), grids)


def _awake(
    resting: Sequence[_Resting], kept: Sequence[Kept], lying: Sequence[Word], lane: int | None = None
) -> list[Array]:
    """The moments as the arithmetic wants them, by blocks; or one lane of them."""
    values: dict[int, Array] = {}
    grids: dict[int, Any] = {}

    def cut(value: Array) -> Array:
        return value if lane is None else value[..., lane : lane + 1, :]

    for each, word in zip(resting, lying, strict=True):
        for place, member in enumerate(word.members):
            grids[member] = None if word.bits is None else _spread(each.grids[place])
            if word.bits is None:
                values[member] = cut(each.numbers)
            elif word.halved:
                values[member] = word.parted(each.numbers, _LANES if lane is None else lane)
            else:
                values[member] = word.parted(cut(each.numbers), place)
    places = range(len(kept))
    return decoded([values[place] for place in places], [grids[place] for place in places], kept)


def decoded(values: Sequence[Array], grids: Sequence[Any], kept: Sequence[Kept]) -> list[Array]:
    """The moments in float32, out of int32 codes where they have a code, and of themselves where not."""
    awake: dict[int, Array] = {}
    roots: dict[int, Any] = {}
    for index in in_order(kept):
        how, value, grid = kept[index], values[index], grids[index]
        if how.code is None:
            awake[index] = undithered(value)
            roots[index] = jnp.sqrt(jnp.abs(awake[index]))
            continue
        over = None if how.over is None else _plus_eps(roots[how.over], how)
        awake[index] = how.code.decode(value, over, grid)
        roots[index] = how.code.root(value, grid) if isinstance(how.code, Root) else None
    return [awake[index] for index in range(len(kept))]


def as_kept(value: Array, how: Kept, step: Array, places: Sequence[Array]) -> Array:
    """A moment without a code as it is stored."""
    if is_dithered(how.dtype):
        return dithered(value, how.dtype, ROUNDINGS["dither"](step, places))
    return value.astype(how.dtype)


def over_of(moments: Sequence[Array], how: Kept) -> Array | None:
    """The denominator of a moment's code, from the second moment before it is rounded; None for a code without one."""
    return None if how.over is None else _plus_eps(jnp.sqrt(moments[how.over]), how)


def _plus_eps(root: Array, how: Kept) -> Array:
    over = root + how.eps
    known = isinstance(how.eps, float) and how.eps > _LEAST_EPS
    return over if known else jnp.where(over > 0, over, 1)


def _seen(value: Any, layout: Layout) -> Any:
    """An input by blocks; a number stays."""
    return value if jnp.ndim(value) == 0 else layout.seen(jnp.broadcast_to(value, layout.shape))


def _by_blocks(resting: Sequence[Any], kept: Sequence[Kept], lying: Sequence[Word], layout: Layout) -> list[_Resting]:
    def seen(word: Word) -> _Resting:
        value = resting[word.members[0]]
        if word.bits is None:
            return _Resting(layout.seen(value), ())
        grids = tuple(_code(kept[member]).grid(resting[member].scales) for member in word.members)
        return _Resting(layout.seen(value.codes, 1 if word.halved else None), grids)

    return [seen(word) for word in lying]


def _code(how: Kept) -> Code:
    assert how.code is not None
    return how.code


def _spread(grid: tuple[Array, ...]) -> Any:
    """Parameters of each block, in a shape that broadcasts to the block's elements."""
    return tuple(each[..., None, None] for each in grid)


def _places(layout: Layout, salt: int) -> list[Array]:
    """The phases of the positions, such that they broadcast to what is seen by blocks."""
    *leading, within = phases(layout.positions, salt)
    axes = len(layout.shape) + 2
    return [
        *(each.reshape(-1, *[1] * (axes - 1 - axis)) for axis, each in enumerate(leading)),
        within.reshape(1, layout.lanes, -1),
    ]


def _along_last(layout: Layout, array: Array) -> Array:
    """An array of the length of the last axis, by blocks."""
    return dataclasses.replace(layout, shape=layout.shape[-1:]).seen(array)


def _apart(tree: Any, zero: Array) -> Any:
    return jax.tree.map(lambda array: array + zero.astype(jnp.result_type(array)), tree)


def _once(zero: Array, function: Callable[[Any, Any], Any], own: Any, operands: Any) -> tuple[Array, Any]:
    """``function(own, operands)``, written over `own`; with the zero for what comes after.

    It is a loop of one turn, since what a loop carries is written in place where it can be. On other platforms than the
    CPU loops are dear.
    """

    def loop(zero: Array, own: Any, operands: Any) -> tuple[Array, Any]:
        def body(carry: tuple[Array, Any]) -> tuple[Array, Any]:
            turn, own = carry
            return turn + 1, function(own, _apart(operands, turn >> 31))

        return jax.lax.while_loop(lambda carry: carry[0] < 1, body, (zero, own))

    def plain(zero: Array, own: Any, operands: Any) -> tuple[Array, Any]:
        return zero + 1, function(own, operands)

    turn, own = jax.lax.platform_dependent(zero, own, operands, cpu=loop, default=plain)
    return turn >> 1, own


def in_order(kept: Sequence[Kept]) -> list[int]:
    """The moments' places, those that others are relative to first."""
    return sorted(range(len(kept)), key=lambda index: kept[index].over is not None)
