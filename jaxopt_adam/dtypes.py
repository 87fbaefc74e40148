"""The dtypes of the arithmetic on a leaf."""

import jax.numpy as jnp
import numpy as np

__all__ = ["arithmetic_dtype", "real_dtype"]


def arithmetic_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype in which leaves of a floating-point or complex `dtype` are computed: float32 at least."""
    return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else jnp.dtype(dtype)


def real_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype of the real part of numbers of a floating-point or complex `dtype`."""
    return jnp.finfo(dtype).dtype
