"""The documentation's table of optax's factories: what stands for each of them here."""

import inspect
from collections.abc import Iterator

import optax
import optax.contrib

from jaxopt_adam import lifted
from jaxopt_adam.lab.memory import RULES

OURS = {name: name for name in RULES} | {
    "chain": "chain",
    "inject_hyperparams": "optimizer",
    "masked": "masked",
    "multi_transform": "partition",
    "named_chain": "named_chain",
    "partition": "partition",
}
"""The names here of what the library has itself, by optax's names."""

NOT = {
    "inject_stateful_hyperparams": "it takes a factory and gives a factory; a schedule with a state of its own has no "
    "place in an optimizer that is data",
}
"""Why the others have nothing in their place."""


def factories() -> Iterator[tuple[str, str]]:
    """The names of all public factories of transformations in optax, each with that of its module."""
    for module in (optax, optax.contrib):
        for name, value in vars(module).items():
            if not name.startswith("_") and _is_factory(value):
                yield name, module.__name__


def row(name: str) -> tuple[str, str]:
    """The counterpart of a factory of optax, and the names of its numbers or a reason.

    Raises:
        ValueError: if nothing is known of it.
    """
    if name in NOT:
        return "–", NOT[name]
    if name in OURS:
        return f"{{func}}`~jaxopt_adam.{OURS[name]}`", ""
    factory = getattr(lifted, name, None)
    if factory is None:
        raise ValueError(f"{name} of optax is neither lifted, nor the library's own, nor left out for a reason")
    # What its documentation says are numbers.
    numbers = [each for each in inspect.signature(factory).parameters if f"`{each}`" in factory.__doc__]
    return f"`lifted.{name}`", ", ".join(f"`{each}`" for each in numbers)


def table() -> str:
    """A row for each factory, in MyST's Markdown."""
    lines = ["| optax | here | numbers, or why not |", "|---|---|---|"]
    for name, module in sorted(factories(), key=lambda each: each[::-1]):
        here, note = row(name)
        lines.append(f"| `{module}.{name}` | {here} | {note} |")
    return "\n".join(lines)


def _is_factory(value: object) -> bool:
    if inspect.isclass(value):
        return hasattr(value, "gradient_transformation")
    if not callable(value):
        return False
    try:
        signature = inspect.signature(value)
    except ValueError:  # of an alias of a type
        return False
    if signature.return_annotation is not signature.empty:
        return "GradientTransformation" in str(signature.return_annotation)
    # Not all say what they return.
    return inspect.isfunction(value) and "GradientTransformation" in inspect.getsource(value)
