"""Weights in 16 bits that keep the bits that rounding drops."""

import functools
import itertools
import math
import operator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import AS_USERS_DO, FUSED_AS_FOR_USERS
from flax import nnx, serialization
from flax.training.train_state import TrainState
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jitted import initial
from test_sharding import COLLECTIVES

from jaxopt_adam import (
    MasterWeightsState,
    StochasticRoundingState,
    adam,
    adamw,
    master_params,
    master_weights,
    observe,
    schedule_free_adamw,
    sgd,
    stalled_fraction,
    stochastic_rounding,
    with_master_params,
)
from jaxopt_adam.weights._master import _dither
from jaxopt_adam.weights._stochastic import random_bits
from jaxopt_adam.weights._within import move_to

BFLOAT16, FLOAT16 = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16)
WRAPPERS = {
    "master_24": functools.partial(master_weights, bits=24),
    "master_32": functools.partial(master_weights, bits=32),
    "stochastic": stochastic_rounding,
}
both_dtypes = pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=str)
both_bits = pytest.mark.parametrize("bits", [24, 32])
every_wrapper = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
each_kind = pytest.mark.parametrize("wrap", [master_weights, stochastic_rounding])


def every_number(dtype):
    return np.arange(2**16, dtype=np.uint16).view(dtype)


def same_bits(one, other):
    """Element by element, all NaNs being one."""
    one, other = np.asarray(one), np.asarray(other)
    assert one.dtype == other.dtype
    if not jnp.issubdtype(one.dtype, jnp.floating):
        return one == other
    kind = f"u{one.dtype.itemsize}"
    return (one.view(kind) == other.view(kind)) | (np.isnan(wide(one)) & np.isnan(wide(other)))


@np.errstate(all="ignore")
def wide(value):
    """In float64, without complaint about NaN."""
    return np.asarray(value).astype(np.float64)


def assert_identical(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert jax.tree.map(lambda leaf: leaf.dtype, one) == jax.tree.map(lambda leaf: leaf.dtype, other)
    assert jax.tree.all(jax.tree.map(lambda a, b: same_bits(a, b).all(), one, other))


def every_float32():
    """Every upper half of a float32, with lower halves at and next to all that rounding has to decide."""
    low = np.array([0, 1, 0x7F, 0x80, 0x81, 0x180, 0x7F7F, 0x7F80, 0x7FFF, 0x8000, 0x8001, 0x8080, 0xB5A3, 0xFFFF])
    return (np.arange(2**16, dtype=np.uint32)[:, None] << 16 | low.astype(np.uint32)).view(np.float32)


split = jax.jit(with_master_params, static_argnums=(1, 2))
joined = jax.jit(master_params)


def step_of(optimizer):
    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


@functools.cache
def stepper(optimizer):
    """A jitted step."""
    return jax.jit(step_of(optimizer), compiler_options=AS_USERS_DO)


@functools.cache
def walk(optimizer, for_bits=True):
    """A jitted scan of steps over given gradients; the states at the end, and all parameters."""

    @functools.partial(jax.jit, compiler_options=AS_USERS_DO if for_bits else None)
    def run(params, state, grads):
        def body(carry, grad):
            params, state = carry
            updates, state = optimizer.update(grad, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        return jax.lax.scan(body, (params, state), grads)

    return run


def nearest(value, places, least):
    """To the nearest number with so many binary places behind the first, and of two the even one; in float64.

    Below 2**`least` the numbers lie as they do from there on.
    """
    value, unit = wide(value), last_place(value, places, least)
    return np.rint(value / unit) * unit


def last_place(value, places, least):
    with np.errstate(invalid="ignore"):  # NumPy may complain about NaN
        return np.ldexp(1.0, np.maximum(np.frexp(wide(value))[1] - 1, least) - places)


def as_float16_weights(value):
    """Numbers beyond float16's range as its infinity."""
    return np.where(np.abs(value) >= 2.0**16, np.copysign(np.inf, value), value)


def test_thresholds_are_of_the_silver_ratio():
    """They are the same in every version, and independent of those of moments, which are of the golden ratio."""
    silver = int(2**32 * (math.sqrt(2) - 1))
    first, later = (int(_dither(jnp.uint32(step), jnp.int32(1), (3,))[2]) for step in (0, 1000))
    assert (later - first) % 2**32 == 1000 * silver % 2**32


class TestSplit:
    """A weight as a parameter and a correction, over all bit patterns."""

    @staticmethod
    @functools.cache
    def split_and_joined(dtype, bits):
        optimizer = master_weights(sgd(1.0), bits=bits)
        weights = every_float32()
        params, state = split(weights, optimizer, dtype)
        return weights, np.asarray(params), np.asarray(state.correction), np.asarray(joined(params, state))

    def test_a_float32_survives_in_bfloat16_and_int16(self):
        weights, params, correction, both = self.split_and_joined(BFLOAT16, 32)
        assert params.dtype == BFLOAT16
        assert correction.dtype == np.int16
        assert same_bits(both, weights).all()

    def test_24_bits_are_the_nearest_float_with_15_places(self):
        weights, _, correction, both = self.split_and_joined(BFLOAT16, 24)
        assert correction.dtype == np.int8
        with np.errstate(over="ignore"):
            assert same_bits(both, nearest(weights, 15, -126).astype(np.float32)).all()

    def test_a_float32_survives_in_float16_and_int16(self):
        weights, params, _, both = self.split_and_joined(FLOAT16, 32)
        assert params.dtype == FLOAT16
        normal = ~(np.abs(weights) < 2.0**-14)
        expected = as_float16_weights(weights)
        assert same_bits(both, expected)[normal].all()
        assert same_bits(both, nearest(weights, 26, -14).astype(np.float32))[~normal].all()

    def test_24_bits_of_a_float16_weight(self):
        weights, _, _, both = self.split_and_joined(FLOAT16, 24)
        expected = nearest(as_float16_weights(weights), 18, -14)
        normal = ~(np.abs(weights) < 2.0**-14)
        assert same_bits(both, as_float16_weights(expected).astype(np.float32))[normal].all()
        # Two roundings, to 2⁻⁴⁰ and then to 2⁻³², may miss the nearest by the first one's error.
        assert (np.abs(wide(both)[~normal] - wide(weights)[~normal]) <= 2.0**-33 + 2.0**-41).all()
        assert (np.signbit(both) == np.signbit(weights))[~normal & (both != 0)].all()

    @both_bits
    @both_dtypes
    def test_the_parameter_is_the_nearest_and_of_two_the_larger(self, dtype, bits):
        _, params, _, both = self.split_and_joined(dtype, bits)
        places, least = (7, -126) if dtype == BFLOAT16 else (10, -14)
        value, unit = wide(both), last_place(both, places, least)
        with np.errstate(invalid="ignore", over="ignore"):
            expected = np.copysign(np.floor(np.abs(value) / unit + 0.5) * unit, value).astype(dtype)
        zero = params == 0
        assert same_bits(params, expected)[~zero].all()
        assert (expected[zero] == 0).all()

    @both_bits
    @both_dtypes
    def test_no_bias(self, dtype, bits):
        generator = np.random.default_rng(0)
        weights = generator.uniform(0.5, 1, 2**16).astype(np.float32)
        params, state = split(weights, master_weights(sgd(1.0), bits=bits), dtype)
        unit = 2.0**-16 if dtype == BFLOAT16 else 2.0**-19
        error = (np.asarray(joined(params, state)) - weights.astype(np.float64)) / unit
        assert abs(error).max() <= 0.5
        assert abs(error.mean()) < 5 * 0.29 / 2**8  # of numbers uniform in ±½, of which there are 2¹⁶
        assert bits == 32 or abs(error).max() > 0.45

    @both_bits
    @both_dtypes
    def test_init_keeps_every_parameter(self, dtype, bits):
        params = every_number(dtype)
        state = initial(master_weights(sgd(1.0), bits=bits), params)
        weights = joined(params, state)
        assert same_bits(weights, params.astype(np.float32)).all()

    @both_bits
    @both_dtypes
    def test_a_correction_that_does_not_belong(self, dtype, bits):
        params = every_number(dtype)
        state = initial(master_weights(sgd(1.0), bits=bits), params)
        places, least = (7, -126) if dtype == BFLOAT16 else (10, -14)
        limits = np.iinfo(state.correction.dtype)
        for correction in (limits.min, -1, 1, limits.max):
            weights = joined(params, state._replace(correction=np.full_like(state.correction, correction)))
            value, weights = wide(params), wide(weights)
            assert (np.isnan(weights) == np.isnan(value)).all()
            finite = np.isfinite(value)
            assert (np.abs(weights[finite] - value[finite]) <= last_place(value, places, least)[finite] / 2).all()
            assert (np.abs(weights[np.isinf(value)]) > np.abs(value[finite]).max()).all()


def jumps(dtype):
    """Every number of a dtype, and for each of them changes of all sizes; in float32."""
    generator = np.random.default_rng(1)
    with np.errstate(all="ignore"):
        value = every_number(dtype).astype(np.float32)
        spacing = np.abs(
            np.spacing(value.astype(np.float16)).astype(np.float32) if dtype == FLOAT16 else value * 2.0**-7
        )
        yield np.zeros_like(value)
        yield -value
        for share in (0.5, -0.5, 0.25, 1e-3, 1.5, -3.0):
            yield spacing * np.float32(share)
        for share in (1e-6, -0.25, -0.999, -1.001, -2.0, 7.0, 2.0**20):
            yield value * np.float32(share)
        for _ in range(3):
            yield generator.permutation(value) - value
        yield generator.integers(0, 2**32, value.size, dtype=np.uint64).astype(np.uint32).view(np.float32)


class TestExactUpdates:
    @both_dtypes
    def test_where_an_update_leads(self, dtype):
        """To the parameter that was meant, wherever a sum in float32 can give it."""
        start = every_number(dtype)
        generator = np.random.default_rng(2)
        move = jax.jit(lambda goal, param: move_to(jax.lax.bitcast_convert_type(goal, jnp.uint16), param))
        apply_updates = jax.jit(optax.apply_updates)
        goals = [
            start,
            -start,
            np.roll(start, 1),
            np.roll(start, -1),
            *(generator.permutation(start) for _ in range(8)),
        ]
        for goal in goals:
            update = np.asarray(move(goal, start))
            assert update.dtype == np.float32
            there = np.asarray(apply_updates(start, update))
            origin, end = wide(start), wide(goal)
            with np.errstate(invalid="ignore"):
                jump = end - origin
            with np.errstate(all="ignore"):
                fits = (jump.astype(np.float32) == jump) & (origin + jump == end)
            possible = np.isfinite(origin) & (np.isinf(end) | fits)
            # Processors may take what is below 2⁻¹²⁶ for zero, and no sum changes the sign of a zero.
            possible &= (np.abs(origin) >= 2.0**-126) & (np.abs(end) >= 2.0**-126)
            possible &= (np.abs(jump) >= 2.0**-126) | (jump == 0)
            assert possible.mean() > 0.1
            assert same_bits(there, goal)[possible].all()
            # What a sum in float32 cannot reach it misses by no more than the last place of the number it starts from.
            with np.errstate(invalid="ignore", over="ignore"):
                near = np.abs(wide(there) - end) <= 2.0**-24 * np.abs(origin) + 2.0**-126
                near |= np.abs(jump) > np.finfo(np.float32).max
            assert (near | (wide(there) == end))[np.isfinite(origin) & np.isfinite(end)].all()
            assert (np.isnan(wide(there)) == np.isnan(end))[np.isfinite(origin)].all()
            assert not np.isfinite(wide(there)[~np.isfinite(origin)]).any()

    @both_dtypes
    def test_nothing_moves_what_stays(self, dtype):
        start = every_number(dtype)
        start = start[(np.abs(wide(start)) >= 2.0**-126) | (wide(start) == 0) | np.isnan(wide(start))]
        moved = jax.jit(lambda goal, param: optax.apply_updates(param, move_to(goal, param)))(
            start.view(np.uint16), start
        )
        assert same_bits(moved, start).all()

    @both_bits
    @both_dtypes
    def test_a_step_is_one_of_float32(self, dtype, bits):
        optimizer = master_weights(sgd(1.0), bits=bits)
        step, added = stepper(optimizer), jax.jit(operator.add)  # as XLA adds what is below 2⁻¹²⁶
        places, least = (7, -126) if dtype == BFLOAT16 else (10, -14)
        rests = [np.zeros(2**16), *np.random.default_rng(3).uniform(-0.5, 0.5, (2, 2**16))]
        for rest, change in itertools.product(rests, jumps(dtype)):
            with np.errstate(all="ignore"):
                value = wide(every_number(dtype)) * (1 + rest * 2.0 ** (-7 if dtype == BFLOAT16 else -10))
                value = value.astype(np.float32)
            params, state = split(value, optimizer, dtype)
            before = wide(params)
            expected = np.asarray(added(joined(params, state), change))
            params, after = step(params, state, -change)
            weights = joined(params, after)
            ideal, ideal_state = split(expected, optimizer, dtype)
            ideal_weights = joined(ideal, ideal_state)
            broken = ~np.isfinite(wide(ideal)) | ~np.isfinite(before)
            spacing = 2 * last_place(expected, places + 8, least)
            if bits == 24:
                # One of the two next to the sum, which are twice as far apart just below a power of two; the sum itself
                # where it needs no rounding; and the parameter is the one next to the weight.
                with np.errstate(invalid="ignore"):
                    right = np.abs(wide(weights) - wide(expected)) < spacing
                    right &= np.abs(wide(weights) - wide(params)) <= last_place(weights, places, least) / 2
                fits = same_bits(expected, ideal_weights)
                right &= ~fits | same_bits(weights, expected)
            else:
                right = same_bits(weights, ideal_weights) & (wide(params) == wide(ideal))
            assert right[~broken].mean() > 0.99
            # What a sum cannot reach is missed by less than the last place of float32 next to the old parameter.
            with np.errstate(invalid="ignore"):
                missed = np.abs(wide(weights) - wide(expected))
            assert (right | broken | (missed <= 2.0**-24 * np.abs(before) + (bits == 24) * spacing)).all()
            # Nothing that is broken looks whole; of two numbers next to a sum one may be so without the other.
            largest = wide(jnp.finfo(dtype).max)
            broken &= ~(np.abs(wide(expected)) < largest + last_place(largest, places, least) / 2)
            assert not np.isfinite(wide(params)[broken]).any()


def gradients_of(shape, steps, dtype=jnp.float32, seed=0):
    generator = np.random.default_rng(seed)
    drift = generator.normal(size=shape)
    noise = generator.normal(size=(steps, *shape))
    return (drift * np.cos(np.linspace(0, 6, steps))[:, None] + noise).astype(dtype)


class TestTraining:
    STEPS = 400

    @classmethod
    @functools.cache
    def in_float32(cls, rate, low=0.5):
        """A walk of float32 weights, and the gradients."""
        generator = np.random.default_rng(7)
        weights = np.float32(generator.uniform(low, 2, 256) * generator.choice([-1, 1], 256))
        grads = gradients_of((256,), cls.STEPS)
        optimizer = adamw(rate, weight_decay=0.1)
        (last, state), path = walk(optimizer)(weights, optimizer.init(weights), grads)
        return weights, grads, optimizer, np.asarray(last), state, np.asarray(path)

    @both_dtypes
    def test_32_bits_are_float32(self, dtype):
        # Not near zero, where float16 ends before float32 does.
        weights, grads, inner, last, inner_state, _ = self.in_float32(1e-3)
        optimizer = master_weights(inner, bits=32)
        (params, state), path = walk(optimizer)(*split(weights, optimizer, dtype), grads)
        assert path.dtype == dtype
        assert_identical(joined(params, state), last)
        assert_identical(state.inner_state, inner_state)
        assert not same_bits(np.asarray(params).astype(np.float32), last).all()

    def test_32_bits_are_float32_through_zero(self):
        weights, grads, inner, last, inner_state, path = self.in_float32(3e-2, low=0.0)
        assert (np.sign(path[0]) != np.sign(path[-1])).mean() > 0.05
        optimizer = master_weights(inner, bits=32)
        (params, state), _ = walk(optimizer)(*split(weights, optimizer), grads)
        assert_identical(joined(params, state), last)
        assert_identical(state.inner_state, inner_state)

    @pytest.mark.parametrize(("dtype", "place"), [(BFLOAT16, 2.0**-16), (FLOAT16, 2.0**-19)], ids=str)
    def test_24_bits_stay_close(self, dtype, place):
        weights, grads, inner, last, _, path = self.in_float32(1e-3)
        optimizer = master_weights(inner, bits=24)
        (params, state), _ = walk(optimizer)(*split(weights, optimizer, dtype), grads)
        apart = np.abs(np.asarray(joined(params, state)) - last).max()
        # Each step rounds by less than a last place of the weight, which is twice `place` times its size at most; the
        # gradients are given, and so the steps are the same but for the decay, which shrinks differences.
        # Twice 2⁻²⁴ for the roundings of float32 itself.
        assert 0 < apart <= (self.STEPS + 1) * 2 * (place + 2.0**-24) * np.abs(path).max()
        # The roundings are as often up as down, so that they add like a random walk.
        assert apart <= 5 * np.sqrt(self.STEPS) * place * np.abs(path).max()

    @both_dtypes
    def test_stochastic_rounding_follows_on_average(self, dtype):
        weights, grads, inner, _, _, path = self.in_float32(1e-3)
        optimizer = stochastic_rounding(inner)
        copies = 64
        start = np.broadcast_to(weights.astype(dtype), (copies, 256))
        grads = np.broadcast_to(grads[:, None], (self.STEPS, copies, 256))
        (params, _), _ = walk(optimizer)(start, initial(optimizer, start), grads)
        apart = wide(params).mean(0) - (path[-1] + np.asarray(start[0], np.float64) - weights)
        # Each step's rounding has at most the variance ¼ in units of the last place, 2⁻⁷ of a number in bfloat16.
        place = 2.0 ** (-7 if dtype == BFLOAT16 else -10) * np.abs(path).max(0)
        sigma = 0.5 * place * np.sqrt(self.STEPS / copies)
        # What the decay makes of the start's own rounding is below a tenth of a place.
        assert (np.abs(apart) < 5 * sigma + 0.1 * place).all()
        assert np.sqrt(np.mean((apart / sigma) ** 2)) < 1.1

    def test_plain_bfloat16_stands_still(self):
        """The control: what the wrappers are for."""
        weights, grads, inner, last, _, _ = self.in_float32(1e-3)
        start = weights.astype(jnp.bfloat16)
        (params, _), _ = walk(inner)(start, initial(inner, start), grads)
        optimizer = master_weights(inner)
        (kept, _), _ = walk(optimizer)(*split(weights, optimizer), grads)
        moved = np.abs(last - np.asarray(weights)).mean()
        assert np.abs(np.asarray(kept).astype(np.float32) - last).mean() < 0.1 * moved
        assert np.abs(np.asarray(params).astype(np.float32) - last).mean() > 0.5 * moved

        def share(optimizer, params):
            return stalled_fraction(params, optimizer.update(grads[0], optimizer.init(params), params)[0])

        wrapped = [wrap(inner) for wrap in WRAPPERS.values()]
        plain, *kept, full = jax.jit(
            lambda: [*(share(each, start) for each in (inner, *wrapped)), share(inner, weights)]
        )()
        assert plain > 0.8
        assert not np.any(kept)
        assert full == 0


def stepped(optimizer, params, grads, state=None):
    """The parameters after a step, and the state; repeated to 2¹⁶ elements, so that the tests share a program."""
    size = np.shape(params)[-1]
    repeated = [np.resize(each, 2**16) for each in (params, grads)]
    state = initial(optimizer, repeated[0]) if state is None else state
    params, state = stepper(optimizer)(repeated[0], state, repeated[1])
    return np.asarray(params)[:size], state


class TestStochasticRounding:
    @both_dtypes
    def test_unbiased(self, dtype):
        """The mean over many elements, against the weight; at all sizes, in both directions."""
        size = 2**14
        optimizer = stochastic_rounding(sgd(1.0))
        targets = [1.0003, -1.0003, 1.9999, 0.1, -0.00301, 700.3, 3e-5, -1.5e-6, 6.1e-5, 2.0**-14 * 0.9997, -0.4, 3.1]
        grads = -np.repeat(np.float32(targets), size)
        start = np.zeros(2**16, dtype)
        params = [stepped(optimizer, start, part)[0] for part in np.split(grads, 3)]
        params = wide(np.concatenate(params)).reshape(-1, size)
        targets = -grads[::size].astype(np.float64)
        low, high = params.min(1), params.max(1)
        assert (low < targets).all()
        assert (targets < high).all()
        spacing = np.spacing(np.abs(targets).astype(np.float16)) if dtype == FLOAT16 else None
        assert spacing is None or (high - low <= spacing).all()
        share = (targets - low) / (high - low)
        sigma = (high - low) * np.sqrt(share * (1 - share) / size)
        assert (np.abs(params.mean(1) - targets) < 4 * sigma).all()

    @both_dtypes
    def test_what_fits_stays(self, dtype):
        optimizer = stochastic_rounding(sgd(1.0))
        params = every_number(dtype)
        after, _ = stepped(optimizer, params, np.zeros(2**16, np.float32))
        assert same_bits(after, params)[~(np.abs(wide(params)) < 2.0**-126)].all()

    @both_dtypes
    def test_overflow(self, dtype):
        largest = float(jnp.finfo(dtype).max)
        optimizer = stochastic_rounding(sgd(1.0))
        params = np.full(1000, largest, dtype)
        within = np.full(1000, largest * (2.0**-9 if dtype == BFLOAT16 else 2.0**-12), np.float32)
        assert (stepped(optimizer, params, -within)[0] == largest).all()
        assert np.isinf(stepped(optimizer, params, -np.float32(params))[0]).all()

    def test_seeds_leaves_and_steps_have_bits_of_their_own(self):
        params = dict.fromkeys("ab", np.ones(64, BFLOAT16))
        grads = dict.fromkeys("ab", np.full(64, 2.0**-10, np.float32))
        step = stepper(stochastic_rounding(sgd(1.0)))

        def two(seed):
            state = stochastic_rounding(sgd(1.0), seed).init(params)
            first, state = step(params, state, grads)
            second, state = step(params, state, grads)
            return [np.asarray(each).tobytes() for each in (first["a"], first["b"], second["a"], second["b"])]

        assert two(0) == two(0)
        assert len({*two(0), *two(1)}) == 8

    def test_the_key_is_in_the_state(self):
        params, grads = np.ones(64, BFLOAT16), np.full(64, 2.0**-10, np.float32)
        one, other = stochastic_rounding(sgd(1.0), 1), stochastic_rounding(sgd(1.0), 2)
        state = one.init(params)
        assert isinstance(state, StochasticRoundingState)
        assert state.key.dtype == np.uint32
        assert_identical(stepper(one)(params, state, grads), stepper(other)(params, state, grads))
        keys = np.stack([one.init(params).key, other.init(params).key])
        together, _ = jax.vmap(lambda key: stepper(one)(params, state._replace(key=key), grads))(keys)
        together = np.asarray(together)
        assert_identical(together[1], np.asarray(stepper(other)(params, other.init(params), grads)[0]))
        assert not (together[0] == together[1]).all()

    def test_the_same_bits_whatever_the_configuration(self):
        params, grads = np.ones(64, BFLOAT16), np.full(64, 2.0**-10, np.float32)
        optimizer = stochastic_rounding(sgd(1.0))

        def run():
            update = jax.jit(lambda: optimizer.update(grads, optimizer.init(params), params))
            return update()

        expected = run()
        with jax.threefry_partitionable(False), jax.default_prng_impl("rbg"):
            assert_identical(run(), expected)

    def test_the_bits_are_those_of_jax(self):
        shapes = [(), (5,), (0, 3), (3, 7, 11), (300, 100)]
        key = jax.random.key(7, impl="threefry2x32")
        with jax.threefry_partitionable(True):
            expected = jax.jit(lambda: [jax.random.bits(key, shape, jnp.uint32) for shape in shapes])()
        found = jax.jit(lambda: [random_bits(jax.random.key_data(key), shape) for shape in shapes])()
        jax.tree.map(np.testing.assert_array_equal, found, expected)


class TestNotANumber:
    @every_wrapper
    @both_dtypes
    def test_stays_visible(self, wrap, dtype):
        optimizer = wrap(sgd(1.0))
        params = np.array([np.nan, np.inf, -np.inf, 1.0, 1.0, 1.0, 0.0, 2.0], dtype)
        grads = np.array([0.0, 0.0, 0.0, np.nan, np.inf, -np.inf, -np.inf, 0.5], np.float32)
        expected = np.array([np.nan, np.inf, -np.inf, np.nan, -np.inf, np.inf, np.inf, 1.5], dtype)
        after, state = stepped(optimizer, params, grads)
        assert_identical(after, expected)
        again, _ = stepped(optimizer, after, np.zeros(8, np.float32), state)
        assert_identical(again, expected)

    def test_overflow_is_that_of_a_cast(self):
        optimizer = master_weights(sgd(1.0))
        weights = np.resize(np.float32([65519.0, 65521.0, 1e6]), 2**16)
        params, state = split(weights, optimizer, FLOAT16)
        np.testing.assert_array_equal(np.asarray(params)[:3], [65504.0, np.inf, np.inf])
        params, _ = stepped(optimizer, params, np.float32([-2.0, 0.0, 0.0]), state)
        assert np.isinf(params).all()


SKIPPING = {
    "apply_if_finite": lambda inner: optax.apply_if_finite(inner, 3),
    "conditionally_mask": lambda inner: optax.conditionally_mask(
        inner, lambda step, finite: finite, forward_extra_args=True
    ),
    "skip_not_finite": lambda inner: optax.MultiSteps(
        inner, 1, should_skip_update_fn=optax.skip_not_finite
    ).gradient_transformation(),
}


class TestConditional:
    """optax's wrappers that leave out steps: the order that works, and the one that is refused."""

    @staticmethod
    def descended(optimizer, *, spoilt):
        """The distances from a minimum at 0.3, along a training with a gradient of NaN in step 5 if it is `spoilt`.

        With a list of whether it is, all such trainings.
        """

        def step(carry, loss_scale):
            params, state = carry
            grads = jax.tree.map(lambda leaf: ((leaf - 0.3) * loss_scale).astype(BFLOAT16), params)
            finite = jnp.isfinite(loss_scale)
            extra = {"finite": finite} if isinstance(optimizer, optax.GradientTransformationExtraArgs) else {}
            updates, state = optimizer.update(grads, state, params, **extra)
            params = optax.apply_updates(params, updates)
            return (params, state), params["weight"]

        @jax.jit
        def run(loss_scales):
            params = {"weight": jnp.array([1.0, -0.5, 0.0], jnp.bfloat16)}
            (_, state), path = jax.lax.scan(step, (params, optimizer.init(params)), loss_scales)
            return path, state

        results = []
        for each in np.atleast_1d(spoilt):
            path, state = run(np.where(each & (np.arange(60) == 5), np.float32(np.nan), np.float32(1)))
            results.append((np.float32(path) - np.float32(0.3), state))
        return results if isinstance(spoilt, list) else results[0]

    @each_kind
    @pytest.mark.parametrize("around", SKIPPING.values(), ids=SKIPPING)
    def test_within_it_recovers(self, wrap, around):
        (path, state), (plain, _) = self.descended(wrap(around(adam(0.05))), spoilt=[True, False])
        assert np.isfinite(path).all()
        np.testing.assert_array_equal(path[5], path[4])
        assert (np.abs(path[6]) < np.abs(path[5])).all()
        assert np.abs(path[-1]).max() < 0.05
        # The other steps are those of a training without the one that was left out.
        if wrap is master_weights:
            np.testing.assert_allclose(np.delete(path, 5, 0), plain[:-1], rtol=0, atol=2.0**-7)
        if around is SKIPPING["apply_if_finite"]:
            assert state.inner_state.total_notfinite == 1

    def test_conditionally_transform_within(self):
        often = optax.conditionally_transform(optax.clip(0.1), lambda step: step % 2 == 0)
        path, _ = self.descended(master_weights(optax.chain(often, adam(0.05))), spoilt=False)
        assert np.abs(path[-1]).max() < 0.05

    @each_kind
    @pytest.mark.parametrize("name", ["apply_if_finite", "conditionally_mask", "conditionally_transform"])
    def test_around_it_is_refused_by_name(self, wrap, name):
        around = {
            "apply_if_finite": lambda inner: optax.apply_if_finite(inner, 3),
            "conditionally_mask": lambda inner: optax.conditionally_mask(inner, lambda step: step > 3),
            "conditionally_transform": lambda inner: optax.conditionally_transform(inner, lambda step: step > 3),
        }[name]
        optimizer = around(optax.chain(optax.clip(1.0), wrap(adam(0.1))))
        params = start()
        state = initial(optimizer, params)
        order = rf"optax\.{name} cannot be around {wrap.__name__}, .* {wrap.__name__}\(optax\.{name}\(\.\.\.\)\)"
        for update in (optimizer.update, functools.partial(jax.eval_shape, optimizer.update)):
            with pytest.raises(TypeError, match=order):
                update(params, state, params)
        # With gradients in float32 the dtypes are the same.
        full = start(jnp.float32)
        updates, _ = jax.eval_shape(optimizer.update, full, state, params)
        assert jax.tree.map(lambda leaf: leaf.dtype, updates) == jax.tree.map(lambda leaf: leaf.dtype, full)

    @each_kind
    def test_skipped_around(self, wrap):
        """MultiSteps takes the updates as they are, in float32."""
        around = SKIPPING["skip_not_finite"]
        path, _ = self.descended(around(wrap(adam(0.05))), spoilt=True)
        assert np.isfinite(path).all()
        np.testing.assert_array_equal(path[5], path[4])
        assert np.abs(path[-1]).max() < 0.05

    def test_observed_around_and_within(self):
        """The figures of each step, with gradients that gather for two."""
        for optimizer in (
            optax.MultiSteps(observe(master_weights(adam(0.1))), 2).gradient_transformation(),
            master_weights(optax.MultiSteps(observe(adam(0.1)), 2).gradient_transformation()),
        ):
            path, _ = self.descended(optimizer, spoilt=False)
            assert np.abs(path[-1]).max() < 0.15

    @each_kind
    def test_nnx(self, wrap):
        @nnx.jit
        def make():
            model = nnx.Linear(3, 1, rngs=nnx.Rngs(0), param_dtype=jnp.bfloat16)
            return model, nnx.Optimizer(model, wrap(optax.apply_if_finite(adam(0.05), 3)), wrt=nnx.Param)

        model, holder = make()
        inputs = np.float32(np.random.default_rng(0).normal(size=(16, 3)))
        targets = inputs @ np.float32([[1.0], [-2.0], [0.5]])

        @nnx.jit
        def step(model, holder, scale):
            loss, grads = nnx.value_and_grad(lambda model: jnp.mean((model(inputs) - targets) ** 2))(model)
            holder.update(model, jax.tree.map(lambda grad: (grad * scale).astype(grad.dtype), grads))
            return loss

        losses = [step(model, holder, jnp.nan if i == 3 else 1.0) for i in range(80)]
        assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
        assert losses[4] == losses[3]
        assert losses[-1] < 0.01 * losses[0]


def start(dtype=jnp.bfloat16):
    return {"weight": np.array([0.5, -0.25, 0.7]).astype(dtype), "bias": {"value": np.zeros([], dtype)}}


def some_gradients(steps=20, dtype=jnp.bfloat16):
    return {
        "weight": gradients_of((3,), steps, dtype),
        "bias": {"value": gradients_of((1,), steps, dtype, seed=1)[:, 0]},
    }


class TestClients:
    @staticmethod
    def in_float32(optimizer, steps=20):
        params = start(jnp.float32)
        grads = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), some_gradients(steps))
        return walk(optimizer, False)(params, initial(optimizer, params), grads)[0]

    @pytest.mark.parametrize(
        ("place", "tolerance"),
        [
            (lambda inner: optax.chain(optax.clip(1.0), inner), 1e-6),
            (lambda inner: optax.named_chain(("clip", optax.clip(1.0)), ("rest", inner)), 1e-6),
            # Means of gradients in bfloat16 are not those in float32.
            (lambda inner: optax.MultiSteps(inner, 2).gradient_transformation(), 4e-3),
            (lambda inner: optax.masked(inner, {"weight": True, "bias": True}), 1e-6),
            (lambda inner: optax.partition({"a": inner, "b": inner}, {"weight": "a", "bias": "b"}), 1e-6),
            (lambda inner: optax.inject_hyperparams(lambda scale: optax.chain(optax.scale(scale), inner))(0.5), 1e-6),
        ],
        ids=["chain", "named_chain", "MultiSteps", "masked", "partition", "inject_hyperparams"],
    )
    def test_within(self, place, tolerance):
        """Placed in another transformation it trains as the optimizer within would there, in float32."""
        within = place(master_weights(adam(0.01), bits=32))
        params, state = split(start(jnp.float32), within)
        assert jax.tree.structure(state) == jax.tree.structure(jax.eval_shape(within.init, params))
        (params, state), _ = walk(within, False)(params, state, some_gradients())
        weights, params = jax.device_get((joined(params, state), params))
        expected, _ = self.in_float32(place(adam(0.01)))
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=tolerance), weights, expected)
        assert any(jax.tree.leaves(jax.tree.map(lambda w, p: (w != p).any(), weights, params)))
        for weight, param in zip(jax.tree.leaves(weights), jax.tree.leaves(params), strict=True):
            assert param.dtype == jnp.bfloat16
            assert (np.abs(weight - param) <= np.abs(weight) * 2.0**-8).all()

    @pytest.mark.parametrize(
        "around",
        [
            lambda inner: optax.chain(optax.clip_by_global_norm(1.0), inner),
            lambda inner: optax.MultiSteps(inner, 2).gradient_transformation(),
            lambda inner: optax.apply_if_finite(inner, 5),
            lambda inner: optax.inject_hyperparams(adam)(0.01) if inner else inner,
            lambda inner: optax.masked(inner, {"weight": True, "bias": False}),
        ],
        ids=["chain", "MultiSteps", "apply_if_finite", "inject_hyperparams", "masked"],
    )
    def test_around(self, around):
        """An optimizer within it sees float32, and nothing else."""
        inner = around(adam(0.01))
        optimizer = master_weights(inner, bits=32)
        params, state = split(start(jnp.float32), optimizer)
        assert jax.tree.structure(state.inner_state) == jax.tree.structure(
            jax.eval_shape(inner.init, start(jnp.float32))
        )
        (params, state), _ = walk(optimizer, False)(params, state, some_gradients())
        expected, inner_state = self.in_float32(inner)
        # The compiler may contract other products and sums where the gradients are cast in the same loop.
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7),
            (joined(params, state), state.inner_state),
            (expected, inner_state),
        )

    @each_kind
    def test_multi_steps_in_between(self, wrap):
        optimizer = optax.MultiSteps(wrap(sgd(0.1)), 4)
        params = {"a": np.array([1.0, -0.0, 0.0], BFLOAT16)}
        state, first = initial(optimizer, params), params
        step = jax.jit(step_of(optimizer))
        for _ in range(3):
            params, state = step(params, state, {"a": np.ones(3, BFLOAT16)})
            assert_identical(jax.device_get(params), first)
        params, state = step(params, state, {"a": np.ones(3, BFLOAT16)})
        np.testing.assert_allclose(np.float32(params["a"]), [0.9, -0.1, -0.1], rtol=2.0**-7)

    @each_kind
    def test_train_state(self, wrap):
        params = start()
        state = jax.jit(lambda: TrainState.create(apply_fn=None, params=params, tx=wrap(adam(0.01))))()
        one = jax.jit(lambda state, grads: state.apply_gradients(grads=grads))
        grads = some_gradients()
        for i in range(3):
            state = one(state, jax.tree.map(operator.itemgetter(i), grads))
        assert state.step == 3
        assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(state.params))
        assert not (np.asarray(state.params["weight"]) == params["weight"]).any()

    @each_kind
    def test_vmap(self, wrap):
        optimizer = wrap(adam(0.01))
        batch = jax.tree.map(lambda leaf: np.stack([leaf, leaf + leaf.dtype.type(1)]), start())
        grads = jax.tree.map(lambda leaf: leaf[:2], some_gradients())
        state = jax.jit(jax.vmap(optimizer.init))(batch)
        updates, after = jax.jit(jax.vmap(optimizer.update))(grads, state, batch)
        state, updates, after = jax.device_get((state, updates, after))
        for i in range(2):
            row = jax.tree.map(operator.itemgetter(i), (grads, state, batch))
            alone = jax.device_get(jax.jit(optimizer.update)(*row))
            assert_identical(jax.tree.map(operator.itemgetter(i), (updates, after)), alone)

    @each_kind
    def test_a_batch_of_optimizers_in_one_trace(self, wrap):
        traces = []

        @jax.jit
        def update(optimizer, grads, state, params):
            traces.append(None)
            return optimizer.update(grads, state, params)[0]

        params, grads = start(), jax.tree.map(operator.itemgetter(0), some_gradients())
        state = initial(wrap(adam(0.1)), params)
        results = [update(wrap(adam(rate)), grads, state, params) for rate in (0.01, 0.1)]
        assert len(traces) == 1
        assert (results[0]["weight"] != results[1]["weight"]).all()

    @each_kind
    def test_donated(self, wrap):
        optimizer = wrap(adam(0.01))
        grads = {"a": np.ones((32, 32), BFLOAT16)}
        params, state = jax.device_put(grads), initial(optimizer, grads)
        step = jax.jit(step_of(optimizer), donate_argnums=(0, 1))
        compiled = step.lower(params, state, grads).compile()
        sizes = sum(leaf.nbytes for leaf in jax.tree.leaves((params, state)))
        assert compiled.memory_analysis().alias_size_in_bytes == sizes
        expected = stepper(optimizer)(params, state, grads)
        assert_identical(compiled(params, state, grads), expected)

    @staticmethod
    @functools.cache
    def bytes_of_a_step(optimizer):
        """Temporaries, and what is read and written; for each element."""
        params = jax.ShapeDtypeStruct((256, 1024), jnp.bfloat16)
        state = jax.eval_shape(optimizer.init, params)
        step = jax.jit(step_of(optimizer), donate_argnums=(0, 1))
        program = step.lower(params, state, params).compile(FUSED_AS_FOR_USERS)
        counts = program.memory_analysis().temp_size_in_bytes, program.cost_analysis()["bytes accessed"]
        return np.array(counts) / params.size

    @pytest.mark.parametrize(
        ("name", "temporaries", "accessed"), [("master_24", 4, 24), ("master_32", 4, 26), ("stochastic", 0, 0)]
    )
    def test_nothing_full_size_is_kept_but_the_sum(self, name, temporaries, accessed):
        """In bytes an element: the sum takes 4, and both parts of a weight are made of it; random bits take none."""
        bare, wrapped = self.bytes_of_a_step(adamw(0.1)), self.bytes_of_a_step(WRAPPERS[name](adamw(0.1)))
        assert wrapped[0] <= temporaries + 0.1
        # The correction is read and written, and the sum is written and read by each of two loops. The loop that never
        # turns counts as one.
        assert wrapped[1] - bare[1] <= accessed + 0.5

    @each_kind
    def test_learning_rate_is_that_of_the_optimizer_within(self, wrap):
        optimizer = wrap(adam(optax.linear_schedule(1.0, 0.0, 4)))
        params = start()
        state = jax.jit(lambda: optimizer.update(params, optimizer.init(params), params)[1])()
        assert optimizer.current_learning_rate(state) == 0.75

    @every_wrapper
    def test_goes_on_after_a_restore(self, wrap):
        optimizer = wrap(adamw(0.01))
        grads = some_gradients(40)
        first, second = (jax.tree.map(lambda leaf, part=part: leaf[part], grads) for part in (slice(20), slice(20, 40)))
        middle, _ = walk(optimizer)(start(), initial(optimizer, start()), first)
        expected, _ = walk(optimizer)(*middle, second)
        blank = jax.tree.map(np.zeros_like, middle)
        restored = serialization.from_bytes(blank, serialization.to_bytes(middle))
        assert_identical(jax.tree.map(np.asarray, restored), jax.device_get(middle))
        assert_identical(walk(optimizer)(*restored, second)[0], expected)
        # Steps one by one are those of a loop.
        params, state = restored
        step = jax.jit(step_of(optimizer))
        for i in range(20):
            params, state = step(params, state, jax.tree.map(operator.itemgetter(i), second))
        jax.tree.map(
            lambda one, other: np.testing.assert_allclose(np.float32(one), np.float32(other), rtol=2.0**-7),
            params,
            expected[0],
        )


class TestTrees:
    @each_kind
    def test_other_dtypes_go_by(self, wrap):
        inner = optax.scale(-0.1)
        optimizer = wrap(inner)
        params = {
            "low": np.ones(4, BFLOAT16),
            "half": np.ones((2, 2), np.float16),
            "full": np.ones(3, np.float32),
            "complex": np.ones(2, np.complex64),
            "none": None,
            "masked": optax.MaskedNode(),
            "empty": np.zeros((0, 3), BFLOAT16),
        }
        grads = jax.tree.map(lambda leaf: leaf * leaf.dtype.type(0.3), params)

        @jax.jit
        def run(params, grads):
            state = optimizer.init(params)
            updates, after = optimizer.update(grads, state, params)
            plain, _ = inner.update(grads, inner.init(params), params)
            return state, updates, after, plain, optax.apply_updates(params, updates)

        state, updates, after, plain, moved = run(params, grads)
        assert jax.tree.structure(after) == jax.tree.structure(state)
        assert jax.tree.map(lambda leaf: leaf.dtype, after) == jax.tree.map(lambda leaf: leaf.dtype, state)
        for name in ("full", "complex", "none", "masked"):
            assert_identical(updates[name], plain[name])
        assert updates["low"].dtype == updates["half"].dtype == updates["empty"].dtype == jnp.float32
        assert moved["low"].dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float32(moved["half"]), 0.97, rtol=2.0**-10)

    @pytest.mark.usefixtures("x64")
    @each_kind
    def test_float64(self, wrap):
        params = {"low": np.ones(4, BFLOAT16), "wide": np.ones(3)}
        optimizer = wrap(adam(0.1))
        updates, state = jax.eval_shape(lambda: optimizer.update(params, optimizer.init(params), params))
        assert updates["wide"].dtype == jnp.float64
        assert updates["low"].dtype == jnp.float32
        assert state.inner_state.mu["low"].dtype == jnp.float32

    def test_what_a_state_holds(self):
        params = {"low": np.ones((4, 2), BFLOAT16), "full": np.ones(3, np.float32)}
        for bits, dtype in ((24, jnp.int8), (32, jnp.int16)):
            state = jax.eval_shape(master_weights(adam(0.1), bits=bits).init, params)
            assert isinstance(state, MasterWeightsState)
            assert state.correction["low"].dtype == dtype
            assert state.correction["low"].shape == (4, 2)
            assert state.correction["full"] == optax.MaskedNode()
            assert state.inner_state.mu["low"].dtype == jnp.float32
        assert master_weights(adam(0.1)) == master_weights(adam(0.1), bits=24)
        assert repr(master_weights(adam(0.1), bits=32)) == "master_weights(inner=adam(learning_rate=0.1), bits=32)"

    def test_map_params(self):
        optimizer = master_weights(adam(0.1))
        state = initial(optimizer, start())
        mapped = optax.tree.map_params(
            optimizer, lambda leaf, param: leaf + jnp.zeros_like(param, leaf.dtype), state, start()
        )
        assert_identical(mapped, state)

    def test_the_optimizer_within_starts_from_the_weights(self):
        weights = start(jnp.float32)
        optimizer = optax.chain(optax.clip(1.0), master_weights(schedule_free_adamw(0.1)))
        _, state = split(weights, optimizer)
        assert_identical(state[1].inner_state.z, weights)
        assert not same_bits(weights["weight"], np.float32(weights["weight"].astype(jnp.bfloat16))).all()

    def test_with_master_params_leaves_what_it_cannot_keep(self):
        weights = start(jnp.float32) | {"half": np.ones(2, np.float16), "steps": np.int32(3)}
        mask = {"weight": True, "bias": False, "half": True, "steps": False}
        params, state = split(weights, optax.masked(master_weights(adam(0.1), bits=32), mask))
        assert jax.tree.map(lambda leaf: leaf.dtype.name, params) == {
            "weight": "bfloat16",
            "bias": {"value": "float32"},
            "half": "float16",
            "steps": "int32",
        }
        assert_identical(joined(params, state), weights | {"half": np.ones(2, np.float32)})

    def test_within_jit(self):
        optimizer = master_weights(adam(0.1))
        one = with_master_params(start(jnp.float32), optimizer)
        assert_identical(split(start(jnp.float32), optimizer), one)


stalled = jax.jit(stalled_fraction)


class TestStalledFraction:
    def test_against_numpy(self):
        generator = np.random.default_rng(4)
        for dtype in (BFLOAT16, FLOAT16, np.dtype(np.float32)):
            params = generator.normal(size=5000).astype(dtype)
            updates = (generator.normal(size=5000) * 10 ** generator.uniform(-9, -1, 5000)).astype(np.float32)
            updates[::3] = 0
            after = (params.astype(np.float32) + updates).astype(dtype)
            expected = np.mean((after == params)[updates != 0])
            assert 0.05 < expected < 0.95
            np.testing.assert_allclose(stalled(params, updates), expected, rtol=1e-6)
        np.testing.assert_allclose(stalled_fraction(params, updates), expected, rtol=1e-6)  # not within jit

    def test_of_one_element_and_of_none(self):
        params = jnp.ones(2, jnp.bfloat16)
        assert stalled(params, jnp.float32([1e-6, 0])) == 1
        assert stalled(params, jnp.zeros(2)) == 0

    def test_within_the_program_that_made_the_parameters(self):
        """The compiler may not take the parameters for what they were before they were rounded."""

        @jax.jit
        def share(values, updates):
            return stalled_fraction(values.astype(jnp.bfloat16), updates)

        values = np.linspace(1, 2, 1000, dtype=np.float32)
        updates = np.full(1000, 1e-4, np.float32)
        assert share(values, updates) == stalled(values.astype(jnp.bfloat16), updates) == 1

    def test_every_number_and_one_place(self):
        for dtype, places in ((BFLOAT16, 7), (FLOAT16, 10)):
            params = every_number(dtype)
            # Just below a power of two the places are finer, and there is none beyond the largest number.
            params = params[np.isfinite(wide(params)) & (np.abs(wide(params)) >= 2.0**-14)]
            params = params[np.abs(np.frexp(wide(params))[0]) != 0.5]
            place = last_place(params, places, -126).astype(np.float32)
            assert stalled(params, place * np.float32(0.499)) == 1
            assert stalled(params, place * np.float32(0.501)) == 0

    def test_trees_and_special_values(self):
        params = {"a": np.ones(2, np.float32), "b": None, "c": [np.complex64(1), np.zeros((0, 2), np.float32)]}
        updates = {"a": np.float32([1e-9, 1.0]), "b": None, "c": [np.complex64(1e-9j), np.zeros((0, 2), np.float32)]}
        share = stalled(params, updates)
        assert share.dtype == jnp.float32
        assert share.shape == ()
        np.testing.assert_allclose(share, 1 / 3, rtol=1e-6)
        assert stalled(params, jax.tree.map(np.zeros_like, params)) == 0
        assert stalled_fraction({}, {}) == 0
        one = np.ones(2, np.float32)
        assert stalled(one, updates["a"]) == 0.5
        assert stalled(one, np.float32([np.nan, np.nan])) == 0
        assert stalled(np.array([0.0, -0.0], BFLOAT16), np.float32([1e-42, -1e-42])) in (0, 1)
        assert stalled(np.ones(2, BFLOAT16), np.float32([1e-4, 1e-4])) == 1

    def test_errors(self):
        with pytest.raises(ValueError, match="updates must have the tree of params"):
            stalled_fraction({"a": 1.0}, {"b": 1.0})
        with pytest.raises(ValueError, match=r"leaf \['a'\]: updates must have shape \(2,\), got \(3,\)"):
            stalled_fraction({"a": jnp.ones(2)}, {"a": jnp.ones(3)})


class TestErrors:
    @pytest.mark.parametrize("bits", [0, 16, 23, 64])
    def test_bits(self, bits):
        with pytest.raises(ValueError, match=r"master_weights: bits must be .*, got"):
            master_weights(adam(0.1), bits=bits)

    def test_of_the_factories(self):
        with pytest.raises(TypeError, match="bits must be a whole number"):
            master_weights(adam(0.1), bits="24")
        with pytest.raises(ValueError, match="stochastic_rounding: seed must be a whole number ≥ 0"):
            stochastic_rounding(adam(0.1), seed=-1)
        for wrap in (master_weights, stochastic_rounding):
            with pytest.raises(TypeError, match=f"{wrap.__name__}: inner must be an optimizer"):
                wrap(0.1)

    @each_kind
    def test_of_update(self, wrap):
        optimizer = wrap(adam(0.1))
        params = start()
        state = initial(optimizer, params)
        with pytest.raises(ValueError, match=r"needs the parameters: call update\(gradients, state, params\)"):
            optimizer.update(params, state)
        with pytest.raises(ValueError, match=r"the gradients have no leaf \['weight'\]"):
            optimizer.update({"bias": params["bias"]}, state, params)
        with pytest.raises(ValueError, match=r"leaf \['weight'\]: for a gradient of shape \(2,\) the parameter must"):
            optimizer.update(params | {"weight": jnp.ones(2)}, state, params)
        with pytest.raises(TypeError, match=r"leaf \['weight'\] must have a floating-point dtype, got int32"):
            optimizer.update(params | {"weight": jnp.ones(3, int)}, state, params)
        with pytest.raises(TypeError, match="state must have inner_state"):
            optimizer.update(params, (), params)

    def test_of_parameters_of_another_dtype(self):
        optimizer = master_weights(adam(0.1))
        params = start()
        full = start(jnp.float32)
        with pytest.raises(
            ValueError, match=r"leaf \['bias'\]\['value'\]: init was given .* update one of dtype float32"
        ):
            optimizer.update(params, optimizer.init(params), full)
        with pytest.raises(
            ValueError, match=r"leaf \['bias'\]\['value'\]: for a parameter of dtype bfloat16 state\.\w+ must"
        ):
            optimizer.update(params, optimizer.init(full), params)

    def test_of_master_params(self):
        params = start()
        with pytest.raises(ValueError, match="state must be or hold the state of master_weights, got AdamState"):
            master_params(params, adam(0.1).init(params))
        twice = optax.chain(master_weights(sgd(0.1)), master_weights(sgd(0.1)))
        with pytest.raises(ValueError, match=r"leaf \['bias'\]\['value'\]: state holds several corrections"):
            master_params(params, twice.init(params))
        state = master_weights(sgd(0.1)).init(params)
        with pytest.raises(ValueError, match="params must have the tree of the state's correction"):
            master_params({"weight": params["weight"]}, state)
        with pytest.raises(ValueError, match=r"leaf \['weight'\]: .* must have dtype int8 and shape \(5,\)"):
            master_params(params | {"weight": jnp.ones(5, jnp.bfloat16)}, state)

    def test_of_with_master_params(self):
        with pytest.raises(ValueError, match="dtype must be bfloat16 or float16, got float32"):
            with_master_params(start(), master_weights(sgd(0.1)), jnp.float32)
        with pytest.raises(TypeError, match="optimizer must be an optimizer"):
            with_master_params(start(), "adam")
        with pytest.raises(ValueError, match="must be or hold the state of master_weights"):
            with_master_params(start(), adam(0.1))


@pytest.mark.devices
def test_on_eight_devices():
    assert len(jax.devices()) == 8
    specs = {"rows": ((16, 8), PartitionSpec("x", None)), "both": ((16, 8), PartitionSpec("x", "y"))}
    auto, explicit = (
        jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2) for kind in (AxisType.Auto, AxisType.Explicit)
    )
    generator = np.random.default_rng(0)
    params, *gradients = (
        {key: generator.standard_normal(shape).astype(BFLOAT16) for key, (shape, _) in specs.items()} for _ in range(4)
    )

    def put(tree, mesh=auto):
        return {key: jax.device_put(leaf, NamedSharding(mesh, specs[key][1])) for key, leaf in tree.items()}

    def check_shardings(tree):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            key = next((each.key for each in path if isinstance(each, jax.tree_util.DictKey)), None)
            if key is not None:
                own = leaf.sharding.spec
                assert (*own, *[None] * (2 - len(own))) == tuple(specs[key][1]), (path, leaf.sharding)

    for name, wrap in WRAPPERS.items():
        optimizer = wrap(adamw(0.01))
        step = stepper(optimizer)
        alone, together = (params, initial(optimizer, params)), (put(params), optimizer.init(put(params)))
        check_shardings(together)
        compiled = step.lower(*together, put(gradients[0])).compile()
        assert not set(COLLECTIVES.split("|")) & set(compiled.as_text().replace("(", " ").split()), name
        for grads in gradients:
            alone, together = step(*alone, grads), compiled(*together, put(grads))
            check_shardings(together)
            assert_identical(jax.device_get(together), jax.device_get(alone))
        with jax.set_mesh(explicit):
            own = put(params, explicit)
            state = jax.eval_shape(optimizer.init, own)
            updates, after = jax.eval_shape(optimizer.update, own, state, own)
            check_shardings((state, updates, after))
