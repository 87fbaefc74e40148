"""The places on the devices of the arrays of a new state."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer


def full_beside(param: Any, shape: tuple[int, ...], value: Array) -> Array:
    """An array full of `value`, divided among devices as `param` is, if it can be."""
    if isinstance(param, jax.Array) and not isinstance(param, Tracer):
        try:
            param.sharding.shard_shape(shape)
        except ValueError:
            return jnp.full(shape, value)
        if not param.committed:
            # Else the state would be, and the next step of a jitted function be compiled for that.
            return jnp.full(shape, value)
        return jnp.full(shape, value, device=param.sharding)
    mesh = jax.typeof(param).sharding.mesh if isinstance(param, Tracer) else None
    if mesh is not None and jax.sharding.AxisType.Explicit in mesh.axis_types:
        return jnp.broadcast_to(value, shape, out_sharding=jax.typeof(param).sharding)
    return jnp.full(shape, value)


def sharding_of_axes(param: Any, shape: tuple[int, ...]) -> jax.sharding.NamedSharding | None:
    """The sharding of a mean of the parameter's squares over some axes, if that is known: the others stay divided.

    So it starts, lest the step be compiled a second time for what it has become.
    """
    sharding = None if isinstance(param, Tracer) else getattr(param, "sharding", None)
    if not isinstance(sharding, jax.sharding.NamedSharding) or not param.committed:
        return None
    axes = [*sharding.spec, *[None] * (param.ndim - len(sharding.spec))]
    if len(shape) == param.ndim:
        axes = [axis if size == whole else None for axis, size, whole in zip(axes, shape, param.shape, strict=True)]
    else:
        left = [i for i in range(param.ndim) if (*param.shape[:i], *param.shape[i + 1 :]) == shape]
        if len(left) != 1:
            return None
        del axes[left[0]]
    return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec(*axes))
