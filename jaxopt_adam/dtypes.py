"""Which dtype the arithmetic on a leaf is done in."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

__all__ = ["arithmetic_dtype", "real_dtype", "rounded"]


def arithmetic_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype in which leaves of a floating-point or complex `dtype` are computed: float32 at least."""
    return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else jnp.dtype(dtype)


def real_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype of the real part of numbers of a floating-point or complex `dtype`."""
    return jnp.finfo(dtype).dtype


def rounded(value: jax.Array, dtype: DTypeLike) -> jax.Array:
    """`value` as `dtype` holds it, or complex64 at least if it is complex; in the dtype that it has."""
    narrow = jnp.promote_types(dtype, jnp.complex64) if jnp.iscomplexobj(value) else dtype
    # XLA may take two casts for none, unless there is something between them.
    return jax.lax.optimization_barrier(value.astype(narrow)).astype(value.dtype)
