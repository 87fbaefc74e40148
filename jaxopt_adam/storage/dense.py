"""Moments that rest as numbers of a floating-point dtype."""

import dataclasses

import jax.numpy as jnp
from jax.typing import DTypeLike

__all__ = ["Dense"]


@dataclasses.dataclass(frozen=True)
class Dense:
    """Moments that rest as they are, or rounded to a dtype.

    Args:
        dtype: the floating-point dtype; None for that of the arithmetic, at least float32.

    Raises:
        ValueError: if `dtype` is no floating-point dtype.
    """

    dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        if self.dtype is not None and not jnp.issubdtype(jnp.dtype(self.dtype), jnp.floating):
            raise ValueError(f"Dense: dtype must be a floating-point dtype or None, got {self.dtype!r}")
