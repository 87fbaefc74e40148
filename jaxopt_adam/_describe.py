"""A table of what an optimizer will do with each parameter."""

import dataclasses
import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.tree_util import GetAttrKey, keystr

from jaxopt_adam._notes import Note, by_state, noting
from jaxopt_adam._observe import Figures
from jaxopt_adam._optimizer import Optimizer
from jaxopt_adam._rule import decay_masks
from jaxopt_adam._shown import shown
from jaxopt_adam._trees import Path, broadcast_prefix, nbytes
from jaxopt_adam.storage._fields import entries_of
from jaxopt_adam.storage._leaves import storage_of_leaves


class LeafDescription(NamedTuple):
    """One parameter, and what an optimizer will do with it.

    Attributes:
        path: the path of the parameter, as from :func:`jax.tree_util.keystr`.
        shape: its shape.
        dtype: its dtype.
        rule: the names of the rules that handle it. For a rule of optax it is the name of its state. The label of a
            partition comes before the name. How the rule treats the parameter, such as the axes of :func:`muon`, comes
            after it. "none" if there is no such rule. (Transformations without a state, such as
            ``optax.set_to_zero()``, cannot be seen.)
        learning_rate: its learning rate: a number, "schedule", "array" or "not given"; empty for optax's optimizers.
        weight_decay: its decay likewise, or "none" where it is masked or 0.
        moments: the storage of each of its moments, by name, with the moment's shape where that is not the parameter's.
        nbytes: the bytes of these moments.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    rule: str
    learning_rate: str
    weight_decay: str
    moments: dict[str, str]
    nbytes: int


class Description(NamedTuple):
    """The parameters, and what an optimizer will do with each; printed, it is a table.

    Attributes:
        optimizer: the optimizer, as a string.
        leaves: a tuple of a :class:`LeafDescription` for each parameter.
        params_nbytes: the number of bytes of the parameters.
        state_nbytes: the number of bytes of the whole state, counts and the like included.
    """

    optimizer: str
    leaves: tuple[LeafDescription, ...]
    params_nbytes: int
    state_nbytes: int

    def __str__(self) -> str:
        head = ("parameter", "shape", "dtype", "rule", "learning rate", "weight decay", "moments", "bytes")
        rows = [
            (
                leaf.path or "(the only one)",
                str(leaf.shape),
                leaf.dtype,
                leaf.rule,
                leaf.learning_rate,
                leaf.weight_decay,
                ", ".join(f"{name} {text}" for name, text in leaf.moments.items()),
                f"{leaf.nbytes:,}",
            )
            for leaf in self.leaves
        ]
        # A column that says nothing is left out.
        columns = [column for column in zip(head, *rows, strict=True) if any(column[1:])]
        widths = [max(map(len, column)) for column in columns]
        lines = [
            "  ".join(
                cell.rjust(width) if name == "bytes" else cell.ljust(width)
                for name, cell, width in zip([column[0] for column in columns], line, widths, strict=True)
            ).rstrip()
            for line in zip(*columns, strict=True)
        ]
        elements = sum(math.prod(leaf.shape) for leaf in self.leaves)
        total = (
            f"{len(self.leaves):,} leaves, {elements:,} elements: {self.params_nbytes:,} bytes of parameters, "
            f"{self.state_nbytes:,} bytes of state"
        )
        return "\n".join([self.optimizer, *lines, total])

    def __repr__(self) -> str:
        return str(self)


def describe(optimizer: optax.GradientTransformation | optax.MultiSteps, params: optax.Params) -> Description:
    r"""Describe what an optimizer will do with each parameter: rule, moments and their storage, learning rate, decay.

    The optimizer's own `init` is traced with these parameters and not run. The result is therefore what will happen,
    and nothing is allocated. Use it before a long run, to catch choices that give no warning: :func:`muon` treats every
    leaf with two axes as a matrix, and :func:`adam_mini` decides by the names of leaves. Masks, partitions and storages
    by path leave out the leaves that they do not name.

    Args:
        optimizer: an :class:`~jaxopt_adam.Optimizer` or an optimizer of optax's, with wrappers, chains, masks and
            partitions as they are used. Of optax's own rules only the moments can be seen, not the learning rate and
            the decay.
        params: the parameters; :class:`jax.ShapeDtypeStruct` will do.

    Returns:
        A :class:`Description`, which prints as a table with a line for each leaf.

    Raises:
        TypeError: if `optimizer` is not an optimizer.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxopt_adam import describe, muon
        >>> table = describe(muon(0.02), {"kernel": jnp.zeros((4, 8)), "bias": jnp.zeros(8)})
        >>> [leaf.rule for leaf in table.leaves]
        ['muon, adamw', 'muon, orthogonalized, rows axis 0, columns axis 1']
        >>> table.leaves[0].moments
        {'mu': 'float32', 'nu': 'float32'}
        >>> print(str(table).splitlines()[-1])
        2 leaves, 40 elements: 160 bytes of parameters, 196 bytes of state
    """
    if not callable(getattr(optimizer, "init", None)) or not callable(getattr(optimizer, "update", None)):
        raise TypeError(f"optimizer must be an optimizer, ours or optax's, got {shown(optimizer)}")
    leaves, tree = jax.tree.flatten(params)
    is_array = [hasattr(leaf, "dtype") or isinstance(leaf, (int, float, complex)) for leaf in leaves]
    found: list[Description] = []

    def look(arrays: list[Any]) -> None:
        rest = iter(arrays)
        whole = jax.tree.unflatten(
            tree, [next(rest) if traced else leaf for leaf, traced in zip(leaves, is_array, strict=True)]
        )
        # Within the trace, where a state is the object that its rule made a note of.
        with noting() as notes:
            state = optimizer.init(whole)
        found.append(_description(optimizer, whole, state, by_state(notes)))

    jax.eval_shape(look, [leaf for leaf, traced in zip(leaves, is_array, strict=True) if traced])
    return found[0]


@dataclasses.dataclass
class _Seen:
    """The findings about one leaf so far."""

    rules: list[str] = dataclasses.field(default_factory=list)
    rates: list[str] = dataclasses.field(default_factory=list)
    decays: list[str] = dataclasses.field(default_factory=list)
    moments: dict[str, str] = dataclasses.field(default_factory=dict)
    nbytes: int = 0

    def keep(self, rule: str, name: str, text: str, value: Any) -> None:
        if rule not in self.rules:
            self.rules.append(rule)
        self.moments[f"{rule}.{name}" if name in self.moments else name] = text
        self.nbytes += nbytes(value)


def _description(optimizer: Any, params: Any, state: Any, notes: dict[int, Note]) -> Description:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    seen = {path: _Seen() for path, _ in leaves}
    _search(state, params, seen, notes, "")
    rows = [
        LeafDescription(
            path=keystr(path),
            shape=np.shape(leaf),
            dtype=str(leaf.dtype) if hasattr(leaf, "dtype") else type(leaf).__name__,
            rule=" + ".join(own.rules) or "none",
            learning_rate=", ".join(own.rates),
            weight_decay=", ".join(own.decays),
            moments=own.moments,
            nbytes=own.nbytes,
        )
        for (path, leaf), own in zip(leaves, seen.values(), strict=True)
    ]
    text = repr(optimizer) if isinstance(optimizer, Optimizer) else "an optimizer of optax's"
    arrays = [leaf for _, leaf in leaves if hasattr(leaf, "dtype")]
    return Description(text, tuple(rows), nbytes(arrays), nbytes(state))


def _search(node: Any, params: Any, seen: dict[Path, _Seen], notes: dict[int, Note], label: str) -> None:
    """Note the entries for each leaf in a state, or in states within it."""
    if isinstance(node, Figures):  # which are of what was done
        return
    if "params" in notes.get(id(node), {}):
        _note_rule(node, notes[id(node)], seen, label)
        return
    children, _ = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda part: part is not node)
    for (key, *_), child in ((path, child) for path, child in children if path):
        name = key.name if isinstance(key, GetAttrKey) else None
        entries = _entries(params, child) if name else None
        if name == "inner_states" and isinstance(child, dict):
            _search_partition(child, params, seen, notes, label)
        elif entries is None:
            _search(child, params, seen, notes, label)
        else:
            for leaf, own, entry in zip(jax.tree.leaves(params), seen.values(), entries, strict=True):
                if not _is_left_out(entry):
                    own.keep(label + _rule_name(node), name or "", _text(entry, np.shape(leaf)), entry)


def _search_partition(
    groups: dict[Any, Any], params: Any, seen: dict[Path, _Seen], notes: dict[int, Note], label: str
) -> None:
    """Note the entries in the parts of a partition, and the leaves of the parts that have no entries."""
    known = {path: len(own.rules) for path, own in seen.items()}
    stateless = []
    for name, inner in groups.items():
        before = sum(len(own.rules) for own in seen.values())
        _search(inner, params, seen, notes, f"{label}{name}: ")
        if sum(len(own.rules) for own in seen.values()) == before:
            stateless.append(str(name))
    for path, own in seen.items():
        if len(own.rules) == known[path] and stateless:
            own.rules.append(f"{label}{' or '.join(stateless)}: none")


def _note_rule(state: Any, note: Note, seen: dict[Path, _Seen], label: str) -> None:
    """Note the treatment of its leaves by a rule of ours."""
    params = note["params"]
    leaves, tree = jax.tree_util.tree_flatten_with_path(params)
    rates = broadcast_prefix(note["learning_rate"], params, "learning_rate", is_leaf=_is_number_or_schedule)
    decays = broadcast_prefix(note["weight_decay"], params, "weight_decay")
    masks = decay_masks(note["mask"], params)
    parts = note["parts"]() if "parts" in note else {}
    paths = [path for path, _ in leaves]
    storages = storage_of_leaves(note["moments"], note["storage"], leaves)
    columns = {name: entries_of(tree, getattr(state, name), name, storages, paths) for name in note["moments"]}
    for index, path in enumerate(paths):
        own, rule = seen[path], label + note.get("rule", _rule_name(state))
        rule = f"{rule}, {parts[path]}" if path in parts else rule
        own.rules.append(rule)
        own.rates.append(_number(rates[index]))
        decay = _number(decays[index]) if masks[index] else "none"
        own.decays.append("none" if decay == "0" else decay)
        for name, column in columns.items():
            if not _is_left_out(column[index]):
                text = storages[index].in_words(name) or _text(column[index], storages[index].shape)
                own.keep(rule, name, text, column[index])


def _entries(params: Any, node: Any) -> list[Any] | None:
    """The entries of a part of a state for each leaf, if it is a tree like the parameters."""
    if jax.tree_util.all_leaves([params]):
        # A count is no moment, though it has the tree of a single leaf.
        is_moment = _is_array(node) and (
            np.shape(node) or (not np.shape(params) and jnp.issubdtype(node.dtype, jnp.inexact))
        )
        return [node] if is_moment else None
    return _gathered(params, node)


def _gathered(part: Any, node: Any) -> list[Any] | None:
    if jax.tree_util.all_leaves([part]):
        return [node] if _is_left_out(node) or _is_array(node) else None
    if _is_left_out(node):
        return [node] * len(jax.tree.leaves(part))
    (parts, kind), (nodes, other) = (
        jax.tree.flatten(each, is_leaf=lambda child, each=each: child is not each) for each in (part, node)
    )
    if kind != other:
        return None
    gathered = [_gathered(*pair) for pair in zip(parts, nodes, strict=True)]
    return None if None in gathered else [entry for each in gathered if each is not None for entry in each]


def _text(value: Any, shape: tuple[int, ...]) -> str:
    """The storage of a moment of a leaf of `shape`, in words."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join('none' if each is None else _text(each, shape) for each in value)}]"
    return f"{value.dtype}" if value.shape == shape else f"{value.dtype}{list(value.shape)}"


def _number(value: Any) -> str:
    if value is None:
        return "not given"
    if callable(value):
        return "schedule"
    return "array" if isinstance(value, Tracer) or np.ndim(value) else f"{float(value):g}"


def _rule_name(state: Any) -> str:
    return re.sub("(?<!^)(?=[A-Z])", "_", type(state).__name__.removesuffix("State")).lower()


def _is_left_out(entry: Any) -> bool:
    return entry is None or isinstance(entry, optax.MaskedNode)


def _is_array(entry: Any) -> bool:
    return hasattr(entry, "dtype") and hasattr(entry, "shape")


def _is_number_or_schedule(entry: Any) -> bool:
    return entry is None or callable(entry)
