"""The layer that takes a rule over a tree: dtypes, the step counter, weight decay and its mask.

A rule is arithmetic for one leaf and knows nothing of these.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from jaxopt_adam.dtypes import arithmetic_dtype, real_dtype
from jaxopt_adam.hyperparameters import flag, scheduled
from jaxopt_adam.trees import (
    Path,
    array_like,
    broadcast_prefix,
    fields,
    inexact_dtype,
    leaf_name,
    leaves_like,
    scalar_like,
)

__all__ = ["Leaf", "Moment", "per_leaf_transformation"]


class Leaf(NamedTuple):
    """What a rule may know of a leaf besides its moments; the arrays are in the dtype of the arithmetic.

    Attributes:
        path: the way to the leaf.
        grad: its gradient.
        param: the parameter θ, or None where `update` got no parameters.
        decay: λθ, or 0.0 where it does not decay.
    """

    path: Path
    grad: Array
    param: Array | None
    decay: ArrayLike


@dataclasses.dataclass(frozen=True)
class Moment:
    """How one running statistic of the gradient starts and rests.

    Args:
        initial: the number that it starts from.
        real: whether it is real also where the gradient is complex, as an average of ``|g|²`` is.
        dtype: the dtype in which it rests between steps; by default that of the arithmetic, at least float32.
        from_param: whether it starts as a copy of the parameter.
        shape: ``shape(path, shape of the parameter)``: the shape for one leaf, None for a leaf that goes without, or a
            list of these for several arrays; by default it has the parameter's.
    """

    initial: ArrayLike = 0.0
    real: bool = False
    dtype: DTypeLike | None = None
    from_param: bool = False
    shape: Callable[[Path, tuple[int, ...]], Any] | None = None

    def awake_dtype(self, leaf: np.dtype) -> np.dtype:
        """The dtype in which this statistic of a leaf of dtype `leaf` is computed."""
        return real_dtype(arithmetic_dtype(leaf)) if self.real else arithmetic_dtype(leaf)

    def resting_dtype(self, leaf: np.dtype) -> np.dtype:
        """The dtype in which this statistic of a leaf of dtype `leaf` rests."""
        awake = self.awake_dtype(leaf)
        if self.dtype is None:
            return awake
        is_complex = jnp.issubdtype(awake, jnp.complexfloating)
        return jnp.promote_types(self.dtype, jnp.complex64) if is_complex else jnp.dtype(self.dtype)

    def start(self, path: Path, param: Any) -> Any:
        """This statistic of the parameter `param` before the first step."""
        dtype = self.resting_dtype(jnp.result_type(param))
        if self.from_param:
            return jnp.array(param, dtype)
        initial = jnp.asarray(scalar_like(path, param, self.initial, real_dtype(dtype)))

        def one(shape: tuple[int, ...]) -> Array:
            # Like the parameter where it can be, since then it lies on the same devices.
            return jnp.full_like(param, initial, dtype) if shape == np.shape(param) else jnp.full(shape, initial, dtype)

        shapes = np.shape(param) if self.shape is None else self.shape(path, np.shape(param))
        return jax.tree.map(one, shapes, is_leaf=_is_shape)

    def wake(self, path: Path, grad: Any, resting: Any, what: str) -> Any:
        """The statistic as the arithmetic wants it; ValueError or TypeError if it does not go with the gradient."""
        leaf = jnp.result_type(grad)
        shapes = np.shape(grad) if self.shape is None else self.shape(path, np.shape(grad))
        expected = jax.tree.structure(shapes, is_leaf=_is_shape)
        if jax.tree.structure(resting) != expected:
            raise ValueError(
                f"{leaf_name(path)}: for a gradient of shape {np.shape(grad)} {what} must have {_text(shapes)}, got "
                f"{_text(jax.tree.map(np.shape, resting))}"
            )
        arrays = [
            array_like(path, grad, value, self.resting_dtype(leaf), what, shape).astype(self.awake_dtype(leaf))
            for shape, value in zip(jax.tree.leaves(shapes, is_leaf=_is_shape), jax.tree.leaves(resting), strict=True)
        ]
        return jax.tree.unflatten(expected, arrays)

    def rest(self, path: Path, leaf: np.dtype, value: Any, before: Any, what: str) -> Any:
        """The statistic as it goes into the state; ValueError if it does not have the shape that it had `before`."""
        shape, other = (jax.tree.map(np.shape, each) for each in (before, value))
        if other != shape:
            raise ValueError(
                f"{leaf_name(path)}: {what} has {_text(shape)} and cannot become {_text(other)}, as with these "
                "hyperparameters it would; for a batch of optimizers use jax.vmap"
            )
        return jax.tree.map(lambda array: array.astype(self.resting_dtype(leaf)), value)


def per_leaf_transformation(
    state_type: Callable[..., Any],
    per_step: Callable[[Array, ArrayLike], Sequence[ArrayLike | None]],
    per_leaf: Callable[..., Sequence[Any]],
    *,
    learning_rate: Any,
    weight_decay: Any = 0.0,
    weight_decay_mask: Any = None,
    whole_leaf: bool = False,
    needs_params: bool = False,
    real_leaves: bool = False,
    **moments: Moment | None,
) -> optax.GradientTransformationExtraArgs:
    """A gradient transformation of trees from a rule for one leaf.

    Args:
        state_type: makes a state of `count` and the moments, given by name.
        per_step: ``per_step(step, rate) -> scalars``: what is the same for all leaves, computed once a step. `step` is
            counted from 1; `rate` is −α, or 1 where the learning rate is None and the direction alone is wanted.
        per_leaf: ``per_leaf(grad, *moments, *scalars) -> (update, *moments)``: the rule; every array comes in the dtype
            of the arithmetic.
        learning_rate: α, a schedule for it, a tree of these with the tree of the parameters or a prefix of it, or None.
        weight_decay: λ, a schedule or a tree as for α. αλθ is subtracted from the update (which is the decoupled decay
            of AdamW); `update` needs the parameters θ for it, unless λ is plainly 0.0.
        weight_decay_mask: which leaves decay, as in optax: a tree of booleans, a prefix of one, or a function from the
            parameters to one; None for all.
        whole_leaf: whether the rule takes a :class:`Leaf` in place of the gradient, and sees to the decay itself.
        needs_params: whether the rule needs the parameters also without weight decay.
        real_leaves: whether the rule has no meaning for complex leaves, which then are refused.
        **moments: the running statistics, in the order in which `per_leaf` takes and returns them; None for one that
            these hyperparameters have no use for, which then is None for the rule and in the state.

    Returns:
        The transformation. Its `init` raises TypeError for a leaf that is no array of a floating-point dtype; its
        `update` ValueError or TypeError for a tree, a shape or a dtype that does not go with the state; both name the
        leaf's path.
    """
    present = {name: moment for name, moment in moments.items() if moment is not None}

    def init(params: optax.Params) -> Any:
        jax.tree_util.tree_map_with_path(functools.partial(inexact_dtype, real=real_leaves), params)
        return state_type(
            count=jnp.zeros([], jnp.int32),
            **{name: jax.tree_util.tree_map_with_path(moment.start, params) for name, moment in present.items()},
        )

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **_: Any
    ) -> tuple[optax.Updates, Any]:
        grads, tree = jax.tree_util.tree_flatten_with_path(updates)
        dtypes = [inexact_dtype(path, grad, real=real_leaves) for path, grad in grads]
        count, *resting = fields(state, "count", *present)
        columns = [leaves_like(tree, each, f"state.{name}") for name, each in zip(present, resting, strict=True)]
        step = jnp.asarray(optax.safe_increment(count))
        rates = _rates(learning_rate, updates, count)
        scalars = _per_rate(per_step, step, rates)
        thetas = decays = [None] * len(grads)
        numbers = jax.tree.leaves(weight_decay)
        decaying = not numbers or not all(isinstance(each, float) and each == 0.0 for each in numbers)
        if params is None and (decaying or needs_params):
            what = "this rule" if needs_params else "weight_decay"
            raise ValueError(f"{what} needs the parameters: call update(gradients, state, params)")
        if decaying or (whole_leaf and params is not None):
            thetas = [
                array_like(path, grad, theta, None, "the parameter")
                for (path, grad), theta in zip(grads, leaves_like(tree, params, "params"), strict=True)
            ]
        if decaying:
            decays = _decays(weight_decay, weight_decay_mask, params, count)

        shared = any(moment.shape is not None for moment in present.values())

        def one_leaf(path_and_grad, dtype, theta, decay, rate, scalars, *resting):
            path, grad = path_and_grad
            awake = arithmetic_dtype(dtype)
            number = functools.partial(scalar_like, path, grad, dtype=real_dtype(awake))
            moments_by_name = {
                name: moment.wake(path, grad, value, f"state.{name}")
                for (name, moment), value in zip(present.items(), resting, strict=True)
            }
            value = jnp.asarray(grad, awake)
            theta = None if theta is None else theta.astype(awake)
            term = None if decay is None or theta is None else jnp.asarray(number(decay)) * theta
            leaf = Leaf(path, value, theta, 0.0 if term is None else term) if whole_leaf else value
            known = [number(scalar) for scalar in scalars]
            try:
                change, *after = _one_leaf(per_leaf, leaf, list(map(moments_by_name.get, moments)), known, shared)
            except (TypeError, ValueError) as error:
                if type(error) not in (TypeError, ValueError):
                    raise
                raise type(error)(f"{leaf_name(path)}: {error}") from error
            if term is not None and not whole_leaf:
                change = change + jnp.asarray(rate, real_dtype(awake)) * term
            moments_after = dict(zip(moments, after, strict=True))
            return [
                array_like(path, grad, change, awake, "the update").astype(dtype),
                *(
                    moment.rest(path, dtype, moments_after[name], moments_by_name[name], f"state.{name}")
                    for name, moment in present.items()
                ),
            ]

        rows = list(map(one_leaf, grads, dtypes, thetas, decays, rates, scalars, *columns))
        new_updates, *new_moments = (
            jax.tree.unflatten(tree, [row[i] for row in rows]) for i in range(1 + len(present))
        )
        return new_updates, state_type(count=step, **dict(zip(present, new_moments, strict=True)))

    return optax.GradientTransformationExtraArgs(init, update)


def _at(value: Any, count: Array, updates: Any, what: str) -> list[Any]:
    """A hyperparameter after `count` updates, for each leaf of `updates`.

    It is a number or a schedule, or a tree of these with the tree of the updates, or a prefix of it.
    """
    entries = broadcast_prefix(value, updates, what)
    now = {id(entry): scheduled(entry, count, what) for entry in entries}
    return [now[id(entry)] for entry in entries]


def _like(value: Any, updates: Any) -> bool:
    """Whether `value` is a tree like the updates even if it can be called too, as equinox's models can."""
    return not jax.tree_util.all_leaves([value]) and jax.tree.structure(value) == jax.tree.structure(updates)


def _rates(learning_rate: Any, updates: Any, count: Array) -> list[Any]:
    """−α for each leaf, or 1 without a learning rate; the same object where it is the same number."""
    if learning_rate is None:
        return [1.0] * len(jax.tree.leaves(updates))
    rates = _at(learning_rate, count, updates, "learning_rate")
    negative = {id(rate): -rate for rate in rates}
    return [negative[id(rate)] for rate in rates]


def _per_rate(per_step: Callable[..., Any], step: Array, rates: list[Any]) -> list[Any]:
    """The scalars for each leaf, computed once for each rate."""
    scalars = {id(rate): per_step(step, rate) for rate in {id(rate): rate for rate in rates}.values()}
    return [scalars[id(rate)] for rate in rates]


def _decays(weight_decay: Any, mask: Any, params: Any, count: Array) -> list[Any]:
    """λ for each leaf, or None where it does not decay."""
    mask = True if mask is None else mask(params) if callable(mask) and not _like(mask, params) else mask
    masks = broadcast_prefix(mask, params, "the mask of weight_decay")
    decays = _at(weight_decay, count, params, "weight_decay")
    masked = [flag("the mask of weight_decay", each) for each in masks]
    return [decay if each else None for decay, each in zip(decays, masked, strict=True)]


def _one_leaf(rule: Callable[..., Any], leaf: Any, moments: list[Any], scalars: list[Any], shared: bool) -> Any:
    """The rule for one leaf; of one whose moments have shapes of their own the compiler places what lies between.

    That is for meshes with explicit axes, on which products and sums over an axis must say where they go.
    """
    grad = leaf.grad if isinstance(leaf, Leaf) else leaf
    mesh = jax.typeof(grad).sharding.mesh
    if not shared or jax.sharding.AxisType.Explicit not in mesh.axis_types:
        return rule(leaf, *moments, *scalars)
    path = leaf.path if isinstance(leaf, Leaf) else None
    arrays = leaf._replace(path=()) if isinstance(leaf, Leaf) else leaf

    def placed(arrays: Any, moments: list[Any], scalars: list[Any]) -> Any:
        return rule(arrays._replace(path=path) if isinstance(arrays, Leaf) else arrays, *moments, *scalars)

    where = jax.tree.map(lambda array: jax.typeof(array).sharding.spec, (grad, *moments))
    with jax.sharding.use_abstract_mesh(mesh):
        anywhere: Any = jax.sharding.auto_axes(placed, out_sharding=where)
        return anywhere(arrays, moments, scalars)


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple)


def _text(shapes: Any) -> str:
    return "nothing" if shapes is None else f"the shape {shapes}" if _is_shape(shapes) else f"arrays of {shapes}"
