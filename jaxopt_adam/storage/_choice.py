"""The argument `moments`, and the storage that it gives to each moment of a leaf."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from jaxopt_adam._shown import brief
from jaxopt_adam.storage._blockwise import Blockwise
from jaxopt_adam.storage._dense import Dense

Storage = Dense | Blockwise
"""The storage of a moment between steps."""

StorageName = Literal["float32", "bfloat16", "int8", "int4"]
"""The names in `NAMED`."""

StorageChoice = (
    StorageName
    | Storage
    | Mapping[str, StorageName | Storage]
    | Callable[[tuple[Any, ...]], str | Storage | Mapping[str, str | Storage]]
)
"""The type of `moments`: one storage for all, a dict of these by moment, or a function of a leaf's path to either."""

NAMED: Mapping[str, Storage] = {
    "float32": Dense(),
    "bfloat16": Dense("bfloat16"),
    "int8": Blockwise(8),
    "int4": Blockwise(4),
}
"""The storages that have a name; "float32" means the dtype of the arithmetic, which is float64 for float64 leaves."""

_EXPECTED = (
    f"one of {', '.join(map(repr, NAMED))}, a storage, a dict of these by moment, or a function of a leaf's path"
)


def valid_storage(name: str, value: Any) -> Any:
    """The value of the argument `name`, if it is a choice of storage; otherwise ValueError or TypeError."""
    if callable(value) and not isinstance(value, type):  # as a dtype may be
        return value
    if isinstance(value, Mapping):
        return {moment: _valid(f"{name}[{moment!r}]", storage) for moment, storage in value.items()}
    return _valid(name, value)


def storages_of(moments: Any, names: Iterable[str], path: tuple[Any, ...]) -> list[Storage]:
    """The storage of each of these moments of the leaf at `path`."""
    chosen = valid_storage("what moments gives for a path", moments(path)) if callable(moments) else moments
    if isinstance(chosen, Callable):
        raise TypeError(f"moments must give a storage for a path, got {chosen!r}")
    choices = [chosen.get(name, "float32") if isinstance(chosen, Mapping) else chosen for name in names]
    valid = [_valid("moments", choice) for choice in choices]
    return [NAMED[choice] if isinstance(choice, str) else choice for choice in valid]


def _valid(name: str, value: Any) -> Any:
    if isinstance(value, Storage) or (isinstance(value, str) and value in NAMED):
        return value
    error = ValueError if isinstance(value, str) else TypeError
    raise error(f"{name} must be {_EXPECTED}, got {brief(value)}")
