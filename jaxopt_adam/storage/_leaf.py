"""The storage of the moments of one leaf: their start, their loading, and a step of them."""

import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from jaxopt_adam._trees import (
    Path,
    arithmetic_dtype,
    array_like,
    leaf_name,
    real_dtype,
    scalar_like,
    with_auto_axes,
)
from jaxopt_adam._xla import fence
from jaxopt_adam.storage._dense import SQUARES, as_stored, dithered, is_dithered, undithered
from jaxopt_adam.storage._moment import Moment
from jaxopt_adam.storage._pairs import packed, unpacked
from jaxopt_adam.storage._passes import Halves
from jaxopt_adam.storage._placing import full_beside
from jaxopt_adam.storage._rounding import NEAREST, ROUNDINGS, along_axes, phases

UNROUNDED = "jaxopt_adam: unrounded"
"""The extra argument of `update` by which :func:`~jaxopt_adam.observe` asks for a step that rounds no moment.

Wrappers that pass on extra arguments pass it on. It is not a Python identifier, so it cannot clash with another
argument.
"""


class LeafStorage:
    """The storage of the moments of one leaf, decided once. It holds no arrays.

    A moment is an array, or several, of a dtype; or it shares an array with the second moment that it is relative to,
    both in bfloat16; or it is nothing, where the leaf goes without it. With codes it is a
    :class:`~jaxopt_adam.storage._coded_leaf.CodedLeafStorage`.

    Args:
        declared: what the rule has declared, by name.
        dtypes: the dtype that was asked for, for each moment; None for that of the arithmetic.
        path: the path of the leaf.
        leaf: the parameter or the gradient, of which shape and dtype matter.
        in_bfloat16: the indices of moments that may share an array.

    Attributes:
        names: the moments' names.
        shape: the leaf's.
        dtype: the leaf's.
        compute: the dtype of the arithmetic.
        real: that of its real numbers.
        has_squares: whether one of the moments is made of squares.
        is_plain: whether all moments are stored as they are computed.
    """

    def __init__(
        self,
        declared: Mapping[str, Moment],
        dtypes: Sequence[Any],
        path: Path,
        leaf: Any,
        in_bfloat16: Collection[int] = (),
    ):
        self.names = tuple(declared)
        self.shape, self.dtype = np.shape(leaf), jnp.result_type(leaf)
        self.compute = arithmetic_dtype(self.dtype)
        self.real = real_dtype(self.compute)
        self._declared = tuple(declared.values())
        self._compute = [self.real if moment.real else self.compute for moment in self._declared]
        self._shapes = [
            self.shape if moment.shape is None else moment.shape(path, self.shape) for moment in self._declared
        ]
        self.has_squares = any(
            moment.real and shape is not None for moment, shape in zip(self._declared, self._shapes, strict=True)
        )
        self._dtypes = list(map(_storage_dtype, self._declared, self._compute, dtypes))
        self._over = [self.names.index(moment.over) if moment.over in self.names else None for moment in self._declared]
        self._pair = self._found_pair(in_bfloat16)
        # The indices of the moments that are not stored as arrays of their own numbers.
        self._encoded: Collection[int] = self._pair or ()
        self._rounded = [
            index
            for index in range(len(self.names))
            if self._dtypes[index] != self._compute[index] and index not in self._encoded
        ]
        # What moments start as, which leaves that are alike share.
        self._initial: dict[Any, Array] = {}
        is_shared = any(shape != self.shape for shape in self._shapes)
        self.is_plain = not (self._pair or self._rounded)
        self._is_elementwise = self.is_plain and not is_shared

    def _found_pair(self, in_bfloat16: Collection[int]) -> tuple[int, int] | None:
        """The indices of the first moment that shares an array with its second moment, and of that."""
        for mu, nu in enumerate(self._over):
            if nu is not None and mu in in_bfloat16 and nu in in_bfloat16 and not self._declared[mu].apart:
                return mu, nu
        return None

    def in_words(self, name: str) -> str | None:
        """The storage of a moment in a few words; None if it is stored as arrays of its own numbers."""
        if self._pair and self.names.index(name) in self._pair:
            return f"bfloat16, with {self.names[self._pair[1]]}"
        return None

    @property
    def blocks(self) -> int | None:
        """The number of blocks along the last axis; None if no moment is in codes."""
        return None

    @functools.cached_property
    def entries(self) -> list[Any]:
        """The entry of each moment in the state, as :class:`jax.ShapeDtypeStruct` in place of arrays."""
        entries = [
            jax.tree.map(functools.partial(jax.ShapeDtypeStruct, dtype=dtype), shape, is_leaf=_is_shape)
            for shape, dtype in zip(self._shapes, self._dtypes, strict=True)
        ]
        if self._pair:
            mu, nu = self._pair
            entries[mu], entries[nu] = jax.ShapeDtypeStruct(self.shape, jnp.uint32), None
        return entries

    # ------------------------------------------------------------------------------------------------------- the start

    def start(self, path: Path, param: Any) -> list[Any]:
        """The entries of the parameter `param` before the first step."""
        entries = [
            None if index in self._encoded else self._start(index, path, param) for index in range(len(self.names))
        ]
        if self._pair:
            first, _ = self._pair
            if first not in self._initial:
                mu, nu = (jnp.asarray(self._declared[index].initial, jnp.float32) for index in self._pair)
                self._initial[first] = packed(mu, nu, jnp.asarray(NEAREST), jnp.asarray(NEAREST))
            entries[first] = _full_like(param, self._initial[first])
        return entries

    def _start(self, index: int, path: Path, param: Any) -> Any:
        """A moment that is stored as numbers before the first step."""
        moment, dtype = self._declared[index], self._dtypes[index]
        if moment.from_param:
            # A structure has no values to start from.
            is_struct = isinstance(param, jax.ShapeDtypeStruct)
            return jax.ShapeDtypeStruct(param.shape, dtype) if is_struct else jnp.array(param, dtype)
        is_number = isinstance(moment.initial, float)
        start = (moment.initial, dtype) if is_number else index
        if start not in self._initial:
            initial = scalar_like(path, param, moment.initial, real_dtype(self._compute[index]))
            self._initial[start] = dithered(initial, dtype, NEAREST) if is_dithered(dtype) else initial.astype(dtype)
        initial = self._initial[start]

        def full(shape: tuple[int, ...], axes: tuple[int | None, ...] | None = None) -> Array:
            return full_beside(param, shape, initial, axes)

        if moment.shape is None:
            return _full_like(param, initial)
        along = () if moment.axes is None else (moment.axes(path, self.shape),)
        return jax.tree.map(full, self._shapes[index], *along, is_leaf=_is_shape)

    # ------------------------------------------------------------------------------------------------------ the checks

    def checked(self, path: Path, entries: Sequence[Any]) -> list[Any]:
        """The entries as arrays; ValueError or TypeError if they do not match the leaf."""
        checked = list(entries)
        for index, (entry, expected) in enumerate(zip(entries, self.entries, strict=True)):
            if isinstance(entry, jax.Array) and isinstance(expected, jax.ShapeDtypeStruct):
                is_right = entry.shape == expected.shape and entry.dtype == expected.dtype
            else:
                is_right = entry is None and expected is None
            if not is_right:
                check = self._checked_encoded if index in self._encoded else self._checked_numbers
                checked[index] = check(path, index, entry)
        return checked

    def _checked_numbers(self, path: Path, index: int, entry: Any) -> Any:
        """The entry of a moment that is stored as arrays of its own numbers."""
        what, expected = f"state.{self.names[index]}", self.entries[index]
        if jax.tree.structure(entry) != jax.tree.structure(expected):
            raise ValueError(
                f"{leaf_name(path)}: for a gradient of shape {self.shape} {what} must have "
                f"{_text(self._shapes[index])}, got {_text(jax.tree.map(np.shape, entry))}"
            )
        grad = jax.ShapeDtypeStruct(self.shape, self.dtype)
        return jax.tree.map(
            lambda part, struct: array_like(path, grad, part, struct.dtype, what, struct.shape), entry, expected
        )

    def _checked_encoded(self, path: Path, index: int, entry: Any) -> Any:
        """The entry of a moment in a pair or in codes."""
        expected = self.entries[index]
        is_alike = jax.tree.structure(entry) == jax.tree.structure(expected)
        given = array_texts(entry) if is_alike or hasattr(entry, "dtype") else []
        if is_alike and given == array_texts(expected):
            return jax.tree.map(jnp.asarray, entry)
        raise ValueError(
            f"{leaf_name(path)}: state.{self.names[index]} must be {self._expected_text(index)}, got "
            f"{' and '.join(given) or type(entry).__name__}; the state must come from an optimizer with the same "
            "moments"
        )

    def _expected_text(self, index: int) -> str:
        """A description of the entry of a moment in a pair or in codes, for errors."""
        assert self._pair is not None
        mu, nu = self._pair
        if index == nu:
            return "None in bfloat16"
        return f"{array_texts(self.entries[mu])[0]}, with state.{self.names[nu]}, in bfloat16"

    # -------------------------------------------------------------------------------------------------------- the step

    def load(self, entries: Sequence[Any]) -> list[Any]:
        """The moments in the dtype of the arithmetic, of entries that are checked."""
        values = list(entries)
        for index in self._rounded:
            values[index] = jax.tree.map(functools.partial(_widened, dtype=self._compute[index]), entries[index])
        if self._pair:
            mu, nu = self._pair
            values[mu], values[nu] = unpacked(jax.lax.stop_gradient(entries[mu]))
        return values

    def step(
        self, rule: Halves, inputs: Any, entries: Sequence[Any], step: Array, *, rounded: bool = True
    ) -> tuple[Array, Sequence[Any]]:
        """The update of the leaf and its moments after the step.

        Args:
            rule: the two halves of the rule.
            inputs: the inputs of the rule besides the moments, the gradient first.
            entries: the moments as they are in the state, in order, checked.
            step: the number of the step, from 1.
            rounded: whether moments are rounded to their storage; otherwise they are arrays of float32.
        """
        if not rounded:
            old = self.load(entries)
            new = rule.first(inputs, old)
            return rule.second(inputs, old, new), new
        run = functools.partial(self._step, rule)
        arguments = (*inputs, step), entries
        if self._is_elementwise:
            return run(*arguments)
        # Such a step changes the shapes of arrays.
        return with_auto_axes(run, arguments, outputs=(inputs[0], entries))

    def _step(self, rule: Halves, given: Any, entries: Sequence[Any]) -> tuple[Array, Sequence[Any]]:
        """The step with rounding; `given` is what the rule reads, and the step."""
        *inputs, step = given
        old = self.load(entries)
        new = rule.first(inputs, old)
        if not (self._rounded or self._pair):
            return rule.second(inputs, old, new), new
        stored: list[Any] = list(new)
        for index in self._rounded:
            round_ = functools.partial(_rounded, dtype=self._dtypes[index], step=step, salt=index)
            stored[index] = jax.tree.map(round_, new[index])
        if self._pair:
            mu, nu = self._pair
            thresholds = [_threshold(self.shape, step, salt) for salt in self._pair]
            stored[mu], stored[nu] = packed(new[mu], new[nu], *thresholds), None
        # The update is that of the moments as they are stored.
        stored = fence(step, stored)
        new = list(new)
        after = self.load(stored)
        for index in (*self._rounded, *self._encoded):
            new[index] = jax.tree.map(as_stored, new[index], after[index])
        return rule.second(inputs, old, new), stored


def _storage_dtype(moment: Moment, compute: np.dtype, dtype: Any) -> np.dtype:
    """The dtype in which a moment is stored as numbers, for a `dtype` that was asked for, or None."""
    if dtype is None:
        return compute
    if moment.real and jnp.dtype(dtype) == jnp.bfloat16:
        return SQUARES
    is_complex = jnp.issubdtype(compute, jnp.complexfloating)
    return jnp.promote_types(dtype, jnp.complex64) if is_complex else jnp.dtype(dtype)


def _widened(array: Array, dtype: np.dtype) -> Array:
    if is_dithered(array.dtype):
        # Squares in bfloat16 are stored as integers, which have no derivative. So what else is dithered has none.
        return jax.lax.stop_gradient(undithered(array)).astype(dtype)
    return array.astype(dtype)


def _rounded(array: Array, dtype: np.dtype, step: Array, salt: int) -> Array:
    if is_dithered(dtype):
        return dithered(array, dtype, _threshold(array.shape, step, salt))
    return array.astype(dtype)


def _threshold(shape: tuple[int, ...], step: Array, salt: int) -> Array:
    """The share of a spacing by which each element of a moment is raised before it is rounded down."""
    vectors = phases(shape, salt)
    if len(shape) > 1:
        # Otherwise the compiler would compute the hash of a position anew for each element.
        vectors = fence(step, vectors)
    return ROUNDINGS["dither"](step, along_axes(vectors, len(shape)))


def array_texts(entry: Any) -> list[str]:
    """The dtype and the shape of each array of an entry."""
    return [f"{jnp.result_type(array)}{list(np.shape(array))}" for array in jax.tree.leaves(entry)]


def _full_like(param: Any, value: Array) -> Array:
    """An array of its own with the parameter's shape, full of `value`, in the dtype of that."""
    if isinstance(param, Tracer) and value.ndim == 0:
        return full_beside(param, param.shape, value, range(param.ndim))
    full = jnp.full_like(param, value, value.dtype)
    # That may be `value` itself, and a buffer cannot be donated twice.
    return jnp.array(full) if value.shape == full.shape else full


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple)


def _text(shapes: Any) -> str:
    if shapes is None:
        return "nothing"
    return f"the shape {shapes}" if _is_shape(shapes) else f"arrays of {shapes}"
