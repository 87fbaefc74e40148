"""The arc tangent against NumPy's in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import AS_USERS_DO

from jaxopt_adam._arc_tangent import atan2

compiled = jax.jit(atan2, compiler_options=AS_USERS_DO)


def ulps(y, x):
    """The largest error in units of the last place of the right answer, where that is a normal number."""
    right = np.arctan2(np.float64(y), np.float64(x))
    spacing = np.spacing(np.abs(right).astype(np.float32)).astype(np.float64)
    errors = np.abs(np.asarray(compiled(y, x), np.float64) - right) / spacing
    return np.max(errors[np.abs(right) >= 2 * np.finfo(np.float32).tiny])


def test_pairs_of_any_size():
    generator = np.random.default_rng(0)
    y, x = generator.standard_normal((2, 1_000_000)).astype(np.float32)
    assert ulps(y, np.abs(x)) <= 2
    assert ulps(y * np.float32(2) ** generator.integers(-40, 40, y.size).astype(np.float32), np.abs(x)) <= 2


def test_a_grid_of_all_exponents():
    mantissas = np.float32([1, 1.1, 1.5, 1.9, 2 - 2**-23])
    numbers = (np.float32(2) ** np.arange(-126, 128, dtype=np.float32)[:, None] * mantissas).ravel()
    assert ulps(*np.meshgrid(np.concatenate([numbers, -numbers]), numbers)) <= 2


def test_ratios_near_one():
    near = np.float32(1) + np.arange(-2000, 2001).astype(np.float32) * np.float32(2**-23)
    assert ulps(near, np.ones_like(near)) <= 2
    assert ulps(-np.ones_like(near), near) <= 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.usefixtures("x64")
def test_zeros_infinities_and_nan(dtype):
    ends = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan], dtype)
    y, x = np.meshgrid(ends, np.abs(ends))
    angles = np.asarray(compiled(y, x))
    assert angles.dtype == dtype
    np.testing.assert_allclose(angles, np.arctan2(y, x), rtol=4e-16 if dtype == np.float64 else 1e-7)
    is_number = ~np.isnan(angles)
    np.testing.assert_array_equal(np.signbit(angles)[is_number], np.signbit(y)[is_number])
    np.testing.assert_array_equal(compiled(y, np.full_like(x, -0.0)), compiled(y, np.zeros_like(x)))


def test_zeros_of_both_signs_and_numbers_without_a_leading_digit():
    tiny = np.float32(1e-40)
    for y, x in ((0.0, tiny), (tiny, 1.0), (-tiny, 1e30)):
        assert abs(compiled(jnp.float32(y), jnp.float32(x))) <= tiny
    assert compiled(jnp.float32(1), jnp.float32(tiny)) == np.float32(np.pi / 2)


def test_the_bits_do_not_depend_on_the_length():
    """Loops over a length that no vector divides end in instructions for single numbers."""
    generator = np.random.default_rng(1)
    y, x = generator.standard_normal((2, 1031)).astype(np.float32)
    whole = np.asarray(compiled(y, np.abs(x)))
    for length in (1, 3, 8, 17, 100, 1024):
        np.testing.assert_array_equal(compiled(y[:length], np.abs(x[:length])), whole[:length])


def test_the_derivative_is_that_of_the_quotient():
    generator = np.random.default_rng(2)
    y, x = generator.standard_normal((2, 100)).astype(np.float32)
    for argument in (0, 1):
        ours, theirs = (jax.vmap(jax.grad(each, argument))(y, np.abs(x)) for each in (atan2, jnp.arctan2))
        np.testing.assert_array_equal(ours, theirs)
    assert jax.grad(jax.grad(atan2))(0.3, 0.7) == jax.grad(jax.grad(jnp.arctan2))(0.3, 0.7)
