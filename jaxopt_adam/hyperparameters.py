"""What a hyperparameter may be, and the error when it is something else.

A rule names the kind of each of its arguments in their annotations (``b1: Decay = 0.9``), and
:func:`~jaxopt_adam.optimizer` has every value checked by its kind when an optimizer is made.
"""

from collections.abc import Callable
from typing import Annotated, Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike

from jaxopt_adam.storage import valid_storage

__all__ = [
    "Axes",
    "Check",
    "Decay",
    "Decays",
    "Flag",
    "GivenLearningRate",
    "LearningRate",
    "Mask",
    "Moments",
    "NonNegative",
    "OneLearningRate",
    "OptionalDecay",
    "OptionalDtype",
    "OptionalNonNegative",
    "OptionalSize",
    "OptionalSteps",
    "OptionalWeightDecay",
    "Positive",
    "PositiveDecay",
    "Schedule",
    "ScheduledDecay",
    "ScheduledNonNegative",
    "Size",
    "Transformation",
    "TwoDecays",
    "WeightDecay",
    "Whole",
    "choice",
    "flag",
    "function",
    "is_array",
    "is_number",
    "is_real",
    "pair",
    "rows",
    "scheduled",
    "single",
    "transformation",
    "whole",
]

Schedule = Callable[[Any], ArrayLike]
"""A function of `count`, the number of updates done, that gives a hyperparameter's value, as in optax."""

Check = Callable[[str, Any], Any]
"""A check takes the name and the value of an argument and returns the value to keep, or raises."""


def is_array(value: object) -> TypeGuard[np.generic | np.ndarray | jax.Array]:
    """Whether `value` is an array or a scalar of NumPy's or JAX's."""
    return isinstance(value, (np.generic, np.ndarray, jax.Array))


def is_number(value: object) -> bool:
    """Whether `value` is a number or an array of numbers, NumPy's and JAX's included, and so a leaf of an optimizer."""
    if is_array(value):
        return jnp.issubdtype(value.dtype, np.number)
    return isinstance(value, (int, float, complex)) and not isinstance(value, (bool, Whole))


def is_real(value: object) -> bool:
    """Whether `value` is a real number or an array of real numbers."""
    return is_number(value) and not jnp.iscomplexobj(value)


def scheduled(value: Any, count: Any, name: str) -> Any:
    """A hyperparameter after `count` updates: itself, or what it gives for `count` if it is a schedule."""
    now = value(count) if callable(value) else value
    if callable(value) and not is_real(now):
        raise TypeError(f"{name} must give real numbers if it is a schedule, got {now!r} ({type(now).__name__})")
    return now


def single(value: Any, name: str) -> Any:
    """A hyperparameter that must be one number for all leaves, and no array that broadcasts to them."""
    if np.shape(value):
        raise ValueError(
            f"{name} must be one number for all leaves, got the shape {np.shape(value)}; for a batch of optimizers use "
            "jax.vmap"
        )
    return value


class Whole(int):
    """A whole number that shapes the program, as a size or a number of rounds does: never a leaf, never traced."""


def number(
    expected: str,
    below: float = np.inf,
    *,
    positive: bool = False,
    schedule: bool = False,
    optional: bool = False,
    tree: bool = False,
) -> Check:
    """A check for real numbers from 0, or above 0, to `below` (exclusive); traced ones are taken on trust."""

    def check(name: str, value: Any) -> Any:
        if tree and value is not None and not (callable(value) or jax.tree.structure(value) == jax.tree.structure(0)):
            return jax.tree_util.tree_map_with_path(
                lambda path, leaf: one(name + jax.tree_util.keystr(path), leaf), value, is_leaf=callable
            )
        return one(name, value)

    def one(name: str, value: Any) -> Any:
        if (optional and value is None) or (schedule and callable(value)):
            return value
        if not is_real(value):
            raise TypeError(f"{name} must be {expected}, got {value!r} ({type(value).__name__})")
        if not isinstance(value, Tracer):
            try:
                numbers = np.asarray(value, np.float64)
            except OverflowError:
                numbers = np.asarray(np.inf)
            if not np.all((numbers > 0 if positive else numbers >= 0) & (numbers < below)):
                raise ValueError(f"{name} must be {expected}, got {value!r}")
        # Python's and NumPy's scalars all become Python floats, and so share one trace.
        return value if isinstance(value, jax.Array) or np.ndim(value) else float(value)

    return check


def flag(name: str, value: Any) -> bool:
    """A check for True and False."""
    is_flag = isinstance(value, (bool, np.bool_)) or (is_array(value) and value.ndim == 0 and value.dtype == bool)
    if not is_flag or isinstance(value, Tracer):
        raise TypeError(f"{name} must be True or False, got {value!r} ({type(value).__name__})")
    return bool(value)


def _optional_dtype(name: str, value: Any) -> Any:
    if value is None:
        return None
    try:
        dtype = jnp.dtype(value)
    except TypeError:
        raise TypeError(f"{name} must be a floating-point dtype or None, got {value!r}") from None
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"{name} must be a floating-point dtype or None, got {dtype}")
    return jax.dtypes.canonicalize_dtype(dtype)


def _mask(name: str, value: Any) -> Any:
    if value is None or callable(value):
        return value
    return jax.tree_util.tree_map_with_path(lambda path, leaf: flag(name + jax.tree_util.keystr(path), leaf), value)


def whole(least: int, *, optional: bool = False) -> Check:
    """A check for whole numbers from `least`, and not above int32's maximum, where counts end."""
    expected = f"a whole number ≥ {least} and < 2**31" + (" or None" if optional else "")

    def check(name: str, value: Any) -> Any:
        if optional and value is None:
            return None
        is_whole = isinstance(value, (int, np.integer)) or (is_array(value) and value.ndim == 0)
        if not is_whole or isinstance(value, (bool, Tracer)) or np.asarray(value).dtype.kind not in "iu":
            raise TypeError(f"{name} must be {expected}, got {value!r} ({type(value).__name__})")
        if not least <= int(value) < 2**31:
            raise ValueError(f"{name} must be {expected}, got {value!r}")
        return Whole(value)

    return check


def pair(each: Check) -> Check:
    """A check for a tuple of two values that both pass `each`."""

    def check(name: str, value: Any) -> Any:
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            raise TypeError(f"{name} must be a tuple of two, got {value!r} ({type(value).__name__})")
        return tuple(each(f"{name}[{index}]", entry) for index, entry in enumerate(value))

    return check


def choice(*names: str) -> Check:
    """A check for one of a few words."""

    def check(name: str, value: Any) -> Any:
        if not isinstance(value, str) or value not in names:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, names))}, got {value!r}")
        return value

    return check


def rows(length: int, *names: str) -> Check:
    """A check for a row of some real numbers, a table of such rows, or one of a few words."""
    expected = f"{length} real numbers, rows of {length}, or one of {', '.join(map(repr, names))}"

    def check(name: str, value: Any) -> Any:
        if isinstance(value, str) and value in names:
            return value
        entries = jax.tree.leaves(value)
        try:
            table = np.asarray(jax.tree.map(lambda entry: np.zeros(np.shape(entry)), value))
        except ValueError:  # of rows of different lengths
            table = np.asarray(None)
        if table.dtype != float or not all(map(is_real, entries)):
            raise TypeError(f"{name} must be {expected}, got {value!r}")
        if table.ndim not in (1, 2) or table.shape[-1] != length or not table.size:
            raise ValueError(f"{name} must be {expected}, got the shape {table.shape}")
        if not all(isinstance(entry, Tracer) or np.isfinite(np.asarray(entry, float)).all() for entry in entries):
            raise ValueError(f"{name} must be {expected}, got {value!r}")
        return value

    return check


def _axes(name: str, value: Any) -> Any:
    def one(path: Any, axis: Any) -> Whole:
        if isinstance(axis, bool) or not isinstance(axis, (int, np.integer)):
            where = name + jax.tree_util.keystr(path)
            raise TypeError(f"{where} must be an axis, a whole number, got {axis!r} ({type(axis).__name__})")
        return Whole(axis)

    return value if callable(value) else jax.tree_util.tree_map_with_path(one, value)


def transformation(name: str, value: Any) -> Any:
    """A check for what can be wrapped: an optimizer of ours or of optax's."""
    if not isinstance(value, optax.GradientTransformation):
        raise TypeError(f"{name} must be an optimizer, ours or optax's, got {value!r} ({type(value).__name__})")
    return value


def function(expected: str, *, optional: bool = False) -> Check:
    """A check for functions."""

    def check(name: str, value: Any) -> Any:
        if not callable(value) and not (optional and value is None):
            raise TypeError(f"{name} must be {expected}, got {value!r} ({type(value).__name__})")
        return value

    return check


LearningRate = Annotated[
    Any, number("a number ≥ 0, a schedule, a tree of these or None", schedule=True, optional=True, tree=True)
]
GivenLearningRate = Annotated[Any, number("a number ≥ 0, a schedule or a tree of these", schedule=True, tree=True)]
OneLearningRate = Annotated[Any, number("a number ≥ 0 or a schedule", schedule=True)]
WeightDecay = Annotated[Any, number("a number ≥ 0, a schedule or a tree of these", schedule=True, tree=True)]
OptionalWeightDecay = Annotated[
    Any, number("a number ≥ 0, a schedule, a tree of these or None", schedule=True, optional=True, tree=True)
]
Decay = Annotated[ArrayLike, number("in [0, 1)", below=1)]
Decays = Annotated[Any, number("in [0, 1)", below=1, tree=True)]
TwoDecays = Annotated[Any, pair(number("in [0, 1)", below=1))]
PositiveDecay = Annotated[ArrayLike, number("in (0, 1)", below=1, positive=True)]
OptionalDecay = Annotated[ArrayLike | None, number("in [0, 1) or None", below=1, optional=True)]
ScheduledDecay = Annotated[Any, number("in [0, 1) or a schedule", below=1, schedule=True)]
Positive = Annotated[ArrayLike, number("a number > 0", positive=True)]
NonNegative = Annotated[ArrayLike, number("a number ≥ 0")]
OptionalNonNegative = Annotated[ArrayLike | None, number("a number ≥ 0 or None", optional=True)]
ScheduledNonNegative = Annotated[Any, number("a number ≥ 0 or a schedule", schedule=True)]
Size = Annotated[int, whole(1)]
OptionalSize = Annotated[int | None, whole(1, optional=True)]
OptionalSteps = Annotated[int | None, whole(0, optional=True)]
Axes = Annotated[Any, _axes]
Flag = Annotated[bool, flag]
Mask = Annotated[Any, _mask]
Transformation = Annotated[optax.GradientTransformation, transformation]
OptionalDtype = Annotated[DTypeLike | None, _optional_dtype]
Moments = Annotated[Any, valid_storage]
