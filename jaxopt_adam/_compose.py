"""Compositions of transformations that are data: `chain`, `named_chain`, `partition` and `masked`, as in optax."""

import inspect
import itertools
from collections.abc import Callable, Hashable, Mapping
from typing import Annotated, Any

import optax

from jaxopt_adam._data import text
from jaxopt_adam._hyperparameters import Flag, Mask, Transformation, transformation
from jaxopt_adam._optimizer import Optimizer, inner_state, optimizer


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


def _composition(factory: Any, rule: Callable[..., Any], written: Callable[[Mapping[str, Any]], str]) -> None:
    """Make a function that takes any number of parts a factory of optimizers, which writes them in its own way."""
    factory.__signature__ = inspect.signature(factory)
    factory.__wrapped__ = rule
    factory.written = written


def _states_of_chain(parts: Mapping[str, Any], state: Any) -> dict[str, tuple[Any, Any]]:
    """Each part and its state, by name."""
    states = inner_state(state, lambda each: type(each) is tuple and len(each) == len(parts))
    return {name: (part, its_state) for (name, part), its_state in zip(parts.items(), states, strict=True)}


def _states_of_named_chain(parts: Mapping[str, Any], state: Any) -> dict[str, tuple[Any, Any]]:
    states = inner_state(state, lambda each: isinstance(each, Mapping) and each.keys() == parts.keys())
    return {name: (part, states[name]) for name, part in parts.items()}


def _states_of_partition(arguments: Mapping[str, Any], state: Any) -> dict[Hashable, tuple[Any, Any]]:
    states = inner_state(state, lambda each: hasattr(each, "inner_states")).inner_states
    return {label: (part, states[label].inner_state) for label, part in arguments["transforms"].items()}


_composition(
    chain,
    lambda **parts: optax.chain(*parts.values()),
    lambda parts: ", ".join(map(text, parts.values())),
)
_composition(
    named_chain,
    lambda **parts: optax.named_chain(*parts.items()),
    lambda parts: ", ".join(f"({name!r}, {text(part)})" for name, part in parts.items()),
)
chain.states = _states_of_chain  # pyright: ignore[reportFunctionMemberAccess]
named_chain.states = _states_of_named_chain  # pyright: ignore[reportFunctionMemberAccess]


def _transformations(name: str, value: Any) -> Any:
    """A check for a dictionary of transformations by label."""
    if not isinstance(value, Mapping) or not value:
        raise TypeError(f"{name} must be a dictionary of optimizers by label, got {value!r} ({type(value).__name__})")
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


partition.states = _states_of_partition  # pyright: ignore[reportFunctionMemberAccess]
