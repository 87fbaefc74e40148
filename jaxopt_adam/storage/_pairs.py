"""A first and a second moment in one number of 32 bits.

The second moment ν has the upper 18 bits, those of a float32 without its sign: 8 of the exponent and 10 digits. The
first moment m has 14: its sign, 5 bits of an exponent and 8 digits, which count from about √ν · 2⁻²⁰. So both have more
digits than in bfloat16. m does not need the range of a bfloat16, because m / √ν is the update.

- The error that stays in an average is that of many roundings. ν remembers hundreds of steps, m only ten. So more
  digits are for ν.
- Below √ν · 2⁻²⁰ the numbers that m may be are evenly spaced, down to zero, and dither keeps its mean there too.
- Both are in one array, so that one loop writes them: XLA's CPU backend makes one for each array that it writes.
- Nearly all is done with integers, which costs little next to reading and writing.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxopt_adam.storage._bits import INFINITY, MAGNITUDE, NAN, bits_of, float_of

_BITS_OF_MU = np.uint32(14)
_DROPPED_OF_NU = np.uint32(13)
_DROPPED_OF_MU = 15
_SIGN_OF_MU = np.uint32(1 << 13)
_MOST_OF_MU = (1 << 13) - 1
_INFINITY = np.uint32(INFINITY)
_EXPONENT = 63 - 20
"""The number that, added to half of the exponent of ν, gives the exponent that m counts from; 63 would give √ν."""


def packed(mu: Array, nu: Array, threshold_of_mu: Array, threshold_of_nu: Array) -> Array:
    """Both moments, float32, in uint32; the thresholds / 2³² of a spacing are added before rounding down.

    An m above √ν · 2¹⁰ may be stored as less. If one of the two is not finite, ν is NaN.
    """
    bits = bits_of(nu, jnp.uint32)
    raised = jnp.minimum(bits + (threshold_of_nu >> (np.uint32(32) - _DROPPED_OF_NU)), _INFINITY)
    bits_of_mu = bits_of(mu, jnp.uint32)
    is_number = (bits < _INFINITY) & ((bits_of_mu & np.uint32(MAGNITUDE)) < _INFINITY)
    upper = jnp.where(is_number, raised, np.uint32(NAN)) >> _DROPPED_OF_NU
    origin = _origin(upper)
    # With the origin added, numbers below the origin have evenly spaced patterns, and zero has the first of them.
    distance = bits_of(jnp.abs(mu) + float_of(origin)) - origin
    threshold = (threshold_of_mu >> np.uint32(32 - _DROPPED_OF_MU)).astype(jnp.int32)
    code = jnp.clip((distance + threshold) >> _DROPPED_OF_MU, 0, _MOST_OF_MU).astype(jnp.uint32)
    return (upper << _BITS_OF_MU) | code | ((bits_of_mu >> np.uint32(31 - 13)) & _SIGN_OF_MU)


def unpacked(numbers: Array) -> tuple[Array, Array]:
    """The moments µ and ν, in float32."""
    upper = numbers >> _BITS_OF_MU
    nu = float_of(upper << _DROPPED_OF_NU)
    code = (numbers & np.uint32(_MOST_OF_MU)).astype(jnp.int32)
    origin = _origin(upper)
    size = float_of(origin + (code << _DROPPED_OF_MU)) - float_of(origin)
    sign = (numbers & _SIGN_OF_MU) << np.uint32(31 - 13)
    return float_of(bits_of(size, jnp.uint32) | sign), nu


def _origin(upper: Array) -> Array:
    """The bit pattern, int32, of the power of two that m counts from beside a ν of these upper bits."""
    return ((upper >> np.uint32(11)).astype(jnp.int32) + _EXPONENT) << 23
