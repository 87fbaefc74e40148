"""Conversion of states from and to optax, so that a run continues with the other library's optimizer."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from jax import Array
from jax.core import Tracer

import jaxopt_adam
from jaxopt_adam._hyperparameters import is_number
from jaxopt_adam._optimizer import Optimizer
from jaxopt_adam._shown import brief
from jaxopt_adam._trees import Path, broadcast_prefix, leaf_name

Fields = dict[str, Any]
"""Parts of a state by the names that they have here, without the count."""


@dataclasses.dataclass(frozen=True)
class _Counterpart:
    """The counterpart of a rule in optax.

    Args:
        factory: optax's factory, which takes our hyperparameters.
        names: our names of fields, by optax's where they differ.
        complex: whether both libraries mean the same by the state of complex leaves.
        shape: the shape of a parameter that has these moments.
        constants: what optax has in the state that no update changes.
    """

    factory: Callable[..., optax.GradientTransformation]
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    complex: bool = True
    shape: Callable[[Fields], tuple[int, ...]] = lambda moments: np.shape(next(iter(moments.values())))
    constants: Callable[[Optimizer], Fields] = lambda optimizer: {}

    def fields(self, node: Any) -> Fields:
        """The fields of a rule in a state of optax's, by our names; none for the state of a wrapper or a schedule."""
        named = {self.names.get(name, name): value for name, value in node._asdict().items()}
        return {name: value for name, value in named.items() if name in _MOMENTS}


def _factored_shape(moments: Fields) -> tuple[int, ...]:
    """The shape of a leaf with these moments of Adafactor's, or one of those that have them."""
    if "mu" in moments:
        return np.shape(moments["mu"])
    rows, columns = (np.shape(moments.get(name, 0.0)) for name in ("v_row", "v_col"))
    if "v" in moments and rows == columns and rows in ((), (1,)):
        return np.shape(moments["v"])
    for axis in range(len(rows) + 1):
        shape = (*rows[:axis], max(columns, default=0), *rows[axis:])
        # Rows are what is left without the largest axis, columns without the second largest.
        if [np.delete(shape, each).tolist() for each in np.argsort(shape)[:-3:-1]] == [[*rows], [*columns]]:
            return shape
    return rows


def _coefficients(optimizer: Optimizer) -> Fields:
    """The fields of optax's Muon state besides the moments."""
    given = {name: optimizer.hyperparameters[name] for name in ("ns_coeffs", "ns_steps")}
    return {"ns_coeffs": optax.tree.get(optax.contrib.muon(0.0, **given).init(()), "ns_coeffs")}


_COUNTERPARTS = {
    "adabelief": _Counterpart(optax.adabelief),
    "adadelta": _Counterpart(optax.adadelta, complex=False),  # optax has averages of g², not of |g|²
    "adafactor": _Counterpart(optax.adafactor, names={"ema": "mu"}, shape=_factored_shape),
    "adagrad": _Counterpart(optax.adagrad),
    "adam": _Counterpart(optax.adam),
    "adamax": _Counterpart(optax.adamax),
    "adamaxw": _Counterpart(optax.adamaxw),
    "adamw": _Counterpart(optax.adamw),
    "adan": _Counterpart(optax.adan),
    "ademamix": _Counterpart(optax.contrib.ademamix),
    "adopt": _Counterpart(optax.contrib.adopt),
    "amsgrad": _Counterpart(optax.amsgrad),
    "lamb": _Counterpart(optax.lamb),
    "lion": _Counterpart(optax.lion),
    "muon": _Counterpart(optax.contrib.muon, constants=_coefficients),
    "nadam": _Counterpart(optax.nadam),
    "nadamw": _Counterpart(optax.nadamw),
    "novograd": _Counterpart(optax.novograd),
    "prodigy": _Counterpart(optax.contrib.prodigy, names={"exp_avg": "mu", "exp_avg_sq": "nu"}, complex=False),
    "radam": _Counterpart(optax.radam),
    "rmsprop": _Counterpart(optax.rmsprop),
    "schedule_free_adamw": _Counterpart(optax.contrib.schedule_free_adamw, names={"max_lr": "max_learning_rate"}),
    "sgd": _Counterpart(optax.sgd),
    "yogi": _Counterpart(optax.yogi),
}

# The fields in which optax counts a rule's updates, and from what.
_COUNTS = {"count": 0, "count_m2": 0, "t": 0, "step_count": 1}
# What counts the updates beside the rule; other counts are of something else, such as noise or small steps.
_SCHEDULES = {"ScaleByScheduleState", "WeightDecaySchedule"}
_INJECTED = {"InjectHyperparamsState", "InjectStatefulHyperparamsState"}
# What a state of optax's must have for it to be that of a rule.
_NUMBERS = {"b1", "weight_sum", "max_learning_rate", "estim_lr", "numerator_weighted"}
_MOMENTS = _NUMBERS | {
    "bases",
    "e_g",
    "e_x",
    "factors",
    "g",
    "grad_sum",
    "m",
    "m1",
    "m2",
    "mu",
    "n",
    "nu",
    "nu_max",
    "params0",
    "sum_of_squares",
    "trace",
    "v",
    "v_col",
    "v_row",
    "z",
}
_ANY = [jax.ShapeDtypeStruct((), jnp.float32)]


def from_optax(state: optax.OptState, optimizer: Optimizer) -> Any:
    """The state with which `optimizer` continues where the optax optimizer of the same name stopped.

    Args:
        state: the state of optax's optimizer, by itself or within wrappers (``chain``, ``inject_hyperparams``,
            ``MultiSteps``, ``masked``, ...). State of the wrappers themselves, such as accumulated gradients, is
            dropped. Several rules share ``ScaleByAdamState``; it cannot be checked which of them made it.
        optimizer: the optimizer that is to continue, with the hyperparameters that optax's had. Where the rules of the
            two libraries differ (the documentation of the rule says so), the run differs from here on. For a
            :func:`~jaxopt_adam.chain`, a partition and the like `state` is that of optax's composition of as many
            parts. What is lifted from optax continues with its own state.

    Returns:
        The state, with the structure and the dtypes that ``optimizer.init`` gives: what optax keeps in the parameters'
        float16 or bfloat16 is widened to float32, unless `mu_dtype` or its like says otherwise. Moments that keep their
        dtype are not copied. Where optax has no `count`, as in :func:`~jaxopt_adam.sgd` with a constant rate, it is 0.

    Raises:
        TypeError: if `optimizer` is not an :class:`~jaxopt_adam.Optimizer`, or a moment has a dtype that the rule does
            not take.
        ValueError: if optax has no such rule; if `state` holds no state of it, several, that of another rule, or
            moments of other shapes than the hyperparameters ask for; if its counts differ; or if it has no count but
            `optimizer` has a schedule.

    Example:
        >>> import jax, optax
        >>> from jaxopt_adam import adamw
        >>> from jaxopt_adam import from_optax
        >>> before, params = optax.adamw(0.1), jax.numpy.ones(3)
        >>> _, state = before.update(params, before.init(params), params)
        >>> after = adamw(0.1)
        >>> updates, state = after.update(params, from_optax(state, after), params)
        >>> print(state.count)
        2
    """
    if _is_composition(optimizer):
        return _through(state, optimizer, None, lambda inner, part, _: from_optax(inner, part))
    counterpart = _counterpart(optimizer)
    states = list(_states(state))
    found = [(path, node) for path, node in states if counterpart.fields(node)]
    template = jax.eval_shape(_transformation(_plain(optimizer)).init, _ANY)
    needed = [_name(node) for _, node in _states(template) if counterpart.fields(node)]
    if sorted(needed) != sorted(_name(node) for _, node in found):
        listed = [f"{_name(node)} at {jax.tree_util.keystr(path) or 'its top'}" for path, node in found or states]
        raise ValueError(
            f"state must hold {' and '.join(needed) or 'no moments'}, as optax has it for {brief(optimizer)}, found "
            f"{', '.join(listed) or _name(state)}; pass the part that belongs to the optimizer"
        )
    counts: list[Any] = []
    fields: Fields = {}
    for _, node in found:
        counts += [getattr(node, name) - start for name, start in _COUNTS.items() if name in node._fields]
        for name, value in counterpart.fields(node).items():
            fields[name] = _together(fields[name], value) if name in fields else value
    counts += [node.count for _, node in states if _name(node) in _SCHEDULES]
    counts = counts or [node.count for _, node in states if _name(node) in _INJECTED]
    made = jax.eval_shape(optimizer.init, _like_params(fields, optimizer))
    fitted = {
        name: _fitted(getattr(made, name), value, f"state.{name}", _cast_to_ours) for name, value in fields.items()
    }
    return made._replace(count=_one(counts, optimizer), **fitted)


def to_optax(state: Any, optimizer: Optimizer, params: optax.Params | None = None) -> optax.OptState:
    """The state with which the optax optimizer of the same name continues where `optimizer` stopped.

    Args:
        state: the state of `optimizer`.
        optimizer: the optimizer that stopped; optax's has the same hyperparameters. It may be a
            :func:`~jaxopt_adam.chain`, a partition or the like, as optax's then is.
        params: the parameters, or :class:`jax.ShapeDtypeStruct` for them, of which only the tree and the dtypes matter.
            With them the moments get the dtypes that optax would give them, those of the parameters: half precision for
            such parameters, and complex for complex ones. Without `params` the moments keep their dtypes, and nothing
            is rounded. optax can continue with them, but for parameters in half precision its updates then have a wider
            dtype.

    Returns:
        The state, with the structure that optax's ``init`` gives. Moments that keep their dtype are not copied.

    Raises:
        TypeError: if `optimizer` is not an :class:`~jaxopt_adam.Optimizer`, `state` not of its type, or a moment is
            complex that optax keeps real.
        ValueError: if optax has no such rule, or not with a tree of learning rates or weight decays; if `state` has
            other moments than `optimizer`; or if `params` has another tree.

    Example:
        >>> import jax, optax
        >>> from jaxopt_adam import adam
        >>> from jaxopt_adam import to_optax
        >>> optimizer, params = adam(0.1), jax.numpy.ones(3)
        >>> state = to_optax(optimizer.init(params), optimizer)
        >>> jax.tree.structure(state) == jax.tree.structure(optax.adam(0.1).init(params))
        True
    """
    if _is_composition(optimizer):
        return _through(state, optimizer, params, to_optax)
    counterpart = _counterpart(optimizer)
    for name, value in _rates(optimizer).items():
        if _is_tree(value):
            raise ValueError(f"{name} must be a number or a schedule for optax, got a tree: {brief(optimizer)}")
    kind = type(jax.eval_shape(_plain(optimizer).init, _ANY))
    if not isinstance(state, kind):
        raise TypeError(f"state must be {kind.__name__}, as {brief(optimizer)} has it, got {_name(state)}")
    theirs = _transformation(optimizer)  # which raises for other storages than float32
    fields = {name: value for name, value in state._asdict().items() if name != "count"}
    if any(jnp.issubdtype(jnp.result_type(leaf), jnp.unsignedinteger) for leaf in jax.tree.leaves(fields)):
        raise ValueError(
            "state must have moments in float32, because optax has no other storage; jaxopt_adam.convert_state "
            "converts a state to it"
        )
    like = _like_params(fields, optimizer, params)
    for name, template in jax.eval_shape(optimizer.init, like)._asdict().items():
        expected, given = (
            "None" if tree is None else str(_structure(tree)) for tree in (template, getattr(state, name))
        )
        if expected != given:
            raise ValueError(f"state.{name} must be {expected}, as {brief(optimizer)} has it, got {given}")
    fields |= counterpart.constants(optimizer)

    def fill(template: Any) -> Any:
        return jax.tree.map(fill_state, template, is_leaf=_is_state)

    def fill_state(node: Any) -> Any:
        return node._make(fill_field(name, part) for name, part in node._asdict().items())

    def fill_field(name: str, part: Any) -> Any:
        if name in _COUNTS:
            # A copy for each that counts, since a step may take the buffers of its state for its own, each once.
            return jnp.array(optax.safe_increment(state.count) if _COUNTS[name] else state.count, jnp.int32)
        name = counterpart.names.get(name, name)
        if name not in fields:
            return fill(part)
        cast = _keep if params is None else _cast_to_optax
        return _fitted(part, fields[name], f"state.{name}", cast)

    return fill(jax.eval_shape(theirs.init, like))


def _is_composition(optimizer: Any) -> bool:
    return isinstance(optimizer, Optimizer) and hasattr(optimizer._factory, "composition")


def _through(state: Any, optimizer: Optimizer, params: Any, convert: Callable[[Any, Optimizer, Any], Any]) -> Any:
    """The state of a composition, with those of its parts that have a rule of this library converted."""
    arguments, composition = optimizer.hyperparameters, optimizer._factory.composition  # pyright: ignore
    if not composition.fits(arguments, state):
        raise ValueError(f"state must be that of {brief(optimizer)}, got {_name(state)}")

    def visit(name: Any, part: Any, own: Any) -> Any:
        module = part._factory.__module__ if isinstance(part, Optimizer) else ""
        # What is lifted from optax, and a user's own, has the same state in both.
        is_ours = module.startswith("jaxopt_adam.") and module != "jaxopt_adam.lifted"
        return convert(own, part, seen_by(name)) if is_ours else own

    def seen_by(name: Any) -> Any:
        of = {jaxopt_adam.partition: "param_labels", jaxopt_adam.masked: "mask"}.get(optimizer._factory)
        if params is None or of is None:
            return params
        labels = arguments[of]
        labels = labels(params) if callable(labels) else labels
        return _chosen(labels, params, lambda label: label == (name if composition.by_label else True))

    return composition.mapped(arguments, state, visit)


def _chosen(labels: Any, params: Any, is_chosen: Callable[[Any], bool]) -> Any:
    """The parameters as a masked transformation sees them."""
    entries = broadcast_prefix(labels, params, "the labels", is_leaf=lambda each: isinstance(each, (str, bool)))
    leaves, tree = jax.tree.flatten(params)
    pairs = zip(leaves, entries, strict=True)
    return jax.tree.unflatten(tree, [leaf if is_chosen(entry) else optax.MaskedNode() for leaf, entry in pairs])


_OURS_ALONE: Mapping[str, Mapping[str, Any]] = {
    "muon": {"matrix_axes": None},
    "prodigy": {"bias_correction": True},
}
"""Arguments that optax's factories do not have, with the values that stand for what they do."""


def _counterpart(optimizer: Optimizer) -> _Counterpart:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be an Optimizer of jaxopt_adam, got {brief(optimizer)}")
    name = optimizer._factory.__name__
    if name not in _COUNTERPARTS or optimizer._factory is not getattr(jaxopt_adam, name, None):
        raise ValueError(
            f"optimizer must be of a rule that optax has too, of {', '.join(_COUNTERPARTS)}, got {brief(optimizer)}"
        )
    return _COUNTERPARTS[name]


def _transformation(optimizer: Optimizer) -> optax.GradientTransformation:
    """Optax's optimizer, as far as the structure of its state goes."""
    arguments = dict(optimizer.hyperparameters)
    # Of a mask the state only knows that there is one; the given one is not to be asked about what are no parameters.
    arguments |= {name: True for name, value in arguments.items() if name.endswith("mask") and value is not None}
    if arguments.pop("moments", "float32") != "float32":
        raise ValueError(
            f"optimizer must have moments in float32, because optax has no other storage; "
            f"jaxopt_adam.convert_state converts a state to it; got {brief(optimizer)}"
        )
    for name, value in _OURS_ALONE.get(optimizer._factory.__name__, {}).items():
        if arguments.pop(name) is not value:
            raise ValueError(
                f"optimizer must have {name}={value}, because optax knows nothing else, got {brief(optimizer)}"
            )
    return _counterpart(optimizer).factory(**arguments)


def _plain(optimizer: Optimizer) -> Optimizer:
    """The optimizer without hyperparameters that depend on the tree of the parameters."""
    changes = {name: 0.0 for name, value in _rates(optimizer).items() if _is_tree(value)}
    axes = {name: None for name in optimizer.hyperparameters if name == "muon_weight_dimension_numbers"}
    return optimizer.replace(**changes, **axes)


def _rates(optimizer: Optimizer) -> Fields:
    """The hyperparameters that may be schedules or trees."""
    kinds = ("learning_rate", "weight_decay", "weight_decay_rate")
    return {name: value for name, value in optimizer.hyperparameters.items() if name.endswith(kinds)}


def _is_tree(value: Any) -> bool:
    return not (value is None or callable(value) or is_number(value))


def _is_state(node: Any) -> bool:
    """True for a state of optax's, as against a named tuple of somebody's parameters."""
    return hasattr(node, "_fields") and type(node).__module__.partition(".")[0] == "optax"


def _is_absent(leaf: Any) -> bool:
    return leaf is None or isinstance(leaf, optax.MaskedNode)


def _structure(tree: Any) -> Any:
    """The structure of a tree, but for which of its leaves are absent."""
    return jax.tree.structure(tree, is_leaf=_is_absent)


def _name(node: Any) -> str:
    return type(node).__name__


def _states(tree: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The states of optax's in a tree, and in each other, with their paths."""
    for step, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_state):
        if _is_state(node):
            yield (*path, *step), node
            for name, part in node._asdict().items():
                yield from _states(part, (*path, *step, jax.tree_util.GetAttrKey(name)))


def _together(one: Any, other: Any) -> Any:
    """The moments of all leaves, of which each tree has some."""
    return jax.tree.map(lambda mine, yours: yours if _is_absent(mine) else mine, one, other, is_leaf=_is_absent)


def _one(counts: list[Any], optimizer: Optimizer) -> Array:
    """The count that all agree on, as far as they are known."""
    if not counts:
        if any(map(callable, jax.tree.leaves(_rates(optimizer), is_leaf=callable))):
            raise ValueError(f"state has no count at which the schedule of {brief(optimizer)} could go on")
        return jnp.zeros([], jnp.int32)
    known = [np.asarray(count) for count in counts if not isinstance(count, Tracer)]
    if any(not np.array_equal(known[0], count) for count in known):
        raise ValueError(f"state must have the same count everywhere, found {', '.join(map(str, known))}")
    return jnp.asarray(counts[0], jnp.int32)


def _like_params(fields: Fields, optimizer: Optimizer, params: Any = None) -> Any:
    """Parameters that have these moments: their shapes, and the dtypes of `params` or of the widest moments."""
    counterpart = _counterpart(optimizer)
    moments = {name: value for name, value in fields.items() if name not in _NUMBERS and value is not None}
    trees = {f"state.{name}": value for name, value in moments.items()} | ({} if params is None else {"params": params})
    structures = {name: _structure(tree) for name, tree in trees.items()}
    first = next(iter(structures), "")
    for name, structure in structures.items():
        if structure != structures[first]:
            raise ValueError(f"{name} must have the same tree as {first}, {structures[first]}, got {structure}")

    def like(path: Path, *leaves: Any) -> Any:
        present = {name: leaf for name, leaf in zip(moments, leaves, strict=False) if not _is_absent(leaf)}
        if not present:
            return leaves[0]
        deciding = present.values() if params is None else leaves[-1:]
        dtype = functools.reduce(jnp.promote_types, map(jnp.result_type, deciding))
        if jnp.issubdtype(dtype, jnp.complexfloating) and not counterpart.complex:
            raise TypeError(
                f"{leaf_name(path)} must be real, got {dtype}: for complex numbers optax has other moments in this rule"
            )
        return jax.ShapeDtypeStruct(counterpart.shape(present), dtype)

    return jax.tree_util.tree_map_with_path(like, *trees.values(), is_leaf=_is_absent) if moments else ()


def _fitted(template: Any, value: Any, what: str, cast: Callable[..., Any]) -> Any:
    """A part of a state with the shapes of a template, each leaf cast to the template's dtype."""

    def fit(path: Path, like: Any, leaf: Any) -> Any:
        if isinstance(like, optax.MaskedNode):
            return like
        expected, given = (None if _is_absent(each) else np.shape(each) for each in (like, leaf))
        # Of a moment that a leaf does without Adafactor has a single zero in optax.
        if (expected, given) == (None, (1,)):
            return None
        if (expected, given) == ((1,), None):
            return jnp.zeros(1, like.dtype)
        if expected != given:
            raise ValueError(f"{leaf_name(path)}: {what} must have shape {expected}, got {given}")
        return None if like is None else cast(leaf, like.dtype, f"{leaf_name(path)}: {what}")

    return jax.tree_util.tree_map_with_path(fit, template, value, is_leaf=_is_absent)


def _cast_to_ours(value: Any, dtype: np.dtype, what: str) -> Array:
    del what
    value = jnp.asarray(value)
    # The second moments of complex gradients are complex in optax, with imaginary parts of zero.
    return (value if jnp.issubdtype(dtype, jnp.complexfloating) else value.real).astype(dtype)


def _cast_to_optax(value: Any, dtype: np.dtype, what: str) -> Array:
    if jnp.iscomplexobj(value) and not jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(f"{what} must be real, since optax keeps it in {dtype}, got {jnp.result_type(value)}")
    return jnp.asarray(value, dtype)


def _keep(value: Any, dtype: np.dtype, what: str) -> Any:
    del dtype, what
    return value
