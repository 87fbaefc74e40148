"""The layer that applies a rule to a tree: dtypes, the step counter, storage, weight decay and its mask.

A rule is arithmetic for one leaf, in two halves: what the moments become, and what the update is, given the moments
before and after. The halves meet only in the moments as they are stored.
"""

import collections
import functools
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.core import Tracer

from jaxopt_adam._averages import ARE_BOUNDED, finite_product, squarable
from jaxopt_adam._eager import Compilable
from jaxopt_adam._hyperparameters import flag, not_negative, scheduled
from jaxopt_adam._notes import note
from jaxopt_adam._rule_checks import (
    OF_STEP,
    check_declared,
    check_moment,
    check_update,
    checked_others,
    checked_scalars,
    refuse_moments,
    rule_name,
)
from jaxopt_adam._trees import (
    Path,
    array_like,
    broadcast_prefix,
    fields,
    inexact_dtype,
    leaf_name,
    leaves_like,
    real_scalars,
    refuse_part,
    scalar_like,
    within_shard_map,
)
from jaxopt_adam._xla import again, fence, is_staged
from jaxopt_adam.storage._fields import entries_of, field_of
from jaxopt_adam.storage._leaf import UNROUNDED, LeafStorage
from jaxopt_adam.storage._leaves import storage_of_leaves
from jaxopt_adam.storage._moment import Moment
from jaxopt_adam.storage._passes import Halves


class AdamState(NamedTuple):
    """The state of the rules whose two moments are Adam's.

    Attributes:
        count: the number of updates done, int32.
        mu: the first moment, the average of g; a tree like the parameters.
        nu: the second moment, an average of ``|g|²`` or of what the rule has in its place; a tree like the parameters,
            real.
    """

    count: Array
    mu: Any
    nu: Any


class Step(types.SimpleNamespace):
    """The knowledge that a rule has of the step, besides the gradient and the moments.

    Attributes:
        count: the number of the step, from 1, int32.
        rate: the learning rate α; −1 where it is None, so that −α times a direction is the direction.
        state: for `scalars` and `finish` only: the `others` by name, as they are before the step.
        grads: for `scalars` and `finish` only: the tree of the gradients.
        params: for `scalars` and `finish` only: the tree of the parameters, or None.
        moments: for `scalars` and `finish` only: the moments by name, as they are in the state before the step.
        path: for `first` and `second` only, as what follows is: the path of the leaf.
        grad: the gradient as it came. If a moment is an average of squares, the gradient that the halves get as an
            argument is this one bounded in size, so that its square is finite.
        param: the parameter θ in the dtype of the arithmetic; only with `needs_params`.
        decay: λθ, an array, or 0.0 where the leaf does not decay; only with `sees_to_decay`. No compiler can merge its
            multiplication with an addition.
        keep: ``keep(arrays)`` returns the same arrays. The compiler writes them to memory before anything reads them.
            Without it, XLA computes a new moment twice on a CPU if the moment is read twice.
        again: ``again(array, count)`` returns the same array. The compiler takes it for another array and computes it a
            second time, in place of keeping it in memory from its first use to its second. If `count` was returned by
            `keep`, together with some moments, the array is computed after these moments are written.

    `keep` and `again` save time and memory, and change no number. Neither does anything where moments are rounded,
    because rounded moments are written to memory in any case.

    The halves and `finish` also find here what `scalars` returned, by name. For the halves its floating-point numbers
    are in the real dtype of the arithmetic. What a step does not have raises AttributeError, which says where it is
    found or which argument of :func:`leafwise` it takes.
    """

    def __getattr__(self, name: str) -> NoReturn:
        # Called for what is not there.
        raise AttributeError(f"step has no {name!r} here: {OF_STEP.get(name, 'scalars returned no such number')}")


Scalars = Callable[[Any], Mapping[str, Any]]
First = Callable[[Array, Any, Any], Any]
Second = Callable[[Array, Any, Any, Any], Array]


def leafwise(
    state_type: Callable[..., Any],
    first: First,
    second: Second,
    scalars: Scalars | None = None,
    *,
    storage: Any,
    learning_rate: Any,
    weight_decay: Any = 0.0,
    mask: Any = None,
    sees_to_decay: bool = False,
    needs_params: bool = False,
    real_leaves: bool = False,
    elementwise: bool = True,
    others: Mapping[str, Any] | None = None,
    finish: Callable[..., Mapping[str, Any]] | None = None,
    **kept: Moment | None,
) -> optax.GradientTransformationExtraArgs:
    """A gradient transformation of trees from a rule for one leaf.

    Args:
        state_type: the type of the state, such as a named tuple, with the fields `count`, the moments and the `others`.
        first: ``first(grad, old, step) -> new``, the first half: the moments after the step. `old` is a named tuple of
            the moments before it, and `new` another, as from ``old._replace(mu=...)``. Every array comes in the dtype
            of the arithmetic and is returned in it.
        second: ``second(grad, old, new, step) -> update``, the second half: the update, which is added to the
            parameter. `new` has the moments as they are stored.
        scalars: ``scalars(step) -> dict``: numbers that all leaves share, computed once a step, by names that a
            :class:`Step` does not have already. The halves find them as attributes of `step`.
        storage: the storage of the moments, as in the argument `moments` of the rules.
        learning_rate: α, a schedule for it, a tree of these with the tree of the parameters or a prefix of it, or None.
        weight_decay: λ, a schedule or a tree as for α. αλθ is subtracted from the update (which is the decoupled decay
            of AdamW); the step needs the parameters θ for it, unless λ is the Python number 0.0.
        mask: which leaves decay, as in optax: a tree of booleans, a prefix of one, or a function from the parameters to
            one; None for all.
        sees_to_decay: whether the rule applies the decay itself. The halves then find λθ as `step.decay`, and nothing
            is subtracted from the update.
        needs_params: whether the rule needs the parameters. The halves then find θ as `step.param`.
        real_leaves: whether complex leaves are refused, because the rule has no meaning for them.
        elementwise: whether no element of an update depends on another element of its leaf. Otherwise, the rule is
            refused within :func:`jax.shard_map` where a device may have only a part of a leaf. A rule that computes
            along single axes needs ``storage="float32"``, because moments in codes come as blocks, with other axes.
        others: the initial numbers of the state's fields that are neither `count` nor moments.
        finish: ``finish(step, grads, params, moments) -> dict``: the `others` after the step. `step` is what `scalars`
            got, with what it returned; where leaves have learning rates of their own, it is that of the first leaf.
            `grads` and `params` are whole trees. `moments` has the moments after the step by name, as in the state.
        **kept: the moments by name, each a :class:`Moment`; None for one that is not needed with these hyperparameters.
            It is then None for the rule and in the state.

    Returns:
        The transformation. Its `init` raises TypeError for a leaf that is not an array of a floating-point dtype,
        unless the rule has no moments. Its `update` raises ValueError or TypeError for a tree, a shape or a dtype that
        does not match the state. Both name the leaf's path. `update` also raises them for what the rule's functions
        should not return.

    Raises:
        TypeError: if a function or a moment is none, or an argument is misspelled.
        ValueError: if the state's fields are not `count`, the moments and the `others`; if the `over` of a moment names
            no average of squares; if there are `others` and no `finish`. Errors name the function around `first`, which
            is the rule.

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
    extra = dict(others or {})
    functions = {"first": first, "second": second, "scalars": scalars, "finish": finish}
    check_declared(state_type, functions, extra, kept, leafwise.__kwdefaults__ or ())
    present = {name: moment for name, moment in kept.items() if moment is not None}
    rule = _Rule(first, second, _moments_type(tuple(kept)), tuple(present), sees_to_decay, needs_params)

    def init(params: optax.Params) -> Any:
        if present:
            jax.tree_util.tree_map_with_path(functools.partial(inexact_dtype, real=real_leaves), params)
        unknown = [name for name in storage if name not in kept] if isinstance(storage, dict) else []
        if unknown:
            raise ValueError(f"moments has {unknown[0]!r}, which is none of this rule's: {', '.join(kept)}")
        leaves, tree = jax.tree_util.tree_flatten_with_path(params)
        storages = storage_of_leaves(present, storage, leaves if present else [])
        rows = [leaf.start(path, param) for leaf, (path, param) in zip(storages, leaves, strict=False)]
        starts = dict.fromkeys(kept)
        starts |= {name: field_of(tree, [row[index] for row in rows], storages) for index, name in enumerate(present)}
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

    def thetas_and_decays(grads: list[Any], tree: Any, params: Any, count: Array, rates: list[Any]) -> tuple[Any, Any]:
        """For each leaf θ; and λ if the rule applies weight decay itself, else −αλ. None where nothing needs it."""
        thetas = decays = [None] * len(grads)
        numbers = jax.tree.leaves(weight_decay)
        is_decaying = not numbers or not all(isinstance(number, float) and number == 0.0 for number in numbers)
        if params is None and (is_decaying or needs_params):
            what = rule_name(first) if needs_params else f"{rule_name(first)}: weight_decay"
            raise ValueError(f"{what} needs the parameters: call update(gradients, state, params)")
        if is_decaying or needs_params:
            thetas = [
                array_like(path, grad, theta, None, "the parameter")
                for (path, grad), theta in zip(grads, leaves_like(tree, params, "params"), strict=True)
            ]
        if is_decaying:
            decays = _decays(weight_decay, mask, params, count)
            decays = decays if sees_to_decay else _products(rates, decays)
        return thetas, decays

    def transform(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, Any]:
        grads, tree = jax.tree_util.tree_flatten_with_path(updates)
        for path, grad in grads:
            inexact_dtype(path, grad, real=real_leaves)
        count, *rest = fields(state, "count", *present, *extra, of=state_type)
        stored, values = rest[: len(present)], real_scalars(*rest[len(present) :], of=tuple(extra))
        storages = storage_of_leaves(present, storage, grads)
        paths = [path for path, _ in grads]
        for leaf, (path, grad) in zip(storages, grads, strict=True) if within_shard_map() else ():
            if not elementwise:
                refuse_part(path, grad, "this rule computes with all elements of a leaf together")
            if not leaf.is_plain:
                refuse_part(path, grad, "its moments are rounded by the positions of the elements in the whole leaf")
        try:
            columns = [
                entries_of(tree, field, name, storages, paths) for name, field in zip(present, stored, strict=True)
            ]
            entries = [leaf.checked(path, own) for leaf, path, *own in zip(storages, paths, *columns, strict=True)]
        except (TypeError, ValueError) as error:
            for path, grad in grads:
                refuse_part(path, grad, f"its state is that of the whole leaf: {error}")
            raise
        step = jnp.asarray(optax.safe_increment(count))
        whole = {
            "state": types.SimpleNamespace(**dict(zip(extra, values, strict=True))),
            "grads": updates,
            "params": params,
            "moments": types.SimpleNamespace(**dict(zip(present, stored, strict=True))),
        }

        def step_of(rate: Any) -> Step:
            return _step(scalars, count=step, rate=rate, **whole)

        rates = _rates(learning_rate, updates, count)
        thetas, decays = thetas_and_decays(grads, tree, params, count, rates)
        steps = _once_for_same(step_of, rates)
        shared = _once_for_same(_cast_scalars, steps, [leaf.real for leaf in storages])
        is_compiled = is_staged()
        kinds: dict[Any, Callable[..., list[Any]]] = {}
        rows = []
        for (path, grad), leaf, theta, decay, (scalars_tree, numbers), own in zip(
            grads, storages, thetas, decays, shared, entries, strict=True
        ):
            kind = id(leaf), id(numbers)
            if kind not in kinds or not is_compiled:
                run = functools.partial(_step_of_leaf, rule, path, leaf, scalars_tree, UNROUNDED not in extra_args)
                # So leaves that are alike share a trace and a lowering.
                kinds[kind] = jax.jit(run) if is_compiled else run
            rows.append(kinds[kind](grad, theta, decay, numbers, own, step))
        new_updates, *new_moments = ([row[i] for row in rows] for i in range(1 + len(present)))
        after = dict.fromkeys(kept)
        after |= {name: field_of(tree, column, storages) for name, column in zip(present, new_moments, strict=True)}
        if finish is not None:
            of_step = steps[0] if steps else step_of(scheduled(learning_rate, count, "learning_rate"))
            others_after = finish(of_step, updates, params, types.SimpleNamespace(**after))
            after |= checked_others(finish, others_after, extra)
        return jax.tree.unflatten(tree, new_updates), state_type(count=step, **after)

    return Compilable(init, transform)


_WHOLE = "state", "grads", "params", "moments"
"""The attributes of a step that are not for the halves."""


class _Rule(NamedTuple):
    """A rule, as :func:`leafwise` is given it.

    Attributes:
        first: the first half.
        second: the second half.
        moments: the type of the named tuples of moments that the halves get.
        present: the names of the moments that are not None.
        sees_to_decay: whether it applies weight decay itself.
        needs_params: whether it needs the parameter.
    """

    first: First
    second: Second
    moments: Any
    present: tuple[str, ...]
    sees_to_decay: bool
    needs_params: bool


def _step_of_leaf(
    rule: _Rule,
    path: Path,
    storage: LeafStorage,
    scalars_tree: Any,
    is_rounded: bool,
    grad: Any,
    theta: Array | None,
    decay: Any,
    scalars: list[Any],
    entries: Sequence[Any],
    step: Array,
) -> list[Any]:
    """The update of a leaf, and the entries of its moments after the step.

    Args:
        rule: the rule.
        path: the path of the leaf.
        storage: how its moments are stored.
        scalars_tree: the structure of `scalars`.
        is_rounded: whether its moments are rounded to their storage.
        grad: its gradient.
        theta: its parameter θ, None if nothing needs it.
        decay: λ if the rule applies weight decay itself, otherwise −αλ; None if the leaf does not decay.
        scalars: the numbers that all leaves share.
        entries: its moments before the step, as they are in the state, checked.
        step: the number of the step, from 1.
    """
    for scalar in scalars:
        if np.ndim(scalar):
            scalar_like(path, grad, scalar, storage.real)
    value = jnp.asarray(grad, storage.compute)
    theta = None if theta is None else theta.astype(storage.compute)
    decay = None if decay is None or theta is None else scalar_like(path, grad, decay, storage.real)
    is_read = rule.sees_to_decay or rule.needs_params
    inputs = value, theta if is_read else None, decay if rule.sees_to_decay else None, scalars
    halves = _halves_of_leaf(rule, path, storage, scalars_tree)
    try:
        change, after = storage.step(halves, inputs, entries, step, rounded=is_rounded)
    except (TypeError, ValueError) as error:
        if type(error) not in (TypeError, ValueError) or str(error).startswith(leaf_name(path)):
            raise
        raise type(error)(f"{leaf_name(path)}: {error}") from error
    if decay is not None and theta is not None and not rule.sees_to_decay:
        change = change + finite_product(decay, theta)
    return [array_like(path, grad, change, storage.compute, "the update").astype(storage.dtype), *after]


def _halves_of_leaf(rule: _Rule, path: Path, storage: LeafStorage, scalars_tree: Any) -> Halves:
    """The two halves as functions of all arrays that they read, and of lists of moments."""

    def grad_and_step(inputs: Any) -> tuple[Array, Step]:
        value, theta, decay, scalars = inputs
        grad = squarable(value) if storage.has_squares else value
        step = Step(**jax.tree.unflatten(scalars_tree, scalars), path=path, grad=value)
        if rule.needs_params:
            step.param = theta
        if rule.sees_to_decay:
            step.decay = 0.0 if decay is None else finite_product(decay, theta)
        is_plain = storage.is_plain
        step.keep = functools.partial(fence, step.count) if is_plain else lambda arrays: arrays
        step.again = again if is_plain else lambda array, count: array
        return grad, step

    def first(inputs: Any, old: Sequence[Any]) -> list[Any]:
        grad, step = grad_and_step(inputs)
        token = ARE_BOUNDED.set(storage.has_squares)
        try:
            new = rule.first(grad, rule.moments(**dict(zip(rule.present, old, strict=True))), step)
        finally:
            ARE_BOUNDED.reset(token)
        try:
            values = [getattr(new, name) for name in rule.present]
        except AttributeError:
            refuse_moments(rule.first, new, rule.present)
        for name, value, before in zip(rule.present, values, old, strict=True):
            is_array = isinstance(before, Array) and isinstance(value, Array)
            if not is_array or value.shape != before.shape or value.dtype != before.dtype:
                check_moment(rule.first, path, name, value, before)
        return values

    def second(inputs: Any, old: Sequence[Any], new: Sequence[Any]) -> Array:
        grad, step = grad_and_step(inputs)
        before, after = dict(zip(rule.present, old, strict=True)), dict(zip(rule.present, new, strict=True))
        update = rule.second(grad, rule.moments(**before), rule.moments(**after), step)
        if not isinstance(update, Array) or update.shape != grad.shape:
            check_update(rule.second, path, update, grad)
        return update

    return Halves(first, second)


def _step(scalars: Scalars | None, **known: Any) -> Step:
    step = Step(**known)
    if scalars is not None:
        vars(step).update(checked_scalars(scalars, scalars(step)))
    return step


def _cast_scalars(step: Step, dtype: np.dtype) -> tuple[Any, list[Any]]:
    """The structure of the numbers that all leaves share, and these, the floating-point ones in `dtype`.

    XLA's CPU backend would compute them anew in the loop of each leaf, which takes twice as long to compile.
    """

    def cast(value: Any) -> Any:
        return jnp.asarray(value, dtype) if jnp.issubdtype(jnp.result_type(value), jnp.floating) else value

    numbers, tree = jax.tree.flatten({name: value for name, value in vars(step).items() if name not in _WHOLE})
    numbers = list(map(cast, numbers))
    computed = [index for index, value in enumerate(numbers) if isinstance(value, Tracer) and not value.ndim]
    for index, value in zip(computed, fence(step.count, [numbers[index] for index in computed]), strict=True):
        numbers[index] = value
    return tree, numbers


def _once_for_same(function: Callable[..., Any], *columns: Sequence[Any]) -> list[Any]:
    """``function(*row)`` for each row of the columns, called once for all rows of the same objects."""
    results: dict[Any, Any] = {}
    for row in zip(*columns, strict=True):
        key = tuple(map(id, row))
        if key not in results:
            results[key] = function(*row)
    return [results[tuple(map(id, row))] for row in zip(*columns, strict=True)]


@functools.cache
def _moments_type(names: tuple[str, ...]) -> Any:
    return collections.namedtuple("Moments", names, defaults=[None] * len(names))


def _at(value: Any, count: Array, updates: Any, what: str) -> list[Any]:
    """A hyperparameter after `count` updates, for each leaf of `updates`.

    It is a number or a schedule, or a tree of these with the tree of the updates, or a prefix of it.
    """
    return _once_for_same(
        lambda entry: not_negative(scheduled(entry, count, what), what), broadcast_prefix(value, updates, what)
    )


def _like(value: Any, updates: Any) -> bool:
    """True if `value` is a tree like the updates, even one that can be called, such as a model of equinox's."""
    return not jax.tree_util.all_leaves([value]) and jax.tree.structure(value) == jax.tree.structure(updates)


def _rates(learning_rate: Any, updates: Any, count: Array) -> list[Any]:
    """α for each leaf, or −1 without a learning rate; the same object where it is the same number."""
    if learning_rate is None:
        return [-1.0] * len(jax.tree.leaves(updates))
    return _at(learning_rate, count, updates, "learning_rate")


def _products(rates: list[Any], decays: list[Any]) -> list[Any]:
    """−αλ for each leaf; None where there is no decay.

    It is multiplied before θ is. A compiler merges two multiplications by factors that it knows, and rounds otherwise
    than with factors that it does not know.
    """
    return _once_for_same(lambda rate, decay: None if decay is None else -rate * decay, rates, decays)


def _decays(weight_decay: Any, mask: Any, params: Any, count: Array) -> list[Any]:
    """λ for each leaf, or None where it does not decay."""
    decays = _at(weight_decay, count, params, "weight_decay")
    masks = decay_masks(mask, params)
    return [decay if is_decaying else None for decay, is_decaying in zip(decays, masks, strict=True)]


def decay_masks(mask: Any, params: Any) -> list[bool]:
    """For each leaf, True if it decays by the mask of weight decay."""
    mask = True if mask is None else mask(params) if callable(mask) and not _like(mask, params) else mask
    return [
        flag("the mask of weight_decay", each) for each in broadcast_prefix(mask, params, "the mask of weight_decay")
    ]
