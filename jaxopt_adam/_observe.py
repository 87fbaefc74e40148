"""Figures of a step (of its gradient, its update and its moments), for each leaf and for all leaves together."""

import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.core import Tracer

from jaxopt_adam._averages import bias_correction
from jaxopt_adam._axes import fill
from jaxopt_adam._hyperparameters import (
    LearningRate,
    OptionalDecay,
    OptionalNonNegative,
    OptionalSize,
    Transformation,
    scheduled,
)
from jaxopt_adam._optimizer import Optimizer, optimizer
from jaxopt_adam._rule import AdamState
from jaxopt_adam._shown import shown
from jaxopt_adam._trees import (
    arithmetic_dtype,
    array_like,
    broadcast_prefix,
    inexact_dtype,
    leaves_like,
    real_dtype,
    refuse_part,
    scalar_like,
    with_auto_axes,
)
from jaxopt_adam._xla import hidden_zero, sums_of_rows
from jaxopt_adam.rules.amsgrad import AmsgradState
from jaxopt_adam.storage._leaf import UNROUNDED
from jaxopt_adam.weights._stalled import stays

_LARGE = 2**20
_RARELY = 100
_SHORTEST, _LONGEST = 16, 1024
_KNOWN = {"learning_rate": LearningRate, "b1": OptionalDecay, "b2": OptionalDecay, "eps": OptionalNonNegative}
_AVERAGES = AdamState, AmsgradState, optax.ScaleByAdamState, optax.ScaleByAmsgradState, optax.ScaleByBeliefState
"""The states in which `mu` averages the gradients and `nu` their squares."""


class Figures(NamedTuple):
    """The figures of one step: float32 scalars, or for each figure a tree of them; NaN where there is no such figure.

    Attributes:
        gradient_norm: the Euclidean norm of the gradient.
        update_norm: that of the update.
        weight_norm: that of the parameters before the step. It is NaN if `update` got no parameters, and so are
            `update_to_weight` and `lost_to_rounding`.
        update_to_weight: the norm of the update divided by that of the parameters; about 0.001 is usual.
        effective_learning_rate: the root mean square of the update, divided by the learning rate. For Adam it is near 1
            if successive gradients agree, and near 0.1 if they are noise.
        signal_to_noise: the mean of ``|m̂|/√v̂``, from 0 (noise) to about 1 (all gradients agree); for rules that keep
            Adam's two averages.
        under_eps: the fraction of the elements whose √v̂ is less than ε. For these elements ε decides the size of the
            step. For the same rules as `signal_to_noise`.
        lost_to_rounding: the fraction of the updates other than 0 that leave their parameter unchanged, as
            :func:`stalled_fraction` computes it.
        quantization_error: the root mean square of the change that rounding the moments to codes makes in this update,
            divided by that of the update without the rounding; for moments in codes. Wrappers that choose between two
            states, such as :func:`optax.apply_if_finite` and :class:`optax.MultiSteps`, hide this figure, and those of
            the moments as well.
    """

    gradient_norm: Array
    update_norm: Array
    weight_norm: Array
    update_to_weight: Array
    effective_learning_rate: Array
    signal_to_noise: Array
    under_eps: Array
    lost_to_rounding: Array
    quantization_error: Array


class ObserveState(NamedTuple):
    """The state of :func:`observe`.

    Attributes:
        inner_state: the state of the inner optimizer.
        updates: the number of updates done, int32.
        step: the number, from 1, of the step that the figures describe, int32; 0 before the first step.
        leaves: the :class:`Figures` of each leaf, each of them a tree like the parameters.
        total: the :class:`Figures` of all leaves together.
    """

    inner_state: Any
    updates: Array
    step: Array
    leaves: Any
    total: Figures


def _known(name: str, value: Any) -> Any:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise TypeError(f"{name} must be a dict or None, got {shown(value)}")
    unknown = [each for each in value if each not in _KNOWN]
    if unknown:
        raise ValueError(f"{name} must be of {', '.join(_KNOWN)}, got {unknown[0]!r}")
    return {each: get_args(_KNOWN[each])[1](f"{name}[{each!r}]", entry) for each, entry in value.items()}


Known = Annotated[Any, _known]


@optimizer
def observe(
    inner: Transformation,
    every: OptionalSize = None,
    hyperparameters: Known = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Observe: any optimizer, with figures (statistics) of its steps kept in the state.

    The updates are those of the inner optimizer, bit for bit. For a leaf with gradient g, update u and parameters θ of
    n elements the figures are

    .. math::
        \|g\|, \quad \|u\|, \quad \|\theta\|, \quad \frac{\|u\|}{\|\theta\|}, \quad \frac{\|u\|}{\alpha \sqrt n}, \quad
        \operatorname{mean} \frac{|\hat m|}{\sqrt{\hat v}}, \quad \operatorname{mean}[\sqrt{\hat v} < \varepsilon]

    and two more for what is lost when weights, and moments in codes, are rounded. :class:`Figures` has the list, and
    :func:`summary` makes a flat dict of them. For the whole tree, norms are those of all leaves together, and means are
    over all elements.

    Observing a step of a large model computes the update a second time. On a CPU that takes as long as a few steps. It
    also needs memory for one or two arrays of the size of the largest leaf. Large models are therefore observed only
    from time to time. A step that is not observed costs almost nothing extra. If every step is observed, the update is
    kept in memory instead, as large as the parameters.

    Put it around the rule itself, within :func:`optax.chain` or :func:`master_weights`, to see what the rule did. The
    gradient is then the clipped one, and the update has full precision. Put it around the chain or the wrapper to see
    what happens to the parameters. Inside :func:`jax.shard_map` the figures are those of each device's part.

    Args:
        inner: the optimizer, ours or optax's.
        every: the number of steps from one observed step to the next, beginning with the first step. None is 1 for
            models of up to 2²⁰ parameters, and 100 for larger ones.
        hyperparameters: the hyperparameters that the figures need, if they cannot be read from `inner`: a dict with
            some of ``learning_rate`` (a number, a schedule, or a tree of these), ``b1``, ``b2`` and ``eps``. They
            affect only the figures, not the updates. They can be read from our optimizers and from the state of
            :func:`optax.inject_hyperparams`, but not from optax's other optimizers.

    Returns:
        An :class:`~jaxopt_adam.Optimizer` with :class:`ObserveState`.

    Raises:
        TypeError: if `inner` is not an optimizer, or `hyperparameters` is not a dict of numbers.
        ValueError: if a hyperparameter is out of range or is not one of the four.

    References:
        The ratio of update to weight: Karpathy's notes for CS231n, "Neural Networks Part 3", 2015. The signal-to-noise
        ratio: Kingma & Ba, Adam, 2015, section 2.1.

    Example:
        >>> from jaxopt_adam import adam, observe, summary
        >>> import jax.numpy as jnp
        >>> params = {"w": jnp.array([3.0, 4.0])}
        >>> optimizer = observe(adam(0.01))
        >>> state = optimizer.init(params)
        >>> updates, state = optimizer.update({"w": jnp.array([0.1, -0.2])}, state, params)
        >>> figures = summary(state)
        >>> print(f"{figures['update_norm']:.4f} {figures['update_to_weight']:.4f} {figures['signal_to_noise']:.1f}")
        0.0141 0.0028 1.0
    """
    wrapped = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> ObserveState:
        leaves, tree = jax.tree.flatten(params)
        shapes = list(map(np.shape, leaves))
        return ObserveState(
            inner_state=wrapped.init(params),
            updates=jnp.zeros([], jnp.int32),
            step=jnp.zeros([], jnp.int32),
            leaves=Figures(*(fill(tree, [_nan() for _ in shapes], shapes) for _ in Figures._fields)),
            total=Figures(*(_nan() for _ in Figures._fields)),
        )

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, ObserveState]:
        if not isinstance(state, ObserveState):
            raise TypeError(f"state must be an ObserveState, as init returns, got {type(state).__name__}")
        grads, tree = jax.tree_util.tree_flatten_with_path(updates)
        for path, grad in grads:
            refuse_part(path, grad, "the figures of observe are sums over whole leaves")
        updates = jax.tree.unflatten(tree, [jnp.asarray(grad, inexact_dtype(path, grad)) for path, grad in grads])
        large = sum(np.size(grad) for _, grad in grads) > _LARGE
        each = every or (_RARELY if large else 1)
        step = jnp.asarray(optax.safe_increment(state.updates))
        known = {name: _told(name, (hyperparameters or {}).get(name), inner, state) for name in _KNOWN}

        def look(
            updates: Any, inner_state: Any, params: Any, done: Any, after: Any, kept: bool = True
        ) -> tuple[list[Array], Any, Figures]:
            exact = None
            if _may_be_rounded(after):
                exact, after = _unrounded(wrapped, (updates, inner_state, params), extra_args, after)
            return _figures(updates, done, params, exact, after, kept, **known)

        before = jax.lax.stop_gradient((updates, state.inner_state, params))
        # With codes the look takes the step from the old moments once more, so it has to come first in a large model.
        if each == 1 and not (large and _may_be_rounded(state.inner_state)):
            done, inner_state = wrapped.update(updates, state.inner_state, params, **extra_args)
            zeros, leaves, total = with_auto_axes(look, (*before, *jax.lax.stop_gradient((done, inner_state))))
            # The caller adds the update to parameters that the look reads. Lest these be copied, it waits for the look.
            done = jax.tree.unflatten(tree, map(_held, leaves_like(tree, done, "the update"), zeros))
            # Each an array of its own, since no buffer can be donated twice.
            return done, ObserveState(inner_state, step, jnp.array(step), leaves, total)

        def seen(updates: Any, inner_state: Any, params: Any) -> tuple[Array, Any, Figures]:
            done, after = wrapped.update(updates, inner_state, params, **extra_args)
            _, leaves, total = look(updates, inner_state, params, done, after, kept=False)
            return step, leaves, total

        def look_again(*before: Any) -> tuple[Array, Any, Figures]:
            return with_auto_axes(seen, before)

        def unseen(*_: Any) -> tuple[Array, Any, Figures]:
            leaves = (leaves_like(tree, each, "the state of observe") for each in state.leaves)
            shapes = [np.shape(grad) for _, grad in grads]
            return state.step, Figures(*(fill(tree, each, shapes) for each in leaves)), state.total

        when, leaves, total = jax.lax.cond((step - 1) % each == 0, look_again, unseen, *before)
        if large:
            # The step overwrites what the look at it reads. Lest that be copied, the step waits for the look: its
            # gradients depend on a zero that is computed from the look's result.
            zero = hidden_zero(when)
            updates = jax.tree.map(lambda grad: _held(grad, zero), updates)
        done, inner_state = wrapped.update(updates, state.inner_state, params, **extra_args)
        return done, ObserveState(inner_state, step, when, leaves, total)

    return optax.GradientTransformationExtraArgs(init, update)


def summary(state: Any) -> dict[str, Any]:
    """The figures of :func:`observe` in one flat dict, for TensorBoard, Weights & Biases or a print.

    Args:
        state: a state with an :class:`ObserveState` somewhere in it: that of a chain, or a whole training state.

    Returns:
        ``"step"``, the step that the figures describe; the figures of the whole tree, such as ``"gradient_norm"``; and
        the figures of each leaf, with the path of the leaf before the name, such as
        ``"['dense']['kernel']/gradient_norm"``. Figures that do not exist are left out. If there are several observed
        optimizers, as in :func:`optax.partition`, all names begin with the path of the optimizer's state and a slash.
        The values are Python numbers, or arrays for a batch of optimizers.

    Raises:
        ValueError: if nothing in `state` is observed.
        TypeError: if the state is traced. Inside :func:`jax.jit` and similar transformations, read the figures from the
            :class:`ObserveState` itself, as ``state.total.gradient_norm``.

    Example:
        >>> from jaxopt_adam import observe, sgd, summary
        >>> optimizer = observe(sgd(0.5))
        >>> _, state = optimizer.update(3.0, optimizer.init(1.0), 1.0)
        >>> summary(state)["update_norm"]
        1.5
    """
    nodes, _ = jax.tree_util.tree_flatten_with_path(state, is_leaf=_is_observed)
    observed = {jax.tree_util.keystr(path): node for path, node in nodes if _is_observed(node)}
    if not observed:
        raise ValueError(
            f"state must hold what observe keeps, and there is none in this {type(state).__name__}; wrap the optimizer "
            "in observe, and with flax give the nnx.Optimizer itself"
        )
    flat: dict[str, Any] = {}
    for where, node in observed.items():
        before = f"{where}/" if len(observed) > 1 else ""
        flat[f"{before}step"] = node.step
        flat |= {before + name: figure for name, figure in node.total._asdict().items()}
        for name, tree in node.leaves._asdict().items():
            for path, figure in jax.tree_util.tree_leaves_with_path(tree):
                if path:
                    flat[f"{before}{jax.tree_util.keystr(path)}/{name}"] = figure
    if any(isinstance(value, Tracer) for value in flat.values()):
        raise TypeError(
            "summary: the state is traced, so its figures have no values yet; call summary outside of jit, vmap and "
            "scan. Inside, the figures are arrays of the state: "
            + " or ".join(f"state{where}.total.gradient_norm" for where in observed)
        )
    numbers = {name: np.asarray(value) for name, value in jax.device_get(flat).items()}
    return {name: value if value.ndim else value.item() for name, value in numbers.items() if not np.isnan(value).all()}


def _told(name: str, given: Any, inner: Any, state: ObserveState) -> Any:
    """A hyperparameter of the inner optimizer: as given, from the optimizer, or from its state; None if unknown."""
    if given is not None:
        return scheduled(given, state.updates, name) if callable(given) else given
    if isinstance(inner, Optimizer):
        if name == "learning_rate":
            try:
                return inner.current_learning_rate(state.inner_state)
            except ValueError:
                return None
        within = [value for value in inner.hyperparameters.values() if isinstance(value, Optimizer)]
        own = inner.hyperparameters.get(name)
        return _told(name, None, within[0], state) if own is None and len(within) == 1 else own
    nodes = jax.tree.leaves(state.inner_state, is_leaf=lambda node: hasattr(node, "hyperparams"))
    found = [node.hyperparams[name] for node in nodes if name in getattr(node, "hyperparams", {})]
    return found[0] if len(found) == 1 else None


def _figures(
    updates: Any,
    done: Any,
    params: Any,
    exact: Any,
    after: Any,
    kept: bool,
    *,
    learning_rate: Any,
    b1: Any,
    b2: Any,
    eps: Any,
) -> tuple[list[Array], Any, Figures]:
    """A hidden zero that depends on the figures of a leaf, for each leaf; the figures of each leaf, and of all leaves.

    `kept` is true if the update and the moments are in memory, and false if they are computed for the figures alone.
    """
    grads, tree = jax.tree_util.tree_flatten_with_path(updates)
    nothing = [None] * len(grads)
    rates = nothing if learning_rate is None else broadcast_prefix(learning_rate, updates, "learning_rate")
    thetas = nothing if params is None else leaves_like(tree, params, "params")
    exacts = nothing if exact is None else leaves_like(tree, exact, "the update")
    averages = _averages(after, tree)
    mus, nus = (
        (nothing, nothing) if averages is None else (tree.flatten_up_to(averages.mu), tree.flatten_up_to(averages.nu))
    )
    corrections = None
    if averages is not None and b1 is not None and b2 is not None:
        corrections = [bias_correction(decay, averages.count) for decay in (b1, b2)]
    sums, zeros = [], []
    for (path, grad), change, theta, unrounded, rate, mu, nu in zip(
        grads, leaves_like(tree, done, "the update"), thetas, exacts, rates, mus, nus, strict=True
    ):
        dtype = arithmetic_dtype(grad.dtype)
        change = array_like(path, grad, change, None, "the update")
        moved = change.astype(dtype)
        terms = {"gradient": _square(grad.astype(dtype)), "update": _square(moved)}
        if rate is not None:
            rate = scalar_like(path, grad, rate, real_dtype(dtype))
            if rate.ndim:
                terms["per_rate"] = _square(moved / rate)
        if theta is not None:
            theta = array_like(path, grad, theta, None, "the parameter")
            terms |= {"weight": _square(theta.astype(dtype)), "lost": stays(theta, change), "moving": change != 0}
        if corrections is not None:
            _, c2 = corrections
            size, deviation = jnp.abs(mu.astype(dtype)), jnp.sqrt(nu.astype(real_dtype(dtype)))
            terms["signal"] = jnp.where(deviation > 0, size / deviation, 0)
            if eps is not None:
                terms["under"] = deviation < jnp.sqrt(c2) * eps
        if unrounded is not None:
            unrounded = unrounded.astype(dtype)
            terms |= {"error": _square(moved - unrounded), "exact": _square(unrounded)}
        of_leaf = _sums(terms, grad.shape, real_dtype(dtype), kept)
        zeros.append(_zero_after(of_leaf.values()))
        if rate is not None and not rate.ndim:
            of_leaf["per_rate"] = jnp.square(jnp.sqrt(of_leaf["update"]) / rate)
        if corrections is not None:
            c1, c2 = corrections
            of_leaf["signal"] = of_leaf["signal"] * (jnp.sqrt(c2) / c1)
        sums.append({"elements": float(grad.size)} | of_leaf)
    # Of all leaves and then of each, in one array for each figure.
    columns = {name: jnp.stack([jnp.asarray(each[name]) for each in sums]) for name in (sums[0] if sums else ())}
    total = _of({name: jnp.sum(column) for name, column in columns.items()})
    rows = [jnp.unstack(figure) for figure in _of(columns)] if sums else [[]] * len(Figures._fields)
    shapes = [grad.shape for _, grad in grads]
    return zeros, Figures(*(fill(tree, row, shapes) for row in rows)), total


def _of(sums: Mapping[str, Array]) -> Figures:
    """The figures that follow from sums over the elements: scalars, or arrays with an entry for each leaf."""
    nothing = jnp.full(np.shape(next(iter(sums.values()), ())), jnp.nan, jnp.float32)

    def sum_of(name: str) -> Array:
        return sums.get(name, nothing)

    figures = Figures(
        gradient_norm=jnp.sqrt(sum_of("gradient")),
        update_norm=jnp.sqrt(sum_of("update")),
        weight_norm=jnp.sqrt(sum_of("weight")),
        update_to_weight=jnp.sqrt(sum_of("update") / sum_of("weight")),
        effective_learning_rate=jnp.sqrt(sum_of("per_rate") / sum_of("elements")),
        signal_to_noise=sum_of("signal") / sum_of("elements"),
        under_eps=sum_of("under") / sum_of("elements"),
        lost_to_rounding=sum_of("lost") / jnp.maximum(sum_of("moving"), 1),
        quantization_error=jnp.sqrt(sum_of("error") / sum_of("exact")),
    )
    return jax.tree.map(lambda figure: figure.astype(jnp.float32), figures)


def _averages(state: Any, tree: Any) -> Any:
    """The part of a state that has Adam's two averages for this tree of gradients; None if there is not just one."""
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, _AVERAGES))
    found = [
        node
        for node in nodes
        if isinstance(node, _AVERAGES) and jax.tree.structure(node.mu) == tree == jax.tree.structure(node.nu)
    ]
    return found[0] if len(found) == 1 and not _may_be_rounded(found) else None


def _sums(terms: Mapping[str, Array], shape: tuple[int, ...], dtype: np.dtype, kept: bool) -> dict[str, Array]:
    """The sum of each of some arrays of a shape, all in one pass over what they are computed from."""
    values = [jax.lax.stop_gradient(jnp.broadcast_to(term, shape).astype(dtype)) for term in terms.values()]
    # Where the update and the moments have to be computed in the same loop, it is too long to be unrolled.
    of_rows = sums_of_rows(values) if kept else None
    last = shape[-1] if shape else 1
    width = last if last <= _LONGEST else math.gcd(last, _LONGEST)
    if of_rows is not None:
        values = of_rows
    elif width >= _SHORTEST and math.prod(shape) > _LONGEST:
        # The compiler makes one loop of a reduction of several arrays and what they are computed from. Long sums are
        # cut in pieces, as each addition rounds.
        rows = [value.reshape(*shape[:-1], last // width, width) for value in values]
        values = jax.lax.reduce(rows, [np.zeros([], dtype)] * len(rows), _add, [len(shape)])
    return {name: jnp.sum(value) for name, value in zip(terms, values, strict=True)}


def _zero_after(sums: Iterable[Array]) -> Array:
    """A hidden zero that depends on some sums that are not negative."""
    together = jnp.abs(sum(each.astype(jnp.float32) for each in sums))
    return hidden_zero(jax.lax.bitcast_convert_type(together, jnp.int32))


def _square(value: Array) -> Array:
    """|value|²; infinite where it overflows, as a figure that cannot be told should be."""
    return jnp.square(value.real) + jnp.square(value.imag) if jnp.iscomplexobj(value) else jnp.square(value)


def _add(one: list[Array], other: list[Array]) -> list[Array]:
    return [a + b for a, b in zip(one, other, strict=True)]


@jax.custom_jvp
def _held(grad: Array, zero: Array) -> Array:
    """The same gradient, bit for bit, which the compiler cannot use before the zero is known."""
    if jnp.iscomplexobj(grad):
        return jax.lax.complex(_held(grad.real, zero), grad.imag)
    # Not by arithmetic with the gradient, which the compiler might fuse with that of the rule and so round otherwise.
    bits = jax.lax.bitcast_convert_type(grad, f"uint{8 * grad.dtype.itemsize}")
    return jax.lax.bitcast_convert_type(bits | zero.astype(bits.dtype), grad.dtype)


@_held.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Any]) -> tuple[Array, Array]:
    return _held(*primals), tangents[0]


def _nan() -> Array:
    # Each an array of its own, since no buffer can be donated twice.
    return jnp.full([], jnp.nan, jnp.float32)


def _is_observed(node: Any) -> bool:
    return isinstance(node, ObserveState)


def _may_be_rounded(state: Any) -> bool:
    """True if a state may have moments in few bits, which are unsigned integers."""
    return any(jnp.issubdtype(jnp.result_type(leaf), jnp.unsignedinteger) for leaf in jax.tree.leaves(state))


def _unrounded(wrapped: Any, given: Any, extra_args: Mapping[str, Any], after: Any) -> tuple[Any, Any]:
    """The update without rounding to codes and the state with moments in float32; None and `after` if it cannot be."""
    try:
        exact, floats = wrapped.update(*given, **extra_args, **{UNROUNDED: True})
    except TypeError:
        # Wrappers that choose between two states need these to be alike.
        return None, after
    kinds = [[jnp.result_type(leaf) for leaf in jax.tree.leaves(state)] for state in (after, floats)]
    return (None, after) if kinds[0] == kinds[1] else (exact, floats)
