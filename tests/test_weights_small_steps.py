"""Small updates of low-precision weights: none is lost, whatever its size."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import AS_USERS_DO
from jax.experimental import checkify
from jitted import initial

from jaxopt_adam import adamw, checked, master_params, master_weights, sgd, stochastic_rounding, with_master_params
from jaxopt_adam.storage._patterns import from_pattern
from jaxopt_adam.weights._sums import rounded_sum

BFLOAT16, FLOAT16 = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16)
PLACES = {BFLOAT16: (7, -126), FLOAT16: (10, -14)}
"""The binary places behind the first, and the exponent below which the numbers are evenly spaced."""
both_dtypes = pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=str)


def spacing_below(value, dtype, dropped):
    """The distance from a number to the next larger magnitude, of the numbers with 16 - `dropped` more bits."""
    places, least = PLACES[dtype]
    return np.ldexp(1.0, np.maximum(np.frexp(value)[1] - 1, least) - places - (16 - dropped))


@functools.cache
def summed(dtype, dropped):
    return jax.jit(
        lambda weight, change, threshold: from_pattern(rounded_sum(weight, change, dtype, dropped, threshold), dtype)
    )


def some_sums(dtype, dropped):
    """Weights that need no rounding, changes of all sizes and signs, and thresholds."""
    generator = np.random.default_rng(3)
    weights = np.ldexp(generator.uniform(0.5, 1, 50_000), generator.integers(-20, 8, 50_000))
    unit = spacing_below(weights, dtype, dropped)
    weights = np.floor(weights / unit) * unit * generator.choice([-1, 0, 1, 1], 50_000)
    changes = (generator.normal(size=50_000) * 10 ** generator.uniform(-10, 2, 50_000)).astype(np.float32)
    # Also from one binade to the next, to zero and through it.
    changes[::7] = -weights[::7] * generator.choice([0.5, 1, 2], weights[::7].size)
    return weights.astype(np.float32), changes, generator.integers(0, 2**32, 50_000, dtype=np.uint32)


class TestRoundedSum:
    """Against the exact sum in float64."""

    @both_dtypes
    @pytest.mark.parametrize("dropped", [8, 16])
    def test_against_float64(self, dtype, dropped):
        weights, changes, thresholds = some_sums(dtype, dropped)
        result = np.float64(summed(dtype, dropped)(weights, changes, thresholds))
        # Sums in float64 are exact but for what is far below a spacing.
        exact = np.float64(weights) + np.float64(changes)
        unit = spacing_below(np.abs(exact), dtype, dropped)
        places = np.abs(exact) / unit
        # Rounded down after the share was added, and so upwards from zero on both of its sides.
        whole = np.copysign(places, exact) + thresholds / 2.0**32
        expected = np.floor(whole) * unit
        clear = np.abs(whole - np.rint(whole)) > 1e-5
        assert clear.mean() > 0.9
        np.testing.assert_array_equal(result[clear], expected[clear])
        # Never further than one spacing, and exact where the sum is such a number.
        assert (np.abs(result - exact) <= unit * (1 + 1e-6)).all()
        fits = places == np.rint(places)
        assert fits.mean() > 0.05
        np.testing.assert_array_equal(result[fits], exact[fits])

    @both_dtypes
    def test_changes_that_an_addition_drops(self, dtype):
        """In both directions, at a power of two and elsewhere, in the share that is right."""
        unit = 2.0 ** (-PLACES[dtype][0] - 8)
        thresholds = np.arange(2**16, dtype=np.uint32) << 16
        for weight, change in ((1.5, 1e-9), (1.5, -1e-9), (-1.5, 1e-9), (1.0, 1e-9), (1.0, 3e-8), (-1.0, -2e-8)):
            change = np.float32(change * (1e3 if dtype == BFLOAT16 else 1e2))
            result = np.float64(summed(dtype, 8)(np.float32(weight), change / 16, thresholds))
            np.testing.assert_allclose((result - weight).mean(), change / 16, rtol=0, atol=2.0**-16 * unit)

    @both_dtypes
    def test_what_is_finite_stays_so(self, dtype):
        largest = np.float32(jnp.finfo(dtype).max)
        most = np.uint32(2**32 - 1)
        for part in (2.0**-12, 2.0**-26):
            assert summed(dtype, 16)(largest, largest * np.float32(part), most) == largest
        assert summed(dtype, 16)(largest, largest, most) == np.inf
        assert summed(dtype, 8)(-largest, -largest, most) == -np.inf
        assert np.isnan(summed(dtype, 8)(largest, np.float32(np.nan), most))


def moved(optimizer, grads, params, state):
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state


@functools.cache
def walker(optimizer, steps):
    """Steps with one gradient."""

    def step(_, carry):
        params, state, grads = carry
        return *moved(optimizer, grads, params, state), grads

    return jax.jit(lambda *carry: jax.lax.fori_loop(0, steps, step, carry)[:2], compiler_options=AS_USERS_DO)


joined = jax.jit(master_params)


class TestEqualSteps:
    def test_of_the_report(self):
        optimizer = master_weights(sgd(1.0))
        params = np.ones(4096, BFLOAT16)
        params, state = walker(optimizer, 300)(params, initial(optimizer, params), np.full(4096, 5e-6, np.float32))
        spacings = (np.float64(joined(params, state)) - 0.9985) * 2.0**15
        assert np.abs(spacings).max() < 2.5
        assert np.abs(spacings.mean()) < 0.05

    @both_dtypes
    def test_of_all_sizes(self, dtype):
        """From 1e-8, which float32 loses as well, to more than a spacing, up and down, from both sides of a binade."""
        optimizer = master_weights(sgd(1.0))
        sizes = np.array([1e-8, 3.3e-8, 1e-7, 1e-6, 2.7e-6, 1e-5, 1e-4, 7.7e-4])
        # By the golden ratio's neighbours, after as many steps as it has a denominator.
        sizes = np.concatenate([sizes, 2.0**-16 / np.array([377, 233, 2, 3, 8, 13]), [0]])
        starts = np.array([1.0, 1.5, -1.0, 0.0, -2.25, 2.0**-15])
        weights, grads = (each.astype(np.float32) for each in np.meshgrid(starts, np.concatenate([sizes, -sizes])))
        params, state = jax.jit(lambda: with_master_params(weights, optimizer, dtype))()
        steps = 3000
        params, state = walker(optimizer, steps)(params, state, grads)
        found = np.float64(joined(params, state))
        exact = weights.astype(np.float64) - steps * grads.astype(np.float64)
        unit = 2 * spacing_below(np.maximum(np.abs(exact), np.abs(weights)), dtype, 8)
        assert (np.abs(found - exact) < 2 * unit).all()
        np.testing.assert_array_equal(found[grads == 0], weights[grads == 0])
        # The parameter is the number nearest to the weight.
        assert (np.abs(found - np.float64(params)) <= 2.0**7 * spacing_below(np.abs(found), dtype, 8)).all()


class TestTravel:
    """A quiet weight of 1, 3,000 steps of AdamW with gradients that drift, against a sum in float64."""

    STEPS, SHAPE = 3000, (32, 512)
    RATES = (1e-3, 1e-4, 1e-5, 1e-6)

    @classmethod
    @functools.cache
    def travelled(cls):
        """The errors in units of the travel's root mean square, and their share that lies along the travel."""
        wrappers = [master_weights, functools.partial(master_weights, bits=32), stochastic_rounding]
        optimizers = [wrap(sgd(1.0)) for wrap in wrappers]
        # Stochastic rounding is only what the others are compared with, and takes most of the time.
        sizes = [slice(None), slice(None), slice(2)]
        # To draw the noise in each step would take as long as the step.
        generator, size = np.random.default_rng(0), np.prod(cls.SHAPE)
        drift, noise = (np.float32(generator.normal(size=each)) for each in (cls.SHAPE, 2**19))
        parts = generator.integers(0, noise.size - size, cls.STEPS)

        @functools.partial(jax.jit, compiler_options=AS_USERS_DO)
        def run(rate, drift, noise, parts):
            inner = adamw(rate, weight_decay=0.0)

            def step(t, carry):
                inner_state, total, lost, several = carry
                of_the_step = jax.lax.dynamic_slice(noise, (parts[t],), (size,)).reshape(cls.SHAPE)
                update, inner_state = inner.update(drift * jnp.cos(t / 500) + of_the_step, inner_state)
                several = [
                    moved(optimizer, -update[rows], *each)
                    for optimizer, rows, each in zip(optimizers, sizes, several, strict=True)
                ]
                # Kahan's sum, as exact as one in float64.
                update = update - lost
                new = total + update
                return inner_state, new, (new - total) - update, several

            starts = [jnp.ones(cls.SHAPE, BFLOAT16)[rows] for rows in sizes]
            several = [(start, optimizer.init(start)) for optimizer, start in zip(optimizers, starts, strict=True)]
            carry = (inner.init(jnp.zeros(cls.SHAPE)), jnp.zeros(cls.SHAPE), jnp.zeros(cls.SHAPE), several)
            _, total, lost, several = jax.lax.fori_loop(0, cls.STEPS, step, carry)
            *masters, (stochastic, _) = several
            return total - lost, [*[master_params(*each) for each in masters], stochastic.astype(jnp.float32)]

        errors, biases = [], []
        for rate in cls.RATES:
            travel, weights = jax.tree.map(np.float64, run(rate, drift, noise, parts))
            travels = [travel[rows] for rows in sizes]
            apart = [weight - 1 - each for weight, each in zip(weights, travels, strict=True)]
            errors.append([np.sqrt((a**2).mean() / (t**2).mean()) for a, t in zip(apart, travels, strict=True)])
            biases.append([(a * t).sum() / (t**2).sum() for a, t in zip(apart, travels, strict=True)])
        return [dict(zip(("24", "32", "stochastic"), np.transpose(each), strict=True)) for each in (errors, biases)]

    @pytest.mark.parametrize("bits", ["24", "32"])
    def test_bias(self, bits):
        _, biases = self.travelled()
        assert (np.abs(biases[bits]) < 0.01).all()

    @pytest.mark.parametrize(("bits", "share"), [("24", 0.05), ("32", 0.01)])
    def test_error(self, bits, share):
        errors, _ = self.travelled()
        assert (errors[bits] < share * errors["stochastic"]).all()


@both_dtypes
def test_the_numbers_are_equally_spaced_on_both_sides_of_a_power_of_two(dtype):
    """With 24 bits: from 31/32 of the power on, they have the spacing that they have above it."""
    optimizer = master_weights(sgd(1.0))
    step = jax.jit(functools.partial(moved, optimizer))
    spacing = np.ldexp(1.0, -PLACES[dtype][0] - 8)  # from 1 on
    for start, multiple in ((0.96, 0.5), (0.97, 1), (0.99, 1), (1.01, 1)):
        params = np.full(1000, start, dtype)
        changes = np.linspace(0.001, 0.005, 1000, dtype=np.float32)
        master = np.float64(joined(*step(-changes, params, initial(optimizer, params))))
        is_rounded = np.float64(params.astype(np.float32) + changes) % (spacing / 2) != 0
        assert is_rounded.sum() > 900
        np.testing.assert_array_equal(master[is_rounded] % (multiple * spacing), 0)
        assert (master[is_rounded] % (2 * multiple * spacing) != 0).any()


class TestTheStep:
    def test_is_in_the_state(self):
        """The same state gives the same bits, another step others, and the number goes round."""
        optimizer = master_weights(sgd(1.0))
        params, grads = np.ones(64, BFLOAT16), np.full(64, 5e-6, np.float32)
        state = initial(optimizer, params)
        assert state.step.dtype == jnp.uint32
        update = jax.jit(optimizer.update)
        _, first = update(grads, state, params)
        _, again = update(grads, state, params)
        _, other = update(grads, state._replace(step=jnp.uint32(1)), params)
        assert first.step == 1
        np.testing.assert_array_equal(first.correction, again.correction)
        assert (np.asarray(first.correction) != np.asarray(other.correction)).any()
        _, last = update(grads, state._replace(step=jnp.uint32(2**32 - 1)), params)
        assert last.step == 0

    def test_elements_go_up_in_different_steps(self):
        optimizer = master_weights(sgd(1.0))
        params, grads = np.ones((64, 64), BFLOAT16), np.full((64, 64), -(2.0**-15) / 4, np.float32)
        _, state = jax.jit(lambda: optimizer.update(grads, optimizer.init(params), params))()
        assert 0.2 < np.mean(np.asarray(state.correction) != 0) < 0.3
        # Neither all of a row nor all of a column at once.
        assert np.std(np.mean(np.asarray(state.correction) != 0, axis=0)) < 0.15

    def test_no_other_counts(self):
        """Neither an assertion nor a schedule takes it for the rule's count."""
        optimizer = checked(master_weights(adamw(optax.linear_schedule(1e-3, 0.0, 4))))
        params = np.ones(4, BFLOAT16)
        errors, (_, state) = checkify.checkify(jax.jit(optimizer.update))(params, initial(optimizer, params), params)
        errors.throw()
        assert optimizer.current_learning_rate(state) == np.float32(0.75e-3)
