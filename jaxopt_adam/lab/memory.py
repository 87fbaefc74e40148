"""The memory that training takes, in bytes a parameter, measured on the shapes of its arrays."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxopt_adam
from jaxopt_adam import Optimizer, master_weights, nbytes, stochastic_rounding

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
DEVICES = (16, 24, 80, 141)
"""The memory of devices, in GB."""


def takes_moments(rule: str) -> bool:
    """True if a rule has the argument `moments`."""
    return "moments" in inspect.signature(RULES[rule]).parameters


def measure(
    rule: str, moments: str = "float32", weights: str = "float32", gradients: str | None = None
) -> dict[str, float]:
    """The bytes a parameter of a matrix of weights, its gradients, and the state of a rule with its usual arguments.

    Args:
        rule: one of `RULES`.
        moments: the storage of the moments, one of `MOMENTS`.
        weights: the storage of the weights, one of `WEIGHTS`.
        gradients: the dtype of the gradients, one of `DTYPES`; None for that of the weights.

    Returns:
        The bytes of each part by its name: "weights", "gradients", and then the fields of the state. Single numbers,
        such as the count of the steps, are left out, because they do not grow with the matrix.

    Raises:
        ValueError: if the moments of the rule can be stored in float32 only.
    """
    dtype, wrapper = WEIGHTS[weights]
    arguments = {"moments": moments} if takes_moments(rule) else {}
    if moments != "float32" and not arguments:
        raise ValueError(f"expected float32 for {rule}, whose moments are stored in no other way, got {moments}")
    optimizer = RULES[rule](learning_rate=1e-3, **arguments)
    params = jax.ShapeDtypeStruct(MATRIX, jnp.dtype(dtype))
    state: Any = jax.eval_shape((optimizer if wrapper is None else wrapper(optimizer)).init, params)
    fields = state._asdict()
    own = fields if wrapper is None else fields.pop("inner_state")._asdict()
    # Two moments that are packed into the same integers count for half of them each. In 16 bits the second field is
    # None. In codes one field has the codes of both moments, and the other has their scales.
    shared = {name: tree for name, tree in own.items() if name in _sharing(own)}
    fields = own | fields
    trees = {"weights": params, "gradients": jax.ShapeDtypeStruct(MATRIX, jnp.dtype(gradients or dtype)), **fields}
    sizes = {name: nbytes(tree) for name, tree in trees.items()} | {name: nbytes(shared) // 2 for name in shared}
    return {name: size / params.size for name, size in sizes.items() if size >= min(MATRIX)}


def _sharing(moments: dict[str, Any]) -> list[str]:
    """The names of the two moments that are packed into the same integers, if there are such."""
    unsigned = {
        name: tree
        for name, tree in moments.items()
        if hasattr(tree, "dtype") and jnp.issubdtype(tree.dtype, jnp.unsignedinteger)
    }
    if any(tree.shape != MATRIX for tree in unsigned.values()):  # scales
        return list(unsigned)
    pairs = [name for name, tree in unsigned.items() if tree.dtype == jnp.uint32]
    return pairs and [*pairs, *(name for name, tree in moments.items() if tree is None)]
