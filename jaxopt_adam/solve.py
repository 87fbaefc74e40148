"""Loops that walk down a function: until the article says that they have arrived, or for a number of steps."""

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

from jaxopt_adam.trees import inexact_dtype

__all__ = ["Result", "Status", "Trajectory", "descend", "minimize"]


class Status(enum.IntEnum):
    """Why :func:`minimize` stopped."""

    CONVERGED = 0
    """Two successive values differed by less than `tol`."""
    MAX_STEPS = 1
    """`max_steps` steps were done before that."""
    NONFINITE = 2
    """A value, or an element of x, became NaN or infinite; the last finite point is kept."""


class Result(NamedTuple):
    """What :func:`minimize` found; every field has leading axes under :func:`jax.vmap`.

    Attributes:
        x: the last finite point, a tree like `x0`.
        value: the function there.
        steps: the number of steps from `x0` to `x`, int32.
        status: a :class:`Status` as int32; its name is :attr:`status_name`.
        aux: what the function returned beside its value at `x`; None without `has_aux`.
    """

    x: Any
    value: Array
    steps: Array
    status: Array
    aux: Any = None

    @property
    def status_name(self) -> Any:
        """The status in words, a string or an array of strings; outside jit only."""
        names = np.array([status.name for status in Status])[np.asarray(self.status)]
        return names.item() if np.ndim(names) == 0 else names


class Trajectory(NamedTuple):
    """The way that :func:`descend` took.

    Attributes:
        x: every iterate from `x0` on, a tree like `x0` with a leading axis of ``steps + 1``.
        value: the function at each, of shape ``(steps + 1,)``.
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

    One ``lax.while_loop``: it can be jitted, and vmapped over starts, over optimizers (:func:`~jaxopt_adam.grid`) and
    over `args`.

    Args:
        fun: ``fun(x, *args)``, a real scalar; with `has_aux` a pair of it and anything.
        x0: the start, a tree of floating-point arrays or numbers.
        optimizer: any optax transformation, ours or not; those with a line search get `value`, `grad` and `value_fn`.
        args: further arguments of `fun`, not varied.
        tol: the article's 0.0001, in units of the value; 0 for never.
        max_steps: the most steps that are done.
        has_aux: whether `fun` returns a pair.

    Returns:
        A :class:`Result`.

    Raises:
        TypeError: if `x0` has a leaf that is not of a floating-point dtype, or `fun` does not return a real scalar.
        ValueError: if `tol` or `max_steps` is negative.

    Example:
        >>> from jaxopt_adam import adam, minimize
        >>> result = minimize(lambda x: (x - 3.0) ** 2, 0.0, adam(0.1), tol=1e-8)
        >>> result.status_name, round(float(result.x), 2)
        ('CONVERGED', 3.0)
    """
    for name, number in (("tol", tol), ("max_steps", max_steps)):
        if not isinstance(number, Tracer) and not np.all(np.asarray(number) >= 0):
            raise ValueError(f"{name} must be 0 or more, got {number}")
    if isinstance(max_steps, float):
        raise TypeError(f"max_steps must be a whole number, got {max_steps}")
    max_steps = min(max_steps, _MOST_STEPS) if isinstance(max_steps, int) else max_steps
    optimizer = optax.with_extra_args_support(optimizer)
    objective = _Objective(fun, args, has_aux)
    x0 = _as_arrays(x0)
    (value, aux), grad = objective.value_and_grad(x0)
    precision = jnp.promote_types(value.dtype, jnp.float32)  # in which a small tol is not zero

    def change(new: Array, old: Array) -> Array:
        return jnp.abs(new.astype(precision) - old.astype(precision))

    def running(carry: tuple[Any, ...]) -> Array:
        return carry[-1] == _RUNNING

    def step(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        result, grad, state, _ = carry
        x, state = objective.update(optimizer, result.x, result.value, grad, state)
        (value, aux), grad = objective.value_and_grad(x)
        finite = jnp.isfinite(value) & _all_finite(x)
        steps = result.steps + 1
        status = jnp.select(
            [~finite, change(value, result.value) < jnp.asarray(tol, precision), steps >= max_steps],
            [Status.NONFINITE, Status.CONVERGED, Status.MAX_STEPS],
            _RUNNING,
        ).astype(jnp.int32)
        moved = Result(x, value, steps, status, aux)
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), moved, result)
        return kept._replace(status=status), grad, state, status

    status = jnp.where(
        ~(jnp.isfinite(value) & _all_finite(x0)),
        Status.NONFINITE,
        jnp.where(jnp.asarray(max_steps) <= 0, Status.MAX_STEPS, _RUNNING),
    ).astype(jnp.int32)
    start = Result(x0, value, jnp.zeros_like(status), status, aux)
    result, *_ = jax.lax.while_loop(running, step, (start, grad, optimizer.init(x0), status))
    return result


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
        args: further arguments of `fun`, not varied.

    Returns:
        A :class:`Trajectory` of ``steps + 1`` points, `x0` the first.

    Raises:
        ValueError: if `steps` is negative.
        TypeError: if `steps` is no integer, and as for :func:`minimize`.

    Example:
        >>> import jax
        >>> from jaxopt_adam import descend, sgd
        >>> print(descend(lambda x: x**2, 1.0, sgd(0.25), steps=2).x)
        [1.   0.5  0.25]
        >>> print(jax.grad(lambda optimizer: descend(lambda x: x**2, 1.0, optimizer, 2).value[-1])(sgd(0.25)))
        sgd(learning_rate=Array(-1., dtype=float32, weak_type=True))
    """
    if operator.index(steps) < 0:
        raise ValueError(f"steps must be 0 or more, got {steps}")
    optimizer = optax.with_extra_args_support(optimizer)
    objective = _Objective(fun, args, has_aux=False)
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
    """A function of x alone, in the forms that a step needs."""

    fun: Callable[..., Any]
    args: tuple[Any, ...]
    has_aux: bool

    def value_and_aux(self, x: Any) -> tuple[Array, Any]:
        value, aux = self.fun(x, *self.args) if self.has_aux else (self.fun(x, *self.args), None)
        return jnp.asarray(value), jax.tree.map(jnp.asarray, aux)

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


def _as_arrays(x0: Any) -> Any:
    # With their dtype stated: weakly typed leaves (Python's numbers) would change their type in the loop.
    return jax.tree_util.tree_map_with_path(lambda path, leaf: jnp.asarray(leaf, inexact_dtype(path, leaf)), x0)


def _all_finite(tree: Any) -> Array:
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))
