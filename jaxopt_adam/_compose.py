"""Compositions of transformations that are data: `chain`, `named_chain`, `partition` and `masked`, as in optax."""

import inspect
import itertools
from collections.abc import Callable, Hashable, Mapping
from typing import Annotated, Any, NamedTuple

import optax

from jaxopt_adam._data import text
from jaxopt_adam._hyperparameters import Flag, Mask, Transformation, transformation
from jaxopt_adam._optimizer import Optimizer, optimizer
from jaxopt_adam._shown import shown


def chain(*transforms: optax.GradientTransformation) -> Optimizer:
    """Several transformations one after the other, as :func:`optax.chain`.

    Args:
        *transforms: the transformations, at least one. Those that are an :class:`Optimizer` are data: their numbers are
            leaves of the chain. Others, such as optax's own, are part of the structure.

    Returns:
        An :class:`Optimizer` with the state of :func:`optax.chain`, a tuple of states. Its `hyperparameters` are the
        parts by the names of their factories, with a number after a name that comes again; a part that is not an
        :class:`Optimizer` is ``part_1``, ``part_2``, … by its place.

    Raises:
        TypeError: if one of `transforms` is not a transformation, or there is none.

    Example:
        >>> from jaxopt_adam import adamw, chain
        >>> from jaxopt_adam.lifted import clip_by_global_norm
        >>> from jaxopt_adam.schedules import linear_schedule
        >>> recipe = chain(clip_by_global_norm(1.0), adamw(linear_schedule(1e-3, 0.0, 100), weight_decay=0.1))
        >>> recipe.replace(max_norm=2.0, init_value=0.01)
        chain(clip_by_global_norm(max_norm=2.0), adamw(learning_rate=linear_schedule(init_value=0.01, end_value=0.0, \
transition_steps=100.0), weight_decay=0.1))
        >>> print(recipe.current_learning_rate(recipe.init(1.0)))
        0.001
    """
    if not transforms:
        raise TypeError("chain: give at least one transformation")
    names: list[str] = []
    for index, part in enumerate(transforms):
        transformation(f"chain: transforms[{index}]", part)
        name = part._factory.__name__ if isinstance(part, Optimizer) else f"part_{index + 1}"
        numbered = (f"{name}_{number}" for number in itertools.count(2))
        names.append(next(each for each in itertools.chain([name], numbered) if each not in names))
    return Optimizer._of(chain, dict(zip(names, transforms, strict=True)))


def named_chain(*transforms: tuple[str, optax.GradientTransformation]) -> Optimizer:
    """Several transformations with names, one after the other, as :func:`optax.named_chain`.

    Args:
        *transforms: pairs of a name and a transformation, at least one.

    Returns:
        An :class:`Optimizer` with the state of :func:`optax.named_chain`, a dictionary of states by name. Its
        `hyperparameters` are the parts by name.

    Raises:
        TypeError: if one of `transforms` is not such a pair, or there is none.
        ValueError: if a name comes twice.

    Example:
        >>> from jaxopt_adam import adam, named_chain
        >>> from jaxopt_adam.lifted import clip
        >>> recipe = named_chain(("limit", clip(1.0)), ("rule", adam(0.1)))
        >>> recipe.replace(**{"rule.learning_rate": 0.2}).hyperparameters["rule"]
        adam(learning_rate=0.2)
        >>> list(recipe.init(1.0))
        ['limit', 'rule']
    """
    if not transforms:
        raise TypeError("named_chain: give at least one pair of a name and a transformation")
    parts: dict[str, optax.GradientTransformation] = {}
    for index, pair in enumerate(transforms):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not isinstance(pair[0], str):
            raise TypeError(
                f"named_chain: transforms[{index}] must be a pair of a name and a transformation, got {pair!r}"
            )
        name, part = pair
        if name in parts:
            raise ValueError(f"named_chain: the name {name!r} comes twice")
        parts[name] = transformation(f"named_chain: {name}", part)
    return Optimizer._of(named_chain, parts)


Visit = Callable[[Any, Any, Any], Any]
"""``visit(name, part, state)``: something in place of the state of a part."""


class Composition(NamedTuple):
    """The form of a composition's arguments and state. A factory has it as its attribute `composition`.

    Attributes:
        fits: ``fits(arguments, state)``: whether that is a state of the composition.
        mapped: ``mapped(arguments, state, visit)``: the state with the result of `visit` in place of that of each part.
        by_label: whether parts have labels, and learning rates with them.
        written: the arguments as they are written in a call, where they are not names and values.
    """

    fits: Callable[[Mapping[str, Any], Any], bool]
    mapped: Callable[[Mapping[str, Any], Any, Visit], Any]
    by_label: bool = False
    written: Callable[[Mapping[str, Any]], str] | None = None


def _mapped_chain(parts: Mapping[str, Any], state: Any, visit: Visit) -> Any:
    return tuple(visit(name, part, own) for (name, part), own in zip(parts.items(), state, strict=True))


def _mapped_named_chain(parts: Mapping[str, Any], state: Any, visit: Visit) -> Any:
    return type(state)((name, visit(name, part, state[name])) for name, part in parts.items())


def _mapped_partition(arguments: Mapping[str, Any], state: Any, visit: Visit) -> Any:
    states = {
        label: state.inner_states[label]._replace(inner_state=visit(label, part, state.inner_states[label].inner_state))
        for label, part in arguments["transforms"].items()
    }
    return state._replace(inner_states=states)


def _mapped_masked(arguments: Mapping[str, Any], state: Any, visit: Visit) -> Any:
    return state._replace(inner_state=visit("inner", arguments["inner"], state.inner_state))


def _made_of_parts(factory: Any, rule: Callable[..., Any], composition: Composition) -> None:
    """Make a factory of a function that takes any number of parts, which the rule takes by name."""
    factory.__signature__ = inspect.signature(factory)
    factory.__wrapped__ = rule
    factory.composition = composition


_made_of_parts(
    chain,
    lambda **parts: optax.chain(*parts.values()),
    Composition(
        lambda parts, state: type(state) is tuple and len(state) == len(parts),
        _mapped_chain,
        written=lambda parts: ", ".join(map(text, parts.values())),
    ),
)
_made_of_parts(
    named_chain,
    lambda **parts: optax.named_chain(*parts.items()),
    Composition(
        lambda parts, state: isinstance(state, Mapping) and state.keys() == parts.keys(),
        _mapped_named_chain,
        written=lambda parts: ", ".join(f"({name!r}, {text(part)})" for name, part in parts.items()),
    ),
)


def _transformations(name: str, value: Any) -> Any:
    """A check for a dictionary of transformations by label."""
    if not isinstance(value, Mapping) or not value:
        raise TypeError(f"{name} must be a dictionary of optimizers by label, got {shown(value)}")
    return {label: transformation(f"{name}[{label!r}]", part) for label, part in value.items()}


@optimizer
def partition(
    transforms: Annotated[Mapping[Hashable, optax.GradientTransformation], _transformations],
    param_labels: Any,
    *,
    mask_compatible_extra_args: Flag = False,
) -> optax.GradientTransformationExtraArgs:
    """A transformation for each part of the parameters, as :func:`optax.partition`.

    Args:
        transforms: a dictionary of transformations by label.
        param_labels: a tree of labels like the parameters, or a prefix of it; or a function from the parameters to one.
        mask_compatible_extra_args: whether extra arguments that are trees like the parameters are divided as well.

    Returns:
        An :class:`Optimizer` with the state of :func:`optax.partition`.

    Raises:
        TypeError: if `transforms` is not a dictionary of transformations.
        ValueError: if a label has no transformation; raised by `init`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxopt_adam import adam, partition, sgd
        >>> recipe = partition({"body": adam(1e-3), "head": sgd(0.1)}, {"w": "body", "b": "head"})
        >>> state = recipe.init({"w": jnp.ones(2), "b": jnp.ones(2)})
        >>> {label: str(rate) for label, rate in recipe.current_learning_rate(state).items()}
        {'body': '0.001', 'head': '0.1'}
    """
    return optax.partition(transforms, param_labels, mask_compatible_extra_args=mask_compatible_extra_args)  # pyright: ignore


@optimizer
def masked(
    inner: Transformation, mask: Mask, *, mask_compatible_extra_args: Flag = False
) -> optax.GradientTransformationExtraArgs:
    """A transformation of some of the parameters, as :func:`optax.masked`. The gradients of the others stay the same.

    Args:
        inner: the transformation.
        mask: a tree of booleans like the parameters, or a prefix of it; or a function from the parameters to one.
        mask_compatible_extra_args: whether extra arguments that are trees like the parameters are masked as well.

    Returns:
        An :class:`Optimizer` with the state of :func:`optax.masked`.

    Raises:
        TypeError: if `inner` is not a transformation, or `mask` neither a function nor a tree of booleans.

    Example:
        >>> from jaxopt_adam import masked, sgd
        >>> recipe = masked(sgd(0.5), {"w": True, "b": False})
        >>> updates, _ = recipe.update({"w": 1.0, "b": 1.0}, recipe.init({"w": 1.0, "b": 1.0}))
        >>> print(updates["w"], updates["b"])
        -0.5 1.0
    """
    return optax.masked(inner, mask, mask_compatible_extra_args=mask_compatible_extra_args)  # pyright: ignore


partition.composition = Composition(  # pyright: ignore[reportFunctionMemberAccess]
    lambda arguments, state: hasattr(state, "inner_states"), _mapped_partition, by_label=True
)
masked.composition = Composition(  # pyright: ignore[reportFunctionMemberAccess]
    lambda arguments, state: isinstance(state, optax.MaskedState), _mapped_masked
)
