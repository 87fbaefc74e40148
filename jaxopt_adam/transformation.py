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

from jaxopt_adam.hyperparameters import Schedule
from jaxopt_adam.trees import Path, arithmetic_dtype, array_like, inexact_dtype, leaves_like, real_dtype, scalar_like

__all__ = ["Moment", "at", "per_leaf_transformation"]


@dataclasses.dataclass(frozen=True)
class Moment:
    """How one running statistic of the gradient starts and rests.

    Args:
        initial: the number that it starts from.
        real: whether it is real also where the gradient is complex, as an average of |g|² is.
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
    learning_rate: ArrayLike | Schedule | None,
    weight_decay: ArrayLike | Schedule | None = None,
    weight_decay_mask: Any = None,
    **moments: Moment | None,
) -> optax.GradientTransformationExtraArgs:
    """A gradient transformation of trees from a rule for one leaf.

    Args:
        state_type: makes a state of `count` and the moments, given by name.
        per_step: ``per_step(step, rate) -> scalars``: what is the same for all leaves, computed once a step. `step` is
            counted from 1; `rate` is −α, or 1 where the learning rate is None and the direction alone is wanted.
        per_leaf: ``per_leaf(grad, *moments, *scalars) -> (update, *moments)``: the rule; every array comes in the dtype
            of the arithmetic. With `weight_decay` it takes the decay term λθ (0 where masked out) after the moments.
        learning_rate: α, a schedule for it, or None.
        weight_decay: λ or a schedule for it; None for a rule without one. `update` then needs the parameters, unless it
            is plainly 0.0.
        weight_decay_mask: which leaves decay, as in optax: a tree of booleans, a prefix of one, or a function from the
            parameters to one; None for all.
        **moments: the running statistics, in the order in which `per_leaf` takes and returns them; None for one that
            these hyperparameters have no use for, which then is None for the rule and in the state.

    Returns:
        The transformation. Its `init` raises TypeError for a leaf that is no array of a floating-point dtype; its
        `update` ValueError or TypeError for a tree, a shape or a dtype that does not go with the state; both name the
        leaf's path.
    """
    present = {name: moment for name, moment in moments.items() if moment is not None}

    def init(params: optax.Params) -> Any:
        jax.tree_util.tree_map_with_path(inexact_dtype, params)
        return state_type(
            count=jnp.zeros([], jnp.int32),
            **{name: jax.tree.map(moment.start, params) for name, moment in present.items()},
        )

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **_: Any
    ) -> tuple[optax.Updates, Any]:
        grads, tree = jax.tree_util.tree_flatten_with_path(updates)
        resting = {name: leaves_like(tree, getattr(state, name), f"state.{name}") for name in present}
        step = jnp.asarray(optax.safe_increment(state.count))
        scalars = per_step(step, 1.0 if learning_rate is None else -at(learning_rate, state.count))
        decay = at(weight_decay, state.count)
        decay_terms = None if decay is None else _decay_terms(grads, tree, params, decay, weight_decay_mask)

        new_updates: list[Array] = []
        new_moments: dict[str, list[Array]] = {name: [] for name in present}
        for i, (path, grad) in enumerate(grads):
            leaf = inexact_dtype(path, grad)
            dtype = arithmetic_dtype(leaf)
            awake = {
                name: array_like(path, grad, resting[name][i], moment.resting_dtype(leaf), f"state.{name}").astype(
                    moment.awake_dtype(leaf)
                )
                for name, moment in present.items()
            }
            change, *values = per_leaf(
                jnp.asarray(grad, dtype),
                *(awake.get(name) for name in moments),
                *(() if decay_terms is None else decay_terms[i : i + 1]),
                *(None if scalar is None else scalar_like(path, grad, scalar, real_dtype(dtype)) for scalar in scalars),
            )
            new_updates.append(array_like(path, grad, change, dtype, "the update").astype(leaf))
            for name, value in zip(moments, values, strict=True):
                if name in present:
                    new_moments[name].append(value.astype(present[name].resting_dtype(leaf)))

        like_updates = functools.partial(jax.tree.unflatten, tree)
        return like_updates(new_updates), state_type(
            count=step, **{name: like_updates(leaves) for name, leaves in new_moments.items()}
        )

    return optax.GradientTransformationExtraArgs(init, update)


def at(value: Any, count: Array) -> Any:
    """A hyperparameter's value after `count` updates: what it gives if it is a schedule, else itself."""
    return value(count) if callable(value) else value


def _decay_terms(grads: list[Any], tree: Any, params: Any, weight_decay: ArrayLike, mask: Any) -> list[Any]:
    """Weight decay times the parameter for each leaf; the number 0.0 where there is nothing to decay."""
    if isinstance(weight_decay, float) and weight_decay == 0.0:
        return [0.0] * tree.num_leaves
    if params is None:
        raise ValueError("weight_decay needs the parameters: call update(gradients, state, params)")
    mask = True if mask is None else mask(params) if callable(mask) else mask
    try:
        decays = jax.tree.map(lambda decays, part: jax.tree.map(lambda _: decays, part), mask, params)
    except ValueError as error:
        raise ValueError(f"weight_decay_mask must have the tree of params, or a prefix of it: {error}") from None

    def term(path: Path, grad: Any, param: Any, decays: Any) -> Any:
        if not decays:
            return 0.0
        dtype = arithmetic_dtype(inexact_dtype(path, grad))
        param = array_like(path, grad, param, jnp.result_type(param), "the parameter")
        return jnp.asarray(weight_decay, real_dtype(dtype)) * param.astype(dtype)

    leaves = leaves_like(tree, params, "params"), leaves_like(tree, decays, "weight_decay_mask")
    return [term(path, grad, *leaf) for (path, grad), *leaf in zip(grads, *leaves, strict=True)]
