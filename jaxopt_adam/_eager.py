"""Steps without :func:`jax.jit`, which are compiled all the same: one call in place of some fifty."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.core import Tracer

CONTROL_FLOW = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)
"""The errors of JAX for Python's control flow that depends on a traced value."""


class Compilable(optax.GradientTransformationExtraArgs):
    """A transformation that compiles its steps where its caller does not.

    Its `update` has no effect but its results, and depends on nothing that changes but its arguments.
    """

    __slots__ = ()


def on_one_device(tree: Any) -> bool:
    """True if all leaves are arrays with values on one device, and there is one."""
    devices = set()
    for leaf in jax.tree.leaves(tree):
        if not isinstance(leaf, jax.Array) or isinstance(leaf, Tracer):
            return False
        devices |= leaf.devices()
    return len(devices) == 1


class Compiled:
    """A function of arrays, compiled as a whole.

    Attributes:
        works: False after it was found that the function cannot be traced.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.works = True
        self._function = jax.jit(function)

    def __call__(self, *arrays: Any) -> Any:
        """The function's result; None if it cannot be traced."""
        try:
            return self._function(*arrays) if self.works else None
        except CONTROL_FLOW:
            self.works = False
            return None


@functools.lru_cache(maxsize=128)
def compiled(function: Callable[..., Any], *fixed: Any) -> Compiled:
    """``function(*fixed, ...)`` of the arguments that follow, compiled once for equal `fixed`, which have a hash."""
    return Compiled(functools.partial(function, *fixed))
