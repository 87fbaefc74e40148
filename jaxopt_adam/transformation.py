"""The layer that takes a rule over a tree: dtypes, the step counter, weight decay and its mask.

A rule is arithmetic for one leaf and knows nothing of these.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from jaxopt_adam.averages import finite_product, squarable
from jaxopt_adam.dtypes import arithmetic_dtype, real_dtype
from jaxopt_adam.hyperparameters import flag, scheduled
from jaxopt_adam.moments import UNROUNDED, LeafMoments, Moment, entries_of, field_of
from jaxopt_adam.noted import note
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

__all__ = ["Leaf", "Moment", "decay_masks", "per_leaf_transformation"]


class Leaf(NamedTuple):
    """What a rule may know of a leaf besides its moments; the arrays are in the dtype of the arithmetic.

    Attributes:
        path: the way to the leaf.
        grad: its gradient.
        param: the parameter θ, or None where `update` got no parameters.
        decay: λθ, or 0.0 where it does not decay; nothing merges its multiplication with an addition.
    """

    path: Path
    grad: Array
    param: Array | None
    decay: ArrayLike


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
    storage: Any = "float32",
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
        storage: how the moments rest, as the argument `moments` of the rules has it.
        **moments: the running statistics, in the order in which `per_leaf` takes and returns them; None for one that
            these hyperparameters have no use for, which then is None for the rule and in the state.

    Returns:
        The transformation. Its `init` raises TypeError for a leaf that is no array of a floating-point dtype, unless
        the rule has no moments and so needs nothing of it. Its `update` raises ValueError or TypeError for a tree, a
        shape or a dtype that does not go with the state. Both name the leaf's path.
    """
    present = {name: moment for name, moment in moments.items() if moment is not None}

    def known(storage: Any) -> None:
        unknown = [name for name in storage if name not in moments] if isinstance(storage, dict) else []
        if unknown:
            raise ValueError(f"moments has {unknown[0]!r}, which is none of this rule's: {', '.join(moments)}")

    def init(params: optax.Params) -> Any:
        if present:
            jax.tree_util.tree_map_with_path(functools.partial(inexact_dtype, real=real_leaves), params)
        known(storage)

        leaves, tree = jax.tree_util.tree_flatten_with_path(params)
        owns = [LeafMoments.of(present, storage, path, param) for path, param in leaves] if present else []

        def start(name: str) -> Any:
            entries = [own.start(name, path, param) for own, (path, param) in zip(owns, leaves, strict=True)]
            return field_of(tree, entries)

        state = state_type(count=jnp.zeros([], jnp.int32), **{name: start(name) for name in present})
        return note(
            state,
            params=params,
            moments=present,
            storage=storage,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            mask=weight_decay_mask,
        )

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, Any]:
        grads, tree = jax.tree_util.tree_flatten_with_path(updates)
        dtypes = [inexact_dtype(path, grad, real=real_leaves) for path, grad in grads]
        count, *resting = fields(state, "count", *present, of=state_type)
        owns = [LeafMoments.of(present, storage, path, grad) for path, grad in grads]
        paths = [path for path, _ in grads]
        columns = [entries_of(tree, each, name, owns, paths) for name, each in zip(present, resting, strict=True)]
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
            decays = decays if whole_leaf else _products(rates, decays)

        def one_leaf(path_and_grad, dtype, own, theta, decay, rate, scalars, *resting):
            path, grad = path_and_grad
            awake = arithmetic_dtype(dtype)
            number = functools.partial(scalar_like, path, grad, dtype=real_dtype(awake))
            value = jnp.asarray(grad, awake)
            theta = None if theta is None else theta.astype(awake)
            decay = None if decay is None or theta is None else jnp.asarray(number(decay))
            inputs = value, theta, decay, [number(scalar) for scalar in scalars]

            def rule(inputs: Any, resting: Sequence[Any]) -> Sequence[Any]:
                value, theta, decay, known = inputs
                by_name = dict(zip(present, resting, strict=True))
                has_squares = any(moment.real and by_name[name] is not None for name, moment in present.items())
                value = squarable(value) if has_squares else value
                term = 0.0 if decay is None else finite_product(decay, theta)
                leaf = Leaf(path, value, theta, term) if whole_leaf else value
                change, *after = per_leaf(leaf, *map(by_name.get, moments), *known)
                return change, *(each for name, each in zip(moments, after, strict=True) if name in present)

            try:
                change, after = own.step(rule, path, inputs, resting, step, rounded=UNROUNDED not in extra_args)
            except (TypeError, ValueError) as error:
                if type(error) not in (TypeError, ValueError) or str(error).startswith(leaf_name(path)):
                    raise
                raise type(error)(f"{leaf_name(path)}: {error}") from error
            if decay is not None and theta is not None and not whole_leaf:
                change = change + finite_product(decay, theta)
            return [array_like(path, grad, change, awake, "the update").astype(dtype), *after]

        rows = list(map(one_leaf, grads, dtypes, owns, thetas, decays, rates, scalars, *columns))
        new_updates, *new_moments = ([row[i] for row in rows] for i in range(1 + len(present)))
        fields_after = {name: field_of(tree, each) for name, each in zip(present, new_moments, strict=True)}
        return jax.tree.unflatten(tree, new_updates), state_type(count=step, **fields_after)

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


def _products(rates: list[Any], decays: list[Any]) -> list[Any]:
    """−αλ for each leaf, computed once for each pair; None where there is no decay.

    It is one number, since of two successive multiplications a compiler makes one where it knows both factors.
    """
    pairs = {(id(rate), id(decay)): (rate, decay) for rate, decay in zip(rates, decays, strict=True)}
    products = {key: None if decay is None else rate * decay for key, (rate, decay) in pairs.items()}
    return [products[id(rate), id(decay)] for rate, decay in zip(rates, decays, strict=True)]


def _decays(weight_decay: Any, mask: Any, params: Any, count: Array) -> list[Any]:
    """λ for each leaf, or None where it does not decay."""
    decays = _at(weight_decay, count, params, "weight_decay")
    return [decay if each else None for decay, each in zip(decays, decay_masks(mask, params), strict=True)]


def decay_masks(mask: Any, params: Any) -> list[bool]:
    """Whether each leaf decays, by the mask of weight decay."""
    mask = True if mask is None else mask(params) if callable(mask) and not _like(mask, params) else mask
    return [
        flag("the mask of weight_decay", each) for each in broadcast_prefix(mask, params, "the mask of weight_decay")
    ]
