"""A step of one leaf whose moments rest in codes, in one pass: a Pallas kernel for accelerators.

Each program of the kernel sees to some blocks: it decodes the moments, applies the rule, finds the scales, encodes, and
computes the update of the moments as they are stored. The arithmetic is that of :mod:`jaxopt_adam.storage._passes`, to
the bit.
"""

import functools
import math
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxopt_adam.storage._blockwise import Blocks
from jaxopt_adam.storage._codes import Code
from jaxopt_adam.storage._layout import Layout
from jaxopt_adam.storage._passes import Halves, Kept, as_kept, decoded, over_of, words_of
from jaxopt_adam.storage._rounding import ROUNDINGS, mixed, phases, salted
from jaxopt_adam.storage._words import Word

_ELEMENTS = 4096
"""Elements of a leaf that one program sees to, at most."""


def suits(layout: Layout) -> bool:
    """True if the kernel can be used: its blocks must be whole, and powers of two as Triton's arrays must be."""
    return layout.fits and layout.length & (layout.length - 1) == 0


def in_one_pass(
    rule: Halves,
    inputs: Any,
    resting: Sequence[Any],
    kept: Sequence[Kept],
    layout: Layout,
    step: Array,
) -> tuple[Array, list[Any]]:
    """One step of a leaf; arguments and results are those of :func:`~jaxopt_adam.storage._passes.in_place`.

    On GPUs of NVIDIA the kernel is compiled by Triton, and on a CPU it is interpreted, as a plain JAX program. On other
    platforms it is compiled by what Pallas has for them.

    Raises:
        ImportError: if this version of JAX has no Pallas or no Triton backend of it.
    """
    pallas, triton = _pallas()

    def run(**how: Any) -> Callable[..., Any]:
        return lambda inputs, resting, step: _run(pallas, rule, inputs, resting, step, kept, layout, **how)

    return jax.lax.platform_dependent(
        inputs,
        list(resting),
        step,
        cpu=run(interpret=True),
        cuda=run(compiler_params=triton.CompilerParams(num_warps=4)),
        default=run(),
    )


def _pallas() -> tuple[ModuleType, ModuleType]:
    """Pallas and its Triton backend, which JAX may do without one day; so nothing else here imports them."""
    try:
        from jax.experimental import pallas
        from jax.experimental.pallas import triton
    except ImportError as error:
        raise ImportError(
            f'implementation="pallas" needs Pallas with its Triton backend, which JAX {jax.__version__} lacks '
            f'({error}); choose "xla" or "auto"'
        ) from error
    return pallas, triton


def _run(
    pl: Any,
    rule: Halves,
    inputs: Any,
    resting: Sequence[Any],
    step: Array,
    kept: Sequence[Kept],
    layout: Layout,
    *,
    interpret: bool = False,
    compiler_params: Any = None,
) -> tuple[Array, list[Any]]:
    count, width = math.prod(layout.blocks), layout.length // layout.lanes
    tile = math.gcd(count, max(1, _ELEMENTS // layout.length))
    seen = functools.partial(_listed, layout=layout, count=count)
    values, tree = jax.tree.flatten(inputs)
    is_number = [jnp.ndim(value) == 0 for value in values]
    arrays = [seen(value) for value, number in zip(values, is_number, strict=True) if not number]
    numbers = [jnp.asarray(value) for value, number in zip(values, is_number, strict=True) if number]
    example = jax.ShapeDtypeStruct((tile, width), jnp.float32)
    examples = jax.tree.unflatten(tree, [x if number else example for x, number in zip(values, is_number, strict=True)])
    # A kernel cannot close over what is traced, so what the rule closes over becomes numbers that it is given.
    closed, constants = _closed(rule, examples, [example] * len(kept))
    traced = [how.eps for how in kept if not isinstance(how.eps, float)]
    numbers += [step, *traced, *constants]
    lying = words_of(kept)
    moments = [_parts(resting, word, seen, layout) for word in lying]
    places = _leading(layout, count, len(kept))
    operands, rebuild = jax.tree.flatten((numbers, arrays, moments, places))
    outputs = (jax.ShapeDtypeStruct((count, layout.lanes, width), jnp.float32), moments)
    written, rebuild_outputs = jax.tree.flatten(outputs)

    def kernel(*references: Any) -> None:
        numbers, arrays, moments, places = jax.tree.unflatten(rebuild, references[: len(operands)])
        out, new = jax.tree.unflatten(rebuild_outputs, references[len(operands) :])
        numbers = [reference[0] for reference in numbers]
        own, (step, *constants) = numbers[: sum(is_number)], numbers[sum(is_number) :]
        each_eps, constants = iter(constants[: len(traced)]), constants[len(traced) :]
        own_kept = [how if isinstance(how.eps, float) else how._replace(eps=next(each_eps)) for how in kept]
        lanes = range(layout.lanes)

        def inputs_of(lane: int) -> Any:
            rest, scalars = iter(arrays), iter(own)
            each = [next(scalars) if number else next(rest)[:, lane, :] for number in is_number]
            return jax.tree.unflatten(tree, each)

        grids: list[Any] = [None] * len(kept)
        before: list[Any] = [None] * len(kept)
        # For each moment what its decoding starts from, by lanes.
        read: list[Any] = [None] * len(kept)
        for each, word in zip(moments, lying, strict=True):
            numbers = each if word.bits is None else each.numbers
            numbers = [numbers[:, lane, :] for lane in range(numbers.shape[1])]
            for place, member in enumerate(word.members):
                read[member] = [_read(numbers, word, place, lane) for lane in lanes]
                if word.bits is not None:
                    before[member] = each.scales[place][...]
                    grids[member] = _code(own_kept[member]).grid(before[member])
        given = [inputs_of(lane) for lane in lanes]
        old = [decoded([each[lane] for each in read], grids, own_kept) for lane in lanes]
        rule = closed(constants)
        after = [rule.moments(each, awake) for each, awake in zip(given, old, strict=True)]
        for each, word in zip(new, lying, strict=True):
            if word.bits is None:
                [member] = word.members
                phase = places[member][...]
                numbers = [
                    as_kept(moments[member], own_kept[member], step, [phase, _within(layout, member, lane)])
                    for lane, moments in zip(lanes, after, strict=True)
                ]
            else:
                codes = []
                for place, member in enumerate(word.members):
                    how = own_kept[member]
                    phase = places[member][...]
                    thresholds = [
                        ROUNDINGS[how.rounding](step, [phase, _within(layout, member, lane)]) for lane in lanes
                    ]
                    shifts = [word.shift(lane if word.halved else place) for lane in lanes]
                    scale = _scale(how, member, before[member], after)
                    grids[member] = _code(how).grid(scale)
                    each.scales[place][...] = scale
                    codes.append(_encoded(how, member, grids[member], after, thresholds, shifts))
                numbers = [word.joined(shifted) for shifted in (codes if word.halved else zip(*codes, strict=True))]
            target = each if word.bits is None else each.numbers
            for lane, number in enumerate(numbers):
                target[:, lane, :] = number
            for place, member in enumerate(word.members):
                read[member] = [_read(numbers, word, place, lane) for lane in lanes]
        for lane in lanes:
            rested = decoded([each[lane] for each in read], grids, own_kept)
            out[:, lane, :] = rule.update(given[lane], old[lane], rested)

    def spec(array: Any) -> Any:
        if array.ndim == 1:
            return pl.BlockSpec(array.shape, lambda i: (0,))
        return pl.BlockSpec((tile, *array.shape[1:]), lambda i: (i, *[0] * (array.ndim - 1)))

    operands = [operand.reshape(1) if operand.ndim == 0 else operand for operand in operands]
    # The moments are written over the old ones.
    before = len(jax.tree.leaves((numbers, arrays)))
    aliases = {before + place: 1 + place for place in range(len(jax.tree.leaves(moments)))}
    results = pl.pallas_call(
        kernel,
        out_shape=[jax.ShapeDtypeStruct(each.shape, each.dtype) for each in written],
        grid=(count // tile,),
        in_specs=list(map(spec, operands)),
        out_specs=list(map(spec, written)),
        input_output_aliases=aliases,
        interpret=interpret,
        compiler_params=compiler_params,
        name="jaxopt_adam_step",
    )(*operands)
    update, written = jax.tree.unflatten(rebuild_outputs, results)
    after: list[Any] = [None] * len(kept)
    for each, word in zip(written, lying, strict=True):
        if word.bits is None:
            after[word.members[0]] = each.reshape(layout.shape)
            continue
        numbers: list[Any] = [each.numbers.reshape(layout.codes_shape(halved=word.halved)), None]
        for number, scales, member in zip(numbers, each.scales, word.members, strict=False):
            after[member] = Blocks(number, scales.reshape(layout.blocks))
    return update.reshape(layout.shape), after


class _Parts(NamedTuple):
    """One word as a list of blocks: its numbers, and the scales of its members."""

    scales: tuple[Any, ...]
    numbers: Any


def _listed(value: Any, *, layout: Layout, count: int) -> Array:
    """An array as a list of blocks."""
    return jnp.broadcast_to(value, layout.shape).reshape(count, layout.lanes, layout.length // layout.lanes)


def _parts(resting: Sequence[Any], word: Word, seen: Callable[..., Array], layout: Layout) -> Any:
    value = resting[word.members[0]]
    if word.bits is None:
        return seen(value)
    numbers = value.codes.reshape(-1, 1 if word.halved else layout.lanes, layout.length // layout.lanes)
    return _Parts(tuple(resting[member].scales.reshape(-1, 1) for member in word.members), numbers)


def _closed(rule: Halves, inputs: Any, moments: Sequence[Any]) -> tuple[Callable[[Sequence[Any]], Halves], list[Array]]:
    """The rule as a function of what it closes over, and that."""
    both: Any = (rule.moments, (inputs, list(moments))), (rule.update, (inputs, list(moments), list(moments)))
    parts = [jax.closure_convert(function, *arguments) for function, arguments in both]
    lengths = [len(constants) for _, constants in parts]

    def applied(constants: Sequence[Any]) -> Halves:
        first, second = constants[: lengths[0]], constants[lengths[0] :]
        return Halves(
            lambda inputs, old: parts[0][0](inputs, list(old), *first),
            lambda inputs, old, new: parts[1][0](inputs, list(old), list(new), *second),
        )

    return applied, [constant for _, constants in parts for constant in constants]


def _read(numbers: Sequence[Array], word: Word, place: int, lane: int) -> Array:
    """One lane of what the decoding of a moment starts from, out of the numbers of its word."""
    if word.bits is None:
        return numbers[lane]
    return word.parted(numbers[0], lane) if word.halved else word.parted(numbers[lane], place)


def _scale(how: Kept, member: int, before: Array, after: Sequence[Sequence[Array]]) -> Array:
    """The scale of each block of a moment after the step, of which `after` has all moments, lane by lane."""
    measures = [_code(how).measures(moments[member], over_of(moments, how)) for moments in after]
    largest = [
        functools.reduce(jnp.maximum, [jnp.max(measure, axis=-1, keepdims=True) for measure in of_lanes])
        for of_lanes in zip(*measures, strict=True)
    ]
    return _code(how).scale(before, *largest)


def _encoded(
    how: Kept,
    member: int,
    grid: Any,
    after: Sequence[Sequence[Array]],
    thresholds: Sequence[Array],
    shifts: Sequence[int],
) -> list[Array]:
    """The codes of a moment after the step, lane by lane, each shifted to its place."""
    return [
        _code(how).encode(moments[member], over_of(moments, how), grid, threshold, shift)
        for moments, threshold, shift in zip(after, thresholds, shifts, strict=True)
    ]


def _code(how: Kept) -> Code:
    assert how.code is not None
    return how.code


def _leading(layout: Layout, count: int, salts: int) -> list[Array]:
    """For each moment the phase of each block."""
    axes = len(layout.blocks)
    sums = []
    for salt in range(salts):
        along = [each.reshape(-1, *[1] * (axes - 1 - k)) for k, each in enumerate(phases(layout.positions, salt)[:-1])]
        sums.append((sum(along) + jnp.zeros(layout.blocks, jnp.uint32)).reshape(count, 1))
    return sums


def _within(layout: Layout, salt: int, lane: int) -> Array:
    """The phases of the positions in a block, which a kernel has to compute as it cannot close over them."""
    width = layout.length // layout.lanes
    position = lane * width + jax.lax.broadcasted_iota(jnp.int32, (1, width), 1)
    return mixed(position.astype(jnp.uint32) + salted(salt, len(layout.shape)))
