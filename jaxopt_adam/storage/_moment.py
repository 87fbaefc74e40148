"""The declaration of a running statistic of a rule."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from jaxopt_adam._averages import Denominator
from jaxopt_adam._trees import Path

_NOTHING_ADDED = Denominator(0.0)


@dataclasses.dataclass(frozen=True)
class Moment:
    """A running statistic of the gradient: how it starts and how it is stored.

    Args:
        initial: the number that it starts from.
        real: whether it is real also where the gradient is complex, and never negative, as an average of ``|g|²`` is.
        dtype: the dtype in which it is stored between steps; by default that of the arithmetic, float32 or wider.
        from_param: whether it starts as a copy of the parameter.
        shape: ``shape(path, shape of the parameter)``: the shape for one leaf, None for a leaf without this moment, or
            a list of these for several arrays; by default the parameter's shape.
        axes: ``axes(path, shape of the parameter)``: like the result of `shape`, with a tuple in place of each shape:
            for each axis the axis of the parameter along which it runs, or in equal parts of which, and None for no
            such axis. Devices that share a parameter share its moments along these axes. By default they are inferred
            from the lengths, which fails where two of a parameter's are equal.
        over: the name of the second moment by whose root the update divides this one, if there is one. In codes it is
            then stored as the quotient, whose error is the update's.
        denominator: what the update adds to that root.
        apart: whether it may be more than a thousand times that root, as where the second moment averages no squared
            gradients. In bfloat16 the two are then two arrays, because in one array the first has not that range.
    """

    initial: ArrayLike = 0.0
    real: bool = False
    dtype: DTypeLike | None = None
    from_param: bool = False
    shape: Callable[[Path, tuple[int, ...]], Any] | None = None
    axes: Callable[[Path, tuple[int, ...]], Any] | None = None
    over: str | None = None
    denominator: Denominator = _NOTHING_ADDED
    apart: bool = False

    @property
    def added(self) -> Any:
        """About what the update adds to the root of the second moment, ε + √ε̄; a Python number if both are."""
        eps, eps_root = self.denominator
        if isinstance(eps, int | float) and isinstance(eps_root, int | float):
            return float(eps + math.sqrt(eps_root))
        # It decides in which units a code counts the moment, but not what the moment is. So it has no derivative.
        eps, eps_root = jax.lax.stop_gradient((jnp.asarray(eps), jnp.asarray(eps_root)))
        return eps.astype(jnp.float32) + jnp.sqrt(eps_root.astype(jnp.float32))
