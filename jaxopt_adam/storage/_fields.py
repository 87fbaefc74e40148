"""The fields of a state: a moment's entries for all leaves, as trees."""

from collections.abc import Sequence
from typing import Any

from jaxopt_adam._axes import fill
from jaxopt_adam._trees import Path, leaf_name, leaves_like
from jaxopt_adam.storage._blockwise import Blocks
from jaxopt_adam.storage._leaf import LeafStorage


def field_of(tree: Any, entries: Sequence[Any], storages: Sequence[LeafStorage]) -> Any:
    """The field of a state for a moment that is `entries`, one for each leaf of `tree`.

    Where entries are several arrays the field is several trees, each of an array a leaf, or None: flax's nnx makes
    trees of its own of whatever else is in a tree of parameters, and changes their types.
    """
    shapes = [leaf.shape for leaf in storages]
    several = [entry for entry in entries if isinstance(entry, list | tuple)]
    if not several:
        return fill(tree, entries, shapes)
    count = max(map(len, several))
    rows = [list(entry) if isinstance(entry, list | tuple) else [entry] for entry in entries]
    rows = [[*row, *[None] * (count - len(row))] for row in rows]
    trees = [fill(tree, column, shapes) for column in zip(*rows, strict=True)]
    return Blocks(*trees) if any(isinstance(entry, Blocks) for entry in entries) else tuple(trees)


def entries_of(tree: Any, field: Any, name: str, storages: Sequence[LeafStorage], paths: Sequence[Path]) -> list[Any]:
    """The inverse of :func:`field_of`: the entries of the moment `name` for the leaves of `tree`.

    ValueError or TypeError if the state's `field` is not of leaves that are stored like these.
    """
    what = f"state.{name}"
    expected = [leaf.entries[leaf.names.index(name)] for leaf in storages]
    counts = [len(entry) if isinstance(entry, list | tuple) else 0 for entry in expected]
    count = max(counts, default=0)
    if not count:
        return leaves_like(tree, field, what)
    first = counts.index(count)
    coded = isinstance(expected[first], Blocks)
    if not isinstance(field, Blocks if coded else list | tuple) or len(field) != count:
        raise TypeError(
            f"{leaf_name(paths[first])}: {what} must be {'Blocks' if coded else f'a tuple of {count} trees'}, got "
            f"{type(field).__name__}; the state must come from an optimizer with the same "
            f"{'moments' if coded else 'arguments'}"
        )
    columns = [leaves_like(tree, part, f"{what}[{index}]") for index, part in enumerate(field)]
    entry_type = Blocks._make if coded else list
    rows = zip(*columns, strict=True)
    return [entry_type(row[:parts]) if parts else row[0] for row, parts in zip(rows, counts, strict=True)]
