"""What the documentation says of each rule, read from its docstring and from the state that it makes."""

import inspect
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxopt_adam import Optimizer, rules

FACTORIES = [factory for name in rules.__all__ if inspect.isfunction(factory := getattr(rules, name))]
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
