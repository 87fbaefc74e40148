"""An optimizer is a pair, a pytree, and what its factory's call says."""

import copy
import functools
import inspect
import math
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxopt_adam import (
    Optimizer,
    adadelta,
    adagrad,
    adam,
    cautious,
    chain,
    descend,
    from_config,
    grid,
    observe,
    optimizer,
    partition,
    rmsprop,
    sgd,
    to_optax,
)
from jaxopt_adam.schedules import linear_schedule

OPTIMIZERS = [
    sgd(0.1),
    sgd(0.1, momentum=0.9, nesterov=True),
    adagrad(0.5, eps=1e-6),
    adadelta(),
    rmsprop(0.01, centered=True, momentum=0.5),
    adam(1e-3),
    adam(0.1, 0.8, nesterov=True),
]
every_optimizer = pytest.mark.parametrize("made", OPTIMIZERS, ids=repr)


def bowl(x):
    return jnp.sum(jnp.array([1.0, 4.0]) * (x - 1) ** 2)


START = np.array([3.0, -2.0])


@optimizer
def clipped(learning_rate, limit=1.0):
    """Gradient descent with clipped gradients."""
    return optax.chain(optax.clip(limit), optax.sgd(learning_rate))


def trace_counter(function):
    """The jitted function, and a list that grows by one with each trace of it."""
    traces = []

    @jax.jit
    def counted(*args):
        traces.append(None)
        return function(*args)

    return counted, traces


def one_step(made, params, state):
    updates, state = made.update(jax.grad(bowl)(params), state, params)
    return optax.apply_updates(params, updates), state


class TestPair:
    @every_optimizer
    def test_is_optax_transformation(self, made):
        assert isinstance(made, Optimizer)
        assert isinstance(made, optax.GradientTransformationExtraArgs)
        assert isinstance(made, optax.GradientTransformation)
        assert made._fields == ("init", "update")
        assert len(made) == 2

    @every_optimizer
    def test_unpacks_to_init_and_update(self, made):
        init, update = made
        assert init is made.init
        assert update is made.update
        params = jnp.asarray(START)
        state = init(params)
        updates, state = update(jax.grad(bowl)(params), state, params)
        expected, expected_state = made.update(jax.grad(bowl)(params), made.init(params), params)
        assert np.all(np.asarray(updates) != 0)
        jax.tree.map(np.testing.assert_array_equal, (updates, state), (expected, expected_state))

    def test_extra_arguments_are_accepted(self):
        made = adam(0.1)
        params = jnp.asarray(START)
        updates, _ = made.update(params, made.init(params), params, value=1.0, anything=object())
        assert updates.shape == params.shape

    def test_extra_arguments_reach_the_rule(self):
        @optimizer
        def by_value(factor):
            return optax.GradientTransformationExtraArgs(
                lambda params: optax.EmptyState(),
                lambda updates, state, params=None, *, value: (jax.tree.map(lambda g: factor * value, updates), state),
            )

        made = by_value(2.0)
        assert made.update(1.0, made.init(1.0), None, value=5.0)[0] == 10.0

    def test_replace_of_a_field_gives_a_plain_pair(self):
        made = adam(0.1)
        plain = made._replace(update=lambda updates, state, params=None: (updates, state))
        assert type(plain) is optax.GradientTransformationExtraArgs
        assert plain.init is made.init
        assert plain.update(1.0, "state") == (1.0, "state")
        assert type(made._replace()) is optax.GradientTransformationExtraArgs


class TestPytree:
    def test_leaves_are_the_numbers(self):
        assert jax.tree.leaves(adam(0.1, 0.8, mu_dtype="bfloat16", nesterov=True)) == [0.1, 0.8, 0.999, 1e-8, 0.0]
        assert jax.tree.leaves(sgd(0.1)) == [0.1]
        assert jax.tree.leaves(sgd(None, momentum=0.5)) == [0.5]

    def test_arrays_are_leaves(self):
        rate, decay = jnp.array(0.1), np.array([0.8, 0.9])
        leaves = jax.tree.leaves(adam(rate, decay))
        assert leaves[0] is rate
        assert leaves[1] is decay

    def test_paths_are_the_names(self):
        paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(adam(0.1, nesterov=True))]
        assert paths == [".learning_rate", ".b1", ".b2", ".eps", ".eps_root"]
        paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(sgd(None, 0.5))]
        assert paths == [".momentum"]

    def test_leaves_with_paths_are_the_leaves(self):
        schedule = jax.tree_util.Partial(lambda first, second, count: first - second * count, 0.5, 0.25)
        for made in [*OPTIMIZERS, sgd(schedule), adadelta(weight_decay_mask={"a": True, "b": [False, True]})]:
            with_paths, structure = jax.tree.flatten_with_path(made)
            assert [leaf for _, leaf in with_paths] == jax.tree.leaves(made)
            assert structure == jax.tree.structure(made)
            assert len({jax.tree_util.keystr(path) for path, _ in with_paths}) == len(with_paths)

    @every_optimizer
    @pytest.mark.parametrize(
        "leaf", [object(), None, True, "text", (), (1, 2), {"a": [3]}, jnp.ones(2), np.nan], ids=type
    )
    def test_unflattens_with_any_leaf(self, made, leaf):
        leaves, structure = jax.tree.flatten(made)
        other = jax.tree.unflatten(structure, [leaf] * len(leaves))
        assert isinstance(other, Optimizer)
        again, again_structure = jax.tree.flatten(other, is_leaf=lambda node: node is leaf)
        assert all(each is leaf for each in again)
        assert len(again) == len(leaves)
        assert again_structure == structure
        restored = jax.tree.unflatten(again_structure, leaves)
        assert restored == made

    @pytest.mark.parametrize("leaf", [object(), None, True], ids=type)
    def test_copies_of_unflattened_keep_the_structure(self, leaf):
        leaves, structure = jax.tree.flatten(adam(0.1))
        other = jax.tree.unflatten(structure, [leaf] * len(leaves))
        again, again_structure = jax.tree.flatten(copy.copy(other), is_leaf=lambda node: node is leaf)
        assert len(again) == len(leaves)
        assert again_structure == structure

    def test_unflattening_runs_no_rule(self):
        calls = []

        @optimizer
        def recorded(learning_rate):
            calls.append(learning_rate)
            return optax.sgd(learning_rate)

        made = recorded(0.1)
        jax.tree.map(lambda leaf: 2 * leaf, made)
        assert calls == []
        made.init(1.0)
        assert calls == [0.1]

    def test_map_changes_the_numbers(self):
        doubled = jax.tree.map(lambda leaf: 2 * leaf, sgd(0.1, momentum=0.25, nesterov=True))
        assert doubled == sgd(0.2, momentum=0.5, nesterov=True)
        mean = jax.tree.map(lambda one, other: (one + other) / 2, sgd(0.5, momentum=0.25), sgd(1.0, momentum=0.75))
        assert mean == sgd(0.75, momentum=0.5)
        params = jnp.asarray(START)
        assert_step_equal(doubled, sgd(0.2, momentum=0.5, nesterov=True), params)

    def test_map_over_unlike_structures_fails(self):
        message = "different pytree metadata|Mismatch custom node data"  # in JAX's newer versions, and its older ones
        with pytest.raises(ValueError, match=message):
            jax.tree.map(lambda one, other: one, sgd(0.1, nesterov=True), sgd(0.1, nesterov=False))
        with pytest.raises(ValueError, match=message):
            jax.tree.map(lambda one, other: one, adam(0.1), adam(None))

    def test_tracers_make_an_optimizer(self):
        @jax.jit
        def step(rate, params):
            made = sgd(rate)
            assert repr(made).startswith("sgd(learning_rate=")
            assert made == made
            assert made != sgd(0.5)
            assert isinstance(hash(made), int)
            return made, one_step(made, params, made.init(params))[0]

        made, params = step(0.5, jnp.asarray(START))
        assert made == sgd(jnp.array(0.5))
        np.testing.assert_allclose(params, START - 0.5 * np.array([4.0, -24.0]))

    def test_shapes_can_be_evaluated(self):
        made = jax.eval_shape(lambda made: made, adam(0.1))
        assert isinstance(made.hyperparameters["b1"], jax.ShapeDtypeStruct)
        state = jax.eval_shape(lambda made, params: made.init(params), made, jax.ShapeDtypeStruct((3,), jnp.float32))
        assert state.mu.shape == (3,)

    def test_partial_schedule_is_data(self):
        def decaying(initial, rate, count):
            return initial * rate**count

        step, traces = trace_counter(one_step)
        params = jnp.asarray(START)
        for initial in (0.1, 0.2):
            made = sgd(jax.tree_util.Partial(decaying, initial, 0.5))
            assert jax.tree.leaves(made) == [initial, 0.5]
            state = made.init(params)
            first, state = step(made, params, state)
            second, _ = step(made, first, state)
            np.testing.assert_allclose(first, START - initial * np.array([4.0, -24.0]), rtol=1e-6)
            gradient = np.array([2.0, 8.0]) * (np.asarray(first) - 1)
            np.testing.assert_allclose(second, first - initial / 2 * gradient, rtol=1e-5)
        assert len(traces) == 1

    def test_function_schedule_is_structure(self):
        schedule = optax.linear_schedule(0.5, 0.0, 2)
        assert jax.tree.leaves(sgd(schedule, momentum=0.5)) == [0.5]
        step, traces = trace_counter(one_step)
        params = jnp.asarray(START)
        for momentum in (0.5, 0.25):
            made = sgd(schedule, momentum)
            step(made, params, made.init(params))
        assert len(traces) == 1
        other = sgd(optax.linear_schedule(0.5, 0.0, 2), 0.5)
        step(other, params, other.init(params))
        assert len(traces) == 2


def assert_step_equal(one, other, params):
    jax.tree.map(
        np.testing.assert_array_equal,
        one_step(one, params, one.init(params)),
        one_step(other, params, other.init(params)),
    )


def halving(rate, count):
    return rate * 0.5**count


class TestJit:
    def test_a_hundred_learning_rates_share_one_trace(self):
        step, traces = trace_counter(one_step)
        params = jnp.asarray(START, jnp.float32)
        kinds = [float, int, np.float32, np.float64, np.int64, np.float16, np.array]
        rates = [kinds[i % len(kinds)](1 + i) for i in range(100)]
        assert {type(rate) for rate in rates} == {float, int, np.float32, np.float64, np.int64, np.float16, np.ndarray}
        for rate in rates:
            made = sgd(rate)
            moved, _ = step(made, params, made.init(params))
            np.testing.assert_allclose(moved, START - float(rate) * np.array([4.0, -24.0]), rtol=1e-6)
        assert len(traces) == 1

    @every_optimizer
    def test_every_hyperparameter_is_an_argument_of_the_trace(self, made):
        step, traces = trace_counter(one_step)
        params = jnp.asarray(START, jnp.float32)
        moved = {}
        for factor in (1.0, 0.5):
            scaled = jax.tree.map(lambda leaf, factor=factor: leaf * factor, made)
            moved[factor] = step(scaled, params, scaled.init(params))[0]
        assert len(traces) == 1
        np.testing.assert_allclose(moved[1.0], one_step(made, params, made.init(params))[0], rtol=1e-5)
        if made.hyperparameters["learning_rate"] is not None:
            assert np.all(np.asarray(moved[1.0]) != np.asarray(moved[0.5]))

    def test_flags_are_part_of_the_trace(self):
        step, traces = trace_counter(one_step)
        params = jnp.asarray(START)
        moved = []
        for nesterov in (False, True, False):
            made = sgd(0.1, momentum=0.5, nesterov=nesterov)
            moved.append(np.asarray(step(made, params, made.init(params))[0]))
        assert len(traces) == 2
        np.testing.assert_array_equal(moved[0], moved[2])
        assert np.all(moved[0] != moved[1])

    def test_equal_optimizers_share_a_trace_as_static_arguments(self):
        traces = []

        @functools.partial(jax.jit, static_argnums=0)
        def step(made, params):
            traces.append(None)
            return one_step(made, params, made.init(params))[0]

        for rate in (0.5, 0.5, 0.25, 0.5):
            moved = step(sgd(rate), jnp.asarray(START))
            np.testing.assert_allclose(moved, START - rate * np.array([4.0, -24.0]))
        assert len(traces) == 2

    def test_is_a_result_of_jit(self):
        made = jax.jit(lambda made: made.replace(learning_rate=0.5))(adam(0.1, nesterov=True))
        assert isinstance(made, Optimizer)
        assert made.hyperparameters["nesterov"] is True
        assert float(made.hyperparameters["learning_rate"]) == 0.5


class TestSolversOfOthers:
    """Equinox, and with it optimistix, takes what the local functions in an optax.chain close over as data."""

    @pytest.mark.parametrize(
        ("make", "values", "expected"),
        [
            (adam, [0.1, 0.1, 0.2], [1, 1, 2]),  # Python's numbers are static there, as in optax's own
            (lambda rate: adam(jnp.array(rate)), [0.1, 0.2], [1, 1]),
            (lambda rate: adam(optax.cosine_decay_schedule(rate, 100)), [0.1, 0.1, 0.2], [1, 1, 2]),
            (lambda rate: adam(jax.tree_util.Partial(halving, jnp.array(rate))), [0.1, 0.2], [1, 1]),
            (lambda rate: cautious(adam(jnp.array(rate), moments="int8")), [0.1, 0.2], [1, 1]),
            (lambda rate: optax.adam(jnp.array(rate)), [0.1, 0.2], [1, 1]),
        ],
        ids=["numbers", "arrays", "schedules", "Partial", "wrappers", "optax"],
    )
    def test_traces_in_a_chain(self, make, values, expected):
        eqx, optx = pytest.importorskip("equinox"), pytest.importorskip("optimistix")
        traces, counts = [], []

        def function(x, _):
            traces.append(None)
            return bowl(x)

        @eqx.filter_jit
        def solve(solver):
            return optx.minimise(function, solver, jnp.asarray(START), max_steps=3, throw=False).value

        for value in values:
            solve(optx.OptaxMinimiser(optax.chain(optax.clip(1.0), make(value)), rtol=1e-5, atol=1e-6))
            counts.append(len(traces))
        assert [count // counts[0] for count in counts] == expected


class TestEquality:
    def test_equal(self):
        assert adam(0.1) == adam(0.1)
        assert adam(0.1) == adam(np.float64(0.1), b1=0.9, nesterov=False)
        assert adam(1) == adam(1.0)
        assert not adam(0.1) != adam(0.1)  # noqa: SIM202
        assert adam(jnp.array([0.1, 0.2])) == adam(np.array([0.1, 0.2], np.float32))
        schedule = optax.constant_schedule(0.1)
        assert adam(schedule) == adam(schedule)

    def test_unequal(self):
        others = [
            adam(0.2),
            adam(0.1, nesterov=True),
            adam(0.1, mu_dtype="bfloat16"),
            adam(None),
            adam(optax.constant_schedule(0.1)),
            adam(jnp.array([0.1, 0.1])),
            adagrad(0.1),
            adam(0.1)._replace(),
            tuple(adam(0.1)),
            0.1,
        ]
        for other in others:
            assert adam(0.1) != other
            assert other != adam(0.1)
            assert not adam(0.1) == other  # noqa: SIM201

    def test_other_functions_are_unequal(self):
        assert adam(optax.constant_schedule(0.1)) != adam(optax.constant_schedule(0.1))

    def test_equal_optimizers_have_equal_hashes(self):
        assert hash(adam(0.1)) == hash(adam(0.1))
        assert hash(adam(jnp.array(0.1))) == hash(adam(jnp.array(0.1)))
        assert hash(adadelta(weight_decay_mask={"a": True})) == hash(adadelta(weight_decay_mask={"a": True}))
        assert len({adam(0.1), adam(0.1), adam(0.2), adam(0.1, nesterov=True)}) == 3


numbers = st.floats(0, 1e30)
decays = st.floats(0, 1, exclude_max=True, width=32)


class TestRepr:
    @pytest.mark.parametrize(
        ("made", "text"),
        [
            (adam(0.001), "adam(learning_rate=0.001)"),
            (adam(1), "adam(learning_rate=1.0)"),
            (adam(np.float64(0.5), b2=0.99), "adam(learning_rate=0.5, b2=0.99)"),
            (adam(0.1, 0.9, 0.999, 1e-8), "adam(learning_rate=0.1)"),
            (adam(0.1, eps=1e-6, nesterov=True), "adam(learning_rate=0.1, eps=1e-06, nesterov=True)"),
            (adam(None), "adam(learning_rate=None)"),
            (adadelta(), "adadelta()"),
            (sgd(0.1, momentum=0.0), "sgd(learning_rate=0.1, momentum=0.0)"),
            (sgd(optax.squared_error), "sgd(learning_rate=squared_error)"),
            (clipped(0.5), "clipped(learning_rate=0.5)"),
            (clipped(0.5, limit=2), "clipped(learning_rate=0.5, limit=2)"),
        ],
    )
    def test_reads_as_the_call(self, made, text):
        assert repr(made) == text
        assert str(made) == text

    @every_optimizer
    def test_evaluates_to_the_optimizer(self, made):
        assert eval(repr(made)) == made

    @settings(max_examples=50, deadline=None)
    @given(numbers, decays, decays, numbers, st.booleans())
    def test_evaluates_to_the_optimizer_for_all_numbers(self, learning_rate, b1, b2, eps, nesterov):
        made = adam(learning_rate, b1, b2, eps, nesterov=nesterov)
        assert eval(repr(made)) == made

    def test_of_arrays_and_replaced_leaves(self):
        assert "0.1" in repr(adam(jnp.array([0.1, 0.2])))
        assert repr(jax.tree.map(lambda leaf: None, sgd(0.1))) == "sgd(learning_rate=None)"


class TestHyperparameters:
    def test_has_every_argument_in_order(self):
        made = adam(0.1, b2=0.99, nesterov=True)
        assert dict(made.hyperparameters) == {
            "learning_rate": 0.1,
            "b1": 0.9,
            "b2": 0.99,
            "eps": 1e-8,
            "eps_root": 0.0,
            "mu_dtype": None,
            "nesterov": True,
            "moments": "float32",
        }
        assert list(made.hyperparameters) == list(inspect.signature(adam).parameters)

    def test_is_read_only(self):
        made = adam(0.1)
        with pytest.raises(TypeError, match="does not support item assignment"):
            made.hyperparameters["learning_rate"] = 0.2
        with pytest.raises(AttributeError):
            made.hyperparameters = {}
        assert made == adam(0.1)

    def test_follows_the_leaves(self):
        made = jax.tree.map(lambda leaf: leaf / 2, adam(0.5))
        assert made.hyperparameters["learning_rate"] == 0.25
        assert made.hyperparameters["nesterov"] is False


class TestReplace:
    def test_changes_what_is_named(self):
        made = adam(0.1, b2=0.99, nesterov=True)
        other = made.replace(learning_rate=0.01, eps=1e-6)
        assert other == adam(0.01, b2=0.99, eps=1e-6, nesterov=True)
        assert made == adam(0.1, b2=0.99, nesterov=True)
        assert made.replace() == made
        assert made.replace(nesterov=False) == adam(0.1, b2=0.99)
        assert_step_equal(other, adam(0.01, b2=0.99, eps=1e-6, nesterov=True), jnp.asarray(START))

    def test_unknown_name(self):
        with pytest.raises(TypeError, match=r"adam has no hyperparameter lr, rate; it has learning_rate, b1, b2"):
            adam(0.1).replace(rate=0.2, lr=0.2)

    @pytest.mark.parametrize(
        ("changes", "error", "message"),
        [
            ({"learning_rate": -0.1}, ValueError, r"adam: learning_rate must be a number ≥ 0.*-0\.1"),
            ({"b1": 1.0}, ValueError, r"adam: b1 must be in \[0, 1\).*1\.0"),
            ({"b2": np.array([0.5, 1.5])}, ValueError, r"adam: b2 must be in \[0, 1\)"),
            ({"eps": math.nan}, ValueError, r"adam: eps must be a number ≥ 0.*nan"),
            ({"b1": None}, TypeError, r"adam: b1 must be in \[0, 1\).*None"),
            ({"b1": "0.9"}, TypeError, r"adam: b1 must be in \[0, 1\).*'0\.9' \(str\)"),
            ({"learning_rate": True}, TypeError, r"adam: learning_rate must be.*True \(bool\)"),
            ({"learning_rate": 1j}, TypeError, r"adam: learning_rate must be.*1j"),
            ({"nesterov": 1}, TypeError, r"adam: nesterov must be True or False.*1 \(int\)"),
            ({"mu_dtype": "int8"}, ValueError, r"adam: mu_dtype must be a floating-point dtype.*int8"),
            ({"mu_dtype": "float" + "y"}, TypeError, r"adam: mu_dtype must be a floating-point dtype.*'floaty'"),
        ],
    )
    def test_checks_like_the_factory(self, changes, error, message):
        made = adam(0.1)
        with pytest.raises(error, match=message):
            made.replace(**changes)
        with pytest.raises(error, match=message):
            adam(**({"learning_rate": 0.1} | changes))
        assert made == adam(0.1)

    def test_needs_no_new_trace(self):
        step, traces = trace_counter(one_step)
        made = adam(0.1)
        params = jnp.asarray(START)
        state = made.init(params)
        for rate in (0.1, 1, np.float32(0.3)):
            params, state = step(made.replace(learning_rate=rate), params, state)
        assert len(traces) == 1
        assert int(state.count) == 3

    @pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
    def test_takes_arrays_of_any_floating_point_dtype(self, dtype):
        made = sgd(0.1).replace(learning_rate=jnp.array(0.5, dtype))
        params = jnp.asarray(START)
        np.testing.assert_allclose(one_step(made, params, made.init(params))[0], START - 0.5 * np.array([4.0, -24.0]))


class TestReplaceInBatch:
    def test_one_number_is_for_all_rows(self):
        def recipe(rate):
            return chain(adam(rate, b1=0.8), sgd(linear_schedule(rate, 0.0, 9)))

        optimizers, _ = grid(recipe, rate=[0.1, 0.2])
        changed = optimizers.replace(b1=0.5, init_value=jnp.array([0.3, 0.4]))
        assert changed.hyperparameters["adam"].hyperparameters["b1"].tolist() == [0.5, 0.5]
        expected = recipe(0.2).replace(b1=0.5, init_value=0.4)
        np.testing.assert_allclose(jax.tree.leaves(changed.row(1)), jax.tree.leaves(expected), rtol=1e-6)
        # The same trace.
        kinds = [[(leaf.aval, leaf.weak_type) for leaf in jax.tree.leaves(each)] for each in (optimizers, changed)]
        assert kinds[0] == kinds[1]
        jax.vmap(lambda each: each.init(1.0))(changed)

    def test_of_the_only_leaf(self):
        optimizers, _ = grid(sgd, learning_rate=[0.1, 0.2])
        assert optimizers.replace(learning_rate=0.5).hyperparameters["learning_rate"].tolist() == [0.5, 0.5]
        assert optimizers.replace(learning_rate=jnp.ones(3)).hyperparameters["learning_rate"].shape == (3,)

    def test_within_vmap_and_without_a_batch(self):
        optimizers, _ = grid(adam, learning_rate=[0.1, 0.2])
        changed = jax.vmap(lambda each: each.replace(b1=0.5))(optimizers)
        assert changed.hyperparameters["b1"].tolist() == [0.5, 0.5]
        assert adam(jnp.ones(2)).replace(learning_rate=0.1) == adam(0.1)

    def test_other_leading_axes(self):
        optimizers, _ = grid(adam, learning_rate=[0.1, 0.2])
        with pytest.raises(ValueError, match=r"replace: b1 must be one number, .* axes \(2,\) .*got the shape \(3,\)"):
            optimizers.replace(b1=jnp.array([0.1, 0.2, 0.3]))


class TestPickle:
    @every_optimizer
    @pytest.mark.parametrize("duplicate", [lambda made: pickle.loads(pickle.dumps(made)), copy.copy, copy.deepcopy])
    def test_duplicates_are_equal(self, made, duplicate):
        other = duplicate(made)
        assert isinstance(other, Optimizer)
        assert other == made
        assert hash(other) == hash(made)
        assert jax.tree.structure(other) == jax.tree.structure(made)
        assert_step_equal(other, made, jnp.asarray(START))

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_every_protocol(self, protocol):
        assert pickle.loads(pickle.dumps(adam(0.1), protocol)) == adam(0.1)

    @pytest.mark.parametrize("duplicate", [lambda made: pickle.loads(pickle.dumps(made)), copy.deepcopy])
    def test_of_arrays(self, duplicate):
        decay = np.array([0.8, 0.9])
        made = adam(jnp.array(0.1), decay, mu_dtype="bfloat16")
        other = duplicate(made)
        assert other == made
        assert isinstance(other.hyperparameters["learning_rate"], jax.Array)
        decay[:] = 0
        np.testing.assert_array_equal(other.hyperparameters["b1"], [0.8, 0.9])
        assert other != made

    def test_of_schedules_and_custom_factories(self):
        made = sgd(jax.tree_util.Partial(optax.squared_error, 0.5))
        assert pickle.loads(pickle.dumps(made)) == made
        assert pickle.loads(pickle.dumps(clipped(0.1, limit=3.0))) == clipped(0.1, limit=3.0)


class TestWhatPyTorchTakes:
    """Arguments that torch.optim takes: the error says what is meant here, and prints no array."""

    WEIGHT = np.linspace(-1, 1, 1200, dtype=np.float32).reshape(30, 40)

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda w: adam([w], lr=0.1), "keyword argument 'lr'; lr is learning_rate here$"),
            (lambda w: adam(0.1, betas=(0.9, 0.99)), "keyword argument 'betas'; betas is b1 and b2 here$"),
            (lambda w: rmsprop(0.1, alpha=0.9), "keyword argument 'alpha'; alpha is decay here$"),
            (lambda w: adam(0.1, alpha=0.9), "keyword argument 'alpha'$"),
            (lambda w: adam([w]), r"learning_rate\[0\] must .*of shape \(30, 40\) .*-1.0; the parameters are given to"),
            (lambda w: adam([{"params": [w]}]), r"\(30, 40\) and dtype float32.*; there are no parameter groups: give"),
            (lambda w: adam([{"params": abs(w), "lr": "x"}]), r"\['lr'\] must .*'x' \(str\); there are no parameter"),
        ],
    )
    def test_is_named(self, make, message):
        with pytest.raises((TypeError, ValueError), match=message) as caught:
            make(self.WEIGHT)
        assert len(str(caught.value)) < 400

    @pytest.mark.parametrize(
        "make",
        [
            lambda w: adam(0.1, b1=w),
            lambda w: adam(0.1, moments=w),
            lambda w: adam(0.1, nesterov=w),
            lambda w: adam(0.1).row(w),
            lambda w: chain({"params": w}),
            lambda w: grid(w, learning_rate=[0.1]),
            lambda w: observe(w),
            lambda w: partition([w], [w]),
            lambda w: linear_schedule(w > 0, 0.0, 1),
            lambda w: from_config([w]),
            lambda w: from_config({"adam": [w]}),
            lambda w: to_optax((), sgd({"w": w})),
        ],
    )
    def test_arrays_are_told_by_shape(self, make):
        with pytest.raises((TypeError, ValueError)) as caught:
            make(abs(self.WEIGHT) + 2)
        assert len(str(caught.value)) < 300, caught.value
        assert not re.search(r"\d\.\d\d", str(caught.value)), caught.value


class TestFactory:
    def test_keeps_name_signature_and_documentation(self):
        assert clipped.__name__ == "clipped"
        assert clipped.__doc__ == "Gradient descent with clipped gradients."
        assert clipped(0.1, 2.0) == clipped(limit=2.0, learning_rate=0.1)

    def test_without_annotations_nothing_is_checked(self):
        assert clipped(-1.0, limit="any").hyperparameters == {"learning_rate": -1.0, "limit": "any"}

    def test_trains_and_shares_a_trace(self):
        step, traces = trace_counter(one_step)
        params = jnp.asarray(START, jnp.float32)
        for rate, limit in ((0.1, 1.0), (0.2, 5.0)):
            made = clipped(rate, limit)
            moved, _ = step(made, params, made.init(params))
            np.testing.assert_allclose(moved, START - rate * np.clip([4.0, -24.0], -limit, limit), rtol=1e-6)
        assert len(traces) == 1

    def test_with_annotations_arguments_are_checked(self):
        from jaxopt_adam._hyperparameters import Decay, Flag, LearningRate

        @optimizer
        def heavy_ball(learning_rate: LearningRate, momentum: Decay = 0.9, *, nesterov: Flag = False):
            return optax.sgd(learning_rate, momentum, nesterov)

        made = heavy_ball(1, nesterov=True)
        assert made.hyperparameters == {"learning_rate": 1.0, "momentum": 0.9, "nesterov": True}
        assert isinstance(made.hyperparameters["learning_rate"], float)
        with pytest.raises(ValueError, match=r"heavy_ball: momentum must be in \[0, 1\)"):
            heavy_ball(0.1, 1.0)
        with pytest.raises(TypeError, match="heavy_ball: nesterov must be True or False"):
            heavy_ball(0.1, nesterov=0)
        expected = "heavy_ball: learning_rate must be a number ≥ 0, a schedule, a tree of these or None"
        with pytest.raises(TypeError, match=expected):
            heavy_ball("fast")

    def test_wrong_arguments(self):
        with pytest.raises(TypeError, match="missing a required argument: 'learning_rate'"):
            clipped()
        with pytest.raises(TypeError, match="unexpected keyword argument 'lr'"):
            clipped(0.1, lr=0.1)

    def test_around_another_optimizer(self):
        @optimizer
        def twice(inner, factor=2.0):
            return optax.chain(inner, optax.scale(factor))

        made = twice(sgd(0.25))
        assert jax.tree.leaves(made) == [0.25, 2.0]
        assert_step_equal(made.replace(factor=1.0), optax.chain(sgd(0.25), optax.scale(1.0)), jnp.asarray(START))


class TestCurrentLearningRate:
    def test_number_and_array(self):
        for rate in (0.25, 1, np.float32(0.5), jnp.array(0.5), jnp.array([0.1, 0.2])):
            made = adam(rate)
            current = made.current_learning_rate(made.init(1.0))
            assert isinstance(current, jax.Array)
            np.testing.assert_allclose(current, rate)

    def test_none(self):
        made = adam(None)
        assert made.current_learning_rate(made.init(1.0)) is None

        @optimizer
        def nothing(scale=1.0):
            return optax.scale(scale)

        assert nothing().current_learning_rate(optax.EmptyState()) is None

    @pytest.mark.parametrize("factory", [sgd, adagrad, adadelta, rmsprop, adam])
    def test_schedule_is_what_the_next_update_uses(self, factory):
        rates = [0.5, 0.25, 0.125, 0.0625]
        made = factory(lambda count: jnp.array(rates)[count])
        state, fixed_state = made.init(2.0), factory(1.0).init(2.0)
        for rate in rates:
            current = made.current_learning_rate(state)
            assert float(current) == rate
            updates, state = made.update(1.0, state)
            unit_updates, fixed_state = factory(1.0).update(1.0, fixed_state)
            np.testing.assert_allclose(updates, rate * unit_updates, rtol=1e-6)

    def test_partial_schedule(self):
        made = sgd(jax.tree_util.Partial(lambda first, count: first / (1 + count), 1.0))
        state = made.init(2.0)
        _, state = made.update(1.0, state)
        assert float(made.current_learning_rate(state)) == 0.5

    def test_within_jit(self):
        made = sgd(optax.linear_schedule(1.0, 0.0, 4))
        _, state = made.update(1.0, made.init(2.0))
        assert float(jax.jit(made.current_learning_rate)(state)) == 0.75
        assert float(jax.jit(lambda made, state: made.current_learning_rate(state))(made, state)) == 0.75

    def test_wrapped_states(self):
        made = adam(optax.linear_schedule(1.0, 0.0, 4))
        params = {"a": jnp.ones(2), "b": jnp.ones(3)}
        for wrapped in (
            optax.chain(optax.clip(1.0), made, optax.scale(2.0)),
            optax.named_chain(("clip", optax.clip(1.0)), ("adam", made)),
            optax.masked(made, {"a": True, "b": False}),
            optax.apply_if_finite(made, 3),
            optax.MultiSteps(made, 1),
        ):
            state = wrapped.init(params)
            for rate in (1.0, 0.75, 0.5):
                assert float(made.current_learning_rate(state)) == rate
                _, state = wrapped.update(params, state, params)

    def test_vmapped_states(self):
        made = adam(optax.linear_schedule(1.0, 0.0, 4))
        state = jax.vmap(made.init)(jnp.ones((3, 2)))
        state = state._replace(count=jnp.arange(3))
        np.testing.assert_allclose(made.current_learning_rate(state), [1.0, 0.75, 0.5])
        optimizers, table = grid(adam, learning_rate=[0.1, 0.2], b1=[0.8, 0.9])
        state = jax.vmap(lambda each: each.init(jnp.ones(2)))(optimizers)
        expected = [row["learning_rate"] for row in table]
        np.testing.assert_allclose(optimizers.current_learning_rate(state), expected)
        inside = jax.vmap(lambda each, state: each.current_learning_rate(state))(optimizers, state)
        np.testing.assert_allclose(inside, expected)

    def test_no_count_or_several(self):
        made = sgd(optax.linear_schedule(1.0, 0.0, 4))
        with pytest.raises(ValueError, match="one count at which to evaluate the schedule, found 0"):
            made.current_learning_rate(optax.EmptyState())
        chained = optax.chain(made, optax.scale_by_schedule(optax.constant_schedule(1.0)))
        state = chained.init(1.0)
        with pytest.raises(ValueError, match=r"found 2; pass the part of it that belongs to sgd\(learning_rate="):
            made.current_learning_rate(state)
        assert float(made.current_learning_rate(state[0])) == 1.0


class TestCurrentLearningRateOfBatch:
    """Optimizers in the leading axes of their states."""

    RATES = 0.001, 0.005, 0.02, 0.2

    def states(self, optimizers, axes):
        counts = np.arange(np.prod(axes, dtype=int)).reshape(axes)
        return optimizers.row(0).init(1.0)._replace(count=jnp.asarray(counts))

    @pytest.mark.parametrize("axes", [(4,), (4, 4), (4, 6), (4, 2, 3)])
    @pytest.mark.parametrize("is_scheduled", [True, False])
    def test_with_runs_of_each_optimizer(self, axes, is_scheduled):
        optimizers = jax.vmap(lambda peak: sgd(linear_schedule(peak, 0.0, 10) if is_scheduled else peak))(
            jnp.array(self.RATES)
        )
        states = self.states(optimizers, axes)
        left = 1 - np.minimum(np.asarray(states.count), 10) / 10 if is_scheduled else np.ones(axes)
        expected = np.reshape(self.RATES, (4, *[1] * (len(axes) - 1))) * left
        rates = optimizers.current_learning_rate(states)
        assert rates.shape == axes
        np.testing.assert_allclose(rates, expected, rtol=1e-6)
        np.testing.assert_allclose(jax.jit(Optimizer.current_learning_rate)(optimizers, states), expected, rtol=1e-6)

    def test_with_one_state(self):
        optimizers, _ = grid(lambda peak: sgd(linear_schedule(peak, 0.0, 10)), peak=self.RATES)
        rates = optimizers.current_learning_rate(optimizers.row(0).init(1.0))
        np.testing.assert_allclose(rates, self.RATES, rtol=1e-6)

    def test_of_a_batch_of_batches(self):
        optimizers = jax.vmap(jax.vmap(lambda peak: sgd(linear_schedule(peak, 0.0, 10))))(jnp.ones((4, 3)))
        rates = optimizers.current_learning_rate(self.states(optimizers.row(0), (4,)))
        np.testing.assert_allclose(rates, np.linspace(1, 0.7, 4)[:, None] * np.ones(3), rtol=1e-6)

    def test_of_a_tree_with_functions(self):
        optimizers = jax.vmap(lambda rate: sgd({"a": rate, "b": lambda count: 0.5**count}))(jnp.array([0.1, 0.2]))
        rates = optimizers.current_learning_rate(self.states(optimizers, (2, 3)))
        np.testing.assert_allclose(rates["a"], [[0.1] * 3, [0.2] * 3], rtol=1e-6)
        np.testing.assert_allclose(rates["b"], [[1, 0.5, 0.25], [0.125, 0.0625, 0.03125]], rtol=1e-6)

    def test_of_a_chain_around(self):
        optimizers, _ = grid(lambda peak: chain(sgd(None), sgd(peak)), peak=self.RATES)
        states = jax.vmap(lambda each: jax.vmap(each.init)(jnp.ones(6)))(optimizers)
        assert optimizers.current_learning_rate(states).shape == (4, 6)

    @pytest.mark.parametrize("axes", [(6,), (6, 4), (3, 4)])
    def test_other_leading_axes_are_refused(self, axes):
        optimizers, _ = grid(lambda peak: sgd(linear_schedule(peak, 0.0, 10)), peak=self.RATES)
        with pytest.raises(ValueError, match=r"of shape \(4,\) in sgd and count of shape .*; .* jax.vmap\("):
            optimizers.current_learning_rate(self.states(optimizers, axes))

    def test_numbers_of_several_shapes_are_refused(self):
        mixed = sgd(linear_schedule(jnp.ones(4), 0.0, 10))
        with pytest.raises(ValueError, match=r"of shape \(\), \(4,\) in sgd and count of shape \(4,\)"):
            mixed.current_learning_rate(sgd(1.0).init(1.0)._replace(count=jnp.arange(4)))


class TestGrid:
    def test_product_and_order(self):
        optimizers, table = grid(adam, learning_rate=[0.1, 0.2, 0.3], b1=(0.8, 0.9))
        assert isinstance(optimizers, Optimizer)
        assert table == [
            {"learning_rate": 0.1, "b1": 0.8},
            {"learning_rate": 0.1, "b1": 0.9},
            {"learning_rate": 0.2, "b1": 0.8},
            {"learning_rate": 0.2, "b1": 0.9},
            {"learning_rate": 0.3, "b1": 0.8},
            {"learning_rate": 0.3, "b1": 0.9},
        ]
        for name in ("learning_rate", "b1"):
            column = optimizers.hyperparameters[name]
            np.testing.assert_array_equal(column, np.array([row[name] for row in table], np.float32))
        assert all(leaf.shape == (6,) for leaf in jax.tree.leaves(optimizers))
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(optimizers))

    def test_order_is_that_of_the_call(self):
        _, table = grid(adam, b1=[0.8, 0.9], learning_rate=[0.1, 0.2])
        assert table[1] == {"b1": 0.8, "learning_rate": 0.2}
        assert list(table[0]) == ["b1", "learning_rate"]

    def test_axes_of_every_kind(self):
        expected = [{"learning_rate": value} for value in (1.0, 2.0)]
        for values in ([1, 2], (1.0, 2.0), range(1, 3), np.array([1, 2]), jnp.array([1.0, 2.0])):
            optimizers, table = grid(sgd, learning_rate=values)
            assert table == expected
            assert all(type(row["learning_rate"]) is float for row in table)
            np.testing.assert_array_equal(optimizers.hyperparameters["learning_rate"], [1.0, 2.0])

    def test_shared_and_static_arguments(self):
        optimizers, table = grid(adam, learning_rate=[0.1, 0.2], b1=0.5, eps=1e-6, nesterov=True)
        assert table == [{"learning_rate": 0.1}, {"learning_rate": 0.2}]
        np.testing.assert_array_equal(optimizers.hyperparameters["b1"], [0.5, 0.5])
        np.testing.assert_array_equal(optimizers.hyperparameters["b2"], np.full(2, 0.999, np.float32))
        assert optimizers.hyperparameters["nesterov"] is True
        assert optimizers.hyperparameters["mu_dtype"] is None
        each = jax.tree.map(lambda leaf: leaf[1], optimizers)
        assert each == adam(jnp.float32(0.2), b1=0.5, b2=jnp.float32(0.999), eps=jnp.float32(1e-6), nesterov=True)

    def test_schedule_and_none_are_shared(self):
        schedule = optax.constant_schedule(0.1)
        optimizers, _ = grid(adam, learning_rate=schedule, b1=[0.8, 0.9])
        assert optimizers.hyperparameters["learning_rate"] is schedule
        optimizers, _ = grid(sgd, learning_rate=[0.1, 0.2], momentum=None)
        assert optimizers.hyperparameters["momentum"] is None

    def test_custom_factory(self):
        optimizers, table = grid(clipped, learning_rate=[0.1, 0.2], limit=[1.0, 2.0])
        moved = jax.vmap(lambda each: one_step(each, jnp.asarray(START), each.init(jnp.asarray(START)))[0])(optimizers)
        for row, x in zip(table, moved, strict=True):
            steps = row["learning_rate"] * np.clip([4.0, -24.0], -row["limit"], row["limit"])
            np.testing.assert_allclose(x, START - steps, rtol=1e-6)

    def test_float64(self, x64):
        optimizers, table = grid(adam, learning_rate=[0.1, 0.2])
        assert optimizers.hyperparameters["learning_rate"].dtype == np.float64
        assert optimizers.hyperparameters["b2"].dtype == np.float64
        np.testing.assert_array_equal(
            optimizers.hyperparameters["learning_rate"], [row["learning_rate"] for row in table]
        )

    @pytest.mark.parametrize(
        ("axes", "error", "message"),
        [
            ({"learning_rate": 0.1}, ValueError, "give at least one argument of adam a list of values"),
            ({}, ValueError, "give at least one argument of adam a list of values"),
            ({"learning_rate": []}, ValueError, r"learning_rate must be one row of at least one value.*\(0,\)"),
            ({"learning_rate": [[0.1, 0.2]]}, ValueError, r"learning_rate must be one row.*\(1, 2\)"),
            ({"learning_rate": np.ones((2, 2))}, ValueError, r"learning_rate must be one row.*\(2, 2\)"),
            ({"learning_rate": [0.1, -0.2]}, ValueError, "adam: learning_rate must be a number ≥ 0"),
            ({"learning_rate": [0.1], "b1": [0.9, 1.0]}, ValueError, r"adam: b1 must be in \[0, 1\)"),
            ({"learning_rate": [0.1], "b1": 1.0}, ValueError, r"adam: b1 must be in \[0, 1\)"),
            ({"learning_rate": ["0.1"]}, TypeError, "learning_rate must hold real numbers"),
            ({"learning_rate": [0.1j]}, TypeError, "learning_rate must hold real numbers"),
            ({"learning_rate": [0.1], "nesterov": [True, False]}, TypeError, "nesterov must hold real numbers"),
            ({"learning_rate": [0.1, None]}, TypeError, "learning_rate must hold real numbers"),
            (
                {"rate": [0.1], "lr": 0.1},
                TypeError,
                "grid: adam has no argument rate, lr; it has learning_rate, b1, b2, eps",
            ),
            ({"b1": [0.1]}, TypeError, "learning_rate"),
        ],
    )
    def test_errors(self, axes, error, message):
        with pytest.raises(error, match=message):
            grid(adam, **axes)

    @pytest.mark.parametrize(
        "factory",
        [
            lambda rate: optax.chain(optax.clip(1.0), adam(rate)),
            lambda rate: optax.adam(rate),
            lambda rate: (adam(rate), "and more"),
            lambda **arguments: optax.adam(arguments["rate"]),
        ],
    )
    def test_factory_of_what_is_no_optimizer(self, factory):
        with pytest.raises(TypeError, match=r"grid: <lambda> must return an Optimizer, got .*@jaxopt_adam\.optimizer"):
            grid(factory, rate=[0.1, 0.2])

    def test_function_around_factories(self):
        def made(rate, **rest):
            return cautious(adam(rate, **rest))

        optimizers, table = grid(made, rate=[0.1, 0.2], b1=[0.5, 0.9])
        assert optimizers.row(2).hyperparameters["inner"] == grid(adam, learning_rate=[0.2], b1=[0.5])[0].row(0)
        assert table[2] == {"rate": 0.2, "b1": 0.5}

    @pytest.mark.parametrize(
        ("factory", "message"),
        [
            (adam(0.1), r"grid: the factory itself is needed, adam, got adam\(learning_rate=0\.1\)"),
            ("adam", "grid: factory must be a function that makes an optimizer, got 'adam'"),
            (optax.adam(0.1), "grid: factory must be a function that makes an optimizer, got GradientTransformation"),
        ],
    )
    def test_what_is_no_factory(self, factory, message):
        with pytest.raises(TypeError, match=message):
            grid(factory, learning_rate=[0.1])

    def test_vmap_over_the_grid_equals_the_loop(self):
        optimizers, table = grid(adam, learning_rate=[0.01, 0.1, 0.3], b1=[0.5, 0.9, 0.99], eps=1e-6)

        def train(each):
            return descend(bowl, START, each, steps=50)

        batched = jax.jit(jax.vmap(train))(optimizers)
        assert batched.x.shape == (9, 51, 2)
        as_argument = jax.jit(train)
        for i, row in enumerate(table):
            made = adam(**row, eps=1e-6)
            for path in (as_argument(made), jax.jit(lambda made=made: train(made))()):
                np.testing.assert_allclose(batched.x[i], path.x, rtol=1e-6, atol=1e-6)
                np.testing.assert_allclose(batched.value[i], path.value, rtol=1e-6, atol=1e-6)
        ends = np.asarray(batched.x[:, -1])
        assert len({tuple(end) for end in ends}) == len(table)

    def test_vmap_over_some_leaves(self):
        made = adam(jnp.array([0.1, 0.2]))
        axes = jax.tree.map(lambda leaf: 0 if np.ndim(leaf) else None, made)
        paths = jax.vmap(lambda each: descend(bowl, START, each, steps=5).x, in_axes=(axes,))(made)
        for rate, path in zip((0.1, 0.2), paths, strict=True):
            np.testing.assert_allclose(path, descend(bowl, START, adam(rate), steps=5).x, rtol=1e-5)


class TestRow:
    def test_of_a_grid(self):
        optimizers, table = grid(adam, learning_rate=[0.1, 0.2], b1=[0.5, 0.9], nesterov=True)
        for index, row in enumerate(table):
            one = optimizers.row(index)
            assert isinstance(one, Optimizer)
            assert all(np.shape(leaf) == () for leaf in jax.tree.leaves(one))
            assert one.hyperparameters["nesterov"] is True
            for name, value in row.items():
                assert one.hyperparameters[name] == np.float32(value)

    @pytest.mark.parametrize("shape", [(2, 4), (3,)])
    def test_the_update_of_a_batch_asks_for_vmap(self, shape):
        leaf = jnp.ones(shape)
        optimizers, _ = grid(adam, learning_rate=[0.1, 0.2], b1=[0.8, 0.9])
        for batch in (optimizers, chain(optimizers), chain(optimizers, optimizers)):
            state = batch.init(leaf)
            for update in (batch.update, jax.jit(batch.update)):
                with pytest.raises(ValueError, match=r"all hyperparameters have the axes \(4,\).* jax\.vmap .* row"):
                    update(leaf, state, leaf)
            of_rows = jax.eval_shape(jax.vmap(lambda each, state=state: each.update(leaf, state, leaf)[0]), batch)
            assert of_rows.shape == (4, *shape)

    def test_one_array_or_arrays_of_one_number_are_no_batch(self):
        leaf = jnp.ones((2, 4))
        for made in (
            adam(jnp.full(4, 0.1)),
            sgd(jnp.full(4, 0.1)),
            sgd({"w": jnp.full(4, 0.1)}, momentum=0.9),
            grid(adam, learning_rate=[0.1])[0],
        ):
            params = {"w": leaf}
            updates, _ = made.update(params, made.init(params), params)
            assert updates["w"].shape == leaf.shape

    def test_trains_as_in_the_batch(self):
        optimizers, _ = grid(adam, learning_rate=[0.1, 0.2])
        ends = jax.vmap(lambda each: descend(bowl, START, each, steps=5).x[-1])(optimizers)
        np.testing.assert_allclose(descend(bowl, START, optimizers.row(1), steps=5).x[-1], ends[1], rtol=1e-6)

    @pytest.mark.parametrize("kind", [int, np.int64, np.uint8, jnp.int32])
    def test_every_kind_of_index(self, kind):
        optimizers, _ = grid(sgd, learning_rate=[0.1, 0.2, 0.3])
        assert optimizers.row(kind(2)) == sgd(np.float32(0.3))

    def test_from_the_end(self):
        optimizers, _ = grid(sgd, learning_rate=[0.1, 0.2, 0.3])
        for index in (-1, -2, -3):
            assert optimizers.row(index) == optimizers.row(3 + index)

    @pytest.mark.parametrize("index", [3, -4, np.int64(100)])
    def test_out_of_range(self, index):
        optimizers, _ = grid(sgd, learning_rate=[0.1, 0.2, 0.3])
        with pytest.raises(IndexError, match=f"row: index {index} is out of range for a batch of 3 optimizers"):
            optimizers.row(index)

    @pytest.mark.parametrize("index", [1.0, "0", None, slice(2), jnp.array(1.0), jnp.array([0, 1])], ids=str)
    def test_index_of_another_kind(self, index):
        optimizers, _ = grid(sgd, learning_rate=[0.1, 0.2, 0.3])
        with pytest.raises(TypeError, match="row: index must be a whole number that is not traced, got"):
            optimizers.row(index)

    def test_traced_index(self):
        optimizers, _ = grid(sgd, learning_rate=[0.1, 0.2, 0.3])
        with pytest.raises(TypeError, match="row: index must be a whole number that is not traced, got"):
            jax.jit(lambda index: optimizers.row(index))(1)

    def test_of_a_traced_batch(self):
        optimizers, _ = grid(sgd, learning_rate=[0.1, 0.2, 0.3])
        assert jax.jit(lambda batch: batch.row(-1))(optimizers) == optimizers.row(2)

    def test_of_vmap_and_of_wrappers(self):
        optimizers = jax.vmap(lambda rate: cautious(adam(rate)))(jnp.array([0.25, 0.5]))
        assert optimizers.row(1).hyperparameters["inner"].hyperparameters["learning_rate"] == 0.5

    def test_of_a_batch_of_batches(self):
        rates = jnp.array([[0.25, 0.5, 1.0], [2.0, 4.0, 8.0]])
        optimizers = jax.vmap(jax.vmap(lambda rate: sgd(rate)))(rates)
        np.testing.assert_array_equal(optimizers.row(1).hyperparameters["learning_rate"], rates[1])
        assert optimizers.row(1).row(2) == sgd(8.0)

    @pytest.mark.parametrize(
        ("made", "shapes"),
        [
            (sgd(0.1), r"this sgd are: learning_rate \(\)"),
            (adam(jnp.array([0.1, 0.2])), r"learning_rate \(2,\), b1 \(\), b2 \(\)"),
            (sgd(jnp.ones(2), momentum=jnp.ones(3) / 2), r"learning_rate \(2,\), momentum \(3,\)"),
            (sgd(None), "this sgd are: none"),
        ],
        ids=["one", "some", "unequal", "no leaves"],
    )
    def test_of_what_is_no_batch(self, made, shapes):
        with pytest.raises(ValueError, match=f"row: in a batch of optimizers all hyperparameters have .* {shapes}"):
            made.row(0)


class TestHypergradients:
    def test_agree_with_finite_differences(self, x64):
        @jax.jit
        def loss(made):
            return bowl(descend(bowl, START, made, steps=10).x[-1])

        made = adam(0.1, b1=0.7, b2=0.9, eps=1e-3)
        gradient = jax.grad(loss)(made)
        assert isinstance(gradient, Optimizer)
        for name in ("learning_rate", "b1", "b2", "eps"):
            value = made.hyperparameters[name]
            width = 1e-5 * value
            higher, lower = (made.replace(**{name: value + sign * width}) for sign in (1, -1))
            difference = (loss(higher) - loss(lower)) / (2 * width)
            assert abs(difference) > 1e-4
            np.testing.assert_allclose(gradient.hyperparameters[name], difference, rtol=1e-6)

    @pytest.mark.parametrize("made", [sgd(0.05, momentum=0.5), adagrad(0.5), adadelta(1.0), rmsprop(0.1)], ids=repr)
    def test_of_the_other_rules(self, made, x64):
        @jax.jit
        def loss(made):
            return bowl(descend(bowl, START, made, steps=10).x[-1])

        gradient = jax.grad(loss)(made)
        value = made.hyperparameters["learning_rate"]
        width = 1e-5 * value
        higher, lower = (made.replace(learning_rate=value + sign * width) for sign in (1, -1))
        difference = (loss(higher) - loss(lower)) / (2 * width)
        np.testing.assert_allclose(gradient.hyperparameters["learning_rate"], difference, rtol=1e-6)

    def test_of_a_schedule_that_is_data(self, x64):
        def loss(initial):
            schedule = jax.tree_util.Partial(lambda initial, count: initial * 0.9**count, initial)
            return bowl(descend(bowl, START, adam(schedule), steps=10).x[-1])

        difference = (loss(0.2 + 1e-6) - loss(0.2 - 1e-6)) / 2e-6
        np.testing.assert_allclose(jax.grad(loss)(0.2), difference, rtol=1e-6)

    def test_step_down_the_hypergradient(self, x64):
        def loss(made):
            return bowl(descend(bowl, START, made, steps=10).x[-1])

        made = sgd(0.01)
        gradient = jax.grad(loss)(made)
        better = jax.tree.map(lambda value, slope: value - 1e-4 * slope, made, gradient)
        assert loss(better) < 0.9 * loss(made)
