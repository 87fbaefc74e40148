import functools

import chex
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import optax
import pytest

import jaxopt_adam
from jaxopt_adam import bias_correction, debias, ema
from jaxopt_adam._averages import ARE_BOUNDED, bounded_product, mean_square, norm, squarable

DECAYS = (0.0, 0.5, 0.9, 0.95, 0.99, 0.999, 0.9999, 0.99999, 0.999999)
LAST_STEP = 2**31 - 1
STEPS = np.unique(
    np.concatenate(
        [
            np.arange(1, 129),
            2 ** np.arange(8, 31) - 1,
            2 ** np.arange(8, 31) + 1,
            np.geomspace(130, LAST_STEP, 326).round().astype(np.int64),
        ]
    )
).astype(np.int32)


@functools.cache
def exact_corrections(decay, steps):
    with mpmath.workdps(40):
        return [1 - mpmath.mpf(decay) ** step for step in steps]


def ulps(values, decay, steps, dtype):
    """The largest error of some bias corrections, in units of the last place of the right answer."""
    values = np.asarray(values)
    assert values.dtype == dtype
    assert values.shape == np.shape(steps)
    corrections = exact_corrections(float(decay), tuple(steps.tolist()))
    if dtype is np.float32:  # of which float64 has digits enough
        exact = np.array(corrections, np.float64)
        return np.max(np.abs(values - exact) / np.spacing(exact.astype(np.float32)))
    worst = 0.0
    with mpmath.workdps(40):
        for value, exact in zip(values.tolist(), corrections, strict=True):
            ulp = float(np.spacing(dtype(float(exact))))
            worst = max(worst, float(abs(mpmath.mpf(value) - exact) / ulp))
    return worst


class TestBiasCorrection:
    def test_there_are_500_steps_from_the_first_to_the_last(self):
        assert STEPS.size == 500
        assert (STEPS[0], STEPS[-1]) == (1, LAST_STEP)

    def test_static_decay(self):
        compiled = jax.jit(lambda steps: [bias_correction(decay, steps) for decay in DECAYS])(STEPS)
        for decay, values in zip(DECAYS, compiled, strict=True):
            assert ulps(bias_correction(decay, STEPS), decay, STEPS, np.float32) <= 2, decay
            assert ulps(values, decay, STEPS, np.float32) <= 2, decay

    def test_static_array_of_decays(self):
        values = bias_correction(np.array(DECAYS)[:, None], STEPS)
        for decay, row in zip(DECAYS, values, strict=True):
            assert ulps(row, decay, STEPS, np.float32) <= 2

    def test_traced_decay_is_the_float32_that_it_is(self):
        traced = jax.jit(bias_correction)
        for decay in DECAYS:
            known = np.float32(decay)
            assert ulps(traced(decay, STEPS), known, STEPS, np.float32) <= 2
            assert ulps(traced(jnp.float32(decay), STEPS), known, STEPS, np.float32) <= 2
            assert ulps(bias_correction(jnp.float32(decay), STEPS), known, STEPS, np.float32) <= 2

    def test_vmapped_decay(self):
        decays = np.array(DECAYS, np.float32)
        eager = jax.vmap(bias_correction, in_axes=(0, None))
        for values in (eager(decays, STEPS), jax.jit(eager)(decays, STEPS)):
            for decay, row in zip(decays, values, strict=True):
                assert ulps(row, decay, STEPS, np.float32) <= 2

    def test_random_and_extreme_decays(self):
        generator = np.random.default_rng(0)
        near_one = 1 - 10 ** generator.uniform(-7, 0, 300)
        uniform = generator.uniform(0, 1, 100)
        tiny = 10 ** generator.uniform(-45, -1, 60)
        edges = [np.nextafter(np.float32(1), np.float32(0)), np.finfo(np.float32).tiny, 2.0**-149, 0.5 + 2.0**-24]
        decays = np.concatenate([near_one, uniform, tiny, edges])
        steps = np.unique(np.geomspace(1, LAST_STEP, 24).round().astype(np.int64)).astype(np.int32)
        static = bias_correction(decays[:, None], steps)
        for decay, row in zip(decays, static, strict=True):
            assert ulps(row, decay, steps, np.float32) <= 2
        known = decays.astype(np.float32)
        known = known[known < 1]
        traced = jax.jit(jax.vmap(bias_correction, in_axes=(0, None)))(known, steps)
        for decay, row in zip(known, traced, strict=True):
            assert ulps(row, decay, steps, np.float32) <= 2

    @pytest.mark.usefixtures("x64")
    def test_float64(self):
        decays = np.array(DECAYS)
        vmapped = jax.vmap(bias_correction, in_axes=(0, None))(jnp.asarray(decays), STEPS)
        traced = jax.jit(bias_correction)
        for decay, row in zip(DECAYS, vmapped, strict=True):
            assert ulps(bias_correction(decay, STEPS), decay, STEPS, np.float64) <= 4
            assert ulps(traced(jnp.float64(decay), STEPS), decay, STEPS, np.float64) <= 4
            assert ulps(row, decay, STEPS, np.float64) <= 4

    @pytest.mark.usefixtures("x64")
    def test_random_decays_in_float64(self):
        generator = np.random.default_rng(7)
        decays = np.concatenate([1 - 10 ** generator.uniform(-12, 0, 300), generator.uniform(0, 1, 100)])
        steps = np.unique(np.geomspace(1, LAST_STEP, 24).round().astype(np.int64)).astype(np.int32)
        static = bias_correction(decays[:, None], steps)
        traced = jax.jit(jax.vmap(bias_correction, in_axes=(0, None)))(decays, steps)
        for rows in (static, traced):
            for decay, row in zip(decays, rows, strict=True):
                assert ulps(row, decay, steps, np.float64) <= 6

    @pytest.mark.usefixtures("x64")
    def test_float32_decay_stays_float32_where_float64_is_on(self):
        for decay in DECAYS:
            known = np.float32(decay)
            assert ulps(jax.jit(bias_correction)(jnp.float32(decay), STEPS), known, STEPS, np.float32) <= 2

    def test_step_zero_is_zero(self):
        for decay in DECAYS:
            assert bias_correction(decay, 0) == 0
            assert jax.jit(bias_correction)(decay, 0) == 0

    @pytest.mark.parametrize("step_type", [int, np.int32, np.int64, jnp.int32, jnp.float32])
    def test_step_of_any_type(self, step_type):
        assert bias_correction(0.5, step_type(3)) == 0.875

    def test_derivative_with_respect_to_the_decay(self):
        steps = np.array([1, 2, 3, 7, 30, 100, 1000, 10_000, 100_000], np.int32)
        slopes = jax.jit(jax.vmap(jax.grad(bias_correction), in_axes=(None, 0)))
        for decay in np.float32(DECAYS):
            right = -steps * np.float64(decay) ** (steps - 1.0)
            np.testing.assert_allclose(slopes(decay, steps), right, rtol=1e-5, atol=1e-37, err_msg=decay)

    @pytest.mark.usefixtures("x64")
    def test_derivative_in_float64(self):
        steps = np.array([1, 2, 3, 7, 30, 100, 1000, 10_000, 100_000], np.int32)
        slopes = jax.jit(jax.vmap(jax.grad(bias_correction), in_axes=(None, 0)))
        for decay in np.float64(DECAYS):
            right = -steps * decay ** (steps - 1.0)
            np.testing.assert_allclose(slopes(decay, steps), right, rtol=1e-11, atol=1e-300, err_msg=decay)

    @pytest.mark.parametrize(
        "wrong", [1.0, 1, -0.1, -1e-30, 1.5, np.inf, np.nan, np.float64(1.0), np.array([0.5, 1.0])]
    )
    def test_decay_out_of_range(self, wrong):
        with pytest.raises(ValueError, match=r"decay must be in \[0, 1\)"):
            bias_correction(wrong, 1)

    @pytest.mark.parametrize("wrong", [1.0, -0.5, np.nan])
    def test_decay_out_of_range_in_a_jax_array_that_is_known(self, wrong):
        with pytest.raises(ValueError, match=r"decay must be in \[0, 1\)"):
            bias_correction(jnp.float32(wrong), 1)

    def test_decay_out_of_range_cannot_be_seen_where_it_is_traced(self):
        assert jax.jit(bias_correction)(1.0, 1) == 0


CONSTANTS = np.concatenate(
    [
        np.random.default_rng(1).uniform(1, 2, 24) * np.array([1, -1] * 12),
        np.random.default_rng(2).normal(size=8) * 10.0 ** np.arange(-4, 4),
    ]
)
CONSTANT_STEPS = np.arange(1, 10_001, dtype=np.int32)


def averages_by_ema(decay, constants):
    def step(moments, _):
        mu, nu = moments
        moments = ema(mu, constants, decay), ema(nu, constants**2, decay)
        return moments, moments

    start = jnp.zeros_like(constants), jnp.zeros_like(constants)
    return jax.lax.scan(step, start, length=CONSTANT_STEPS.size)[1]


def averages_by_adam(decay, constants):
    optimizer = jaxopt_adam.adam(1e-3, b1=decay, b2=decay)

    def step(state, _):
        _, state = optimizer.update(constants, state)
        return state, (state.mu, state.nu)

    return jax.lax.scan(step, optimizer.init(constants), length=CONSTANT_STEPS.size)[1]


def debiased_moments(averages, traced, dtype):
    """Both moments of constant gradients, debiased, at each step, for each decay: arrays of (step, constant)."""

    def moments(decay):
        mu, nu = averages(decay, jnp.asarray(CONSTANTS, dtype))
        steps = CONSTANT_STEPS[:, None]
        return debias(mu, decay, steps), debias(nu, decay, steps)

    if traced:
        run = jax.jit(moments)
        return [(decay, jax.device_get(run(dtype(decay)))) for decay in DECAYS]
    return list(zip(DECAYS, jax.device_get(jax.jit(lambda: [moments(decay) for decay in DECAYS])()), strict=True))


@pytest.mark.parametrize("averages", [averages_by_ema, averages_by_adam])
class TestConstantGradient:
    """Every decay in one test, since they share a program."""

    @pytest.mark.usefixtures("x64")
    def test_float64(self, averages):
        for decay, (first, second) in debiased_moments(averages, traced=False, dtype=np.float64):
            for moment, right in ((first, CONSTANTS), (second, CONSTANTS**2)):
                chex.assert_shape(moment, (10_000, CONSTANTS.size))
                chex.assert_type(moment, np.float64)
                np.testing.assert_allclose(moment, np.tile(right, (10_000, 1)), rtol=1e-11, atol=0, err_msg=str(decay))

    @pytest.mark.parametrize("traced", [False, True])
    def test_float32(self, averages, traced):
        constants = CONSTANTS.astype(np.float32)
        for decay, (first, second) in debiased_moments(averages, traced, dtype=np.float32):
            known = float(np.float32(decay)) if traced else decay
            # Each step that is remembered rounds the average by half an ulp; so does the constant approach its place.
            remembered = np.minimum(CONSTANT_STEPS, 1 / (1 - known))
            bound = np.where(CONSTANT_STEPS == 1, 2.0, remembered / 2 + 2)[:, None]
            for moment, right in ((first, constants), (second, constants**2)):
                chex.assert_shape(moment, (10_000, CONSTANTS.size))
                chex.assert_type(moment, np.float32)
                error = np.abs(np.float64(moment) - np.float64(right)) / np.spacing(np.abs(right))
                assert (error <= bound).all(), (decay, (error / bound).max())


class TestEma:
    @pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
    def test_low_precision_is_computed_in_float32_and_rounded_once(self, dtype):
        generator = np.random.default_rng(3)
        average, value = (jnp.asarray(generator.normal(size=1000), dtype) for _ in range(2))
        new = ema(average, value, 0.999)
        chex.assert_type(new, dtype)
        exact = 0.999 * np.float64(average) + 0.001 * np.float64(value)
        half_ulp = np.abs(exact) * float(jnp.finfo(dtype).eps) / 2
        half_ulp = np.maximum(half_ulp, float(jnp.finfo(dtype).smallest_subnormal) / 2)
        # Half an ulp for the one rounding, and a thousandth of one for the arithmetic in float32.
        assert (np.abs(np.float64(new) - exact) <= half_ulp * 1.001 + 1e-7).all()

    @pytest.mark.parametrize(
        ("average", "value", "new"),
        [
            (jnp.bfloat16, jnp.bfloat16, jnp.bfloat16),
            (jnp.float16, jnp.float16, jnp.float16),
            (jnp.float32, jnp.float32, jnp.float32),
            (jnp.float32, jnp.bfloat16, jnp.float32),
            (jnp.bfloat16, jnp.float32, jnp.float32),
            (jnp.complex64, jnp.complex64, jnp.complex64),
            (jnp.complex64, jnp.float32, jnp.complex64),
            (float, jnp.bfloat16, jnp.bfloat16),
            (jnp.bfloat16, float, jnp.bfloat16),
        ],
    )
    def test_dtype_is_the_common_one(self, average, value, new):
        assert ema(average(1), value(2), 0.5).dtype == new

    @pytest.mark.usefixtures("x64")
    @pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.complex64])
    @pytest.mark.parametrize("kind", [float, np.float64, np.array, jnp.float64])
    def test_decay_never_widens(self, dtype, kind):
        decay = kind(0.75)
        average = ema(dtype(1), dtype(2), decay)
        assert average.dtype == dtype
        assert average == 1.25
        assert debias(average, decay, 1).dtype == dtype
        assert jax.eval_shape(ema, dtype(1), dtype(2), decay).dtype == dtype
        assert jax.eval_shape(debias, dtype(1), decay, 1).dtype == dtype

    @pytest.mark.usefixtures("x64")
    @pytest.mark.parametrize("dtype", [jnp.float64, jnp.complex128])
    def test_float64_is_computed_in_float64(self, dtype):
        generator = np.random.default_rng(4)
        average, value = (jnp.asarray(generator.normal(size=100), dtype) for _ in range(2))
        new = ema(average, value, 0.999)
        chex.assert_type(new, dtype)
        np.testing.assert_allclose(new, 0.999 * np.array(average) + 0.001 * np.array(value), rtol=0, atol=1e-15)

    @pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.complex64])
    def test_constant_stays_where_it_is(self, dtype):
        generator = np.random.default_rng(5)
        constants = jnp.asarray(generator.normal(size=1000), dtype)
        if dtype == jnp.complex64:
            constants = constants * (1 + 2j)
        decays = np.concatenate([DECAYS, 1 - 10 ** generator.uniform(-7, 0, 40)])
        for decay in decays:
            chex.assert_trees_all_equal(ema(constants, constants, decay), constants)
        moved = jax.jit(jax.vmap(ema, in_axes=(None, None, 0)))(constants, constants, decays)
        chex.assert_trees_all_equal(moved, jnp.broadcast_to(constants, moved.shape))

    @pytest.mark.parametrize("traced", [False, True])
    def test_without_past_the_average_is_the_value(self, traced):
        # As rmsprop's and adam's second moments meet it: a large gradient, then a small one.
        average, value = jnp.float32([1e4, 3.0, -1e8]), jnp.float32([1e-6, 1e-9, 0.7])
        new = jax.jit(ema)(average, value, 0.0) if traced else ema(average, value, 0.0)
        chex.assert_trees_all_equal(new, value)

    def test_no_digits_are_lost_between_averages_and_values_of_any_size(self):
        generator = np.random.default_rng(8)
        average, value = (np.float32(10 ** generator.uniform(-8, 8, 2000)) for _ in range(2))
        decay = np.float32(generator.uniform(0, 1, 2000) ** 4)
        exact = np.float64(decay) * average + (1 - np.float64(decay)) * value
        new = jax.jit(ema)(average, value, decay)
        assert (np.abs(new - exact) <= 3 * np.spacing(np.float32(exact))).all()

    def test_no_past_and_all_past(self):
        assert ema(5.0, 3.0, 0.0) == 3
        assert ema(jnp.float32(5), jnp.float32(3), 1 - 2.0**-24) == 5

    def test_static_decay_keeps_the_digits_of_its_distance_from_one(self):
        # In float32, 1 - 0.999 is 0.00100004673; from zero the value shows the weight itself.
        np.testing.assert_allclose(float(ema(jnp.float32(0), jnp.float32(1), 0.999)), 0.001, rtol=1e-7)

    def test_complex(self):
        np.testing.assert_allclose(ema(1 + 2j, 3 - 2j, 0.75), 1.5 + 1j, rtol=1e-7)


class TestDebias:
    @pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.complex64])
    def test_dtype_is_the_averages(self, dtype):
        average = jnp.asarray(np.random.default_rng(6).normal(size=100), dtype)
        debiased = debias(average, 0.9, 3)
        chex.assert_type(debiased, dtype)
        wide = np.array(average).astype(np.complex128)
        epsilon = float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(
            np.array(debiased).astype(np.complex128), wide / (1 - 0.9**3), rtol=epsilon / 2 + 3e-7
        )

    def test_undoes_the_start_at_zero(self):
        for decay in DECAYS:
            value = jnp.float32(1.7)
            np.testing.assert_allclose(debias(ema(jnp.zeros_like(value), value, decay), decay, 1), value, rtol=3e-7)

    def test_complex(self):
        np.testing.assert_allclose(debias(jnp.complex64(0.25 - 0.5j), 0.75, 1), 1 - 2j, rtol=1e-6)


class TestEmaAtTheEdges:
    @pytest.mark.parametrize("decay", [0.25, 0.5, 0.9])
    def test_its_derivative_with_respect_to_the_decay(self, decay):
        assert jax.grad(ema, 2)(1.0, 3.0, decay) == -2.0

    def test_an_average_that_has_overflowed_stays_infinite(self):
        assert ema(jnp.inf, 1.0, 0.9) == jnp.inf
        assert ema(jnp.float32(3e38), jnp.float32(-3e38), 0.9) == pytest.approx(2.4e38, rel=1e-6)
        assert jnp.isnan(ema(jnp.nan, 1.0, 0.9))

    @pytest.mark.parametrize("decay", [0.0, 0.25, 0.5, 0.9, 0.9999])
    @pytest.mark.parametrize("dtype", [np.float32, np.complex64])
    def test_the_shorter_form_for_bounded_numbers_has_the_same_bits(self, decay, dtype):
        generator = np.random.default_rng(0)
        sizes = 10.0 ** generator.uniform(-30, 37, (4, 2, 1000))
        average, value = (sizes[:2] * generator.normal(size=(2, 2, 1000))).astype(np.float32)
        if dtype == np.complex64:
            average, value = (each[0] + 1j * each[1] for each in (average, value))
        long = jax.jit(ema)(average, value, decay)
        token = ARE_BOUNDED.set(True)
        try:
            short = jax.jit(lambda *given: ema(*given))(average, value, decay)
        finally:
            ARE_BOUNDED.reset(token)
        np.testing.assert_array_equal(short, long)
        assert np.isnan(ema(np.float32(np.nan), 1.0, decay))

    def test_a_rule_without_squares_averages_any_numbers(self):
        """One with squares has bounded gradients, of which it knows."""
        optimizer = jaxopt_adam.lion(1.0, b2=0.9, weight_decay=0.0)
        _, state = optimizer.update(jnp.float32(3e38), optimizer.init(jnp.float32(0)))
        _, state = optimizer.update(jnp.float32(-3e38), state)
        assert state.mu == pytest.approx(0.9 * 0.1 * 3e38 - 0.1 * 3e38, rel=1e-6)
        assert not ARE_BOUNDED.get()

    @pytest.mark.parametrize("name", ["adam", "rmsprop", "adadelta", "adagrad"])
    def test_one_huge_gradient_stops_no_element(self, name):
        ours, theirs = getattr(jaxopt_adam, name)(0.1), getattr(optax, name)(0.1)
        params = [jnp.ones(2), jnp.ones(2)]
        states = [ours.init(params[0]), theirs.init(params[1])]
        for gradient in (1e20, 1.0, 1.0, 1.0):
            for i, optimizer in enumerate((ours, theirs)):
                updates, states[i] = optimizer.update(jnp.array([gradient, 1.0]), states[i], params[i])
                params[i] = optax.apply_updates(params[i], updates)
        (huge, other), (stuck, expected) = params
        # optax's element stands still for ever, as its second moment is infinite.
        assert stuck == 1
        assert 0 < huge < 1
        np.testing.assert_allclose(other, expected, rtol=1e-5)


def test_norm_of_the_largest_and_the_smallest_numbers():
    """Also where a compiler multiplies by a reciprocal, as it does within a loop over a batch."""
    sizes = jnp.float32([1e-37, 1e-30, 1.0, 1e30, 1e38, 1.9e38])
    directions = jnp.float32([1.0, -0.5, 0.25])

    @jax.jit
    @jax.vmap
    def norms(size):
        return jax.lax.scan(lambda carry, factor: (carry, norm(factor * carry)), size * directions, jnp.ones(3))[1]

    expected = np.float64(sizes) * np.linalg.norm(directions)
    np.testing.assert_allclose(norms(sizes), np.tile(expected[:, None], 3), rtol=1e-6)
    for size, right in zip(sizes, expected, strict=True):
        np.testing.assert_allclose(norm(size * directions), right, rtol=1e-6)
    assert norm(jnp.float32([])) == norm(jnp.zeros(3)) == 0
    assert norm(jnp.float32([1, -np.inf])) == np.inf
    assert np.isnan(norm(jnp.float32([1, np.nan])))


@pytest.mark.parametrize("is_compiled", [True, False])
@pytest.mark.parametrize("shape", [(), (7,), (5, 6, 7)])
@pytest.mark.parametrize("imaginary", [0, 1j])
def test_norms_and_means_of_squares_of_every_size(shape, imaginary, is_compiled):
    generator = np.random.default_rng(9)
    unit = generator.normal(size=shape) + imaginary * generator.normal(size=shape)
    axes = sorted({len(shape) - 1, 0} if shape else ())

    def everything(value):
        """The norm, and the means over all and along axes, of a value that is bounded and of one that may not be."""
        means = [[mean_square(value, axis, given) for axis in (None, *axes)] for given in (True, False)]
        return [norm(value, given) for given in (True, False)], means

    run = jax.jit(everything) if is_compiled else everything
    for size in (0.0, 1e-36, 1e-25, 1e-12, 1.0, 1e15, 1e18, 1e22, 1e37):
        value = jnp.asarray(size * unit, jnp.complex64 if imaginary else jnp.float32)
        exact = np.asarray(value, np.complex128 if imaginary else np.float64)
        bounded = np.asarray(squarable(value), exact.dtype)
        norms, means = run(value)
        for right, found, of_squares, given in zip((bounded, exact), norms, means, (True, False), strict=True):
            np.testing.assert_allclose(found, np.linalg.norm(right), rtol=1e-6)
            if 1e-15 < size < 1e18 or given:
                for axis, mean in zip((None, *axes), of_squares, strict=True):
                    np.testing.assert_allclose(mean, np.mean(np.abs(right) ** 2, axis), rtol=1e-5, atol=1e-37)
    for bad, every in ((np.nan, (0, 1)), (np.inf, (0,))):
        norms, means = run(jnp.full(shape, bad, value.dtype))
        for given in every:
            assert np.isnan(norms[given])
            assert np.isnan(means[given][0])


def test_the_derivatives_of_norms_and_of_means_of_squares():
    value = jnp.asarray(np.random.default_rng(10).normal(size=(4, 5)), jnp.float32)
    for scale in (1e-30, 1.0, 1e25):
        slope = jax.jit(jax.grad(norm))(scale * value)
        np.testing.assert_allclose(slope, value / np.linalg.norm(value), rtol=1e-5)
    np.testing.assert_array_equal(jax.grad(norm)(jnp.zeros(3)), 0)
    np.testing.assert_allclose(jax.jit(jax.grad(mean_square))(value), 2 * value / 20, rtol=1e-6)
    hessian = jax.jit(jax.hessian(norm))(jnp.float32([3, 4]))
    np.testing.assert_allclose(hessian, np.array([[16, -12], [-12, 9]]) / 125, rtol=1e-5)


def test_the_derivatives_of_a_bounded_product():
    value, end, start = jnp.asarray(np.random.default_rng(11).normal(size=(3, 4, 5)), jnp.float32)
    slopes = jax.jit(jax.grad(bounded_product, (0, 1, 2)))(value, end, start)
    chex.assert_trees_all_close(slopes, (end - start, value, -value), rtol=1e-6)
