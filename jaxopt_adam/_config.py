"""Optimizers and schedules as plain dictionaries, for a file, a log or a place beside a checkpoint."""

import dataclasses
import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

import jaxopt_adam
from jaxopt_adam import schedules
from jaxopt_adam._data import Data, checks, same
from jaxopt_adam._hyperparameters import is_array, transformation
from jaxopt_adam._shown import brief, shown
from jaxopt_adam.storage import Blockwise, Dense

Known = Mapping[str, Callable[..., Any]]
_FACTORY = "a dictionary of one factory and its arguments"
_STORAGES = {each.__name__: each for each in (Blockwise, Dense)}


@functools.cache
def factories() -> dict[str, Callable[..., Any]]:
    """The factories of optimizers and schedules, by name."""
    from jaxopt_adam import lifted  # not needed until here

    return {
        name: value
        for module in (lifted, schedules, jaxopt_adam)
        for name, value in vars(module).items()
        if inspect.isfunction(value) and hasattr(value, "__wrapped__") and not name.startswith("_")
    }


def to_config(value: Any, known: Known | None = None) -> dict[str, Any]:
    """An optimizer or a schedule as a plain dictionary of names and numbers, which JSON and YAML can write.

    Args:
        value: an optimizer or a schedule made by a factory of this library, or by one of `known`.
        known: further factories by name, made with :func:`~jaxopt_adam.optimizer` or
            :func:`~jaxopt_adam.schedules.schedule`; and plain functions among the arguments, such as masks.

    Returns:
        A dictionary with one key, the name of the factory, and its arguments by name; those of a chain are a list. What
        is inside, an optimizer or a schedule, is such a dictionary again. Arrays become lists with their dtype. A
        function that is the default of an argument is left out.

    Raises:
        TypeError: if `value` is neither an optimizer nor a schedule, or holds what no dictionary can say, such as an
            unknown function or a traced number. The error names its place.

    Example:
        >>> from jaxopt_adam import sgd, to_config
        >>> from jaxopt_adam.schedules import linear_schedule
        >>> to_config(sgd(linear_schedule(0.1, 0.0, 10)))["sgd"]["learning_rate"]
        {'linear_schedule': {'init_value': 0.1, 'end_value': 0.0, 'transition_steps': 10.0, 'transition_begin': 0.0}}
    """
    if not isinstance(value, Data) and not isinstance(value, optax.GradientTransformation):
        raise TypeError(f"to_config: value must be an optimizer or a schedule, got {shown(value)}")
    return _written(value, "", known or {})


def from_config(config: Mapping[str, Any], known: Known | None = None) -> Any:
    """The optimizer or the schedule that a dictionary describes, as :func:`to_config` writes it.

    Nothing is evaluated but the factories of this library and those of `known`.

    Args:
        config: a dictionary with one key, the name of a factory, and a dictionary of its arguments. Those that have a
            default may be missing.
        known: further factories and functions by name, as for :func:`to_config`.

    Returns:
        The optimizer or the schedule.

    Raises:
        TypeError: if `config` or a part of it is not such a dictionary, or an argument is missing, unknown or of the
            wrong type.
        ValueError: if a name is unknown or a value out of range. Every error names its place in `config`.

    Example:
        >>> from jaxopt_adam import from_config
        >>> from_config({"chain": [{"clip": {"max_delta": 1.0}}, {"adam": {"learning_rate": 0.001}}]})
        chain(clip(max_delta=1.0), adam(learning_rate=0.001))
    """
    found = _read(config, "", known or {})
    if not isinstance(found, Data):
        raise TypeError(
            f"from_config: config must be a dictionary of one factory and its arguments, got {brief(config)}"
        )
    return found


# ------------------------------------------------------------------------------------------------------------- writing


def _written(value: Any, place: str, known: Known) -> Any:
    if isinstance(value, Data):
        return _written_factory(value, place, known)
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, optax.GradientTransformation):
        _refuse_opaque(value, place)
    if isinstance(value, (int, float)):  # those that shape a program have types of their own
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, np.dtype):
        return value.name
    if isinstance(value, Tracer):
        raise TypeError(f"to_config: {place} is traced, so it has no value yet")
    if is_array(value):
        return {"array": np.asarray(value).tolist(), "dtype": np.asarray(value).dtype.name}
    if type(value) in _STORAGES.values():
        fields = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
        return {type(value).__name__: {name: _written(each, f"{place}.{name}", known) for name, each in fields.items()}}
    if type(value) is dict:
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"to_config: {place} must have strings as keys, got {list(value)!r}")
        written = {key: _written(each, f"{place}[{key!r}]", known) for key, each in value.items()}
        # A tree that reads like a factory, an array and so on.
        return {"dict": written} if _is_special(written, known) else written
    if type(value) in (list, tuple):
        written = [_written(each, f"{place}[{index}]", known) for index, each in enumerate(value)]
        return {"tuple": written} if type(value) is tuple else written
    for name, function in known.items():
        if function is value:
            return {"function": name}
    if callable(value):
        ours = _in_place_of_optax(value)
        hint = "" if ours is None else f"use {ours}, which is data, or another factory of jaxopt_adam.schedules; or "
        raise TypeError(
            f"to_config: {place or 'value'} is a function that is not among the known ones, {value!r}; {hint}give it "
            f"by name, {_as_known(getattr(value, '__name__', 'name'))}"
        )
    kind = f"a {type(value).__name__}"
    raise TypeError(
        f"to_config: {place or 'value'} is {kind}, {brief(value)}, which a dictionary cannot say; of what is no plain "
        "data, it can say functions and factories that `known` has by name"
    )


def _in_place_of_optax(function: Any) -> str | None:
    """The factory here that has the name of the one of optax's that made a function; None if there is none."""
    name = getattr(function, "__qualname__", "").partition(".")[0]
    if not getattr(function, "__module__", "").startswith("optax."):
        return None
    from jaxopt_adam import lifted  # not needed until here

    modules = [each for each in (jaxopt_adam, schedules, lifted) if hasattr(each, name) and name in factories()]
    return f"{modules[0].__name__}.{name}" if modules else None


def _refuse_opaque(value: optax.GradientTransformation, place: str) -> NoReturn:
    """Raise the error for a transformation that is no optimizer of this library."""
    ours = _in_place_of_optax(value.update)
    if ours is None:
        hint = (
            "make it with a factory of jaxopt_adam or jaxopt_adam.lifted; or put @jaxopt_adam.optimizer over the "
            "function that makes it, and give that by name, known={'name': the function}"
        )
    elif ours == "jaxopt_adam.chain":
        hint = (
            "use jaxopt_adam.chain in place of optax.chain, and optimizers of jaxopt_adam and jaxopt_adam.lifted in "
            "place of optax's"
        )
    else:
        hint = f"use {ours}"
    raise TypeError(
        f"to_config: {place or 'value'} is a {type(value).__name__} and no jaxopt_adam.Optimizer, so its numbers "
        f"cannot be read; {hint}"
    )


def _as_known(name: str) -> str:
    """The argument `known` that is missing."""
    # A lambda has a name that is none.
    return f"known={{{name!r}: {name}}}" if name.isidentifier() else "known={'name': the function}"


def _written_factory(value: Data, place: str, known: Known) -> dict[str, Any]:
    factory = value._factory
    name = factory.__name__
    own = next((each for each, function in known.items() if function is factory), None)
    if own is None and factories().get(name) is not factory:
        raise TypeError(
            f"to_config: {place or 'value'} is made by {name}, which is not among the known factories; "
            f"give it by name, {_as_known(name)}"
        )
    here = f"{place}.{own or name}".lstrip(".")
    if name in ("chain", "named_chain") and own is None:
        parts = [
            (each, _written(part, f"{here}[{index}]", known))
            for index, (each, part) in enumerate(value._arguments.items())
        ]
        return {name: [part for _, part in parts] if name == "chain" else [list(pair) for pair in parts]}
    defaults = {argument: each.default for argument, each in inspect.signature(factory).parameters.items()}
    return {
        own or name: {
            argument: _plain(factory, argument, each, _written(each, f"{here}.{argument}", known), known)
            for argument, each in value._arguments.items()
            if not (inspect.isfunction(each) and each is defaults[argument])
        }
    }


def _plain(factory: Callable[..., Any], name: str, value: Any, written: Any, known: Known) -> Any:
    """The same with lists in place of tuples, if the factory makes the same of them."""
    plain, check = _without_tuples(written), checks(factory).get(name)
    if plain == written or check is None:
        return written
    try:
        return plain if same(check(name, _read(plain, name, known)), value) else written
    except (TypeError, ValueError):
        return written


def _without_tuples(written: Any) -> Any:
    if isinstance(written, dict):
        if written.keys() == {"tuple"}:
            return _without_tuples(written["tuple"])
        return {key: _without_tuples(each) for key, each in written.items()}
    return [_without_tuples(each) for each in written] if isinstance(written, list) else written


# ------------------------------------------------------------------------------------------------------------- reading


def _is_special(config: Mapping[str, Any], known: Known) -> bool:
    """True for a dictionary that stands for something else than a tree: a factory, an array, a tuple, a function."""
    if config.keys() == {"array", "dtype"}:
        return True
    if len(config) != 1:
        return False
    (name,) = config
    if name in ("tuple", "function", "dict"):
        return True
    return name in known or name in factories() or name in _STORAGES


def _read(config: Any, place: str, known: Known) -> Any:
    if isinstance(config, list):
        return [_read(each, f"{place}[{index}]", known) for index, each in enumerate(config)]
    if not isinstance(config, Mapping):
        if config is None or isinstance(config, (bool, int, float, str)):
            return config
        raise TypeError(f"from_config: {place or 'config'} must be plain data, got {shown(config)}")
    if not place and (len(config) != 1 or not _is_special(config, known)):
        _refuse(config, "", known)
    if not _is_special(config, known):
        return {key: _read(each, f"{place}[{key!r}]", known) for key, each in config.items()}
    if "array" in config:
        return _read_array(config, place)
    ((name, inside),) = config.items()
    here = f"{place}.{name}".lstrip(".")
    if name == "function":
        if inside not in known:
            raise ValueError(
                f"from_config: {place} is the function {inside!r}, which is not among the known ones; give it by name, "
                f"{_as_known(str(inside))}"
            )
        return known[inside]
    if name == "dict":
        if not isinstance(inside, Mapping):
            raise TypeError(f"from_config: {here} must be a dictionary, got {brief(inside)}")
        return {key: _read(each, f"{place}[{key!r}]", known) for key, each in inside.items()}
    if name == "tuple":
        if not isinstance(inside, list):
            raise TypeError(f"from_config: {here} must be a list, got {brief(inside)}")
        return tuple(_read(each, f"{place}[{index}]", known) for index, each in enumerate(inside))
    return _made(name, inside, here, known)


def _refuse(config: Mapping[str, Any], place: str, known: Known) -> NoReturn:
    """Raise the error for a dictionary that should be a factory with its arguments, and has not the name of one."""
    names = list(config)
    if len(names) != 1:
        raise TypeError(f"from_config: {place or 'config'} must have one key, the name of a factory, got {names!r}")
    near = difflib.get_close_matches(str(names[0]), [*known, *factories()], 3)
    hint = f"; near to it are {', '.join(near)}" if near else ""
    raise ValueError(
        f"from_config: {place and place + ': '}{names[0]!r} is no factory{hint}; "
        f"one of your own must be given by name, {_as_known(str(names[0]))}"
    )


def _read_array(config: Mapping[str, Any], place: str) -> Any:
    try:
        return jnp.asarray(np.array(config["array"], jnp.dtype(config["dtype"])))
    except (TypeError, ValueError) as error:
        raise type(error)(f"from_config: {place}: {error}") from None


def _made(name: str, inside: Any, here: str, known: Known) -> Any:
    """The result of a factory for its arguments in a config."""
    factory = known[name] if name in known else factories().get(name) or _STORAGES[name]
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    if name in ("chain", "named_chain") and name not in known:
        if not isinstance(inside, list):
            raise TypeError(f"from_config: {here} must have a list of parts, got {brief(inside)}")
        args = [_part(each, f"{here}[{index}]", known) for index, each in enumerate(inside)]
    elif isinstance(inside, Mapping):
        kwargs = {key: _argument(factory, key, each, f"{here}.{key}", known) for key, each in inside.items()}
    else:
        raise TypeError(f"from_config: {here} must have a dictionary of arguments, got {brief(inside)}")
    try:
        return factory(*args, **kwargs)
    except (TypeError, ValueError) as error:
        # The factory names itself; so does the place, at its end.
        raise type(error)(f"from_config: {here}: {str(error).removeprefix(f'{name}: ')}") from None


def _part(config: Any, place: str, known: Known) -> Any:
    """A part of a chain, or a pair of a name and a part."""
    if isinstance(config, list) and len(config) == 2 and isinstance(config[0], str):
        return config[0], _part(config[1], place, known)
    if not isinstance(config, Mapping):
        raise TypeError(
            f"from_config: {place} must be a dictionary of one factory and its arguments, got {brief(config)}"
        )
    if not _is_special(config, known):
        _refuse(config, place, known)
    return _read(config, place, known)


def _argument(factory: Callable[..., Any], name: str, config: Any, place: str, known: Known) -> Any:
    """An argument of a factory. One that must be a transformation cannot be a plain tree."""
    is_part = isinstance(config, Mapping) and checks(factory).get(name) is transformation
    return (_part if is_part else _read)(config, place, known)
