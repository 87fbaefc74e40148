"""Moments in 16 bits: they move when they should, their update is nearly exact, and a step is a pass for each array."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import AS_USERS_DO, FUSED_AS_FOR_USERS
from test_moments import OPTIONS, WITH_MOMENTS, large_copies, large_loops

import jaxopt_adam
from jaxopt_adam import adam, adamw, grid, lion, load_moments, rmsprop, schedule_free_adamw, sgd
from jaxopt_adam.storage._dense import dithered, undithered
from jaxopt_adam.storage._pairs import packed, unpacked

SHAPE = (64, 128)
DECAYING = [
    name for name in WITH_MOMENTS if "weight_decay" in getattr(jaxopt_adam, name)(learning_rate=0.1).hyperparameters
]


def thresholds(generator, shape):
    return jnp.asarray(generator.integers(0, 2**32, shape, dtype=np.uint32))


class TestPairs:
    """Both moments in one number."""

    def drawn(self):
        generator = np.random.default_rng(0)
        nu = np.exp(generator.uniform(-80, 80, 100_000)).astype(np.float32)
        ratio = np.exp(generator.uniform(-25, 7.2, nu.shape)) * generator.choice([-1, 1], nu.shape)
        return generator, (np.sqrt(nu) * ratio).astype(np.float32), nu

    def test_each_is_within_a_spacing_and_right_on_average(self):
        generator, mu, nu = self.drawn()
        after = unpacked(packed(mu, nu, thresholds(generator, mu.shape), thresholds(generator, mu.shape)))
        errors = [np.asarray(each, np.float64) - before for each, before in zip(after, (mu, nu), strict=True)]
        spacings = 2.0**-8 * (np.abs(mu) + 2.0**-20 * np.sqrt(nu)), 2.0**-10 * nu
        for error, spacing in zip(errors, spacings, strict=True):
            share = error / spacing
            assert np.abs(share).max() <= 1
            assert abs(share.mean()) < 5 * share.std() / len(mu) ** 0.5

    def test_what_is_stored_stays_as_it_is(self):
        generator, mu, nu = self.drawn()
        stored = unpacked(packed(mu, nu, thresholds(generator, mu.shape), thresholds(generator, mu.shape)))
        again = unpacked(packed(*stored, thresholds(generator, mu.shape), thresholds(generator, mu.shape)))
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
        mu, nu = unpacked(packed(cases[:, 0], cases[:, 1], jnp.uint32(share), jnp.uint32(share)))
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
            assert np.isnan(unpacked(packed(mu, nu, jnp.uint32(2**32 - 1), jnp.uint32(2**32 - 1)))[1]).all()


class TestDither:
    @pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, np.uint16], ids=lambda dtype: np.dtype(dtype).name)
    def test_is_within_a_spacing_and_right_on_average(self, dtype):
        generator = np.random.default_rng(1)
        value = generator.uniform(0.25, 4, 100_000).astype(np.float32)
        dtype = np.dtype(dtype)
        digits = {"bfloat16": 8, "float16": 11, "uint16": 9}[dtype.name]
        error = (
            np.asarray(undithered(dithered(value, dtype, thresholds(generator, value.shape))), np.float64) / value - 1
        )
        assert np.abs(error).max() <= 2.0 ** (1 - digits)
        assert abs(error.mean()) < 5 * error.std() / len(value) ** 0.5
        exact = undithered(dithered(value, dtype, jnp.uint32(0)))
        np.testing.assert_array_equal(undithered(dithered(exact, dtype, jnp.uint32(2**32 - 1))), exact)

    @pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=lambda dtype: np.dtype(dtype).name)
    def test_what_is_finite_stays_so_and_what_is_not_does_not(self, dtype):
        largest = np.float32(jnp.finfo(dtype).max)
        value = np.float32([largest, -largest, np.inf, -np.inf, np.nan, 0.0])
        after = np.asarray(undithered(dithered(value, np.dtype(dtype), jnp.uint32(2**32 - 1))))
        np.testing.assert_array_equal(after, value)


@functools.cache
def replayed(moments):
    """Adam's updates and its ν, for two β₂: gradients of size 1 for 500 steps, and then of a hundredth."""

    @functools.partial(jax.jit, compiler_options=AS_USERS_DO, static_argnums=0)
    def run(moments):
        optimizers, _ = grid(lambda b2: adam(1.0, b2=b2, moments=moments), b2=[0.999, 0.9999])
        params = jnp.zeros(SHAPE)

        def step(state, count):
            size = jnp.where(count < 500, 1.0, 0.01)
            gradient = size * jax.random.normal(jax.random.fold_in(jax.random.key(0), count), SHAPE)

            def one(optimizer, state):
                update, state = optimizer.update(gradient, state)
                return state, (update, load_moments(state, adam(1.0, moments=moments), params).nu)

            return jax.vmap(one)(optimizers, state)

        return jax.lax.scan(step, jax.vmap(lambda each: each.init(params))(optimizers), jnp.arange(3500))[1]

    return run(moments)


def test_the_update_stays_nearly_exact():
    """Rounded to the nearest, ν would forget nothing, and at the last step the update would be a fifth of this."""
    (update, nu), (exact, exact_nu) = replayed("bfloat16"), replayed("float32")
    size = functools.partial(jnp.linalg.norm, axis=(2, 3))
    error = size(update - exact) / size(exact)
    assert error[100:].max() <= 0.01
    assert error[100:].mean() <= 0.004
    bias = jnp.mean(jnp.log(nu / exact_nu), axis=(2, 3))
    assert jnp.abs(bias[100:]).max() < 0.002


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
    params, gradient = jnp.zeros(SHAPE), jnp.linspace(0.5, 1, 64 * 128).reshape(SHAPE)

    @functools.partial(jax.jit, compiler_options=AS_USERS_DO)
    def run():
        states = [optimizer.init(params) for optimizer in (made, exact)]
        for scale in (1.0, 0.1):

            def step(states, _, scale=scale):
                pairs = zip((made, exact), states, strict=True)
                return [optimizer.update(scale * gradient, state, params)[1] for optimizer, state in pairs], None

            states, _ = jax.lax.scan(step, states, length=1000)
        return [load_moments(state, optimizer, params) for optimizer, state in zip((made, exact), states, strict=True)]

    moved, right = (getattr(state, name) for state in run())
    np.testing.assert_allclose(moved / right, 1, atol=0.03)
    assert abs(float(jnp.mean(jnp.log(moved / right)))) < 0.003


def test_the_iterate_of_schedule_free_is_not_stuck():
    """Z in bfloat16 moves by less than its spacing in a step, and gets there all the same."""
    params = jnp.ones(SHAPE)
    ends = []
    for state_dtype in (None, "bfloat16"):
        optimizer = schedule_free_adamw(1e-4, state_dtype=state_dtype)

        def step(carry, _, optimizer=optimizer):
            params, state = carry
            updates, state = optimizer.update(jnp.ones(SHAPE), state, params)
            return (optax.apply_updates(params, updates), state), None

        (_, state), _ = jax.jit(lambda carry, step=step: jax.lax.scan(step, carry, length=1000))(
            (params, optimizer.init(params))
        )
        ends.append(state.z.astype(jnp.float32))
    right, moved = ends
    assert float(right[0, 0]) == pytest.approx(0.9, abs=1e-3)
    np.testing.assert_allclose(moved, right, atol=0.01)
    assert float(jnp.mean(moved)) == pytest.approx(float(jnp.mean(right)), abs=3e-4)


def test_what_a_state_has():
    params = {"matrix": jnp.ones(SHAPE), "bias": jnp.ones(3), "scalar": jnp.ones(())}
    state = adamw(1e-3, moments="bfloat16").init(params)
    assert state.nu == dict.fromkeys(params)
    assert {name: (leaf.dtype, leaf.shape) for name, leaf in state.mu.items()} == {
        name: (np.uint32, leaf.shape) for name, leaf in params.items()
    }
    assert jaxopt_adam.nbytes(state) == 4 * (64 * 128 + 3 + 1) + 4
    loaded = load_moments(state, adamw(1e-3, moments="bfloat16"), params)
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
    gradients = jnp.ones((40, 3)).at[:2, 1].set(size)
    largest, last = [], []
    for moments in ("bfloat16", "float32"):
        optimizer = adam(0.1, b2=0.9, moments=moments)

        def step(state, gradient, optimizer=optimizer):
            update, state = optimizer.update(gradient, state)
            return state, update

        _, updates = jax.lax.scan(step, optimizer.init(jnp.ones(3)), gradients)
        assert jnp.isfinite(updates).all()
        largest.append(jnp.abs(updates).max())
        last.append(updates[-1])
    assert largest[0] < 1.02 * largest[1] < 1
    np.testing.assert_allclose(*last, rtol=0.05)


def test_errors_name_the_leaf_and_the_storage():
    optimizer = adamw(1e-3, moments="bfloat16")
    params = {"w": jnp.ones(SHAPE)}
    state = optimizer.init(params)
    with pytest.raises(
        ValueError, match=r"leaf \['w'\]: state.mu must be uint32\[64, 128\], with state.nu, in bfloat16"
    ):
        optimizer.update(params, adamw(1e-3).init(params), params)
    with pytest.raises(ValueError, match=r"leaf \['w'\]: state.nu must be None in bfloat16, got float32\[64, 128\]"):
        optimizer.update(params, state._replace(nu=params), params)


def test_derivatives_take_earlier_moments_as_constants():
    optimizer = adamw(1e-3, weight_decay=0.0, moments="bfloat16")
    state = optimizer.init(jnp.ones(3))

    def first(gradient):
        return jnp.sum(optimizer.update(gradient, state, jnp.ones(3))[0] ** 2)

    exact = adamw(1e-3, weight_decay=0.0)
    slope, right = (
        jax.grad(first)(jnp.full(3, 1e-8)),
        jax.grad(lambda gradient: jnp.sum(exact.update(gradient, exact.init(jnp.ones(3)), jnp.ones(3))[0] ** 2))(
            jnp.full(3, 1e-8)
        ),
    )
    assert jnp.abs(right).min() > 0
    np.testing.assert_allclose(slope, right, rtol=0.05)
