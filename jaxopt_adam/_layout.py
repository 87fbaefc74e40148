"""Arguments taken apart into numbers, which are data, and everything else, which is structure."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax

from jaxopt_adam._hyperparameters import is_number


class Layout(NamedTuple):
    """Arguments without their numbers.

    Attributes:
        names: their names.
        tree: the tree of the tuple of all their values.
        numeric: for each leaf of that tree, whether it is one of the numbers.
        static: for each leaf its value; None for a number.
    """

    names: tuple[str, ...]
    tree: Any
    numeric: tuple[bool, ...]
    static: tuple[Any, ...]

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> tuple["Layout", tuple[Any, ...]]:
        """The layout of arguments, and their numbers."""
        values, tree = jax.tree.flatten(tuple(arguments.values()))
        return cls._parted(tuple(arguments), tree, values, map(is_number, values))

    @classmethod
    def _parted(
        cls, names: tuple[str, ...], tree: Any, values: list[Any], numeric: Iterable[bool]
    ) -> tuple["Layout", tuple[Any, ...]]:
        numeric = tuple(numeric)
        pairs = list(zip(values, numeric, strict=True))
        static = tuple(None if is_data else value for value, is_data in pairs)
        return cls(names, tree, numeric, static), tuple(value for value, is_data in pairs if is_data)

    def _values(self, numbers: Iterable[Any]) -> list[Any]:
        rest = iter(numbers)
        return [next(rest) if is_data else value for value, is_data in zip(self.static, self.numeric, strict=True)]

    def arguments(self, numbers: Iterable[Any]) -> dict[str, Any]:
        """The arguments by name; the inverse of :meth:`of`."""
        return dict(zip(self.names, jax.tree.unflatten(self.tree, self._values(numbers)), strict=True))

    def paths(self) -> list[tuple[str, tuple[Any, ...]]]:
        """For each number the name of its argument, and its path within that."""
        paths, _ = jax.tree_util.tree_flatten_with_path(jax.tree.unflatten(self.tree, self.numeric))
        return [(self.names[path[0].idx], path[1:]) for path, is_data in paths if is_data]

    def fixed(self, numbers: Iterable[Any]) -> tuple["Layout", tuple[Any, ...]]:
        """The layout in which all numbers but learning rates and arrays of JAX are part of the structure."""
        names = iter(self.paths())
        values = self._values(numbers)
        numeric = (
            is_data and (next(names)[0] == "learning_rate" or isinstance(value, jax.Array))
            for value, is_data in zip(values, self.numeric, strict=True)
        )
        return self._parted(self.names, self.tree, values, numeric)
