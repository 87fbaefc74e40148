"""A state whose moments are stored in another way."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding

from jaxopt_adam._config import to_config
from jaxopt_adam._differences import array_text, config_differences, described, first_tree_difference
from jaxopt_adam._notes import Note, noted_states
from jaxopt_adam._trees import Path, leaves_like
from jaxopt_adam.sharding import abstract_state
from jaxopt_adam.storage._fields import entries_of, field_of
from jaxopt_adam.storage._leaf import LeafStorage, array_texts
from jaxopt_adam.storage._leaves import storage_of_leaves
from jaxopt_adam.storage._passes import Halves


def convert_state(
    state: optax.OptState,
    from_: optax.GradientTransformation,
    to: optax.GradientTransformation,
    params: optax.Params | None = None,
) -> optax.OptState:
    """Convert a state to that of the same optimizer with another storage of the moments.

    Each moment is decoded, and encoded as `to` would store it at that step. The rest of the state stays as it is. A
    moment that both store in the same way is not changed. A moment in 16 bits or in codes is converted to float32
    without a further error.

    Args:
        state: a state of `from_`, of arrays.
        from_: the optimizer of that state. It may be a chain or a wrapper, even one of optax's.
        to: the same optimizer except for the storage of moments: `moments`, and dtypes such as `mu_dtype`.
        params: the parameters, or :class:`jax.ShapeDtypeStruct` for them. With None their shapes are found from the
            state. That fails if parameters of 16 bits are mixed with others, or if all moments are stored as codes of
            which two share a byte.

    Returns:
        A state of `to`. Its moments are on the same devices as those of `state`, and are divided in the same way as far
        as their blocks allow.

    Raises:
        ValueError: if the optimizers differ in anything else, or `state` does not match `from_` and `params`. The error
            names the first place that differs. Also if the shapes of the parameters are not found.
        TypeError: if `state` does not match `from_` and `params`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxopt_adam import adamw, convert_state, load_moments, nbytes
        >>> params = {"w": jnp.ones((64, 128))}
        >>> exact, small = adamw(1e-3), adamw(1e-3, moments="int8")
        >>> _, state = exact.update(params, exact.init(params), params)
        >>> converted = convert_state(state, exact, small, params)
        >>> print(nbytes(state), nbytes(converted))
        65540 18436
        >>> print(f"{load_moments(converted, small, params).mu['w'][0, 0]:.3f}")
        0.100
    """
    _check_configs(from_, to)
    params = _found_params(state, from_) if params is None else params
    (tree, nodes, notes), (other_tree, other_nodes, other_notes) = (_noted(made, params) for made in (from_, to))
    difference = first_tree_difference(_places(tree, nodes, notes), _places(other_tree, other_nodes, other_notes))
    if difference:
        raise ValueError(
            f"convert_state: from_ and to must differ in the storage of moments only, but the state{difference.place} "
            f"is {difference.one} of from_ and {difference.other} of to"
        )
    kinds: dict[Any, Callable[..., list[Any]]] = {}
    return jax.tree.unflatten(
        tree,
        [
            _converted(node, note, other_note, kinds) if note and other_note else node
            for node, note, other_note in zip(
                leaves_like(tree, state, "the state of from_"), notes, other_notes, strict=True
            )
        ],
    )


def _check_configs(from_: Any, to: Any) -> None:
    """ValueError if dictionaries can say both optimizers, and they differ in more than the storage of moments."""
    try:
        configs = to_config(from_), to_config(to)
    except TypeError:
        return
    for each in config_differences(*configs):
        if each.kind != "storage":
            raise ValueError(
                f"convert_state: from_ and to must differ in the storage of moments only, but {each.place} is "
                f"{each.one} in from_ and {each.other} in to"
            )


def _found_params(state: Any, optimizer: Any) -> Any:
    """Structures of parameters of which `init` makes this state; ValueError if none are found."""
    wanted = _structs(state)
    for part in _parts(state):
        leaves, tree = jax.tree.flatten(part)
        for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
            params = tree.unflatten([_like_param(leaf, dtype) for leaf in leaves])
            try:
                made = jax.eval_shape(optimizer.init, params)
            except (TypeError, ValueError):
                continue
            if _structs(made) == wanted:
                return params
    raise ValueError("convert_state: the shapes of the parameters do not follow from the state; give params")


def _parts(state: Any) -> Iterator[Any]:
    """The parts of a state that may have the tree of the parameters, the outer ones first."""
    parts = [state]
    while parts:
        inside = [
            each for part in parts for each in jax.tree.leaves(part, is_leaf=lambda node, part=part: node is not part)
        ]
        inside = [each for each in inside if jax.tree.leaves(each)]
        yield from inside
        parts = [each for each in inside if not jax.tree_util.all_leaves([each])]


def _structs(tree: Any) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves]


def _like_param(leaf: Any, dtype: Any) -> jax.ShapeDtypeStruct:
    """The structure of a parameter, from an array of the same shape."""
    own = jnp.result_type(leaf)
    is_other = jnp.issubdtype(own, jnp.complexfloating) or own == jnp.float64
    return jax.ShapeDtypeStruct(jnp.shape(leaf), own if is_other else dtype)


def _noted(optimizer: Any, params: Any) -> tuple[Any, list[Any], list[Note | None]]:
    """The structure of a state with the states of rules as leaves; these leaves; and the note of each."""
    tree, notes = noted_states(optimizer, params)
    return tree, leaves_like(tree, jax.eval_shape(optimizer.init, params), "the state"), notes


def _places(tree: Any, nodes: list[Any], notes: list[Note | None]) -> dict[str, str]:
    """A text for each place of a state, without the storage of moments."""
    texts = [_rule_text(node, note) if note else array_text(node) for node, note in zip(nodes, notes, strict=True)]
    return described(jax.tree.unflatten(tree, texts), lambda _, text: text)


def _rule_text(state: Any, note: Note) -> str:
    moments = [
        f"{name}{' over ' + moment.over if moment.over else ''}{' (of squares)' if moment.real else ''}"
        for name, moment in note["moments"].items()
    ]
    # The fields are named too: those that are no moments are taken over.
    return (
        f"{note.get('rule', 'a rule')} with {type(state).__name__}({', '.join(state._fields)}) of {', '.join(moments)}"
    )


def _converted(state: Any, note: Note, other_note: Note, kinds: dict[Any, Callable[..., list[Any]]]) -> Any:
    """The state of a rule with its moments stored as `other_note` says."""
    moments = note["moments"]
    leaves, tree = jax.tree_util.tree_flatten_with_path(note["params"])
    paths = [path for path, _ in leaves]
    storages, others = _storages(note, leaves), _storages(other_note, leaves)
    columns = [entries_of(tree, getattr(state, name), name, storages, paths) for name in moments]
    rows = []
    for storage, other, leaf, *entries in zip(storages, others, leaves, *columns, strict=True):
        entries = storage.checked(leaf[0], entries)
        if not _is_same(storage, other):
            where = _sharding(entries)
            # Leaves that are alike share a compiled program.
            kind = id(storage), id(other), where
            if kind not in kinds:
                kinds[kind] = _conversion(storage, other_note, leaf, where)
            entries = kinds[kind](entries, state.count)
        rows.append(entries)
    columns = zip(*rows, strict=True)
    fields = {name: field_of(tree, list(column), others) for name, column in zip(moments, columns, strict=True)}
    return state._replace(**fields)


def _storages(note: Note, leaves: Sequence[tuple[Path, Any]]) -> list[LeafStorage]:
    # A conversion is no step in which anything decays, and the number may be of a trace that has ended.
    declared = {
        name: moment if moment.decay is None else dataclasses.replace(moment, decay=1.0)
        for name, moment in note["moments"].items()
    }
    return storage_of_leaves(declared, note["storage"], leaves)


def _is_same(storage: LeafStorage, other: LeafStorage) -> bool:
    """True if both store the moments of a leaf in the same numbers."""
    texts, other_texts = (
        [(array_texts(entry), each.in_words(name)) for name, entry in zip(each.names, each.entries, strict=True)]
        for each in (storage, other)
    )
    return texts == other_texts


def _sharding(entries: Any) -> Any:
    """The sharding of the first array, which is that of its parameter; None inside a trace."""
    arrays = [array for array in jax.tree.leaves(entries) if not isinstance(array, Tracer)]
    return arrays[0].sharding if arrays else None


def _conversion(storage: LeafStorage, note: Note, leaf: tuple[Path, Any], where: Any) -> Callable[..., list[Any]]:
    """A compiled function from the entries of a leaf's moments, and the count, to those in the storage of `note`.

    It takes a step of that storage in which the moments become what they are.
    """
    path, struct = leaf

    def start(param: Any) -> Any:
        # A storage keeps what its moments start from, which must not leave a trace.
        [other] = _storages(note, [leaf])
        return other.start(path, param)

    def converted(entries: Sequence[Any], count: Array) -> Sequence[Any]:
        [other] = _storages(note, [leaf])
        zeros = jnp.zeros(struct.shape, struct.dtype)
        if isinstance(where, NamedSharding) and AxisType.Explicit in where.mesh.axis_types:
            # Beside the moments, so that the step is one on such a mesh.
            zeros = jax.sharding.reshard(zeros, where)
        inputs = zeros.astype(other.compute), storage.load(entries)
        become = Halves(lambda inputs, old: inputs[1], lambda inputs, old, new: inputs[0])
        _, stored = other.step(become, inputs, other.start(path, zeros), count)
        return stored

    shardings = None
    if isinstance(where, NamedSharding):
        struct_there = jax.ShapeDtypeStruct(struct.shape, struct.dtype, sharding=where)
        abstract = abstract_state(SimpleNamespace(init=start), struct_there)
        shardings = jax.tree.map(lambda entry: entry.sharding, abstract)
    return jax.jit(converted, out_shardings=shardings)
