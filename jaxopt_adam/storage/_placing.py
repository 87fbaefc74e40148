"""The places on the devices of the arrays of a new state: beside their parameters."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

from jaxopt_adam._axes import Axes, axes_by_length


def full_beside(
    param: Any,
    shape: tuple[int, ...],
    value: Array,
    axes: Axes | None = None,
    reduced: Callable[[Array], Array] | None = None,
) -> Array:
    """An array full of `value`, divided among devices as `param` is.

    A step leaves it there, because this is where the compiler computes its next value from the gradient.

    Args:
        param: the parameter.
        shape: of the array.
        value: a scalar, of the dtype that the array has.
        axes: the axes of the parameter along which the array's axes run; None to infer them from the lengths.
        reduced: a function from booleans in the parameter's shape to booleans in this shape, which leaves those of each
            device there; None to reduce along the `axes`.
    """
    if not (isinstance(param, jax.Array) and jnp.ndim(param) and shape):
        return jnp.full(shape, value)
    axes = axes_by_length(param.shape, shape) if axes is None else axes
    if isinstance(param, Tracer):
        sharding = jax.typeof(param).sharding
        if jax.sharding.AxisType.Explicit in sharding.mesh.axis_types:
            where = NamedSharding(sharding.mesh, spec_beside(sharding, param.shape, shape, axes))
            return jnp.broadcast_to(value, shape, out_sharding=where)
        return _full_like_traced(param, shape, value, reduced or functools.partial(_along, shape=shape, axes=axes))
    if not param.committed:
        # Else the state would be, and the next step of a jitted function be compiled for that.
        return jnp.full(shape, value)
    sharding = param.sharding
    if isinstance(sharding, NamedSharding):
        spec = spec_beside(sharding, param.shape, shape, axes)
        return jnp.full(shape, value, device=NamedSharding(sharding.mesh, spec, memory_kind=sharding.memory_kind))
    return jnp.full(shape, value, device=sharding if len(sharding.device_set) == 1 else None)


def spec_beside(
    sharding: NamedSharding, param_shape: tuple[int, ...], shape: tuple[int, ...], axes: Axes
) -> PartitionSpec:
    """The spec of an array whose axes run along these of a parameter; an axis that does not divide is left whole."""
    names = [*sharding.spec, *[None] * (len(param_shape) - len(sharding.spec))]
    along = [None if axis is None else names[axis] for axis in axes]
    spec = [
        name if size % number_of_parts(sharding.mesh, name) == 0 else None
        for name, size in zip(along, shape, strict=True)
    ]
    while spec and spec[-1] is None:
        spec.pop()
    return PartitionSpec(*spec)


def number_of_parts(mesh: Any, names: Any) -> int:
    """The number of parts into which an axis is divided by these axes of a mesh: a name, several, or None."""
    return math.prod(mesh.shape[name] for name in ((names,) if isinstance(names, str) else names or ()))


def _full_like_traced(
    param: Tracer, shape: tuple[int, ...], value: Array, reduced: Callable[[Array], Array | None]
) -> Array:
    """An array full of `value`, of which the compiler believes that it depends on the parameter.

    Where the compiler places arrays, it would give each device all of an array that depends on nothing.
    """
    full = jnp.full(shape, value)
    never = reduced((param != param) & (param == param))
    if never is None:
        return full
    return jax.lax.select(jnp.broadcast_to(never, shape), full + jnp.ones([], full.dtype), full)


def _along(values: Array, shape: tuple[int, ...], axes: Axes) -> Array | None:
    """Booleans of a parameter's shape, reduced to an array whose axes run along these of the parameter.

    None if an axis is not of the parameter's length, and is no number of equal parts of it.
    """
    kept = [axis for axis in range(values.ndim) if axis in axes]
    order = [kept.index(axis) for axis in axes if axis is not None]
    values = jnp.any(values, [axis for axis in range(values.ndim) if axis not in axes])
    values = jnp.transpose(values, order) if order != sorted(order) else values
    sizes = [size for axis, size in zip(axes, shape, strict=True) if axis is not None]
    if any(size < 1 or length % size for length, size in zip(values.shape, sizes, strict=True)):
        return None
    if values.shape != tuple(sizes):
        split = [part for length, size in zip(values.shape, sizes, strict=True) for part in (size, length // size)]
        values = jnp.any(values.reshape(split), range(1, len(split), 2))
    return jnp.expand_dims(values, [index for index, axis in enumerate(axes) if axis is None])
