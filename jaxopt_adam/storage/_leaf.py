"""The running statistics of a rule: how they start, how they are stored, and how they are loaded."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike

from jaxopt_adam._averages import Denominator
from jaxopt_adam._trees import Path, arithmetic_dtype, array_like, leaf_name, leaves_like, real_dtype, scalar_like
from jaxopt_adam._xla import fence
from jaxopt_adam.storage._blockwise import Blocks, Blockwise
from jaxopt_adam.storage._choice import storage_of
from jaxopt_adam.storage._dense import SQUARES, Dense, as_stored, dithered, is_dithered, undithered
from jaxopt_adam.storage._kernel import in_one_pass, suits
from jaxopt_adam.storage._layout import Layout, block_length
from jaxopt_adam.storage._pairs import packed, unpacked
from jaxopt_adam.storage._passes import Halves, Kept, in_place, loaded, unrounded, words_of
from jaxopt_adam.storage._rounding import NEAREST, ROUNDINGS, phases
from jaxopt_adam.storage._words import Word, joined_scales, parted_scales

UNROUNDED = "jaxopt_adam: unrounded"
"""The extra argument of `update` by which :func:`~jaxopt_adam.observe` asks for a step without rounding to codes.

It passes through the wrappers that pass on extra arguments, and as no identifier it is no argument of anybody's.
"""


_NOTHING_ADDED = Denominator(0.0)


@dataclasses.dataclass(frozen=True)
class Moment:
    """A running statistic of the gradient: how it starts and how it is stored.

    Args:
        initial: the number that it starts from.
        real: whether it is real also where the gradient is complex, and never negative, as an average of ``|g|²`` is.
        dtype: the dtype in which it is stored between steps; by default that of the arithmetic, at least float32.
        from_param: whether it starts as a copy of the parameter.
        shape: ``shape(path, shape of the parameter)``: the shape for one leaf, None for a leaf that goes without, or a
            list of these for several arrays; by default it has the parameter's.
        over: the name of the second moment by whose root the update divides this one, if there is one. In codes it is
            then stored as the quotient, whose error is the update's.
        denominator: what the update adds to that root.
        apart: whether it may be a thousand times that root and more, as where the second moment averages no squared
            gradients. In bfloat16 the two then share no numbers.
    """

    initial: ArrayLike = 0.0
    real: bool = False
    dtype: DTypeLike | None = None
    from_param: bool = False
    shape: Callable[[Path, tuple[int, ...]], Any] | None = None
    over: str | None = None
    denominator: Denominator = _NOTHING_ADDED
    apart: bool = False

    @property
    def added(self) -> Any:
        """About what is added to the root of the second moment in all: a Python number if it is known."""
        eps, eps_root = self.denominator
        if isinstance(eps, int | float) and isinstance(eps_root, int | float):
            return float(eps + math.sqrt(eps_root))
        # It says in what units a code is, so no derivative goes through it.
        eps, eps_root = jax.lax.stop_gradient((jnp.asarray(eps), jnp.asarray(eps_root)))
        return eps.astype(jnp.float32) + jnp.sqrt(eps_root.astype(jnp.float32))

    def awake_dtype(self, leaf: np.dtype) -> np.dtype:
        """The dtype in which this statistic of a leaf of dtype `leaf` is computed."""
        return real_dtype(arithmetic_dtype(leaf)) if self.real else arithmetic_dtype(leaf)

    def resting_dtype(self, leaf: np.dtype) -> np.dtype:
        """The dtype in which this statistic of a leaf of dtype `leaf` rests."""
        awake = self.awake_dtype(leaf)
        if self.dtype is None:
            return awake
        if self.real and jnp.dtype(self.dtype) == jnp.bfloat16:
            return SQUARES
        is_complex = jnp.issubdtype(awake, jnp.complexfloating)
        return jnp.promote_types(self.dtype, jnp.complex64) if is_complex else jnp.dtype(self.dtype)

    def start(self, path: Path, param: Any) -> Any:
        """This statistic of the parameter `param` before the first step."""
        dtype = self.resting_dtype(jnp.result_type(param))
        if self.from_param:
            return jnp.array(param, dtype)
        real = real_dtype(self.awake_dtype(jnp.result_type(param)))
        initial = jnp.asarray(scalar_like(path, param, self.initial, real))
        if is_dithered(dtype):
            initial = dithered(initial, dtype, NEAREST)

        def one(shape: tuple[int, ...]) -> Array:
            # Like the parameter where it can be, since then it lies on the same devices.
            if shape == np.shape(param):
                return jnp.full_like(param, initial, dtype)
            return jnp.full(shape, initial, dtype, device=_sharding_of_axes(param, shape))

        shapes = np.shape(param) if self.shape is None else self.shape(path, np.shape(param))
        return jax.tree.map(one, shapes, is_leaf=_is_shape)

    def checked(self, path: Path, whole: tuple[int, ...], leaf: np.dtype, resting: Any, what: str) -> Any:
        """The statistic as it is stored, in arrays, for a gradient of shape `whole` and dtype `leaf`.

        ValueError or TypeError if it does not go with that.
        """
        grad = jax.ShapeDtypeStruct(whole, leaf)
        shapes = whole if self.shape is None else self.shape(path, whole)
        expected = jax.tree.structure(shapes, is_leaf=_is_shape)
        if jax.tree.structure(resting) != expected:
            raise ValueError(
                f"{leaf_name(path)}: for a gradient of shape {whole} {what} must have {_text(shapes)}, got "
                f"{_text(jax.tree.map(np.shape, resting))}"
            )
        arrays = [
            array_like(path, grad, value, self.resting_dtype(leaf), what, shape)
            for shape, value in zip(jax.tree.leaves(shapes, is_leaf=_is_shape), jax.tree.leaves(resting), strict=True)
        ]
        return jax.tree.unflatten(expected, arrays)

    def load(self, leaf: np.dtype, stored: Any) -> Any:
        """The statistic as the arithmetic wants it."""
        dtype = self.awake_dtype(leaf)

        def one(array: Array) -> Array:
            # An integer has no derivative, and the others shall not have one alone.
            return (jax.lax.stop_gradient(undithered(array)) if is_dithered(array.dtype) else array).astype(dtype)

        return jax.tree.map(one, stored)

    def check_shape(self, path: Path, value: Any, before: Any, what: str) -> None:
        """ValueError unless the statistic has the shape that it had `before`."""
        shape, other = (jax.tree.map(np.shape, each) for each in (before, value))
        if other != shape:
            raise ValueError(
                f"{leaf_name(path)}: {what} has {_text(shape)} and cannot become {_text(other)}, as with these "
                "hyperparameters it would; for a batch of optimizers use jax.vmap"
            )

    def store(self, leaf: np.dtype, value: Any, step: Array, salt: int) -> Any:
        """The statistic as it goes into the state."""
        dtype = self.resting_dtype(leaf)
        if not is_dithered(dtype):
            return jax.tree.map(lambda array: array.astype(dtype), value)
        return jax.tree.map(lambda array: dithered(array, dtype, _threshold(array.shape, step, salt)), value)


@dataclasses.dataclass(frozen=True)
class LeafMoments:
    """The moments of one leaf, some of which may be stored in codes.

    Args:
        moments: all moments of the leaf, by name.
        storages: the storage of each moment that has codes, by name.
        pairs: the first moments that share their numbers with a second moment, and that.
        shape: the leaf's.
        dtype: the leaf's.
    """

    moments: Mapping[str, Moment]
    storages: Mapping[str, Blockwise]
    pairs: Mapping[str, str]
    shape: tuple[int, ...]
    dtype: np.dtype

    @classmethod
    def of(cls, moments: Mapping[str, Moment], chosen: Any, path: Path, leaf: Any) -> "LeafMoments":
        """The moments of a parameter or gradient, as the argument `moments` of the rules (`chosen`) has them."""
        shape, dtype = np.shape(leaf), jnp.result_type(leaf)
        own, storages, halves = dict(moments), {}, []
        for name, moment in moments.items():
            storage = storage_of(chosen, name, path)
            if moment.shape is not None or moment.from_param or storage == Dense():
                continue
            if moment.dtype is not None:
                raise ValueError(f"moments and another argument both say how {name} rests; give one of them")
            if isinstance(storage, Dense):
                own[name] = dataclasses.replace(moment, dtype=storage.dtype)
                if jnp.dtype(storage.dtype) == jnp.bfloat16 and arithmetic_dtype(dtype) == jnp.float32:
                    halves.append(name)
            elif storage.suits(shape, arithmetic_dtype(dtype)):
                storages[name] = storage
        pairs: dict[str, str] = {}
        for name in halves if not storages else []:
            over = own[name].over
            if over is not None and over in halves and over not in pairs.values() and not own[name].apart:
                pairs[name] = over
        return cls(own, storages, pairs, shape, dtype)

    def start(self, name: str, path: Path, param: Any) -> Any:
        """The moment `name` of the parameter `param` before the first step."""
        if name in self.pairs.values():
            return None
        if name in self.pairs:
            mu, nu = (jnp.asarray(self.moments[each].initial, jnp.float32) for each in (name, self.pairs[name]))
            nearest = jnp.asarray(NEAREST)
            return jnp.full_like(param, packed(mu, nu, nearest, nearest), jnp.uint32)
        if name not in self.storages:
            return self.moments[name].start(path, param)
        word = self._words[name]
        names = [list(self.moments)[member] for member in word.members]

        def codes() -> Array:
            each = [self._first(member)[0] for member in names] * (2 if word.halved else 1)
            number = word.joined([code << word.shift(place) for place, code in enumerate(each)])
            return _full_beside(param, self._layout.codes_shape(halved=word.halved), number)

        def scales() -> Array:
            scale = joined_scales([self._first(member)[1] for member in names])
            return _full_beside(param, self._layout.blocks, scale)

        if len(names) == 1:
            return Blocks(codes(), scales())
        return scales() if name == names[0] else codes()

    def arrays(self, name: str, path: Path) -> int:
        """The number of arrays of a moment that is made of several, 0 for one that is an array or None."""
        if name in self.storages:
            return 0 if len(self._words[name].members) == 2 else len(Blocks._fields)
        shape = self.moments[name].shape
        shapes = None if shape is None else shape(path, self.shape)
        return 0 if shapes is None or _is_shape(shapes) else len(shapes)

    def _first(self, name: str) -> tuple[Array, Array]:
        """The code and the scale of a moment before the first step."""
        moment = self.moments[name]
        initial = jnp.asarray(moment.initial, jnp.float32)
        if moment.over is not None and moment.over in self.moments:
            over = jnp.sqrt(jnp.asarray(self.moments[moment.over].initial, jnp.float32)) + moment.added
            initial = initial / jnp.where(over > 0, over, 1)
        return self.storages[name].start(initial, nonnegative=moment.real)

    def step(
        self, rule: Halves, path: Path, inputs: Any, resting: Sequence[Any], step: Array, *, rounded: bool = True
    ) -> tuple[Array, Sequence[Any]]:
        """The update of the leaf and its moments after the step.

        Args:
            rule: the two halves of the rule.
            path: the way to the leaf.
            inputs: what the rule reads besides the moments, the gradient first.
            resting: the moments as they are stored, in order.
            step: which step it is, from 1.
            rounded: whether moments are rounded to where they are stored; otherwise they are arrays of float32.

        Raises:
            ValueError, TypeError: if a moment does not go with the gradient, or would change its shape.
        """
        stored = self._checked(path, resting)
        if self.storages:
            if not rounded:
                return unrounded(rule, inputs, self._parted(resting), self._kept, self._layout)
            one_step = functools.partial(self._implementation, rule, kept=self._kept, layout=self._layout)

            def coded(given: Any, moments: Any) -> tuple[Array, list[Any]]:
                update, after = one_step(given[:-1], self._parted(moments), step=given[-1])
                return update, self._joined(after)

            # On a mesh with explicit axes the step is of that mesh too.
            return _placed(coded, (*inputs, step), stored)

        shared = any(moment.shape is not None for moment in self.moments.values())
        plain = functools.partial(self._plain, rule, path, rounded=rounded)
        given = *inputs, step
        return _placed(plain, given, stored) if shared or self._is_narrow else plain(given, stored)

    def _plain(
        self, rule: Halves, path: Path, given: Any, stored: Sequence[Any], *, rounded: bool
    ) -> tuple[Array, list[Any]]:
        """The step of a leaf without codes; `given` is what the rule reads, and the step."""
        inputs, step = given[:-1], given[-1]
        old = self._load(stored)
        new = rule.moments(inputs, old)
        if not rounded:
            return rule.update(inputs, old, new), list(new)
        after = self._store(path, new, old, step)
        if self._is_narrow:
            # The update is that of the moments as they are stored.
            after = fence(step, after)
            new = [
                jax.tree.map(as_stored, *each) if narrow else each[0]
                for *each, narrow in zip(new, self._load(after), self._narrow, strict=True)
            ]
        return rule.update(inputs, old, new), after

    def _load(self, stored: Sequence[Any]) -> list[Any]:
        values = [
            each if name in self._paired else moment.load(self.dtype, each)
            for (name, moment), each in zip(self.moments.items(), stored, strict=True)
        ]
        for first, second in self._places_of_pairs:
            values[first], values[second] = unpacked(jax.lax.stop_gradient(stored[first]))
        return values

    def _store(self, path: Path, values: Sequence[Any], before: Sequence[Any], step: Array) -> list[Any]:
        stored = []
        for salt, ((name, moment), value, old) in enumerate(zip(self.moments.items(), values, before, strict=True)):
            moment.check_shape(path, value, old, f"state.{name}")
            stored.append(None if name in self._paired else moment.store(self.dtype, value, step, salt))
        for first, second in self._places_of_pairs:
            thresholds = [_threshold(self.shape, step, salt) for salt in (first, second)]
            stored[first] = packed(values[first], values[second], *thresholds)
        return stored

    @functools.cached_property
    def _narrow(self) -> list[bool]:
        """For each moment, True if it is rounded when it is stored."""
        dtype = self.dtype
        return [moment.resting_dtype(dtype) != moment.awake_dtype(dtype) for moment in self.moments.values()]

    @property
    def _is_narrow(self) -> bool:
        return any(self._narrow)

    @property
    def _paired(self) -> set[str]:
        return {*self.pairs, *self.pairs.values()}

    @functools.cached_property
    def _places_of_pairs(self) -> list[tuple[int, int]]:
        names = list(self.moments)
        return [(names.index(first), names.index(second)) for first, second in self.pairs.items()]

    def load(self, path: Path, resting: Sequence[Any]) -> list[Any]:
        """The moments as the arithmetic wants them; ValueError or TypeError if they do not go with the leaf."""
        stored = self._checked(path, resting)
        return loaded(self._parted(stored), self._kept, self._layout) if self.storages else self._load(stored)

    def _checked(self, path: Path, resting: Sequence[Any]) -> list[Any]:
        """The moments as they are stored; ValueError or TypeError if they do not go with the leaf."""
        stored = []
        for (name, moment), each in zip(self.moments.items(), resting, strict=True):
            what = f"state.{name}"
            if name in self.storages:
                self._check(name, path, each, what)
                stored.append(each)
            elif name in self._paired:
                stored.append(self._checked_pair(name, path, each, what))
            else:
                stored.append(moment.checked(path, self.shape, self.dtype, each, what))
        return stored

    @property
    def block_length(self) -> int:
        """The number of elements of a block, where any moment has codes."""
        return self._layout.length

    @functools.cached_property
    def _layout(self) -> Layout:
        # One for all of the leaf's moments, so that one pass can see to them all.
        longest = min(storage.longest(math.prod(self.shape)) for storage in self.storages.values())
        lanes = 2 if any(word.halved for word in words_of(self._kept)) else 1
        return Layout(self.shape, block_length(self.shape[-1], longest), lanes)

    @functools.cached_property
    def _words(self) -> dict[str, Word]:
        """For each moment with codes the word in which they lie."""
        names = list(self.moments)
        coded = [word for word in words_of(self._kept) if word.bits is not None]
        return {names[member]: word for word in coded for member in word.members}

    @property
    def _implementation(self) -> Callable[..., tuple[Array, list[Any]]]:
        """The function that takes the step of a leaf with codes."""
        asked = any(storage.implementation == "pallas" for storage in self.storages.values())
        return in_one_pass if asked and suits(self._layout) else in_place

    @property
    def _kept(self) -> list[Kept]:
        names = list(self.moments)
        return [
            Kept(
                code=self.storages[name].code(nonnegative=moment.real) if name in self.storages else None,
                dtype=moment.resting_dtype(self.dtype),
                over=names.index(moment.over) if moment.over in names else None,
                eps=moment.added,
                rounding=self.storages[name].rounding if name in self.storages else "nearest",
            )
            for name, moment in self.moments.items()
        ]

    def _pairs(self) -> list[tuple[int, ...]]:
        """The places of each second moment whose numbers have a first moment's codes too, and of that."""
        return [word.members for word in words_of(self._kept) if len(word.members) == 2]

    def _parted(self, resting: Sequence[Any]) -> list[Any]:
        """Moments as they are in the state, with Blocks for each that has codes; a first of two then has no numbers."""
        blocks = list(resting)
        for second, first in self._pairs():
            scales = parted_scales(resting[second], [self._scale_dtype(place) for place in (second, first)])
            blocks[second], blocks[first] = Blocks(resting[first], scales[0]), Blocks(None, scales[1])
        return blocks

    def _joined(self, blocks: Sequence[Any]) -> list[Any]:
        """The inverse of :meth:`_parted`."""
        resting = list(blocks)
        for second, first in self._pairs():
            scales = joined_scales([blocks[second].scales, blocks[first].scales])
            resting[second], resting[first] = scales, blocks[second].codes
        return resting

    def _scale_dtype(self, place: int) -> np.dtype:
        name = list(self.moments)[place]
        return self.storages[name].code(nonnegative=self.moments[name].real).scale_dtype

    def _checked_pair(self, name: str, path: Path, stored: Any, what: str) -> Any:
        """A moment that shares its numbers with another as it is stored; ValueError if it is not."""
        is_first = name in self.pairs
        numbers = None if stored is None or not jax.tree_util.all_leaves([stored]) else jnp.asarray(stored)
        if is_first and numbers is not None and (numbers.dtype, numbers.shape) == (jnp.uint32, self.shape):
            return numbers
        if not is_first and stored is None:
            return None
        got = _kind(stored) if numbers is None else f"{numbers.dtype}{list(numbers.shape)}"
        expected = f"uint32{list(self.shape)}, with state.{self.pairs[name]}," if is_first else "None"
        raise ValueError(
            f"{leaf_name(path)}: {what} must be {expected} in bfloat16, got {got}; the state must come from an "
            "optimizer with the same moments"
        )

    def _check(self, name: str, path: Path, resting: Any, what: str) -> None:
        """ValueError unless a moment with codes is what it should be."""
        word = self._words[name]
        names = [list(self.moments)[member] for member in word.members]
        codes = word.dtype, self._layout.codes_shape(halved=word.halved)
        scales = jnp.uint32 if len(names) == 2 else self._scale_dtype(word.members[0]), self._layout.blocks
        expected = [codes, scales] if len(names) == 1 else [scales] if name == names[0] else [codes]
        parts = list(resting) if isinstance(resting, Blocks) else [resting]
        fits = jax.tree_util.all_leaves(parts) and None not in parts
        if fits and [(jnp.result_type(each), np.shape(each)) for each in parts] == expected:
            return
        of = " and ".join(names[::-1])
        kinds = ("codes", "scales") if len(names) == 1 else ("scales",) if name == names[0] else ("codes",)
        wanted = " and ".join(
            f"{kind} {np.dtype(dtype)}{list(shape)}" for kind, (dtype, shape) in zip(kinds, expected, strict=True)
        )
        got = (
            " and ".join(f"{jnp.result_type(each)}{list(np.shape(each))}" for each in parts) if fits else _kind(resting)
        )
        raise ValueError(
            f"{leaf_name(path)}: {what} must be {wanted} of {of} in {self.storages[name].bits} bits, got {got}; the "
            "state must come from an optimizer with the same moments"
        )


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
    counts = [leaf.arrays(name, path) for leaf, path in zip(leaves, paths, strict=True)]
    count = max(counts, default=0)
    if not count:
        return leaves_like(tree, field, what)
    first = counts.index(count)
    coded = name in leaves[first].storages
    if not isinstance(field, Blocks if coded else list | tuple) or len(field) != count:
        raise TypeError(
            f"{leaf_name(paths[first])}: {what} must be {'Blocks' if coded else f'a tuple of {count} trees'}, got "
            f"{_kind(field)}; the state must come from an optimizer with the same {'moments' if coded else 'arguments'}"
        )
    columns = [leaves_like(tree, each, f"{what}[{index}]") for index, each in enumerate(field)]
    rows = zip(zip(*columns, strict=True), counts, strict=True)
    made = Blocks._make if coded else list
    return [made(row[:own]) if own else row[0] for row, own in rows]


def _threshold(shape: tuple[int, ...], step: Array, salt: int) -> Array:
    """The share of a spacing by which each element of a moment is raised before it is rounded down."""
    along = phases(shape, salt)
    if len(shape) > 1:  # or each element's would be hashed anew
        along = fence(step, along)
    places = [each.reshape(-1, *[1] * (len(shape) - 1 - axis)) for axis, each in enumerate(along)]
    return ROUNDINGS["dither"](step, places)


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


def _kind(value: Any) -> str:
    return type(value).__name__


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple)


def _text(shapes: Any) -> str:
    return "nothing" if shapes is None else f"the shape {shapes}" if _is_shape(shapes) else f"arrays of {shapes}"
