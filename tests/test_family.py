"""Every rule through every case: a table of the rules, and the cases."""

import functools
import inspect
import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, serialization
from public import RULES

import jaxopt_adam
from jaxopt_adam._hyperparameters import Whole

# ----------------------------------------------------------------------------------------------------------- the rules


def cautious_adam(learning_rate, eps=1e-8):
    return jaxopt_adam.cautious(jaxopt_adam.adam(learning_rate, eps=eps))


FACTORIES = dict(RULES)
FACTORIES["cautious(adam)"] = cautious_adam

RATE = 0.1


def falling(rate):
    """For rules whose steps do not shrink by themselves near to a minimum, or hardly so: the schedule for a run."""
    return functools.partial(optax.cosine_decay_schedule, rate)


# How far a statistic is off at most when each gradient g has a rounding error of at most u |g|, given what the same
# statistic is for the gradients |g| ("size"), and what it started from. All follow from what the statistic is:


def linear(u, size, _):
    """A sum of gradients, or a maximum of their sizes, whose weights do not depend on them."""
    return u * size


def squares(u, size, _):
    """Such a sum of squares or of products of two: (1 + u)² is 1 + 2u + u²."""
    return (2 * u + u**2) * size


def ratios(u, size, _):
    """Such a sum of gradients over roots of sums of squares: each quotient is off by (1 + u) / (1 − u) at most."""
    return 2 * u / (1 - u) * size


def ratios_from_start(u, size, start):
    """As ratios, where the sum is added to what it starts from and does not forget it."""
    return ratios(u, np.abs(size - start), start)


def unchanged(_, size, start):
    return 0 * size


def deviations_of_adabelief(u, gradients):
    """Of |g − m|² with m the average, an average; g − m is off by u (|g| + the average of |g|)."""
    total = average = np.zeros(gradients.shape[1:])
    for size in np.abs(gradients):
        average = 0.9 * average + 0.1 * size
        total = 0.999 * total + 0.001 * (2 * u + u**2) * (size + average) ** 2
    return total


def differences_of_adan(u, gradients):
    """Of g − g before, an average."""
    total = np.zeros(gradients.shape[1:])
    for before, size in itertools.pairwise(np.abs(gradients)):
        total = 0.92 * total + 0.08 * u * (before + size)
    return total


def squares_of_adan(u, gradients):
    """Of |g + 0.92 (g − g before)|², an average."""
    sizes = np.abs(gradients)
    total = 0.01 * (2 * u + u**2) * sizes[0] ** 2
    for before, size in itertools.pairwise(sizes):
        total = 0.99 * total + 0.01 * (2 * u + u**2) * (1.92 * size + 0.92 * before) ** 2
    return total


# Or nothing follows, since what is rounded feeds back into what is added, or decides between two branches.
UNBOUNDED = None


class Row(NamedTuple):
    """The properties of a rule that the cases depend on.

    Attributes:
        rate: a learning rate with which it comes to the minima of a parabola and of Rosenbrock's function in 10,000
            steps.
        moments: for each field of the state that has leaves for parameters, how rounding errors of the gradients add
            up in it.
        options: the other hyperparameters, for all cases.
        invariant: with which hyperparameters the updates do not depend on the scale of the gradients; None if they do.
        invariant_from: after how many steps they do not.
        overflows: leaves of which a statistic is beyond float32 for gradients of 1e18, which is finite, but another.
        has_complex: whether it has a meaning for complex numbers.
        elementwise: whether no element of an update depends on another.
        stays: whether a parameter without gradients stays where it is.
        has_one_rate: whether parts of the parameters cannot have learning rates of their own.
        evaluate: what the state and the parameters stand for, where that is not the parameters.
    """

    rate: Any
    moments: Mapping[str, Callable[..., Any] | None]
    options: Mapping[str, Any] = {}
    invariant: Mapping[str, Any] | None = None
    invariant_from: int = 0
    overflows: tuple[str, ...] = ()
    has_complex: bool = True
    elementwise: bool = True
    stays: bool = True
    has_one_rate: bool = False
    evaluate: Callable[[Any, Any], Any] = lambda _, params: params


ADAM = {"mu": linear, "nu": squares}

TABLE = {
    "adabelief": Row(
        falling(0.3),
        {"mu": linear, "nu": deviations_of_adabelief},
        invariant={"eps": 0.0, "eps_root": 0.0},
    ),
    # The average of the squared steps sets the size of the steps that it averages.
    "adadelta": Row(falling(1.0), {"e_g": squares, "e_x": UNBOUNDED}, invariant={"eps": 1e-30}),
    "adafactor": Row(
        falling(0.01),
        {"v_row": squares, "v_col": squares, "v": squares},
        {"min_dim_size_to_factor": 2},
        invariant={"eps": 1e-30},
        elementwise=False,
    ),
    "adagrad": Row(
        0.5,
        {"sum_of_squares": squares},
        invariant={"eps": 0.0, "initial_accumulator_value": 0.0},
    ),
    "adam": Row(falling(0.1), ADAM, invariant={"eps": 0.0}),
    "adam_atan2": Row(falling(0.1), ADAM, invariant={}, has_complex=False),
    "adam_mini": Row(falling(0.1), ADAM, invariant={"eps": 0.0}, elementwise=False),
    "adamax": Row(falling(1.0), {"mu": linear, "nu": linear}, invariant={"eps": 0.0}),
    "adamaxw": Row(falling(1.0), {"mu": linear, "nu": linear}, invariant={"eps": 0.0}, stays=False),
    "adamw": Row(falling(0.1), ADAM, invariant={"eps": 0.0}, stays=False),
    "adan": Row(
        0.01,
        {"m": linear, "v": differences_of_adan, "n": squares_of_adan, "g": linear},
        invariant={"eps": 0.0, "eps_root": 0.0},
    ),
    "ademamix": Row(falling(0.1), {"m1": linear, "m2": linear, "nu": squares}, invariant={"eps": 0.0}),
    "adopt": Row(falling(1.0), {"mu": ratios, "nu": squares}, invariant={"eps": 0.0}),
    "amsgrad": Row(1.0, {"mu": linear, "nu": squares, "nu_max": squares}, invariant={"eps": 0.0}),
    "cautious(adam)": Row(falling(0.1), ADAM, invariant={"eps": 0.0}, elementwise=False),
    "lamb": Row(falling(0.03), ADAM, invariant={"eps": 0.0}, elementwise=False),
    "laprop": Row(falling(0.1), {"mu": ratios, "nu": squares}, invariant={"eps": 0.0}),
    "lion": Row(falling(0.003), {"mu": linear}, invariant={}, stays=False),
    "muon": Row(falling(0.01), ADAM, invariant={"eps": 0.0}, elementwise=False),
    "nadam": Row(falling(0.1), ADAM, invariant={"eps": 0.0}),
    "nadamw": Row(falling(0.1), ADAM, invariant={"eps": 0.0}, stays=False),
    "novograd": Row(
        falling(0.001),
        {"mu": ratios, "nu": squares},
        invariant={"eps": 0.0},
        overflows=("vector",),  # nu is the squared norm
        elementwise=False,
    ),
    # Its d, which all leaves share, weighs what comes into mu, nu and grad_sum.
    # At a constant rate it passes its goal now and then, and at which step is a matter of rounding.
    "prodigy": Row(
        falling(1.0),
        {"mu": linear, "nu": squares, "grad_sum": linear, "params0": unchanged},
        invariant={"eps": 0.0},
        elementwise=False,
        has_one_rate=True,
    ),
    # Its first five steps are momentum's.
    "radam": Row(0.003, ADAM, invariant={"eps": 0.0}, invariant_from=5),
    "rmsprop": Row(
        falling(0.003),
        {"nu": squares, "trace": ratios},
        {"momentum": 0.9},
        invariant={"eps": 0.0},
    ),
    "schedule_free_adamw": Row(
        0.03,
        {"nu": squares, "z": ratios_from_start},
        invariant={"eps": 0.0},
        has_one_rate=True,
        evaluate=jaxopt_adam.schedule_free_eval_params,
    ),
    "sgd": Row(0.001, {"trace": linear}, {"momentum": 0.9}),
    # Eigenvectors are the further off the nearer their eigenvalues are; nu is in their coordinates.
    "soap": Row(
        falling(0.01),
        {"mu": linear, "nu": UNBOUNDED, "factors": squares, "bases": UNBOUNDED},
        invariant={"eps": 0.0},
        has_complex=False,
        elementwise=False,
        stays=False,
    ),
    "stable_adamw": Row(falling(0.03), ADAM, invariant={"eps": 0.0}, elementwise=False, stays=False),
    # A sign decides whether nu rises or falls. Both start from a number, 1e-6: from the scale of the gradients nothing
    # follows then, and without gradients mu still has a way to go.
    "yogi": Row(falling(0.3), {"mu": linear, "nu": UNBOUNDED}, stays=False),
}


def test_every_rule_is_in_the_table():
    assert set(TABLE) == set(FACTORIES)


# ----------------------------------------------------------------------------------------------------------- the cases


def tree_like(leaf: Callable[..., Any]):
    """A matrix, a vector (whose squares of 1e18 would overflow when summed) and a scalar."""
    return {"matrix": leaf((4, 3)), "vector": leaf((400,)), "scalar": leaf(())}


def normal(seed, *batch):
    generator = np.random.default_rng(seed)
    return tree_like(lambda shape: generator.standard_normal((*batch, *shape)).astype(np.float32))


PARAMS = normal(0)
GRADIENTS = normal(1, 8)
# From 1e-30, 1e-8, 1e-3, 1, 1e8 and 1e18 the next powers of two, by which to multiply rounds nothing.
EVERY_SCALE = np.float32([2.0**-99, 2.0**-26, 2.0**-9, 1, 2.0**27, 2.0**60])
LAST_STEP = 2**31 - 1


def at(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


def stacked(trees):
    return jax.tree.map(lambda *leaves: np.stack(leaves).astype(np.float32), *trees)


# The optimizers are an argument, so this is compiled once for each rule.
@jax.jit
@jax.vmap
def step_of_rows(optimizer, grads, state, params):
    updates, state = optimizer.update(grads, state, params)
    return updates, state, optax.apply_updates(params, updates)


class Rule:
    """A rule, its row of the table, and one jitted step for all cases, which is for `PARAMS` only."""

    def __init__(self, name: str):
        self.name, self.row, self.factory = name, TABLE[name], FACTORIES[name]
        self.traces = 0

        @jax.jit
        def step(optimizer, grads, state, params):
            self.traces += 1
            return optimizer.update(grads, state, params)

        self.step = step

    def make(self, learning_rate=RATE, **options):
        return self.factory(learning_rate=learning_rate, **self.row.options | options)

    def make_for(self, steps, learning_rate):
        return self.make(learning_rate(steps) if callable(learning_rate) else learning_rate)

    def walk(self, optimizer, gradients, params=PARAMS):
        """The updates for a row of gradients, and the state after them; the parameters move along."""
        state, every = optimizer.init(params), []
        for index in range(len(gradients["scalar"])):
            updates, state = self.step(optimizer, at(gradients, index), state, params)
            params = jax.tree.map(np.add, params, updates)
            every.append(updates)
        return jax.tree.map(lambda *leaves: np.stack(leaves), *every), jax.device_get(state)

    def after_three_steps(self):
        optimizer = self.make()
        state = optimizer.init(PARAMS)
        for index in range(3):
            _, state = self.step(optimizer, at(GRADIENTS, index), state, PARAMS)
        return optimizer, state


TO_ROUNDING = {"muon": 1e-4}
"""Tolerances where sums go in another order; Muon's iteration makes of a rounding up to 3.4⁵ as much."""


@pytest.fixture(scope="module", params=FACTORIES)
def rule(request):
    return Rule(request.param)


def assert_same(one, other):
    chex.assert_trees_all_equal_shapes_and_dtypes(one, other)
    chex.assert_trees_all_equal(one, other)


def assert_near(one, other, tolerance):
    """Equal to within a share of the largest element of each leaf."""
    chex.assert_trees_all_equal_shapes_and_dtypes(one, other)

    def near(path, one, other):
        scale = np.max(np.abs(other), initial=0)
        assert np.isfinite(one).all(), path
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * scale, err_msg=str(path))

    jax.tree_util.tree_map_with_path(near, one, other)


MATRIX = jax.tree_util.DictKey("matrix")


def by_path(state):
    return jax.tree_util.tree_leaves_with_path(state)


def leaves_of(state, key):
    """The leaves of a state that are for one parameter of a dictionary, by their paths."""
    paths = jax.tree_util.tree_leaves_with_path(state)
    return {path: leaf for path, leaf in paths if jax.tree_util.DictKey(key) in path}


def only(matrix):
    """A tree like the parameters, or a row of them, of which all but the matrix is zero."""
    rows = matrix.shape[:-2]
    return {name: np.zeros((*rows, *np.shape(leaf)), np.float32) for name, leaf in PARAMS.items()} | {"matrix": matrix}


def assert_near_for_the_matrix(state, right, tolerance):
    """Compare a state of the matrix alone with the matrix's part of a state of all parameters."""
    for path, leaf in leaves_of(right, "matrix").items():
        [found] = [each for other, each in by_path(state) if other == tuple(key for key in path if key != MATRIX)]
        assert_near(found, leaf, tolerance)


class TestConverges:
    def test_on_a_parabola_and_on_rosenbrock(self, rule):
        """Both in one program, a parabola of a scalar and a complex vector and Rosenbrock's function of the others."""
        # The start is of the sign of the minimum, since a step that is relative to a scalar ends at zero.
        start, goal = {"scalar": 5.0}, {"scalar": 2.0}
        if rule.row.has_complex:
            start["complex"], goal["complex"] = [2 - 1j, 3 + 1j], [1 + 1j, -1 - 2j]
        else:
            start["real"], goal["real"] = [-1.0, 10.0, 1.0], [1.0, -1.0, 1.0]
        bent = {"vector": [0.0, 0.0], "matrix": [[0.0, 0.5], [0.0, -0.5]]}
        start = {name: jnp.asarray(value) for name, value in (start | bent).items()}
        goal = {name: np.asarray(value) for name, value in goal.items()}
        optimizer = rule.make_for(10_000, rule.row.rate)

        def fun(params):
            parabola = sum(jnp.sum(jnp.abs(params[name] - end) ** 2) for name, end in goal.items())
            pairs = [params[name] for name in bent]
            return parabola + sum(jnp.sum((1 - x) ** 2 + 100 * (y - x**2) ** 2) for x, y in pairs)

        @jax.jit
        def train():
            def step(carry, _):
                params, state = carry
                # JAX's gradient of a function of complex numbers is the conjugate of the way up.
                grads = jax.tree.map(jnp.conj, jax.grad(fun)(params))
                updates, state = optimizer.update(grads, state, params)
                return (optax.apply_updates(params, updates), state), None

            (params, state), _ = jax.lax.scan(step, (start, optimizer.init(start)), length=10_000)
            return rule.row.evaluate(state, params)

        for name, end in train().items():
            np.testing.assert_allclose(end, goal.get(name, np.ones_like(start[name])), rtol=0, atol=5e-3, err_msg=name)


class TestDtypes:
    @pytest.mark.usefixtures("x64")
    def test_updates_have_the_dtype_of_their_gradients_and_moments_at_least_float32(self, rule):
        dtypes = ["float16", "bfloat16", "float32", "float64"]
        dtypes += ["complex64", "complex128"] if rule.row.has_complex else []
        shapes = [(4, 3), ()] if rule.row.elementwise else [(4, 3), (5,), ()]
        params = {dtype: [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes] for dtype in dtypes}
        optimizer = rule.make()
        state = jax.eval_shape(optimizer.init, params)
        updates, after = jax.eval_shape(optimizer.update, params, state, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
        for dtype in dtypes:
            arithmetic = jnp.finfo(jnp.promote_types(dtype, "float32")).dtype
            moments = leaves_of(after, dtype)
            assert moments
            assert {jnp.finfo(leaf.dtype).dtype for leaf in moments.values()} == {arithmetic}

    @pytest.mark.parametrize(("param", "grad"), [("bfloat16", "float32"), ("float32", "bfloat16")])
    def test_updates_have_the_dtype_of_their_gradients_where_parameters_have_another(self, rule, param, grad):
        optimizer = rule.make()
        params, grads = (jax.ShapeDtypeStruct((4, 3), dtype) for dtype in (param, grad))
        state = jax.eval_shape(optimizer.init, params)
        updates, after = jax.eval_shape(optimizer.update, grads, state, params)
        assert updates.dtype == grad
        chex.assert_trees_all_equal_shapes_and_dtypes(after, state)

    def test_complex_leaf_that_has_no_meaning_is_named(self, rule):
        params = {"w": jax.ShapeDtypeStruct((3, 2), jnp.complex64)}
        if rule.row.has_complex:
            jax.eval_shape(rule.make().init, params)
        else:
            with pytest.raises(TypeError, match=r"leaf \['w'\] must be real for this rule.*got complex64"):
                jax.eval_shape(rule.make().init, params)


class TestPair:
    def test_extra_arguments_are_accepted_and_change_nothing(self, rule):
        optimizer = rule.make()
        params = PARAMS["matrix"]
        state = jax.eval_shape(optimizer.init, params)

        def program(**extra):
            return str(jax.make_jaxpr(functools.partial(optimizer.update, **extra))(params, state, params))

        assert program(value=jnp.float32(1.0), grad=params, other=object()) == program()

    def test_learning_rate_can_be_injected_read_and_changed(self, rule):
        # What shapes the program must be static, as with optax's factories.
        static = [name for name, value in rule.make().hyperparameters.items() if isinstance(value, Whole)]
        static += [name for name, value in rule.make().hyperparameters.items() if callable(value)]
        names = inspect.signature(rule.factory).parameters
        inject = optax.inject_hyperparams(rule.factory, static_args=[name for name in static if name in names])
        injected = inject(learning_rate=RATE, **rule.row.options)
        params, step = PARAMS["matrix"], jax.jit(injected.update)
        state, plain = injected.init(params), rule.make().init(only(params))
        for index, rate in enumerate([RATE, 0.02, 0.02]):
            state.hyperparams["learning_rate"] = jnp.asarray(rate)
            grads = GRADIENTS["matrix"][index]
            updates, state = step(grads, state, params)
            right, plain = rule.step(rule.make(rate), only(grads), plain, only(params))
            # What is not injected is a constant, whose 1 − β is not that of the float32 number: 3e-5 off for 0.999.
            tolerance = 1e-6 if len(state.hyperparams) == len(jax.tree.leaves(rule.make())) else 5e-5
            assert_near(updates, right["matrix"], tolerance)
            assert_near_for_the_matrix(state.inner_state, plain, tolerance)
            assert state.hyperparams["learning_rate"] == np.float32(rate)

    def test_parameters_in_the_state_are_mapped(self, rule):
        optimizer = rule.make()
        state = jax.eval_shape(optimizer.init, PARAMS)
        mapped = optax.tree.map_params(optimizer, lambda _: "moment", state, transform_non_params=lambda _: "other")
        assert jax.tree.structure(mapped) == jax.tree.structure(state)
        found = []
        for (path, _), what in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(mapped), strict=True):
            keys = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
            assert what == ("moment" if keys else "other"), path
            found += keys[:1]
        assert set(found) == set(PARAMS)


class TestCompilation:
    def test_step_is_traced_once(self, rule):
        state = rule.make().init(PARAMS)
        avals = jax.tree.map(jax.typeof, state)  # with their weak types
        compiled = jax.jit(lambda optimizer: optimizer.init(PARAMS)).trace(rule.make()).jaxpr.out_avals
        assert jax.tree.leaves(avals) == list(compiled)
        for index, rate in enumerate([RATE, 0.02, np.float32(0.5)]):
            _, state = rule.step(rule.make(rate), at(GRADIENTS, index), state, PARAMS)
            assert jax.tree.map(jax.typeof, state) == avals
        assert rule.traces == 1

    def test_batch_of_learning_rates_and_parameters_is_the_loop_over_it(self, rule):
        """The batch is of a matrix alone, and in the loop nothing else moves, so no leaf depends on the others."""
        rates = np.geomspace(0.01, 0.1, 3)
        optimizers = [rule.make(rate) for rate in rates]
        many, params, gradients = stacked(optimizers), normal(2, 3)["matrix"], normal(3, 8, 3)["matrix"]
        state, batched = jax.vmap(lambda each, params: each.init(params))(many, params), []
        moving = params
        for grads in gradients:
            updates, state, moving = step_of_rows(many, grads, state, moving)
            batched.append(jax.device_get(updates))
        for row in range(3):
            updates, end = rule.walk(optimizers[row], only(gradients[:, row]), only(params[row]))
            tolerance = TO_ROUNDING.get(rule.name, 1e-5)
            for index in range(8):
                assert_near(batched[index][row], updates["matrix"][index], tolerance)
            assert_near_for_the_matrix(at(jax.device_get(state), row), end, 1e-5)

    def test_restored_from_bytes_goes_on_bit_for_bit(self, rule):
        optimizer, state = rule.after_three_steps()
        restored = serialization.from_bytes(rule.make().init(PARAMS), serialization.to_bytes(state))
        assert_same(restored, jax.device_get(state))
        for index in range(3, 8):
            updates, state = rule.step(optimizer, at(GRADIENTS, index), state, PARAMS)
            restored_updates, restored = rule.step(optimizer, at(GRADIENTS, index), restored, PARAMS)
            assert_same((restored_updates, restored), (updates, state))
        assert state.count == 8


class TestNumbers:
    @staticmethod
    def updates_at_every_scale(rule, optimizer):
        gradients = [jax.tree.map(lambda leaf, by=scale: by * leaf, GRADIENTS) for scale in EVERY_SCALE]
        walks = [rule.walk(optimizer, each) for each in gradients]
        chex.assert_tree_all_finite(walks)
        return [updates for updates, _ in walks]

    def test_updates_are_finite_at_every_scale(self, rule):
        self.updates_at_every_scale(rule, rule.make())

    def test_updates_depend_on_the_scale_or_not_as_the_table_says(self, rule):
        every = self.updates_at_every_scale(rule, rule.make(**rule.row.invariant or {}))
        every = [jax.tree.map(lambda leaf: leaf[rule.row.invariant_from :], updates) for updates in every]
        ones = every[EVERY_SCALE.tolist().index(1)]
        assert all(np.any(leaf) for leaf in jax.tree.leaves(ones))
        for index in np.flatnonzero(EVERY_SCALE >= 1e-3):
            same = dict(every[index])
            if EVERY_SCALE[index] > 1e18:
                same |= {name: ones[name] for name in rule.row.overflows}
            if rule.row.invariant is not None:
                assert_near(same, ones, 1e-6)
            elif EVERY_SCALE[index] != 1:
                assert not np.allclose(same["matrix"], ones["matrix"], rtol=1e-3)

    def test_zero_gradients_give_zero_updates_at_first_and_finite_ones_ever_after(self, rule):
        """Also where no ε makes a quotient of nought by nought one by ε; and a leaf of zeros stays one."""
        gradients = jax.tree.map(np.copy, GRADIENTS)
        for leaf in gradients.values():
            leaf[:3] = leaf[5] = leaf[7] = 0
        gradients["vector"][:] = 0
        params = jax.tree.map(np.zeros_like, PARAMS)
        for options in ({}, rule.row.invariant or {}):
            updates, state = rule.walk(rule.make(**options), gradients, params)
            chex.assert_tree_all_finite((updates, state))
            if rule.name != "yogi":  # whose averages start at 1e-6, as optax's do
                assert not any(np.any(leaf[:3]) for leaf in updates.values())
                assert not np.any(updates["vector"])
            assert all(np.any(updates[name][3:]) for name in ("matrix", "scalar"))

    def test_counter_stops_and_the_update_stays_right(self, rule):
        optimizer, state = rule.after_three_steps()
        chex.assert_type(state.count, np.int32)
        before, last, beyond = (
            rule.step(optimizer, at(GRADIENTS, 3), state._replace(count=jnp.int32(count)), PARAMS)
            for count in (LAST_STEP - 2, LAST_STEP - 1, LAST_STEP)
        )
        assert (before[1].count, last[1].count, beyond[1].count) == (LAST_STEP - 1, LAST_STEP, LAST_STEP)
        chex.assert_tree_all_finite(beyond)
        assert_same(beyond, last)
        # Each has long forgotten where it started, so that a step more or less is nothing.
        assert_near(beyond[0], before[0], 1e-6)


@chex.dataclass
class Layer:
    table: Any
    offset: Any


class Tanh(eqx.Module):
    table: Any
    offset: Any

    def __call__(self, x):
        return jnp.tanh(self.table @ x + self.offset)


class TestTrees:
    @staticmethod
    @functools.cache
    def tree():
        def leaf(*shape):
            return jax.ShapeDtypeStruct(shape, jnp.float32)

        return {
            "nothing": None,
            "masked": optax.MaskedNode(),
            "empty": [{}, ()],
            "scalar": leaf(),
            "no elements": leaf(0, 3),
            "dataclass": Layer(table=leaf(3, 2), offset=None),
            "equinox": Tanh(leaf(3, 2), None),
            "linen": jax.eval_shape(nn.Dense(3, use_bias=False).init, jax.random.key(0), leaf(2)),
            "nnx": nnx.eval_shape(lambda: nnx.state(nnx.Linear(2, 3, use_bias=False, rngs=nnx.Rngs(0)), nnx.Param)),
        }

    def test_of_every_kind(self, rule):
        optimizer, params = rule.make(), self.tree()
        state = jax.eval_shape(optimizer.init, params)
        inputs = params, state, params
        program, outputs = jax.make_jaxpr(optimizer.update, return_shape=True)(*inputs)
        assert jax.tree.structure(outputs) == jax.tree.structure(inputs[:2])
        chex.assert_trees_all_equal_shapes_and_dtypes(outputs, inputs[:2])
        # The program is that for a list of the leaves.
        leaves = jax.tree.leaves(params)
        listed = leaves, jax.eval_shape(optimizer.init, leaves), leaves
        assert str(program) == str(jax.make_jaxpr(optimizer.update)(*listed))

    def test_empty(self):
        """All rules in one program, since there is next to nothing to compile of any."""
        optimizers = {name: Rule(name).make() for name in FACTORIES}

        @jax.jit
        def step():
            steps = itertools.product(optimizers.items(), ({}, ()))
            return [made.update(params, made.init(params), params) for (_, made), params in steps]

        for (name, params), (updates, state) in zip(itertools.product(optimizers, ({}, ())), step(), strict=True):
            assert updates == params, name
            assert state.count == 1, name
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state)), name

    def test_that_can_be_called_is_a_tree_of_learning_rates_too(self, rule):
        module = Tanh(PARAMS["matrix"], PARAMS["scalar"])
        rates = Tanh(RATE, 3 * RATE)
        if rule.row.has_one_rate:
            with pytest.raises(TypeError, match="learning_rate must be a number ≥ 0 or a schedule"):
                rule.make({"table": RATE})
            return
        grads = jax.tree.map(lambda leaf: leaf + 1, module)
        step = jax.jit(lambda optimizer, state: optimizer.update(grads, state, module))

        def updates(rates):
            optimizer = rule.make(rates)
            _, state = step(optimizer, optimizer.init(module))
            return step(optimizer, state)[0]

        apart, alike = updates(rates), updates(Tanh(RATE, RATE))
        assert_near(apart, Tanh(alike.table, 3 * alike.offset), 1e-6)


def of_leaf(field, name):
    """The entries of a leaf in a field of a state, be it a tree or several."""
    return [tree[name] for tree in field] if type(field) is tuple else field[name]


class TestHalfPrecision:
    """A thousand steps with leaves in half precision beside ones in float32, in one tree and so one program.

    The walks of a batch differ in the gradients: as they are, as each half precision has them, and zero but for one
    leaf.
    """

    steps = 1000
    halves = "bfloat16", "float16"
    names = "float32", "size", *halves

    @classmethod
    @functools.cache
    def gradients(cls):
        """Of sizes from 0.01 to 100, which float16 has too, and random signs."""
        generator = np.random.default_rng(5)
        shape = (cls.steps, 4, 3)
        sizes = np.clip(generator.lognormal(0, 2, shape), 0.01, 100)
        exact = np.float32(sizes * generator.choice([-1, 1], shape, p=[0.4, 0.6]))
        rows = [exact, *(exact.astype(jnp.dtype(half)).astype(np.float32) for half in cls.halves)]
        walks = [{name: np.abs(row) if name == "size" else row for name in cls.names} for row in rows]
        walks.append({name: row * np.float32(name == "size") for name, row in walks[0].items()})
        leaves = {name: np.stack([walk[name] for walk in walks]) for name in cls.names}
        return {name: leaf.astype(jnp.dtype(name)) if name in cls.halves else leaf for name, leaf in leaves.items()}

    @classmethod
    @functools.lru_cache(maxsize=1)
    def gone(cls, rule):
        gradients = cls.gradients()
        start = np.float32(np.random.default_rng(6).integers(-8, 8, (4, 3)) / 4 + 0.125)
        params = {name: start.astype(leaf.dtype) for name, leaf in gradients.items()}
        optimizer = rule.make(0.01)

        @jax.jit
        def go(params, gradients):
            def step(carry, grads):
                updates, state = optimizer.update(grads, carry[1], carry[0])
                moved = optax.apply_updates(carry[0], updates)
                finite = jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), (updates, moved, state))
                return (moved, state), jnp.stack(jax.tree.leaves(finite)).all()

            return jax.lax.scan(step, (params, optimizer.init(params)), gradients)

        walks = [jax.device_get(go(params, at(gradients, walk))) for walk in range(4)]
        (after, state), finite = jax.tree.map(lambda *leaves: np.stack(leaves), *walks)
        return gradients, params, after, state, finite

    def test_is_finite_where_most_of_the_leaves_have_no_gradient(self, rule):
        _, params, after, _, finite = self.gone(rule)
        assert finite.shape == (4, self.steps)
        assert finite.all()
        assert not np.array_equal(params["float32"], after["float32"][0])
        assert not np.array_equal(params["size"], after["size"][3])
        if rule.row.stays:
            still = [name for name in self.names if name != "size"]
            assert_same([after[name][3] for name in still], [params[name] for name in still])

    def test_moments_are_float32(self, rule):
        state = self.gone(rule)[3]
        for half in self.halves:
            moments = leaves_of(state, half)
            chex.assert_type(list(moments.values()), jnp.float32)
            fields = {path[0].name for path in moments}
            # Of a muon of matrices only, and of adafactor's, some fields have nothing.
            assert fields <= set(rule.row.moments)
            assert len(fields) >= 1

    def test_moments_are_those_of_float32_but_for_the_rounding_of_the_gradients(self, rule):
        # The weight decay is decoupled or zero in each, so no moment depends on the parameters, which are rounded too.
        gradients, params, _, state, _ = self.gone(rule)
        roundings = {"bfloat16": 2.0**-8, "float16": 2.0**-11}
        for half, u in roundings.items():
            wide = np.float64(gradients["float32"][0])
            assert np.max(np.abs(np.float64(gradients[half][0]) - wide) / np.abs(wide)) <= u
        for field, bound in rule.row.moments.items():
            trees = getattr(state, field)
            if trees is None:
                continue
            for row, (half, u) in enumerate(roundings.items(), 1):
                # Nothing else than the gradients is rounded: here are the same, rounded, for a leaf in float32.
                assert_same(at(of_leaf(trees, half), row), at(of_leaf(trees, "float32"), row))
                if bound is UNBOUNDED:
                    continue
                leaves = (jax.tree.leaves(at(of_leaf(trees, name), 0)) for name in (half, "float32", "size"))
                for narrow, exact, size in zip(*map(list, leaves), strict=True):
                    size = np.abs(np.float64(size))
                    if bound in (linear, squares, ratios, ratios_from_start, unchanged):
                        most = bound(u, size, np.float64(params["float32"]))
                    else:
                        most = bound(u, np.float64(gradients["float32"][0]))
                    # float32's own roundings: of a product and a sum in each step, in each of the two runs.
                    slack = 4 * self.steps * 2.0**-24 * np.maximum(size, most / u)
                    apart = np.abs(np.float64(narrow) - np.float64(exact))
                    assert (apart <= most + slack).all(), (field, half, np.max(apart / (most + slack)))
