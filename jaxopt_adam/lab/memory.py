"""The memory that training takes, in bytes a parameter, measured on the shapes of its arrays."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

import jaxopt_adam
from jaxopt_adam import Optimizer, abstract_state, master_weights, nbytes, stochastic_rounding
from jaxopt_adam.lifted import MultiSteps

RULES: dict[str, Callable[..., Optimizer]] = {
    name: factory
    for name, factory in vars(jaxopt_adam).items()
    if inspect.isfunction(factory)
    and factory.__module__.startswith("jaxopt_adam.rules.")
    and hasattr(factory, "__wrapped__")
}
MOMENTS = ("float32", "bfloat16", "int8", "int4")
DTYPES = ("float32", "bfloat16", "float16")
"""The dtypes that gradients may have."""
WEIGHTS: dict[str, tuple[str, Callable[[Optimizer], optax.GradientTransformation] | None]] = {
    "float32": ("float32", None),
    "bf16": ("bfloat16", None),
    "bf16+8": ("bfloat16", functools.partial(master_weights, bits=24)),
    "bf16+16": ("bfloat16", functools.partial(master_weights, bits=32)),
    "bf16+stochastic": ("bfloat16", stochastic_rounding),
}
"""The ways to store weights: their dtype, and the wrapper of the rule."""
MATRIX = (4096, 4096)
"""The shape of the weights that are measured."""
CUTS = {
    "none": "weights, gradients and state whole",
    "data": "weights and gradients whole, the state divided (ZeRO-1)",
    "fsdp": "weights, gradients and state divided",
}
"""The ways to divide training among devices."""
MOST_DEVICES = min(MATRIX)
"""The largest number of devices that the weights are divided among."""
DEVICES = (16, 24, 80, 141)
"""The memory of devices, in GB."""


@functools.cache
def storages(rule: str) -> tuple[str, ...]:
    """The names in `MOMENTS` that the moments of a rule with its usual arguments can be stored in."""
    if "moments" not in inspect.signature(RULES[rule]).parameters:
        return MOMENTS[:1]
    shape = jax.ShapeDtypeStruct(MATRIX, jnp.float32)
    states = [jax.eval_shape(RULES[rule](1e-3, moments=moments).init, shape) for moments in MOMENTS[:2]]
    # Without momentum `sgd` keeps none.
    return MOMENTS if nbytes(states[0]) > nbytes(states[1]) else MOMENTS[:1]


def matrix(devices: int = 1) -> tuple[int, int]:
    """The shape of the weights that are measured: `MATRIX`, with the next longer sides that the devices divide."""
    rows, columns = (-(-side // devices) * devices for side in MATRIX)
    return rows, columns


def measure(
    rule: str,
    moments: str = "float32",
    weights: str = "float32",
    gradients: str | None = None,
    *,
    accumulate: int = 1,
    devices: int = 1,
    cut: str = "none",
) -> dict[str, float]:
    """The bytes a parameter of a matrix of weights, its gradients, and the state of a rule with its usual arguments.

    Args:
        rule: one of `RULES`.
        moments: the storage of the moments, one of `MOMENTS`.
        weights: the storage of the weights, one of `WEIGHTS`.
        gradients: the dtype of the gradients, one of `DTYPES`; None for that of the weights.
        accumulate: the number of batches whose gradients are averaged for an update. With more than one, the mean
            gradient is a part of the state, "acc_grads". Its size does not depend on the number.
        devices: the number of devices, from 1 to `MOST_DEVICES`. They need not be there.
        cut: how training is divided among them, one of `CUTS`.

    Returns:
        The bytes on each device, divided by the number of all parameters, of each part by its name: "weights",
        "gradients", and then the fields of the state. Single numbers, such as the count of the steps, are left out,
        because they do not grow with the matrix.

    Raises:
        ValueError: if `moments` is not one of the rule's :func:`storages`.
    """
    dtype, wrapper = WEIGHTS[weights]
    if moments not in storages(rule):
        raise ValueError(f"expected float32 for {rule}, whose moments are stored in no other way, got {moments}")
    arguments = {} if moments == "float32" else {"moments": moments}
    optimizer: optax.GradientTransformation = RULES[rule](learning_rate=1e-3, **arguments)
    if accumulate > 1:
        optimizer = MultiSteps(optimizer, accumulate)
    mesh = AbstractMesh((devices,), ("data",), axis_types=(AxisType.Auto,))
    where = NamedSharding(mesh, PartitionSpec("data" if cut == "fsdp" else None))
    params, grads = (
        jax.ShapeDtypeStruct(matrix(devices), jnp.dtype(each), sharding=where) for each in (dtype, gradients or dtype)
    )
    state = abstract_state(
        optimizer if wrapper is None else wrapper(optimizer), params, cut="data" if cut == "data" else None
    )
    fields = state._asdict()
    own, around = (fields, {}) if wrapper is None else (fields.pop("inner_state")._asdict(), fields)
    if accumulate > 1:
        around = {"acc_grads": own["acc_grads"], **around}
        own = own["inner_opt_state"]._asdict()
    # Two moments that are packed into the same integers count for half of them each. In 16 bits the second field is
    # None. In codes one field has the codes of both moments, and the other has their scales.
    shared = {name: tree for name, tree in own.items() if name in _sharing(own, params.shape)}
    trees = {"weights": params, "gradients": grads, **own, **around}
    on_each = functools.partial(nbytes, on_each_device=True)
    sizes = {name: on_each(tree) for name, tree in trees.items()} | {name: on_each(shared) // 2 for name in shared}
    return {
        name: size / params.size
        for name, size in sizes.items()
        if name in shared or nbytes(trees[name]) >= min(params.shape)
    }


def _sharing(moments: dict[str, Any], shape: tuple[int, ...]) -> list[str]:
    """The names of the two moments that are packed into the same integers, if there are such."""
    unsigned = {
        name: tree
        for name, tree in moments.items()
        if hasattr(tree, "dtype") and jnp.issubdtype(tree.dtype, jnp.unsignedinteger)
    }
    if any(tree.shape != shape for tree in unsigned.values()):  # scales
        return list(unsigned)
    pairs = [name for name, tree in unsigned.items() if tree.dtype == jnp.uint32]
    return pairs and [*pairs, *(name for name, tree in moments.items() if tree is None)]
