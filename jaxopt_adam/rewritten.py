"""Rules with their program changed: what they read in place of what they computed."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import Array
from jax.extend.core import ClosedJaxpr, Literal, Var, jaxpr_as_fun

__all__ = ["Rule", "as_rested"]

Rule = Callable[[Any, Sequence[Any]], Sequence[Any]]
"""``rule(inputs, moments) -> (update, *moments)``: the rule for one leaf."""


def as_rested(rule: Rule, inputs: Any, old: Sequence[Array], new: Sequence[Array]) -> Array:
    """The rule's update where, wherever it reads a moment after the step, it reads `new`, that moment as it rests."""
    closed, arrays = _program(rule, inputs, old)
    program = closed.jaxpr
    update, *after = program.outvars
    given = {variable: value for variable, value in zip(after, new, strict=True) if not isinstance(variable, Literal)}

    # What the program computes for such a variable goes to one that nobody reads, and the variable is an argument.
    def unread(variable: Any) -> Any:
        return Var(variable.aval) if variable in given else variable

    equations = [equation.replace(outvars=list(map(unread, equation.outvars))) for equation in program.eqns]
    arguments = [*map(unread, program.invars), *given]
    return _run(closed, [*arrays, *given.values()], invars=arguments, outvars=[update], eqns=equations)[0]


def _program(rule: Rule, inputs: Any, moments: Sequence[Array]) -> tuple[ClosedJaxpr, list[Array]]:
    arrays, tree = jax.tree.flatten((inputs, list(moments)))
    return jax.make_jaxpr(lambda *arrays: list(rule(*jax.tree.unflatten(tree, arrays))))(*arrays), arrays


def _run(closed: ClosedJaxpr, arrays: Sequence[Array], **changes: Any) -> Sequence[Array]:
    debug_info = closed.jaxpr.debug_info._replace(arg_names=None, result_paths=None)
    return jaxpr_as_fun(ClosedJaxpr(closed.jaxpr.replace(**changes, debug_info=debug_info), closed.consts))(*arrays)
