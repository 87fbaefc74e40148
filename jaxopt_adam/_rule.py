"""The layer that takes a rule over a tree: dtypes, the step counter, storage, weight decay and its mask.

A rule is arithmetic for one leaf, in two halves: what the moments become, and what the update is, given the moments
before and after. The halves meet only in the moments as they are stored.
"""

import collections
import functools
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxopt_adam._averages import finite_product, squarable
from jaxopt_adam._hyperparameters import flag, scheduled
from jaxopt_adam._notes import note
from jaxopt_adam._trees import (
    Path,
    array_like,
    broadcast_prefix,
    fields,
    inexact_dtype,
    leaf_name,
    leaves_like,
    real_scalars,
    scalar_like,
)
from jaxopt_adam.storage._fields import entries_of, field_of
from jaxopt_adam.storage._leaf import UNROUNDED, LeafStorage, storage_of_leaves
from jaxopt_adam.storage._moment import Moment
from jaxopt_adam.storage._passes import Halves


class AdamState(NamedTuple):
    """The state of the rules whose two moments are Adam's.

    Attributes:
        count: the number of updates done, int32.
        mu: the first moment, the average of g; a tree like the parameters.
        nu: the second moment, an average of ``|g|²`` or of what stands for it; a tree like the parameters, real.
    """

    count: Array
    mu: Any
    nu: Any


class Step(types.SimpleNamespace):
    """The step, as a rule sees it besides the gradient and the moments.

    Attributes:
        count: which step it is, from 1, int32.
        rate: the learning rate α; −1 where it is None, so that −α times a direction is the direction.
        state: the fields of the state that are no moments, by name, as they are before the step; for `scalars` only.
        path: the way to the leaf. This and what follows is there for the halves only.
        param: the parameter θ in the dtype of the arithmetic, or None where `update` got no parameters or the rule does
            not see to weight decay itself.
        decay: λθ, or 0.0 where the leaf does not decay; no compiler can merge its multiplication with an addition.

    What the rule's `scalars` gives is there by name too, floating-point numbers in the real dtype of the arithmetic.
    """


Scalars = Callable[[Any], Mapping[str, Any]]
First = Callable[[Array, Any, Any], Any]
Second = Callable[[Array, Any, Any, Any], Array]


def leafwise(
    state_type: Callable[..., Any],
    moments: First,
    update: Second,
    scalars: Scalars | None = None,
    *,
    storage: Any,
    learning_rate: Any,
    weight_decay: Any = 0.0,
    mask: Any = None,
    sees_to_decay: bool = False,
    needs_params: bool = False,
    real_leaves: bool = False,
    others: Mapping[str, Any] | None = None,
    finish: Callable[..., Mapping[str, Any]] | None = None,
    **kept: Moment | None,
) -> optax.GradientTransformationExtraArgs:
    """A gradient transformation of trees from a rule for one leaf.

    Args:
        state_type: makes a state of `count`, the moments and the `others`, given by name.
        moments: ``moments(grad, old, step) -> new``: the moments after the step. `old` is a named tuple of the moments
            as they are loaded, and so is `new`, as from ``old._replace(mu=...)``. Every array comes in the dtype of the
            arithmetic.
        update: ``update(grad, old, new, step) -> update``: what is added to the parameter; `new` as it is stored.
        scalars: ``scalars(step) -> dict``: what is the same for all leaves, computed once a step; see :class:`Step`.
        storage: how the moments are stored, as the argument `moments` of the rules has it.
        learning_rate: α, a schedule for it, a tree of these with the tree of the parameters or a prefix of it, or None.
        weight_decay: λ, a schedule or a tree as for α. αλθ is subtracted from the update (which is the decoupled decay
            of AdamW); the step needs the parameters θ for it, unless λ is plainly 0.0.
        mask: which leaves decay, as in optax: a tree of booleans, a prefix of one, or a function from the parameters to
            one; None for all.
        sees_to_decay: whether the rule sees to the decay itself, by `step.decay` and `step.param`.
        needs_params: whether the rule needs the parameters also without weight decay.
        real_leaves: whether the rule has no meaning for complex leaves, which then are refused.
        others: the numbers that the state's fields start from that are neither `count` nor moments.
        finish: ``finish(step, grads, params, moments) -> dict``: the `others` after the step, from whole trees.
        **kept: the running statistics by name; None for one that these hyperparameters have no use for, which then is
            None for the rule and in the state.

    Returns:
        The transformation. Its `init` raises TypeError for a leaf that is no array of a floating-point dtype, unless
        the rule has no moments and so needs nothing of it. Its `update` raises ValueError or TypeError for a tree, a
        shape or a dtype that does not go with the state. Both name the leaf's path.

    Example:
        >>> from typing import Any, NamedTuple
        >>> import jax.numpy as jnp
        >>> from jaxopt_adam import Moment, ema, leafwise, optimizer
        >>> class SignumState(NamedTuple):
        ...     count: Any
        ...     mu: Any
        >>> @optimizer
        ... def signum(learning_rate, decay=0.9, moments="float32"):
        ...     def first(grad, old, step):
        ...         return old._replace(mu=ema(old.mu, grad, decay))
        ...
        ...     def second(grad, old, new, step):
        ...         return -step.rate * jnp.sign(new.mu)
        ...
        ...     return leafwise(SignumState, first, second, storage=moments, learning_rate=learning_rate, mu=Moment())
        >>> update, state = signum(0.5).update(3.0, signum(0.5).init(1.0))
        >>> print(update)
        -0.5
    """
    present = {name: moment for name, moment in kept.items() if moment is not None}
    extra = dict(others or {})

    def init(params: optax.Params) -> Any:
        if present:
            jax.tree_util.tree_map_with_path(functools.partial(inexact_dtype, real=real_leaves), params)
        unknown = [name for name in storage if name not in kept] if isinstance(storage, dict) else []
        if unknown:
            raise ValueError(f"moments has {unknown[0]!r}, which is none of this rule's: {', '.join(kept)}")
        leaves, tree = jax.tree_util.tree_flatten_with_path(params)
        owns = storage_of_leaves(present, storage, leaves if present else [])
        rows = [own.start(path, param) for own, (path, param) in zip(owns, leaves, strict=False)]
        starts = {name: field_of(tree, [row[index] for row in rows]) for index, name in enumerate(present)}
        started = {name: jnp.array(value, jnp.result_type(float)) for name, value in extra.items()}
        state = state_type(count=jnp.zeros([], jnp.int32), **starts, **started)
        return note(
            state,
            params=params,
            moments=present,
            storage=storage,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            mask=mask,
        )

    def transform(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, Any]:
        grads, tree = jax.tree_util.tree_flatten_with_path(updates)
        for path, grad in grads:
            inexact_dtype(path, grad, real=real_leaves)
        count, *rest = fields(state, "count", *present, *extra, of=state_type)
        stored, values = rest[: len(present)], real_scalars(*rest[len(present) :], of=tuple(extra))
        owns = storage_of_leaves(present, storage, grads)
        paths = [path for path, _ in grads]
        columns = [entries_of(tree, each, name, owns, paths) for name, each in zip(present, stored, strict=True)]
        step = jnp.asarray(optax.safe_increment(count))
        rates = _rates(learning_rate, updates, count)
        before = types.SimpleNamespace(**dict(zip(extra, values, strict=True)))
        unlike = {id(rate): rate for rate in rates}
        steps = {key: _step(scalars, count=step, rate=rate, state=before) for key, rate in unlike.items()}
        if not rates and finish is not None:
            steps = {0: _step(scalars, count=step, rate=scheduled(learning_rate, count, "learning_rate"), state=before)}
        thetas = decays = [None] * len(grads)
        numbers = jax.tree.leaves(weight_decay)
        decaying = not numbers or not all(isinstance(each, float) and each == 0.0 for each in numbers)
        if params is None and (decaying or needs_params):
            what = "this rule" if needs_params else "weight_decay"
            raise ValueError(f"{what} needs the parameters: call update(gradients, state, params)")
        if decaying or (sees_to_decay and params is not None):
            thetas = [
                array_like(path, grad, theta, None, "the parameter")
                for (path, grad), theta in zip(grads, leaves_like(tree, params, "params"), strict=True)
            ]
        if decaying:
            decays = _decays(weight_decay, mask, params, count)
            decays = decays if sees_to_decay else _products(rates, decays)
        tuple_type = _moments_type(tuple(kept))
        rounded = UNROUNDED not in extra_args
        cast: dict[Any, Any] = {}

        def one_leaf(
            path: Path, grad: Any, own: LeafStorage, theta: Any, decay: Any, rate: Any, *entries: Any
        ) -> list[Any]:
            compute, real = own.compute, own.real
            key = id(rate), real
            if key not in cast:
                shared = {name: each for name, each in vars(steps[id(rate)]).items() if name != "state"}
                cast[key] = jax.tree.flatten(jax.tree.map(functools.partial(_cast, dtype=real), shared))
            scalars_of_leaf, scalars_tree = cast[key]
            for scalar in scalars_of_leaf:
                if np.ndim(scalar):
                    scalar_like(path, grad, scalar, real)
            value = jnp.asarray(grad, compute)
            theta = None if theta is None else theta.astype(compute)
            decay = None if decay is None or theta is None else scalar_like(path, grad, decay, real)

            def known(inputs: Any) -> tuple[Array, Step]:
                value, theta, decay, scalars_of_leaf = inputs
                term = 0.0 if decay is None else finite_product(decay, theta)
                by_name = jax.tree.unflatten(scalars_tree, scalars_of_leaf)
                grad = squarable(value) if own.has_squares else value
                return grad, Step(**by_name, path=path, param=theta, decay=term)

            def first(inputs: Any, old: Sequence[Any]) -> list[Any]:
                grad, step = known(inputs)
                new = moments(grad, tuple_type(**dict(zip(present, old, strict=True))), step)
                return [getattr(new, name) for name in present]

            def second(inputs: Any, old: Sequence[Any], new: Sequence[Any]) -> Array:
                grad, step = known(inputs)
                before, after = dict(zip(present, old, strict=True)), dict(zip(present, new, strict=True))
                return update(grad, tuple_type(**before), tuple_type(**after), step)

            inputs = value, *((theta, decay) if sees_to_decay else (None, None)), scalars_of_leaf
            try:
                change, after = own.step(Halves(first, second), path, inputs, entries, step, rounded=rounded)
            except (TypeError, ValueError) as error:
                if type(error) not in (TypeError, ValueError) or str(error).startswith(leaf_name(path)):
                    raise
                raise type(error)(f"{leaf_name(path)}: {error}") from error
            if decay is not None and theta is not None and not sees_to_decay:
                change = change + finite_product(decay, theta)
            return [array_like(path, grad, change, compute, "the update").astype(own.dtype), *after]

        rows = [
            one_leaf(path, grad, *rest)
            for (path, grad), *rest in zip(grads, owns, thetas, decays, rates, *columns, strict=True)
        ]
        new_updates, *new_moments = ([row[i] for row in rows] for i in range(1 + len(present)))
        after = {name: field_of(tree, each) for name, each in zip(present, new_moments, strict=True)}
        if finish is not None:
            after |= finish(next(iter(steps.values())), updates, params, types.SimpleNamespace(**after))
        return jax.tree.unflatten(tree, new_updates), state_type(count=step, **after)

    return optax.GradientTransformationExtraArgs(init, transform)


def _step(scalars: Scalars | None, **known: Any) -> Step:
    step = Step(**known)
    if scalars is not None:
        vars(step).update(scalars(step))
    return step


def _cast(value: Any, dtype: np.dtype) -> Any:
    """A number that is the same for all leaves: in `dtype` if it is a floating-point one, otherwise as it is."""
    return jnp.asarray(value, dtype) if jnp.issubdtype(jnp.result_type(value), jnp.floating) else value


@functools.cache
def _moments_type(names: tuple[str, ...]) -> Any:
    return collections.namedtuple("Moments", names, defaults=[None] * len(names))


def _at(value: Any, count: Array, updates: Any, what: str) -> list[Any]:
    """A hyperparameter after `count` updates, for each leaf of `updates`.

    It is a number or a schedule, or a tree of these with the tree of the updates, or a prefix of it.
    """
    entries = broadcast_prefix(value, updates, what)
    unlike = {id(entry): entry for entry in entries}
    now = {key: scheduled(entry, count, what) for key, entry in unlike.items()}
    return [now[id(entry)] for entry in entries]


def _like(value: Any, updates: Any) -> bool:
    """True if `value` is a tree like the updates, even one that can be called, as equinox's models can."""
    return not jax.tree_util.all_leaves([value]) and jax.tree.structure(value) == jax.tree.structure(updates)


def _rates(learning_rate: Any, updates: Any, count: Array) -> list[Any]:
    """α for each leaf, or −1 without a learning rate; the same object where it is the same number."""
    if learning_rate is None:
        return [-1.0] * len(jax.tree.leaves(updates))
    return _at(learning_rate, count, updates, "learning_rate")


def _products(rates: list[Any], decays: list[Any]) -> list[Any]:
    """−αλ for each leaf, computed once for each pair; None where there is no decay.

    It is one number, since of two successive multiplications a compiler makes one where it knows both factors.
    """
    pairs = {(id(rate), id(decay)): (rate, decay) for rate, decay in zip(rates, decays, strict=True)}
    products = {key: None if decay is None else -rate * decay for key, (rate, decay) in pairs.items()}
    return [products[id(rate), id(decay)] for rate, decay in zip(rates, decays, strict=True)]


def _decays(weight_decay: Any, mask: Any, params: Any, count: Array) -> list[Any]:
    """λ for each leaf, or None where it does not decay."""
    decays = _at(weight_decay, count, params, "weight_decay")
    return [decay if each else None for decay, each in zip(decays, decay_masks(mask, params), strict=True)]


def decay_masks(mask: Any, params: Any) -> list[bool]:
    """For each leaf, True if it decays by the mask of weight decay."""
    mask = True if mask is None else mask(params) if callable(mask) and not _like(mask, params) else mask
    return [
        flag("the mask of weight_decay", each) for each in broadcast_prefix(mask, params, "the mask of weight_decay")
    ]
