"""A step of one leaf whose moments rest in codes, in one pass: a Pallas kernel for accelerators.

Each program of the kernel sees to some blocks: it decodes the moments, applies the rule, finds the scales, encodes, and
computes the update of the moments as they rest. The arithmetic is that of :mod:`jaxopt_adam.in_place`, to the bit.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from jaxopt_adam.in_place import Kept, decoded, over_of
from jaxopt_adam.rewritten import Rule, as_rested
from jaxopt_adam.storage import ROUNDINGS, Blocks, Layout, mixed, phases, salted

__all__ = ["in_one_pass", "suits"]

_ELEMENTS = 4096
"""Elements of a leaf that one program sees to, at most."""


def suits(layout: Layout) -> bool:
    """Whether the kernel can be used: its blocks must be whole, and powers of two as Triton's arrays must be."""
    return layout.fits and layout.length & (layout.length - 1) == 0


def in_one_pass(
    rule: Rule,
    inputs: Any,
    resting: Sequence[Any],
    kept: Sequence[Kept],
    layout: Layout,
    step: Array,
    elsewhere: Callable[..., Any] | None = None,
) -> tuple[Array, list[Any]]:
    """One step of a leaf; arguments and results are those of :func:`~jaxopt_adam.in_place.in_place`.

    On GPUs of NVIDIA the kernel is compiled by Triton. On other platforms `elsewhere` takes its place, which has the
    arguments of `in_place`; without it the kernel is compiled by what Pallas has for the platform, and on a CPU it is
    interpreted, as a plain JAX program.
    """

    def run(**how: Any) -> Callable[..., Any]:
        return lambda inputs, resting, step: _run(rule, inputs, resting, step, kept, layout, **how)

    def default(*given: Any) -> Any:
        inputs, resting, step = given
        return elsewhere(rule, inputs, resting, kept=kept, layout=layout, step=step) if elsewhere else run()(*given)

    return jax.lax.platform_dependent(
        inputs,
        list(resting),
        step,
        cpu=default if elsewhere else run(interpret=True),
        cuda=run(compiler_params=triton.CompilerParams(num_warps=4)),
        default=default,
    )


def _run(
    rule: Rule,
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
    flat_rule, constants = _closed(rule, examples, [example] * len(kept))
    traced = [how.eps for how in kept if not isinstance(how.eps, float)]
    numbers += [step, *traced, *constants]
    moments = [_parts(value, how, seen, layout) for value, how in zip(resting, kept, strict=True)]
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

        read = [
            [moment[:, lane, :] for lane in lanes] if how.code is None else (moment[0], _unpacked(moment, how, lanes))
            for moment, how in zip(moments, own_kept, strict=True)
        ]
        grids: list[Any] = [
            None if how.code is None else how.code.grid(moment[0][...])
            for moment, how in zip(read, own_kept, strict=True)
        ]
        old = [
            decoded([_of_lane(each, how, lane) for each, how in zip(read, own_kept, strict=True)], grids, own_kept)
            for lane in lanes
        ]
        given = [inputs_of(lane) for lane in lanes]
        after = [flat_rule(constants, each, awake)[1:] for each, awake in zip(given, old, strict=True)]
        for index, how in enumerate(own_kept):
            if how.code is None:
                for lane in lanes:
                    new[index][:, lane, :] = after[lane][index].astype(how.dtype)
                read[index] = [after[lane][index].astype(how.dtype) for lane in lanes]
                continue
            overs = [over_of(each, how) for each in after]
            measures = [how.code.measures(each[index], over) for each, over in zip(after, overs, strict=True)]
            largest = [
                functools.reduce(jnp.maximum, [jnp.max(each, axis=-1, keepdims=True) for each in of_lanes])
                for of_lanes in zip(*measures, strict=True)
            ]
            scale = how.code.scale(read[index][0][...], *largest)
            grids[index] = how.code.grid(scale)
            thresholds = [
                ROUNDINGS[how.rounding](step, [places[index][...], _within(layout, index, lane)]) for lane in lanes
            ]
            codes = [
                how.code.encode(each[index], over, grids[index], threshold)
                for each, over, threshold in zip(after, overs, thresholds, strict=True)
            ]
            new[index][0][...] = scale
            if how.code.bits == 8:
                for lane in lanes:
                    new[index][1][:, lane, :] = codes[lane].astype(jnp.uint8)
            else:
                new[index][1][:, 0, :] = (codes[0] | codes[1] << 4).astype(jnp.uint8)
            read[index] = (None, codes)
        for lane in lanes:
            rested = decoded(
                [_of_lane(each, how, lane) for each, how in zip(read, own_kept, strict=True)], grids, own_kept
            )
            out[:, lane, :] = as_rested(functools.partial(flat_rule, constants), given[lane], old[lane], rested)

    def spec(array: Any) -> pl.BlockSpec:
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
    update, after = jax.tree.unflatten(rebuild_outputs, results)
    return update.reshape(layout.shape), [
        value.reshape(layout.shape)
        if how.code is None
        else Blocks(value[1].reshape(layout.codes_shape(how.code.bits)), value[0].reshape(layout.blocks))
        for value, how in zip(after, kept, strict=True)
    ]


def _listed(value: Any, *, layout: Layout, count: int) -> Array:
    """An array as a list of blocks."""
    return jnp.broadcast_to(value, layout.shape).reshape(count, layout.lanes, layout.length // layout.lanes)


def _parts(resting: Any, how: Kept, seen: Callable[..., Array], layout: Layout) -> Any:
    if how.code is None:
        return seen(resting)
    lanes = layout.lanes if how.code.bits == 8 else 1
    codes = resting.codes.reshape(-1, lanes, layout.length // layout.lanes)
    return resting.scales.reshape(-1, 1), codes


def _closed(rule: Rule, inputs: Any, moments: Sequence[Any]) -> tuple[Callable[..., Any], list[Array]]:
    """The rule as a function of what it closes over besides its arguments, and that."""
    flat, tree = jax.tree.flatten((inputs, list(moments)))
    closed = jax.closure_convert(lambda *flat: tuple(rule(*jax.tree.unflatten(tree, flat))), *flat)
    convert, constants = closed

    def applied(constants: Sequence[Any], inputs: Any, moments: Sequence[Any]) -> Sequence[Any]:
        return convert(*jax.tree.leaves((inputs, list(moments))), *constants)

    return applied, list(constants)


def _of_lane(read: Any, how: Kept, lane: int) -> Array:
    return read[lane] if how.code is None else read[1][lane]


def _unpacked(moment: Any, how: Kept, lanes: Sequence[int]) -> list[Array]:
    _, codes = moment
    assert how.code is not None
    if how.code.bits == 8:
        return [codes[:, lane, :].astype(jnp.int32) for lane in lanes]
    both = codes[:, 0, :].astype(jnp.int32)
    return [both >> 4 * lane & 15 for lane in lanes]


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
