"""States converted from one storage of moments to another."""

import functools
import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from public import RULES

from jaxopt_adam import (
    adam,
    adamw,
    chain,
    convert_state,
    laprop,
    load_moments,
    master_weights,
    nbytes,
    observe,
    partition,
    sgd,
)
from jaxopt_adam.lifted import clip_by_global_norm
from jaxopt_adam.storage import Blockwise

STORAGES = ["float32", "bfloat16", "int8", "int4"]
PAIRS = list(itertools.permutations(STORAGES, 2))
# Moments are loaded in the same way whatever they are stored in next. For a second and third kind of rule it is enough
# that each storage is once on either side.
CYCLE = list(zip(STORAGES, [*STORAGES[2:], *STORAGES[:2]], strict=True))
# Relative root mean square errors of a moment that is stored once, about twice what they are.
BOUNDS = {"float32": 0.0, "bfloat16": 0.005, "int8": 0.05, "int4": 0.6}
OPTIONS = {"sgd": {"momentum": 0.9}, "rmsprop": {"momentum": 0.9}}
WITH_MOMENTS = [name for name, factory in RULES.items() if "moments" in inspect.signature(factory).parameters]
SHAPES = {"w": (64, 128), "odd": (67, 131), "small": (5, 7)}


def made_of(name, moments, **options):
    return RULES[name](learning_rate=0.01, moments=moments, **OPTIONS.get(name, {}), **options)


def drawn(seed):
    generator = np.random.default_rng(seed)
    return {
        name: (10 ** generator.uniform(-2, 0, shape) * generator.normal(size=shape)).astype(np.float32)
        for name, shape in SHAPES.items()
    }


PARAMS = drawn(0)
# One leaf in codes, and one that is too small for them.
PLAIN = {name: PARAMS[name] for name in ("w", "small")}
IN_16_BITS = {name: leaf.astype(jnp.bfloat16) for name, leaf in PLAIN.items()}


def after(optimizer, steps=5, params=PARAMS):
    """The state after some steps."""
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for seed in range(1, steps + 1):
        grads = drawn(seed)
        _, state = update({name: grads[name].astype(param.dtype) for name, param in params.items()}, state, params)
    return state


@functools.cache
def of_adamw(moments):
    """AdamW with a storage of its moments, and a state of it after some steps, for all tests that need one."""
    optimizer = adamw(1e-3, moments=moments)
    return optimizer, after(optimizer)


@functools.cache
def converted_of_adamw(one, other):
    """That state, converted to another storage."""
    optimizer, state = of_adamw(one)
    return convert_state(state, optimizer, adamw(1e-3, moments=other), PARAMS)


def assert_like(state, other):
    """The same tree, shapes and dtypes."""
    assert jax.tree.structure(state) == jax.tree.structure(other)
    for one, another in zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True):
        assert (one.shape, one.dtype) == (another.shape, another.dtype)


def assert_same(one, other):
    assert_like(one, other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def assert_near(state, optimizer, other_state, other, storages, params=PARAMS):
    """All moments are the same to within the error of storing them once, and nothing else differs."""
    before, now = load_moments(state, optimizer, params), load_moments(other_state, other, params)
    assert jax.tree.structure(before) == jax.tree.structure(now)
    bound = max(BOUNDS[each] for each in storages)
    for one, another in zip(jax.tree.leaves(before), jax.tree.leaves(now), strict=True):
        # Figures that are not known yet are NaN.
        one, another = np.nan_to_num(np.asarray(one, np.float64)), np.nan_to_num(np.asarray(another, np.float64))
        assert np.sqrt(np.mean((one - another) ** 2)) <= bound * np.sqrt(np.mean(one**2))


@pytest.mark.parametrize("name", WITH_MOMENTS)
def test_every_rule(name):
    """From float32 to codes and back."""
    exact, coded = made_of(name, "float32"), made_of(name, "int8")
    state = after(exact, params=PLAIN)

    @jax.jit
    def there_and_back(state):
        converted = convert_state(state, exact, coded, PLAIN)
        return converted, convert_state(converted, coded, exact, PLAIN)

    converted, back = there_and_back(state)
    assert_like(converted, jax.eval_shape(coded.init, PLAIN))
    assert_near(state, exact, converted, coded, ["int8"], PLAIN)
    assert_same(back, load_moments(converted, coded, PLAIN))


@pytest.mark.parametrize(
    ("name", "pairs"), [("adamw", PAIRS), ("lion", CYCLE), ("amsgrad", CYCLE)], ids=["adamw", "lion", "amsgrad"]
)
def test_every_storage_to_every_other(name, pairs):
    params = {"w": PARAMS["w"]}
    states = {moments: after(made_of(name, moments), params=params) for moments in STORAGES}
    for one, other in pairs:
        optimizers = made_of(name, one), made_of(name, other)
        converted = convert_state(states[one], *optimizers, params)
        assert_like(converted, states[other])
        assert_near(states[one], optimizers[0], converted, optimizers[1], [other], params)


@pytest.mark.parametrize("name", RULES)
def test_what_is_equal_is_not_touched(name):
    optimizer = RULES[name](learning_rate=0.01, **OPTIONS.get(name, {}))
    state = optimizer.init(PARAMS)
    converted = convert_state(state, optimizer, optimizer, PARAMS)
    assert jax.tree.structure(converted) == jax.tree.structure(state)
    assert all(one is other for one, other in zip(jax.tree.leaves(converted), jax.tree.leaves(state), strict=True))


class TestExact:
    def test_float32_holds_what_was_stored_in_less(self):
        for moments in STORAGES[1:]:
            made, state = of_adamw(moments)
            loaded = jax.jit(functools.partial(load_moments, optimizer=made, params=PARAMS))(state)
            assert_same(converted_of_adamw(moments, "float32"), loaded)

    def test_bfloat16_to_float32_and_back(self):
        made, state = of_adamw("bfloat16")
        converted = converted_of_adamw("bfloat16", "float32")
        assert_same(convert_state(converted, adamw(1e-3), made, PARAMS), state)

    def test_small_leaves_stay_in_float32(self):
        _, state = of_adamw("float32")
        assert converted_of_adamw("float32", "int8").mu["small"] is state.mu["small"]

    def test_rounding_has_no_bias(self):
        _, state = of_adamw("float32")
        coded = adamw(1e-3, moments="int8")
        found = load_moments(converted_of_adamw("float32", "int8"), coded, PARAMS)
        for name, right in (("mu", np.abs(state.mu["w"])), ("nu", state.nu["w"])):
            # Of a spacing of a few percent a bias would be half, and the mean of 8,192 errors is far smaller.
            assert abs(np.mean(np.abs(getattr(found, name)["w"])) / np.mean(right) - 1) < 1e-3


WRAPPERS = {
    "chain": lambda made: chain(clip_by_global_norm(1.0), made),
    "observe": observe,
    "master_weights": lambda made: master_weights(made),
    "partition": lambda made: partition({"a": made, "b": sgd(0.1)}, {"w": "a", "small": "b"}),
    "multi_steps": lambda made: optax.MultiSteps(made, 2),
    "optax_chain": lambda made: optax.chain(optax.clip(1.0), optax.masked(made, {"w": True, "small": False})),
    "if_finite": lambda made: optax.apply_if_finite(made, 3),
    "hyperparameters": lambda made: optax.inject_hyperparams(lambda b1: made)(0.9),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_within_wrappers(wrap):
    params = IN_16_BITS if wrap is WRAPPERS["master_weights"] else PLAIN
    exact, coded = wrap(adamw(1e-3)), wrap(adamw(1e-3, moments="int8"))
    state = after(exact, 4, params)
    converted = convert_state(state, exact, coded, params)
    assert_like(converted, jax.eval_shape(coded.init, params))
    assert nbytes(converted) < nbytes(state)
    assert_near(state, exact, converted, coded, ["int8"], params)
    back = convert_state(converted, coded, exact, params)
    assert_same(back, load_moments(converted, coded, params))


@pytest.mark.parametrize("name", ["chain", "observe", "master_weights", "partition"])
def test_moments_are_loaded_within_wrappers(name):
    coded = WRAPPERS[name](adamw(1e-3, moments="int8"))
    state = coded.init(jax.tree.map(jnp.asarray, IN_16_BITS))
    loaded = load_moments(state, coded, IN_16_BITS)
    dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(loaded) if leaf.shape == (64, 128)}
    assert "float32" in dtypes
    assert "uint16" not in dtypes
    assert nbytes(loaded) > nbytes(state)


class TestChoices:
    @pytest.mark.parametrize(
        ("one", "other", "leaves"),
        [
            ({"moments": {"nu": "int8"}}, {"moments": {"mu": "int4"}}, ("w", "small")),
            ({"moments": Blockwise(8, block_size=64)}, {"moments": "int8"}, ("w", "odd", "small")),
            (
                {"moments": lambda path: "int8" if path[0].key == "w" else "float32"},
                {"moments": "int4"},
                ("w", "odd", "small"),
            ),
            ({"mu_dtype": "bfloat16"}, {"moments": "int8"}, ("w", "small")),
        ],
        ids=["by_moment", "blocks", "by_path", "dtype"],
    )
    def test_of_moments(self, one, other, leaves):
        params = {name: PARAMS[name] for name in leaves}
        one, other = adamw(1e-3, **one), adamw(1e-3, **other)
        state = after(one, params=params)
        converted = convert_state(state, one, other, params)
        assert_like(converted, jax.eval_shape(other.init, params))
        assert_near(state, one, converted, other, ["int4"], params)

    def test_in_a_trace(self):
        exact, state = of_adamw("float32")
        coded = adamw(1e-3, moments="int8")
        run = jax.jit(functools.partial(convert_state, from_=exact, to=coded, params=PARAMS))
        assert_same(run(state), converted_of_adamw("float32", "int8"))

    @pytest.mark.parametrize("moments", STORAGES[1:])
    def test_numbers_that_are_traced(self, moments):
        _, state = adam(0.01).update(PLAIN, adam(0.01).init(PLAIN))

        def converted(b2):
            from_, to = (adam(0.01, b2=b2, moments=each) for each in ("float32", moments))
            return convert_state(state, from_, to, PLAIN)

        assert_same(jax.jit(converted)(jnp.float32(0.999)), converted(0.999))

    def test_shapes_will_do_for_the_parameters(self):
        exact, state = of_adamw("float32")
        coded = adamw(1e-3, moments="int8")
        structs = jax.eval_shape(lambda: PARAMS)
        assert_same(convert_state(state, exact, coded, structs), converted_of_adamw("float32", "int8"))


@pytest.mark.devices
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("pair", [("float32", "int8"), ("int8", "float32"), ("int8", "int4"), ("bfloat16", "int8")])
def test_it_lies_on_the_same_devices(kind, pair):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2)
    specs = {"w": PartitionSpec("x", "y"), "odd": PartitionSpec(), "small": PartitionSpec()}
    params = {name: jax.device_put(leaf, NamedSharding(mesh, specs[name])) for name, leaf in PARAMS.items()}
    one, other = (adamw(1e-3, moments=moments) for moments in pair)
    state = one.init(params)
    converted = convert_state(state, one, other, params)
    want = other.init(params)
    assert_same(converted, want)
    for found, right in zip(jax.tree.leaves(converted), jax.tree.leaves(want), strict=True):
        assert found.sharding.is_equivalent_to(right.sharding, found.ndim)


def test_training_goes_on_as_if_it_had_not_been_converted():
    """The losses of a training that changes its storage at half time, beside those of one that does not."""
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(256, 64)).astype(np.float32)
    targets = inputs @ generator.normal(size=(64, 128)).astype(np.float32)

    def cost(params):
        return jnp.mean((inputs @ params["w"] - targets) ** 2)

    @jax.jit
    def run(optimizer, params, state):
        def step(carry, _):
            params, state = carry
            value, grads = jax.value_and_grad(cost)(params)
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, state), length=100)

    exact, coded = adam(0.02), adam(0.02, moments="int8")
    params = {"w": jnp.zeros((64, 128))}
    (params, state), _ = run(exact, params, exact.init(params))
    _, losses = run(exact, params, state)
    _, others = run(coded, params, convert_state(state, exact, coded, params))
    assert losses[-1] < losses[0] / 10
    np.testing.assert_allclose(others, losses, rtol=0.05)
    # Without its moments it would start anew.
    _, anew = run(coded, params, coded.init(params))
    assert np.max(np.abs(anew / losses - 1)) > 0.5


class TestErrors:
    @pytest.mark.parametrize(
        ("to", "text"),
        [
            (adamw(1e-2), "adamw.learning_rate is 0.001 in from_ and 0.01 in to"),
            (adamw(1e-3, nesterov=True), "adamw.nesterov is false in from_ and true in to"),
            (laprop(1e-3), "the optimizer is adamw in from_ and laprop in to"),
            (chain(adamw(1e-3)), "the optimizer is adamw in from_ and chain in to"),
            (
                optax.adamw(1e-3),
                r"the state\[0\] is nothing of from_ and ScaleByAdamState of to",
            ),
        ],
        ids=["number", "flag", "rule", "chain", "optax"],
    )
    def test_optimizers_that_differ(self, to, text):
        optimizer = adamw(1e-3)
        with pytest.raises(ValueError, match=f"must differ in the storage of moments only, but {text}"):
            convert_state(optimizer.init(PARAMS), optimizer, to, PARAMS)

    def test_where_no_dictionary_says_them(self):
        one, other = (optax.MultiSteps(made(1e-3), 2) for made in (adamw, laprop))
        text = r"the state.inner_opt_state is adamw with AdamState.* of from_ and laprop with LapropState"
        with pytest.raises(ValueError, match=text):
            convert_state(one.init(PARAMS), one, other, PARAMS)

    def test_where_the_whole_state_is_of_another_kind(self):
        one = optax.MultiSteps(adamw(1e-3), 2)
        with pytest.raises(
            ValueError, match=r"but the state is MultiStepsState.* of from_ and adamw with AdamState.* of to"
        ):
            convert_state(one.init(PARAMS), one, adamw(1e-3), PARAMS)

    def test_a_state_of_another_optimizer(self):
        exact, coded = adamw(1e-3), adamw(1e-3, moments="int8")
        with pytest.raises(ValueError, match=r"leaf \['odd'\]: state.mu must be codes uint16"):
            convert_state(exact.init(PARAMS), coded, exact, PARAMS)

    def test_master_weights_of_other_bits(self):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), PARAMS)
        one, other = (master_weights(adamw(1e-3, mask=lambda tree: True), bits=bits) for bits in (24, 32))
        with pytest.raises(
            ValueError, match=r"but the state.correction\['odd'\] is int8\[67, 131\] of from_ and int16"
        ):
            convert_state(one.init(params), one, other, params)


class TestWithoutParams:
    @pytest.mark.parametrize(
        ("one", "other"), [("float32", "int8"), ("bfloat16", "float32"), ("int8", "float32"), ("int4", "float32")]
    )
    def test_the_shapes_are_found_in_the_state(self, one, other):
        optimizer, state = of_adamw(one)
        assert_same(convert_state(state, optimizer, adamw(1e-3, moments=other)), converted_of_adamw(one, other))

    def test_within_wrappers_and_of_16_bits(self):
        def made(moments):
            inner = observe(chain(clip_by_global_norm(1.0), adamw(1e-3, moments=moments)))
            return optax.MultiSteps(master_weights(inner), 2).gradient_transformation()

        state = made("float32").init(IN_16_BITS)
        converted = convert_state(state, made("float32"), made("int8"))
        assert_same(converted, convert_state(state, made("float32"), made("int8"), IN_16_BITS))

    def test_a_single_array(self):
        state = adamw(1e-3).init(PARAMS["w"])
        assert_same(
            convert_state(state, adamw(1e-3), adamw(1e-3, moments="int8")),
            adamw(1e-3, moments="int8").init(PARAMS["w"]),
        )

    def test_shapes_that_do_not_follow(self):
        small = made_of("lion", "int4")
        with pytest.raises(ValueError, match="do not follow from the state; give params"):
            convert_state(small.init({"w": PARAMS["odd"]}), small, made_of("lion", "float32"))
