"""The arc tangent of a quotient, in a form that compilers turn into vector instructions."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

# (1 - atan(t)/t) / t² for 0 ≤ t ≤ 1 as a polynomial in -t²; the relative error of the arc tangent is below 1.7e-8.
_COEFFICIENTS = (
    0.33333152736086585,
    0.19993772837291715,
    0.14211055338224274,
    0.10666004790322808,
    0.0755221463629195,
    0.043211865206542424,
    0.01636793082467386,
    0.0029206929603180195,
)
_HALF_PI = np.float32(np.pi / 2)
_REST_OF_HALF_PI = np.float32(np.pi / 2 - float(_HALF_PI))


@jax.custom_jvp
def atan2(y: Array, x: Array) -> Array:
    """The angle of the point (x, y) for x ≥ 0, within 2 ulp in float32; zero where both are zero.

    XLA's own is computed element by element on a CPU. The bits are the same on any layout of devices.

    Args:
        y: a real array.
        x: another of its dtype and shape. Zero counts as positive, whatever its sign.

    Returns:
        The angles, from -π/2 to π/2, each with the sign of y.
    """
    if y.dtype != jnp.float32:
        return jnp.arctan2(y, jnp.abs(x))
    size = jnp.abs(y)
    is_steep = size > x
    less, more = jnp.where(is_steep, x, size), jnp.where(is_steep, size, x)
    # Two that are equal may both be zero or infinite.
    ratio = jnp.where(less == more, jnp.where(less > 0, np.float32(1), np.float32(0)), less / more)
    square = ratio * ratio
    fourth = square * square
    # By Estrin's scheme, in which fewer terms wait for each other than in Horner's.
    one, two, three, four = (
        np.float32(even) - _product(square, np.float32(odd))
        for even, odd in zip(_COEFFICIENTS[::2], _COEFFICIENTS[1::2], strict=True)
    )
    upper = three + _product(fourth, four)
    series = (one + _product(fourth, two)) + _product(fourth * fourth, upper)
    angle = ratio - _product(ratio, square * series)
    angle = jnp.where(is_steep, _HALF_PI - (angle - _REST_OF_HALF_PI), angle)
    sign = jax.lax.bitcast_convert_type(y, jnp.int32) & np.int32(-(2**31))
    return jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(angle, jnp.int32) | sign, jnp.float32)


def _product(one: Array, other: Array | np.float32) -> Array:
    """A product that is not negative.

    A compiler may merge a product with the sum that it feeds in one shape and not in another, which would change the
    last bit. It does not look through the removal of a sign.
    """
    return jnp.abs(one * other)


@atan2.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    return atan2(*primals), jax.jvp(jnp.arctan2, primals, tangents)[1]
