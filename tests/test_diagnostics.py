"""The figures of observe against the same in NumPy; and a step is the same whether it is observed or not."""

import functools
import re
from typing import ClassVar

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import AS_USERS_DO, FUSED_AS_FOR_USERS
from public import RULES

from jaxopt_adam import (
    Figures,
    ObserveState,
    Optimizer,
    adam,
    adamw,
    cautious,
    grid,
    master_weights,
    observe,
    sgd,
    stalled_fraction,
    summary,
)
from jaxopt_adam.storage._leaf import UNROUNDED

SHAPES = {"b": (7,), "w": (33, 48), "deep": {"scalar": ()}}


def is_shape(node):
    return isinstance(node, tuple)


def drawn(seed, dtype=np.float32, shapes=SHAPES, scale=1.0):
    generator = np.random.default_rng(seed)

    def one(shape):
        value = scale * generator.standard_normal(shape)
        if np.issubdtype(dtype, np.complexfloating):
            value = value + 1j * generator.standard_normal(shape)
        return jnp.asarray(value, dtype)

    return jax.tree.map(one, shapes, is_leaf=is_shape)


PARAMS = drawn(0)
GRADIENTS = [drawn(seed, scale=0.1) for seed in range(1, 6)]


def wide(value):
    value = np.asarray(value)
    return value.astype(np.complex128 if np.iscomplexobj(value) else np.float64)


def by_hand(params, history, updates, lost, rate, b1, b2, eps):
    """The figures of the last step of Adam in float64, from all of its gradients; leaf arrays, concatenated."""
    mu = nu = 0.0
    for grads in history:
        mu = b1 * mu + (1 - b1) * wide(grads)
        nu = b2 * nu + (1 - b2) * np.abs(wide(grads)) ** 2
    mu, root = mu / (1 - b1 ** len(history)), np.sqrt(nu / (1 - b2 ** len(history)))
    grads, weights, changes = wide(history[-1]), wide(params), wide(updates)
    norm = np.linalg.norm
    return {
        "gradient_norm": norm(grads),
        "update_norm": norm(changes),
        "weight_norm": norm(weights),
        "update_to_weight": norm(changes) / norm(weights),
        "effective_learning_rate": np.sqrt(np.mean(np.abs(changes / rate) ** 2)),
        "signal_to_noise": np.mean(np.abs(mu) / root),
        "under_eps": np.mean(root < eps),
        "lost_to_rounding": float(lost),
    }


@jax.jit
def lost_of(params, updates):
    """The fraction of each leaf's updates that is lost, and that of all of them."""
    return jax.tree.map(stalled_fraction, params, updates), stalled_fraction(params, updates)


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def update_of(optimizer, *given):
    """The step of an optimizer; or those of several, by name, whose gradients, states and parameters are by name, too.

    Several in one program share no array, so each is compiled as it is alone, but in half of the time.
    """
    if not isinstance(optimizer, dict):
        return optimizer.update(*given)
    done = {name: each.update(*(tree[name] for tree in given)) for name, each in optimizer.items()}
    return tuple({name: pair[index] for name, pair in done.items()} for index in (0, 1))


# Optimizers that differ in numbers only share a program.
update_quickly = jax.jit(update_of)
update_as_users_do = jax.jit(update_of, compiler_options=AS_USERS_DO)


def steps(optimizer, params, gradients, options=None):
    """The updates of some steps, and the last state."""
    several = optimizer if isinstance(optimizer, dict) else {"": optimizer}
    if all(isinstance(each, Optimizer) for each in several.values()):
        update = functools.partial(update_as_users_do if options else update_quickly, optimizer)
    else:
        update = jax.jit(functools.partial(update_of, optimizer), compiler_options=options)
    updates = None
    if several is optimizer:
        state = {name: each.init(params[name]) for name, each in several.items()}
    else:
        state = optimizer.init(params)
    for grads in gradients:
        updates, state = update(grads, state, params)
    return updates, state


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.float64, np.complex64])
def test_the_figures_are_those_of_numpy(dtype, request):
    if dtype is np.float64:
        request.getfixturevalue("x64")
    params, gradients = drawn(0, dtype), [drawn(seed, dtype) for seed in range(1, 5)]
    # An ε amid the roots, so that a share of them is under it.
    updates, state = steps(observe(adam(1e-2, b1=0.8, b2=0.95, eps=0.9)), params, gradients)
    figures = summary(state)
    assert figures.pop("step") == 4
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    lost, lost_of_all = lost_of(params, updates)
    columns = [jax.tree.leaves(tree) for tree in (params, updates, lost, *gradients)]
    history = [flat(each) for each in gradients]
    expected = by_hand(flat(params), history, flat(updates), lost_of_all, 1e-2, 0.8, 0.95, 0.9)
    for path, (param, update, share, *history) in zip(paths, zip(*columns, strict=True), strict=True):
        own = by_hand(param, history, update, share, 1e-2, 0.8, 0.95, 0.9)
        expected |= {f"{jax.tree_util.keystr(path)}/{name}": figure for name, figure in own.items()}
    assert 0.02 < expected["under_eps"] < 0.98
    assert set(figures) == set(expected)
    for name, figure in expected.items():
        np.testing.assert_allclose(figures[name], figure, rtol=2e-6, atol=1e-7, err_msg=name)


def test_a_share_of_the_updates_is_lost_to_rounding():
    params = drawn(0, jnp.bfloat16)
    updates, state = steps(observe(sgd(1e-2)), params, GRADIENTS)
    share = float(lost_of(params, updates)[1])
    assert 0.1 < share < 0.99
    np.testing.assert_allclose(summary(state)["lost_to_rounding"], share, rtol=1e-6)


@pytest.mark.parametrize("names", [list(RULES)[start::5] for start in range(5)], ids=" ".join)
def test_every_rule_is_left_as_it_is(names):
    # One matrix: steps of vectors are elementwise ones, and several leaves are observed below.
    shapes = {name: {"w": (16, 24)} for name in names}
    params, gradients = drawn(0, shapes=shapes), [drawn(seed, shapes=shapes) for seed in (1, 2, 3)]
    made = {name: RULES[name](learning_rate=0.1) for name in names}
    updates, states = steps({name: observe(each) for name, each in made.items()}, params, gradients, AS_USERS_DO)
    expected = steps(made, params, gradients, AS_USERS_DO)
    assert_same((updates, {name: state.inner_state for name, state in states.items()}), expected)
    for name in names:
        figures, norm = summary(states[name]), np.linalg.norm(flat(updates[name]))
        np.testing.assert_allclose(figures["update_norm"], norm, rtol=1e-5, err_msg=name)
        ratio = figures["update_norm"] / np.linalg.norm(flat(params[name]))
        np.testing.assert_allclose(figures["update_to_weight"], ratio, 1e-5, err_msg=name)


def assert_same(found, expected):
    """All bits are the same; the error has the path of the first array that differs."""

    def check(path, one, other):
        np.testing.assert_array_equal(one, other, err_msg=jax.tree_util.keystr(path))

    jax.tree.map_with_path(check, found, expected)


WRAPPED = {
    "optax": optax.adam(0.1),
    "optax lamb": optax.lamb(0.1),
    "inject_hyperparams": optax.inject_hyperparams(optax.adamw)(optax.linear_schedule(0.1, 0.05, 4)),
    "chain": optax.chain(optax.clip_by_global_norm(0.1), adam(None), optax.scale(-0.1)),
    "MultiSteps": optax.MultiSteps(adam(0.1), 2).gradient_transformation(),
    "apply_if_finite": optax.apply_if_finite(adam(0.1), 3),
    "masked": optax.masked(adam(0.1), {"b": False, "w": True}),
    "cautious": cautious(adam(0.1)),
    "int8": adamw(0.1, moments="int8"),
    "schedule": adam(optax.linear_schedule(0.1, 0.05, 4)),
}


@pytest.mark.parametrize("names", [list(WRAPPED)[:5], list(WRAPPED)[5:]], ids=", ".join)
def test_what_is_wrapped_is_left_as_it_is(names):
    # Two of them do not treat all leaves alike.
    shapes = {name: {"w": (64, 128)} | ({"b": (7,)} if name in ("masked", "chain") else {}) for name in names}
    params, gradients = drawn(0, shapes=shapes), [drawn(seed, shapes=shapes, scale=0.1) for seed in range(1, 6)]
    plain = {name: optax.chain(WRAPPED[name], optax.identity()) for name in names}
    # Within others, too.
    observed = {name: optax.chain(observe(WRAPPED[name]), optax.identity()) for name in names}
    updates, states = steps(observed, params, gradients, AS_USERS_DO)
    inner = {name: (state.inner_state, optax.EmptyState()) for name, (state, _) in states.items()}
    assert_same((updates, inner), steps(plain, params, gradients, AS_USERS_DO))
    for name, state in states.items():
        assert summary(state)["step"] == 5, name


def test_a_look_at_each_step_is_one_pass_and_copies_nothing():
    params, made = jnp.zeros((256, 1024)), observe(adamw(1e-3))

    def step(params, state, grads):
        updates, state = made.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(made.init, params)
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile(FUSED_AS_FOR_USERS)
    # The update, and seven sums for each eight rows.
    assert compiled.memory_analysis().temp_size_in_bytes <= (1 + 7 / 8) * params.nbytes + 2**15
    text = compiled.as_text()
    assert not re.search(r"= f32\[256,1024\]\S* copy\(", text)
    assert len(re.findall(r"= \(f32\[32,1024\].*\) fusion\(", text)) == 1


@pytest.mark.parametrize("moments", ["float32", "int8"])
def test_a_large_model_is_observed_without_copies(moments):
    shape = (4, 1024, 512)
    made = adamw(1e-3, moments=moments)
    generator = np.random.default_rng(0)
    params, *gradients = (generator.standard_normal(shape, np.float32) for _ in range(5))

    def step(optimizer, params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, updates

    def run(optimizer):
        """The largest size of its temporaries; and updates, parameters and states of some steps."""
        state = jax.eval_shape(optimizer.init, params)
        program = jax.jit(functools.partial(step, optimizer), donate_argnums=(0, 1)).lower(params, state, params)
        program = program.compile(AS_USERS_DO)
        carry, seen = (jnp.array(params), optimizer.init(params)), []
        for grads in gradients:
            *carry, updates = program(*carry, grads)
            # What is donated is gone after the next step.
            seen.append((updates, *jax.device_get(carry)))
        return program.memory_analysis().temp_size_in_bytes, seen

    plain_size, plain = run(made)
    for every, observed_at in ((1, [1, 2, 3, 4]), (2, [1, 1, 3, 3])):
        size, observed = run(observe(made, every=every))
        # An update or two; for moments in codes the new codes, too. Without the wait the parameters would be copied.
        room = (3 if moments == "int8" else 2 if every == 1 else 1) * params.nbytes
        assert size - plain_size <= room + 2**20, every
        for (*one, state), (*other, inner_state) in zip(observed, plain, strict=True):
            jax.tree.map(np.testing.assert_array_equal, (one, state.inner_state), (other, inner_state))
        assert [summary(state)["step"] for *_, state in observed] == observed_at


@pytest.mark.parametrize("moments", ["float32", "int8"])
def test_parameters_take_the_same_way_when_they_are_observed(moments):
    """Also where the compiler could fuse the update with what it is added to."""
    shapes = {"w": (64, 128)} | ({"b": (7,)} if moments == "float32" else {})
    gradients = [drawn(seed, shapes=shapes) for seed in (1, 2, 3)]
    made = adamw(0.1, moments=moments)

    def walked(optimizer):
        @functools.partial(jax.jit, compiler_options=AS_USERS_DO)
        def step(params, state, grads):
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        params = drawn(0, shapes=shapes)
        state = optimizer.init(params)
        for grads in gradients:
            params, state = step(params, state, grads)
        return params

    jax.tree.map(np.testing.assert_array_equal, walked(observe(made)), walked(made))


def test_by_default_large_models_are_observed_at_every_hundredth_step():
    optimizer = observe(sgd(0.1))

    @jax.jit
    def step(grads):
        state = optimizer.init(grads)._replace(updates=jnp.int32(50), step=jnp.int32(1))
        return optimizer.update(grads, state)[1].step

    def when(elements):
        return int(step(np.ones(elements, np.float32)))

    assert when(2**20) == 51
    assert when(2**20 + 1) == 1


def test_only_some_steps_are_observed():
    seen = []
    optimizer = observe(adam(0.1), every=3)
    state = optimizer.init(PARAMS)
    assert summary(state) == {"step": 0}
    for count, grads in enumerate([*GRADIENTS, *GRADIENTS], start=1):
        _, state = update_quickly(optimizer, grads, state, PARAMS)
        assert state.updates == count
        if summary(state)["step"] == count:
            expected = np.linalg.norm(flat(grads))
        seen.append(summary(state)["step"])
        np.testing.assert_allclose(summary(state)["gradient_norm"], expected, rtol=1e-6)
    assert seen == [1, 1, 1, 4, 4, 4, 7, 7, 7, 10]


def test_one_trace_serves_all_hyperparameters_and_steps():
    traces = 0

    @jax.jit
    def step(optimizer, state, grads):
        nonlocal traces
        traces += 1
        return optimizer.update(grads, state, PARAMS)[1]

    expected = summary(steps(observe(adam(1.0)), PARAMS, GRADIENTS[:3])[1])["effective_learning_rate"]
    for rate in (0.1, 0.2, np.float32(0.3)):
        optimizer = observe(adam(rate))
        state = optimizer.init(PARAMS)
        for grads in GRADIENTS[:3]:
            state = step(optimizer, state, grads)
        np.testing.assert_allclose(summary(state)["effective_learning_rate"], expected, rtol=1e-5)
    assert traces == 1


def test_a_batch_of_optimizers_has_a_batch_of_figures():
    optimizers, table = grid(adam, learning_rate=[0.1, 0.2], b1=[0.5, 0.9])

    def last(optimizer):
        def step(state, grads):
            return optimizer.update(grads, state, PARAMS)[1], None

        return jax.lax.scan(step, optimizer.init(PARAMS), jax.tree.map(lambda *each: np.stack(each), *GRADIENTS))[0]

    together, one = summary(jax.jit(jax.vmap(last))(observe(optimizers))), jax.jit(last)
    for row, hyperparameters in enumerate(table):
        alone = summary(one(observe(adam(**hyperparameters))))
        assert set(alone) == set(together)
        for name, figure in alone.items():
            np.testing.assert_allclose(together[name][row], figure, rtol=2e-5, err_msg=name)


@pytest.fixture(scope="module")
def expected():
    return summary(steps(observe(adam(0.1, b2=0.9)), PARAMS, GRADIENTS)[1])


class TestHyperparameters:
    def check(self, optimizer, expected):
        figures = summary(steps(optimizer, PARAMS, GRADIENTS)[1])
        assert set(figures) == set(expected)
        for name, figure in expected.items():
            np.testing.assert_allclose(figures[name], figure, rtol=3e-5, atol=1e-7, err_msg=name)

    def test_given(self, expected):
        given = {"learning_rate": 0.1, "b1": 0.9, "b2": 0.9, "eps": 1e-8}
        self.check(observe(optax.adam(0.1, b2=0.9), hyperparameters=given), expected)

    def test_given_as_a_schedule(self, expected):
        halves = optax.linear_schedule(0.2, 0.1, 4)
        figures = summary(
            steps(observe(optax.adam(halves, b2=0.9), hyperparameters={"learning_rate": halves}), PARAMS, GRADIENTS)[1]
        )
        np.testing.assert_allclose(figures["effective_learning_rate"], expected["effective_learning_rate"], rtol=1e-5)
        assert "signal_to_noise" not in figures

    def test_kept_in_the_state(self, expected):
        self.check(observe(optax.inject_hyperparams(optax.adam)(0.1, b2=0.9)), expected)

    def test_of_a_wrapper(self, expected):
        figures = summary(steps(observe(cautious(adam(0.1, b2=0.9))), PARAMS, GRADIENTS)[1])
        np.testing.assert_allclose(figures["signal_to_noise"], expected["signal_to_noise"], rtol=1e-5)
        assert figures["effective_learning_rate"] > 0

    def test_of_a_schedule(self, expected):
        optimizer = observe(adam(optax.linear_schedule(0.2, 0.1, 4), b2=0.9))
        self.check(optimizer, expected)
        # The current learning rate is that of the optimizer within.
        state = optimizer.init(PARAMS)
        state = state._replace(inner_state=state.inner_state._replace(count=jnp.int32(4)))
        np.testing.assert_allclose(optimizer.current_learning_rate(state), 0.1, rtol=1e-6)

    def test_by_leaf(self, expected):
        optimizer = observe(adam({"b": 0.1, "w": 0.01, "deep": 0.1}, b2=0.9))
        _, state = steps(optimizer, PARAMS, GRADIENTS)
        figures = summary(state)
        for name, figure in expected.items():
            if name.endswith("effective_learning_rate"):
                np.testing.assert_allclose(figures[name], figure, rtol=3e-5, err_msg=name)
        np.testing.assert_allclose(figures["['w']/update_norm"], 0.1 * expected["['w']/update_norm"], rtol=1e-5)
        assert optimizer.current_learning_rate(state)["w"] == np.float32(0.01)

    def test_unknown(self, expected):
        figures = summary(steps(observe(optax.adam(0.1)), PARAMS, GRADIENTS)[1])
        absent = {name for name in expected if name.split("/")[-1] not in {n.split("/")[-1] for n in figures}}
        assert {name for name in absent if "/" not in name} == {
            "effective_learning_rate",
            "signal_to_noise",
            "under_eps",
        }


class TestQuantizationError:
    SHAPE: ClassVar = {"w": (64, 128)}

    @pytest.mark.parametrize(("moments", "least", "most"), [("int8", 1e-3, 0.02), ("int4", 0.01, 0.4)])
    def test_at_the_first_step_it_is_the_difference_to_float32(self, moments, least, most):
        params, gradients = drawn(0, shapes=self.SHAPE), [drawn(1, shapes=self.SHAPE)]
        exact, _ = steps(adam(0.1), params, gradients)
        updates, state = steps(observe(adam(0.1, moments=moments)), params, gradients)
        difference = np.linalg.norm(wide(updates["w"]) - wide(exact["w"])) / np.linalg.norm(wide(exact["w"]))
        figure = summary(state)["quantization_error"]
        np.testing.assert_allclose(figure, difference, rtol=1e-3)
        assert least < figure < most

    @pytest.mark.parametrize("moments", ["int8", "int4"])
    def test_later_it_is_the_difference_to_a_step_without_rounding(self, moments):
        params, gradients = drawn(0, shapes=self.SHAPE), [drawn(seed, shapes=self.SHAPE) for seed in range(1, 8)]
        optimizer = adam(0.1, moments=moments)
        _, before = steps(optimizer, params, gradients[:-1])
        updates, _ = update_quickly(optimizer, gradients[-1], before, params)
        # From what the state holds, the whole step in float64.
        mu, nu = (wide(each["w"]) for each in decoded(optimizer, before, params))
        grads, count = wide(gradients[-1]["w"]), len(gradients)
        mu, nu = 0.9 * mu + 0.1 * grads, 0.999 * nu + 0.001 * grads**2
        exact = -0.1 * (mu / (1 - 0.9**count)) / (np.sqrt(nu / (1 - 0.999**count)) + 1e-8)
        difference = np.linalg.norm(wide(updates["w"]) - exact) / np.linalg.norm(exact)
        _, state = steps(observe(optimizer), params, gradients)
        np.testing.assert_allclose(summary(state)["quantization_error"], difference, rtol=1e-3)

    def test_within_and_around_master_weights(self):
        params = drawn(0, jnp.bfloat16, self.SHAPE)
        gradients = [drawn(seed, jnp.bfloat16, self.SHAPE) for seed in range(1, 4)]
        within, around = (
            summary(steps(optimizer, params, gradients)[1])
            for optimizer in (
                master_weights(observe(adamw(1e-3, moments="int8"))),
                observe(master_weights(adamw(1e-3, moments="int8"))),
            )
        )
        assert 0 < within["quantization_error"] < 0.02
        assert within["signal_to_noise"] == around["signal_to_noise"]
        assert around["lost_to_rounding"] == 0

    def test_wrappers_that_choose_between_states_hide_it(self):
        int8 = adam(0.1, moments="int8")
        made = {
            "MultiSteps": optax.MultiSteps(int8, 2).gradient_transformation(),
            "apply_if_finite": optax.apply_if_finite(int8, 3),
            "conditionally_transform": optax.transforms.conditionally_transform(int8, lambda count: count >= 0),
        }
        shapes = dict.fromkeys(made, self.SHAPE)
        params, gradients = drawn(0, shapes=shapes), [drawn(seed, shapes=shapes) for seed in range(1, 3)]
        updates, states = steps({name: observe(each) for name, each in made.items()}, params, gradients)
        assert_same(updates, steps(made, params, gradients)[0])
        for name, state in states.items():
            assert {"quantization_error", "signal_to_noise"}.isdisjoint(summary(state)), name
            assert summary(state)["update_norm"] > 0, name

    @pytest.mark.parametrize(("moments", "updates"), [("float32", 1), ("int8", 2)])
    def test_a_small_model_needs_one_more_update_for_it_and_none_for_the_other_figures(self, moments, updates):
        made, calls = adam(0.1, moments=moments), []

        def update(*given, **extra_args):
            calls.append(None)
            return made.update(*given, **extra_args)

        counted = observe(optax.GradientTransformationExtraArgs(made.init, update))
        params = drawn(0, shapes=self.SHAPE)
        jax.eval_shape(counted.update, params, counted.init(params), params)
        assert len(calls) == updates

    def test_an_extra_argument_called_rounded_is_somebody_elses(self):
        params = drawn(0, shapes=self.SHAPE)
        made = optax.chain(adamw(0.1, moments="int8"))
        state = made.init(params)
        plain, rounded = (
            jax.eval_shape(made.update, params, state, params, **each) for each in ({}, {"rounded": False})
        )
        assert plain == rounded

    def test_without_codes_there_is_none(self):
        assert "quantization_error" not in summary(steps(observe(adam(0.1)), PARAMS, GRADIENTS)[1])

    def test_other_rules_have_it_too(self):
        names = ["adan", "rmsprop", "lion", "ademamix", "schedule_free_adamw", "amsgrad"]
        shapes = dict.fromkeys(names, self.SHAPE)
        params, gradients = drawn(0, shapes=shapes), [drawn(seed, shapes=shapes) for seed in range(1, 4)]
        observed = {name: observe(RULES[name](0.1, moments="int8")) for name in names}
        for name, state in steps(observed, params, gradients)[1].items():
            assert 0 <= summary(state)["quantization_error"] < 0.2, name


def decoded(optimizer, state, params):
    """The moments in float32: what a step with a zero gradient and no rounding leaves of them, over the decays."""
    nothing = jax.tree.map(jnp.zeros_like, params)
    _, after = jax.jit(functools.partial(optimizer.update, **{UNROUNDED: True}))(nothing, state, params)
    return jax.tree.map(lambda leaf: leaf / 0.9, after.mu), jax.tree.map(lambda leaf: leaf / 0.999, after.nu)


class TestSummary:
    def test_several_that_are_observed_have_their_paths_before_their_names(self):
        parts = {"fast": observe(adam(0.1)), "slow": observe(sgd(0.01))}
        optimizer = optax.partition(parts, {"b": "slow", "w": "fast", "deep": "fast"})
        figures = summary(steps(optimizer, PARAMS, GRADIENTS)[1])
        (fast,) = (name for name in figures if name.endswith("/step") and "fast" in name)
        prefix = fast.removesuffix("step")
        np.testing.assert_allclose(
            figures[f"{prefix}['w']/gradient_norm"], np.linalg.norm(GRADIENTS[-1]["w"]), rtol=1e-6
        )
        assert all(isinstance(figure, (float, int)) for figure in figures.values())

    def test_of_a_single_leaf(self):
        _, state = observe(sgd(0.5)).update(3.0, observe(sgd(0.5)).init(1.0), 2.0)
        assert summary(state) == {
            "step": 1,
            "gradient_norm": 3.0,
            "update_norm": 1.5,
            "weight_norm": 2.0,
            "update_to_weight": 0.75,
            "effective_learning_rate": 3.0,
            "lost_to_rounding": 0.0,
        }

    def test_without_parameters(self):
        optimizer = observe(sgd(0.5))
        _, state = optimizer.update(3.0, optimizer.init(1.0))
        assert set(summary(state)) == {"step", "gradient_norm", "update_norm", "effective_learning_rate"}

    def test_a_gradient_that_is_not_finite_shows(self):
        grads = GRADIENTS[0] | {"w": np.array(GRADIENTS[0]["w"])}
        grads["w"][3, 4] = np.inf
        figures = summary(steps(observe(adam(0.1)), PARAMS, [grads])[1])
        assert figures["gradient_norm"] == np.inf == figures["['w']/gradient_norm"]
        assert np.isfinite(figures["['b']/gradient_norm"])

    def test_nothing_observed(self):
        with pytest.raises(ValueError, match="state must hold what observe keeps"):
            summary(adam(0.1).init(PARAMS))


class TestErrors:
    def test_what_is_no_optimizer(self):
        with pytest.raises(TypeError, match="inner must be an optimizer"):
            observe(lambda x: x)

    @pytest.mark.parametrize(("every", "error"), [(0, ValueError), (2.5, TypeError), ("often", TypeError)])
    def test_every(self, every, error):
        with pytest.raises(error, match="every must be a whole number ≥ 1"):
            observe(adam(0.1), every=every)

    @pytest.mark.parametrize("given", [{"b1": 1.5}, {"b2": -1}, {"eps": -1e-8}, {"learning_rate": -1}])
    def test_hyperparameters(self, given):
        with pytest.raises(ValueError, match=rf"hyperparameters\['{next(iter(given))}'\] must be"):
            observe(optax.adam(0.1), hyperparameters=given)

    @pytest.mark.parametrize(
        ("given", "error"), [({"beta": 0.9}, ValueError), (0.9, TypeError), ({"b1": "x"}, TypeError)]
    )
    def test_hyperparameters_of_another_kind(self, given, error):
        with pytest.raises(error, match="hyperparameters"):
            observe(optax.adam(0.1), hyperparameters=given)

    def test_the_state_of_another(self):
        with pytest.raises(TypeError, match="state must be an ObserveState"):
            observe(adam(0.1)).update(PARAMS, adam(0.1).init(PARAMS))

    def test_parameters_of_another_tree(self):
        optimizer = observe(optax.sgd(0.1))
        with pytest.raises(ValueError, match="the gradients must have the same tree as params"):
            optimizer.update(PARAMS, optimizer.init(PARAMS), {"b": PARAMS["b"]})

    def test_a_gradient_of_whole_numbers(self):
        optimizer = observe(optax.sgd(0.1))
        with pytest.raises(TypeError, match=r"leaf \['w'\] must have a floating-point dtype, got int32"):
            optimizer.update({"w": jnp.arange(3)}, optimizer.init({"w": jnp.zeros(3)}))


def test_what_is_replaced_is_that_of_the_optimizer_within():
    optimizer = observe(adam(1e-3), every=2)
    replaced = optimizer.replace(learning_rate=0.5, every=1)
    assert replaced == observe(adam(0.5), every=1)
    updates, state = steps(replaced, PARAMS, GRADIENTS[:1])
    np.testing.assert_allclose(np.abs(updates["w"]), 0.5, rtol=1e-3)
    np.testing.assert_allclose(summary(state)["effective_learning_rate"], 1.0, rtol=1e-3)
    assert cautious(adam(1e-3)).replace(b1=0.5, eps=0.1) == cautious(adam(1e-3, b1=0.5), eps=0.1)
    with pytest.raises(TypeError, match="observe has no hyperparameter momentum"):
        optimizer.replace(momentum=0.9)


def test_a_sweep_of_what_is_observed():
    """A batch within the wrapper, and a batch of wrappers."""
    one, table = grid(lambda learning_rate: observe(adam(learning_rate)), learning_rate=[0.1, 0.2])
    other = observe(grid(adam, learning_rate=[0.1, 0.2])[0])
    assert one == other
    assert table == [{"learning_rate": 0.1}, {"learning_rate": 0.2}]
    step = jax.jit(jax.vmap(lambda each: each.update(GRADIENTS[0], each.init(PARAMS), PARAMS)[1]))
    for optimizers in (one, other):
        state = step(optimizers)
        np.testing.assert_allclose(summary(state)["effective_learning_rate"], [1.0, 1.0], rtol=1e-3)


def test_a_step_can_be_differentiated_as_without():
    def loss(rate, wrap):
        optimizer = wrap(adam(rate))
        params = {"w": jnp.arange(1.0, 4.0)}
        state = optimizer.init(params)
        for _ in range(3):
            grads = jax.grad(lambda params: jnp.sum(params["w"] ** 3))(params)
            updates, state = optimizer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        return jnp.sum(params["w"] ** 2)

    def derivatives(wrap):
        of_rate = functools.partial(loss, wrap=wrap)
        return jax.jit(lambda rate: (jax.grad(of_rate)(rate), jax.jacfwd(of_rate)(rate)))(0.1)

    np.testing.assert_allclose(derivatives(observe), derivatives(lambda it: it), rtol=1e-6)


def test_restored_from_bytes_it_goes_on_bit_for_bit():
    optimizer = observe(adam(0.1), every=3)
    update = functools.partial(update_quickly, optimizer)
    whole, restored = optimizer.init(PARAMS), optimizer.init(PARAMS)
    for count, grads in enumerate(GRADIENTS):
        _, whole = update(grads, whole, PARAMS)
        _, restored = update(grads, restored, PARAMS)
        if count == 2:
            restored = flax.serialization.from_bytes(optimizer.init(PARAMS), flax.serialization.to_bytes(restored))
    jax.tree.map(np.testing.assert_array_equal, restored, whole)
    assert isinstance(restored, ObserveState)
    assert isinstance(restored.total, Figures)


def test_donated_states_and_empty_trees():
    optimizer = observe(adam(0.1))
    state = jax.jit(optimizer.update, donate_argnums=1)(GRADIENTS[0], optimizer.init(PARAMS), PARAMS)[1]
    assert summary(state)["step"] == 1
    _, state = update_quickly(optimizer, {}, optimizer.init({}), {})
    assert summary(state) == {"step": 1}
    _, state = update_quickly(optimizer, {"w": jnp.zeros((0, 3))}, optimizer.init({"w": jnp.zeros((0, 3))}))
    assert summary(state)["gradient_norm"] == 0


@pytest.mark.devices
@pytest.mark.parametrize("moments", ["float32", "int8"])
def test_on_eight_devices(moments):
    """The figures are those of one device, on either kind of mesh."""
    # With codes one leaf is enough: to the figures they are but other numbers.
    shapes = {"w": (64, 2048)} | ({"v": (4096,)} if moments == "float32" else {})
    params, *gradients = (drawn(seed, shapes=shapes) for seed in range(4))
    optimizer = observe(adamw(0.1, moments=moments))

    @jax.jit
    def run(params, gradients):
        def step(state, grads):
            updates, state = optimizer.update(grads, state, params)
            return state, updates

        return jax.lax.scan(step, optimizer.init(params), gradients)

    gradients = jax.tree.map(lambda *each: np.stack(each), *gradients)
    state, expected_updates = run(params, gradients)
    expected = summary(state)
    for kind in (jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit):
        mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
        specs = {"w": ("x", "y"), "v": ("x",)}

        def put(name, leaf, *before, mesh=mesh, specs=specs):
            spec = jax.sharding.PartitionSpec(*before, *specs[name])
            return jax.device_put(leaf, jax.sharding.NamedSharding(mesh, spec))

        with jax.set_mesh(mesh):
            state, updates = run(
                {name: put(name, leaf) for name, leaf in params.items()},
                {name: put(name, leaf, None) for name, leaf in gradients.items()},
            )
        figures = summary(state)
        assert set(figures) == set(expected)
        for name, figure in expected.items():
            np.testing.assert_allclose(figures[name], figure, rtol=1e-5, atol=1e-7, err_msg=name)
        if kind is jax.sharding.AxisType.Auto:
            jax.tree.map(np.testing.assert_array_equal, jax.device_get(updates), jax.device_get(expected_updates))


def test_summary_of_traced_figures():
    optimizer = observe(sgd(0.5))
    state = optimizer.init(1.0)
    for transform in (jax.jit, jax.vmap):
        with pytest.raises(TypeError, match=r"^summary: the state is traced.*jit.*: state.total.gradient_norm(\n|$)"):
            transform(summary)(jax.tree.map(lambda leaf: leaf[None], state))
    with pytest.raises(TypeError, match=r": state\[0\].total.gradient_norm or state\[1\].total.gradient_norm(\n|$)"):
        jax.jit(summary)((state, state))
