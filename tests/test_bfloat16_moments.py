"""Moments in 16 bits: they move when they should, their update is nearly exact, and a step is a pass for each array."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import AS_USERS_DO, FUSED_AS_FOR_USERS
from jitted import initial
from test_moments import OPTIONS, WITH_MOMENTS, large_copies, large_loops

import jaxopt_adam
from jaxopt_adam import adam, adamw, grid, lion, load_moments, rmsprop, schedule_free_adamw, sgd
from jaxopt_adam.storage._dense import dithered, undithered
from jaxopt_adam.storage._pairs import packed, unpacked

SHAPE = (64, 128)
DECAYING = [
    name for name in WITH_MOMENTS if "weight_decay" in getattr(jaxopt_adam, name)(learning_rate=0.1).hyperparameters
]


# Moments as they come back from their storage: two in one number, and one alone.
through_pairs = jax.jit(lambda *args: unpacked(packed(*args)))
through_dither = jax.jit(
    lambda value, dtype, threshold: undithered(dithered(value, dtype, threshold)), static_argnums=1
)


def thresholds(generator, shape):
    return generator.integers(0, 2**32, shape, dtype=np.uint32)


class TestPairs:
    """Both moments in one number."""

    def drawn(self):
        generator = np.random.default_rng(0)
        nu = np.exp(generator.uniform(-80, 80, 100_000)).astype(np.float32)
        ratio = np.exp(generator.uniform(-25, 7.2, nu.shape)) * generator.choice([-1, 1], nu.shape)
        return generator, (np.sqrt(nu) * ratio).astype(np.float32), nu

    def test_each_is_within_a_spacing_and_right_on_average(self):
        generator, mu, nu = self.drawn()
        after = through_pairs(mu, nu, thresholds(generator, mu.shape), thresholds(generator, mu.shape))
        errors = [np.asarray(each, np.float64) - before for each, before in zip(after, (mu, nu), strict=True)]
        spacings = 2.0**-8 * (np.abs(mu) + 2.0**-20 * np.sqrt(nu)), 2.0**-10 * nu
        for error, spacing in zip(errors, spacings, strict=True):
            share = error / spacing
            assert np.abs(share).max() <= 1
            assert abs(share.mean()) < 5 * share.std() / len(mu) ** 0.5

    def test_what_is_stored_stays_as_it_is(self):
        generator, mu, nu = self.drawn()
        stored = through_pairs(mu, nu, thresholds(generator, mu.shape), thresholds(generator, mu.shape))
        again = through_pairs(*stored, thresholds(generator, mu.shape), thresholds(generator, mu.shape))
        jax.tree.map(np.testing.assert_array_equal, again, stored)

    @pytest.mark.parametrize("share", [0, 2**31, 2**32 - 1])
    def test_of_what_is_special(self, share):
        cases = np.float32(
            [
                (0.0, 0.0),
                (0.0, 1.0),
                (-0.0, 1.0),
                (1e-24, 0.0),  # its square is zero
                (-1e-20, 0.0),
                (0.0, 3.3e38),
                (0.0, 1e-30),
                (1.0, np.inf),
                (1.0, np.nan),
                (np.nan, 1.0),
                (np.inf, 1.0),
                (-np.inf, np.inf),
            ]
        )
        mu, nu = map(np.asarray, through_pairs(cases[:, 0], cases[:, 1], np.uint32(share), np.uint32(share)))
        np.testing.assert_allclose(mu[:5], cases[:5, 0], rtol=2.0**-8)
        np.testing.assert_array_equal(mu[5:7], 0)
        np.testing.assert_allclose(nu[:7], cases[:7, 1], rtol=2.0**-10)
        assert np.isnan(nu[7:]).all()

    def test_a_nan_of_any_bits(self):
        bits = np.uint32([0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0xFFC00000])
        for mu, nu in (
            (bits.view(np.float32), np.ones(4, np.float32)),
            (np.ones(4, np.float32), bits.view(np.float32)),
        ):
            assert np.isnan(through_pairs(mu, nu, np.uint32(2**32 - 1), np.uint32(2**32 - 1))[1]).all()


class TestDither:
    @pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, np.uint16], ids=lambda dtype: np.dtype(dtype).name)
    def test_is_within_a_spacing_and_right_on_average(self, dtype):
        generator = np.random.default_rng(1)
        value = generator.uniform(0.25, 4, 100_000).astype(np.float32)
        dtype = np.dtype(dtype)
        digits = {"bfloat16": 8, "float16": 11, "uint16": 9}[dtype.name]
        error = np.asarray(through_dither(value, dtype, thresholds(generator, value.shape)), np.float64) / value - 1
        assert np.abs(error).max() <= 2.0 ** (1 - digits)
        assert abs(error.mean()) < 5 * error.std() / len(value) ** 0.5
        exact = through_dither(value, dtype, np.uint32(0))
        np.testing.assert_array_equal(through_dither(exact, dtype, np.uint32(2**32 - 1)), exact)

    @pytest.mark.parametrize("dtype", [jnp.bfloat16, np.uint16], ids=lambda dtype: np.dtype(dtype).name)
    def test_the_largest_float32_stays_finite(self, dtype):
        largest = np.finfo(np.float32).max
        after = np.asarray(through_dither(np.full(6, largest), np.dtype(dtype), np.uint32(2**32 - 1)))
        assert (largest * (1 - 2.0**-7) < after).all()
        assert np.isfinite(after).all()

    @pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=lambda dtype: np.dtype(dtype).name)
    def test_what_is_finite_stays_so_and_what_is_not_does_not(self, dtype):
        largest = np.float32(jnp.finfo(dtype).max)
        value = np.float32([largest, -largest, np.inf, -np.inf, np.nan, 0.0])
        after = through_dither(value, np.dtype(dtype), np.uint32(2**32 - 1))
        np.testing.assert_array_equal(after, value)


def test_the_update_stays_nearly_exact():
    """Gradients of size 1 for 500 steps, and then of a hundredth, for two β₂.

    Rounded to the nearest, ν would forget nothing, and at the last step the update would be a fifth of this.
    """
    optimizers, _ = grid(lambda b2: adam(1.0, b2=b2, moments="bfloat16"), b2=[0.999, 0.9999])
    # To draw the noise in each step would take longer than the step.
    generator, size = np.random.default_rng(0), np.prod(SHAPE)
    noise = np.float32(generator.normal(size=2**19))
    parts = generator.integers(0, noise.size - size, 3500)

    @functools.partial(jax.jit, compiler_options=AS_USERS_DO)
    def run(optimizers, noise, parts):
        params = jnp.zeros(SHAPE)

        def step(states, inputs):
            count, part = inputs
            gradient = jnp.where(count < 500, 1.0, 0.01) * jax.lax.dynamic_slice(noise, (part,), (size,)).reshape(SHAPE)

            def one(optimizer, states):
                pair = optimizer, optimizer.replace(moments="float32")
                steps = [each.update(gradient, state) for each, state in zip(pair, states, strict=True)]
                (update, state), (exact, exact_state) = steps
                nu = load_moments(state, optimizer, params).nu
                error = jnp.linalg.norm(update - exact) / jnp.linalg.norm(exact)
                return (state, exact_state), (error, jnp.mean(jnp.log(nu / exact_state.nu)))

            return jax.vmap(one)(optimizers, states)

        first = jax.vmap(lambda each: (each.init(params), each.replace(moments="float32").init(params)))(optimizers)
        return jax.lax.scan(step, first, (jnp.arange(3500), parts))[1]

    error, bias = map(np.asarray, run(optimizers, noise, parts))
    assert error[100:].max() <= 0.01
    assert error[100:].mean() <= 0.004
    assert np.abs(bias[100:]).max() < 0.002


SCALES = np.float32([1e-12, 1e-4, 1.0, 1e6, 1e12])


@pytest.mark.parametrize("name", WITH_MOMENTS)
def test_every_rule_is_near_to_float32_whatever_the_size_of_its_gradients(name):
    """Also where they are a hundred-millionth from one step to the next, which leaves m next to nothing beside √ν."""
    generator = np.random.default_rng(2)
    gradients = generator.standard_normal((20, *SHAPE)).astype(np.float32) + 1
    drop = np.where(np.arange(20) < 10, 1, np.float32(1e-8))[:, None, None]
    made = getattr(jaxopt_adam, name)(learning_rate=0.1, moments="bfloat16", **OPTIONS.get(name, {}))
    if "weight_decay" in made.hyperparameters:
        made = made.replace(weight_decay=0.0)
    exact = made.replace(moments="float32")

    @jax.jit
    @jax.vmap
    def updates_at(gradients):
        params = jnp.ones(SHAPE)

        def step(states, gradient):
            pairs = [each.update(gradient, state, params) for each, state in zip((exact, made), states, strict=True)]
            return tuple(state for _, state in pairs), tuple(update for update, _ in pairs)

        return jax.lax.scan(step, (exact.init(params), made.init(params)), gradients)[1]

    rows = np.concatenate([SCALES[:, None, None, None] * gradients, (drop * gradients)[None]])
    right, updates = updates_at(rows)
    size = functools.partial(np.linalg.norm, axis=(2, 3))
    error = size(updates - right)[:, 1:] / size(right)[:, 1:]  # adopt's first update is zero
    assert error.max() <= (0.35 if name == "lion" else 0.03), error.max(axis=1)


@pytest.mark.parametrize(
    ("factory", "name", "options"),
    [
        (adam, "mu", {"b1": 0.9999, "mu_dtype": "bfloat16"}),
        (adam, "mu", {"b1": 0.9999, "mu_dtype": "float16"}),
        (adam, "mu", {"b1": 0.9999, "moments": {"mu": "bfloat16"}}),
        (adam, "nu", {"b2": 0.9999, "moments": {"nu": "bfloat16"}}),
        (adam, "nu", {"b2": 0.9999, "moments": {"mu": "int8", "nu": "bfloat16"}}),
        (lion, "mu", {"b2": 0.9999, "moments": "bfloat16"}),
        (rmsprop, "nu", {"decay": 0.9999, "moments": "bfloat16"}),
        (sgd, "trace", {"momentum": 0.9999, "accumulator_dtype": "bfloat16"}),
    ],
    ids=lambda value: (
        "-".join(map(str, value.values())) if isinstance(value, dict) else getattr(value, "__name__", value)
    ),
)
def test_an_average_that_should_move_is_not_stuck(factory, name, options):
    """A step changes it by a ten-thousandth, and the spacing of the numbers is a hundred-and-twenty-eighth."""
    exact = factory(
        0.1, **{key: value for key, value in options.items() if key[0] == "b" or key in ("decay", "momentum")}
    )
    made = factory(0.1, **options)
    params, gradient = np.zeros(SHAPE, np.float32), np.linspace(0.5, 1, 64 * 128, dtype=np.float32).reshape(SHAPE)

    @functools.partial(jax.jit, compiler_options=AS_USERS_DO)
    def run():
        states = [optimizer.init(params) for optimizer in (made, exact)]
        for scale in (1.0, 0.1):

            def step(states, _, scale=scale):
                pairs = zip((made, exact), states, strict=True)
                return [optimizer.update(scale * gradient, state, params)[1] for optimizer, state in pairs], None

            states, _ = jax.lax.scan(step, states, length=1000)
        return [load_moments(state, optimizer, params) for optimizer, state in zip((made, exact), states, strict=True)]

    moved, right = (np.asarray(getattr(state, name)) for state in run())
    np.testing.assert_allclose(moved / right, 1, atol=0.03)
    assert abs(np.mean(np.log(moved / right))) < 0.003


def test_the_iterate_of_schedule_free_is_not_stuck():
    """Z in bfloat16 moves by less than its spacing in a step, and gets there all the same."""

    @jax.jit
    def run(params):
        ends = []
        for state_dtype in (None, "bfloat16"):
            optimizer = schedule_free_adamw(1e-4, state_dtype=state_dtype)

            def step(carry, _, optimizer=optimizer):
                params, state = carry
                updates, state = optimizer.update(jnp.ones(SHAPE), state, params)
                return (optax.apply_updates(params, updates), state), None

            (_, state), _ = jax.lax.scan(step, (params, optimizer.init(params)), length=1000)
            ends.append(state.z)
        return ends

    right, moved = (np.float32(each) for each in run(np.ones(SHAPE, np.float32)))
    assert right[0, 0] == pytest.approx(0.9, abs=1e-3)
    np.testing.assert_allclose(moved, right, atol=0.01)
    assert np.mean(moved) == pytest.approx(np.mean(right), abs=3e-4)


def test_what_a_state_has():
    params = {"matrix": np.ones(SHAPE, np.float32), "bias": np.ones(3, np.float32), "scalar": np.float32(1)}
    state = initial(adamw(1e-3, moments="bfloat16"), params)
    assert state.nu == dict.fromkeys(params)
    assert {name: (leaf.dtype, leaf.shape) for name, leaf in state.mu.items()} == {
        name: (np.uint32, leaf.shape) for name, leaf in params.items()
    }
    assert jaxopt_adam.nbytes(state) == 4 * (64 * 128 + 3 + 1) + 4
    loaded = jax.jit(lambda: load_moments(state, adamw(1e-3, moments="bfloat16"), params))()
    jax.tree.map(lambda leaf, param: np.testing.assert_array_equal(leaf, np.zeros(param.shape)), loaded.mu, params)
    jax.tree.map(lambda leaf, param: np.testing.assert_array_equal(leaf, np.zeros(param.shape)), loaded.nu, params)


@pytest.mark.parametrize("shape", [(2048, 2048), (2**22,), (4, 1024, 1024)], ids=str)
def test_a_step_writes_each_array_once_and_needs_no_other(shape):
    optimizer = adamw(1e-3, moments="bfloat16")

    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = jax.ShapeDtypeStruct(shape, jnp.float32)
    state = jax.eval_shape(optimizer.init, params)
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile(FUSED_AS_FOR_USERS)
    analysis = compiled.memory_analysis()
    assert analysis.temp_size_in_bytes <= 2**16
    assert analysis.alias_size_in_bytes >= 8 * np.prod(shape)
    assert not large_copies(compiled.as_text())
    assert large_loops(compiled.as_text()) == 2


@pytest.mark.parametrize("size", [1e19, 1e25, 3e38])
def test_an_absurd_gradient_is_forgotten_as_in_float32(size):
    """Where ν shares its numbers with m, gradients are bounded as well, or m would be out of all proportion to √ν."""
    gradients = np.ones((40, 3), np.float32)
    gradients[:2, 1] = size
    both = updates_in_16_and_32_bits(gradients)
    assert np.isfinite(both).all()
    assert np.abs(both[0]).max() < 1.02 * np.abs(both[1]).max() < 1
    np.testing.assert_allclose(both[0][-1], both[1][-1], rtol=0.05)


@jax.jit
def updates_in_16_and_32_bits(gradients):
    def walked(moments):
        optimizer = adam(0.1, b2=0.9, moments=moments)
        step = lambda state, gradient: optimizer.update(gradient, state)[::-1]
        return jax.lax.scan(step, optimizer.init(jnp.ones(3)), gradients)[1]

    return walked("bfloat16"), walked("float32")


def test_errors_name_the_leaf_and_the_storage():
    optimizer = adamw(1e-3, moments="bfloat16")
    params = {"w": np.ones(SHAPE, np.float32)}
    state = initial(optimizer, params)
    with pytest.raises(
        ValueError, match=r"leaf \['w'\]: state.mu must be uint32\[64, 128\], with state.nu, in bfloat16"
    ):
        optimizer.update(params, initial(adamw(1e-3), params), params)
    with pytest.raises(ValueError, match=r"leaf \['w'\]: state.nu must be None in bfloat16, got float32\[64, 128\]"):
        optimizer.update(params, state._replace(nu=params), params)


def test_derivatives_take_earlier_moments_as_constants():
    def slopes(moments):
        optimizer = adamw(1e-3, weight_decay=0.0, moments=moments)

        def first(gradient):
            return jnp.sum(optimizer.update(gradient, optimizer.init(jnp.ones(3)), jnp.ones(3))[0] ** 2)

        return jax.grad(first)(jnp.full(3, 1e-8))

    slope, right = map(np.asarray, jax.jit(lambda: (slopes("bfloat16"), slopes("float32")))())
    assert np.abs(right).min() > 0
    np.testing.assert_allclose(slope, right, rtol=0.05)
