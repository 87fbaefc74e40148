"""Loops that walk down a function, until the article's stopping rule is met or for a number of steps."""

import enum
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from jaxopt_adam._averages import norm
from jaxopt_adam._hyperparameters import is_array, is_real
from jaxopt_adam._optimizer import Optimizer
from jaxopt_adam._shown import brief, shown
from jaxopt_adam._trees import arithmetic_dtype, inexact_dtype, inner_product, leaf_name


class Status(enum.IntEnum):
    """The reason for which :func:`minimize` stopped."""

    CONVERGED = 0
    """Two successive values differed by less than `tol`, and the step met the conditions in :func:`minimize`."""
    MAX_STEPS = 1
    """`max_steps` steps were done without convergence. A walk that bounces or is stuck also ends like this."""
    NONFINITE = 2
    """A value, or an element of x, became NaN or infinite; the last finite point is kept."""


class Result(NamedTuple):
    """The result of :func:`minimize`; every field has leading axes under :func:`jax.vmap`.

    Attributes:
        x: the last finite point, a tree like `x0`.
        value: the function there.
        steps: the number of steps from `x0` to `x`, int32.
        status: a :class:`Status` as int32; its name is :attr:`status_name`.
        aux: what the function returned beside its value at `x`; None without `has_aux`.
        gradient_norm: the Euclidean norm of the gradient at `x`, a real scalar.
    """

    x: Any
    value: Array
    steps: Array
    status: Array
    aux: Any = None
    gradient_norm: Any = None

    @property
    def status_name(self) -> Any:
        """The status in words, a string or an array of strings; outside jit only."""
        names = np.array([status.name for status in Status])[np.asarray(self.status)]
        return names.item() if np.ndim(names) == 0 else names


class Trajectory(NamedTuple):
    """The path that :func:`descend` took.

    Attributes:
        x: every iterate from `x0` on, a tree like `x0` with a leading axis of ``steps + 1``.
        value: the value of the function at each iterate, of shape ``(steps + 1,)``.
    """

    x: Any
    value: Array


def minimize(
    fun: Callable[..., Any],
    x0: Any,
    optimizer: optax.GradientTransformation,
    *,
    args: tuple[Any, ...] = (),
    tol: ArrayLike = 1e-4,
    max_steps: ArrayLike = 10_000,
    has_aux: bool = False,
) -> Result:
    r"""Walk down a function until two successive values differ by less than `tol`.

    .. math:: x_{i+1} = x_i + u(\nabla f(x_i)) \quad\text{until}\quad |f(x_{i+1}) - f(x_i)| < \text{tol}

    This is the stopping rule of the article that :doc:`/article` follows. Two successive values can also be nearly
    equal because the optimizer has not begun to move, or because the two points are on opposite sides of a valley. The
    status is therefore CONVERGED only if three more conditions hold for the step from x\ :sub:`i` to x\ :sub:`i+1`:

    - The change that the gradient predicts, :math:`|\langle \nabla f(x_i), x_{i+1} - x_i \rangle|`, is less than `tol`
      too. A bounce between two walls of a valley fails here.
    - x has moved, or the gradient is zero in every element. An update of zero fails here. Most updates of
      ``optax.MultiSteps`` are zero.
    - The largest element of the gradient has fallen to half of its maximum over the walk so far, or the gradient has
      turned: its inner product with the one before is negative. A tiny step fails here if the slope stays as steep.
      Such steps occur at the start of a warm-up, in the first steps of rules that estimate their own rate, and at a
      rate that is far too small.

    CONVERGED means no more than this. The gradient is also zero at a maximum, on a saddle and on a plateau. A slow walk
    over a gentle slope can meet the conditions too, if it came from a steeper slope. So can a walk whose schedule
    lowers the rate too early. Look at ``gradient_norm`` of the result. With a smaller `tol` the walk continues.

    MAX_STEPS is also the status of a walk that bounces for ever, and of a walk that is stuck. A walk is stuck if its
    updates are zero, or too small to change x in its dtype, although the gradient is not zero.

    The walk is one ``lax.while_loop``: it can be jitted, and vmapped over starts, over optimizers
    (:func:`~jaxopt_adam.grid`) and over `args`.

    Args:
        fun: ``fun(x, *args)``, a real scalar; with `has_aux` a pair of that and a tree of arrays or numbers.
        x0: the start, a tree of floating-point arrays or numbers.
        optimizer: any optax transformation, ours or not; those with a line search get `value`, `grad` and `value_fn`.
        args: a tuple of further arguments of `fun`, not varied.
        tol: the tolerance, in units of the value; 0.0001 in the article. With 0 no walk converges.
        max_steps: the largest number of steps.
        has_aux: whether `fun` returns a pair.

    Returns:
        A :class:`Result`.

    Raises:
        TypeError: if an argument is of the wrong kind, `x0` has a leaf that is not of a floating-point dtype, or `fun`
            does not return a real scalar (with `has_aux`, a pair that begins with one).
        ValueError: if `tol` or `max_steps` is negative, or the learning rate of `optimizer` is None. The updates are
            then the direction alone, which leads uphill. In a chain made by :func:`optax.chain` this is not detected.

    Example:
        >>> from jaxopt_adam import adam, minimize
        >>> result = minimize(lambda x: (x - 3.0) ** 2, 0.0, adam(0.1), tol=1e-8)
        >>> result.status_name, round(float(result.x), 2)
        ('CONVERGED', 3.0)
    """
    tol = _tolerance(tol)
    most = _most_steps(max_steps)
    optimizer = _descending(optimizer)
    objective = _Objective.of(fun, args, has_aux)
    x0 = _as_arrays(x0)
    (value, aux), grad = objective.value_and_grad(x0)
    tol = jnp.asarray(tol, arithmetic_dtype(value.dtype))  # in which a small tol is not zero

    def running(carry: tuple[Any, ...]) -> Array:
        return carry[-1] == _RUNNING

    def step(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        (result, grad), state, steepest, _ = carry
        x, state = objective.update(optimizer, result.x, result.value, grad, state)
        (value, aux), new_grad = objective.value_and_grad(x)
        finite = jnp.isfinite(value) & _all_finite(x)
        change, way = _difference(value, result.value), _difference(x, result.x)
        slope = _largest(new_grad)
        steepest = jnp.maximum(steepest, slope)
        turned = jnp.asarray(inner_product(_wide(grad), _wide(new_grad))) < 0
        arrived = (
            (jnp.abs(change) < tol)
            & (jnp.abs(inner_product(_wide(grad), way)) < tol)
            & (_any_nonzero(way) | ~_any_nonzero(grad))
            & ((slope <= steepest / 2) | turned)
        )
        steps = result.steps + 1
        status = jnp.select(
            [~finite, arrived, steps >= most],
            [Status.NONFINITE, Status.CONVERGED, Status.MAX_STEPS],
            _RUNNING,
        ).astype(jnp.int32)
        moved = Result(x, value, steps, status, aux), new_grad
        kept, grad = jax.tree.map(lambda new, old: jnp.where(finite, new, old), moved, (result, grad))
        return (kept._replace(status=status), grad), state, steepest, status

    status = jnp.where(
        ~(jnp.isfinite(value) & _all_finite(x0)),
        Status.NONFINITE,
        jnp.where(most <= 0, Status.MAX_STEPS, _RUNNING),
    ).astype(jnp.int32)
    start = Result(x0, value, jnp.zeros_like(status), status, aux), grad
    (result, grad), *_ = jax.lax.while_loop(running, step, (start, optimizer.init(x0), _largest(grad), status))
    return result._replace(gradient_norm=_norm(grad))


def descend(
    fun: Callable[..., Any],
    x0: Any,
    optimizer: optax.GradientTransformation,
    steps: int,
    *,
    args: tuple[Any, ...] = (),
) -> Trajectory:
    """Walk down a function for a number of steps and keep the whole path.

    One ``lax.scan``: it can be jitted, vmapped as :func:`minimize` can, and differentiated, also with respect to the
    optimizer's hyperparameters.

    Args:
        fun: ``fun(x, *args)``, a real scalar.
        x0: the start, a tree of floating-point arrays or numbers.
        optimizer: any optax transformation, as for :func:`minimize`.
        steps: the number of steps, a Python integer ≥ 0.
        args: a tuple of further arguments of `fun`, not varied.

    Returns:
        A :class:`Trajectory` of ``steps + 1`` points, `x0` the first.

    Raises:
        ValueError: if `steps` is negative, and as for :func:`minimize`.
        TypeError: if `steps` is not an integer, and as for :func:`minimize`.

    Example:
        >>> import jax
        >>> from jaxopt_adam import descend, sgd
        >>> print(descend(lambda x: x**2, 1.0, sgd(0.25), steps=2).x)
        [1.   0.5  0.25]
        >>> print(jax.grad(lambda optimizer: descend(lambda x: x**2, 1.0, optimizer, 2).value[-1])(sgd(0.25)))
        sgd(learning_rate=Array(-1., dtype=float32, weak_type=True))
    """
    steps = _index("steps", steps)
    if steps < 0:
        raise ValueError(f"steps must be 0 or more, got {steps}")
    optimizer = _descending(optimizer)
    objective = _Objective.of(fun, args, has_aux=False)
    x0 = _as_arrays(x0)

    def step(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], Trajectory]:
        x, state = carry
        (value, _aux), grad = objective.value_and_grad(x)
        new_x, state = objective.update(optimizer, x, value, grad, state)
        return (new_x, state), Trajectory(x, value)

    (last, _), path = jax.lax.scan(step, (x0, optimizer.init(x0)), length=steps)
    return jax.tree.map(
        lambda way, end: jnp.concatenate([way, end[None]]), path, Trajectory(last, objective.value_and_grad(last)[0][0])
    )


_RUNNING = -1
_MOST_STEPS = 2**31 - 1


class _Objective(NamedTuple):
    """The objective as a function of x alone, with its gradient and its update."""

    fun: Callable[..., Any]
    args: tuple[Any, ...]
    has_aux: bool

    @classmethod
    def of(cls, fun: Any, args: Any, has_aux: bool) -> "_Objective":
        if not callable(fun):
            raise TypeError(f"fun must be a function of x, got {_described(fun)}")
        # Anything else that can be iterated over, an array above all, would be taken apart in silence.
        if not isinstance(args, (tuple, list)) or hasattr(args, "_fields"):
            raise TypeError(
                f"args must be a tuple of the further arguments of fun, got {_described(args)}; for one argument write "
                "args=(argument,)"
            )
        return cls(fun, tuple(args), has_aux)

    def value_and_aux(self, x: Any) -> tuple[Array, Any]:
        out = self.fun(x, *self.args)
        is_pair = isinstance(out, (tuple, list)) and len(out) == 2
        if self.has_aux and not is_pair:
            raise TypeError(f"fun must return a pair of a real scalar and anything with has_aux, got {_described(out)}")
        value, aux = out if self.has_aux else (out, None)
        if not is_real(value):
            hint = "; has_aux=True allows a pair" if is_pair and not self.has_aux else ""
            raise TypeError(f"fun must return a real scalar, got {_described(value)}{hint}")
        if np.shape(value):
            raise TypeError(
                f"fun must return a real scalar, got the shape {np.shape(value)}; sum it, or take its mean; for many "
                "starts at once use jax.vmap"
            )
        if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            raise TypeError(f"fun must return a scalar of a floating-point dtype, got {jnp.result_type(value)}")
        return jnp.asarray(value), jax.tree_util.tree_map_with_path(_aux_array, aux)

    def value_and_grad(self, x: Any) -> tuple[tuple[Array, Any], Any]:
        value_and_aux, grad = jax.value_and_grad(self.value_and_aux, has_aux=True)(x)
        # Uphill for complex numbers is the conjugate of what JAX calls the gradient.
        return value_and_aux, jax.tree.map(jnp.conj, grad)

    def update(
        self, optimizer: optax.GradientTransformationExtraArgs, x: Any, value: Array, grad: Any, state: Any
    ) -> tuple[Any, Any]:
        updates, state = optimizer.update(
            grad, state, x, value=value, grad=grad, value_fn=lambda at: self.value_and_aux(at)[0]
        )
        return optax.apply_updates(x, updates), state


def _tolerance(tol: Any) -> Any:
    if not is_real(tol) or np.shape(tol):
        raise TypeError(f"tol must be a real number ≥ 0, 0 for never, got {_described(tol)}")
    if not isinstance(tol, Tracer) and not np.asarray(tol) >= 0:
        raise ValueError(f"tol must be 0 or more, got {tol}")
    return tol


def _most_steps(max_steps: Any) -> Any:
    is_whole = isinstance(max_steps, int) or (is_array(max_steps) and jnp.issubdtype(max_steps.dtype, jnp.integer))
    if not is_whole or isinstance(max_steps, bool) or np.shape(max_steps):
        raise TypeError(f"max_steps must be a whole number ≥ 0, got {_described(max_steps)}")
    if isinstance(max_steps, Tracer):
        return max_steps
    if int(max_steps) < 0:
        raise ValueError(f"max_steps must be 0 or more, got {max_steps}")
    return min(int(max_steps), _MOST_STEPS)


def _index(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(
            f"{name} must be a whole number, known when the loop is traced, got {_described(value)}"
        ) from None


def _descending(optimizer: Any) -> optax.GradientTransformationExtraArgs:
    """The optimizer, checked; optax.MultiSteps is accepted, although it is not a GradientTransformation."""
    if isinstance(optimizer, type) or not all(callable(getattr(optimizer, name, None)) for name in ("init", "update")):
        makes = "; it makes an optimizer when it is called with hyperparameters" if callable(optimizer) else ""
        raise TypeError(
            f"optimizer must be an optimizer, ours or optax's, such as adam(0.1), got {_described(optimizer)}{makes}"
        )
    if isinstance(optimizer, Optimizer) and (uphill := optimizer._gives_direction()):
        raise ValueError(
            f"optimizer must have a learning rate, got {brief(optimizer)}: with learning_rate=None {uphill} gives the "
            "direction alone, which leads uphill; give one, or chain it with optax.scale_by_learning_rate"
        )
    return optax.with_extra_args_support(optimizer)


def _as_arrays(x0: Any) -> Any:
    if not jax.tree.leaves(x0):
        raise ValueError(f"x0 must have at least one leaf, got {x0!r}")

    def as_array(path: Any, leaf: Any) -> Array:
        if (isinstance(leaf, int) or is_array(leaf)) and not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            hint = f"write {float(leaf)}" if isinstance(leaf, int) else "convert it, or pass what is not varied in args"
            raise TypeError(
                f"x0: {leaf_name(path)} must have a floating-point dtype, got {jnp.result_type(leaf)}; {hint}"
            )
        # With their dtype stated: weakly typed leaves (Python's numbers) would change their type in the loop.
        return jnp.asarray(leaf, inexact_dtype(path, leaf))

    return jax.tree_util.tree_map_with_path(as_array, x0)


def _aux_array(path: Any, leaf: Any) -> Array:
    try:
        return jnp.asarray(leaf)
    except TypeError:
        raise TypeError(f"fun must return arrays in aux, got {_described(leaf)} at its {leaf_name(path)}") from None


def _described(value: Any) -> str:
    if isinstance(value, Tracer) or (is_array(value) and np.ndim(value)):
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    return shown(value)


def _wide(tree: Any) -> Any:
    """The leaves in float32 at least, in which small differences and products do not vanish."""
    return jax.tree.map(lambda leaf: leaf.astype(arithmetic_dtype(leaf.dtype)), tree)


def _difference(new: Any, old: Any) -> Any:
    return jax.tree.map(jnp.subtract, _wide(new), _wide(old))


def _any_nonzero(tree: Any) -> Array:
    return jnp.any(jnp.array([jnp.any(leaf != 0) for leaf in jax.tree.leaves(tree)]))


def _largest(tree: Any) -> Array:
    """The largest absolute value of an element; unlike a sum of squares it neither overflows nor vanishes."""
    return jnp.max(jnp.array([jnp.max(jnp.abs(leaf), initial=0) for leaf in jax.tree.leaves(_wide(tree))]))


def _norm(tree: Any) -> Array:
    return norm(jnp.array([norm(leaf) for leaf in jax.tree.leaves(_wide(tree))]))


def _all_finite(tree: Any) -> Array:
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))
