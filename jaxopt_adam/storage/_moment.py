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
        dtype: the dtype in which it is stored between steps; by default that of the arithmetic, at least float32.
        from_param: whether it starts as a copy of the parameter.
        shape: ``shape(path, shape of the parameter)``: the shape for one leaf, None for a leaf that goes without, or a
            list of these for several arrays; by default it has the parameter's.
        over: the name of the second moment by whose root the update divides this one, if there is one. In codes it is
            then stored as the quotient, whose error is the update's.
        denominator: what the update adds to that root.
        apart: whether it may be a thousand times that root and more, as where the second moment averages no squared
            gradients. In bfloat16 the two then share no numbers.
    """

    initial: ArrayLike = 0.0
    real: bool = False
    dtype: DTypeLike | None = None
    from_param: bool = False
    shape: Callable[[Path, tuple[int, ...]], Any] | None = None
    over: str | None = None
    denominator: Denominator = _NOTHING_ADDED
    apart: bool = False

    @property
    def added(self) -> Any:
        """About what is added to the root of the second moment in all: a Python number if it is known."""
        eps, eps_root = self.denominator
        if isinstance(eps, int | float) and isinstance(eps_root, int | float):
            return float(eps + math.sqrt(eps_root))
        # It says in what units a code is, so no derivative goes through it.
        eps, eps_root = jax.lax.stop_gradient((jnp.asarray(eps), jnp.asarray(eps_root)))
        return eps.astype(jnp.float32) + jnp.sqrt(eps_root.astype(jnp.float32))
