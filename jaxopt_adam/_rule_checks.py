"""The checks of a rule as its author wrote it: of what `leafwise` is given, and of what the rule's functions return."""

import difflib
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

import jax
import numpy as np

from jaxopt_adam._shown import shown
from jaxopt_adam._trees import Path, leaf_name
from jaxopt_adam.storage._moment import Moment

_SHARED = "it is for scalars and finish, because first and second compute one leaf"
_OF_LEAF = "it is for first and second, which compute one leaf"
OF_STEP = {
    "count": "it is in every step",
    "rate": "it is in every step",
    "state": _SHARED,
    "grads": _SHARED,
    "params": f"{_SHARED}, and find step.param with needs_params=True",
    "moments": _SHARED,
    "path": _OF_LEAF,
    "grad": _OF_LEAF,
    "keep": _OF_LEAF,
    "again": _OF_LEAF,
    "param": "first and second find it if leafwise is given needs_params=True",
    "decay": "first and second find it if leafwise is given sees_to_decay=True",
}
"""The attributes of a step besides what `scalars` returned, and where they are found."""


def rule_name(function: Callable[..., Any]) -> str:
    """The name of a rule in errors: that of the function in which one of its functions is written."""
    around, _, _ = getattr(function, "__qualname__", "").rpartition(".<locals>.")
    return around.rpartition(".")[2] or "leafwise"


def check_declared(
    state_type: Callable[..., Any],
    functions: Mapping[str, Any],
    extra: Mapping[str, Any],
    kept: Mapping[str, Any],
    arguments: Iterable[str],
) -> None:
    """Raise TypeError or ValueError if the arguments of `leafwise` do not go together.

    Args:
        state_type: makes a state.
        functions: the rule's functions by the names of their arguments, `first` first; None for those that may be
            missing and are.
        extra: the argument `others`.
        kept: the moments by name, or what was given in their place.
        arguments: the keywords of `leafwise` that are no moments, of which an unknown keyword may be a misspelling.
    """
    for name, function in functions.items():
        if not callable(function) and not (function is None and name in ("scalars", "finish")):
            raise TypeError(f"{_of(functions)}: {name} must be a function, got {_text(function)}")
    if extra and functions["finish"] is None:
        raise ValueError(f"{_of(functions)}: finish is missing, which computes the others ({', '.join(extra)}) anew")
    for name, moment in kept.items():
        if moment is None:
            continue
        if not isinstance(moment, Moment):
            near = difflib.get_close_matches(name, arguments, 1)
            raise TypeError(
                f"{_of(functions)}: leafwise takes {name!r} for a moment, which must be a Moment or None, got "
                f"{_text(moment)}" + "".join(f"; near to it is the argument {each!r}" for each in near)
            )
        if moment.over is not None:
            _check_over(functions, name, moment.over, kept)
    given, fields = ("count", *kept, *extra), getattr(state_type, "_fields", None)
    if len(given) != len(kept) + len(extra) + 1 or fields != given:
        _check_fields(functions, state_type, given)


def _check_over(functions: Mapping[str, Any], name: str, over: Any, kept: Mapping[str, Moment | None]) -> None:
    where = f"{_of(functions)}: {name}=Moment(over={over!r})"
    if over not in kept:
        raise ValueError(f"{where} names no moment of this rule; its moments are {', '.join(kept)}")
    if over == name:
        raise ValueError(f"{where} names the moment itself; over is the second moment by whose root it is divided")
    second = kept[over]
    if second is not None and not second.real:
        raise ValueError(f"{where} must name an average of squares, {over}=Moment(real=True)")


def _check_fields(functions: Mapping[str, Any], state_type: Any, given: tuple[str, ...]) -> None:
    """Raise ValueError unless a state has a field for each name that is given, and no others that need a value."""
    doubled = [name for index, name in enumerate(given) if name in given[:index]]
    if doubled:
        raise ValueError(f"{_of(functions)}: the state can have one field {doubled[0]!r} only, and leafwise has two")
    known: set[str] = set()
    while isinstance(state_type, functools.partial):
        known |= {*state_type.keywords, *getattr(state_type.func, "_fields", ())[: len(state_type.args)]}
        state_type = state_type.func
    fields = getattr(state_type, "_fields", None)
    if fields is None:
        return
    known |= state_type._field_defaults.keys()
    where = f"{_of(functions)}: the state {state_type.__name__}, with the fields {', '.join(fields)},"
    for name in given:
        if name not in fields:
            what = "the number of updates done" if name == "count" else "which leafwise is given"
            raise ValueError(f"{where} has no field {name!r}, {what}")
    for name in fields:
        if name not in given and name not in known:
            raise ValueError(
                f"{where} has {name!r}, but leafwise is given no {name}=Moment() and no such number in others"
            )


def checked_scalars(function: Callable[..., Any], returned: Any) -> Mapping[str, Any]:
    """The dictionary that `scalars` returned; TypeError or ValueError unless it is one with names that are free."""
    if not isinstance(returned, Mapping):
        raise TypeError(
            f"{rule_name(function)}: scalars must return a dictionary of numbers by name, got {_text(returned)}"
        )
    taken = OF_STEP.keys() & returned.keys()
    if taken:
        raise ValueError(f"{rule_name(function)}: scalars must not return {min(taken)!r}, which a step has without it")
    return returned


def checked_others(function: Callable[..., Any], returned: Any, extra: Mapping[str, Any]) -> Mapping[str, Any]:
    """The dictionary that `finish` returned; TypeError or ValueError unless it is one of the `others`."""
    if not isinstance(returned, Mapping):
        raise TypeError(f"{rule_name(function)}: finish must return a dictionary of the others, got {_text(returned)}")
    if returned.keys() != extra.keys():
        raise ValueError(
            f"{rule_name(function)}: finish must return the others, {', '.join(extra) or 'of which there are none'}, "
            f"got {', '.join(returned) or 'none'}"
        )
    return returned


def refuse_moments(function: Callable[..., Any], returned: Any, names: Iterable[str]) -> NoReturn:
    """Raise TypeError for what `first` returned in place of the moments."""
    raise TypeError(
        f"{rule_name(function)}: first must return the moments after the step, as from old._replace(...), with "
        f"{', '.join(names)}, got {_text(returned)}"
    )


def check_moment(function: Callable[..., Any], path: Path, name: str, value: Any, before: Any) -> None:
    """Raise ValueError or TypeError unless a new moment has the arrays, shapes and dtypes that it had `before`."""
    where = f"{leaf_name(path)}: {rule_name(function)}: first must return {name} with"
    shape, other = (jax.tree.map(np.shape, each) for each in (before, value))
    if other != shape:
        raise ValueError(f"{where} the shape that it has in old, {shape}, got {other}{_batch(value, before)}")
    for one, two in zip(jax.tree.leaves(before), jax.tree.leaves(value), strict=True):
        dtype = getattr(two, "dtype", one.dtype)
        if dtype != one.dtype:
            raise TypeError(
                f"{where} the dtype that it has in old, {one.dtype}, got {dtype}; leafwise converts moments to their "
                "storage itself"
            )


def check_update(function: Callable[..., Any], path: Path, update: Any, grad: Any) -> None:
    """Raise ValueError unless what `second` returned is an array of the gradient's shape."""
    is_array = jax.tree_util.all_leaves([update])
    if not is_array or np.shape(update) != grad.shape:
        raise ValueError(
            f"{leaf_name(path)}: {rule_name(function)}: second must return the update with the shape of the gradient, "
            f"{grad.shape}, got {np.shape(update) if is_array else _text(update)}{_batch(update, grad)}"
        )


def _batch(value: Any, before: Any) -> str:
    """A hint for an error where an array became larger; empty where it did not."""
    # Hyperparameters that are arrays, where they should be numbers, make a batch.
    return "; for a batch of optimizers use jax.vmap" if np.size(value) > np.size(before) else ""


def _of(functions: Mapping[str, Any]) -> str:
    return rule_name(functions["first"])


def _text(value: Any) -> str:
    if isinstance(value, jax.Array):
        return f"an array of the shape {value.shape}"
    if isinstance(value, (Mapping, tuple, list)):
        return f"a {type(value).__name__}"
    return shown(value)
