"""Steps without :func:`jax.jit`, which are compiled all the same: one call in place of some fifty."""

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.core import Tracer

CONTROL_FLOW = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)
"""What JAX raises where Python's control flow depends on a traced value, as that of a schedule may on the count."""


class Compilable(optax.GradientTransformationExtraArgs):
    """A transformation that compiles its steps where its caller does not.

    Its `update` has no effect but its results, and depends on nothing that changes but its arguments.
    """

    __slots__ = ()


def on_one_device(tree: Any) -> bool:
    """Whether all leaves are arrays with values on one device, and there is one."""
    devices = set()
    for leaf in jax.tree.leaves(tree):
        if not isinstance(leaf, jax.Array) or isinstance(leaf, Tracer):
            return False
        devices |= leaf.devices()
    return len(devices) == 1


def parted(leaves: Sequence[Any], varying: Sequence[bool]) -> tuple[tuple[Any, ...], list[Any]] | None:
    """Hyperparameters as what is compiled in, and the data that are arguments of the compiled step.

    Numbers are compiled in, with all their digits, but for the `varying` ones, which a program may change at each step.
    Arrays of JAX are data. None if something else is among the leaves.
    """
    fixed, data = [], []
    for leaf, varies in zip(leaves, varying, strict=True):
        is_number = isinstance(leaf, int | float | np.number | np.bool_)
        if isinstance(leaf, Tracer) or not (is_number or isinstance(leaf, jax.Array)):
            return None
        if varies or not is_number:
            fixed.append(None)
            data.append(leaf)
        else:
            fixed.append((type(leaf), leaf))
    return tuple(fixed), data


class CompiledStep:
    """A step of optimizers that differ in their data alone.

    Attributes:
        works: False after it was found that it cannot be traced.
    """

    def __init__(self, function: Callable[..., Any], fixed: Sequence[Any]) -> None:
        """The step ``function(leaves, updates, state, params)``, compiled with the leaves that are `fixed`."""
        self.works = True

        def step(data: Sequence[Any], *given: Any) -> Any:
            rest = iter(data)
            return function([next(rest) if each is None else each[1] for each in fixed], *given)

        self._step = jax.jit(step)

    def __call__(self, data: Sequence[Any], *given: Any) -> Any:
        """The updates and the new state; None if the step cannot be traced."""
        try:
            return self._step(data, *given)
        except CONTROL_FLOW:
            self.works = False
            return None


@functools.lru_cache(maxsize=128)
def compiled_step(
    function: Callable[..., Any], rule: Hashable, layout: Hashable, fixed: tuple[Any, ...]
) -> CompiledStep:
    """The compiled step ``function(rule, layout, leaves, updates, state, params)``, one for equal arguments."""
    return CompiledStep(functools.partial(function, rule, layout), fixed)
