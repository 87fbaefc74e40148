"""An optimizer is data: the pair `init`, `update` that is also a pytree of its hyperparameters."""

import functools
import inspect
import itertools
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ParamSpec, Self, Unpack, overload

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxopt_adam._arguments import Arguments
from jaxopt_adam._data import Data, batch_shape, checks, factory_of, register, result_of, rule_of
from jaxopt_adam._eager import Compilable, compiled, on_one_device
from jaxopt_adam._hyperparameters import scheduled
from jaxopt_adam._layout import Layout
from jaxopt_adam._notes import note
from jaxopt_adam._shown import brief
from jaxopt_adam._trees import entry_of, on_explicit_axes, placed, with_auto_axes, with_gradient

P = ParamSpec("P")


class Optimizer(Data, optax.GradientTransformationExtraArgs):
    """A pair of pure functions, `init` and `update`, that is also a pytree of its numeric hyperparameters.

    It is an :class:`optax.GradientTransformationExtraArgs` and works wherever one is accepted. Its leaves are the
    hyperparameters that are numbers or arrays; functions (schedules), strings, dtypes and flags are part of its
    structure. It can therefore be an argument of a jitted function. A new learning rate then needs no new trace. With
    :func:`jax.vmap` over it, a batch of optimizers is trained at once (:func:`grid`). Without it, the `update` of a
    batch is a ValueError, unless the optimizer has a single number, which may be an array for the elements of a leaf.

    Factories such as :func:`~jaxopt_adam.adam` make optimizers, and :func:`optimizer` makes factories.

    To take one row of a batch use :meth:`row`. Indexing works as for any tuple: ``optimizer[0]`` is `init`.

    A step of a rule is compiled even where nothing is traced, if all arrays are JAX arrays on one device. There is one
    program for each combination of structure, shapes and hyperparameters. The learning rate is not part of the
    combination. Schedules of the learning rate and masks are called at each step. With other functions among the
    hyperparameters, or extra arguments, the operations of a step run one by one.

    Attributes:
        init: ``init(params) -> state``.
        update: ``update(gradients, state, params=None, **extra_args) -> (updates, state)``.

    Example:
        >>> import jax, optax
        >>> from jaxopt_adam import adam
        >>> @jax.jit
        ... def step(optimizer, params, state):
        ...     gradients = jax.grad(lambda x: (x - 3) ** 2)(params)
        ...     updates, state = optimizer.update(gradients, state, params)
        ...     return optax.apply_updates(params, updates), state
        >>> slow, fast = adam(0.01), adam(0.1)  # the two share one trace of step
        >>> x = jax.numpy.array(1.0)
        >>> [round(float(step(each, x, each.init(x))[0]), 4) for each in (slow, fast)]
        [1.01, 1.1]
    """

    _kind = "an optimizer"

    @classmethod
    def _unflatten(cls, structure: tuple[Any, ...], leaves: Iterable[Any]) -> Self:
        factory, layout, leaves = structure[0], Layout(*structure[1:]), tuple(leaves)
        function, name = rule_of(factory), factory.__name__

        # Functions over these, and no functools.partial: equinox, and with it optimistix, takes what local functions
        # close over as data, and compares all else by identity. None closes over the factory, which has itself within.
        def init(params: optax.Params) -> optax.OptState:
            return placed(note(_made(function, layout, leaves).init(params), rule=name), params)

        def update(
            updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra_args: Any
        ) -> tuple[optax.Updates, optax.OptState]:
            _refuse_batch(name, layout, leaves)
            given = updates, state, with_gradient(updates, params)
            at_once = None if extra_args else _compiled_step(function, layout, leaves, *given)
            return _step(function, layout, leaves, *given, **extra_args) if at_once is None else at_once

        self = tuple.__new__(cls, (init, update))
        self._keep(structure, leaves)
        return self

    @classmethod
    def _make(cls, iterable: Iterable[Any]) -> optax.GradientTransformationExtraArgs:  # pyright: ignore
        # A pair with another init or update, as from _replace, is no longer what the factory makes.
        return optax.GradientTransformationExtraArgs(*iterable)

    def _gives_direction(self) -> str | None:
        """The name of this rule, or of one inside, if its learning rate is None and it gives the direction alone."""
        wrapped = [value for value in self._arguments.values() if isinstance(value, optax.GradientTransformation)]
        if wrapped:
            within = (value._gives_direction() for value in wrapped if isinstance(value, Optimizer))
            return next(filter(None, within), None)
        # Not all rules mean that by None; those that do say so by the kind of the argument.
        means_direction = getattr(checks(self._factory).get("learning_rate"), "direction", False)
        has_none = self._arguments.get("learning_rate", 0.0) is None
        return self._factory.__name__ if means_direction and has_none else None

    def current_learning_rate(self, state: optax.OptState) -> Any:
        """The learning rate that the next update will use; a schedule is evaluated at the state's `count`.

        Args:
            state: a state of this optimizer, or of a wrapper around it in which no other part keeps a `count`.

        Returns:
            A scalar array; a tree of them if the learning rate is a tree; None for an optimizer without a learning
            rate. For a wrapper it is the rate of the inner optimizer. For a chain it is the rate of the only part that
            has one. If several parts have one, as in a partition, it is a dictionary of the rates by the names or the
            labels of the parts. For a batch the array has the batch's axes. The states of a batch of optimizers must
            have the same leading axes. For example, 4 optimizers with 64 runs each have states of shape (4, 64, ...)
            and give a rate of shape (4, 64).

        Raises:
            ValueError: if the learning rate is a schedule and `state` has no `count`, or several; if no learning rate
                is found and a part is a transformation of optax, whose numbers cannot be read; if the optimizers and
                the states of a batch have different leading axes.

        Example:
            >>> import optax
            >>> from jaxopt_adam import sgd
            >>> optimizer = sgd(optax.linear_schedule(1.0, 0.0, transition_steps=4))
            >>> state = optimizer.init(2.0)
            >>> _, state = optimizer.update(1.0, state)
            >>> print(optimizer.current_learning_rate(state))
            0.75
        """
        rate = self._found_learning_rate(state)
        opaque = self._opaque_part() if rate is None else None
        if opaque is not None:
            raise ValueError(
                f"{opaque} of {self._factory.__name__} is no jaxopt_adam.Optimizer, and its learning rate cannot be "
                "read; make it with jaxopt_adam.chain in place of optax.chain, and its parts with jaxopt_adam and "
                "jaxopt_adam.lifted in place of optax"
            )
        return rate

    def _found_learning_rate(self, state: optax.OptState) -> Any:
        """The learning rate here or inside; None if there is none that can be read."""
        if "learning_rate" not in self._arguments:
            return self._inner_learning_rate(state)
        learning_rate = self._arguments["learning_rate"]
        if learning_rate is None:
            return None
        # A state has moments like the parameters, and so like a tree of rates.
        is_entry = entry_of(learning_rate, *(state if isinstance(state, tuple) else ()))
        is_constant = not any(map(is_entry, jax.tree.leaves(learning_rate, is_leaf=is_entry)))
        counts = [count for _, count in optax.tree.get_all_with_path(state, "count")]
        if len(counts) != 1:
            if is_constant:
                return jax.tree.map(jnp.asarray, learning_rate)
            raise ValueError(
                f"state must hold one count at which to evaluate the schedule, found {len(counts)}; pass the part of "
                f"it that belongs to {brief(self)}"
            )
        (count,) = counts

        def rates(learning_rate: Any, count: Any) -> Any:
            return jax.tree.map(
                lambda rate: jnp.asarray(rate(count) if callable(rate) else rate), learning_rate, is_leaf=is_entry
            )

        return self._over_rows(rates, learning_rate, count)

    def _over_rows(self, function: Callable[[Any, Any], Any], numbers: Any, count: Any) -> Any:
        """``function(numbers, count)`` for each row of a batch: of these hyperparameters, of `count` or of both."""
        if not np.ndim(count):
            return function(numbers, count)
        rows, axes = batch_shape(self._leaves), np.shape(count)
        if any(map(np.ndim, self._leaves)) and (not rows or any(map(operator.ne, rows, axes))):
            shapes = ", ".join(sorted({str(np.shape(leaf)) for leaf in self._leaves}))
            raise ValueError(
                f"current_learning_rate: the states of a batch must have the leading axes of their optimizers, got "
                f"hyperparameters of shape {shapes} in {self._factory.__name__} and count of shape {axes}; for other "
                "layouts use jax.vmap(lambda optimizer, state: optimizer.current_learning_rate(state), in_axes=...)"
            )
        # Functions among the leaves have no axes.
        leaves, tree = jax.tree.flatten(numbers)
        arrays = [None if callable(leaf) else leaf for leaf in leaves]

        def row(arrays: Any, count: Any) -> Any:
            pairs = zip(leaves, arrays, strict=True)
            return function(tree.unflatten([leaf if array is None else array for leaf, array in pairs]), count)

        for axis in reversed(range(max(len(rows), len(axes)))):
            row = jax.vmap(row, in_axes=(0 if axis < len(rows) else None, 0 if axis < len(axes) else None))
        return row(arrays, count)

    def _inner_learning_rate(self, state: optax.OptState) -> Any:
        """The learning rate of the optimizer inside; of several parts the only one, or all by name."""
        composition = getattr(self._factory, "composition", None)
        if composition is None:
            within = [value for value in self._arguments.values() if isinstance(value, Optimizer)]
            return within[0]._found_learning_rate(_inner_state(state)) if len(within) == 1 else None
        rates: dict[Any, Any] = {}

        def visit(name: Any, part: Any, own: Any) -> None:
            if isinstance(part, Optimizer) and (rate := part._found_learning_rate(own)) is not None:
                rates[name] = rate

        fits = functools.partial(composition.fits, self._arguments)
        composition.mapped(self._arguments, _inner_state(state, fits), visit)
        is_one = len(rates) == 1 and not composition.by_label
        return next(iter(rates.values())) if is_one else rates or None

    def _opaque_part(self) -> str | None:
        """The place of the first part, here or inside, that is a transformation and no :class:`Optimizer`.

        None where there is none, and for an optimizer that has a learning rate of its own.
        """
        if "learning_rate" in self._arguments:
            return None
        for path, part in jax.tree_util.tree_leaves_with_path(self._arguments, is_leaf=_is_transformation):
            where = path[0].key + jax.tree_util.keystr(path[1:])
            if not _is_transformation(part):
                continue
            inside = part._opaque_part() if isinstance(part, Optimizer) else ""
            if inside is not None:
                return f"{where}.{inside}" if inside else where
        return None


def _is_transformation(node: Any) -> bool:
    return isinstance(node, optax.GradientTransformation)


def _inner_state(state: Any, is_right: Callable[[Any], bool] = lambda state: False) -> Any:
    """The state inside the states of wrappers: the first that is right, or the innermost."""
    names = ("inner_state", "inner_opt_state", "fast_state")
    while not is_right(state) and (name := next((name for name in names if hasattr(state, name)), None)):
        state = getattr(state, name)
    return state


def _refuse_batch(name: str, layout: Layout, leaves: Sequence[Any]) -> None:
    """Raise ValueError if several hyperparameters have the leading axes of a batch.

    A single hyperparameter may be an array that broadcasts to a leaf. If all of them have the same axes,
    :func:`~jaxopt_adam.grid` or :func:`jax.vmap` has made them. Each number then belongs to one optimizer of the batch,
    and must not be broadcast to a leaf.
    """
    shape = batch_shape(leaves)
    if math.prod(shape) > 1 and len({argument for argument, _ in layout.paths()}) > 1:
        raise ValueError(
            f"{name}: all hyperparameters have the axes {shape}, so this is a batch of optimizers; call update within "
            "jax.vmap over the batch, or take one of them by row"
        )


def _made(function: Callable[..., Any], layout: Layout, leaves: Iterable[Any]) -> optax.GradientTransformationExtraArgs:
    """The transformation that a rule makes of its arguments."""
    return result_of(function, layout.arguments(leaves))


def _step(
    function: Callable[..., Any],
    layout: Layout,
    leaves: Iterable[Any],
    updates: Any,
    state: Any,
    params: Any,
    **extra_args: Any,
) -> tuple[optax.Updates, optax.OptState]:
    """The step of the rule."""

    def step(updates: Any, leaves: Any, *given: Any) -> tuple[optax.Updates, optax.OptState]:
        return _made(function, layout, leaves).update(updates, *given, **extra_args)

    given = updates, leaves, state, params
    if on_explicit_axes(updates) and any(isinstance(leaf, jax.Array) for leaf in leaves):
        # The rule closes over numbers of that mesh, which cannot be read where the compiler places arrays, as it does
        # in a step of stored moments. So it places those of the whole step.
        return with_auto_axes(step, given, outputs=(updates, state))
    return step(*given)


def _compiled_step(
    function: Callable[..., Any], layout: Layout, leaves: Sequence[Any], updates: Any, state: Any, params: Any
) -> tuple[optax.Updates, optax.OptState] | None:
    """The same step as a compiled program, where nothing is traced; None where it has to be done otherwise."""
    arrays = updates, state, params, [leaf for leaf in leaves if isinstance(leaf, jax.Array)]
    if not on_one_device(arrays) or not isinstance(_made(function, layout, leaves), Compilable):
        return None
    layout, data = Layout.of(_without_functions(layout.arguments(leaves), updates, state, params))
    if any(callable(value) and not isinstance(value, type) for value in layout.static):
        return None  # a function that is left may depend on more than its arguments, so it cannot be compiled in
    layout, data = layout.fixed(data)
    try:
        step = compiled(_step, function, layout)
    except TypeError:  # something has no hash
        return None
    return step(data, updates, state, params)


def _without_functions(arguments: dict[str, Any], updates: Any, state: Any, params: Any) -> dict[str, Any]:
    """The arguments with numbers in place of schedules of the learning rate, and booleans in place of a mask."""
    count, rate, mask = getattr(state, "count", None), arguments.get("learning_rate"), arguments.get("mask")
    known = {}
    if count is not None:
        known["learning_rate"] = jax.tree.map(
            lambda each: scheduled(each, count, "learning_rate"), rate, is_leaf=entry_of(rate, updates)
        )
    if callable(mask) and params is not None:
        known["mask"] = mask(params)
    return {name: known.get(name, value) for name, value in arguments.items()}


register(Optimizer)


def optimizer(rule: Callable[P, optax.GradientTransformationExtraArgs]) -> Callable[P, Optimizer]:
    """Make a factory of :class:`Optimizer` from a function of hyperparameters.

    The function takes the hyperparameters and returns a gradient transformation, as optax's factories do. It is called
    again at each call of `init` or `update`, with tracers where the optimizer is traced. Its Python control flow must
    therefore not depend on the value of a number. It must have no side effects.

    Arguments annotated with a kind, such as :data:`~jaxopt_adam.LearningRate`, are checked when an optimizer is made.

    Args:
        rule: the function; every argument has a name (no ``*args``).

    Returns:
        The factory, with the name, the signature and the documentation of `rule`.

    Raises:
        TypeError: if an argument of `rule` cannot be given by name.

    Example:
        >>> import optax
        >>> from jaxopt_adam import optimizer
        >>> @optimizer
        ... def clipped_sgd(learning_rate, limit=1.0):
        ...     return optax.chain(optax.clip(limit), optax.sgd(learning_rate))
        >>> clipped_sgd(0.1)
        clipped_sgd(learning_rate=0.1)
        >>> clipped_sgd(0.1, limit=2.0).hyperparameters["limit"]
        2.0
    """
    return factory_of(rule, Optimizer)


# A type checker can hold the names of the axes against the factory's, but not know that lists of its values are meant.
# So lists in place of single numbers are known by name, and arrays, which the factory takes too, for any factory.
@overload
def grid(
    factory: Callable[P, Optimizer], *args: P.args, **axes: P.kwargs
) -> tuple[Optimizer, list[dict[str, Any]]]: ...
@overload
def grid(factory: Callable[..., Optimizer], **axes: Unpack[Arguments]) -> tuple[Optimizer, list[dict[str, Any]]]: ...
def grid(factory: Callable[..., Optimizer], *args: Any, **axes: Any) -> tuple[Optimizer, list[dict[str, Any]]]:
    """One batched optimizer over the product of some hyperparameters' values.

    Args:
        factory: a factory, such as :func:`~jaxopt_adam.adam`, or a function that makes an optimizer with one.
        *args: the factory's first arguments, which may be given without their names.
        **axes: further arguments of the factory, by name. A list or one-dimensional array of values makes an axis of
            the grid. Anything else is an argument that all rows share.

    Returns:
        The optimizer and a table. Each leaf of the optimizer is an array of n rows, for ``jax.vmap`` over the first
        axis. The table is a list of n dictionaries, which say what values each row has. The last axis of the grid
        varies fastest. To take one row of the optimizer use :meth:`Optimizer.row`.

    Raises:
        ValueError: if there is no axis, or an axis is empty or not one-dimensional, or a value is out of range.
        TypeError: if an axis is not of numbers, an argument is unknown to the factory, or the factory does not
            make an :class:`Optimizer`, as :func:`optax.chain` does not.

    Example:
        >>> import jax
        >>> from jaxopt_adam import descend, grid, sgd
        >>> optimizers, table = grid(sgd, learning_rate=[0.1, 0.4], momentum=[0.0, 0.5])
        >>> table[1]
        {'learning_rate': 0.1, 'momentum': 0.5}
        >>> paths = jax.vmap(lambda each: descend(lambda x: x**2, 1.0, each, steps=20))(optimizers)
        >>> paths.value.shape
        (4, 21)
    """
    if args:
        axes = inspect.signature(factory).bind_partial(*args).arguments | axes
    name = _checked_factory(factory, axes)
    columns: dict[str, list[float]] = {}
    for axis, values in axes.items():
        if isinstance(values, (list, tuple, range)) or np.ndim(values):
            column = np.asarray(values)
            if column.ndim != 1 or not column.size:
                raise ValueError(f"grid: {axis} must be one row of at least one value, got shape {column.shape}")
            if not np.issubdtype(column.dtype, np.number) or np.iscomplexobj(column):
                raise TypeError(
                    f"grid: {axis} must hold real numbers to be an axis, got {brief(values)}; give an argument "
                    "that all rows share without a list"
                )
            columns[axis] = [float(value) for value in column]
    if not columns:
        raise ValueError(f"grid: give at least one argument of {name} a list of values")
    table = [dict(zip(columns, row, strict=True)) for row in itertools.product(*columns.values())]
    batched = {axis: np.array([row[axis] for row in table]) for axis in columns}
    made = factory(**(axes | batched))  # within vmap its arguments are traced, and taken on trust
    if not isinstance(made, Optimizer):
        raise TypeError(
            f"grid: {name} must return an Optimizer, got {type(made).__name__}, which has its hyperparameters in "
            "closures, where no batch of them can be; put @jaxopt_adam.optimizer over the function"
        )
    rows = jax.vmap(lambda row: factory(**(axes | row)))(jax.tree.map(lambda row: jnp.asarray(row, float), batched))
    # Strongly typed: the rows of a batch have no weak types.
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, leaf.dtype), rows), table


def _checked_factory(factory: Any, axes: Mapping[str, Any]) -> str:
    """The name of a factory that knows all arguments."""
    if isinstance(factory, Optimizer):
        raise TypeError(f"grid: the factory itself is needed, {factory._factory.__name__}, got {brief(factory)}")
    if not callable(factory):
        raise TypeError(f"grid: factory must be a function that makes an optimizer, got {brief(factory)}")
    name = getattr(factory, "__name__", repr(factory))
    parameters = inspect.signature(factory).parameters.values()
    names = [each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    unknown = [axis for axis in axes if axis not in names]
    if unknown and not any(each.kind is each.VAR_KEYWORD for each in parameters):
        raise TypeError(f"grid: {name} has no argument {', '.join(unknown)}; it has {', '.join(names)}")
    return name
