"""The moments of a state as arrays, however they are stored."""

from typing import Any

import jax
import optax

from jaxopt_adam._notes import noted_states
from jaxopt_adam._trees import leaves_like
from jaxopt_adam.storage._fields import entries_of, field_of
from jaxopt_adam.storage._leaves import storage_of_leaves


def load_moments(
    state: optax.OptState, optimizer: optax.GradientTransformation, params: optax.Params
) -> optax.OptState:
    """Load the moments of a state: the same state with each moment in float32, in the shape of its parameter.

    In the state itself, two moments in 16, 8 or 4 bits are packed into the same integers (see :doc:`/memory`). The
    result is for inspection only. `update` needs the original state.

    Args:
        state: the state, which may be that of a chain or a wrapper.
        optimizer: the optimizer of that state.
        params: the parameters, or :class:`jax.ShapeDtypeStruct` for them.

    Returns:
        The state. Moments that are stored in float32 or wider are not copied.

    Raises:
        ValueError, TypeError: if `state` does not match `optimizer` and `params`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxopt_adam import adamw, load_moments
        >>> optimizer, params = adamw(1e-3, moments="bfloat16"), {"w": jnp.ones((64, 128))}
        >>> _, state = optimizer.update(params, optimizer.init(params), params)
        >>> state.mu["w"].dtype
        dtype('uint32')
        >>> print(f"{load_moments(state, optimizer, params).mu['w'][0, 0]:.2f}")
        0.10
    """
    structure, notes = noted_states(optimizer, params)
    nodes = leaves_like(structure, state, "the state of the optimizer")
    return jax.tree.unflatten(
        structure,
        [_loaded(node, note) if note else node for node, note in zip(nodes, notes, strict=True)],
    )


def _loaded(state: Any, note: dict[str, Any]) -> Any:
    """The state of a rule, of whose `init` a note was made."""
    moments = note["moments"]
    leaves, tree = jax.tree_util.tree_flatten_with_path(note["params"])
    paths = [path for path, _ in leaves]
    storages = storage_of_leaves(moments, note["storage"], leaves)
    columns = [entries_of(tree, getattr(state, name), name, storages, paths) for name in moments]
    rows = [
        leaf.load(leaf.checked(path, entries))
        for leaf, path, entries in zip(storages, paths, zip(*columns, strict=True), strict=True)
    ]
    columns = zip(*rows, strict=True)
    return state._replace(
        **{name: field_of(tree, list(column), storages) for name, column in zip(moments, columns, strict=True)}
    )
