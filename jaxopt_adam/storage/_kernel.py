"""A step of one leaf whose moments are stored in codes, in one pass: a Pallas kernel for accelerators.

Each program of the kernel processes some blocks: it decodes the moments, applies the rule, finds the scales, encodes,
and computes the update of the moments as they are stored. The arithmetic is that of :mod:`jaxopt_adam.storage._passes`,
to the bit.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxopt_adam.storage._layout import Layout
from jaxopt_adam.storage._packing import Packing
from jaxopt_adam.storage._passes import Halves
from jaxopt_adam.storage._rounding import along_axes, mixed, phases, salted

_ELEMENTS = 4096
"""The largest number of elements of a leaf that one program processes."""


def suits(layout: Layout) -> bool:
    """True if the kernel can be used: its blocks must be whole, and powers of two as Triton's arrays must be."""
    return layout.fits and layout.length & (layout.length - 1) == 0


def in_one_pass(
    rule: Halves,
    inputs: Any,
    numbers: Mapping[int, Array],
    scales: Mapping[int, Any],
    packing: Packing,
    step: Array,
) -> tuple[Array, dict[int, Array], dict[int, Any]]:
    """One step of a leaf; arguments and results are those of :func:`~jaxopt_adam.storage._passes.in_passes`.

    On GPUs of NVIDIA the kernel is compiled by Triton, and on a CPU it is interpreted, as a plain JAX program. On other
    platforms it is compiled by what Pallas has for them.

    Raises:
        ImportError: if this version of JAX has no Pallas or no Triton backend of it.
    """
    pallas, triton = _pallas()

    def run(**how: Any) -> Callable[..., Any]:
        return functools.partial(_run, pallas, rule, packing, **how)

    return jax.lax.platform_dependent(
        inputs,
        dict(numbers),
        dict(scales),
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
    packing: Packing,
    inputs: Any,
    numbers: dict[int, Array],
    scales: dict[int, Any],
    step: Array,
    *,
    interpret: bool = False,
    compiler_params: Any = None,
) -> tuple[Array, dict[int, Array], dict[int, Any]]:
    layout = packing.layout
    count, width = math.prod(layout.blocks), layout.length // layout.lanes
    tile = math.gcd(count, max(1, _ELEMENTS // layout.length))
    values, tree = jax.tree.flatten(inputs)
    is_number = [jnp.ndim(value) == 0 for value in values]
    arrays = [_listed(value, layout, count) for value, number in zip(values, is_number, strict=True) if not number]
    scalars = [jnp.asarray(value) for value, number in zip(values, is_number, strict=True) if number]
    example = jax.ShapeDtypeStruct((tile, width), jnp.float32)
    examples = jax.tree.unflatten(tree, [x if number else example for x, number in zip(values, is_number, strict=True)])
    # A kernel cannot close over what is traced, so what the rule closes over becomes numbers that it is given.
    closed, constants = _closed(rule, examples, [example] * len(packing.members))
    numbers_of = [
        (member.eps, member.slowest if m in packing.sliding else None) for m, member in enumerate(packing.members)
    ]
    traced = [number for pair in numbers_of for number in pair if isinstance(number, jax.Array)]
    scalars += [step, *traced, *constants]
    listed = {
        index: own.reshape(-1, 1 if packing.words[index].two_a_byte else layout.lanes, width)
        for index, own in numbers.items()
    }
    columns = {m: scale.reshape(-1, 1) for m, scale in scales.items()}
    leading = _leading(layout, count, len(packing.members))
    operands, rebuild = jax.tree.flatten((scalars, arrays, leading, (listed, columns)))
    update = jax.ShapeDtypeStruct((count, layout.lanes, width), jnp.float32)
    outputs, rebuild_outputs = jax.tree.flatten((update, (listed, columns)))

    def kernel(*references: Any) -> None:
        scalars, arrays, leading, (listed, columns) = jax.tree.unflatten(rebuild, references[: len(operands)])
        out, (new_numbers, new_scales) = jax.tree.unflatten(rebuild_outputs, references[len(operands) :])
        scalars = [reference[0] for reference in scalars]
        own, (step, *constants) = scalars[: sum(is_number)], scalars[sum(is_number) :]
        rule = closed(constants[len(traced) :])
        given_numbers = iter(constants)
        pairs = [[next(given_numbers) if isinstance(n, jax.Array) else n for n in pair] for pair in numbers_of]
        members = [
            member._replace(eps=eps, decay=decay) for member, (eps, decay) in zip(packing.members, pairs, strict=True)
        ]
        own_packing = dataclasses.replace(packing, members=tuple(members))
        lanes = range(layout.lanes)

        def inputs_of(lane: int) -> Any:
            rest, numbers = iter(arrays), iter(own)
            return jax.tree.unflatten(
                tree, [next(numbers) if number else next(rest)[:, lane, :] for number in is_number]
            )

        def decode(numbers: Mapping[int, Sequence[Array]], grids: Any, lane: int) -> list[Array]:
            of_lane = {i: each[0] if packing.words[i].two_a_byte else each[lane] for i, each in numbers.items()}
            return own_packing.decode(of_lane, grids, lane)

        read = {i: [each[:, lane, :] for lane in range(each.shape[1])] for i, each in listed.items()}
        before = {m: scale[...] for m, scale in columns.items()}
        old_grids = own_packing.grids(before)
        given = [inputs_of(lane) for lane in lanes]
        old = [decode(read, old_grids, lane) for lane in lanes]
        after = [rule.first(inputs, moments) for inputs, moments in zip(given, old, strict=True)]
        measures = [
            jax.tree.map(lambda each: jnp.max(each, axis=-1, keepdims=True), own_packing.measures(moments))
            for moments in after
        ]
        largest = functools.reduce(functools.partial(jax.tree.map, jnp.maximum), measures)
        slid = own_packing.scales(before, largest, step, [[each[...], None] for each in leading])
        scales = own_packing.stored(slid)
        grids = own_packing.grids(scales)
        rulers = own_packing.rulers(grids, old_grids, slid)
        for m, scale in scales.items():
            new_scales[m][...] = scale
        for index, word in enumerate(packing.words):
            codes = []
            for lane, moments in enumerate(after):
                own_phases = [[leading[m][...], _inner(layout, m, lane)] for m in word.members]
                codes.append(own_packing.encode(word, moments, rulers, step, own_phases, lane))
            of_lanes = [[code for each in codes for code in each]] if word.two_a_byte else codes
            read[index] = [word.joined(each) for each in of_lanes]
            for lane, number in enumerate(read[index]):
                new_numbers[index][:, lane, :] = number
        for lane in lanes:
            out[:, lane, :] = rule.second(given[lane], old[lane], decode(read, grids, lane))

    def spec(array: Any) -> Any:
        if array.ndim == 1:
            return pl.BlockSpec(array.shape, lambda i: (0,))
        return pl.BlockSpec((tile, *array.shape[1:]), lambda i: (i, *[0] * (array.ndim - 1)))

    operands = [operand.reshape(1) if operand.ndim == 0 else operand for operand in operands]
    # The moments, which come last, are written over the old ones.
    ahead = len(operands) - len(outputs)
    results = pl.pallas_call(
        kernel,
        out_shape=[jax.ShapeDtypeStruct(each.shape, each.dtype) for each in outputs],
        grid=(count // tile,),
        in_specs=list(map(spec, operands)),
        out_specs=list(map(spec, outputs)),
        input_output_aliases={ahead + index: index for index in range(1, len(outputs))},
        interpret=interpret,
        compiler_params=compiler_params,
        name="jaxopt_adam_step",
    )(*operands)
    update, (listed, columns) = jax.tree.unflatten(rebuild_outputs, results)
    return (
        update.reshape(layout.shape),
        {index: own.reshape(numbers[index].shape) for index, own in listed.items()},
        {m: scale.reshape(layout.blocks) for m, scale in columns.items()},
    )


def _listed(value: Array, layout: Layout, count: int) -> Array:
    """An array of the leaf's shape, or that broadcasts to it, as a list of blocks."""
    return jnp.broadcast_to(value, layout.shape).reshape(count, layout.lanes, layout.length // layout.lanes)


def _closed(rule: Halves, inputs: Any, moments: Sequence[Any]) -> tuple[Callable[[Sequence[Any]], Halves], list[Array]]:
    """The rule as a function of the arrays that it closes over, and these arrays."""
    both: Any = (rule.first, (inputs, list(moments))), (rule.second, (inputs, list(moments), list(moments)))
    parts = [jax.closure_convert(function, *arguments) for function, arguments in both]
    lengths = [len(constants) for _, constants in parts]

    def applied(constants: Sequence[Any]) -> Halves:
        first, second = constants[: lengths[0]], constants[lengths[0] :]
        return Halves(
            lambda inputs, old: parts[0][0](inputs, list(old), *first),
            lambda inputs, old, new: parts[1][0](inputs, list(old), list(new), *second),
        )

    return applied, [constant for _, constants in parts for constant in constants]


def _leading(layout: Layout, count: int, salts: int) -> list[Array]:
    """For each moment the phase of each block."""
    axes = len(layout.blocks)
    sums = []
    for salt in range(salts):
        along = along_axes(phases(layout.positions, salt)[:-1], axes)
        sums.append((sum(along) + jnp.zeros(layout.blocks, jnp.uint32)).reshape(count, 1))
    return sums


def _inner(layout: Layout, salt: int, lane: int) -> Array:
    """The phases of the positions in a block, which a kernel has to compute since it cannot close over them."""
    width = layout.length // layout.lanes
    position = lane * width + jax.lax.broadcasted_iota(jnp.int32, (1, width), 1)
    return mixed(position.astype(jnp.uint32) + salted(salt, len(layout.shape)))
