"""Assertions on the values of an optimizer's step that can be switched on."""

import dataclasses
import functools
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.experimental import checkify
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir
from jax.tree_util import keystr
from jax.typing import ArrayLike

from jaxopt_adam import _hyperparameters as kinds
from jaxopt_adam._averages import bias_correction, debias, ema, most_squarable
from jaxopt_adam._data import same
from jaxopt_adam._optimizer import Optimizer, optimizer
from jaxopt_adam._trees import arithmetic_dtype, leaf_name

# The moments that are averages, sums or maxima of magnitudes or of their squares, as the rules here and optax name
# them: a rule takes their root or divides by them.
_NONNEGATIVE = {"nu", "nu_max", "n", "sum_of_squares", "e_g", "e_x", "v_row", "v_col"}
_DECAYS = (
    kinds.Decay,
    kinds.Decays,
    kinds.OptionalDecay,
    kinds.PositiveDecay,
    kinds.ScheduledDecay,
    kinds.TwoDecays,
)


@optimizer
def checked(optimizer: kinds.Transformation) -> optax.GradientTransformationExtraArgs:
    r"""The same optimizer with assertions on the values in each of its steps.

    The state and the updates are those of `optimizer`. A run can therefore continue with or without the assertions. At
    step :math:`t` the assertions are, in this order:

    - for every decay :math:`\beta` in [0, 1) of an :class:`~jaxopt_adam.Optimizer`:

      .. math:: 0 < c_t = 1 - \beta^t \le 1 \quad\text{and}\quad
                \frac{\beta c_{t-1} + (1 - \beta) \cdot 1}{c_t} = 1

      within the rounding of the arithmetic. The numerator is the next value of an average of the constant 1 that
      started at zero. By induction the debiased average of a constant is therefore the constant, at every step;
    - every gradient is finite. Rules with moments of squares or magnitudes (see below) clip gradients to what they can
      square, about 9e18 in float32. For these rules every gradient must also be within that limit;
    - every `count` in the state rises by one, or stays at int32's maximum;
    - no element of a moment of squares or magnitudes (the fields `nu`, `nu_max`, `n`, `sum_of_squares`, `e_g`, `e_x`,
      `v_row` and `v_col` of a state) is negative or NaN;
    - every update is finite.

    While a step is traced, chex asserts that a bias correction is one number for each decay, in float32 at least.

    In compiled code (:func:`jax.jit`, a loop of :mod:`jax.lax`) the assertions are off, unless it is run through
    :func:`chex.chexify` or :func:`jax.experimental.checkify.checkify`: as ``chex.chexify(jax.jit(step))``, or as
    ``jax.jit(checkify.checkify(step))``. Where nothing is compiled they are on.

    With the assertions off, the compiled program is exactly the one without `checked` and is called as fast. Only the
    tracing takes somewhat longer. With the assertions on, each array is read once more for each assertion on it, and
    XLA may fuse the arithmetic differently, and so round differently.

    Wrap an optimizer that makes a step at every call, as in ``optax.MultiSteps(checked(adam(0.1)), 8)``. The other way
    round, the assertion on `count` would fail, because `count` does not rise at every call. A transformation that uses
    one of the field names above for something else fails too. :func:`optax.contrib.reduce_on_plateau` does so with
    `count`, and :func:`optax.contrib.sophia` with `nu`.

    Args:
        optimizer: an :class:`~jaxopt_adam.Optimizer` or an :class:`optax.GradientTransformation`, a chain of them
            included. The decays that are checked are those of an Optimizer, and of Optimizers within it, except
            schedules.

    Returns:
        An :class:`~jaxopt_adam.Optimizer` with the state of `optimizer`. If an assertion fails, a ValueError names the
        leaf and the step of the first failure. `update` raises it, or chexify or checkify does if the code runs through
        them. The step is counted from 1, and is left out if the state has no `count`.

    Raises:
        TypeError: if `optimizer` is not a gradient transformation.

    Example:
        >>> import jax
        >>> from jax.experimental import checkify
        >>> from jaxopt_adam import adam, checked
        >>> optimizer = checked(adam(0.1))
        >>> state = optimizer.init({"w": jax.numpy.zeros(3)})
        >>> gradients = {"w": jax.numpy.array([1.0, jax.numpy.nan, jax.numpy.inf])}
        >>> error, _ = checkify.checkify(jax.jit(optimizer.update))(gradients, state)
        >>> print(error.get())
        leaf ['w'] at step 1: the gradient is not finite in 2 of 3 elements (`check` failed)
    """
    inner = optax.with_extra_args_support(optimizer)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        new_updates, new_state = inner.update(updates, state, params, **extra_args)
        seen = _Step(
            updates=new_updates,
            gradients=updates,
            decays=list(_decays(optimizer)),
            counts=_fields(state, {"count"}, updates),
            new_counts=_fields(new_state, {"count"}, updates),
            moments=_fields(new_state, _NONNEGATIVE, updates),
        )
        return _watched(seen), new_state

    return optax.GradientTransformationExtraArgs(inner.init, update)


class _Step(NamedTuple):
    """The values that are checked: trees, and by their names the decays, counts and moments of optimizer and states."""

    updates: Any
    gradients: Any
    decays: list[tuple[str, ArrayLike]]
    counts: dict[str, Any]
    new_counts: dict[str, Any]
    moments: dict[str, Any]


def _decays(made: Any) -> Iterator[tuple[str, ArrayLike]]:
    """The decays of an optimizer and of the optimizers within it, except schedules."""
    for part in jax.tree.leaves(made, is_leaf=lambda node: isinstance(node, Optimizer)):
        if isinstance(part, Optimizer):
            hints = typing.get_type_hints(part._factory, include_extras=True)
            for name, value in part.hyperparameters.items():
                if hints.get(name) in _DECAYS:
                    for path, decay in jax.tree.leaves_with_path(value, is_leaf=callable):
                        if not callable(decay):
                            yield f"{part._factory.__name__}'s {name}{keystr(path)}", decay
                else:
                    yield from _decays(value)


def _fields(state: optax.OptState, names: set[str], gradients: optax.Updates) -> dict[str, Any]:
    """The fields called one of `names` of the states within `state`.

    A part with the tree of the gradients is not searched: it is a moment, and a `nu` in it is the name of a parameter.
    """

    def is_moment(node: Any) -> bool:
        try:
            jax.tree.structure(node, is_leaf=_is_left_out).flatten_up_to(gradients)
        except ValueError:
            return False
        return True

    nodes = jax.tree.leaves_with_path(state, is_leaf=is_moment)
    return {keystr(path): node for path, node in nodes if path and getattr(path[-1], "name", None) in names}


def _is_left_out(node: Any) -> bool:
    """True for the entry of a leaf that a moment leaves out."""
    return node is None or isinstance(node, optax.MaskedNode)


class _Assertion(NamedTuple):
    """A message for a false `right`. It may quote {step}, {wrong} (the number of elements) and their {value}."""

    message: str
    right: Array
    value: ArrayLike | None = None


def _assertions(seen: _Step, steps: dict[str, Array]) -> Iterator[_Assertion]:
    # Of several that fail at once the first is reported, so causes come before what follows from them.
    for step in list(steps.values())[:1]:
        for name, decay in seen.decays:
            yield from _of_decay(_quoted(name), decay, step)
    at = " at step {step}" if steps else ""
    yield from _of_leaves(seen.gradients, f"{at}: the gradient is not finite", jnp.isfinite)
    if seen.moments:
        what = f"{at}: the gradient is so large that a rule that squares it takes it for less"
        yield from _of_leaves(seen.gradients, what, _is_squarable)
    for path, count in seen.new_counts.items():
        if path in steps:
            name = f"state{_quoted(path)} at step {{step}}"
            yield _Assertion(f"{name} has not risen by one", count == steps[path])
            yield _Assertion(f"{name} is negative", count >= 0)
    for path, moment in seen.moments.items():
        what = f"{at}: state{_quoted(path)} is negative or NaN"
        yield from _of_leaves(moment, what, lambda leaf: jnp.real(leaf) >= 0)
    yield from _of_leaves(seen.updates, f"{at}: the update is not finite", jnp.isfinite)


def _is_squarable(grad: Array) -> Array:
    return jnp.maximum(jnp.abs(grad.real), jnp.abs(grad.imag)) <= most_squarable(arithmetic_dtype(grad.dtype))


def _quoted(name: str) -> str:
    return name.replace("{", "{{").replace("}", "}}")


def _of_leaves(tree: Any, what: str, is_right: Callable[[Array], Array]) -> Iterator[_Assertion]:
    for path, leaf in jax.tree.leaves_with_path(tree):
        if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            message = f"{_quoted(leaf_name(path))}{what} in {{wrong}} of {jnp.size(leaf)} elements"
            yield _Assertion(message, is_right(jnp.asarray(leaf)))


def _of_decay(name: str, decay: ArrayLike, step: Array) -> Iterator[_Assertion]:
    name = f"{name} at step {{step}}"
    # A number was checked when the optimizer was made; an array may have been traced then, and what is very near to
    # one in float64 is one in float32.
    if isinstance(decay, Array):
        yield _Assertion(f"{name} is {{value}} and not in [0, 1)", (decay >= 0) & (decay < 1), decay)
    correction = bias_correction(decay, step)
    _assert_kind(correction, decay, step)
    in_range = (correction > 0) & (correction <= 1)
    yield _Assertion(f"{name} has the bias correction {{value}}, which is not in (0, 1]", in_range, correction)
    # A correction c is right to k ulp, so to kε: k is 2 in float32 and 6 in float64. In the average β c₋ + (1 - β) the
    # kε of c₋ and the three roundings of ema (of the smaller weight, the difference, and the product of these) make at
    # most kε of the whole. Its last rounding adds ε/2, and the division kε for its c and ε/2: in all (2k + 1) ε. Terms
    # of ε² do not count, since numbers next to one are multiples of ε/2.
    average = jnp.where(step > 1, bias_correction(decay, step - 1), 0)
    constant = debias(ema(average, 1.0, decay), decay, step)
    bound = (5 if constant.dtype == jnp.float32 else 13) * jnp.finfo(constant.dtype).eps
    stays = jnp.abs(constant - 1) <= bound
    yield _Assertion(f"{name} makes of a constant 1 the debiased average {{value}}", stays, constant)


def _assert_kind(correction: Array, decay: ArrayLike, step: Array) -> None:
    """Assert the kind of a bias correction: a number for each decay and step, in float32 at least."""
    import chex  # here, since nothing else needs it, and it takes a twentieth of a second to import

    chex.assert_type(correction, arithmetic_dtype(jnp.result_type(decay, float)))
    chex.assert_shape(correction, jnp.broadcast_shapes(jnp.shape(decay), jnp.shape(step)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Failure:
    """A message that checkify can carry out of a traced function, since it is a tree of arrays."""

    messages: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    which: Array
    step: Array
    wrong: Array
    value: Array

    def __str__(self) -> str:
        return self.messages[int(self.which)].format(step=self.step, wrong=self.wrong, value=self.value)


def _assert_all(seen: _Step) -> None:
    counts = {path: count for path, count in seen.counts.items() if kinds.is_number(count)}
    steps = {path: jnp.asarray(optax.safe_increment(count)) for path, count in counts.items()}
    assertions = list(_assertions(seen, steps))
    if not assertions:
        return
    # One check for all, since for each JAX looks through the whole program so far.
    wrong = jnp.stack([jnp.sum(~each.right, dtype=jnp.int32) for each in assertions])
    values = [
        0.0 if each.value is None else jnp.max(each.value, where=~each.right, initial=-jnp.inf) for each in assertions
    ]
    first = jnp.argmax(wrong > 0)
    failure = _Failure(
        messages=tuple(each.message for each in assertions),
        which=first,
        step=next(iter(steps.values()), jnp.int32(0)),
        wrong=wrong[first],
        value=jnp.asarray(values, jnp.float32)[first],
    )
    checkify.check(jnp.all(wrong == 0), "{failure}", failure=failure)


_ARRAY = object()


@dataclasses.dataclass(frozen=True, eq=False)
class _Layout:
    """A step without its arrays; equal to those that need the same program."""

    tree: Any
    leaves: tuple[Any, ...]

    def step(self, arrays: Sequence[Array]) -> _Step:
        rest = iter(arrays)
        return jax.tree.unflatten(self.tree, [next(rest) if leaf is _ARRAY else leaf for leaf in self.leaves])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Layout) and self.tree == other.tree and all(map(same, self.leaves, other.leaves))

    def __hash__(self) -> int:
        return hash(self.tree)


def _watched(seen: _Step) -> optax.Updates:
    """The updates of `seen`, with the assertions on it attached to them."""
    # A decay that is a number or of NumPy is exact, and so part of the program; all else is data.
    data = jax.tree.map(lambda leaf: jnp.asarray(leaf) if kinds.is_number(leaf) else leaf, seen)
    leaves, tree = jax.tree.flatten(data._replace(decays=seen.decays))
    arrays = [leaf for leaf in leaves if isinstance(leaf, Array)]
    layout = _Layout(tree, tuple(_ARRAY if isinstance(leaf, Array) else leaf for leaf in leaves))
    updates = _watched_p.bind(*arrays, call_jaxpr=jax.make_jaxpr(_assert_of, static_argnums=0)(layout, *arrays))
    watched = layout.step([*updates, *arrays[len(updates) :]]).updates
    return jax.tree.map(lambda old, new: new if isinstance(old, Array) else old, seen.updates, watched)


@functools.partial(jax.jit, static_argnums=0)
def _assert_of(layout: _Layout, *arrays: Array) -> list[Array]:
    step = layout.step(arrays)
    _assert_all(step)
    return [leaf for leaf in jax.tree.leaves(step.updates) if isinstance(leaf, Array)]


class _Watched(Primitive):
    """The identity on its first operands, with assertions that only checkify finds.

    A :func:`checkify.debug_check` in a traced function does nothing either unless checkified, but JAX takes it for a
    side effect: it calls the compiled function by a path that takes ten times as long, and loses the check where a scan
    is differentiated. (chex's assertions raise in a traced function unless chexified, and cannot name the step.)
    Checkify takes this for a call, as those of JAX's own primitives that have a `call_jaxpr`.
    """

    multiple_results = True

    def bind(self, *operands: Any, subfuns: Sequence[Any] = (), **params: Any) -> Any:
        # Checkify gives the checkified function in place of `call_jaxpr`.
        return subfuns[0].call_wrapped(*operands) if subfuns else super().bind(*operands, **params)


def _results(operands: Sequence[Any], call_jaxpr: ClosedJaxpr) -> Sequence[Any]:
    return operands[: len(call_jaxpr.out_avals)]


def _batch(operands: Sequence[Any], axes: Sequence[Any], *, call_jaxpr: ClosedJaxpr) -> tuple[Any, Sequence[Any]]:
    out_axes = _results(axes, call_jaxpr)
    call = jax.vmap(jaxpr_as_fun(call_jaxpr), in_axes=tuple(axes), out_axes=list(out_axes))
    return _watched_p.bind(*operands, call_jaxpr=jax.make_jaxpr(call)(*operands)), out_axes


def _differentiate(primals: Sequence[Any], tangents: Sequence[Any], *, call_jaxpr: ClosedJaxpr) -> tuple[Any, Any]:
    return _watched_p.bind(*primals, call_jaxpr=call_jaxpr), _results(tangents, call_jaxpr)


def _execute(*operands: Array, call_jaxpr: ClosedJaxpr) -> Sequence[Array]:
    error, results = checkify.checkify(jaxpr_as_fun(call_jaxpr))(*operands)
    error.throw()
    return results


_watched_p = _Watched("watched")
_watched_p.def_impl(_execute)
_watched_p.def_abstract_eval(lambda *avals, call_jaxpr: _results(avals, call_jaxpr))
mlir.register_lowering(_watched_p, lambda _, *operands, call_jaxpr: _results(operands, call_jaxpr))
batching.primitive_batchers[_watched_p] = _batch
ad.primitive_jvps[_watched_p] = _differentiate
