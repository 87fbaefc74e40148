"""Arithmetic of matrices that rules share: the Newton–Schulz iteration, and eigenvectors that are updated."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from optax.contrib import MuonDimensionNumbers

from jaxopt_adam._averages import abs_sq
from jaxopt_adam._trees import Path, broadcast_prefix, leaf_name

COEFFICIENTS = {
    "standard": (3.4445, -4.7750, 2.0315),
    "dion": (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
}
"""Named coefficients for :func:`orthogonalize`: the same in each round, or a row for each."""


def dimension_numbers(numbers: Any, params: Any, by_path: Any = None) -> dict[Path, MuonDimensionNumbers | None]:
    """The axes of each leaf that make matrices, by the leaf's path; None for leaves that are not matrices.

    `numbers` is a tree of :class:`optax.contrib.MuonDimensionNumbers` and None, a prefix of the tree of the parameters;
    or a function from them to one; or None for all leaves of two axes. Alternatively `by_path` is a function from a
    leaf's path, as a string, and its shape.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    what = "muon_weight_dimension_numbers" if by_path is None else "matrix_axes"
    if numbers is not None and by_path is not None:
        raise ValueError("muon_weight_dimension_numbers and matrix_axes both say which axes make matrices; give one")
    if by_path is not None:
        entries = [by_path(jax.tree_util.keystr(path), np.shape(leaf)) for path, leaf in leaves]
    elif numbers is not None:
        entries = broadcast_prefix(
            numbers(params) if callable(numbers) else numbers,
            params,
            what,
            is_leaf=lambda entry: entry is None or isinstance(entry, MuonDimensionNumbers),
        )
    else:
        entries = [MuonDimensionNumbers() if np.ndim(leaf) == 2 else None for _, leaf in leaves]
    for (path, leaf), entry in zip(leaves, entries, strict=True):
        if entry is not None:
            try:
                as_matrices(np.shape(leaf), *entry)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{what}, {leaf_name(path)}: {error}") from None
    return {path: entry for (path, _), entry in zip(leaves, entries, strict=True)}


def as_matrices(
    shape: tuple[int, ...], rows: int | Sequence[int], columns: int | Sequence[int]
) -> tuple[Callable[[Array], Array], Callable[[Array], Array], tuple[int, int]]:
    """A tensor as a batch of matrices, whose rows run over some axes and whose columns over others.

    Args:
        shape: the shape of the tensor.
        rows: the axis or axes of the rows; negative ones count from the end.
        columns: the axis or axes of the columns. All other axes make the batch.

    Returns:
        The function from the tensor to the batch, of shape (batch, rows, columns); the one back; the two sizes.

    Raises:
        ValueError: for an axis that the tensor lacks, or that is given twice.
    """
    groups = [[axes] if isinstance(axes, int) else list(axes) for axes in (rows, columns)]
    given = [axis % max(len(shape), 1) for group in groups for axis in group]
    if not all(-len(shape) <= axis < len(shape) for group in groups for axis in group) or len(set(given)) < len(given):
        raise ValueError(f"the axes of rows {rows} and columns {columns} must be different axes of the shape {shape}")
    order = [axis for axis in range(len(shape)) if axis not in given] + given
    turned = tuple(shape[axis] for axis in order)
    size = [math.prod(shape[axis % len(shape)] for axis in group) for group in groups]
    batch = math.prod(turned[: len(shape) - len(given)])

    def to_matrices(tensor: Array) -> Array:
        return tensor.transpose(order).reshape(batch, *size)

    def to_tensor(matrices: Array) -> Array:
        return matrices.reshape(turned).transpose([order.index(axis) for axis in range(len(shape))])

    return to_matrices, to_tensor, (size[0], size[1])


def orthogonalize(
    matrices: Array, coefficients: Sequence[Any], eps: ArrayLike, preconditioning: str = "frobenius"
) -> Array:
    """The orthogonal matrix U V* nearest to each matrix U S V*, approximated by the Newton–Schulz iteration.

    Each round maps X to a X + (b A + c A²) X with A = X X*, and so each singular value s to a s + b s³ + c s⁵. The
    matrix is scaled first so that none is above one.

    Args:
        matrices: a batch, of shape (batch, rows, columns), real or complex.
        coefficients: a, b and c of each round.
        eps: a number that is added to the size by which a matrix is divided, in the matrix's own units.
        preconditioning: the size by which a matrix is divided: "frobenius", its norm; "spectral", its largest singular
            value; "aol", a bound of that for each row; "schatten", the root of the norm of A. The last two cost nothing
            more, because they come from A.

    Returns:
        The batch, of the same shape.
    """
    if not matrices.size:
        return matrices
    if matrices.shape[-2] > matrices.shape[-1]:
        return orthogonalize(matrices.mT, coefficients, eps, preconditioning).mT
    # The scale of each matrix is taken out, so that no square overflows.
    largest = _divisor(jnp.max(jnp.abs(matrices), (-2, -1), keepdims=True))
    matrices, eps = matrices / largest, jnp.asarray(eps / largest)
    # Zero is divided by more than nothing, so that it stays zero; any other matrix has a norm of one at least.
    tiny = jnp.finfo(eps.dtype).tiny
    if preconditioning == "frobenius":
        matrices = matrices / jnp.maximum(_norm(matrices) + eps, tiny)
    elif preconditioning == "spectral":
        matrices = matrices / jnp.maximum(jnp.linalg.norm(matrices, 2, (-2, -1), keepdims=True) + eps, tiny)
    for i, (a, b, c) in enumerate(coefficients):
        square = _product(matrices, matrices.mT.conj())
        if i == 0 and preconditioning in ("aol", "schatten"):
            size = jnp.abs(square).sum(-1, keepdims=True) if preconditioning == "aol" else _norm(square)
            scale = jax.lax.rsqrt(jnp.maximum(size, jnp.maximum(eps / largest, tiny)))
            matrices, square = matrices * scale, square * scale * (scale.mT if preconditioning == "aol" else scale)
        matrices = a * matrices + _product(b * square + c * _product(square, square), matrices)
    return matrices


def bounded(tensor: Array) -> Array:
    """The tensor, scaled down where the square of its norm is beyond a quarter of the largest number of its dtype.

    A tensor whose norm is not finite stays as it is.
    """
    exponent = jnp.finfo(tensor.dtype).maxexp
    # A power of two in which neither the squares of the largest numbers overflow nor those near the limit vanish. To
    # divide by the largest element instead would not do: the compiler multiplies by the reciprocal, which may vanish.
    unit, limit = 2.0 ** (5 * exponent // 8), 2.0 ** (exponent // 2 - 1)
    size = jnp.sqrt(jnp.sum(jnp.square(jax.lax.stop_gradient(tensor) * (1 / unit))))
    factor = (limit / unit) / jnp.maximum(size, limit / unit)
    return jnp.where(jnp.isfinite(size), tensor * factor, tensor)


def gram(tensor: Array, axis: int) -> Array:
    """The products of all pairs of slices along `axis`: G G* for a matrix's first axis."""
    others = [other for other in range(tensor.ndim) if other != axis]
    return jnp.tensordot(tensor, tensor.conj(), (others, others), precision=jax.lax.Precision.HIGHEST)


def rotate(tensor: Array, bases: Sequence[Array | None], *, back: bool = False) -> Array:
    """A tensor in the coordinates of a basis along each axis, whose vectors are columns; None leaves an axis as it is.

    With `back` it comes from these coordinates.
    """
    for axis, basis in enumerate(bases):
        if basis is not None:
            pair = ((axis,), (1 if back else 0,))
            turned = jnp.tensordot(tensor, basis, pair, precision=jax.lax.Precision.HIGHEST)
            tensor = jnp.moveaxis(turned, -1, axis)
    return tensor


def by_eigenvalue(
    wanted: Array, factors: Sequence[Array | None], bases: Sequence[Array | None], moment: Array
) -> tuple[list[Array | None], Array]:
    """Bases with the vectors of the largest eigenvalues first, and a moment in them in the same order, if `wanted`."""
    ordered = []
    for axis, (factor, basis) in enumerate(zip(factors, bases, strict=True)):
        if factor is not None and basis is not None:
            order = jax.lax.cond(wanted, _descending, lambda _, basis: jnp.arange(len(basis)), factor, basis)
            basis, moment = jnp.take(basis, order, 1), jnp.take(moment, order, axis)
        ordered.append(basis)
    return ordered, moment


def refreshed(age: Array, symmetric: Array, basis: Array) -> Array:
    """A basis of eigenvectors of a symmetric matrix that changes slowly, as columns, the largest eigenvalues first.

    At `age` 0 they are computed afresh, at 1 by one power iteration from the basis before, at 2 they are that basis.
    """
    branches = (_eigenvectors, _power_iteration, lambda _, basis: basis)
    return jax.lax.switch(age.astype(jnp.int32), branches, symmetric, basis)


def _eigenvectors(symmetric: Array, _: Array) -> Array:
    return jnp.linalg.eigh(_unit(symmetric))[1][:, ::-1]


def _power_iteration(symmetric: Array, basis: Array) -> Array:
    return jnp.linalg.qr(_product(_unit(symmetric), basis))[0]


def _descending(symmetric: Array, basis: Array) -> Array:
    return jnp.argsort(-jnp.sum(basis * _product(_unit(symmetric), basis), 0))


def _unit(matrix: Array) -> Array:
    """The matrix over its largest entry: it has the same eigenvectors, and no square overflows or vanishes."""
    return matrix / _divisor(jnp.max(jnp.abs(matrix), initial=0))


def _divisor(largest: Array) -> Array:
    """About the largest entry, as a number to divide by: not zero, and with a reciprocal that does not vanish.

    Compiled code may multiply by the reciprocal, and that of a number above a quarter of the largest is subnormal.
    """
    return jnp.where(largest > 0, jnp.minimum(largest, jnp.finfo(largest.dtype).max / 16), 1)


def _norm(matrices: Array) -> Array:
    return jnp.sqrt(jnp.sum(abs_sq(matrices), (-2, -1), keepdims=True))


def _product(one: Array, other: Array) -> Array:
    return jnp.matmul(one, other, precision=jax.lax.Precision.HIGHEST)
