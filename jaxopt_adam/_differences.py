"""Differences of two optimizers, or of two trees of arrays: their places, and in words what each has there."""

import dataclasses
import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Literal

import jax
import numpy as np

from jaxopt_adam import schedules
from jaxopt_adam._config import factories
from jaxopt_adam._trees import Path
from jaxopt_adam.storage._choice import NAMED

Kind = Literal["numbers", "storage", "optimizer"]


@dataclasses.dataclass(frozen=True)
class Difference:
    """A place in which two things differ, and what each of them has there, in words."""

    place: str
    one: str
    other: str
    kind: Kind = "optimizer"


# ------------------------------------------------------------------------------------------------------------ configs


def config_differences(one: Any, other: Any, known: Collection[str] = (), place: str = "") -> Iterator[Difference]:
    """The differences of two configs, as :func:`~jaxopt_adam.to_config` writes them, in order.

    The kind of a difference is "numbers" where both have numbers or schedules, "storage" where both say how a moment
    is stored, and "optimizer" for anything else.

    Args:
        one: a config.
        other: a config.
        known: the names of factories that are not the library's.
        place: where the two are within the whole.
    """
    if _same(one, other):
        return
    if _is_value(one, known) and _is_value(other, known):
        yield from _value_differences(one, other, place)
    elif isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        for key in one:
            # A factory is named like a function, and its arguments by their names.
            here = f"{place}.{key}".lstrip(".") if key.isidentifier() else f"{place}[{key!r}]"
            if key == "moments" or key.endswith("dtype"):
                if not _same(_storage(one[key]), _storage(other[key])):
                    yield Difference(here, _text(one[key]), _text(other[key]), "storage")
            else:
                yield from config_differences(one[key], other[key], known, here)
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, (part, other_part) in enumerate(zip(one, other, strict=True)):
            yield from config_differences(part, other_part, known, f"{place}[{index}]")
    else:
        yield Difference(place or "the optimizer", _text(one), _text(other))


def _value_differences(one: Any, other: Any, place: str) -> Iterator[Difference]:
    """The differences of two numbers, arrays, schedules or trees of them."""
    if _same(one, other):
        return
    is_tree = isinstance(one, dict) and isinstance(other, dict) and "array" not in one
    if is_tree and one.keys() == other.keys():
        for key in one:
            here = f"{place}.{key}" if key.isidentifier() else f"{place}[{key!r}]"
            yield from _value_differences(one[key], other[key], here)
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, (part, other_part) in enumerate(zip(one, other, strict=True)):
            yield from _value_differences(part, other_part, f"{place}[{index}]")
    else:
        yield Difference(place, _text(one), _text(other), "numbers")


def _is_value(config: Any, known: Collection[str] = ()) -> bool:
    """True for the config of a number, an array, a schedule or a tree of these."""
    if isinstance(config, (int, float)):
        return not isinstance(config, bool)
    if isinstance(config, list):
        return all(_is_value(each, known) for each in config)
    if not isinstance(config, dict):
        return False
    if config.keys() == {"array", "dtype"}:
        return True
    if len(config) == 1:
        ((name, inside),) = config.items()
        if name in ("dict", "tuple"):
            return _is_value(inside, known)
        if name in known:  # which may be an optimizer
            return False
        if hasattr(getattr(schedules, name, None), "__wrapped__"):
            return True
        if name in factories():
            return False
    return all(_is_value(each, known) for each in config.values())


def _storage(config: Any) -> Any:
    """A storage in full, without what changes only how it is computed."""
    if isinstance(config, str) and config in NAMED:
        storage = NAMED[config]
        config = {type(storage).__name__: dataclasses.asdict(storage)}
    if isinstance(config, dict):
        return {
            key: {name: field for name, field in value.items() if name != "implementation"}
            if isinstance(value, dict)
            else _storage(value)
            for key, value in config.items()
        }
    return config


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one):
        return math.isnan(other)
    return type(one) is type(other) and one == other


def _text(config: Any) -> str:
    """A config in a few words: the name of a factory rather than all its arguments."""
    if isinstance(config, dict) and len(config) == 1 and isinstance(next(iter(config.values())), (dict, list)):
        return next(iter(config))
    text = json.dumps(config)
    return text if len(text) <= 60 else f"{text[:57]}..."


# -------------------------------------------------------------------------------------------------------------- trees


def described(tree: Any, describe: Callable[[Path, Any], str] | None = None) -> dict[str, str]:
    """A text for each place of a tree, in order: dtype and shape of an array, and the type of a named tuple.

    Args:
        tree: the tree.
        describe: the text for a leaf at its path; None for dtype and shape.
    """
    places: dict[str, str] = {}

    def look(path: Path, node: Any) -> None:
        here = jax.tree_util.keystr(path)
        if jax.tree_util.all_leaves([node]):
            places[here] = describe(path, node) if describe else array_text(node)
            return
        if isinstance(node, tuple) and hasattr(node, "_fields"):
            places[here] = type(node).__name__
        parts, _ = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda part: part is not node)
        for key, part in parts:
            look((*path, *key), part)

    look((), tree)
    return places


def array_text(leaf: Any) -> str:
    """The dtype and the shape of an array; the type of another leaf."""
    if hasattr(leaf, "dtype") and hasattr(leaf, "shape"):
        return f"{leaf.dtype}{list(np.shape(leaf))}"
    return type(leaf).__name__


def first_tree_difference(one: Mapping[str, str], other: Mapping[str, str]) -> Difference | None:
    """The first place in which two trees differ, as :func:`described` describes them; None if there is none.

    The place is empty where the trees differ as wholes.
    """
    for place, text in other.items():
        if one.get(place) != text:
            return Difference(place, one.get(place, "nothing"), text)
    for place, text in one.items():
        if place not in other:
            return Difference(place, text, "nothing")
    return None
