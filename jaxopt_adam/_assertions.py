"""The assertions of `checked` on the values of a step, and the operation that has them within a compiled program."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.experimental import checkify
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir
from jax.typing import ArrayLike

from jaxopt_adam import _hyperparameters as kinds
from jaxopt_adam._averages import bias_correction, debias, ema, most_squarable
from jaxopt_adam._data import same
from jaxopt_adam._trees import arithmetic_dtype, leaf_name


class SeenStep(NamedTuple):
    """The values that are checked: trees, and by their names the decays, counts and moments of optimizer and states."""

    updates: Any
    gradients: Any
    decays: list[tuple[str, ArrayLike]]
    counts: dict[str, Any]
    new_counts: dict[str, Any]
    moments: dict[str, Any]


class _Assertion(NamedTuple):
    """A message for a false `right`. It may quote {step}, {wrong} (the number of elements) and their {value}."""

    message: str
    right: Array
    value: ArrayLike | None = None


def _assertions(seen: SeenStep, steps: dict[str, Array]) -> Iterator[_Assertion]:
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


def _assert_all(seen: SeenStep) -> None:
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

    def step(self, arrays: Sequence[Array]) -> SeenStep:
        rest = iter(arrays)
        return jax.tree.unflatten(self.tree, [next(rest) if leaf is _ARRAY else leaf for leaf in self.leaves])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Layout) and self.tree == other.tree and all(map(same, self.leaves, other.leaves))

    def __hash__(self) -> int:
        return hash(self.tree)


def watched(seen: SeenStep) -> optax.Updates:
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
