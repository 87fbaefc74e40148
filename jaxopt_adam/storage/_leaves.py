"""The storage of the moments of a tree's leaves, from the argument `moments` and what the rule declares."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxopt_adam._trees import Path, arithmetic_dtype
from jaxopt_adam.storage._blockwise import Blockwise
from jaxopt_adam.storage._choice import NAMED, Storage, storages_of
from jaxopt_adam.storage._coded_leaf import CodedLeafStorage
from jaxopt_adam.storage._dense import Dense
from jaxopt_adam.storage._leaf import LeafStorage
from jaxopt_adam.storage._moment import Moment


def storage_of_leaves(
    declared: Mapping[str, Moment], chosen: Any, leaves: Iterable[tuple[Path, Any]]
) -> list[LeafStorage]:
    """The storage of the moments of each leaf; one object for leaves that are alike.

    Args:
        declared: what the rule has declared, by name.
        chosen: the argument `moments`.
        leaves: the leaves with their paths.
    """
    by_path = callable(chosen) or any(moment.shape is not None for moment in declared.values())
    storages = [] if callable(chosen) else storages_of(chosen, declared, ())
    made: dict[Any, LeafStorage] = {}
    found = []
    for path, leaf in leaves:
        kind = len(found) if by_path else (np.shape(leaf), jnp.result_type(leaf))
        if kind not in made:
            of_leaf = storages_of(chosen, declared, path) if callable(chosen) else storages
            made[kind] = _storage_of_leaf(declared, of_leaf, path, leaf)
        found.append(made[kind])
    return found


def _storage_of_leaf(declared: Mapping[str, Moment], storages: Sequence[Storage], path: Path, leaf: Any) -> LeafStorage:
    """The storage of the moments of one leaf, from the storage of each that was asked for.

    ValueError if `moments` and another argument of the rule both say how a moment is stored.
    """
    compute = arithmetic_dtype(jnp.result_type(leaf))
    dtypes: list[Any] = [moment.dtype for moment in declared.values()]
    in_bfloat16 = set()
    coded: dict[int, Blockwise] = {}
    for index, ((name, moment), storage) in enumerate(zip(declared.items(), storages, strict=True)):
        if moment.shape is not None or moment.from_param or storage == NAMED["float32"]:
            continue
        if moment.dtype is not None:
            raise ValueError(f"moments and another argument both say how {name} is stored; give one of them")
        if isinstance(storage, Dense):
            dtypes[index] = storage.dtype
            if jnp.dtype(storage.dtype) == jnp.bfloat16 and compute == jnp.float32:
                in_bfloat16.add(index)
        elif storage.suits(np.shape(leaf), compute):
            coded[index] = storage
    if coded:
        return CodedLeafStorage(coded, declared, dtypes, path, leaf)
    return LeafStorage(declared, dtypes, path, leaf, in_bfloat16)
