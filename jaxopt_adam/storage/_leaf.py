"""The moments of one leaf: how they are stored, how they start, and a step of them."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from jaxopt_adam._trees import Path, arithmetic_dtype, array_like, leaf_name, leaves_like, real_dtype, scalar_like
from jaxopt_adam._xla import fence
from jaxopt_adam.storage._blockwise import Blocks, Blockwise
from jaxopt_adam.storage._choice import NAMED, Storage, storages_of
from jaxopt_adam.storage._dense import SQUARES, Dense, as_stored, dithered, is_dithered, undithered
from jaxopt_adam.storage._kernel import in_one_pass, suits
from jaxopt_adam.storage._moment import Moment
from jaxopt_adam.storage._packing import Member, Packing, joined_scales, parted_scales
from jaxopt_adam.storage._pairs import packed, unpacked
from jaxopt_adam.storage._passes import Halves, in_passes, loaded
from jaxopt_adam.storage._rounding import NEAREST, ROUNDINGS, phases

UNROUNDED = "jaxopt_adam: unrounded"
"""The extra argument of `update` by which :func:`~jaxopt_adam.observe` asks for a step that rounds no moment.

It passes through the wrappers that pass on extra arguments, and as no identifier it is no argument of anybody's.
"""


class LeafMoments:
    """The moments of one leaf, with their storage, which is settled here once.

    A moment is stored in one of four ways: as an array, or several, of a dtype (`dtypes`); in bfloat16 together with
    its second moment, in one array (`pair`); in codes, with scales, alone or together with its second moment
    (`packing`); or not at all, where the leaf goes without it.

    Args:
        moments: what the rule has declared, by name.
        storages: the storage of each that was asked for.
        path: the way to the leaf.
        leaf: the parameter or the gradient, of which shape and dtype matter.

    Attributes:
        names: the moments' names.
        shape: the leaf's.
        dtype: the leaf's.
        compute: the dtype of the arithmetic.
        real: that of its real numbers.
        has_squares: whether one of the moments is made of squares.
        storages: the storages of those with codes, by their places among the moments.
        packing: the packing of the codes, None if there are none.
        pair: the places of a first moment that shares its numbers with a second moment, and of that; or None.

    Raises:
        ValueError: if `moments` and another argument of the rule both say how one is stored.
    """

    def __init__(self, moments: Mapping[str, Moment], storages: Sequence[Storage], path: Path, leaf: Any):
        self.names = tuple(moments)
        self.shape, self.dtype = np.shape(leaf), jnp.result_type(leaf)
        self._moments = tuple(moments.values())
        self.compute = compute = arithmetic_dtype(self.dtype)
        self.real = real_dtype(compute)
        self._compute = [self.real if moment.real else compute for moment in self._moments]
        self._shapes = [
            self.shape if moment.shape is None else moment.shape(path, self.shape) for moment in self._moments
        ]
        self.has_squares = False
        self._over = [self.names.index(each.over) if each.over in self.names else None for each in self._moments]
        self.storages: dict[int, Blockwise] = {}
        narrow: list[Any] = [moment.dtype for moment in self._moments]
        halves = set()
        for index, ((name, moment), storage) in enumerate(zip(moments.items(), storages, strict=True)):
            self.has_squares |= moment.real and self._shapes[index] is not None
            if moment.shape is not None or moment.from_param or storage == NAMED["float32"]:
                continue
            if moment.dtype is not None:
                raise ValueError(f"moments and another argument both say how {name} is stored; give one of them")
            if isinstance(storage, Dense):
                narrow[index] = storage.dtype
                if jnp.dtype(storage.dtype) == jnp.bfloat16 and compute == jnp.float32:
                    halves.add(index)
            elif storage.suits(self.shape, compute):
                self.storages[index] = storage
        self._dtypes = [
            _storage_dtype(moment, dtype, own)
            for moment, dtype, own in zip(self._moments, self._compute, narrow, strict=True)
        ]
        self.pair: tuple[int, int] | None = None
        for index, over in enumerate(self._over):
            if over is not None and {index, over} <= halves and not self._moments[index].apart and not self.storages:
                self.pair = self.pair or (index, over)
        self._rounded = [
            index
            for index, (own, dtype) in enumerate(zip(self._dtypes, self._compute, strict=True))
            if own != dtype and index not in (self.pair or ())
        ]
        is_shared = any(each is not self.shape for each in self._shapes)
        self._is_elementwise = not (self.storages or self.pair or self._rounded or is_shared)
        self.packing: Packing | None = None
        if self.storages:
            longest = min(storage.longest(math.prod(self.shape)) for storage in self.storages.values())
            self.packing = Packing(tuple(map(self._member, range(len(self.names)))), self.shape, longest)

    def _member(self, index: int) -> Member:
        moment, storage = self._moments[index], self.storages.get(index)
        return Member(
            code=storage and storage.code(nonnegative=moment.real),
            dtype=self._dtypes[index],
            over=self._over[index],
            eps=moment.added,
            rounding=storage.rounding if storage else "nearest",
        )

    @functools.cached_property
    def entries(self) -> list[Any]:
        """The entry of each moment in the state, as :class:`jax.ShapeDtypeStruct` in place of arrays."""

        def struct(shape: Any, dtype: Any) -> Any:
            return jax.tree.map(lambda each: jax.ShapeDtypeStruct(each, dtype), shape, is_leaf=_is_shape)

        entries = [struct(shape, dtype) for shape, dtype in zip(self._shapes, self._dtypes, strict=True)]
        if self.pair:
            entries[self.pair[0]], entries[self.pair[1]] = struct(self.shape, jnp.uint32), None
        for word in self.packing.words if self.packing else ():
            if word.bits is not None and self.packing:
                codes = struct(self.packing.codes_shape(word), word.dtype)
                dtypes = self.packing.scale_dtypes(word)
                scales = struct(self.packing.layout.blocks, dtypes[0] if len(dtypes) == 1 else jnp.uint32)
                own = [Blocks(codes, scales)] if len(dtypes) == 1 else [scales, codes]
                for member, entry in zip(word.members, own, strict=True):
                    entries[member] = entry
        return entries

    def start(self, path: Path, param: Any) -> list[Any]:
        """The entries of the parameter `param` before the first step."""
        if self.packing:
            first = {index: self._first(index) for index in self.storages}
            numbers = {}
            for index, word in enumerate(self.packing.words):
                if word.bits is None:
                    numbers[index] = self._start(word.members[0], path, param)
                else:
                    codes = [first[member][0] for member in word.members] * (2 if word.halved else 1)
                    number = word.joined([code << word.bits * place for place, code in enumerate(codes)])
                    numbers[index] = _full_beside(param, self.packing.codes_shape(word), number)
            blocks = self.packing.layout.blocks
            scales = {index: first[index][1] if index in first else None for index in range(len(self.names))}
            return _joined(self.packing, numbers, scales, lambda scale: _full_beside(param, blocks, scale))
        shared = self.pair or ()
        entries = [None if index in shared else self._start(index, path, param) for index in range(len(self.names))]
        if self.pair:
            mu, nu = (jnp.asarray(self._moments[index].initial, jnp.float32) for index in self.pair)
            numbers = packed(mu, nu, jnp.asarray(NEAREST), jnp.asarray(NEAREST))
            entries[self.pair[0]] = jnp.full_like(param, numbers, jnp.uint32)
        return entries

    def _start(self, index: int, path: Path, param: Any) -> Any:
        """A moment that is stored as numbers before the first step."""
        moment, dtype = self._moments[index], self._dtypes[index]
        if moment.from_param:
            return jnp.array(param, dtype)
        initial = jnp.asarray(scalar_like(path, param, moment.initial, real_dtype(self._compute[index])))
        if is_dithered(dtype):
            initial = dithered(initial, dtype, NEAREST)

        def one(shape: tuple[int, ...]) -> Array:
            # Like the parameter where it can be, since then it lies on the same devices.
            if shape == np.shape(param):
                return jnp.full_like(param, initial, dtype)
            return jnp.full(shape, initial, dtype, device=_sharding_of_axes(param, shape))

        return jax.tree.map(one, self._shapes[index], is_leaf=_is_shape)

    def _first(self, index: int) -> tuple[Array, Array]:
        """The code and the scale of a moment before the first step."""
        moment, over = self._moments[index], self._over[index]
        initial = jnp.asarray(moment.initial, jnp.float32)
        if over is not None:
            root = jnp.sqrt(jnp.asarray(self._moments[over].initial, jnp.float32)) + moment.added
            initial = initial / jnp.where(root > 0, root, 1)
        return self.storages[index].start(initial, nonnegative=moment.real)

    def checked(self, path: Path, entries: Sequence[Any]) -> list[Any]:
        """The entries as arrays; ValueError or TypeError if they do not go with the leaf."""
        checked = list(entries)
        for index, (entry, expected) in enumerate(zip(entries, self.entries, strict=True)):
            is_array = isinstance(entry, jax.Array) and isinstance(expected, jax.ShapeDtypeStruct)
            if not is_array or entry.shape != expected.shape or entry.dtype != expected.dtype:
                checked[index] = self._checked(path, index, entry)
        return checked

    def _checked(self, path: Path, index: int, entry: Any) -> Any:
        expected = self.entries[index]
        what = f"state.{self.names[index]}"
        if index not in self.storages and index not in (self.pair or ()):
            if jax.tree.structure(entry) != jax.tree.structure(expected):
                raise ValueError(
                    f"{leaf_name(path)}: for a gradient of shape {self.shape} {what} must have "
                    f"{_text(self._shapes[index])}, got {_text(jax.tree.map(np.shape, entry))}"
                )
            grad = jax.ShapeDtypeStruct(self.shape, self.dtype)
            return jax.tree.map(
                lambda own, one: array_like(path, grad, own, one.dtype, what, one.shape), entry, expected
            )
        alike = jax.tree.structure(entry) == jax.tree.structure(expected)
        is_array = alike or hasattr(entry, "dtype")
        given, wanted = (
            list(map(_array_text, jax.tree.leaves(each))) for each in (entry if is_array else None, expected)
        )
        if alike and given == wanted:
            return jax.tree.map(jnp.asarray, entry)
        got = " and ".join(given) or _kind(entry)
        raise ValueError(
            f"{leaf_name(path)}: {what} must be {self._words(index)}, got {got}; the state must come from an optimizer "
            "with the same moments"
        )

    def _words(self, index: int) -> str:
        """The entry that a moment in codes or in a pair should have, in words."""
        structs = list(map(_array_text, jax.tree.leaves(self.entries[index])))
        if self.pair:
            other = self.names[self.pair[1]]
            return f"{structs[0]}, with state.{other}, in bfloat16" if structs else "None in bfloat16"
        assert self.packing is not None
        [word] = [word for word in self.packing.words if index in word.members]
        kinds = ["codes", "scales"] if len(structs) == 2 else ["scales"] if index == word.members[0] else ["codes"]
        texts = [f"{kind} {struct}" for kind, struct in zip(kinds, structs, strict=True)]
        of = " and ".join(self.names[member] for member in word.members[::-1])
        return f"{' and '.join(texts)} of {of} in {word.bits} bits"

    # -------------------------------------------------------------------------------------------------------- the step

    def load(self, entries: Sequence[Any]) -> list[Any]:
        """The moments in the dtype of the arithmetic, of entries that are checked."""
        if self.packing:
            return loaded(*_parted(self.packing, entries), self.packing)
        values = list(entries)
        for index in self._rounded:
            values[index] = jax.tree.map(functools.partial(_widened, dtype=self._compute[index]), entries[index])
        if self.pair:
            first, second = self.pair
            values[first], values[second] = unpacked(jax.lax.stop_gradient(entries[first]))
        return values

    def step(
        self, rule: Halves, path: Path, inputs: Any, entries: Sequence[Any], step: Array, *, rounded: bool = True
    ) -> tuple[Array, Sequence[Any]]:
        """The update of the leaf and its moments after the step.

        Args:
            rule: the two halves of the rule.
            path: the way to the leaf.
            inputs: what the rule reads besides the moments, the gradient first.
            entries: the moments as they are in the state, in order.
            step: which step it is, from 1.
            rounded: whether moments are rounded to where they are stored; otherwise they are arrays of float32.

        Raises:
            ValueError, TypeError: if a moment does not go with the gradient, or would change its shape.
        """
        entries = self.checked(path, entries)
        if self.packing and rounded:
            run = functools.partial(self._step_of_codes, rule, self.packing)
        else:
            run = functools.partial(self._step, rule, path, rounded)
        given = *inputs, step
        # On a mesh with explicit axes the step is of that mesh too.
        return run(given, entries) if self._is_elementwise or not rounded else _placed(run, given, entries)

    def _step(
        self, rule: Halves, path: Path, rounded: bool, given: Any, entries: Sequence[Any]
    ) -> tuple[Array, Sequence[Any]]:
        """The step of a leaf without codes, or without rounding; `given` is what the rule reads, and the step."""
        *inputs, step = given
        old = self.load(entries)
        new = rule.moments(inputs, old)
        for index, (value, before) in enumerate(zip(new, old, strict=True)):
            if np.shape(value) != np.shape(before) if isinstance(before, Array) else True:
                _check_shape(path, value, before, f"state.{self.names[index]}")
        if not rounded or not (self._rounded or self.pair):
            return rule.update(inputs, old, new), new
        stored: list[Any] = list(new)
        for index in self._rounded:
            round_ = functools.partial(_rounded, dtype=self._dtypes[index], step=step, salt=index)
            stored[index] = jax.tree.map(round_, new[index])
        if self.pair:
            first, second = self.pair
            thresholds = [_threshold(self.shape, step, salt) for salt in self.pair]
            stored[first], stored[second] = packed(new[first], new[second], *thresholds), None
        # The update is that of the moments as they are stored.
        stored = fence(step, stored)
        new = list(new)
        after = self.load(stored)
        for index in (*self._rounded, *(self.pair or ())):
            new[index] = jax.tree.map(as_stored, new[index], after[index])
        return rule.update(inputs, old, new), stored

    def _step_of_codes(
        self, rule: Halves, packing: Packing, given: Any, entries: Sequence[Any]
    ) -> tuple[Array, list[Any]]:
        asked = any(storage.implementation == "pallas" for storage in self.storages.values())
        run = in_one_pass if asked and suits(packing.layout) else in_passes
        *inputs, step = given
        update, numbers, scales = run(rule, tuple(inputs), *_parted(packing, entries), packing, step)
        return update, _joined(packing, numbers, scales)


def _parted(packing: Packing, entries: Sequence[Any]) -> tuple[dict[int, Any], dict[int, Any]]:
    """The numbers of each word and the scales of each moment, out of the entries of the state."""
    numbers: dict[int, Any] = {}
    scales: dict[int, Any] = {}
    for index, word in enumerate(packing.words):
        own = [entries[member] for member in word.members]
        # Of a pair the second moment, which is first, has the scales.
        numbers[index], joined = (own[0], None) if word.bits is None else own[::-1] if len(own) == 2 else own[0]
        scales |= dict(zip(word.members, parted_scales(joined, packing.scale_dtypes(word)), strict=True))
    return numbers, dict(sorted(scales.items()))


def _joined(
    packing: Packing,
    numbers: Mapping[int, Any],
    scales: Mapping[int, Any],
    made: Callable[[Array], Array] = lambda scale: scale,
) -> list[Any]:
    """The inverse of :func:`_parted`; `made` makes arrays of scales."""
    entries: dict[int, Any] = {}
    for index, word in enumerate(packing.words):
        first, *second = word.members
        if word.bits is None:
            entries[first] = numbers[index]
            continue
        joined = made(joined_scales([scales[member] for member in word.members]))
        if second:
            entries[first], entries[second[0]] = joined, numbers[index]
        else:
            entries[first] = Blocks(numbers[index], joined)
    return [entries[member] for member in sorted(entries)]


def of_leaves(moments: Mapping[str, Moment], chosen: Any, leaves: Iterable[tuple[Path, Any]]) -> list[LeafMoments]:
    """The moments of leaves that are given with their paths; one object for those that are alike."""
    by_path = callable(chosen) or any(moment.shape is not None for moment in moments.values())
    storages = [] if callable(chosen) else storages_of(chosen, moments, ())
    made: dict[Any, LeafMoments] = {}
    found = []
    for path, leaf in leaves:
        kind = len(found) if by_path else (np.shape(leaf), jnp.result_type(leaf))
        if kind not in made:
            own = storages_of(chosen, moments, path) if callable(chosen) else storages
            made[kind] = LeafMoments(moments, own, path, leaf)
        found.append(made[kind])
    return found


def field_of(tree: Any, entries: Sequence[Any]) -> Any:
    """The field of a state for a moment that is `entries`, one for each leaf of `tree`.

    Where entries are several arrays the field is several trees, each of an array a leaf, or None: flax's nnx makes
    trees of its own of whatever else is in a tree of parameters, and changes their types.
    """
    several = [entry for entry in entries if isinstance(entry, list | tuple)]
    if not several:
        return jax.tree.unflatten(tree, entries)
    count = max(map(len, several))
    rows = [list(entry) if isinstance(entry, list | tuple) else [entry] for entry in entries]
    rows = [[*row, *[None] * (count - len(row))] for row in rows]
    trees = [jax.tree.unflatten(tree, column) for column in zip(*rows, strict=True)]
    return Blocks(*trees) if any(isinstance(entry, Blocks) for entry in entries) else tuple(trees)


def entries_of(tree: Any, field: Any, name: str, leaves: Sequence[LeafMoments], paths: Sequence[Path]) -> list[Any]:
    """The entries of a moment for the leaves of `tree`, out of the state's `field`; what :func:`field_of` undoes.

    ValueError or TypeError if it is not of these leaves.
    """
    what = f"state.{name}"
    expected = [leaf.entries[leaf.names.index(name)] for leaf in leaves]
    counts = [len(each) if isinstance(each, list | tuple) else 0 for each in expected]
    count = max(counts, default=0)
    if not count:
        return leaves_like(tree, field, what)
    first = counts.index(count)
    coded = isinstance(expected[first], Blocks)
    if not isinstance(field, Blocks if coded else list | tuple) or len(field) != count:
        raise TypeError(
            f"{leaf_name(paths[first])}: {what} must be {'Blocks' if coded else f'a tuple of {count} trees'}, got "
            f"{_kind(field)}; the state must come from an optimizer with the same {'moments' if coded else 'arguments'}"
        )
    columns = [leaves_like(tree, each, f"{what}[{index}]") for index, each in enumerate(field)]
    rows = zip(zip(*columns, strict=True), counts, strict=True)
    made = Blocks._make if coded else list
    return [made(row[:own]) if own else row[0] for row, own in rows]


def _storage_dtype(moment: Moment, compute: np.dtype, dtype: Any) -> np.dtype:
    """The dtype in which a moment is stored as numbers, for a `dtype` that was asked for, or None."""
    if dtype is None:
        return compute
    if moment.real and jnp.dtype(dtype) == jnp.bfloat16:
        return SQUARES
    is_complex = jnp.issubdtype(compute, jnp.complexfloating)
    return jnp.promote_types(dtype, jnp.complex64) if is_complex else jnp.dtype(dtype)


def _widened(array: Array, dtype: np.dtype) -> Array:
    # An integer has no derivative, and the others shall not have one alone.
    return (jax.lax.stop_gradient(undithered(array)) if is_dithered(array.dtype) else array).astype(dtype)


def _rounded(array: Array, dtype: np.dtype, step: Array, salt: int) -> Array:
    if is_dithered(dtype):
        return dithered(array, dtype, _threshold(array.shape, step, salt))
    return array.astype(dtype)


def _threshold(shape: tuple[int, ...], step: Array, salt: int) -> Array:
    """The share of a spacing by which each element of a moment is raised before it is rounded down."""
    along = phases(shape, salt)
    if len(shape) > 1:  # or each element's would be hashed anew
        along = fence(step, along)
    places = [each.reshape(-1, *[1] * (len(shape) - 1 - axis)) for axis, each in enumerate(along)]
    return ROUNDINGS["dither"](step, places)


def _check_shape(path: Path, value: Any, before: Any, what: str) -> None:
    """ValueError unless a moment has the shape that it had `before`."""
    shape, other = (jax.tree.map(np.shape, each) for each in (before, value))
    if other != shape:
        raise ValueError(
            f"{leaf_name(path)}: {what} has {_text(shape)} and cannot become {_text(other)}, as with these "
            "hyperparameters it would; for a batch of optimizers use jax.vmap"
        )


def _placed(rule: Callable[..., Any], inputs: Any, moments: Any) -> Any:
    """``rule(inputs, moments)``, an update and moments; the compiler places what lies between.

    That is for meshes with explicit axes, on which what changes an array's shape must say where the result goes.
    """
    mesh = jax.typeof(inputs[0]).sharding.mesh
    if jax.sharding.AxisType.Explicit not in mesh.axis_types:
        return rule(inputs, moments)
    where = jax.tree.map(lambda array: jax.typeof(array).sharding.spec, (inputs[0], moments))
    with jax.sharding.use_abstract_mesh(mesh):
        anywhere: Any = jax.sharding.auto_axes(rule, out_sharding=where)
        return anywhere(inputs, moments)


def _full_beside(param: Any, shape: tuple[int, ...], value: Array) -> Array:
    """An array full of `value`, divided among devices as `param` is, if it can be."""
    if isinstance(param, jax.Array) and not isinstance(param, Tracer):
        try:
            param.sharding.shard_shape(shape)
        except ValueError:
            return jnp.full(shape, value)
        if not param.committed:
            # Else the state would be, and the next step of a jitted function be compiled for that.
            return jnp.full(shape, value)
        return jnp.full(shape, value, device=param.sharding)
    mesh = jax.typeof(param).sharding.mesh if isinstance(param, Tracer) else None
    if mesh is not None and jax.sharding.AxisType.Explicit in mesh.axis_types:
        return jnp.broadcast_to(value, shape, out_sharding=jax.typeof(param).sharding)
    return jnp.full(shape, value)


def _sharding_of_axes(param: Any, shape: tuple[int, ...]) -> jax.sharding.NamedSharding | None:
    """The sharding of a mean of the parameter's squares over some axes, if that is known: the others stay divided.

    So it starts, lest the step be compiled a second time for what it has become.
    """
    sharding = None if isinstance(param, Tracer) else getattr(param, "sharding", None)
    if not isinstance(sharding, jax.sharding.NamedSharding) or not param.committed:
        return None
    axes = [*sharding.spec, *[None] * (param.ndim - len(sharding.spec))]
    if len(shape) == param.ndim:
        axes = [axis if size == whole else None for axis, size, whole in zip(axes, shape, param.shape, strict=True)]
    else:
        left = [i for i in range(param.ndim) if (*param.shape[:i], *param.shape[i + 1 :]) == shape]
        if len(left) != 1:
            return None
        del axes[left[0]]
    return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec(*axes))


def _array_text(array: Any) -> str:
    return f"{jnp.result_type(array)}{list(np.shape(array))}"


def _kind(value: Any) -> str:
    return type(value).__name__


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple)


def _text(shapes: Any) -> str:
    return "nothing" if shapes is None else f"the shape {shapes}" if _is_shape(shapes) else f"arrays of {shapes}"
