"""Where a state lives on a mesh: its shardings before any array is made, and a table of what each device holds."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from jaxopt_adam._notes import noting
from jaxopt_adam._trees import Path, leaf_name, nbytes
from jaxopt_adam.storage._leaves import storage_of_leaves
from jaxopt_adam.storage._placing import number_of_parts


def state_shardings(
    optimizer: Any, params: Any, *, cut: str | Sequence[str] | None = None, memory_kind: str | None = None
) -> Any:
    """The sharding of each array of an optimizer's state. No array is made.

    Without `cut` each moment lies as its parameter does: fully sharded data parallelism (FSDP) and tensor parallelism.
    Statistics of another shape are divided along the axes that they share with their parameter, in whole blocks. Codes
    lie as the parameter, and their scales too as far as each device has whole blocks.

    With `cut` the state is divided further, as in ZeRO-1: the parameters stay whole, and each device has a part of the
    state and computes a part of the step. The axes of the mesh are added to the first axis of each array that they
    divide. The last axis of a leaf with moments in codes is divided in whole blocks only. Where nothing divides, the
    array stays as its parameter is. :func:`placement` shows which do.

    Give the result to ``jax.jit(optimizer.init, out_shardings=...)``, and to the step's `out_shardings`, so that the
    state stays where it is.

    Args:
        optimizer: any transformation with `init`: an :class:`~jaxopt_adam.Optimizer`, a composition or wrapper, or
            optax's.
        params: arrays or :class:`jax.ShapeDtypeStruct`, each with a :class:`~jax.sharding.NamedSharding`, all on one
            mesh. That may be an :class:`~jax.sharding.AbstractMesh` of more devices than there are.
        cut: the name of an axis of the mesh, or several; None for no further division.
        memory_kind: the memory in which the state is kept, such as ``"pinned_host"``; None for that of the parameters.

    Returns:
        A tree like the state's, of NamedSharding.

    Raises:
        TypeError: if a parameter has no NamedSharding; the error names its path.
        ValueError: if the parameters are not on one mesh, if `cut` is no axis of it, or if the devices have no memory
            of that kind.

    References:
        Rajbhandari et al., ZeRO: Memory Optimizations Toward Training Trillion Parameter Models, 2020.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec
        >>> from jaxopt_adam import adamw, state_shardings
        >>> mesh = AbstractMesh((8,), ("data",), axis_types=(AxisType.Auto,))
        >>> whole = NamedSharding(mesh, PartitionSpec())
        >>> params = {"w": jax.ShapeDtypeStruct((512, 256), jnp.float32, sharding=whole)}
        >>> print(tuple(state_shardings(adamw(1e-3), params, cut="data").mu["w"].spec))
        ('data', None)
    """
    return jax.tree.map(
        lambda struct: struct.sharding, abstract_state(optimizer, params, cut=cut, memory_kind=memory_kind)
    )


def abstract_state(
    optimizer: Any, params: Any, *, cut: str | Sequence[str] | None = None, memory_kind: str | None = None
) -> Any:
    """The shape, dtype and sharding of each array of an optimizer's state. No array is made.

    It is what a checkpoint is restored to, what ``jax.jit(step).lower`` takes in place of a state, and what
    :func:`~jaxopt_adam.nbytes` and :func:`placement` measure.

    Args:
        optimizer: as for :func:`state_shardings`.
        params: as for :func:`state_shardings`.
        cut: as for :func:`state_shardings`.
        memory_kind: as for :func:`state_shardings`.

    Returns:
        A tree like the state's, of :class:`jax.ShapeDtypeStruct` with the shardings of :func:`state_shardings`.

    Raises:
        TypeError: as :func:`state_shardings`.
        ValueError: as :func:`state_shardings`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec
        >>> from jaxopt_adam import abstract_state, adamw, nbytes
        >>> mesh = AbstractMesh((64,), ("data",), axis_types=(AxisType.Auto,))
        >>> whole = NamedSharding(mesh, PartitionSpec())
        >>> params = {"w": jax.ShapeDtypeStruct((8192, 4096), jnp.float32, sharding=whole)}
        >>> state = abstract_state(adamw(1e-3), params, cut="data")
        >>> print(nbytes(state), nbytes(state, on_each_device=True))
        268435460 4194308
    """
    structs = jax.tree_util.tree_map_with_path(_struct, params)
    leaves = jax.tree.leaves(structs)
    if not leaves:
        raise ValueError("params must have at least one leaf, from whose sharding the mesh is known")
    mesh = leaves[0].sharding.mesh
    for path, leaf in jax.tree_util.tree_leaves_with_path(structs):
        if leaf.sharding.mesh.shape_tuple != mesh.shape_tuple:
            raise ValueError(
                f"{leaf_name(path)} must be on the mesh of the other parameters, {mesh}, got {leaf.sharding.mesh}"
            )
    names = [cut] if isinstance(cut, str) else list(cut or ())
    for name in names:
        if name not in mesh.axis_names:
            raise ValueError(f"cut must be an axis of the mesh, one of {', '.join(mesh.axis_names)}, got {name!r}")
    _check_memory(mesh, memory_kind)
    kind = leaves[0].sharding.memory_kind if memory_kind is None else memory_kind
    uncut: list[Path] = []
    if names:
        blocks = _numbers_of_blocks(optimizer, structs)

        def cut_param(path: Path, leaf: Any) -> Any:
            counts = blocks.get(path, [])
            spec = _cut_spec(leaf.sharding, leaf.shape, names, counts)
            if spec is None:
                uncut.append(path)
            return leaf if spec is None else _like(leaf, NamedSharding(mesh, spec))

        structs = jax.tree_util.tree_map_with_path(cut_param, structs)
    state = _probed(optimizer, structs, mesh)

    def placed(path: Path, leaf: Any) -> jax.ShapeDtypeStruct:
        spec = PartitionSpec() if leaf.sharding is None else leaf.sharding.spec
        is_statistic = jax.numpy.issubdtype(leaf.dtype, np.inexact) and not any(_ends(path, end) for end in uncut)
        if names and is_statistic:
            spec = _cut_spec(NamedSharding(mesh, spec), leaf.shape, names) or spec
        return _like(leaf, NamedSharding(mesh, spec, memory_kind=kind))

    return jax.tree_util.tree_map_with_path(placed, state)


def _struct(path: Path, leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None)
    if not isinstance(sharding, NamedSharding):
        what = sharding
        if sharding is None:
            what = "one without" if isinstance(leaf, jax.ShapeDtypeStruct) else type(leaf).__name__
        raise TypeError(
            f"{leaf_name(path)} must be an array or a jax.ShapeDtypeStruct with a NamedSharding, got {what}"
        )
    return _like(leaf, sharding)


def _like(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _check_memory(mesh: Any, kind: str | None) -> None:
    """ValueError if the devices of the mesh have no memory of that kind; those of an abstract mesh are not known."""
    if kind is None or isinstance(mesh, AbstractMesh):
        return
    known = sorted({memory.kind for memory in mesh.devices.flat[0].addressable_memories()})
    if kind not in known:
        raise ValueError(f"memory_kind must be one of {', '.join(known)} on {mesh.devices.flat[0]}, got {kind!r}")


def _probed(optimizer: Any, structs: Any, mesh: Any) -> Any:
    """The state of these parameters as structures with specs, which `init` reads and makes on explicit axes."""
    explicit = AbstractMesh(mesh.axis_sizes, mesh.axis_names, axis_types=(AxisType.Explicit,) * len(mesh.axis_names))
    structs = jax.tree.map(lambda leaf: _like(leaf, NamedSharding(explicit, leaf.sharding.spec)), structs)
    with jax.sharding.use_abstract_mesh(explicit):
        return jax.eval_shape(optimizer.init, structs)


def _numbers_of_blocks(optimizer: Any, structs: Any) -> dict[Path, list[int]]:
    """The numbers of blocks along the last axis of each leaf whose moments are in codes, by its path."""
    found: dict[Path, list[int]] = {}

    def look(params: Any) -> None:
        with noting() as notes:
            optimizer.init(params)
        for _, what in notes:
            if "moments" not in what:
                continue
            leaves = jax.tree_util.tree_leaves_with_path(what["params"])
            for (path, _), leaf in zip(
                leaves, storage_of_leaves(what["moments"], what["storage"], leaves), strict=True
            ):
                if leaf.blocks is not None:
                    found.setdefault(path, []).append(leaf.blocks)

    jax.eval_shape(look, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), structs))
    return found


def _cut_spec(
    sharding: NamedSharding, shape: tuple[int, ...], names: Sequence[str], blocks: Iterable[int] = ()
) -> PartitionSpec | None:
    """The spec with further axes of the mesh, at the first axis that they divide; None if there is none.

    It is the spec itself where it has one of them already. The numbers of `blocks` are those of the last axis.
    """
    spec: list[Any] = [*sharding.spec, *[None] * (len(shape) - len(sharding.spec))]
    own = list(map(_names, spec))
    if any(name in entry for entry in own for name in names):
        return PartitionSpec(*spec)
    for axis, size in enumerate(shape):
        together = (*own[axis], *names)
        lengths = [size, *(blocks if axis == len(shape) - 1 else ())]
        if size and all(length % number_of_parts(sharding.mesh, together) == 0 for length in lengths):
            name, *others = together
            spec[axis] = together if others else name
            return PartitionSpec(*spec)
    return None


def _names(entry: Any) -> tuple[str, ...]:
    """The axes of the mesh in an entry of a spec."""
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def _ends(path: Path, end: Path) -> bool:
    return not end or path[-len(end) :] == end


# ----------------------------------------------------------------------------------------------------------- the table


@dataclasses.dataclass(frozen=True)
class PlacedArray:
    """Where an array of a tree lives.

    Args:
        name: its path in the tree.
        text: its dtype and shape.
        spec: how it is divided, as text; "whole" for an array that every device of its mesh has a copy of.
        nbytes: its bytes.
        nbytes_on_each_device: the bytes of the part that a device has.
        is_whole: whether a mesh of several devices has it whole on each of them.
    """

    name: str
    text: str
    spec: str
    nbytes: int
    nbytes_on_each_device: int
    is_whole: bool


_FEW = 4
"""The largest number of single numbers that have a row each in the text of a placement."""


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where the arrays of a tree live; as text a table of them, the largest part first, and many numbers in one row.

    Args:
        arrays: one :class:`PlacedArray` for each array.
        nbytes: the bytes of all.
        nbytes_on_each_device: the largest number of bytes that any device has.
        large: from how many bytes on an array is large.
    """

    arrays: tuple[PlacedArray, ...]
    nbytes: int
    nbytes_on_each_device: int
    large: int

    @property
    def whole(self) -> tuple[PlacedArray, ...]:
        """The large arrays that each device has a copy of."""
        return tuple(array for array in self.arrays if array.is_whole and array.nbytes >= self.large)

    def __str__(self) -> str:
        marked = set(map(id, self.whole))
        rows = [("array", "", "divided", "bytes", "on each device")]
        numbers = [array for array in self.arrays if array.text.endswith("[]")]
        numbers = numbers if len(numbers) > _FEW else []
        arrays = [array for array in self.arrays if array not in numbers]
        for array in sorted(arrays, key=lambda each: -each.nbytes_on_each_device):
            spec = f"{array.spec} (!)" if id(array) in marked else array.spec
            rows.append((array.name, array.text, spec, f"{array.nbytes:,}", f"{array.nbytes_on_each_device:,}"))
        if numbers:
            size, part = (sum(getattr(each, name) for each in numbers) for name in ("nbytes", "nbytes_on_each_device"))
            rows.append((f"{len(numbers)} numbers", "", "", f"{size:,}", f"{part:,}"))
        rows.append(("all", "", "", f"{self.nbytes:,}", f"{self.nbytes_on_each_device:,}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.rjust(width) if index > 2 else cell.ljust(width)
                for index, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        if marked:
            lines.append(f"(!) large, at least {self.large:,} bytes, and whole on every device: {len(marked)}")
        return "\n".join(lines)

    __repr__ = __str__


def placement(tree: Any, *, large: int = 2**20) -> Placement:
    """A table of where the arrays of a tree live, and of the bytes that each device has of them.

    Args:
        tree: parameters, a state, or an :func:`abstract_state`: arrays or :class:`jax.ShapeDtypeStruct`.
        large: from how many bytes on an array that is whole on every device of a mesh is marked, and listed in
            :attr:`Placement.whole`.

    Returns:
        A :class:`Placement`, which prints as a table.

    Raises:
        TypeError: as :func:`~jaxopt_adam.nbytes`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec
        >>> from jaxopt_adam import abstract_state, adamw, placement
        >>> mesh = AbstractMesh((8,), ("data",), axis_types=(AxisType.Auto,))
        >>> where = NamedSharding(mesh, PartitionSpec(None, "data"))
        >>> params = {"w": jax.ShapeDtypeStruct((512, 256), jnp.float32, sharding=where)}
        >>> print(placement(abstract_state(adamw(1e-3, moments="int8"), params)))
        array                       divided            bytes  on each device
        .mu['w']  uint16[512, 256]  P(None, 'data')  262,144          32,768
        .nu['w']  uint32[512, 8]    P(None, 'data')   16,384           2,048
        .count    int32[]           whole                  4               4
        all                                          278,532          34,820
    """
    arrays = tuple(_placed_array(path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree))
    return Placement(arrays, nbytes(tree), nbytes(tree, on_each_device=True), large)


def _placed_array(path: Path, leaf: Any) -> PlacedArray:
    size, part = nbytes(leaf), nbytes(leaf, on_each_device=True)
    sharding = getattr(leaf, "sharding", None)
    spec = getattr(sharding, "spec", None)
    entries = [] if spec is None else list(spec)
    if isinstance(sharding, NamedSharding):
        text = f"P({', '.join(map(repr, entries))})" if any(entries) else "whole"
        is_whole = part == size and sharding.mesh.size > 1
    else:
        text, is_whole = "", False
    kind = getattr(sharding, "memory_kind", None)
    text += "" if kind in (None, "device") else f" in {kind}"
    shape = list(np.shape(leaf))
    return PlacedArray(
        jax.tree_util.keystr(path) or "the array", f"{jax.numpy.result_type(leaf)}{shape}", text, size, part, is_whole
    )
