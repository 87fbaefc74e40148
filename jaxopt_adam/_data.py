"""The common base of optimizers and schedules: made by a factory, each is a pytree of the factory's numbers."""

import functools
import inspect
import itertools
import operator
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn, ParamSpec, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxopt_adam._hyperparameters import Check, Number, Pair, is_number
from jaxopt_adam._layout import Layout
from jaxopt_adam._shown import brief

P = ParamSpec("P")
D = TypeVar("D", bound="Data")


class Data:
    """The result of a factory for its arguments, as a pytree whose leaves are those arguments that are numbers.

    Arguments that are no numbers are its structure. An argument may be an optimizer or a schedule itself, or a tree of
    them. Their numbers are leaves too.
    """

    # The factory; its arguments by name; the factory and the layout of the arguments; the numbers.
    _factory: Callable[..., Any]
    _arguments: dict[str, Any]
    _structure: tuple[Any, ...]
    _leaves: tuple[Any, ...]
    _kind = "value"

    @classmethod
    def _of(cls, factory: Callable[..., Any], arguments: Mapping[str, Any]) -> Self:
        """The result of `factory` for `arguments`, which are taken as they are, unchecked."""
        layout, leaves = Layout.of(arguments)
        return cls._unflatten((factory, *layout), leaves)

    @classmethod
    def _unflatten(cls, structure: tuple[Any, ...], leaves: Iterable[Any]) -> Self:
        # Transformations of trees put anything in place of a leaf (a tracer, None, an object()), so nothing here may
        # look at one, check it or run the rule: which leaves are numeric was settled when the factory was called.
        self = object.__new__(cls)
        self._keep(structure, tuple(leaves))
        return self

    def _keep(self, structure: tuple[Any, ...], leaves: tuple[Any, ...]) -> None:
        arguments = Layout(*structure[1:]).arguments(leaves)
        vars(self).update(_factory=structure[0], _arguments=arguments, _structure=structure, _leaves=leaves)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"{self._kind} cannot be changed; replace({name}=...) makes another")

    @property
    def hyperparameters(self) -> Mapping[str, Any]:
        """Every argument of the factory by its name, in the factory's order; read-only.

        One that is an optimizer or a schedule has hyperparameters itself.
        """
        return types.MappingProxyType(self._arguments)

    def get(self, name: str) -> Any:
        """One hyperparameter, of this or of an optimizer or a schedule inside.

        Args:
            name: its name, or its path if several have this name, as in :meth:`replace`.

        Returns:
            The hyperparameter as it was given; for a batch an array with a row for each member.

        Raises:
            TypeError: if `name` is not an argument of the factory, nor that of exactly one hyperparameter inside.

        Example:
            >>> from jaxopt_adam import adamw, chain
            >>> from jaxopt_adam.lifted import clip_by_global_norm
            >>> from jaxopt_adam.schedules import warmup_cosine_decay_schedule
            >>> schedule = warmup_cosine_decay_schedule(0.0, 1e-3, 500, decay_steps=10_000)
            >>> recipe = chain(clip_by_global_norm(1.0), adamw(schedule))
            >>> recipe.get("peak_value"), recipe.get("max_norm")
            (0.001, 1.0)
        """
        if name in self._arguments:
            return self._arguments[name]
        place = self._only_places([name])[name]
        return dict(_parts(self._arguments[place.argument]))[place.where].get(place.rest)

    def replace(self, **changes: Any) -> Self:
        """The same with some hyperparameters changed.

        Args:
            **changes: new values by name. If numbers replace numbers, the structure stays the same and no new trace is
                needed. The name may also be that of a hyperparameter of an optimizer or a schedule inside. If several
                have this name, give its path: the names from the outermost to its own, with dots between them, as in
                ``replace(**{"adamw.learning_rate.peak_value": 1e-3})``. The end of the path is enough if it is unique.
                In a batch that :func:`~jaxopt_adam.grid` or :func:`jax.vmap` has made, one number sets all rows, and an
                array with a number for each row sets them one by one. (A list is a tree of learning rates, as always.)

        Returns:
            The changed optimizer or schedule. An optimizer can continue from the state of the old one as long as the
            structure is the same.

        Raises:
            TypeError: if a name is not an argument of the factory, nor that of exactly one hyperparameter inside, or a
                value has the wrong type.
            ValueError: if a value is out of range, or an array does not have the leading axes of the batch.

        Example:
            >>> from jaxopt_adam import adam
            >>> from jaxopt_adam.schedules import linear_schedule
            >>> adam(1e-3, b2=0.99).replace(learning_rate=0.01)
            adam(learning_rate=0.01, b2=0.99)
            >>> adam(linear_schedule(1e-3, 0.0, 100)).replace(init_value=0.01).hyperparameters["learning_rate"]
            linear_schedule(init_value=0.01, end_value=0.0, transition_steps=100.0)
        """
        return self._replaced(changes)._broadcast(batch_shape(self._leaves))

    def _replaced(self, changes: Mapping[str, Any]) -> Self:
        own = _checked(self._factory, {name: changes[name] for name in changes if name in self._arguments})
        found = self._only_places([name for name in changes if name not in own])
        inside: dict[tuple[str, str], dict[str, Any]] = {}
        for name, place in found.items():
            if place.argument in own:
                raise TypeError(f"{self._factory.__name__}: replace either {place.argument} or what is inside")
            inside.setdefault((place.argument, place.where), {})[place.rest] = changes[name]
        arguments = self._arguments | own
        for (argument, where), given in inside.items():
            arguments[argument] = _with_part(
                arguments[argument], where, lambda part, given=given: part._replaced(given)
            )
        return self._of(self._factory, arguments)

    def _broadcast(self, shape: tuple[int, ...]) -> Self:
        """The same with numbers that have the leading axes of a batch; those without axes are repeated."""

        def row(path: Any, leaf: Any) -> Any:
            if np.shape(leaf)[: len(shape)] == shape:
                return leaf
            if np.ndim(leaf):
                name = jax.tree_util.keystr(path).lstrip(".")
                raise ValueError(
                    f"replace: {name} must be one number, or have the leading axes {shape} of this batch of "
                    f"{self._kind.split()[-1]}s, got the shape {np.shape(leaf)}"
                )
            # Strongly typed: the rows of a batch have no weak types.
            return jnp.full(shape, leaf, jnp.result_type(leaf))

        shapes = set(map(np.shape, self._leaves))
        is_right = not shape or (len(shapes) == 1 and () not in shapes)
        return self if is_right else jax.tree_util.tree_map_with_path(row, self)

    def _only_places(self, names: Iterable[str]) -> dict[str, "_Place"]:
        """The place of the only hyperparameter inside that each name stands for."""
        found = {name: self._found(name) for name in names}
        if unknown := sorted(name for name, places in found.items() if not places):
            known = ", ".join(place.path for place in self._places())
            raise TypeError(f"{self._factory.__name__} has no hyperparameter {', '.join(unknown)}; it has {known}")
        for name, places in found.items():
            if len(places) > 1:
                paths = ", ".join(place.path for place in places)
                raise TypeError(f"{self._factory.__name__} has several hyperparameters {name}, so give a path: {paths}")
        return {name: place for name, (place,) in found.items()}

    def _found(self, name: str) -> list["_Place"]:
        """The hyperparameters inside that have a name, a path or the end of a path."""
        places = [place for place in self._places() if place.rest]
        exact = [place for place in places if place.path == name]
        return exact or [place for place in places if f".{place.path}".endswith(f".{name}")]

    def _places(self) -> Iterator["_Place"]:
        """The places of all hyperparameters, those of optimizers and schedules inside among them."""
        for name, value in self._arguments.items():
            parts = list(_parts(value))
            if not parts:
                yield _Place(name, "", "")
            for where, part in parts:
                yield from (_Place(name, where, place.path) for place in part._places())

    def row(self, index: int) -> Self:
        """One row of a batch that :func:`~jaxopt_adam.grid` or :func:`jax.vmap` has made.

        Args:
            index: the number of the row, from 0; negative numbers count from the last row, −1.

        Returns:
            The optimizer or schedule, whose leaves are arrays with one axis fewer than those of the batch.

        Raises:
            TypeError: if `index` is not a whole number, or is traced.
            ValueError: if this is not a batch: if it has no leaves, or they do not all have a first axis of the
                same length.
            IndexError: if the batch has no such row.

        Example:
            >>> from jaxopt_adam import grid, sgd
            >>> optimizers, table = grid(sgd, learning_rate=[0.25, 0.5])
            >>> print(optimizers.row(1).hyperparameters["learning_rate"])
            0.5
        """
        kind = self._kind.split()[-1]
        try:
            number = operator.index(index)
        except TypeError:
            raise TypeError(f"row: index must be a whole number that is not traced, got {brief(index)}") from None
        paths = jax.tree.leaves_with_path(self)
        shapes = {jax.tree_util.keystr(path).lstrip("."): np.shape(leaf) for path, leaf in paths}
        lengths = {shape[:1] for shape in shapes.values()}
        if len(lengths) != 1 or () in lengths:
            found = ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or "none"
            raise ValueError(
                f"row: in a batch of {kind}s all hyperparameters have a first axis of one length; "
                f"the shapes of this {self._factory.__name__} are: {found}"
            )
        (length,) = lengths.pop()
        if not -length <= number < length:
            raise IndexError(f"row: index {number} is out of range for a batch of {length} {kind}s")
        return jax.tree.map(lambda leaf: leaf[number], self)

    def __repr__(self) -> str:
        composition = getattr(self._factory, "composition", None)
        if composition and composition.written:
            return f"{self._factory.__name__}({composition.written(self._arguments)})"
        parameters = inspect.signature(self._factory).parameters
        given = (
            f"{name}={text(value)}"
            for name, value in self._arguments.items()
            if name not in parameters or not same(value, parameters[name].default)
        )
        return f"{self._factory.__name__}({', '.join(given)})"

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return False
        return self._structure == other._structure and all(map(same, self._leaves, other._leaves))

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        # Arrays have no hash; what differs in a number alone has the same hash.
        return hash(self._structure)

    def __reduce__(self) -> tuple[Any, ...]:
        # Whatever stands in place of a leaf now, a copy has a leaf there too.
        factory, *layout = self._structure
        return _restored, (type(self), factory, Layout(*layout).arguments([0.0] * len(self._leaves)), self._leaves)


class _Place(typing.NamedTuple):
    """The place of a hyperparameter.

    Attributes:
        argument: the name of an argument.
        where: if the hyperparameter is one of a part inside, the place of the part in the argument.
        rest: its path within the part; "" for the argument itself.
    """

    argument: str
    where: str
    rest: str

    @property
    def path(self) -> str:
        """The path from the outermost."""
        return self.argument + self.where + (self.rest and f".{self.rest}")


def _restored(
    kind: type[Data], factory: Callable[..., Any], arguments: Mapping[str, Any], leaves: Iterable[Any]
) -> Data:
    return kind._unflatten(kind._of(factory, arguments)._structure, leaves)


def _flatten_with_keys(value: Data) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
    paths = Layout(*value._structure[1:]).paths()
    keys = [jax.tree_util.GetAttrKey(name + jax.tree_util.keystr(path)) for name, path in paths]
    return list(zip(keys, value._leaves, strict=True)), value._structure


def batch_shape(leaves: Iterable[Any]) -> tuple[int, ...]:
    """The leading axes that all leaves share: those of a batch; () for a single optimizer or schedule."""
    shared = itertools.takewhile(lambda sizes: len(set(sizes)) == 1, zip(*map(np.shape, leaves), strict=False))
    return tuple(size for size, *_ in shared)


def register(kind: type[Data]) -> None:
    """Make a subclass a pytree of its numbers."""
    jax.tree_util.register_pytree_with_keys(
        kind, _flatten_with_keys, kind._unflatten, lambda value: (value._leaves, value._structure)
    )


def factory_of(rule: Callable[P, Any], kind: type[D]) -> Callable[P, D]:
    """A factory that makes a `kind` of the arguments of a rule, with the rule's name, signature and documentation."""
    signature = inspect.signature(rule)
    for parameter in signature.parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"{rule.__name__}: every hyperparameter must have a name of its own, got {parameter}")

    @functools.wraps(rule)
    def factory(*args: P.args, **kwargs: P.kwargs) -> D:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{rule.__name__}: {error}{_of_pytorch(kwargs, signature.parameters)}") from None
        bound.apply_defaults()
        return kind._of(factory, _checked(factory, bound.arguments))

    # What help() shows: the kinds of the arguments are long to print.
    bare = [parameter.replace(annotation=parameter.empty) for parameter in signature.parameters.values()]
    factory.__signature__ = inspect.Signature(bare)  # pyright: ignore
    return factory


def _of_pytorch(given: Iterable[str], known: Iterable[str]) -> str:
    """Our names of the arguments that have PyTorch's, for an error."""
    names = {name: ours for name, ours in _PYTORCH.items() if name in given and name not in known}
    here = [f"{name} is {' and '.join(ours)} here" for name, ours in names.items() if {*ours} <= {*known}]
    return f"; {', '.join(here)}" if here else ""


_PYTORCH = {"lr": ["learning_rate"], "betas": ["b1", "b2"], "alpha": ["decay"]}


def rule_of(factory: Callable[..., Any]) -> Callable[..., Any]:
    """The function that a factory was made of, for a rule that is another one with some arguments fixed.

    The arguments that such a rule hands on have been checked, and need not be again.
    """
    return factory.__wrapped__  # pyright: ignore[reportFunctionMemberAccess]


def result_of(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """The result of a rule for its arguments as it computes with them."""
    return function(**_used(function, arguments))


@functools.cache
def checks(factory: Callable[..., Any]) -> dict[str, Check]:
    """The checks of a factory's arguments by name."""
    hints = typing.get_type_hints(factory, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items() if hasattr(hint, "__metadata__")}


def _checked(factory: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    known = checks(factory)
    return {
        name: known[name](f"{factory.__name__}: {name}", value) if name in known else value
        for name, value in arguments.items()
    }


def _used(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments as the rule computes with them, see :meth:`~jaxopt_adam._hyperparameters.Number.used`."""
    known = checks(function)
    return {
        name: check.used(f"{function.__name__}: {name}", value)
        if isinstance(check := known.get(name), (Number, Pair))
        else value
        for name, value in arguments.items()
    }


def _parts(value: Any) -> Iterator[tuple[str, Data]]:
    """Optimizers and schedules in an argument, with where they are in it."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(value, is_leaf=lambda node: isinstance(node, Data)):
        if isinstance(leaf, Data):
            yield jax.tree_util.keystr(path), leaf


def _with_part(value: Any, where: str, change: Callable[[Data], Data]) -> Any:
    """An argument with the part at a place in it changed."""

    def one(path: Any, leaf: Any) -> Any:
        return change(leaf) if isinstance(leaf, Data) and jax.tree_util.keystr(path) == where else leaf

    return jax.tree_util.tree_map_with_path(one, value, is_leaf=lambda node: isinstance(node, Data))


def text(value: Any) -> str:
    """The text of an argument, as in a call of its factory."""
    if isinstance(value, np.dtype):
        return repr(value.name)
    return getattr(value, "__name__", repr(value)) if callable(value) else repr(value)


def same(one: object, other: object) -> bool:
    """True for equal arguments; numbers are equal by their values, functions only if they are the same."""
    if one is other:
        return True
    if isinstance(one, Tracer) or isinstance(other, Tracer):
        return False
    if is_number(one) and is_number(other):
        return np.array_equal(np.asarray(one), np.asarray(other))
    (ones, tree), (others, other_tree) = jax.tree.flatten(one), jax.tree.flatten(other)
    if jax.tree_util.treedef_is_leaf(tree):
        return isinstance(one, type(other)) and one == other
    return tree == other_tree and all(map(same, ones, others))
