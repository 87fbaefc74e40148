"""The layer that takes a rule over a tree: dtypes, the step counter, weight decay and its mask.

A rule is arithmetic for one leaf and knows nothing of these.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from jaxopt_adam.dtypes import arithmetic_dtype, real_dtype
from jaxopt_adam.trees import (
    Path,
    array_like,
    broadcast_prefix,
    inexact_dtype,
    leaves_like,
    scalar_like,
)

__all__ = ["Moment", "per_leaf_transformation"]


@dataclasses.dataclass(frozen=True)
class Moment:
    """How one running statistic of the gradient starts and rests.

    Args:
        initial: the number that it starts from.
        real: whether it is real also where the gradient is complex, as an average of ``|g|²`` is.
        dtype: the dtype in which it rests between steps; by default that of the arithmetic, at least float32.
    """

    initial: ArrayLike = 0.0
    real: bool = False
    dtype: DTypeLike | None = None

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

    def start(self, param: Any) -> Array:
        """This statistic of the parameter `param` before the first step."""
        return jnp.full_like(param, self.initial, self.resting_dtype(jnp.result_type(param)))


def per_leaf_transformation(
    state_type: Callable[..., Any],
    per_step: Callable[[Array, ArrayLike], Sequence[ArrayLike | None]],
    per_leaf: Callable[..., Sequence[Any]],
    *,
    learning_rate: Any,
    weight_decay: Any = 0.0,
    weight_decay_mask: Any = None,
    decay_gradient: bool = False,
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
        decay_gradient: whether λθ is added to the gradient instead, before the rule sees it.
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
            **{name: jax.tree.map(moment.start, params) for name, moment in present.items()},
        )

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **_: Any
    ) -> tuple[optax.Updates, Any]:
        grads, tree = jax.tree_util.tree_flatten_with_path(updates)
        for name in ("count", *present):
            if not hasattr(state, name):
                raise TypeError(f"state must have {name}, as what init returns has, got {type(state).__name__}")
        resting = {name: leaves_like(tree, getattr(state, name), f"state.{name}") for name in present}
        step = jnp.asarray(optax.safe_increment(state.count))
        rates = _rates(learning_rate, updates, state.count)
        scalars = _per_rate(per_step, step, rates)
        decay_terms = _decay_terms(grads, tree, params, weight_decay, weight_decay_mask, state.count)

        new_updates: list[Array] = []
        new_moments: dict[str, list[Array]] = {name: [] for name in present}
        for i, (path, grad) in enumerate(grads):
            leaf = inexact_dtype(path, grad, real=real_leaves)
            dtype = arithmetic_dtype(leaf)
            awake = {
                name: array_like(path, grad, resting[name][i], moment.resting_dtype(leaf), f"state.{name}").astype(
                    moment.awake_dtype(leaf)
                )
                for name, moment in present.items()
            }
            arguments = [scalar_like(path, grad, scalar, real_dtype(dtype)) for scalar in scalars[i]]
            value, decay_term = jnp.asarray(grad, dtype), decay_terms[i]
            if decay_term is not None and decay_gradient:
                value = value + decay_term
            change, *values = per_leaf(value, *(awake.get(name) for name in moments), *arguments)
            if decay_term is not None and not decay_gradient:
                change = change + jnp.asarray(rates[i], real_dtype(dtype)) * decay_term
            new_updates.append(array_like(path, grad, change, dtype, "the update").astype(leaf))
            for name, value in zip(moments, values, strict=True):
                if name in present:
                    new_moments[name].append(value.astype(present[name].resting_dtype(leaf)))

        like_updates = functools.partial(jax.tree.unflatten, tree)
        return like_updates(new_updates), state_type(
            count=step, **{name: like_updates(leaves) for name, leaves in new_moments.items()}
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _at(value: Any, count: Array, updates: Any, what: str) -> list[Any]:
    """A hyperparameter after `count` updates, for each leaf of `updates`.

    It is a number or a schedule, or a tree of these with the tree of the updates, or a prefix of it.
    """
    is_leaf = None if _like(value, updates) else callable
    now = jax.tree.map(lambda entry: entry(count) if callable(entry) else entry, value, is_leaf=is_leaf)
    return broadcast_prefix(now, updates, what)


def _like(value: Any, updates: Any) -> bool:
    """Whether `value` is a tree like the updates even if it can be called too, as equinox's models can."""
    return jax.tree.structure(value) == jax.tree.structure(updates)


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


def _decay_terms(
    grads: list[Any], tree: Any, params: Any, weight_decay: Any, mask: Any, count: Array
) -> list[Array | None]:
    """Weight decay times the parameter for each leaf, or None where there is none."""
    if isinstance(weight_decay, float) and weight_decay == 0.0:
        return [None] * len(grads)
    if params is None:
        raise ValueError("weight_decay needs the parameters: call update(gradients, state, params)")
    decays = _at(weight_decay, count, params, "weight_decay")
    mask = True if mask is None else mask(params) if callable(mask) and not _like(mask, params) else mask
    masks = broadcast_prefix(mask, params, "the mask of weight_decay")

    def term(path: Path, grad: Any, param: Any, decay: Any, masked: Any) -> Array | None:
        if not masked:
            return None
        dtype = arithmetic_dtype(inexact_dtype(path, grad))
        param = array_like(path, grad, param, jnp.result_type(param), "the parameter")
        return jnp.asarray(scalar_like(path, grad, decay, real_dtype(dtype))) * param.astype(dtype)

    params = leaves_like(tree, params, "params")
    return [term(path, grad, *rest) for (path, grad), *rest in zip(grads, params, decays, masks, strict=True)]
