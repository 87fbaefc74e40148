"""What the documentation says of each rule, read from its docstring and from the state that it makes."""

import inspect
import re
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import optax

import jaxopt_adam
from jaxopt_adam import Optimizer

FACTORIES = [
    factory
    for factory in vars(jaxopt_adam).values()
    if inspect.isfunction(factory)
    and factory.__module__.startswith("jaxopt_adam.rules.")
    and hasattr(factory, "__wrapped__")
]
MATRIX = jax.ShapeDtypeStruct((1024, 1024), jnp.float32)


def moments(factory: Callable[..., Optimizer]) -> list[str]:
    """The names of what a rule keeps for a matrix."""
    state = jax.eval_shape(factory(0.1).init, MATRIX)
    return [name for name in state._fields if any(leaf.size > 1 for leaf in jax.tree.leaves(getattr(state, name)))]


def bytes_a_parameter(factory: Callable[..., Optimizer]) -> float:
    """The size of what it keeps, but for single numbers, in bytes for each parameter."""
    state = jax.eval_shape(factory(0.1).init, MATRIX)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state) if leaf.size > 1) / MATRIX.size


def table() -> str:
    """A row for each rule, in MyST's Markdown."""
    lines = ["| rule | what it does | choose it | state | bytes | optax |", "|---|---|---|---|---|---|"]
    for factory in FACTORIES:
        name, text = factory.__name__, re.sub(r"\s+", " ", inspect.getdoc(factory) or "")
        text = re.sub(r":func:`[\w.~]*?(\w+)`", r"{func}`~jaxopt_adam.\1`", text)
        text = re.sub(r":math:`([^`]*)`", r"$\1$", text)
        summary = text.partition(": ")[2].partition(". ")[0].partition(" .. math")[0]
        choice = re.search(r"Choose it (.*?)[.:;](?: |$)", text)
        known = "yes" if hasattr(optax, name) else "contrib" if hasattr(optax.contrib, name) else "–"
        lines.append(
            f"| {{func}}`~jaxopt_adam.{name}` | {summary.rstrip('.')} | {choice[1] if choice else ''} "
            f"| {', '.join(moments(factory)) or '–'} | {bytes_a_parameter(factory):.3g} | {known} |"
        )
    return "\n".join(lines)


def against_optax() -> str:
    """A row for each rule that optax has too: the arguments with their defaults, in MyST's Markdown.

    Raises:
        ValueError: if an argument that both take differs in its place or default, or one of optax's is not ours.
    """
    lines = ["| here | optax | arguments and defaults of both | only here |", "|---|---|---|---|"]
    for factory in FACTORIES:
        name = factory.__name__
        module = next((each for each in (optax, optax.contrib) if hasattr(each, name)), None)
        if module is not None:
            ours, theirs = (
                list(inspect.signature(each).parameters.values()) for each in (factory, getattr(module, name))
            )
            both, more = ours[: len(theirs)], ours[len(theirs) :]
            if not all(map(_same, both, theirs)):
                raise ValueError(f"{name} has other arguments than optax's: {both}, {theirs}")
            path = f"{module.__name__}.{name}"
            lines.append(f"| {{func}}`~jaxopt_adam.{name}` | `{path}` | {_code(both)} | {_code(more) or '–'} |")
    return "\n".join(lines)


def _same(one: inspect.Parameter, other: inspect.Parameter) -> bool:
    if one.name != other.name or one.kind != other.kind:
        return False
    if inspect.isfunction(one.default):  # another object with the same values
        return all(one.default(value) == other.default(value) for value in (0.0, 1.0, 16.0))
    if "dtype" in one.name and one.default is not None:
        return jnp.dtype(one.default) == jnp.dtype(other.default)
    return one.default == other.default


def _code(parameters: Iterable[inspect.Parameter]) -> str:
    return ", ".join(f"`{_argument(each)}`" for each in parameters)


def _argument(parameter: inspect.Parameter) -> str:
    default = parameter.default
    if default is inspect.Parameter.empty:
        return parameter.name
    if "dtype" in parameter.name and default is not None:
        default = jnp.dtype(default).name
    return f"{parameter.name}={getattr(default, '__name__', None) or repr(default)}"
