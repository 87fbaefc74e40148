"""Trees of parameters and gradients: leaves with their paths, dtypes of the arithmetic, errors that name the leaf."""

import collections
import functools
import math
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from jaxopt_adam._axes import unboxed
from jaxopt_adam._shown import shown

Path = tuple[Any, ...]
"""The path of a leaf, as in :func:`jax.tree_util.tree_flatten_with_path`."""


@functools.cache
def arithmetic_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype in which leaves of a floating-point or complex `dtype` are computed: float32 at least."""
    return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else jnp.dtype(dtype)


@functools.cache
def real_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype of the real part of numbers of a floating-point or complex `dtype`."""
    return jnp.finfo(dtype).dtype


def inexact_dtype(path: Path, leaf: Any, *, real: bool = False) -> np.dtype:
    """The dtype of a leaf; TypeError unless it is a floating-point or complex one, or with `real` not complex."""
    dtype = _dtype(leaf, "", path)
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise TypeError(
            f"{leaf_name(path)} must have a floating-point dtype, got {dtype}; leave it out with optax.masked or "
            "optax.partition, or keep it out of the tree of parameters"
        )
    if real and jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(
            f"{leaf_name(path)} must be real for this rule, which has no meaning for complex numbers, got {dtype}"
        )
    return dtype


def array_like(
    path: Path, grad: Any, value: Any, dtype: np.dtype | None, what: str, shape: tuple[int, ...] | None = None
) -> Array:
    """`value` as an array, which must have `shape`, by default that of the gradient at `path`, and `dtype`.

    If `dtype` is None, any floating-point dtype is right; where the gradient is complex, any complex one.
    """
    shape = np.shape(grad) if shape is None else shape
    is_leaf = jax.tree_util.all_leaves([value])
    if not is_leaf or np.shape(value) != shape:
        raise ValueError(
            f"{leaf_name(path)}: for a gradient of shape {np.shape(grad)} {what} must have shape {shape}, got "
            f"{np.shape(value) if is_leaf else jax.tree.structure(value)}"
        )
    given, wanted = _dtype(value, f": {what}", path), jnp.result_type(grad)
    if dtype is not None and given != dtype:
        raise TypeError(
            f"{leaf_name(path)}: for a gradient of dtype {wanted} {what} must have dtype {dtype}, got {given}; give "
            "init parameters of the dtype that the gradients have"
        )
    kind = jnp.complexfloating if jnp.issubdtype(wanted, jnp.complexfloating) else jnp.floating
    if dtype is None and not jnp.issubdtype(given, kind):
        expected = "complex" if kind is jnp.complexfloating else "floating-point"
        raise TypeError(
            f"{leaf_name(path)}: for a gradient of dtype {wanted} {what} must have a {expected} dtype, got {given}"
        )
    return jnp.asarray(value)


def scalar_like(path: Path, grad: Any, scalar: ArrayLike, dtype: np.dtype) -> Array:
    """`scalar` in `dtype`: a real number, or an array that broadcasts to the leaf `grad` at `path`."""
    if jnp.issubdtype(_dtype(scalar, ": a hyperparameter", path), jnp.complexfloating):
        raise TypeError(f"{leaf_name(path)}: a hyperparameter must be real, got {scalar}")
    shape = np.shape(scalar)
    pairs = zip(shape[::-1], np.shape(grad)[::-1], strict=False)
    if len(shape) > np.ndim(grad) or any(size not in (1, whole) for size, whole in pairs):
        raise ValueError(
            f"{leaf_name(path)}: a hyperparameter of shape {shape} does not broadcast to the leaf's shape "
            f"{np.shape(grad)}; for a batch of optimizers use jax.vmap"
        )
    return jnp.asarray(scalar, dtype)


def fields(state: Any, *names: str, of: Any = None) -> list[Any]:
    """The fields of a state, which must have them.

    Args:
        state: the state, or a mapping from the names of its fields, as some checkpoints restore it.
        *names: the fields.
        of: the type of state that is expected, or a :class:`functools.partial` of it. A named tuple of another name is
            refused, since its fields may be called the same and mean something else. So is a mapping that has further
            fields. If `of` is None, any type is right.

    Raises:
        TypeError: if the state is of another type, lacks a field, or has random keys in one; or if `count` is no
            integer.
    """
    while isinstance(of, functools.partial):
        of = of.func
    known: tuple[str, ...] | None = getattr(of, "_fields", None)
    if known and isinstance(state, tuple) and hasattr(state, "_fields") and type(state).__name__ != of.__name__:
        raise TypeError(
            f"state must be {_a(of.__name__)}, as what init returns is, got {_a(type(state).__name__)}; "
            "jaxopt_adam.from_optax takes over a state of optax's"
        )
    if isinstance(state, Mapping):
        unknown = [name for name in state if known and name not in known and state[name] is not None]
        if unknown:
            raise TypeError(f"state must have the fields {', '.join(known or ())}, got {unknown[0]!r} too")
        state = types.SimpleNamespace(**{str(name): value for name, value in state.items()})
    values: dict[str, Any] = {name: getattr(state, name, None) for name in names}
    for name in names:
        # Lists and tuples have a method of that name.
        if not hasattr(state, name) or (name == "count" and callable(state.count)):
            is_of_optax = any(map(_is_of_optax, jax.tree.leaves(state, is_leaf=_is_of_optax)))
            hint = "; jaxopt_adam.from_optax takes over a state of optax's" if is_of_optax else ""
            raise TypeError(f"state must have {name}, as what init returns has, got {type(state).__name__}{hint}")
    for name, value in values.items():
        # Of keys of random numbers, as a state may hold, nothing else would say where they are.
        dtype = getattr(value, "dtype", None)
        if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.extended):
            raise TypeError(f"state.{name} must be numbers, got {dtype}")
    if "count" in names:
        dtype, shape = _dtype(values["count"], "state.count"), np.shape(values["count"])
        if shape or not jnp.issubdtype(dtype, jnp.integer):
            raise TypeError(f"state.count must be a scalar of an integer dtype, got the shape {shape} and {dtype}")
    return list(values.values())


def _is_of_optax(node: Any) -> bool:
    """True for a state of optax's."""
    return hasattr(node, "_fields") and type(node).__module__.partition(".")[0] == "optax"


def real_scalars(*values: Any, of: tuple[str, ...]) -> list[Array]:
    """Fields of a state, by the names `of`, that must be real numbers; TypeError if one is not."""
    for name, value in zip(of, values, strict=True):
        dtype, shape = _dtype(value, f"state.{name}"), np.shape(value)
        if shape or not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"state.{name} must be a scalar of a floating-point dtype, got the shape {shape} and {dtype}"
            )
    return list(map(jnp.asarray, values))


def with_gradient(updates: Any, params: Any) -> Any:
    """The parameters without those that have no gradient: None wherever `updates` has None.

    A model may have leaves that are not parameters, such as functions, and gradients for only a part of it.
    """
    if params is None or jax.tree.structure(updates) == jax.tree.structure(params):
        return params
    grads, tree = jax.tree.flatten(updates, is_leaf=lambda node: node is None)
    try:
        parts = tree.flatten_up_to(params)
    except ValueError:  # another tree, which the error of what comes next names
        return params
    return tree.unflatten([None if grad is None else part for grad, part in zip(grads, parts, strict=True)])


def placed(state: Any, params: Any) -> Any:
    """`state`, with its uncommitted arrays put on the devices of the parameters, a copy on each.

    Parameters that lie on a mesh make a step of that mesh, whose results do too. So a scalar that started on a single
    device would come back on all, and the step would be compiled twice. Where the parameters do not share their
    devices, or are not committed themselves, the state is left as it is.
    """
    arrays = [leaf for leaf in jax.tree.leaves(params) if isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer)]
    shardings = [leaf.sharding for leaf in arrays if leaf.committed]
    if not shardings or any(each.device_set != shardings[0].device_set for each in shardings):
        return state
    meshes = [each.mesh for each in shardings if isinstance(each, jax.sharding.NamedSharding)]
    if meshes:
        where = jax.sharding.NamedSharding(meshes[0], jax.sharding.PartitionSpec())
    elif len(shardings[0].device_set) == 1:
        where = shardings[0]
    else:
        return state

    def put(leaf: Any) -> Any:
        is_free = isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer) and not leaf.committed
        return jax.device_put(leaf, where) if is_free else leaf

    return jax.tree.map(put, state)


def on_explicit_axes(tree: Any) -> bool:
    """True if the first leaf of the tree is on a mesh with explicit axes."""
    first = next(iter(jax.tree.leaves(tree)), None)
    return isinstance(first, Array) and jax.sharding.AxisType.Explicit in jax.typeof(first).sharding.mesh.axis_types


def with_auto_axes(function: Callable[..., Any], arguments: tuple[Any, ...], outputs: Any = None) -> Any:
    """``function(*arguments)``, in which the compiler places all arrays.

    This is for meshes with explicit axes. There an operation that changes an array's shape would have to say where its
    result lies.

    Args:
        function: the function.
        arguments: trees of arrays, all on one mesh.
        outputs: a tree of arrays like the results, which are placed as these are; None for results that each device has
            whole.
    """
    if not on_explicit_axes(arguments):
        return function(*arguments)
    mesh = jax.typeof(jax.tree.leaves(arguments)[0]).sharding.mesh
    where = jax.sharding.PartitionSpec()
    if outputs is not None:
        where = jax.tree.map(lambda array: jax.typeof(array).sharding.spec, outputs)
    with jax.sharding.use_abstract_mesh(mesh):
        anywhere: Any = jax.sharding.auto_axes(function, out_sharding=where)
        return anywhere(*arguments)


def within_shard_map() -> bool:
    """True while a function is traced for :func:`jax.shard_map`, which shows it each device's part."""
    return jax.sharding.AxisType.Manual in jax.sharding.get_abstract_mesh().axis_types


def varying_axes(array: Any) -> frozenset[str]:
    """The axes of a mesh over which an array differs from device to device, within :func:`jax.shard_map`.

    None are known where that was told not to look, by ``check_vma=False``.
    """
    if not isinstance(array, Tracer):
        return frozenset()
    kind = jax.typeof(array)
    varying = getattr(getattr(kind, "manual_axis_type", None), "varying", None)
    # The name that JAX 0.9 has for it.
    return frozenset(getattr(kind, "vma", ()) if varying is None else varying)


def refuse_part(path: Path, array: Any, why: str) -> None:
    """ValueError where an array may be a device's part of a leaf, within :func:`jax.shard_map`; `why` that matters."""
    axes = varying_axes(array)
    if axes and jnp.ndim(array):
        raise ValueError(
            f"{leaf_name(path)}: within jax.shard_map each device may have a part of it only, because it varies over "
            f"{', '.join(map(repr, sorted(axes)))}; {why}. Call update outside of shard_map, where the compiler "
            "divides the step among the devices; or, if each device has a leaf of its own, give shard_map "
            "check_vma=False"
        )


def leaves_like(tree: Any, other: Any, what: str) -> list[Any]:
    """The leaves of `other`, which must have the structure `tree`, the gradients'; ValueError names what differs."""
    try:
        return tree.flatten_up_to(other)
    except ValueError:
        pass
    grads = jax.tree.unflatten(tree, range(tree.num_leaves))
    try:
        # Boxes around arrays of another shape name other axes.
        return jax.tree.structure(unboxed(grads)).flatten_up_to(unboxed(other))
    except ValueError:
        pass
    path, part, other_part = _first_difference(grads, other, ()) or ((), grads, other)
    given, expected = _paths(path, part), _paths(path, other_part)
    why = [f"the gradients have no leaf {name}" for name in expected if name and name not in given]
    why += [f"{what} has no leaf {name}" for name in given if name and name not in expected]
    where = f"at {jax.tree_util.keystr(path)} " if path else ""
    structures = jax.tree.structure(part), jax.tree.structure(other_part)
    why += [f"{where}the gradients are {structures[0]}, and {what} is {structures[1]}"]
    raise ValueError(f"the gradients must have the same tree as {what}, but {why[0]}")


def is_schedule(node: Any) -> bool:
    """True for a function of the count; a model that can be called is a tree, and not a schedule."""
    is_leaf = jax.tree_util.all_leaves([node]) or isinstance(node, jax.tree_util.Partial)
    return callable(node) and (is_leaf or hasattr(type(node), "is_schedule"))


def entry_of(prefix: Any, *likes: Any) -> Callable[[Any], bool]:
    """The test for the entries of a tree of numbers and schedules, or of a prefix: `is_leaf` for the tree.

    Functions are entries, unless the tree has the whole structure of one of `likes`, as a model has that can be called.
    """
    structure = jax.tree.structure(prefix, is_leaf=is_schedule)
    return is_schedule if any(jax.tree.structure(like) == structure for like in likes) else callable


def broadcast_prefix(prefix: Any, params: Any, what: str, is_leaf: Callable[[Any], bool] = callable) -> list[Any]:
    """The entry of `prefix` for each leaf of `params`; `prefix` must have the tree of `params`, or a prefix of it.

    What `is_leaf` is true of is an entry. So functions are entries, see :func:`entry_of`.
    """
    is_entry = entry_of(prefix, params)
    entries: list[Any] = []
    try:
        jax.tree.map(
            lambda entry, part: entries.extend([entry] * len(jax.tree.leaves(part))),
            prefix,
            params,
            is_leaf=is_leaf if is_entry is callable else is_entry,
        )
    except ValueError as error:
        heads = [path for path, _ in jax.tree_util.tree_leaves_with_path(prefix, is_leaf=is_leaf)]
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        why = [
            f"they have no {jax.tree_util.keystr(head)}"
            for head in heads
            if not any(path[: len(head)] == head for path in paths)
        ]
        why += [
            f"it has nothing for {leaf_name(path)}"
            for path in paths
            if not any(path[: len(head)] == head for head in heads)
        ]
        raise ValueError(
            f"{what} must have the tree of the parameters, or a prefix of it, but {why[0] if why else error}"
        ) from None
    return entries


def choose(tree: Any, chosen: list[bool], one: Any, other: Any, what: str) -> Any:
    """The tree that has, for each leaf of `tree`, the entry of `one` where it is chosen and of `other` where not.

    Both are prefixes of the tree, whose entries may be functions.
    """
    entries = zip(chosen, broadcast_prefix(one, tree, what), broadcast_prefix(other, tree, what), strict=True)
    return jax.tree.unflatten(jax.tree.structure(tree), [a if first else b for first, a, b in entries])


def inner_product(one: Any, other: Any) -> ArrayLike:
    """Re⟨one, other⟩ over two trees of like arrays, in the wider of their dtypes."""
    # Not as a dot product, for which leaves that are sharded would be gathered, and accelerators round to fewer digits.
    return optax.tree.sum(jax.tree.map(lambda x, y: jnp.real(jnp.conj(x) * y), one, other))


def leaf_name(path: Path) -> str:
    """A leaf as errors call it."""
    return f"leaf {jax.tree_util.keystr(path)}" if path else "the only leaf"


def _a(name: str) -> str:
    return f"an {name}" if name[:1] in "AEIO" else f"a {name}"


def _dtype(value: Any, what: str, path: Path | None = None) -> np.dtype:
    """The dtype of a number or an array, `what` at a leaf's `path`; TypeError if it is neither."""
    try:
        if value is not None:  # which would be the default dtype
            return jnp.result_type(value)
    except TypeError:
        pass
    where = "" if path is None else leaf_name(path)
    raise TypeError(f"{where}{what} must be an array, got {shown(value)}")


def _first_difference(one: Any, other: Any, path: Path) -> tuple[Path, Any, Any] | None:
    """The first nodes that two trees differ in, and their path; a leaf of the one may be anything in the other."""
    (parts, node), (other_parts, other_node) = (
        jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda part, tree=tree: part is not tree)
        for tree in (one, other)
    )
    if jax.tree_util.all_leaves([one]):
        return None
    if node != other_node:
        return path, one, other
    pairs = zip(parts, other_parts, strict=True)
    differences = (_first_difference(part, other_part, path + key) for (key, part), (_, other_part) in pairs)
    return next((each for each in differences if each), None)


def _paths(path: Path, tree: Any) -> list[str]:
    """The names of the leaves of what lies at `path`."""
    return [jax.tree_util.keystr(path + rest) for rest, _ in jax.tree_util.tree_leaves_with_path(tree)]


def nbytes(tree: Any, *, on_each_device: bool = False) -> int:
    r"""The bytes of all arrays of a tree: of parameters, of a state, of shapes that are not allocated yet.

    .. math::
        \sum_i n_i b_i

    with n the number of elements of an array and b the bytes of one element. An array counts once and as a whole,
    whether it is divided among devices or copied to each of them. With `on_each_device`, n is the number of elements
    that one device has.

    Args:
        tree: JAX and NumPy arrays, random keys among them, :class:`jax.ShapeDtypeStruct`, and Python's numbers, which
            count as the arrays that JAX makes of them.
        on_each_device: whether to count only what one device has. If the devices differ, it is the device that has
            most. An array without a sharding counts as a whole.

    Returns:
        The number of bytes.

    Raises:
        TypeError: if a leaf is none of these; the error names its path.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxopt_adam import adamw, nbytes
        >>> params = jax.ShapeDtypeStruct((4096, 4096), jnp.float32)  # nothing is allocated
        >>> for moments in ("float32", "int8"):
        ...     state = jax.eval_shape(adamw(1e-3, moments=moments).init, params)
        ...     print(f"{nbytes(state) / params.size:.2f} bytes a parameter")
        8.00 bytes a parameter
        2.03 bytes a parameter
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if not on_each_device:
        return sum(_one(path, leaf) for path, leaf in leaves)
    everywhere, by_device = 0, collections.Counter()
    for path, leaf in leaves:
        sharding = getattr(leaf, "sharding", None)
        size = _one(path, leaf, None if sharding is None else sharding.shard_shape(leaf.shape))
        mesh = getattr(sharding, "mesh", None)
        if sharding is None or isinstance(mesh, jax.sharding.AbstractMesh):
            everywhere += size
        else:
            by_device.update(dict.fromkeys(sharding.device_set, size))
    return everywhere + max(by_device.values(), default=0)


def _one(path: Path, leaf: Any, shape: tuple[int, ...] | None = None) -> int:
    if type(leaf) in (bool, int, float, complex):
        return jnp.result_type(type(leaf)).itemsize
    if not isinstance(leaf, _ARRAYS) or not any(jnp.issubdtype(leaf.dtype, kind) for kind in _KINDS):
        raise TypeError(
            f"{leaf_name(path)} must be an array of numbers or of keys, a jax.ShapeDtypeStruct or a number, got "
            f"{shown(leaf)}"
        )
    return math.prod(leaf.shape if shape is None else shape) * leaf.dtype.itemsize


_ARRAYS = (jax.Array, jax.ShapeDtypeStruct, np.ndarray, np.generic)
_KINDS = (np.number, np.bool_, jax.dtypes.float0, jax.dtypes.prng_key)
