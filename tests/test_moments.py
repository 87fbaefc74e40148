"""Rules with moments in codes: near to float32's, and everything that holds for a state holds for theirs."""

import functools
import inspect
import re
from typing import Any, NamedTuple

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import FUSED_AS_FOR_USERS
from flax.training.train_state import TrainState
from jax.experimental import checkify
from jitted import initial
from public import RULES

import jaxopt_adam
from jaxopt_adam import (
    adabelief,
    adagrad,
    adam,
    adamw,
    amsgrad,
    cautious,
    checked,
    descend,
    grid,
    minimize,
    optimizer,
    rmsprop,
    sgd,
)
from jaxopt_adam._rule import Moment, leafwise
from jaxopt_adam.storage import Blocks, Blockwise, Dense

STEPS = 30
RATE = 0.01
# Relative root mean square errors of the updates of 30 steps, which are at most about half of these, but lion's: it is
# the sign, of which an error is 2 where the average is nearly zero.
BOUNDS = {"int8": 0.05, "int4": 0.5}
BOUNDS_OF_LION = {"int8": 0.3, "int4": 0.8}
OPTIONS = {"sgd": {"momentum": 0.9}, "rmsprop": {"momentum": 0.9}}

WITH_MOMENTS = [name for name, factory in RULES.items() if "moments" in inspect.signature(factory).parameters]
every_storage = pytest.mark.parametrize("moments", ["int8", "int4"])


def drawn(shapes, seed=0, steps=STEPS):
    """Parameters, and gradients of unlike sizes that drift under noise."""
    generator = np.random.default_rng(seed)

    def gradients(shape):
        noise = generator.normal(size=(steps + 1, *shape))
        return (10 ** generator.uniform(-2, 0, shape) * (noise[0] + noise[1:])).astype(np.float32)

    params = {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return params, {name: gradients(shape) for name, shape in shapes.items()}


def all_updates(optimizers, params, gradients):
    """Of each optimizer all steps' updates, and the last state; one program makes them all."""

    def step(states, grads):
        pairs = [made.update(grads, state, params) for made, state in zip(optimizers, states, strict=True)]
        updates, states = zip(*pairs, strict=True)
        return states, updates

    states, updates = jax.jit(lambda: jax.lax.scan(step, tuple(made.init(params) for made in optimizers), gradients))()
    return list(zip(updates, states, strict=True))


def updates_of(optimizer, params, gradients):
    """All steps' updates, and the last state."""
    return all_updates([optimizer], params, gradients)[0]


def error(updates, right):
    updates, right = (np.asarray(each, np.float64) for each in (updates, right))
    assert np.isfinite(updates).all()
    return np.sqrt(np.mean((updates - right) ** 2) / np.mean(right**2))


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def assert_nearly_same(one, other):
    """Two compilations of one step: a rounding error may decide a code in a thousand."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        if a.dtype == np.uint8:
            assert np.mean(a != b) < 0.01
        else:
            assert error(a.astype(float) + 1e-12, b.astype(float) + 1e-12) < 0.01


# --------------------------------------------------------------------------------------------------------- every rule


def test_rules_that_have_it():
    assert {"adam", "adamw", "sgd", "lion", "adan", "yogi", "rmsprop", "lamb"} <= set(WITH_MOMENTS)
    assert len(WITH_MOMENTS) >= 20


# A storage does not know the rule, only which moments are stored together or alone, averages or squares. So codes of 4
# bits are those of rules that have each of these, and of rules of which v is unlike Adam's.
ALSO_IN_FOUR_BITS = {"adabelief", "adagrad", "adamw", "adan", "amsgrad", "lion", "rmsprop", "sgd"}


@pytest.mark.parametrize("name", WITH_MOMENTS)
def test_every_rule_is_near_to_float32(name):
    param, gradients = (each["w"] for each in drawn({"w": (64, 128)}))
    storages = [storage for storage in BOUNDS if storage == "int8" or name in ALSO_IN_FOUR_BITS]
    made = [RULES[name](RATE, moments=moments, **OPTIONS.get(name, {})) for moments in ("float32", *storages)]
    (right, _), *coded = all_updates(made, param, gradients)
    for storage, (updates, state) in zip(storages, coded, strict=True):
        assert numbers_in(state), storage
        bound = (BOUNDS_OF_LION if name == "lion" else BOUNDS)[storage]
        assert 1e-4 < error(updates, right) <= bound, storage


def numbers_in(state):
    """Of all moments in codes what has the codes."""
    return [leaf for leaf in jax.tree.leaves(state) if leaf.dtype in (np.uint8, np.uint16) and leaf.ndim]


def test_the_error_is_the_updates_also_where_eps_is_most_of_what_it_divides_by():
    """Gradients of sizes about ε and far below; what √v is wrong by then must not be in the update."""
    generator = np.random.default_rng(0)
    size = 10 ** generator.uniform(-5, -1, (1, 64, 128))
    gradients = (size * generator.normal(size=(STEPS, 64, 128))).astype(np.float32)
    params = np.zeros((64, 128), np.float32)
    optimizers = [adam(RATE, eps=0.1, moments=moments) for moments in ("float32", "int8", "int4")]
    (right, _), *coded = all_updates(optimizers, params, gradients)
    for (updates, _), bound in zip(coded, (0.02, 0.25), strict=True):
        assert error(updates, right) < bound


@every_storage
def test_small_gradients_whose_squares_are_zero(moments):
    """1e-30 squared is less than any float32, so the second moment is zero, which moments in codes must not mind."""
    params = np.zeros((64, 128), np.float32)
    gradients = np.full((3, 64, 128), 1e-30, np.float32)
    gradients[:, ::2] = 0
    sizes = [1e-8, np.float32(1e-8), 0.0, 1e-50] if moments == "int8" else [1e-8, 0.0]
    rule = functools.partial(adamw, 1.0, eps_root=1e-30, weight_decay=0.0)
    made = [rule(eps=eps, moments=each) for each in (moments, "float32") for eps in sizes]
    results = [updates for updates, _ in all_updates(made, params, gradients)]
    for eps, updates, right in zip(sizes, results[: len(sizes)], results[len(sizes) :], strict=True):
        assert (np.asarray(right)[:, 1::2] != 0).all(), repr(eps)
        assert error(updates, right) < {"int8": 0.01, "int4": 0.1}[moments], repr(eps)


@every_storage
def test_eps_that_is_traced(moments):
    def run(*sizes):
        optimizers = [adam(RATE, eps=eps, moments=moments) for eps in sizes]
        return [updates for updates, _ in all_updates(optimizers, PARAMS["w"], GRADIENTS["w"][:5])]

    traced, sizes = jax.jit(run), (1e-2, 0.0)
    for eps, known in zip(sizes, run(*sizes), strict=True):
        np.testing.assert_allclose(traced(np.float32(eps))[0], known, rtol=0.01, atol=1e-3 * RATE)


def test_moments_that_start_as_something_else():
    """Yogi's first moment starts as 10⁻⁶, and its second, by whose root that is divided, as 10⁻⁶ too."""
    params = np.zeros((64, 128), np.float32)
    optimizers = [jaxopt_adam.yogi(1.0, moments=each) for each in ("float32", *BOUNDS)]
    (right, _), *coded = all_updates(optimizers, params, np.zeros((1, 64, 128), np.float32))
    assert (np.asarray(right) != 0).all()
    for (updates, _), bound in zip(coded, (0.02, 0.3), strict=True):
        assert error(updates, right) < bound


class HalvedState(NamedTuple):
    count: jax.Array
    mu: Any


@optimizer
def halved(learning_rate, moments="float32"):
    """A user's rule, with a jitted helper of its own."""

    @jax.jit
    def finite_or(value, other):
        return jnp.where(jnp.isfinite(value), value, other)

    def first(grad, old, step):
        return old._replace(mu=0.5 * old.mu + 0.5 * finite_or(grad, jnp.zeros_like(grad)))

    def second(grad, old, new, step):
        return -step.rate * new.mu

    return leafwise(HalvedState, first, second, storage=moments, learning_rate=learning_rate, mu=Moment())


def test_a_rule_is_run_as_it_is_written():
    """No function of a rule is known by its name: a helper that gives zero for what is not finite does so in codes."""
    params, gradients = drawn({"w": (64, 128)}, seed=1, steps=5)
    gradients["w"][:, 3, 40:56] = np.inf
    optimizers = [halved(RATE, moments=each) for each in ("float32", *BOUNDS)]
    (right, _), *coded = all_updates(optimizers, params["w"], gradients["w"])
    for (updates, _), bound in zip(coded, (0.01, 0.2), strict=True):
        assert error(updates, right) < bound


# -------------------------------------------------------------------------------------------------------- every shape

SHAPES = {
    "odd": (67, 131),
    "vector": (8192,),
    "kernel": (3, 3, 32, 48),
    "small": (4095,),
    "empty": (0, 4096),
    "scalar": (),
}
LARGE = ("odd", "vector", "kernel")


@every_storage
def test_every_shape(moments):
    optimizers = [adamw(RATE, weight_decay=0.0, moments=each) for each in (moments, "float32")]
    (updates, state), (right, exact) = all_updates(optimizers, *drawn(SHAPES))
    for name in LARGE:
        assert 1e-4 < error(updates[name], right[name]) < {"int8": 0.02, "int4": 0.25}[moments]
        codes, scales = state.mu[name], state.nu[name]
        assert (codes.dtype, codes.shape) == ({"int8": np.uint16, "int4": np.uint8}[moments], SHAPES[name])
        assert (scales.dtype, scales.shape[:-1]) == (np.uint32, SHAPES[name][:-1])
    for name in set(SHAPES) - set(LARGE):
        assert updates[name].shape == (STEPS, *SHAPES[name])
        np.testing.assert_array_equal(updates[name], right[name])
        assert_same((state.mu[name], state.nu[name]), (exact.mu[name], exact.nu[name]))


# -------------------------------------------------------------------------------------------------------------- choice

TREE = {"w": (32, 128), "b": (5,)}
PARAMS, GRADIENTS = drawn(TREE, seed=1)
FIRST = jax.tree.map(lambda each: each[0], GRADIENTS)


@functools.cache
def of_adamw(moments):
    return updates_of(adamw(RATE, moments=moments), PARAMS, GRADIENTS)


class TestChoice:
    def test_dict_by_moment(self):
        made = adamw(RATE, moments={"mu": "bfloat16", "nu": "int8"})
        updates, state = updates_of(made, PARAMS, GRADIENTS)
        assert state.mu["w"].dtype == state.mu["b"].dtype == jnp.bfloat16
        assert isinstance(state.nu, Blocks)
        assert state.nu.codes["b"].dtype == np.float32
        assert state.nu.scales["b"] is None
        assert error(updates["w"], of_adamw("float32")[0]["w"]) < 0.02

    def test_moment_that_is_not_named_stays(self):
        state = jax.eval_shape(adamw(RATE, moments={"mu": "int4"}).init, PARAMS)
        assert state.mu.codes["w"].dtype == np.uint8
        assert state.nu["w"].dtype == jnp.float32

    def test_storage(self):
        made = adamw(RATE, moments=Blockwise(4, block_size=32, min_size=1))
        state = jax.eval_shape(made.init, {**PARAMS, "c": np.ones((2, 64))})
        assert state.mu["w"].shape == (32, 128)
        assert state.nu["w"].shape == (32, 8)  # as many as 8 devices can share
        assert state.mu["b"].shape == (5,)
        assert state.nu["c"].shape == (2, 2)
        state = jax.eval_shape(adamw(RATE, moments=Dense("float16")).init, PARAMS)
        assert state.nu["w"].dtype == jnp.float16

    @pytest.mark.parametrize(
        ("moments", "mu", "nu"),
        [
            ({"nu": "int4"}, None, ("uint8", (32, 64))),
            ({"mu": "int4"}, ("uint8", (32, 64)), None),
            ({"mu": "int4", "nu": "int8"}, ("uint8", (32, 64)), ("uint8", (32, 128))),
        ],
    )
    def test_moments_that_share_no_numbers(self, moments, mu, nu):
        updates, state = updates_of(adamw(RATE, moments=moments), PARAMS, GRADIENTS)
        for moment, expected in ((state.mu, mu), (state.nu, nu)):
            if expected is None:
                assert moment["w"].dtype == np.float32
            else:
                assert (moment.codes["w"].dtype, moment.codes["w"].shape) == expected
                assert moment.scales["w"].dtype.itemsize == 2
        assert 1e-4 < error(updates["w"], of_adamw("float32")[0]["w"]) < 0.25

    def test_function_of_the_path(self):
        paths = []

        def by_path(path):
            paths.append(jax.tree_util.keystr(path))
            return "float32" if "b" in paths[-1] else {"nu": "int8"}

        state = jax.eval_shape(adamw(RATE, moments=by_path).init, PARAMS)
        assert set(paths) == {"['w']", "['b']"}
        assert state.nu.codes["w"].dtype == np.uint8
        assert state.mu["w"].dtype == jnp.float32

    def test_two_ways_in_one_tree(self):
        """Leaves whose two moments share numbers beside leaves of which one moment has numbers of its own."""
        shapes = {"both": (32, 128), "one": (32, 128), "none": (5,)}
        params, gradients = drawn(shapes, seed=2)
        by_path = lambda path: "int8" if path[0].key == "both" else {"nu": "int8"}
        optimizers = adamw(RATE, moments=by_path), adamw(RATE)
        (updates, state), (right, _) = all_updates(optimizers, params, gradients)
        assert jax.tree.map(lambda leaf: str(leaf.dtype), (state.mu, state.nu)) == (
            {"both": "uint16", "none": "float32", "one": "float32"},
            Blocks(
                codes={"both": "uint32", "none": "float32", "one": "uint8"},
                scales={"both": None, "none": None, "one": "uint16"},
            ),
        )
        for name in ("both", "one"):
            assert 1e-4 < error(updates[name], right[name]) < 0.02

    def test_bfloat16_parameters(self):
        params, gradients = (jax.tree.map(lambda each: each.astype(jnp.bfloat16), tree) for tree in (PARAMS, GRADIENTS))
        (updates, state), (right, _) = all_updates(
            [adamw(RATE, moments=moments) for moments in ("int8", "float32")], params, gradients
        )
        assert updates["w"].dtype == jnp.bfloat16
        assert state.mu["w"].dtype == np.uint16
        assert error(updates["w"], right["w"]) < 0.02

    def test_weight_decay_and_mask(self):
        optimizers = int8(weight_decay=0.0), int8(weight_decay=0.5, mask={"w": True, "b": False})
        (plain, _), (decaying, _) = all_updates(optimizers, PARAMS, GRADIENTS)
        np.testing.assert_allclose(
            decaying["w"], plain["w"] - np.float32(RATE * 0.5) * PARAMS["w"], rtol=1e-4, atol=1e-6
        )
        np.testing.assert_array_equal(decaying["b"], plain["b"])

    @pytest.mark.parametrize("dtype", ["float64", "complex64"])
    def test_wide_leaves_stay_as_they_are(self, x64, dtype):
        params, grads = (jax.tree.map(lambda each: each.astype(dtype), tree) for tree in (PARAMS, FIRST))
        both = [adam(RATE, moments=moments) for moments in ("int8", "float32")]
        one, other = jax.jit(lambda: [made.update(grads, made.init(params)) for made in both])()
        assert_same(one, other)
        assert one[1].mu["w"].dtype == dtype


# ----------------------------------------------------------------------------------------------------- transformations


@functools.cache
def stepper(moments):
    """One jitted step whose optimizer is an argument, and the list of its traces."""
    traces = []

    @jax.jit
    def step(optimizer, params, state, grads):
        traces.append(None)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step, traces


def at(step):
    return jax.tree.map(lambda each: jnp.asarray(each[step]), GRADIENTS)


def looped(optimizer, steps, moments="int8"):
    step, _ = stepper(moments)
    params, state = jax.tree.map(jnp.asarray, PARAMS), initial(optimizer, PARAMS)
    for index in range(steps):
        params, state = step(optimizer, params, state, at(index))
    return params, state


class TestTransformations:
    def test_jit_is_eager(self):
        made = adamw(RATE, moments="int8")
        _, state = looped(made, 3)
        params = jax.tree.map(jnp.asarray, PARAMS)
        eager = made.update(at(3), state, params)
        assert_nearly_same(eager, jax.jit(made.update)(at(3), state, params))

    @every_storage
    def test_scan_is_a_loop(self, moments):
        made = adamw(RATE, moments=moments)

        def step(carry, grads):
            params, state = carry
            updates, state = made.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        first = jax.tree.map(lambda each: each[:5], GRADIENTS)
        params = jax.tree.map(jnp.asarray, PARAMS)
        scanned, _ = jax.jit(lambda: jax.lax.scan(step, (params, made.init(params)), first))()
        assert_nearly_same(scanned, looped(made, 5, moments))

    def test_vmap_over_a_grid_is_a_loop(self):
        rates = [0.001, 0.01, 0.1]
        optimizers, table = grid(adamw, learning_rate=rates, moments="int8")

        @jax.jit
        @jax.vmap
        def run(made):
            params, state = jax.tree.map(jnp.asarray, PARAMS), made.init(PARAMS)

            def step(carry, grads):
                params, state = carry
                updates, state = made.update(grads, state, params)
                return (optax.apply_updates(params, updates), state), None

            return jax.lax.scan(step, (params, state), jax.tree.map(lambda each: each[:4], GRADIENTS))[0]

        together = jax.device_get(run(optimizers))
        for index, row in enumerate(table):
            alone = looped(adamw(row["learning_rate"], moments="int8"), 4)
            assert_nearly_same(jax.tree.map(lambda each, index=index: each[index], together), alone)

    def test_one_trace_for_twenty_learning_rates(self):
        step, traces = stepper("one trace")
        state = initial(int8(), PARAMS)
        results = [
            np.asarray(step(adamw(rate, moments="int8"), PARAMS, state, at(0))[0]["w"])[0, 0]
            for rate in np.geomspace(1e-4, 1, 20)
        ]
        assert len(traces) == 1
        assert len(set(results)) == 20

    def test_grad_with_respect_to_the_learning_rate(self):
        """The moments are constants in it, so it is near where the steps are small."""

        def loss(rate, moments):
            made = adamw(rate, moments=moments)

            def step(carry, _):
                params, state = carry
                updates, state = made.update(params - 1.0, state, params)
                return (params + updates, state), None

            (params, _), _ = jax.lax.scan(step, (PARAMS["w"], made.init(PARAMS["w"])), length=3)
            return jnp.sum((params - 1.0) ** 2)

        slope, right = jax.device_get(
            jax.jit(lambda rate: [jax.grad(loss)(rate, moments) for moments in ("int8", "float32")])(1e-4)
        )
        assert abs(right) > 1
        assert float(slope) == pytest.approx(float(right), rel=0.01)

    @every_storage
    def test_donated_buffers_are_written_in_place(self, moments):
        made = adamw(RATE, moments=moments)
        step, _ = stepper(moments)
        params, state = jax.device_put(PARAMS), initial(made, PARAMS)
        codes = state.mu["w"]
        before = codes.unsafe_buffer_pointer()
        kept = step(made, params, state, at(0))
        after = jax.jit(step.__wrapped__, donate_argnums=(1, 2))(made, params, state, at(0))
        assert codes.is_deleted()
        assert after[1].mu["w"].unsafe_buffer_pointer() == before
        assert_same(after, kept)


MATRIX, VECTOR, STACK = (2048, 2048), (2**22,), (4, 1024, 1024)


@pytest.mark.parametrize(
    ("made", "most", "passes", "shape"),
    [
        *((adamw(RATE, moments="int8"), 2, 3, shape) for shape in (MATRIX, VECTOR, STACK)),
        *((adamw(RATE, moments="int4"), 4, 3, shape) for shape in (MATRIX, VECTOR, STACK)),
        (rmsprop(RATE, moments="int8"), 2, 3, MATRIX),
        (sgd(RATE, momentum=0.9, moments="int8"), 2, 3, STACK),
        (adagrad(RATE, moments="int4"), 4, 3, VECTOR),
        (adabelief(RATE, moments="int8"), 2, 3, MATRIX),
        (amsgrad(RATE, moments="int8"), 3, 4, STACK),
    ],
    ids=str,
)
def test_a_step_needs_hardly_any_memory_and_few_passes(made, most, passes, shape):
    params = {"w": jax.ShapeDtypeStruct(shape, jnp.float32)}

    def step(params, state, grads):
        updates, state = made.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(made.init, params)
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile(FUSED_AS_FOR_USERS)
    analysis = compiled.memory_analysis()
    assert analysis.temp_size_in_bytes <= most * 2**20
    assert analysis.alias_size_in_bytes >= sum(each.size * each.dtype.itemsize for each in jax.tree.leaves(state))
    text = compiled.as_text()
    assert not large_copies(text)
    assert large_loops(text) == passes


def large_copies(text):
    """The arrays of codes, or of a leaf, that are copied; what is within a loop is no array."""
    copied = re.findall(r"^  \S+ = (\w+\[([\d,]+)\])\S* copy\(", text[text.index("ENTRY") :], re.MULTILINE)
    return [array for array, dims in copied if np.prod(np.int64(dims.split(","))) >= 2**21]


def large_loops(text):
    """The number of compiled loops that read or write an array of millions, but for those that a fence never runs."""
    count = 0
    for head, body in re.findall(r"^%fused\S* (\([^\n]*)\n(.*?)^\}", text, re.MULTILINE | re.DOTALL):
        sizes = [np.prod(np.int64(dims.split(","))) for dims in re.findall(r"\w\[([\d,]+)\]", head)]
        is_work = set(re.findall(r" ([\w-]+)\(", body)) - {"parameter", "negate", "bitcast", "tuple"}
        count += any(size >= 2**21 for size in sizes) and bool(is_work)
    return count


@pytest.mark.parametrize("moments", ["float32", "bfloat16", "int8", "int4"])
def test_the_second_step_is_compiled_no_more_than_others(moments):
    made = adamw(RATE, moments=moments)
    step = jax.jit(made.update)
    params = {"w": np.ones((64, 128), np.float32)}
    state = initial(made, params)
    for _ in range(3):
        _, state = step(params, state, params)
    assert step._cache_size() == 1


# ------------------------------------------------------------------------------------------------------------- clients


def int8(**options):
    return adamw(RATE, moments="int8", **options)


CLIENTS = {
    "chain": lambda made: optax.chain(optax.clip_by_global_norm(1e6), made, optax.scale(1.0)),
    "MultiSteps": lambda made: optax.MultiSteps(made, every_k_schedule=2),
    "masked": lambda made: optax.masked(made, {"w": True, "b": False}),
    "partition": lambda made: optax.partition({"a": made, "z": optax.sgd(RATE)}, {"w": "a", "b": "z"}),
    "apply_if_finite": lambda made: optax.apply_if_finite(made, 3),
    "inject_hyperparams": lambda made: optax.inject_hyperparams(adamw)(
        learning_rate=RATE, moments=made.hyperparameters["moments"]
    ),
    "cautious": cautious,
    "checked": checked,
}


class TestClients:
    @pytest.mark.parametrize("name", CLIENTS)
    def test_wrappers(self, name):
        short = jax.tree.map(lambda each: each[:6], GRADIENTS)
        optimizers = [CLIENTS[name](adamw(RATE, moments=moments)) for moments in ("int8", "float32")]
        (updates, state), (right, _) = all_updates(optimizers, PARAMS, short)
        assert numbers_in(state)
        assert 1e-5 < error(updates["w"], right["w"]) < (0.2 if name == "cautious" else 0.02)
        np.testing.assert_array_equal(updates["b"], right["b"])

    def test_apply_if_finite_keeps_the_state(self):
        made = optax.apply_if_finite(int8(), 3)
        _, state = stepped(made, at(0), initial(made, PARAMS))
        updates, after = stepped(made, jax.tree.map(np.float32(np.nan).__mul__, PARAMS), state)
        assert_same(after.inner_state, state.inner_state)
        assert not np.asarray(updates["w"]).any()

    def test_nan_stays_in_its_block(self):
        made = int8()
        bad = jax.tree.map(np.copy, FIRST)
        bad["w"][3, 40] = np.nan
        state = initial(made, PARAMS)
        for _ in range(2):
            updates, state = stepped(made, bad, state)
        wrong = np.isnan(np.asarray(updates["w"]))
        length = 128 // state.nu["w"].shape[1]
        first = 40 // length * length
        assert wrong[3, first : first + length].all()
        assert wrong.sum() == length

    def test_train_state(self):
        create = functools.partial(TrainState.create, apply_fn=None, params=PARAMS, tx=int8())
        state, step = jax.jit(create)(), jax.jit(lambda state, grads: state.apply_gradients(grads=grads))
        for index in range(3):
            state = step(state, at(index))
        assert state.step == 3
        assert_nearly_same(state.params, looped(int8(), 3)[0])

    @pytest.mark.parametrize("kind", ["orbax", "flax"])
    @every_storage
    def test_checkpoint_goes_on_bit_for_bit(self, kind, moments, tmp_path):
        made = adamw(RATE, moments=moments)
        params, state = looped(made, 3, moments)
        if kind == "flax":
            restored = flax.serialization.from_bytes(initial(made, PARAMS), flax.serialization.to_bytes(state))
        else:
            checkpoint = pytest.importorskip("orbax.checkpoint")
            with checkpoint.StandardCheckpointer() as checkpointer:
                checkpointer.save(tmp_path / "state", state)
                checkpointer.wait_until_finished()
                restored = checkpointer.restore(tmp_path / "state", jax.eval_shape(made.init, PARAMS))
        assert_same(restored, state)
        step, _ = stepper(moments)
        assert_same(step(made, params, restored, at(3)), step(made, params, state, at(3)))

    def test_minimize_and_descend(self):
        target = np.linspace(-1, 1, 4096, dtype=np.float32)

        def loss(x):
            return jnp.sum((x - target) ** 2)

        made = adam(optax.cosine_decay_schedule(0.05, 200), moments="int8")

        @jax.jit
        def run(start):
            return descend(loss, start, made, steps=200).value, minimize(loss, start, made, max_steps=200).value

        values, end = jax.device_get(run(np.zeros(4096, np.float32)))
        assert values[-1] < 1e-3 * values[0]
        assert end < 1e-3 * values[0]

    def test_checked_finds_what_is_not_finite(self):
        made = checked(int8())
        grads = {**FIRST, "w": np.nan * FIRST["w"]}
        error, _ = checkify.checkify(jax.jit(made.update))(grads, initial(made, PARAMS), PARAMS)
        assert error.get().startswith("leaf ['w'] at step 1: the gradient is not finite")


@functools.partial(jax.jit, static_argnums=0)
def stepped(made, grads, state):
    return made.update(grads, state, PARAMS)


# -------------------------------------------------------------------------------------------------------------- errors


class TestErrors:
    @pytest.mark.parametrize(
        ("ours", "theirs", "expected"),
        [
            ("int8", "float32", r"state\.mu must be codes uint16\[32, 128\] of mu and nu in 8 bits, got float32"),
            ("int8", "int4", r"state\.mu must be codes uint16\[32, 128\] .*, got uint8\[32, 128\]"),
            ("int4", "int8", r"state\.mu must be codes uint8\[32, 128\] .*, got uint16\[32, 128\]"),
            ({"mu": "int8"}, "int8", r"state\.mu must be Blocks, got dict"),
            ("int8", {"mu": "int8"}, r"state\.mu"),
            (
                {"mu": "int8"},
                {"mu": "int4"},
                r"codes uint8\[32, 128\] and scales bfloat16\[32, 8\] of mu in 8 bits, got uint8\[32, 64\]",
            ),
        ],
    )
    def test_state_of_another_storage(self, ours, theirs, expected):
        state = initial(adamw(RATE, moments=theirs), PARAMS)
        with pytest.raises((TypeError, ValueError), match=expected):
            adamw(RATE, moments=ours).update(at(0), state, PARAMS)

    def test_state_in_codes_for_float32(self):
        state = initial(int8(), PARAMS)
        with pytest.raises((TypeError, ValueError), match=r"state\.mu"):
            adamw(RATE).update(at(0), state, PARAMS)

    def test_state_of_another_shape(self):
        state = initial(int8(), {**PARAMS, "w": np.ones((32, 160), np.float32)})
        with pytest.raises(ValueError, match=r"\['w'\].*state\.mu must be codes uint16\[32, 128\].*uint16\[32, 160\]"):
            int8().update(at(0), state, PARAMS)

    def test_unknown_moment(self):
        made = adamw(RATE, moments={"momentum": "int8"})
        with pytest.raises(ValueError, match="moments has 'momentum', which is none of this rule's: mu, nu"):
            made.init(PARAMS)

    def test_two_arguments_for_one_moment(self):
        made = adamw(RATE, mu_dtype="bfloat16", moments="int8")
        with pytest.raises(ValueError, match="moments and another argument both say how mu is stored"):
            made.init(PARAMS)
        state = jax.eval_shape(adamw(RATE, mu_dtype="bfloat16", moments={"nu": "int8"}).init, PARAMS)
        assert state.mu["w"].dtype == jnp.bfloat16
        assert isinstance(state.nu, Blocks)

    def test_wrong_argument(self):
        with pytest.raises(ValueError, match=r"adamw: moments must be one of .*got 'int3'"):
            adamw(RATE, moments="int3")
        with pytest.raises((TypeError, ValueError), match="moments"):
            adamw(RATE, moments=lambda path: "int3").init(PARAMS)


def test_names_are_public():
    assert jaxopt_adam.adamw(RATE, moments="int8") == int8()
    assert int8() != adamw(RATE)
