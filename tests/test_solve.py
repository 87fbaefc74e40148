"""The loops: where they end, why they say that they did, and what they can be put into."""

import enum
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_adam import (
    Optimizer,
    Result,
    Status,
    Trajectory,
    adadelta,
    adafactor,
    adagrad,
    adam,
    adamw,
    adopt,
    cautious,
    descend,
    grid,
    master_weights,
    minimize,
    muon,
    observe,
    prodigy,
    rmsprop,
    sgd,
    soap,
)


def sphere(x):
    return jnp.sum(x**2)


def bowl(x):
    return x[0] ** 2 + 100 * x[1] ** 2


def rosenbrock(x):
    return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2


def beale(x):
    a, b = x
    return (1.5 - a + a * b) ** 2 + (2.25 - a + a * b**2) ** 2 + (2.625 - a + a * b**3) ** 2


def himmelblau(x):
    return (x[0] ** 2 + x[1] - 11) ** 2 + (x[0] + x[1] ** 2 - 7) ** 2


def square(x):
    return x**2


def shifted(x, target=3.0):
    return jnp.sum((x - target) ** 2)


def shifted_in_the_plane(z):
    return jnp.sum(jnp.abs(z - 3.0) ** 2)


LBFGS = optax.lbfgs()


# Nearly all the time of the tests is compilation. Within jit all numbers of an optimizer of ours, of `tol` and of
# `max_steps` share a program; an optimizer of optax is known when the loop is traced. A loop that no other test has is
# compiled as fast without, since then only the loop itself is.
solve_traced = jax.jit(minimize, static_argnums=0, static_argnames="has_aux")
solve_known = jax.jit(minimize, static_argnums=(0, 2), static_argnames="has_aux")
path_of_traced = jax.jit(descend, static_argnums=(0, 3))
path_of_known = jax.jit(descend, static_argnums=(0, 2, 3))


def solve(fun, x0, made, *, tol=1e-4, max_steps=10_000, **options):
    """`minimize` within jit."""
    return (solve_traced if isinstance(made, Optimizer) else solve_known)(
        fun, x0, made, tol=tol, max_steps=max_steps, **options
    )


def path_of(fun, x0, made, steps, **options):
    """`descend` within jit."""
    return (path_of_traced if isinstance(made, Optimizer) else path_of_known)(fun, x0, made, steps, **options)


HIMMELBLAU = [[3, 2], [-2.805118086952745, 3.131312518250573], [-3.779310253377747, -3.283185991286170]]
HIMMELBLAU += [[3.584428340330492, -1.848126526964404]]

# The function, its minima, and the corners of the box of starts. Beale's has a valley that falls for ever towards
# x = −∞ for y > 1, in which no descent finds the minimum; its box keeps out of it.
FUNCTIONS = [
    (sphere, [[0, 0]], (-5, -5), (5, 5)),
    (bowl, [[0, 0]], (-5, -5), (5, 5)),
    (rosenbrock, [[1, 1]], (-2, -1), (2, 3)),
    (beale, [[3, 0.5]], (0, -1), (4.5, 0.9)),
    (himmelblau, HIMMELBLAU, (-5, -5), (5, 5)),
]


class TestMinima:
    @pytest.mark.parametrize(
        ("function", "minima", "low", "high"), FUNCTIONS, ids=lambda value: getattr(value, "__name__", "")
    )
    def test_from_a_thousand_starts(self, function, minima, low, high, x64):
        starts = np.random.default_rng(0).uniform(low, high, (1000, 2))

        @jax.jit
        @jax.vmap
        def run(start):
            result = minimize(function, start, adam(0.1, b1=0.97), tol=1e-14, max_steps=10_000)
            return result, function(result.x)

        result, values = run(starts)
        values = np.asarray(values)
        assert result.x.shape == (1000, 2)
        assert np.all(result.status_name == "CONVERGED")
        steps = np.asarray(result.steps)
        assert np.all((steps > 1) & (steps < 10_000))
        distances = np.abs(np.asarray(result.x)[:, None] - np.array(minima)).max(-1)
        assert distances.min(1).max() < 1e-3
        assert np.all(distances.min(0) < 1e-3)  # of several minima, each is found
        np.testing.assert_allclose(result.value, values, rtol=1e-5, atol=1e-15)
        assert values.max() < 1e-6

    @pytest.mark.parametrize(
        "made",
        [sgd(0.1), sgd(0.05, momentum=0.8, nesterov=True), adagrad(1.0), adadelta(10.0), rmsprop(0.01), adam(0.1)],
        ids=repr,
    )
    def test_with_every_rule(self, made):
        result = solve(shifted, np.float32([0.0, 5.0]), made, tol=1e-9)
        assert result.status_name == "CONVERGED"
        np.testing.assert_allclose(result.x, [3.0, 3.0], atol=0.02)

    @pytest.mark.parametrize(
        "made",
        [
            optax.adam(0.1),
            optax.chain(optax.clip(1.0), adam(0.1)),
            LBFGS,
            optax.polyak_sgd(),
            optax.chain(adam(0.1), optax.contrib.reduce_on_plateau(patience=50)),
        ],
        ids=["adam", "chain", "lbfgs", "polyak_sgd", "reduce_on_plateau"],
    )
    def test_with_optax(self, made):
        result = solve(shifted, np.float32([0.0, 5.0]), made, tol=1e-9)
        assert result.status_name == "CONVERGED"
        np.testing.assert_allclose(result.x, [3.0, 3.0], atol=1e-3)

    def test_line_search_on_rosenbrock(self, x64):
        result = solve(rosenbrock, jnp.array([-1.2, 1.0]), optax.lbfgs(), tol=1e-20, max_steps=100)
        assert result.status_name == "CONVERGED"
        assert result.steps < 60
        np.testing.assert_allclose(result.x, [1.0, 1.0], atol=1e-6)

    def test_line_search_sees_args_and_not_aux(self):
        def with_aux(x, target):
            return shifted(x, target), {"x": x}

        result = solve(with_aux, np.zeros(2, np.float32), optax.lbfgs(), args=(5.0,), tol=1e-9, has_aux=True)
        np.testing.assert_allclose(result.x, [5.0, 5.0], rtol=1e-4)
        np.testing.assert_array_equal(result.aux["x"], result.x)

    def test_complex_numbers(self):
        def distance(z):
            return jnp.abs(z["z"] - (1 + 2j)) ** 2 + (z["x"] - 3) ** 2

        for made in (sgd(0.1), adam(0.1)):
            result = solve(distance, {"z": 0j, "x": 0.0}, made, tol=1e-9)
            assert result.status_name == "CONVERGED"
            assert result.x["z"].dtype == jnp.complex64
            assert result.x["x"].dtype == jnp.float32
            assert result.value.dtype == jnp.float32
            np.testing.assert_allclose(result.x["z"], 1 + 2j, atol=1e-3)
            np.testing.assert_allclose(result.x["x"], 3, atol=1e-3)


def python_minimize(function, x, made, tol, max_steps):
    """The algorithm of minimize as a loop in Python; also every x and value on the way."""
    value_and_grad = jax.jit(jax.value_and_grad(function))
    value, grad = value_and_grad(x)
    state = made.init(x)
    way, steepest = [(x, value)], np.abs(grad).max()
    for _ in range(max_steps):
        updates, state = made.update(grad, state, x)
        x = optax.apply_updates(x, updates)
        before, (value, grad) = np.asarray(grad, np.float64), value_and_grad(x)
        step = np.asarray(x, np.float64) - np.asarray(way[-1][0], np.float64)
        way.append((x, value))
        steepest = max(steepest, np.abs(grad).max())
        alike = abs(float(value) - float(way[-2][1])) < tol
        predicted = abs(np.sum(before * step)) < tol
        fallen = np.abs(grad).max() <= steepest / 2 or np.sum(before * np.asarray(grad)) < 0
        if alike and predicted and fallen and (np.any(step) or not np.any(before)):
            return way, Status.CONVERGED
    return way, Status.MAX_STEPS


class TestStoppingRule:
    # With sgd(1/4) on x² from 1, x and with it the gradient halves: f is 4⁻ⁱ, its differences are 3·4⁻ⁱ, and the
    # gradient predicts 4·4⁻ⁱ, all exact.
    @pytest.mark.parametrize("i", [1, 2, 5, 9])
    def test_stops_at_the_first_change_below_tol(self, i):
        predicted = 4 * 0.25**i
        result = solve(square, 1.0, sgd(0.25), tol=np.nextafter(np.float32(predicted), np.float32(9)))
        assert result.steps == i
        assert result.x == 0.5**i
        assert result.value == 0.25**i
        assert result.status == Status.CONVERGED

    @pytest.mark.parametrize("i", [1, 2, 5, 9])
    def test_a_change_equal_to_tol_is_not_below_it(self, i):
        result = solve(square, 1.0, sgd(0.25), tol=4 * 0.25**i)
        assert result.steps == i + 1
        assert result.x == 0.5 ** (i + 1)

    @pytest.mark.parametrize(("tol", "status"), [(0.2, "MAX_STEPS"), (0.25, "CONVERGED")])
    def test_the_difference_must_be_below_tol_where_more_than_predicted(self, tol, status):
        # From 1/8 to −1/2: the value differs by 15/64 = 0.234, where the gradient predicts 5/32 = 0.156.
        result = solve(square, 0.125, sgd(2.5), tol=tol, max_steps=1)
        assert result.x == -0.5
        assert result.status_name == status

    def test_zero_tol_never_converges(self):
        result = solve(square, 0.0, sgd(0.25), tol=0, max_steps=17)
        assert result.status_name == "MAX_STEPS"
        assert result.steps == 17
        assert result.value == 0

    def test_a_rise_counts_as_a_difference(self):
        # From 1, sgd(1.5) goes to −2, 4, −8, …: the value rises, by more each step.
        result = solve(square, 1.0, sgd(1.5), tol=2.0, max_steps=5)
        assert result.status_name == "MAX_STEPS"
        assert result.x == -32

    def test_a_small_rise_ends_it(self):
        # f = |x|, from 1/8 to −1/4: up by 1/8, where the gradient predicts a fall by 3/8.
        result = solve(jnp.abs, 0.125, sgd(0.375), tol=0.5, max_steps=5)
        assert result.status_name == "CONVERGED"
        assert result.steps == 1
        assert result.x == -0.25

    def test_converged_at_the_last_step(self):
        for max_steps, status in ((3, "MAX_STEPS"), (4, "CONVERGED"), (5, "CONVERGED")):
            result = solve(square, 1.0, sgd(0.25), tol=4 * 0.25**3, max_steps=max_steps)
            assert result.status_name == status
            assert result.steps == min(max_steps, 4)

    @pytest.mark.parametrize(
        ("function", "x0", "made", "tol"),
        [
            (shifted, [0.0, 5.0], adam(0.1), 1e-4),
            (shifted, [0.0, 5.0], adam(0.1), 1e-7),
            (bowl, [2.0, -1.0], rmsprop(0.05), 1e-3),
            (himmelblau, [0.0, 0.0], adagrad(0.5), 1e-5),
            (rosenbrock, [-1.0, 1.0], sgd(1e-3, momentum=0.9), 1e-5),
        ],
        ids=lambda value: getattr(value, "__name__", None),
    )
    def test_equals_a_loop_in_python(self, function, x0, made, tol):
        x0 = jnp.array(x0)
        way, status = python_minimize(function, x0, made, tol, 2000)
        result = solve(function, x0, made, tol=tol, max_steps=2000)
        assert status == Status.CONVERGED
        assert result.status == status
        assert result.steps == len(way) - 1 > 10
        x, value = way[-1]
        np.testing.assert_allclose(result.x, x, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(result.value, value, rtol=1e-4, atol=1e-9)

    def test_tol_and_max_steps_may_be_traced(self):
        run = lambda tol, max_steps: minimize(square, 1.0, sgd(0.25), tol=tol, max_steps=max_steps)
        one, batch = jax.jit(run), jax.jit(jax.vmap(run, in_axes=(0, None)))
        assert one(4 * 0.25**4, 100).steps == 5
        assert one(4 * 0.25**4, 2).steps == 2
        batched = batch(np.float32(4 * 0.25 ** np.arange(1.0, 5.0)), 4)
        np.testing.assert_array_equal(batched.steps, [2, 3, 4, 4])
        np.testing.assert_array_equal(batched.status_name, ["CONVERGED", "CONVERGED", "CONVERGED", "MAX_STEPS"])


class TestStatus:
    def test_values(self):
        assert issubclass(Status, enum.IntEnum)
        assert {status.name: status.value for status in Status} == {"CONVERGED": 0, "MAX_STEPS": 1, "NONFINITE": 2}

    @pytest.mark.parametrize("max_steps", [1, 3])
    def test_max_steps(self, max_steps):
        result = solve(square, 1.0, sgd(0.25), max_steps=max_steps)
        assert result.status_name == "MAX_STEPS"
        assert result.steps == max_steps
        assert result.x == 0.5**max_steps
        assert result.value == 0.25**max_steps

    def test_no_steps(self):
        result = solve(square, 3.0, sgd(0.25), max_steps=0)
        assert result.status_name == "MAX_STEPS"
        assert result.steps == 0
        assert result.x == 3
        assert result.value == 9

    def test_divergence_keeps_the_last_finite_point(self):
        # x doubles and changes its sign, so f = 4ⁱ: finite in float32 up to i = 63.
        result = solve(square, 1.0, sgd(1.5))
        assert result.status_name == "NONFINITE"
        assert result.steps == 63
        assert result.x == -(2.0**63)
        assert result.value == 2.0**126

    def test_an_element_that_overflows(self):
        # The value stays finite where b does not, and at that step differs by less than tol.
        def function(x):
            return x["a"] ** 2 + jnp.where(x["b"] > 0, 1.0, 2.0)

        def blow_up(updates, state, params=None):
            return {"a": -0.25 * updates["a"], "b": params["b"] * 1e20}, state

        made = optax.GradientTransformation(lambda params: optax.EmptyState(), blow_up)
        result = solve(function, {"a": 1.0, "b": 1.0}, made, tol=0.5)
        assert result.status_name == "NONFINITE"
        assert result.steps == 1
        assert result.x["a"] == 0.5
        np.testing.assert_allclose(result.x["b"], 1e20, rtol=1e-6)

    def test_an_infinite_gradient_at_a_finite_point(self):
        result = solve(lambda x: jnp.sqrt(x) - x, 0.0, sgd(0.1))
        assert result.status_name == "NONFINITE"
        assert (result.steps, result.x, result.value) == (0, 0, 0)

    def test_aux_is_that_of_the_last_finite_point(self):
        result = solve(lambda x: (x**2, {"x": x}), 1.0, sgd(1.5), has_aux=True)
        assert result.status_name == "NONFINITE"
        assert result.aux["x"] == result.x == -(2.0**63)

    @pytest.mark.parametrize("start", [np.nan, np.inf, -np.inf, 1e30])
    def test_nonfinite_start(self, start):
        result = solve(square, start, sgd(0.1))
        assert result.status_name == "NONFINITE"
        assert result.steps == 0
        np.testing.assert_array_equal(result.x, np.float32(start))
        assert not np.isfinite(result.value)

    def test_nonfinite_start_of_a_finite_value(self):
        for max_steps in (0, 5):
            result = solve(lambda x: jnp.where(jnp.isfinite(x), x, 0.0), np.inf, sgd(0.1), max_steps=max_steps)
            assert result.status_name == "NONFINITE"
            assert result.steps == 0
            assert result.value == 0

    def test_nonfinite_start_without_steps(self):
        assert solve(square, np.nan, sgd(0.1), max_steps=0).status_name == "NONFINITE"

    def test_each_of_a_batch_has_its_own(self):
        starts = np.float32([0.001, 1.0, np.nan, 1e18])
        result = jax.jit(jax.vmap(lambda x0: minimize(square, x0, sgd(1.5), tol=1e-3, max_steps=5)))(starts)
        expected = ["CONVERGED", "MAX_STEPS", "NONFINITE", "NONFINITE"]
        assert result.status_name.tolist() == expected
        np.testing.assert_array_equal(result.steps, [1, 5, 0, 4])
        np.testing.assert_allclose(result.x, starts * (-2.0) ** np.asarray(result.steps), rtol=1e-6)

    def test_name_of_a_grid_of_results(self):
        result = Result(x=None, value=None, steps=None, status=jnp.array([[0, 1], [2, 0]]))
        assert result.status_name.tolist() == [["CONVERGED", "MAX_STEPS"], ["NONFINITE", "CONVERGED"]]

    def test_types(self):
        """Also of a loop that is not within jit."""
        result = minimize(square, 1.0, sgd(0.25))
        assert type(result.status_name) is str
        assert isinstance(result, Result)
        assert result._fields == ("x", "value", "steps", "status", "aux", "gradient_norm")
        assert result.steps.dtype == result.status.dtype == jnp.int32
        assert result.aux is None
        assert result.gradient_norm.dtype == jnp.float32
        assert result.gradient_norm.shape == ()


def warm_up(steps, peak=0.1, first=0.0):
    return optax.linear_schedule(first, peak, steps)


# Optimizers whose first steps are none, tiny, or all as tiny: none of them is at the minimum when it starts.
SLOW_STARTS = {
    "adopt": adopt(0.1),
    "prodigy": prodigy(),
    "prodigy_from_1e-12": prodigy(estim_lr0=1e-12),
    "soap": soap(0.1, weight_decay=0.0),
    "adam_warm_up": adam(warm_up(50)),
    "sgd_warm_up": sgd(warm_up(50)),
    "sgd_long_warm_up": sgd(warm_up(50_000)),
    "adam_from_1e-12": adam(warm_up(1_000, first=1e-12)),
    "multi_steps": optax.MultiSteps(adam(0.1), 4),
    "multi_steps_in_a_chain": optax.chain(optax.MultiSteps(sgd(0.1), 4).gradient_transformation(), optax.clip(1.0)),
    "dog": optax.contrib.dog(1.0),
}


class TestNotAtTheStart:
    @pytest.mark.parametrize("name", SLOW_STARTS)
    def test_slow_starts_arrive(self, name):
        result = minimize(shifted, 0.0, SLOW_STARTS[name], tol=1e-4, max_steps=3000)
        assert result.status_name == "CONVERGED"
        assert result.steps > 5
        assert result.value < 0.1
        assert result.gradient_norm < 0.7

    @pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
    def test_slow_starts_in_low_precision(self, dtype):
        for made in (adopt(0.1), adam(warm_up(1_000))):
            result = solve(shifted, np.zeros(3, dtype), made, tol=1e-2, max_steps=300)
            assert result.value < 1

    def test_rows_of_a_batch_that_start_slowly(self):
        optimizers, _ = grid(adopt, learning_rate=[0.05, 0.1])
        result = jax.jit(jax.vmap(lambda made: minimize(shifted, jnp.zeros(2), made)))(optimizers)
        assert result.status_name.tolist() == ["CONVERGED"] * 2
        assert np.all(np.asarray(result.value) < 0.01)

    @pytest.mark.parametrize("rate", [0.0, 1e-12, 1e-9])
    def test_a_rate_that_is_far_too_small(self, rate):
        result = solve(shifted, 0.0, sgd(rate), max_steps=50)
        assert result.status_name == "MAX_STEPS"
        np.testing.assert_allclose(result.gradient_norm, 6.0)

    def test_no_update_is_no_arrival_in_the_middle_of_a_walk(self):
        # 8, 4, 2, 1: the gradient has fallen, the value has not come to rest; then the rate is zero.
        made = sgd(lambda count: jnp.where(count < 3, 0.25, 0.0))
        result = solve(square, 8.0, made, tol=1e-3, max_steps=20)
        assert result.status_name == "MAX_STEPS"
        assert (result.x, result.value, result.steps, result.gradient_norm) == (1, 1, 20, 2)

    def test_an_update_that_rounding_drops(self):
        result = solve(shifted, np.array(1.0, jnp.bfloat16), sgd(1e-5), max_steps=20)
        assert result.status_name == "MAX_STEPS"
        assert result.x == 1

    def test_away_from_a_maximum(self):
        result = solve(jnp.cos, 1e-4, sgd(0.1), tol=1e-6)
        assert result.status_name == "CONVERGED"
        np.testing.assert_allclose(result.x, np.pi, atol=1e-2)

    @pytest.mark.parametrize(
        ("made", "dtype"),
        [
            (sgd(0.1), jnp.bfloat16),
            (adam(0.1), jnp.float32),
            (adopt(0.1), jnp.complex64),
            (LBFGS, jnp.float32),
            (SLOW_STARTS["multi_steps"], jnp.float32),
        ],
        ids=["sgd", "adam", "adopt", "lbfgs", "multi_steps"],
    )
    def test_a_start_at_the_minimum(self, made, dtype):
        function = shifted_in_the_plane if dtype == jnp.complex64 else shifted
        result = solve(function, np.full(2, 3.0, dtype), made)
        assert result.status_name == "CONVERGED"
        assert result.steps == 1
        assert result.gradient_norm == 0

    def test_a_start_near_the_minimum(self):
        for made in (sgd(0.1), adam(0.01), LBFGS):
            result = solve(shifted, np.float32([2.999, 2.999]), made)
            assert result.status_name == "CONVERGED"
            assert result.steps < 10

    def test_a_region_without_slope(self):
        flat = lambda x: jnp.maximum(x - 1, 0.0) ** 2
        result = solve(flat, 0.5, adam(0.1))
        assert (result.status_name, result.steps, result.x) == ("CONVERGED", 1, 0.5)
        result = solve(flat, 2.0, sgd(0.5, momentum=0.5))
        assert result.status_name == "CONVERGED"
        assert result.x <= 1

    def test_weight_decay_at_the_minimum_of_the_function(self):
        result = minimize(shifted, 3.0, adamw(0.1, weight_decay=1e-9))
        assert result.status_name == "CONVERGED"


class TestBounces:
    @pytest.mark.parametrize("start", [3.0, {"a": np.float32([3.0, 1.0]), "b": -2.0}, 1 + 2j], ids=str)
    def test_between_equal_heights(self, start):
        def height(x):
            return sum(jnp.sum(jnp.abs(leaf) ** 2) for leaf in jax.tree.leaves(x))

        result = solve(height, start, sgd(1.0), max_steps=7)
        assert result.status_name == "MAX_STEPS"
        assert result.steps == 7
        jax.tree.map(lambda x, x0: np.testing.assert_array_equal(x, -np.asarray(x0)), result.x, start)
        np.testing.assert_allclose(result.gradient_norm, 2 * np.sqrt(result.value), rtol=1e-6)

    def test_in_one_direction_while_another_is_at_rest(self):
        # The value of x₁ bounces, that of x₀ has arrived.
        result = solve(bowl, jnp.array([0.0, 1.0]), sgd(0.01), max_steps=9)
        assert result.status_name == "MAX_STEPS"

    def test_across_an_absolute_value(self):
        # At ±0.05 for ever where the step is 0.1; steps that fall below tol arrive.
        assert solve(jnp.abs, 0.05, sgd(0.1), max_steps=50).status_name == "MAX_STEPS"
        result = solve(jnp.abs, 0.35, sgd(lambda count: 0.1 / (count + 1)), tol=1e-3)
        assert result.status_name == "CONVERGED"
        assert abs(result.x) < 1e-3

    def test_norm_is_that_of_the_gradient_at_x(self):
        squares = lambda x: jnp.sum(x["a"] ** 2)
        for max_steps, start, made in ((0, 3.0, sgd(0.1)), (5, 3.0, adam(0.1)), (100, 1.0, sgd(1.5))):
            result = solve(squares, {"a": np.full(4, start, np.float32)}, made, max_steps=max_steps)
            np.testing.assert_allclose(result.gradient_norm, 2 * np.linalg.norm(result.x["a"]), rtol=1e-6)
        assert result.status_name == "NONFINITE"

    def test_norm_of_a_gradient_whose_square_overflows(self):
        result = minimize(lambda x: 1e25 * jnp.sum(x), np.zeros(4, np.float32), sgd(0.1), max_steps=0)
        np.testing.assert_allclose(result.gradient_norm, 2e25, rtol=1e-6)


class TestMinimizeForms:
    def test_aux_at_x(self):
        def function(x, target):
            return shifted(x, target), {"twice": 2 * x, "count": 3, "nothing": None}

        result = solve(function, np.zeros(2, np.float32), adam(0.1), args=(5.0,), has_aux=True, max_steps=20)
        np.testing.assert_array_equal(result.aux["twice"], 2 * result.x)
        assert result.aux["count"] == 3
        assert result.aux["nothing"] is None
        plain = solve(shifted, np.zeros(2, np.float32), adam(0.1), args=(5.0,), max_steps=20)
        np.testing.assert_array_equal(plain.x, result.x)

    def test_aux_of_no_steps(self):
        result = minimize(lambda x: (x**2, x + 1), 1.0, adam(0.1), has_aux=True, max_steps=0)
        assert result.aux == 2

    def test_args_are_not_varied(self):
        args = ({"target": jnp.array([1.0, 2.0]), "count": jnp.array([2, 2])}, 4.0)

        def function(x, options, scale):
            return scale * jnp.sum((x - options["target"]) ** 2 * options["count"])

        result = solve(function, np.zeros(2, np.float32), adam(0.1), args=args, tol=1e-9)
        np.testing.assert_allclose(result.x, [1.0, 2.0], atol=1e-3)

    def test_trees(self):
        def function(x):
            return shifted(x["a"], 1.0) + shifted(x["b"][0], 2.0) + shifted(x["b"][1], 3.0)

        x0 = {"a": np.zeros((2, 3), np.float32), "b": (0.0, np.float16(0))}
        result = solve(function, x0, adam(0.1), tol=1e-9)
        assert jax.tree.structure(result.x) == jax.tree.structure(x0)
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype.name), result.x) == {
            "a": ((2, 3), "float32"),
            "b": (((), "float32"), ((), "float16")),
        }
        for leaf, target in zip(jax.tree.leaves(result.x), (1.0, 2.0, 3.0), strict=True):
            np.testing.assert_allclose(leaf, np.full(leaf.shape, target), atol=0.02)

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
    def test_keeps_the_dtype(self, dtype):
        result = solve(square, np.array(1.0, jnp.dtype(dtype)), sgd(0.25), tol=1e-3)
        assert result.x.dtype == result.value.dtype == dtype
        assert result.status_name == "CONVERGED"
        assert result.steps == 6
        assert result.x == 0.5**6

    def test_tol_below_the_smallest_float16(self):
        # No change at all is a change below any tol but 0.
        result = solve(square, jnp.array(0.0, jnp.float16), sgd(0.1), tol=1e-9, max_steps=5)
        assert result.status_name == "CONVERGED"
        assert result.steps == 1

    def test_float64(self, x64):
        result = solve(square, 1.0, sgd(0.25), tol=1e-30)
        assert result.x.dtype == result.value.dtype == np.float64
        assert result.steps.dtype == result.status.dtype == jnp.int32
        assert result.status_name == "CONVERGED"
        assert abs(result.x) < 1e-15

    def test_jit_shares_one_trace(self):
        traces = []

        @jax.jit
        def run(x0, made, target):
            traces.append(None)
            return minimize(shifted, x0, made, args=(target,), tol=1e-9)

        for rate, target in ((0.1, 1.0), (0.2, 2.0), (0.4, 3.0)):
            result = run(0.0, adam(rate), target)
            np.testing.assert_allclose(result.x, target, atol=1e-3)
        assert len(traces) == 1

    def test_vmap_over_args(self):
        targets = np.float32([1.0, 2.0, 4.0])
        run = lambda target: minimize(shifted, 0.0, adam(0.1), args=(target,), tol=1e-6)
        batched = jax.device_get(jax.jit(jax.vmap(run))(targets))
        assert len(set(batched.steps.tolist())) == 3
        alone = jax.jit(run)
        for i, target in enumerate(targets):
            one = alone(target)
            assert one.steps == batched.steps[i]
            np.testing.assert_allclose(one.x, batched.x[i], rtol=1e-5)
            np.testing.assert_allclose(batched.x[i], target, atol=0.01)

    def test_vmap_over_optimizers(self):
        optimizers, table = grid(adam, learning_rate=[0.05, 0.1, 0.5], b1=[0.5, 0.9])
        start = np.float32([0.0, 5.0])
        batched = jax.jit(jax.vmap(lambda made: minimize(shifted, start, made, tol=1e-6)))(optimizers)
        assert np.all(batched.status_name == "CONVERGED")
        batched = jax.device_get(batched)
        for i, row in enumerate(table):
            result = solve(shifted, start, adam(**row), tol=1e-6)
            assert result.steps == batched.steps[i]
            np.testing.assert_allclose(result.x, batched.x[i], rtol=1e-5)
        assert len(set(batched.steps.tolist())) > 3

    def test_schedules_count_the_steps(self):
        rates = jnp.array([0.5, 0.25, 0.125])
        result = solve(lambda x: x, 0.0, sgd(lambda count: rates[count]), tol=0, max_steps=3)
        assert result.x == -0.875

    def test_forward_derivative(self):
        def end(start):
            return minimize(square, start, sgd(0.25), tol=0, max_steps=4).x

        assert jax.jit(lambda: jax.jvp(end, (1.0,), (1.0,))[1])() == 0.5**4


both_loops = pytest.mark.parametrize(
    "loop", [minimize, functools.partial(descend, steps=3)], ids=["minimize", "descend"]
)


class TestErrors:
    @both_loops
    @pytest.mark.parametrize(
        ("x0", "name"),
        [
            (0, r"x0: the only leaf must have a floating-point dtype, got int32; write 0\.0$"),
            ({"a": 1.0, "b": 1}, r"leaf \['b'\] must have a floating-point dtype, got int32; write 1\.0"),
            ((1.0, [True]), r"leaf \[1\]\[0\] must have a floating-point dtype, got bool; write 1\.0"),
            (
                np.array([1, 2]),
                r"the only leaf must have a floating-point dtype, got int.*; convert it, or pass .* args",
            ),
            (jnp.array(3), "the only leaf must have a floating-point dtype, got int32; convert it"),
            ({"a": "text"}, r"leaf \['a'\] must be an array, got 'text' \(str\)"),
        ],
        ids=str,
    )
    def test_leaf_without_floating_point_dtype(self, loop, x0, name):
        with pytest.raises(TypeError, match=name) as raised:
            loop(lambda x: 1.0, x0, adam(0.1))
        assert "masked" not in str(raised.value)

    @both_loops
    @pytest.mark.parametrize("x0", [None, {}, ()], ids=str)
    def test_start_without_leaves(self, loop, x0):
        with pytest.raises(ValueError, match="x0 must have at least one leaf, got"):
            loop(lambda x: 1.0, x0, adam(0.1))

    @both_loops
    @pytest.mark.parametrize(
        ("function", "message"),
        [
            (lambda x: x, r"fun must return a real scalar, got the shape \(2,\); sum it, or take its mean"),
            (lambda x: x[:1], r"got the shape \(1,\)"),
            (lambda x: 1j * x[0], r"fun must return a real scalar, got .*complex64"),
            (lambda x: 3, "fun must return a scalar of a floating-point dtype, got int32"),
            (lambda x: x[0] > 0, "fun must return a real scalar, got .*bool"),
            (lambda x: None, r"fun must return a real scalar, got None \(NoneType\)"),
            (lambda x: "text", r"fun must return a real scalar, got 'text' \(str\)(?!; has_aux)"),
            (lambda x: (x[0], x), r"fun must return a real scalar, got \(.* \(tuple\); .*has_aux=True"),
            (1.0, r"fun must be a function of x, got 1\.0 \(float\)"),
            (np.ones(3), r"fun must be a function of x, got an array of shape \(3,\) and dtype float64"),
        ],
        ids=["vector", "one", "complex", "int", "bool", "none", "text", "pair", "number", "array"],
    )
    def test_function_without_real_scalar(self, loop, function, message):
        with pytest.raises(TypeError, match=message):
            loop(function, jnp.ones(2), adam(0.1))

    @pytest.mark.parametrize(
        ("function", "message"),
        [
            (lambda x: x[0], "fun must return a pair of a real scalar and anything with has_aux, got"),
            (lambda x: x, "fun must return a pair of a real scalar and anything with has_aux, got .*array of shape"),
            (lambda x: (x[0], x, x), "fun must return a pair"),
            (lambda x: (x, x[0]), r"fun must return a real scalar, got the shape \(2,\)"),
            (lambda x: (x[0], {"a": "text"}), r"aux, got 'text' \(str\) at its leaf \['a'\]"),
        ],
        ids=["scalar", "array", "three", "swapped", "text"],
    )
    def test_function_without_a_pair(self, function, message):
        with pytest.raises(TypeError, match=message):
            minimize(function, jnp.ones(2), adam(0.1), has_aux=True)

    @both_loops
    @pytest.mark.parametrize(
        ("made", "message"),
        [
            (
                adam,
                r"optimizer must be an optimizer.*such as adam\(0\.1\), got .*; it makes an optimizer when",
            ),
            (optax.adam, "it makes an optimizer when it is called"),
            (optax.MultiSteps, "it makes an optimizer when it is called"),
            ("adam", r"optimizer must be an optimizer.*, got 'adam' \(str\)$"),
            (0.1, r"optimizer must be an optimizer.*, got 0\.1 \(float\)"),
            (None, r"optimizer must be an optimizer.*, got None \(NoneType\)"),
        ],
        ids=["factory", "factory of optax", "class", "text", "number", "none"],
    )
    def test_no_optimizer(self, loop, made, message):
        with pytest.raises(TypeError, match=message):
            loop(square, 1.0, made)

    @both_loops
    @pytest.mark.parametrize(
        "made",
        [
            adam(None),
            adadelta(),
            cautious(adam(None)),
            observe(cautious(adam(None))),
            master_weights(sgd(None)),
        ],
        ids=repr,
    )
    def test_direction_alone(self, loop, made):
        with pytest.raises(ValueError, match=r"optimizer must have a learning rate.* gives the direction alone"):
            loop(square, 1.0, made)

    def test_learning_rates_that_are_none_and_no_direction(self):
        # Adafactor's None is a rate of 1, muon's is that of the matrices, observe's that of the optimizer within.
        for made in (adafactor(), muon(0.1), observe(adam(0.1)), optax.chain(adam(None), optax.scale(-0.1))):
            jax.eval_shape(functools.partial(minimize, shifted, 1.0, made, max_steps=1))

    @both_loops
    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (jnp.ones(3), r"args must be a tuple .*, got an array of shape \(3,\) .*args=\(argument,\)"),
            (np.ones((1, 2)), r"args must be a tuple .*, got an array of shape \(1, 2\)"),
            (1.0, r"args must be a tuple .*, got 1\.0 \(float\)"),
            ("text", r"args must be a tuple .*, got 'text' \(str\)"),
            ({"target": 1.0}, r"args must be a tuple .*, got \{'target': 1\.0\} \(dict\)"),
            (None, r"args must be a tuple .*, got None \(NoneType\)"),
            (Trajectory(1.0, 2.0), r"args must be a tuple .*, got Trajectory"),
        ],
        ids=str,
    )
    def test_args_that_are_no_tuple(self, loop, args, message):
        with pytest.raises(TypeError, match=message):
            loop(lambda x, *args: x, 1.0, sgd(0.1), args=args)

    @pytest.mark.parametrize("tol", [None, "1e-4", True, 1j, [1e-4, 1e-5], np.ones(2)], ids=str)
    def test_tol_of_another_kind(self, tol):
        with pytest.raises(TypeError, match="tol must be a real number ≥ 0, 0 for never, got"):
            minimize(square, 1.0, adam(0.1), tol=tol)

    @pytest.mark.parametrize(
        "max_steps", [None, 10.0, np.float32(10), jnp.float32(10), np.inf, "10", True, np.ones(2, int)]
    )
    def test_max_steps_of_another_kind(self, max_steps):
        with pytest.raises(TypeError, match="max_steps must be a whole number ≥ 0, got"):
            minimize(square, 1.0, adam(0.1), max_steps=max_steps)

    @pytest.mark.parametrize("max_steps", [2**40, np.int64(2**40), np.int16(300)])
    def test_max_steps_of_any_whole_type(self, max_steps):
        assert minimize(square, 1.0, sgd(0.25), max_steps=max_steps).status_name == "CONVERGED"

    @pytest.mark.parametrize("steps", [None, 2.5, "3", jnp.ones(2)], ids=str)
    def test_steps_of_another_kind(self, steps):
        with pytest.raises(TypeError, match="steps must be a whole number, known when the loop is traced, got"):
            descend(square, 1.0, sgd(0.1), steps)

    def test_traced_steps(self):
        with pytest.raises(TypeError, match="steps must be a whole number, known when the loop is traced, got"):
            jax.jit(lambda steps: descend(square, 1.0, sgd(0.1), steps))(3)

    @pytest.mark.parametrize("tol", [-1e-9, -np.inf, np.nan, np.array(-1.0), jnp.array(-1.0)])
    def test_negative_tol(self, tol):
        with pytest.raises(ValueError, match=r"tol must be 0 or more, got (-|nan)"):
            minimize(square, 1.0, adam(0.1), tol=tol)

    @pytest.mark.parametrize("max_steps", [-1, np.int32(-5)])
    def test_negative_max_steps(self, max_steps):
        with pytest.raises(ValueError, match="max_steps must be 0 or more, got -"):
            minimize(square, 1.0, adam(0.1), max_steps=max_steps)

    def test_negative_steps(self):
        with pytest.raises(ValueError, match="steps must be 0 or more, got -1"):
            descend(square, 1.0, adam(0.1), -1)


class TestDescend:
    @pytest.mark.parametrize(
        "made",
        [sgd(0.01, momentum=0.5), adagrad(0.5), adadelta(10.0), rmsprop(0.1), adam(0.1), optax.adam(0.1)],
        ids=["sgd", "adagrad", "adadelta", "rmsprop", "adam", "optax"],
    )
    def test_equals_a_loop_in_python(self, made):
        x0 = np.float32([2.0, -1.0])
        way, _ = python_minimize(himmelblau, x0, made, tol=0, max_steps=30)
        path = path_of(himmelblau, x0, made, 30)
        assert isinstance(path, Trajectory)
        assert path.x.shape == (31, 2)
        assert path.value.shape == (31,)
        np.testing.assert_array_equal(np.asarray(path.x)[0], x0)
        np.testing.assert_allclose(path.x, [x for x, _ in way], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(path.value, [value for _, value in way], rtol=1e-4, atol=1e-4)
        value = np.asarray(path.value)
        assert value[-1] < 0.9 * value[0]

    def test_exact(self):
        """Also of a loop that is not within jit."""
        path = descend(square, 1.0, sgd(0.25), 5)
        np.testing.assert_array_equal(path.x, 0.5 ** np.arange(6))
        np.testing.assert_array_equal(path.value, 0.25 ** np.arange(6))

    def test_is_the_way_of_minimize(self):
        path = jax.device_get(path_of(himmelblau, np.float32([2.0, -1.0]), adam(0.1), 40))
        for steps in (1, 7, 40):
            result = solve(himmelblau, np.float32([2.0, -1.0]), adam(0.1), tol=0, max_steps=steps)
            np.testing.assert_allclose(path.x[steps], result.x, rtol=1e-6)
            np.testing.assert_allclose(path.value[steps], result.value, rtol=1e-5)

    def test_no_steps(self):
        path = path_of(square, 3.0, adam(0.1), 0)
        np.testing.assert_array_equal(path.x, [3.0])
        np.testing.assert_array_equal(path.value, [9.0])

    def test_trees_and_args(self):
        path = path_of(
            lambda x, target: shifted(x["a"], target) + x["b"] ** 2,
            {"a": np.zeros(3, np.float32), "b": 1.0},
            sgd(0.25),
            2,
            args=(4.0,),
        )
        np.testing.assert_array_equal(path.x["a"], np.repeat([[0.0], [2.0], [3.0]], 3, axis=1))
        np.testing.assert_array_equal(path.x["b"], [1.0, 0.5, 0.25])
        np.testing.assert_array_equal(path.value, [49.0, 12.25, 3 + 0.0625])

    def test_complex_numbers(self):
        path = path_of(lambda z: jnp.abs(z - (4 + 8j)) ** 2, 0j, sgd(0.25), 2)
        np.testing.assert_allclose(path.x, [0, 2 + 4j, 3 + 6j], rtol=1e-6)

    def test_extra_arguments(self):
        path = path_of(himmelblau, np.zeros(2, np.float32), optax.lbfgs(), 15)
        np.testing.assert_allclose(np.asarray(path.x)[-1], HIMMELBLAU[0], atol=1e-3)

    def test_goes_on_through_nonfinite_points(self):
        path = path_of(square, 1.0, sgd(1.5), 70)
        value = np.asarray(path.value)
        assert np.isfinite(value[63])
        assert not np.isfinite(value[64])

    def test_derivative_of_the_start(self):
        # x halves in each step, whatever the start.
        path = lambda x0: descend(square, x0, sgd(0.25), 3).x
        for slopes in jax.jit(lambda x0: [jax.jacrev(path)(x0), jax.jacfwd(path)(x0)])(1.0):
            np.testing.assert_array_equal(slopes, 0.5 ** np.arange(4))

    def test_derivative_of_the_start_against_differences(self, x64):
        def value(x0):
            return descend(himmelblau, x0, adam(0.1, eps_root=1e-3), 10).value[-1]

        # Here the second partial derivative is zero, where without eps_root the root of the second moment has no slope.
        x0, end = np.array([2.0, -1.0]), jax.jit(value)
        first, gradient = jax.jit(lambda x0: (jax.grad(himmelblau)(x0), jax.grad(value)(x0)))(x0)
        assert first[1] == 0
        for i in range(2):
            width = 1e-6 * np.eye(2)[i]
            np.testing.assert_allclose(gradient[i], (end(x0 + width) - end(x0 - width)) / 2e-6, rtol=1e-6)

    def test_derivative_of_the_optimizer(self):
        # One step from 1: (1 − 2α)², whose slope at α = 1/4 is −2; two steps: (1 − 2α)⁴, −1.
        @jax.jit
        def slopes(made):
            end = lambda made, steps: descend(square, 1.0, made, steps).value[-1]
            return [jax.grad(end)(made, steps) for steps in range(3)]

        found = [gradient.hyperparameters["learning_rate"] for gradient in slopes(sgd(0.25))]
        assert found == [0, -2, -1]

    def test_derivative_of_args(self):
        # After a step from 0 with rate 1/4, x is half the target.
        end = lambda target: descend(shifted, 0.0, sgd(0.25), 1, args=(target,)).x[-1]
        assert jax.jit(jax.grad(end))(3.0) == 0.5

    def test_vmap_over_optimizers(self):
        optimizers, table = grid(sgd, learning_rate=[0.125, 0.25, 0.5], momentum=[0.0, 0.5])
        batched = jax.device_get(jax.jit(jax.vmap(lambda made: descend(square, 1.0, made, 6)))(optimizers))
        assert batched.x.shape == (6, 7)
        for i, row in enumerate(table):
            path = path_of(square, 1.0, sgd(**row), 6)
            np.testing.assert_allclose(batched.x[i], path.x, rtol=1e-6)
            np.testing.assert_allclose(batched.value[i], path.value, rtol=1e-6)

    def test_jit_shares_one_trace(self):
        traces = []

        @jax.jit
        def walk(x0, made):
            traces.append(None)
            return descend(square, x0, made, 3).x

        for rate in (0.25, 0.125):
            np.testing.assert_allclose(walk(1.0, sgd(rate)), (1 - 2 * rate) ** np.arange(4))
        assert len(traces) == 1
