"""The kinds of hyperparameters and the checks of their values.

A rule names the kind of each of its arguments in their annotations (``b1: Decay = 0.9``), and
:func:`~jaxopt_adam.optimizer` has every value checked by its kind when an optimizer is made.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Protocol, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike

from jaxopt_adam._shown import brief, shown
from jaxopt_adam.storage._choice import StorageChoice, valid_storage

Schedule = Callable[[Any], ArrayLike]
"""A function of `count`, the number of updates done, that gives a hyperparameter's value, as in optax."""

OfLeaf = Callable[[str, tuple[int, ...]], Any]
"""A function of a leaf's path, as a string, and of its shape."""

Check = Callable[[str, Any], Any]
"""A check takes the name and the value of an argument and returns the value to keep, or raises."""


def is_array(value: object) -> TypeGuard[np.generic | np.ndarray | jax.Array]:
    """True for an array or a scalar of NumPy's or JAX's."""
    return isinstance(value, (np.generic, np.ndarray, jax.Array))


def is_number(value: object) -> bool:
    """True for a number or an array of numbers, NumPy's and JAX's included, and so a leaf of an optimizer."""
    if is_array(value):
        return jnp.issubdtype(value.dtype, np.number)
    return isinstance(value, (int, float, complex)) and not isinstance(value, (bool, Whole, Fixed))


def is_real(value: object) -> bool:
    """True for a real number or an array of real numbers."""
    return is_number(value) and not jnp.iscomplexobj(value)


def scheduled(value: Any, count: Any, name: str) -> Any:
    """The value of a hyperparameter after `count` updates; a schedule is called with `count`."""
    if not callable(value):
        return value
    now = value(count)
    if not is_real(now):
        raise TypeError(f"{name} must give real numbers if it is a schedule, got {shown(now)}")
    return at_least_float32(now)


def not_negative(value: Any, name: str) -> Any:
    """A number that must be ≥ 0: NaN where an array of JAX is not, which only the run shows; ValueError for others."""
    if isinstance(value, jax.Array):
        return jnp.where(value >= 0, value, jnp.nan)
    if np.any(np.less(value, 0)):
        raise ValueError(f"{name} must be ≥ 0, got {value!r}")
    return value


def at_least_float32(value: Any) -> Any:
    """An array of a narrower floating-point dtype in float32; anything else as it is."""
    is_narrow = is_array(value) and jnp.issubdtype(value.dtype, jnp.floating) and jnp.finfo(value.dtype).bits < 32
    return value.astype(np.float32) if is_narrow else value


def single(value: Any, name: str) -> Any:
    """A hyperparameter that must be one number for all leaves, not an array that broadcasts to them."""
    if np.shape(value):
        raise ValueError(
            f"{name} must be one number for all leaves, got the shape {np.shape(value)}; for a batch of optimizers use "
            "jax.vmap"
        )
    return value


class Whole(int):
    """A whole number that shapes the program, as a size or a number of rounds does: never a leaf, never traced."""


class Fixed(float):
    """A number at whose value a rule looks when it is made: never a leaf, never traced."""


@dataclasses.dataclass(frozen=True)
class Number:
    """A check for real numbers, rounded to float32 (float64 in x64 mode): from `least`, and less than `below`.

    Args:
        expected: what is allowed, in words, for the error.
        below: the upper bound, which is excluded itself.
        positive: whether the lower bound is excluded, as 0 is for positive numbers.
        schedule: whether a function of `count` is allowed.
        optional: whether None is allowed.
        tree: whether a tree of such values is allowed.
        direction: whether None stands for no learning rate, so that the rule gives the direction alone.
        least: the lower bound, which is allowed itself unless it is infinite.

    Example:
        >>> from typing import Annotated
        >>> import optax
        >>> from jaxopt_adam import Number, optimizer
        >>> @optimizer
        ... def shifted_sgd(learning_rate, shift: Annotated[float, Number("a real number", least=-float("inf"))] = 0.0):
        ...     return optax.chain(optax.sgd(learning_rate), optax.scale(shift))
        >>> shifted_sgd(0.1, shift="a")
        Traceback (most recent call last):
        TypeError: shifted_sgd: shift must be a real number, got 'a' (str)
    """

    expected: str
    below: float = np.inf
    positive: bool = False
    schedule: bool = False
    optional: bool = False
    tree: bool = False
    direction: bool = False
    least: float = 0.0

    def __call__(self, name: str, value: Any) -> Any:
        """The value to keep; TypeError or ValueError if it is not allowed. Traced numbers are taken on trust."""
        return self._map(self._checked, name, value)

    def used(self, name: str, value: Any) -> Any:
        """The value that a rule computes with: in float32 at least, and NaN for a decay out of its range.

        The value of a traced number is known only at run time, and a decay of exactly one would stop a rule without an
        error. Known numbers are checked again, because a transformation of trees may have put them there.
        """
        return self._map(self._used, name, value)

    def _map(self, function: Callable[[str, Any], Any], name: str, value: Any) -> Any:
        is_tree = self.tree and value is not None and not callable(value)
        if is_tree and not jax.tree_util.all_leaves([value]):
            return jax.tree_util.tree_map_with_path(
                lambda path, leaf: function(name + jax.tree_util.keystr(path), leaf), value, is_leaf=callable
            )
        return function(name, value)

    def _checked(self, name: str, value: Any) -> Any:
        if type(value) is float and _is_allowed(self, value, jax.dtypes.canonicalize_dtype(np.float64)):
            return value
        if (self.optional and value is None) or (self.schedule and callable(value)):
            return value
        if not is_real(value):
            raise TypeError(f"{name} must be {self.expected}, got {shown(value)}{_hint(name, value)}")
        if not isinstance(value, Tracer) and not np.all(allowed := self._allows(_as_computed(value))):
            wrong = np.asarray(value)[~allowed][0] if np.ndim(value) else value
            first = f", among its values {float(wrong)!r}" if np.ndim(value) else ""
            why = self._why_not(wrong) + _hint(name, value)
            raise ValueError(f"{name} must be {self.expected}, got {brief(value)}{first}{why}")
        # Python's and NumPy's scalars all become Python floats, and so share one trace.
        return value if isinstance(value, jax.Array) or np.ndim(value) else float(value)

    def _used(self, name: str, value: Any) -> Any:
        if callable(value) and self.below == 1:
            return lambda count: self._shown(name, scheduled(value, count, name))
        return self._shown(name, value) if isinstance(value, Tracer) else at_least_float32(self._checked(name, value))

    def _shown(self, name: str, value: Any) -> Any:
        """A number that may be traced, NaN for a decay out of its range; a known number must be allowed."""
        if not isinstance(value, jax.Array):
            return self._checked(name, value)
        value = at_least_float32(value)
        return jnp.where(self._allows(value), value, jnp.nan) if self.below == 1 else value

    def _allows(self, numbers: Any) -> Any:
        is_open = self.positive or self.least == -np.inf
        return (numbers > self.least if is_open else numbers >= self.least) & (numbers < self.below)

    def _why_not(self, value: Any) -> str:
        dtype = getattr(value, "dtype", np.dtype(np.float64))
        if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32:
            return (
                f"; {dtype} cannot tell it from its neighbours, so give it in float32 (optax.inject_hyperparams takes "
                "hyperparam_dtype=jax.numpy.float32)"
            )
        rounded = _as_computed(value)
        return f", which {rounded.dtype} rounds to {rounded}" if np.all(self._allows(_exact(value))) else ""


def _hint(name: str, value: Any) -> str:
    """A hint for parameters in place of a hyperparameter, as PyTorch's optimizers take them; empty otherwise."""
    if re.search(r"\[\d+\]\['(params|lr|betas|eps|weight_decay)'\]", name):
        return (
            "; there are no parameter groups: give one number, or a tree of numbers like the parameters, and the "
            "parameters to init"
        )
    return "; the parameters are given to init, not to the optimizer" if np.ndim(value) and "[" in name else ""


@functools.lru_cache(maxsize=1024)
def _is_allowed(check: Number, value: float, dtype: np.dtype) -> bool:
    """True if a number is allowed where numbers are computed in `dtype`; each `init` and `update` asks for it."""
    return bool(check._allows(_as_computed(value)))


def _exact(value: Any) -> np.ndarray:
    try:
        return np.asarray(value, np.float64)
    except OverflowError:  # of a large int
        return np.asarray(np.inf)


def _as_computed(value: Any) -> np.ndarray:
    """The value of a number in the dtype in which a traced one is computed; infinite where it is out of range."""
    with np.errstate(over="ignore", under="ignore"):
        return _exact(value).astype(jax.dtypes.canonicalize_dtype(np.float64))


def flag(name: str, value: Any) -> bool:
    """A check for True and False."""
    is_flag = isinstance(value, (bool, np.bool_)) or (is_array(value) and value.ndim == 0 and value.dtype == bool)
    if not is_flag or isinstance(value, Tracer):
        raise TypeError(f"{name} must be True or False, got {shown(value)}")
    return bool(value)


def _optional_dtype(name: str, value: Any) -> Any:
    if value is None:
        return None
    try:
        dtype = jnp.dtype(value)
    except TypeError:
        raise TypeError(f"{name} must be a floating-point dtype or None, got {brief(value)}") from None
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
            raise TypeError(f"{name} must be {expected}, got {shown(value)}")
        if not least <= int(value) < 2**31:
            raise ValueError(f"{name} must be {expected}, got {brief(value)}")
        return Whole(value)

    return check


@dataclasses.dataclass(frozen=True)
class Pair:
    """A check for a tuple of two values that both pass `each`."""

    each: Number

    def __call__(self, name: str, value: Any) -> Any:
        """The value to keep; TypeError or ValueError if it is not allowed."""
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            raise TypeError(f"{name} must be a tuple of two, got {shown(value)}")
        return tuple(self.each(f"{name}[{index}]", entry) for index, entry in enumerate(value))

    def used(self, name: str, value: Any) -> Any:
        """The pair that a rule computes with, see :meth:`Number.used`."""
        return tuple(self.each.used(f"{name}[{index}]", entry) for index, entry in enumerate(value))


def real(name: str, value: Any) -> Any:
    """A check for real numbers of any size and sign."""
    if not is_real(value):
        raise TypeError(f"{name} must be a real number, got {shown(value)}")
    if not isinstance(value, Tracer) and np.isnan(_exact(value)).any():
        raise ValueError(f"{name} must be a real number, got {brief(value)}")
    return value if isinstance(value, jax.Array) or np.ndim(value) else float(value)


def _optional_real(name: str, value: Any) -> Any:
    """A check for real numbers and None."""
    return None if value is None else real(name, value)


def _boundaries(name: str, value: Any) -> Any:
    """A check for boundaries with scales: a dictionary or pairs; the result is pairs, sorted if they are known."""
    if value is None:
        return ()
    pairs = list(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(pairs, (list, tuple)) or not all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs
    ):
        expected = "a dictionary of boundaries and scales, pairs of them or None"
        raise TypeError(f"{name} must be {expected}, got {brief(value)}")
    checked = []
    for boundary, scale in pairs:
        number = real(f"{name}[{boundary!r}]", scale)
        if not isinstance(number, Tracer) and not np.all(_exact(number) >= 0):
            raise ValueError(f"{name}[{boundary!r}] must be a scale ≥ 0, got {brief(scale)}")
        checked.append((real(f"a boundary in {name}", boundary), number))
    is_known = not any(isinstance(boundary, Tracer) or np.ndim(boundary) for boundary, _ in checked)
    return tuple(sorted(checked, key=lambda pair: float(pair[0])) if is_known else checked)


def choice(*names: str) -> Check:
    """A check for one of a few words."""

    def check(name: str, value: Any) -> Any:
        if not isinstance(value, str) or value not in names:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, names))}, got {brief(value)}")
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
            raise TypeError(f"{name} must be {expected}, got {brief(value)}")
        if table.ndim not in (1, 2) or table.shape[-1] != length or not table.size:
            raise ValueError(f"{name} must be {expected}, got the shape {table.shape}")
        if not all(isinstance(entry, Tracer) or np.isfinite(np.asarray(entry, float)).all() for entry in entries):
            raise ValueError(f"{name} must be {expected}, got {brief(value)}")
        return value

    return check


def _axes(name: str, value: Any) -> Any:
    def one(path: Any, axis: Any) -> Whole:
        if isinstance(axis, bool) or not isinstance(axis, (int, np.integer)):
            where = name + jax.tree_util.keystr(path)
            raise TypeError(f"{where} must be an axis, a whole number, got {shown(axis)}")
        return Whole(axis)

    return value if callable(value) else jax.tree_util.tree_map_with_path(one, value)


def transformation(name: str, value: Any) -> Any:
    """A check for what can be wrapped: an optimizer of ours or of optax's."""
    if not isinstance(value, optax.GradientTransformation):
        raise TypeError(f"{name} must be an optimizer, ours or optax's, got {shown(value)}")
    return value


def function(expected: str, *, optional: bool = False) -> Check:
    """A check for functions."""

    def check(name: str, value: Any) -> Any:
        if not callable(value) and not (optional and value is None):
            raise TypeError(f"{name} must be {expected}, got {shown(value)}")
        return value

    return check


class _Node(Protocol):
    """A dataclass, as modules of equinox and of flax are."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


# The types are those that a type checker should know at the call: what is within a tree is anyone's.
_Tree = Mapping[Any, Any] | list[Any] | tuple[Any, ...] | _Node
_Rate = ArrayLike | Schedule

LearningRate = Annotated[
    _Rate | _Tree | None,
    Number(
        "a number ≥ 0, a schedule, a tree of these or None", schedule=True, optional=True, tree=True, direction=True
    ),
]
"""α ≥ 0: a number, a schedule, a tree of these, or None for the direction alone."""
# With None the rule still steps downhill.
RelativeLearningRate = Annotated[
    _Rate | _Tree | None,
    Number("a number ≥ 0, a schedule, a tree of these or None", schedule=True, optional=True, tree=True),
]
GivenLearningRate = Annotated[
    _Rate | _Tree, Number("a number ≥ 0, a schedule or a tree of these", schedule=True, tree=True)
]
OneLearningRate = Annotated[_Rate, Number("a number ≥ 0 or a schedule", schedule=True)]
WeightDecay = Annotated[_Rate | _Tree, Number("a number ≥ 0, a schedule or a tree of these", schedule=True, tree=True)]
"""λ ≥ 0: a number, a schedule or a tree of these."""
OptionalWeightDecay = Annotated[
    _Rate | _Tree | None,
    Number("a number ≥ 0, a schedule, a tree of these or None", schedule=True, optional=True, tree=True),
]
Decay = Annotated[ArrayLike, Number("in [0, 1)", below=1)]
"""β in [0, 1); a traced value out of this range becomes NaN."""
Decays = Annotated[ArrayLike | _Tree, Number("in [0, 1)", below=1, tree=True)]
TwoDecays = Annotated[tuple[ArrayLike, ArrayLike] | list[Any], Pair(Number("in [0, 1)", below=1))]
PositiveDecay = Annotated[ArrayLike, Number("in (0, 1)", below=1, positive=True)]
OptionalDecay = Annotated[ArrayLike | None, Number("in [0, 1) or None", below=1, optional=True)]
ScheduledDecay = Annotated[_Rate, Number("in [0, 1) or a schedule", below=1, schedule=True)]
Positive = Annotated[ArrayLike, Number("a number > 0", positive=True)]
"""A number above 0."""
NonNegative = Annotated[ArrayLike, Number("a number ≥ 0")]
"""A number ≥ 0."""
OptionalNonNegative = Annotated[ArrayLike | None, Number("a number ≥ 0 or None", optional=True)]
ScheduledNonNegative = Annotated[_Rate, Number("a number ≥ 0 or a schedule", schedule=True)]
_Number = float | np.floating | np.integer | np.ndarray | jax.Array
Real = Annotated[_Number, real]
"""A real number."""
OptionalReal = Annotated[_Number | None, _optional_real]
Steps = Annotated[_Number, real]
"""A number of steps."""
PositiveSteps = Annotated[_Number, Number("a number of steps > 0", positive=True)]
"""A number of steps above zero."""
Boundaries = Annotated[Mapping[Any, Any] | Sequence[tuple[Any, Any]] | None, _boundaries]
"""Boundaries with scales: a dictionary, pairs or None."""
Size = Annotated[int, whole(1)]
"""A whole number ≥ 1 that shapes the program, and is therefore not a leaf."""
OptionalSize = Annotated[int | None, whole(1, optional=True)]
OptionalSteps = Annotated[int | None, whole(0, optional=True)]
Axes = Annotated[int | _Tree | Callable[[Any], Any] | None, _axes]
Flag = Annotated[bool, flag]
"""True or False."""
Mask = Annotated[bool | _Tree | Callable[[Any], Any] | None, _mask]
"""A tree of booleans like the parameters, or a prefix of it; a function from the parameters to one; or None."""
Transformation = Annotated[optax.GradientTransformation, transformation]
OptionalDtype = Annotated[DTypeLike | None, _optional_dtype]
"""A floating-point dtype or None."""
Moments = Annotated[StorageChoice, valid_storage]
"""The storage of the moments: the argument `moments` of the rules, to be passed to :func:`leafwise` as `storage`."""
