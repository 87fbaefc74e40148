"""Schedules as data: optax's values, their numbers as leaves, and what optimizers do with them."""

import copy
import inspect
import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_adam import adamw, grid, schedules, sgd
from jaxopt_adam.schedules import DataSchedule, join_schedules, linear_schedule, schedule

CYCLE = {"init_value": 0.1, "peak_value": 1.0, "warmup_steps": 10, "decay_steps": 50}
TABLE = {
    "constant": ("constant_schedule", {"value": 0.3}),
    "polynomial": (
        "polynomial_schedule",
        {"init_value": 0.7, "end_value": 0.1, "power": 2.5, "transition_steps": 90, "transition_begin": 7},
    ),
    "polynomial up": (
        "polynomial_schedule",
        {"init_value": 0.1, "end_value": 0.7, "power": 1, "transition_steps": 90, "transition_begin": -7},
    ),
    "no polynomial": (
        "polynomial_schedule",
        {"init_value": 0.7, "end_value": 0.1, "power": 2, "transition_steps": 0},
    ),
    "linear": ("linear_schedule", {"init_value": 0.7, "end_value": 0.1, "transition_steps": 90}),
    "exponential": ("exponential_decay", {"init_value": 0.7, "transition_steps": 30, "decay_rate": 0.4}),
    "exponential in stairs": (
        "exponential_decay",
        {
            "init_value": 0.7,
            "transition_steps": 30,
            "decay_rate": 0.4,
            "transition_begin": 8,
            "staircase": True,
            "end_value": 0.05,
        },
    ),
    "exponential growth": (
        "exponential_decay",
        {"init_value": 0.7, "transition_steps": 30, "decay_rate": 1.4, "end_value": 2.0},
    ),
    "no decay": ("exponential_decay", {"init_value": 0.7, "transition_steps": 30, "decay_rate": 0.0}),
    "cosine": ("cosine_decay_schedule", {"init_value": 0.7, "decay_steps": 90, "alpha": 0.1, "exponent": 1.5}),
    "piecewise": (
        "piecewise_constant_schedule",
        {"init_value": 0.7, "boundaries_and_scales": {60: 0.3, 20: 0.5}},
    ),
    "one piece": ("piecewise_constant_schedule", {"init_value": 0.7}),
    "interpolated": (
        "piecewise_interpolate_schedule",
        {"interpolate_type": "linear", "init_value": 0.7, "boundaries_and_scales": {60: 0.3, 20: 0.5}},
    ),
    "interpolated along cosines": (
        "piecewise_interpolate_schedule",
        {"interpolate_type": "cosine", "init_value": 0.7, "boundaries_and_scales": {20: 0.5, 60: 3.0}},
    ),
    "linear cycle": ("linear_onecycle_schedule", {"transition_steps": 90, "peak_value": 0.7}),
    "cosine cycle": ("cosine_onecycle_schedule", {"transition_steps": 90, "peak_value": 0.7, "pct_start": 0.29}),
    "warm-up": ("warmup_constant_schedule", {"init_value": 0.1, "peak_value": 0.7, "warmup_steps": 20}),
    "warm-up and cosine": ("warmup_cosine_decay_schedule", CYCLE | {"end_value": 0.05, "exponent": 0.8}),
    "warm-up to zero": ("warmup_cosine_decay_schedule", CYCLE | {"peak_value": 0.0}),
    "no warm-up": ("warmup_cosine_decay_schedule", CYCLE | {"warmup_steps": 0}),
    "warm-up and exponential": (
        "warmup_exponential_decay_schedule",
        {"init_value": 0.1, "peak_value": 0.7, "warmup_steps": 20, "transition_steps": 30, "decay_rate": 0.4},
    ),
    "restarts": ("sgdr_schedule", {"cosine_kwargs": [CYCLE, CYCLE | {"peak_value": 0.5}, CYCLE | {"decay_steps": 70}]}),
}
SMOOTH = [name for name in TABLE if name not in ("no polynomial", "warm-up to zero", "no decay", "no warm-up")]
COUNTS = np.unique(
    [each + shift for each in (0, 7, 8, 10, 20, 26, 27, 30, 50, 60, 76, 90, 97, 100, 170) for shift in (-1, 0, 1)]
    + [33, 45, 71, 85, 300, 2**31 - 2]
)[1:]

evaluate = jax.jit(lambda each, counts: jax.vmap(each)(counts))


def pair(name):
    factory, arguments = TABLE[name]
    return getattr(schedules, factory)(**arguments), getattr(optax.schedules, factory)(**arguments)


def exact(name, factor=1.0):
    """Optax's formula in float64, for numbers that are those of float32."""
    factory, arguments = TABLE[name]
    arguments = jax.tree.map(
        lambda each: float(np.float32(each) * np.float32(factor)) if isinstance(each, float) else each, arguments
    )
    with jax.enable_x64(True):
        theirs = getattr(optax.schedules, factory)(**arguments)
        return np.array(jax.jit(jax.vmap(theirs))(np.int64(COUNTS)))


def assert_ulps(name, actual, expected):
    """Within 5 ulp of float32; powers, of which XLA loses some, within 12."""
    ulps = 12 if "exponential" in name else 5
    np.testing.assert_array_less(
        np.abs(actual - expected), ulps * np.spacing(np.abs(expected).astype(np.float32)) + 1e-30
    )


@pytest.mark.parametrize("name", TABLE)
def test_values_are_those_of_optax(name):
    """With numbers that are known, traced and in a batch.

    Our formulas lose fewer digits than optax's, so the values are compared with those of optax's formulas in float64.
    In float32 optax agrees to 2 ulp of the largest value, and to 300 ulp of the value itself.
    """
    ours, theirs = pair(name)
    expected, batch = exact(name), jax.tree.map(lambda number: np.float32([number] * 2), ours)

    @jax.jit
    def values(made, batch, counts):
        each = jax.vmap(lambda each, counts: jax.vmap(each)(counts), (0, None))
        return jax.vmap(ours)(counts), jax.vmap(made)(counts), each(batch, counts)

    known, traced, rows = jax.device_get(values(ours, batch, COUNTS.astype(np.int32)))
    assert_ulps(name, known, expected)
    assert_ulps(name, np.asarray([ours(int(count)) for count in COUNTS[::7]]), expected[::7])
    assert_ulps(name, traced, expected)
    assert_ulps(name, rows[0], expected)
    np.testing.assert_array_equal(rows[0], rows[1])
    in_float32 = np.asarray(jax.vmap(theirs)(jnp.asarray(COUNTS, jnp.int32)), np.float32)
    np.testing.assert_allclose(known, in_float32, rtol=0, atol=2 * np.spacing(np.max(in_float32)) + 1e-30)


def test_all_of_optax_is_here():
    """Every schedule of optax's, with its arguments, order and defaults."""
    theirs = {
        name: each
        for name, each in vars(optax.schedules).items()
        if inspect.isfunction(each) and not name.startswith(("inject", "_"))
    }
    assert set(theirs) == {factory for factory, _ in TABLE.values()} | {"join_schedules"}
    for name, each in theirs.items():
        ours = inspect.signature(getattr(schedules, name)).parameters.values()
        theirs_parameters = inspect.signature(each).parameters.values()
        assert [(p.name, p.default) for p in ours] == [(p.name, p.default) for p in theirs_parameters], name


class TestOthers:
    def test_warmup_stable_decay(self):
        for form, share in (("linear", 0.25), ("1-sqrt", 0.5)):
            made = schedules.warmup_stable_decay_schedule(0.0, 1.0, 10, 70, 20, end_value=0.2, decay_type=form)
            values = evaluate(made, jnp.array([0, 5, 10, 79, 80, 85, 100, 1000]))
            expected = [0, 0.5, 1, 1, 1, 1 - 0.8 * share, 0.2, 0.2]
            np.testing.assert_allclose(values, expected, rtol=1e-6)

    def test_inverse_sqrt(self):
        values = evaluate(schedules.warmup_inverse_sqrt_schedule(0.0, 2.0, 100), jnp.array([0, 50, 100, 400, 10_000]))
        np.testing.assert_allclose(values, [0, 1, 2, 1, 0.2], rtol=1e-6)
        values = evaluate(schedules.warmup_inverse_sqrt_schedule(0.0, 2.0, 0), jnp.array([0, 1, 4, 16]))
        np.testing.assert_allclose(values, [2, 2, 1, 0.5], rtol=1e-6)

    def test_joined(self):
        parts, boundaries = [linear_schedule(0.0, 1.0, 10), lambda count: 0.5, linear_schedule(0.5, 0.0, 10)], [20, 30]
        theirs = [optax.linear_schedule(0.0, 1.0, 10), lambda count: 0.5, optax.linear_schedule(0.5, 0.0, 10)]
        ours, theirs = join_schedules(parts, boundaries), optax.join_schedules(theirs, boundaries)
        counts = np.arange(45)
        expected = np.array([theirs(int(count)) for count in counts])
        np.testing.assert_allclose(evaluate(ours, jnp.asarray(counts)), expected, rtol=0, atol=1e-7)
        assert len(jax.tree.leaves(ours)) == 10


class TestData:
    @pytest.mark.parametrize("name", TABLE)
    def test_reads_copies_and_compares(self, name):
        made, _ = pair(name)
        assert eval(repr(made), vars(schedules).copy()) == made
        assert pickle.loads(pickle.dumps(made)) == made == copy.deepcopy(made)
        assert hash(made) == hash(jax.tree.map(lambda number: number + 1, made))
        assert made != jax.tree.map(lambda number: number + 1, made)

    def test_numbers_are_leaves(self):
        made = schedules.warmup_cosine_decay_schedule(**CYCLE)
        assert jax.tree.leaves(made) == [0.1, 1.0, 10.0, 50.0, 0.0, 1.0]
        assert len(jax.tree.leaves(schedules.piecewise_constant_schedule(1.0, {10: 0.5, 20: 0.5}))) == 5
        assert len(jax.tree.leaves(schedules.sgdr_schedule([CYCLE, CYCLE]))) == 12

    def test_new_numbers_need_no_trace(self):
        traces = 0

        @jax.jit
        def value(each, count):
            nonlocal traces
            traces += 1
            return each(count)

        for steps in range(60, 80):
            value(
                schedules.warmup_cosine_decay_schedule(**CYCLE | {"decay_steps": steps, "warmup_steps": steps / 4}), 5
            )
        assert traces == 1

    @pytest.mark.parametrize("name", SMOOTH)
    def test_derivatives(self, name, x64):
        """By every number, against finite differences, where the value is smooth."""
        made, _ = pair(name)
        leaves, tree = jax.tree.flatten(made)
        leaves = np.array(leaves, np.float64)
        steps = 1e-6 * np.maximum(1, np.abs(leaves))

        @jax.jit
        @jax.vmap
        def slopes(count):
            value = lambda numbers: jax.tree.unflatten(tree, list(numbers))(count)
            above, below = (jax.vmap(value)(leaves + sign * np.diag(steps)) for sign in (1, -1))
            return jax.grad(value)(jnp.asarray(leaves)), (above - below) / (2 * steps)

        exact, rough = slopes(np.array([3, 33, 71, 0, 90, 170, 1000]))
        assert np.isfinite(exact).all()
        # A boundary that is rounded to a whole number has no derivative, nor has a value at a corner, as the last are.
        exact, rough = np.asarray(exact)[:3], np.asarray(rough)[:3]
        smooth = np.abs(rough) < 5
        np.testing.assert_allclose(exact[smooth], rough[smooth], atol=1e-5)

    def test_is_unchangeable(self):
        with pytest.raises(
            AttributeError, match=r"a schedule cannot be changed; replace\(init_value=...\) makes another"
        ):
            linear_schedule(0.0, 1.0, 10).init_value = 3

    def test_own_schedules(self):
        @schedule
        def halving(init_value, steps=10):
            return lambda count: init_value * 0.5 ** (count // steps)

        assert isinstance(halving(1.0), DataSchedule)
        assert halving(1.0)(25) == 0.25
        assert jax.vmap(lambda each: each(25))(jax.vmap(halving)(jnp.array([1.0, 2.0]))).tolist() == [0.25, 0.5]
        with pytest.raises(TypeError, match="every hyperparameter must have a name of its own"):
            schedule(lambda *numbers: lambda count: 0.0)

    def test_narrow_arrays_are_widened(self):
        assert linear_schedule(jnp.bfloat16(1.0), 0.0, 1000)(1) == np.float32(0.999)


@pytest.mark.parametrize(
    ("name", "arguments", "error", "message"),
    [
        ("constant_schedule", {"value": "1"}, TypeError, "constant_schedule: value must be a real number, got '1'"),
        ("linear_schedule", {"init_value": 0.0, "end_value": 1.0}, TypeError, "missing .*transition_steps"),
        ("linear_schedule", {"init_value": np.nan, "end_value": 1.0, "transition_steps": 1}, ValueError, "init_value"),
        ("cosine_decay_schedule", {"init_value": 1.0, "decay_steps": 0}, ValueError, "decay_steps must be a number of"),
        ("exponential_decay", {"init_value": 1.0, "transition_steps": 1, "decay_rate": 1j}, TypeError, "decay_rate"),
        (
            "piecewise_constant_schedule",
            {"init_value": 1.0, "boundaries_and_scales": {10: -1.0}},
            ValueError,
            r"boundaries_and_scales\[10\] must be a scale ≥ 0, got -1.0",
        ),
        ("piecewise_constant_schedule", {"init_value": 1.0, "boundaries_and_scales": 3}, TypeError, "pairs of them"),
        (
            "piecewise_interpolate_schedule",
            {"interpolate_type": "spline", "init_value": 1.0},
            ValueError,
            "interpolate_type must be one of 'linear', 'cosine', got 'spline'",
        ),
        (
            "sgdr_schedule",
            {"cosine_kwargs": [{"init_value": 1.0}]},
            TypeError,
            "sgdr_schedule: cosine_kwargs: .*missing",
        ),
        ("sgdr_schedule", {"cosine_kwargs": CYCLE}, TypeError, "must be a list of dictionaries"),
        ("sgdr_schedule", {"cosine_kwargs": []}, ValueError, "at least one"),
        (
            "join_schedules",
            {"schedules": [0.1], "boundaries": []},
            TypeError,
            r"schedules\[0\] must be a schedule, got 0.1",
        ),
        ("join_schedules", {"schedules": [abs], "boundaries": 3}, TypeError, "boundaries must be a list"),
    ],
)
def test_errors(name, arguments, error, message):
    with pytest.raises(error, match=message):
        getattr(schedules, name)(**arguments)


def test_joined_needs_boundaries():
    with pytest.raises(ValueError, match="2 schedules need 1 boundaries, got 0"):
        join_schedules([linear_schedule(0.0, 1.0, 10)] * 2, [])(0)


class TestInOptimizers:
    """A schedule as a hyperparameter."""

    def test_is_data_in_an_optimizer(self):
        traces = 0

        @jax.jit
        def step(optimizer, state, params):
            nonlocal traces
            traces += 1
            return optimizer.update(params, state, params)

        params = jnp.ones(3)
        for peak in (0.1, 0.2, 0.3):
            rate = schedules.warmup_cosine_decay_schedule(0.0, peak, 2, 10)
            optimizer = adamw(rate, weight_decay=linear_schedule(0.1, 0.0, 10))
            theirs = optax.adamw(optax.warmup_cosine_decay_schedule(0.0, peak, 2, 10), weight_decay=0.1)
            state, other = optimizer.init(params), theirs.init(params)
            for count in range(3):
                assert optimizer.current_learning_rate(state) == pytest.approx(peak * min(count, 2) / 2)
                updates, state = step(optimizer, state, params)
                expected, other = theirs.update(params, other, params)
            ratio = (1 + 0.1 * 0.8) / (1 + 0.1)  # weight decay falls
            np.testing.assert_allclose(updates, expected * ratio, rtol=1e-5)
        assert traces == 1

    def test_without_jit(self):
        """The same as compiled, while the rate changes from step to step."""
        optimizer, params = sgd(linear_schedule(1.0, 0.0, 4)), jnp.ones(3)
        state = compiled = optimizer.init(params)
        for count in range(4):
            updates, state = optimizer.update(params, state, params)
            expected, compiled = jax.jit(optimizer.update)(params, compiled, params)
            np.testing.assert_array_equal(updates, expected)
            assert updates[0] == -(1 - count / 4)

    def test_tree_of_schedules(self):
        rates = {"a": linear_schedule(1.0, 0.0, 4), "b": 0.5, "c": lambda count: 0.25}
        optimizer, params = sgd(rates), {"a": jnp.ones(2), "b": jnp.ones(2), "c": jnp.ones(2)}
        state = optimizer.init(params)
        for _ in range(2):
            updates, state = optimizer.update(params, state)
        assert jax.tree.map(lambda each: float(each[0]), updates) == {"a": -0.75, "b": -0.5, "c": -0.25}
        assert optimizer.current_learning_rate(state) == {"a": 0.5, "b": 0.5, "c": 0.25}
        changed = optimizer.replace(init_value=2.0)
        assert changed.hyperparameters["learning_rate"]["a"](0) == 2.0
        assert changed == optimizer.replace(**{"learning_rate['a'].init_value": 2.0})

    @pytest.mark.parametrize(
        "make", [lambda: 0.1, lambda: linear_schedule(0.1, 0.1, 10), lambda: lambda count: 0.1], ids=["n", "s", "f"]
    )
    def test_model_of_rates(self, make):
        """A tree of rates that is a model, which can be called, is no schedule; a module of one's own may be."""
        model = eqx.filter(eqx.nn.MLP(2, 1, 4, 1, key=jax.random.key(0)), eqx.is_inexact_array)
        gradients = jax.tree.map(jnp.ones_like, model)
        optimizer = sgd(jax.tree.map(lambda _: make(), model))
        state = optimizer.init(model)
        for update in (optimizer.update, jax.jit(optimizer.update)):
            updates, _ = update(gradients, state, model)
            for leaf in jax.tree.leaves(updates):
                np.testing.assert_allclose(leaf, -0.1, rtol=1e-6)
        with_moments = adamw(jax.tree.map(lambda _: make(), model))
        rates = with_moments.current_learning_rate(with_moments.init(model))
        assert jax.tree.leaves(rates) == [np.float32(0.1)] * 4

        class Falling(eqx.Module):
            start: float

            def __call__(self, count):
                return self.start / (1 + count)

        falling = sgd(Falling(0.1))
        assert jax.tree.leaves(falling) == [0.1]
        assert falling.current_learning_rate(falling.update(gradients, falling.init(model))[1]) == np.float32(0.05)

    def test_grid_over_its_numbers(self):
        def make(peak, warmup):
            return adamw(schedules.warmup_cosine_decay_schedule(0.0, peak, warmup, 10))

        optimizers, table = grid(make, peak=[0.1, 0.2], warmup=[2, 4])
        params = jnp.ones(3)

        def trained(optimizer):
            def step(carry, _):
                theta, state = carry
                updates, state = optimizer.update(theta, state, theta)
                return (optax.apply_updates(theta, updates), state), None

            return jax.lax.scan(step, (params, optimizer.init(params)), length=3)[0][0]

        together, alone = jax.jit(jax.vmap(trained))(optimizers), jax.jit(trained)
        for index, row in enumerate(table):
            np.testing.assert_allclose(together[index], alone(make(**row)), rtol=1e-6)
            np.testing.assert_allclose(together[index], alone(optimizers.row(index)), rtol=1e-6)

    def test_replace_inside(self):
        optimizer = adamw(linear_schedule(0.1, 0.0, 10), weight_decay=linear_schedule(0.2, 0.0, 10))
        assert optimizer.replace(b1=0.5).hyperparameters["learning_rate"] == linear_schedule(0.1, 0.0, 10)
        with pytest.raises(
            TypeError,
            match=r"several hyperparameters init_value, so give a path: learning_rate.init_value, weight_decay.init",
        ):
            optimizer.replace(init_value=1.0)
        changed = optimizer.replace(**{"learning_rate.init_value": 1.0, "weight_decay.end_value": 0.1})
        assert changed == adamw(linear_schedule(1.0, 0.0, 10), weight_decay=linear_schedule(0.2, 0.1, 10))
        with pytest.raises(TypeError, match=r"no hyperparameter peak; it has learning_rate.init_value, .*, b1, b2"):
            optimizer.replace(peak=1.0)
        with pytest.raises(TypeError, match="replace either learning_rate or what is inside"):
            optimizer.replace(**{"learning_rate": 1.0, "learning_rate.init_value": 1.0})
        with pytest.raises(TypeError, match="linear_schedule: init_value must be a real number, got 'x'"):
            optimizer.replace(**{"learning_rate.init_value": "x"})
