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
        real: whether it is an average of squares: never negative, and real also where the gradient is complex.
        dtype: the dtype in which it is stored between steps; by default that of the arithmetic, float32 or wider.
        from_param: whether it starts as a copy of the parameter.
        shape: ``shape(path, shape of the parameter)``: the shape for one leaf, None for a leaf without this moment, or
            a list of these for several arrays; by default the parameter's shape.
        axes: ``axes(path, shape of the parameter)``, for a moment with `shape`: to which axis of the parameter each
            axis of the moment belongs. The result is like that of `shape`, with a tuple of axes of the parameter in
            place of each shape, and None in the tuple for an axis that belongs to none. An axis of the moment belongs
            to an axis of the parameter if it has one entry for each element along that axis, or for each of the equal
            parts of it. If the parameter is divided among devices along an axis, the moment is divided along the axes
            that belong to it. Without `axes` the lengths decide. That fails if two axes of the parameter are equally
            long.
        over: the name of the second moment ν, if this moment enters the update divided by √ν. This is so if the update
            divides this moment by √ν, or if this moment is added to the numerator or to the gradients that the
            numerator averages. Codes then stand for the quotient. Elements with small gradients therefore lose no more
            accuracy than others. ν must be `real`.
        denominator: what the update adds to √ν before it divides. Bias corrections, which are the same for all
            elements, may be left out.
        apart: whether this moment may be more than a thousand times √ν, for example because ν does not average squared
            gradients. In bfloat16 the two moments are then two arrays, because one array for both has too small a
            range.
        decay: by what this moment decays in a step before something is added to it, for an average of squares: β₂. In 4
            bits an average is stored such that only what is added is rounded. Otherwise the error of one that decays
            for thousands of steps would grow. If it differs from element to element, the largest is used.
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
    decay: ArrayLike | None = None

    @property
    def added(self) -> Any:
        """About what the update adds to the root of the second moment, ε + √ε̄; a Python number if both are."""
        eps, eps_root = self.denominator
        if isinstance(eps, int | float) and isinstance(eps_root, int | float):
            return float(eps + math.sqrt(eps_root))
        # It decides in which units a code counts the moment, but not what the moment is. So it has no derivative.
        eps, eps_root = jax.lax.stop_gradient((jnp.asarray(eps), jnp.asarray(eps_root)))
        return eps.astype(jnp.float32) + jnp.sqrt(eps_root.astype(jnp.float32))
