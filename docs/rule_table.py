"""The documentation's tables of the rules: their use, two short texts of each, and what signatures and states tell."""

import inspect
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxopt_adam import Optimizer
from jaxopt_adam.lab.memory import RULES

MATRIX = jax.ShapeDtypeStruct((1024, 1024), jnp.float32)


class Texts(NamedTuple):
    """The texts of a rule; ``{adam}`` becomes a link to the entry of `adam`.

    Attributes:
        summary: what the rule does.
        choice: when to choose it.
    """

    summary: str
    choice: str


GROUPS = {
    "everyday": ("adam", "adamw", "sgd", "nadam", "nadamw", "radam"),
    "stable": ("stable_adamw", "adopt", "laprop", "adam_atan2", "amsgrad", "adabelief", "yogi"),
    "memory": ("lion", "adafactor", "adam_mini"),
    "large": ("adan", "ademamix", "lamb", "novograd"),
    "matrices": ("muon", "soap"),
    "free": ("schedule_free_adamw", "prodigy"),
    "classic": ("adagrad", "adadelta", "rmsprop", "adamax", "adamaxw"),
}
"""The rules by their use; each is in one group."""

TEXTS = {
    "adabelief": Texts(
        "Adam with the average of (g − m)² in place of that of g²: an expected gradient makes a large step, a "
        "surprising one a small step",
        "where steady gradients should make large steps, as for GANs in the paper",
    ),
    "adadelta": Texts(
        "scales the gradient by the size of past steps, so that a step has the units of the parameter",
        "where no learning rate can be found",
    ),
    "adafactor": Texts(
        "keeps only the row means and the column means of a matrix's second moment; steps are relative to the "
        "size of the parameters",
        "where memory is scarce",
    ),
    "adagrad": Texts(
        "divides each element's step by the root of the sum of all its squared gradients",
        "for sparse features and for convex problems",
    ),
    "adam": Texts(
        "divides the average of the gradients by the root of the average of their squares, both debiased",
        "first, since it needs the least tuning",
    ),
    "adam_atan2": Texts(
        "Adam without ε: the update does not change when all gradients are multiplied by a positive number",
        "where the gradients are of unknown size, or so small that ε would matter",
    ),
    "adam_mini": Texts(
        "{adamw} with one second moment for each block of a leaf",
        "where {adamw} does well and memory is short",
    ),
    "adamax": Texts(
        "Adam with a decayed maximum in place of the root of the second moment",
        "where rare large gradients matter, as for embeddings",
    ),
    "adamaxw": Texts(
        "{adamax} with the decoupled weight decay of {adamw}",
        "over {adamax} where the weights should stay small",
    ),
    "adamw": Texts(
        "{adam} with decoupled weight decay: weights shrink by a fraction of themselves, whatever the gradients are",
        "over {adam} where the weights should stay small",
    ),
    "adan": Texts(
        "Nesterov's look ahead, estimated from the differences of successive gradients",
        "for large batches, if there is room for twice Adam's state",
    ),
    "ademamix": Texts(
        "{adamw} with a second, slow average of the gradients beside the fast one",
        "over {adamw} for long runs on data that do not change, if there is room for a third moment",
    ),
    "adopt": Texts(
        "divides each gradient by the root of the second moment before it, and averages the quotients",
        "where {adam} is unstable or its β₂ hard to choose",
    ),
    "amsgrad": Texts(
        "Adam with the largest second moment so far, so that the effective step size never grows",
        "where Adam forgets rare large gradients and does not settle",
    ),
    "lamb": Texts(
        "the direction of {adamw}, with steps in proportion to the norm of the leaf",
        "for batches of tens of thousands of examples",
    ),
    "laprop": Texts(
        "normalizes the gradient first and then averages it",
        "over {adam} where a large β₁ or a small β₂ makes Adam unstable",
    ),
    "lion": Texts(
        "the sign of an average of the gradients: the steps of all elements have the same size",
        "for large models and batches where memory is short",
    ),
    "muon": Texts(
        "the orthogonal matrix nearest to the momentum, for matrices; {adamw} for all other leaves",
        "for the hidden matrices of transformers, where it needs half of Adam's state and often fewer steps",
    ),
    "nadam": Texts("{adam} with Nesterov's look ahead", "where {adam} reacts too late"),
    "nadamw": Texts("{nadam} with the decoupled weight decay of {adamw}", "where {adamw} reacts too late"),
    "novograd": Texts(
        "momentum of the gradients, each divided by an average of the norm of its leaf",
        "for large learning rates from the first step on, with half of Adam's state",
    ),
    "prodigy": Texts(
        "{adamw} with a learning rate that it estimates from the distance that the parameters have come",
        "where no learning rate is known",
    ),
    "radam": Texts(
        "Adam with a factor that takes the variance out of its first steps",
        "in place of a warm-up of the learning rate",
    ),
    "rmsprop": Texts(
        "divides each element's step by the root of an average of its squared gradients",
        "where the size of the gradients changes and momentum does harm, as in reinforcement learning",
    ),
    "schedule_free_adamw": Texts(
        "{adamw} that averages its iterates in place of a falling learning rate",
        "where the length of the run is not known beforehand",
    ),
    "sgd": Texts(
        "gradient descent, with or without momentum: a step is the gradient times the learning rate",
        "where its learning rate and schedule are known, as for convolutional networks; or as the plain case to "
        "compare with",
    ),
    "soap": Texts(
        "Adam in the eigenbasis of Shampoo's preconditioner",
        "where fewer steps make up for the memory and the time of its matrices",
    ),
    "stable_adamw": Texts(
        "{adamw} with the clipping of the step that {adafactor} has",
        "in place of {adamw} with gradient clipping, where the loss has spikes",
    ),
    "yogi": Texts(
        "Adam whose second moment moves towards g² by a fixed fraction of g², however far away it is",
        "for sparse gradients: in steps without gradient Adam's second moment falls, and its steps grow, too fast",
    ),
}


def state(factory: Callable[..., Optimizer]) -> str:
    """The name of the type of a rule's state."""
    return type(jax.eval_shape(factory(0.1).init, MATRIX)).__name__


def moments(factory: Callable[..., Optimizer]) -> list[str]:
    """The names of the moments that a rule keeps for a matrix."""
    state = jax.eval_shape(factory(0.1).init, MATRIX)
    return [name for name in state._fields if any(leaf.size > 1 for leaf in jax.tree.leaves(getattr(state, name)))]


def bytes_a_parameter(factory: Callable[..., Optimizer]) -> float:
    """The size of the moments of a rule, in bytes for each parameter of a matrix."""
    state = jax.eval_shape(factory(0.1).init, MATRIX)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state) if leaf.size > 1) / MATRIX.size


def table(group: str) -> str:
    """A row for each rule of a group, in MyST's Markdown."""
    links = {name: _link(name) for name in RULES}
    lines = ["| rule | what it does | choose it | state | in optax |", "|---|---|---|---|---|"]
    for name in GROUPS[group]:
        summary, choice = (text.format_map(links) for text in TEXTS[name])
        known = "yes" if hasattr(optax, name) else "contrib" if hasattr(optax.contrib, name) else "no"
        kept = ", ".join(f"`{moment}`" for moment in moments(RULES[name]))
        size = f"{bytes_a_parameter(RULES[name]):.3g} bytes: {kept}" if kept else "none"
        lines.append(f"| {links[name]} | {summary} | {choice} | {size} | {known} |")
    return "\n".join(["```{table}", ":class: rules", "", *lines, "```"])


def against_optax() -> str:
    """A row for each rule that optax has too: the arguments with their defaults, in MyST's Markdown.

    Raises:
        ValueError: if an argument that both take differs in its place or default, or one of optax's is not ours.
    """
    lines = ["| here | optax | arguments and defaults of both | only here |", "|---|---|---|---|"]
    for name, factory in RULES.items():
        module = next((each for each in (optax, optax.contrib) if hasattr(each, name)), None)
        if module is not None:
            ours, theirs = (
                list(inspect.signature(each).parameters.values()) for each in (factory, getattr(module, name))
            )
            both, more = ours[: len(theirs)], ours[len(theirs) :]
            if not all(map(_same, both, theirs)):
                raise ValueError(f"{name} has other arguments than optax's: {both}, {theirs}")
            path = f"{module.__name__}.{name}"
            lines.append(f"| {_link(name)} | `{path}` | {_code(both)} | {_code(more) or '–'} |")
    return "\n".join(lines)


def _link(rule: str) -> str:
    return f"{{func}}`~jaxopt_adam.{rule}`"


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
