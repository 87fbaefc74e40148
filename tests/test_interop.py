import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from public import RULES

import jaxopt_adam
from jaxopt_adam import adam, convert_state, lion
from jaxopt_adam._interop import from_optax, to_optax


def falling(count):
    return 0.1 / (1 + 0.1 * count)


def rising(count):
    return 0.001 * (1 + 0.1 * count)


def matrices(params):
    return jax.tree.map(lambda x: x.ndim > 1, params)


PREFIX = {"layer": True, "scale": False}
ROWS = {"layer": {"w": optax.contrib.MuonDimensionNumbers(1, 0)}, "scale": None}

CASES = [
    ("sgd", {"learning_rate": 0.1}),
    ("sgd", {"learning_rate": None, "momentum": 0.5}),
    ("sgd", {"learning_rate": falling, "momentum": 0.9, "nesterov": True}),
    ("adagrad", {"learning_rate": 0.1}),
    ("adagrad", {"learning_rate": falling, "initial_accumulator_value": 0.5, "eps": 1e-3}),
    ("adadelta", {"learning_rate": falling, "rho": 0.8}),
    ("adadelta", {"learning_rate": 1.0, "weight_decay": rising, "weight_decay_mask": matrices}),
    ("adadelta", {"learning_rate": falling, "weight_decay": 0.1, "weight_decay_mask": PREFIX}),
    ("rmsprop", {"learning_rate": 0.01, "eps_in_sqrt": False, "initial_scale": 1.0}),
    ("rmsprop", {"learning_rate": 0.01, "bias_correction": True, "decay": 0.99}),
    ("rmsprop", {"learning_rate": falling, "centered": True, "momentum": 0.9, "eps": 0.01}),
    ("rmsprop", {"learning_rate": 0.01, "momentum": 0.9, "nesterov": True}),
    ("rmsprop", {"learning_rate": falling, "centered": True, "bias_correction": True, "momentum": 0.5, "eps": 0.1}),
    ("adam", {"learning_rate": 0.01}),
    ("adam", {"learning_rate": None}),
    ("adam", {"learning_rate": falling, "b1": 0.8, "b2": 0.99, "eps_root": 1e-3, "nesterov": True}),
    ("adamw", {"learning_rate": falling, "weight_decay": 0.1}),
    ("adamw", {"learning_rate": falling, "weight_decay": rising, "mask": matrices}),
    ("nadam", {"learning_rate": falling}),
    ("nadamw", {"learning_rate": 0.01, "weight_decay": rising, "mask": matrices}),
    ("adamax", {"learning_rate": falling}),
    ("adamaxw", {"learning_rate": 0.01, "weight_decay": rising, "mask": PREFIX}),
    ("amsgrad", {"learning_rate": falling}),
    ("amsgrad", {"learning_rate": 0.01, "bias_correction_mu": False, "bias_correction_nu": False}),
    ("radam", {"learning_rate": falling}),  # the fifth or sixth step is the first with a second moment
    ("radam", {"learning_rate": 0.01, "b2": 0.99, "threshold": 15.5, "nesterov": True}),  # here it is the 22nd
    ("adabelief", {"learning_rate": falling}),
    ("adabelief", {"learning_rate": 0.01, "nesterov": True}),
    ("yogi", {"learning_rate": falling}),
    ("lion", {"learning_rate": falling}),
    ("lion", {"learning_rate": 0.01, "weight_decay": rising, "mask": PREFIX}),
    ("adan", {"learning_rate": falling, "b2": 0.5}),  # optax weighs the differences by 1 − b2, the paper by b2
    ("adan", {"learning_rate": 0.01, "b2": 0.5, "weight_decay": 0.1, "mask": matrices}),
    ("lamb", {"learning_rate": falling}),
    ("lamb", {"learning_rate": 0.01, "weight_decay": rising, "mask": PREFIX}),
    ("novograd", {"learning_rate": falling}),
    ("novograd", {"learning_rate": 0.01, "weight_decay": 0.1, "eps_root": 1e-3}),
    ("adafactor", {"learning_rate": falling, "min_dim_size_to_factor": 2, "momentum": 0.9}),
    ("adafactor", {"learning_rate": 0.01, "weight_decay_rate": rising, "weight_decay_mask": matrices}),
    ("adafactor", {"min_dim_size_to_factor": 3, "multiply_by_parameter_scale": False, "clipping_threshold": None}),
    ("adopt", {"learning_rate": falling}),
    ("adopt", {"learning_rate": 0.01, "nesterov": True, "use_clipping": False}),
    ("ademamix", {"learning_rate": falling, "b3": lambda count: 0.9 + 0.001 * count, "alpha": rising}),
    ("ademamix", {"learning_rate": 0.01, "b3": 0.99, "weight_decay": 0.1, "mask": PREFIX}),
    ("muon", {"learning_rate": falling}),
    ("muon", {"learning_rate": 0.01, "ns_coeffs": "dion", "ns_steps": 5, "weight_decay": 0.1, "adam_b1": 0.8}),
    ("muon", {"learning_rate": 0.01, "weight_decay_mask": matrices, "muon_weight_dimension_numbers": ROWS}),
    ("prodigy", {"learning_rate": falling, "eps": 1e-30}),  # optax multiplies eps by the next estimate, not by this
    ("prodigy", {"beta3": 0.9, "weight_decay": 0.1, "estim_lr0": 0.1, "eps": 1e-30}),
    ("schedule_free_adamw", {"learning_rate": 0.01}),
    ("schedule_free_adamw", {"learning_rate": 0.01, "warmup_steps": 10, "b1": 0.8, "weight_decay": 0.1}),
]

# Moments that are stored in less than the precision of the arithmetic; optax multiplies them before it widens them,
# and is less exact.
NARROW = [
    ("sgd", {"learning_rate": falling, "momentum": 0.9, "accumulator_dtype": "bfloat16"}),
    ("adam", {"learning_rate": 0.01, "mu_dtype": "bfloat16"}),
    ("adamw", {"learning_rate": falling, "mu_dtype": "bfloat16", "weight_decay": 0.1}),
    ("nadam", {"learning_rate": 0.01, "mu_dtype": "bfloat16"}),
    ("nadamw", {"learning_rate": 0.01, "mu_dtype": "bfloat16"}),
    ("amsgrad", {"learning_rate": 0.01, "mu_dtype": "bfloat16"}),
    ("lion", {"learning_rate": 0.01, "mu_dtype": "bfloat16"}),
    ("adopt", {"learning_rate": 0.01, "mu_dtype": "bfloat16"}),
    ("ademamix", {"learning_rate": 0.01, "mu_dtype": "bfloat16"}),
    ("muon", {"learning_rate": 0.01, "mu_dtype": "bfloat16"}),
]

# One of each rule with all the state that it can have.
FULL = [
    ("sgd", {"learning_rate": falling, "momentum": 0.9}),
    ("adagrad", {"learning_rate": falling}),
    ("adadelta", {"learning_rate": falling, "weight_decay": 0.1}),
    ("rmsprop", {"learning_rate": falling, "centered": True, "bias_correction": True, "momentum": 0.9, "eps": 0.1}),
    ("adam", {"learning_rate": falling}),
    ("adamw", {"learning_rate": falling, "weight_decay": rising, "mask": matrices}),
    ("nadam", {"learning_rate": falling}),
    ("nadamw", {"learning_rate": falling}),
    ("adamax", {"learning_rate": falling}),
    ("adamaxw", {"learning_rate": falling}),
    ("amsgrad", {"learning_rate": falling}),
    ("radam", {"learning_rate": falling}),
    ("adabelief", {"learning_rate": falling}),
    ("yogi", {"learning_rate": falling}),
    ("lion", {"learning_rate": falling}),
    ("adan", {"learning_rate": falling, "b2": 0.5}),
    ("lamb", {"learning_rate": falling, "weight_decay": rising, "mask": PREFIX}),
    ("novograd", {"learning_rate": falling}),
    ("adafactor", {"learning_rate": falling, "min_dim_size_to_factor": 2, "momentum": 0.9}),
    ("adopt", {"learning_rate": falling}),
    ("ademamix", {"learning_rate": falling}),
    ("muon", {"learning_rate": falling}),
    ("prodigy", {"learning_rate": falling}),
    ("schedule_free_adamw", {"learning_rate": falling}),
]

SHAPES = {"layer": {"w": (4, 3)}, "scale": (5,)}


def name_of(case):
    if not isinstance(case, dict):
        return getattr(case, "__name__", str(case))
    return ",".join(f"{name}={getattr(value, '__name__', value)}" for name, value in case.items()) or "defaults"


def over(cases):
    return pytest.mark.parametrize(("rule", "arguments"), cases, ids=name_of)


def make(rule, arguments):
    ours = getattr(jaxopt_adam, rule)(**arguments)
    theirs = (getattr(optax, rule, None) or getattr(optax.contrib, rule))(**arguments)
    return ours, theirs


def draw(*lead, seed=0, dtype=float):
    """A tree of arrays; as gradients they have sizes from about 0.01 to 10."""
    generator = np.random.default_rng(seed)

    def leaf(shape):
        value = generator.normal(size=(*lead, *shape)) * 10 ** generator.uniform(-2, 1, size=shape)
        if np.issubdtype(dtype, np.complexfloating):
            value = value + 1j * generator.normal(size=(*lead, *shape))
        return jnp.asarray(value, dtype)

    return jax.tree.map(leaf, SHAPES, is_leaf=lambda node: isinstance(node, tuple))


def runner(transformations):
    """``run(carries, gradients) -> carries, updates`` for the (params, state) of each, in one program for all."""

    def step(carries, grads):
        moved, every = [], []
        for transformation, (params, state) in zip(transformations, carries, strict=True):
            updates, state = transformation.update(grads, state, params)
            moved.append((optax.apply_updates(params, updates), state))
            every.append(updates)
        return moved, every

    return jax.jit(lambda carries, gradients: jax.lax.scan(step, carries, gradients))


def halves(tree):
    return (jax.tree.map(lambda leaf, part=part: leaf[part], tree) for part in (slice(20), slice(20, None)))


def assert_same_walk(updates, right, tolerance, name=""):
    """No element may be off by more than a share of the distance that it travels."""

    def compare(one, other):
        one, other = np.asarray(one), np.asarray(other)
        distance = np.abs(other).sum(0)
        assert (distance > 0).all(), name
        assert (np.abs(one - other).sum(0) / distance).max() <= tolerance, name

    jax.tree.map(compare, updates, right)


def assert_identical(one, other):
    """The same structure, dtypes and bits."""
    chex.assert_trees_all_equal_shapes_and_dtypes(one, other)
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def assert_as_made(state, transformation, params):
    """The structure and the types that `init` gives, so that a compiled step needs no new trace."""
    made = jax.eval_shape(transformation.init, params)
    assert jax.tree.structure(state) == jax.tree.structure(made)
    for leaf, expected in zip(jax.tree.leaves(state), jax.tree.leaves(made), strict=True):
        assert (leaf.shape, leaf.dtype, leaf.weak_type) == (expected.shape, expected.dtype, expected.weak_type)


def assert_both_ways(cases, dtype=float):
    """Twenty steps with the one library and twenty with the other are forty with either.

    The cases are (ours, theirs, tolerance).
    """
    ours, theirs, tolerances = zip(*cases, strict=True)
    run, run_theirs = runner(ours), runner(theirs)
    params = draw(seed=1, dtype=dtype)
    before, after = halves(draw(40, dtype=dtype))

    def begun(transformations):
        return [(params, transformation.init(params)) for transformation in transformations]

    def converted(carries, convert, likes):
        """The same parameters with the states of the other library."""
        others = [(moved, convert(state, mine)) for (moved, state), mine in zip(carries, ours, strict=True)]
        for (_, state), like in zip(others, likes, strict=True):
            assert_as_made(state, like, params)
        return others

    def assert_same_walks(every, right):
        for mine, updates, others, tolerance in zip(ours, every, right, tolerances, strict=True):
            assert_same_walk(updates, others, tolerance, mine)

    halfway, _ = run_theirs(begun(theirs), before)
    _, right = run_theirs(halfway, after)
    assert_same_walks(run(converted(halfway, from_optax, ours), after)[1], right)

    halfway, _ = run(begun(ours), before)
    _, right = run(halfway, after)
    like = params if dtype is complex else None
    there = converted(halfway, lambda state, mine: to_optax(state, mine, like), theirs)
    assert_same_walks(run_theirs(there, after)[1], right)
    assert run_theirs._cache_size() == run._cache_size() == 1


def exactness(rule, arguments):
    """The tolerance between the libraries' updates in float64."""
    if rule == "adafactor" or "warmup_steps" in arguments:
        return 1e-6  # in float64 too optax's decay of the one and its schedule of the other are float32
    if rule == "schedule_free_adamw":
        return 1e-10  # an update is a difference of parameters that are up to 1e5 times as large
    return 1e-12


# Some of each kind; optax's ADOPT clips no complex numbers, and its Adafactor has real momentum only.
COMPLEX = {"adagrad", "rmsprop", "adam", "adamax", "amsgrad", "yogi", "adan", "novograd", "muon"}


class TestContinuation:
    """The cases of a rule share one compiled program. With one for each, the tests would take twice as long."""

    @pytest.mark.parametrize("rule", dict(CASES))
    @pytest.mark.usefixtures("x64")
    def test_goes_on_where_the_other_stopped(self, rule):
        cases = [arguments for other, arguments in CASES if other == rule]
        assert_both_ways([(*make(rule, arguments), exactness(rule, arguments)) for arguments in cases])

    @pytest.mark.usefixtures("x64")
    def test_of_complex_numbers(self):
        cases = [case for case in FULL if case[0] in COMPLEX]
        assert {rule for rule, _ in cases} == COMPLEX
        assert_both_ways([(*make(*case), 1e-12) for case in cases], dtype=complex)

    # Not for Lion, where a rounding that turns a sign is a whole step, nor for Muon, whose iteration makes the most of
    # small singular values and of errors in them. In optax's AdEMAMix no moment is stored in less after the first step.
    @pytest.mark.usefixtures("x64")
    def test_of_moments_that_rest_in_less(self):
        cases = [case for case in NARROW if case[0] not in ("lion", "muon", "ademamix")]
        # In each step optax rounds the product of decay and moment, and both round the moment, by up to 2**-9 each; a
        # decay of 0.9 adds up ten steps of that.
        assert_both_ways([(*make(*case), 30 * 2**-9) for case in cases])

    def test_a_run_with_a_state_within_wrappers(self):
        optimizer, params = jaxopt_adam.adam(0.01), draw(seed=1, dtype=np.float32)
        wrapped = optax.MultiSteps(
            optax.chain(optax.clip_by_global_norm(1.0), optax.inject_hyperparams(optax.adam)(0.01)), 2
        )
        clipped = optax.MultiSteps(optax.chain(optax.clip_by_global_norm(1.0), optimizer), 2)
        before, after = halves(draw(40, dtype=np.float32))
        run, run_clipped = runner([wrapped]), runner([clipped])
        [(halfway, state)], _ = run([(params, wrapped.init(params))], before)
        inner = (optax.EmptyState(), from_optax(state, optimizer))
        outer = clipped.init(params)._replace(inner_opt_state=inner)
        updates = run_clipped([(halfway, outer)], after)[1]
        # Between the steps of MultiSteps nothing moves, but over each pair of them something does.
        assert_same_walk(updates, run([(halfway, state)], after)[1], 1e-5)


def filled(state):
    """A state with numbers such as a run has: moments between 0.1 and 1, after seven steps."""
    generator = np.random.default_rng(7)

    def leaf(path, value):
        name = getattr(path[-1], "name", None)
        if jnp.issubdtype(value.dtype, jnp.integer):
            return jnp.full_like(value, 8 if name == "step_count" else 7)
        # Not what stays as it is: Muon's coefficients, and a zero for what Adafactor does without.
        if name == "ns_coeffs" or value.shape == (1,) or jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            return value
        return jnp.asarray(generator.uniform(0.1, 1, size=value.shape), value.dtype)

    return jax.tree_util.tree_map_with_path(leaf, state)


def mixed(dtype):
    """Parameters of which one has another dtype."""
    params = draw(dtype=dtype)
    return {**params, "scale": params["scale"].astype(jnp.bfloat16)}


def moments(state):
    return {name: by_path(value) for name, value in state._asdict().items() if name != "count" and value is not None}


def of_optax(state, name):
    """The same of a state of optax's, where it may be called otherwise and be in pieces."""
    names = {"mu": ("mu", "exp_avg", "ema"), "nu": ("nu", "exp_avg_sq"), "max_learning_rate": ("max_lr",)}
    pieces = [piece for each in names.get(name, (name,)) for _, piece in optax.tree.get_all_with_path(state, each)]
    return {path: leaf for piece in pieces for path, leaf in by_path(piece).items() if leaf.shape != (1,)}


def by_path(tree):
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


class TestRoundTrip:
    @over([*FULL, *NARROW])
    def test_of_ours_bit_for_bit(self, rule, arguments):
        ours, theirs = make(rule, arguments)
        params = mixed(np.float32)
        state = filled(ours.init(params))
        there = to_optax(state, ours)
        assert jax.tree.structure(there) == jax.tree.structure(jax.eval_shape(theirs.init, params))
        assert_identical(from_optax(there, ours), state)

    @over([*FULL, *NARROW])
    def test_of_optax_bit_for_bit(self, rule, arguments):
        ours, theirs = make(rule, arguments)
        params = mixed(np.float32)
        state = filled(theirs.init(params))
        assert_identical(to_optax(from_optax(state, ours), ours, params), state)

    @pytest.mark.parametrize("shape", [(), (1,), (7,), (1, 5), (2, 2), (3, 4), (4, 3), (2, 5, 3), (2, 3, 3), (3, 3, 3)])
    @pytest.mark.parametrize("momentum", [None, 0.9])
    def test_of_adafactor_for_any_shape(self, shape, momentum):
        ours, theirs = make("adafactor", {"min_dim_size_to_factor": 2, "momentum": momentum})
        for params in (jnp.ones(shape), {"a": jnp.ones(shape), "b": jnp.ones((6, 2))}):
            state = filled(theirs.init(params))
            mine = from_optax(state, ours)
            assert_as_made(mine, ours, params)
            assert_identical(to_optax(mine, ours), state)

    def test_of_a_count_that_optax_does_not_have(self):
        for optimizer in [jaxopt_adam.sgd(0.1), jaxopt_adam.sgd(0.1, 0.9), jaxopt_adam.rmsprop(0.1, momentum=0.9)]:
            state = filled(optimizer.init(draw()))
            back = from_optax(to_optax(state, optimizer), optimizer)
            assert_identical(back, state._replace(count=jnp.asarray(0, jnp.int32)))


class TestDtypes:
    @over([*FULL, *NARROW])
    def test_half_precision_is_widened_as_it_is(self, rule, arguments):
        ours, theirs = make(rule, arguments)
        params = mixed(np.float32)
        state = filled(theirs.init(params))
        mine = from_optax(state, ours)
        assert_as_made(mine, ours, params)
        for name, moment in moments(mine).items():
            chex.assert_trees_all_equal(moment, of_optax(state, name))
        jax.eval_shape(ours.update, params, mine, params)

    @over([*FULL, *NARROW])
    def test_half_precision_is_as_optax_has_it_with_params(self, rule, arguments):
        ours, theirs = make(rule, arguments)
        params = mixed(np.float32)
        state = filled(ours.init(params))
        for like in (params, jax.eval_shape(lambda: params)):
            there = to_optax(state, ours, like)
            assert_as_made(there, theirs, params)
            jax.eval_shape(theirs.update, params, there, params)
            for name, moment in moments(state).items():
                rounded = of_optax(there, name)
                chex.assert_trees_all_equal(optax.tree.cast_like(moment, rounded), rounded)

    @over([*FULL, *NARROW])
    def test_half_precision_stays_wide_without_params(self, rule, arguments):
        ours, theirs = make(rule, arguments)
        params = draw(dtype=jnp.bfloat16)
        state = filled(ours.init(params))
        there = to_optax(state, ours)
        for name, moment in moments(state).items():
            assert_identical(of_optax(there, name), moment)
        jax.eval_shape(theirs.update, params, there, params)


class TestTransformations:
    @over(FULL)
    def test_within_jit_with_traced_hyperparameters(self, rule, arguments):
        ours, theirs = make(rule, arguments)
        params = draw(dtype=np.float32)
        state = filled(theirs.init(params))

        @jax.jit
        def here_and_back(state, ours, params):
            mine = from_optax(state, ours)
            return mine, to_optax(mine, ours), to_optax(mine, ours, params)

        mine, back, back_with_params = here_and_back(state, ours, params)
        assert_identical(mine, from_optax(state, ours))
        assert_identical(back, state)
        assert_identical(back_with_params, state)

    @over([("adam", {"learning_rate": [0.1, 0.2]}), ("adagrad", {"learning_rate": [0.1, 0.2], "eps": 0.1})])
    def test_of_a_batch_of_optimizers(self, rule, arguments):
        params = draw(dtype=np.float32)
        optimizers, _ = jaxopt_adam.grid(getattr(jaxopt_adam, rule), **arguments)
        states = filled(jax.vmap(lambda each: each.init(params))(optimizers))
        theirs = jax.vmap(to_optax)(states, optimizers)
        assert {leaf.shape[0] for leaf in jax.tree.leaves(theirs)} == {2}
        back = jax.vmap(from_optax)(theirs, optimizers)
        if rule == "adagrad":
            states = states._replace(count=jnp.zeros(2, jnp.int32))
        assert_identical(back, states)

    @pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
    def test_a_step_may_take_the_state_s_buffers_for_its_own(self, transform):
        ours, theirs = make("adamw", {"learning_rate": falling, "weight_decay": rising})
        params = draw(dtype=np.float32)
        state = transform(lambda state: to_optax(state, ours))(filled(ours.init(params)))
        pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
        assert len(set(pointers)) == len(pointers)
        jax.jit(theirs.update, donate_argnums=1)(params, state, params)


WRAPPERS = {
    "the direction alone": lambda _: optax.scale_by_adam(),
    "chain": lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx, optax.add_noise(0.1, 0.5, key=0)),
    "named_chain": lambda tx: optax.named_chain(("clip", optax.clip(1.0)), ("rule", tx)),
    "inject_hyperparams": lambda _: optax.inject_hyperparams(optax.adam)(falling),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 3),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "all": lambda tx: optax.MultiSteps(optax.apply_if_finite(optax.chain(tx, optax.ema(0.9)), 3), 3),
}


class TestWrappers:
    @pytest.mark.parametrize("wrapper", WRAPPERS)
    def test_the_state_is_found_within(self, wrapper):
        ours, theirs = make("adam", {"learning_rate": falling})
        params = draw(dtype=np.float32)
        state = filled(WRAPPERS[wrapper](theirs).init(params))
        inner = optax.tree.get(state, "ScaleByAdamState")
        assert_identical(from_optax(state, ours), jaxopt_adam.AdamState(inner.count, inner.mu, inner.nu))

    def test_a_masked_state_fits_ours_masked(self):
        mask, params = {"layer": {"w": False}, "scale": True}, draw(dtype=np.float32)
        ours, theirs = make("adam", {"learning_rate": falling})
        state = filled(optax.masked(theirs, mask).init(params))
        mine = optax.masked(ours, mask)
        moved = optax.MaskedState(from_optax(state, ours))
        assert_as_made(moved, mine, params)
        jax.eval_shape(mine.update, params, moved, params)
        assert_identical(optax.MaskedState(to_optax(moved.inner_state, ours)), state)

    def test_the_parts_of_a_partition(self):
        labels, params = {"layer": "a", "scale": "b"}, draw(dtype=np.float32)
        ours, theirs = make("adam", {"learning_rate": falling})
        state = filled(optax.partition({"a": theirs, "b": theirs}, labels).init(params))
        with pytest.raises(ValueError, match=r"found ScaleByAdamState at .*'a'.*, ScaleByAdamState at .*'b'.*; pass"):
            from_optax(state, ours)
        mine = optax.partition({"a": ours, "b": ours}, labels)
        parts = {name: optax.MaskedState(from_optax(part, ours)) for name, part in state.inner_states.items()}
        assert_as_made(optax.PartitionState(parts), mine, params)

    def test_injected_hyperparameters_have_the_count(self):
        params = draw(dtype=np.float32)
        for rate in (falling, 0.1):
            state = filled(optax.inject_hyperparams(optax.sgd)(rate).init(params))
            assert from_optax(state, jaxopt_adam.sgd(falling)).count == 7

    def test_a_schedule_may_be_new_where_the_rule_counts(self):
        state = filled(optax.adam(0.1).init(draw()))
        assert from_optax(state, jaxopt_adam.adam(falling)).count == 7

    def test_parameters_may_have_names_of_moments(self):
        params = jaxopt_adam.AdamState(*(jnp.arange(3.0) + each for each in range(3)))
        ours, theirs = make("adam", {"learning_rate": falling})
        state = filled(optax.MultiSteps(theirs, 2).init(params))
        mine = from_optax(state, ours)
        assert isinstance(mine.mu, jaxopt_adam.AdamState)
        assert_identical(to_optax(mine, ours), state.inner_opt_state)

    def test_a_mask_is_asked_about_nothing(self):
        def mask(params):
            raise AssertionError

        ours, theirs = make("adamw", {"learning_rate": 0.1, "weight_decay": rising, "mask": lambda _: True})
        params = draw()
        state = filled(theirs.init(params))
        mine = from_optax(state, ours.replace(mask=mask))
        assert_identical(to_optax(mine, ours.replace(mask=mask)), state)

    def test_learning_rates_may_be_a_tree_here(self):
        state = filled(optax.adam(0.1).init(draw()))
        rates = {"layer": 0.1, "scale": falling}
        assert_identical(from_optax(state, jaxopt_adam.adam(rates)), from_optax(state, jaxopt_adam.adam(0.1)))


class TestErrors:
    @pytest.mark.parametrize("convert", [from_optax, to_optax])
    def test_of_a_rule_that_optax_has_not(self, convert):
        @jaxopt_adam.optimizer
        def adam(learning_rate):
            return optax.adam(learning_rate)

        for optimizer in (jaxopt_adam.laprop(0.1), jaxopt_adam.adam_atan2(0.1), adam(0.1)):
            state = optimizer.init(draw())
            said = re.escape(f"got {optimizer!r}")
            with pytest.raises(ValueError, match=f"optimizer must be of a rule that optax has too.*, {said}"):
                convert(state, optimizer)

    @pytest.mark.parametrize("convert", [from_optax, to_optax])
    def test_of_what_is_no_optimizer(self, convert):
        with pytest.raises(TypeError, match="optimizer must be an Optimizer of jaxopt_adam, got "):
            convert(optax.adam(0.1).init(draw()), optax.adam(0.1))

    @pytest.mark.parametrize(
        ("given", "optimizer", "said"),
        [
            (optax.sgd(0.1), jaxopt_adam.adam(0.1), r"must hold ScaleByAdamState.*adam\(.*found EmptyState at \[0\], "),
            (optax.adam(0.1), jaxopt_adam.sgd(0.1), r"must hold no moments.*found ScaleByAdamState at \[0\]"),
            (optax.adam(0.1), jaxopt_adam.adan(0.1), r"must hold ScaleByAdanState.*found ScaleByAdamState at \[0\]"),
            (optax.amsgrad(0.1), jaxopt_adam.adam(0.1), r"ScaleByAdamState.*found ScaleByAmsgradState at \[0\]"),
            (jaxopt_adam.adam(0.1), jaxopt_adam.adam(0.1), r"must hold ScaleByAdamState.*found AdamState;"),
            (
                optax.rmsprop(0.1, momentum=0.9),
                jaxopt_adam.rmsprop(0.1),
                r"must hold ScaleByRmsState, .*found ScaleByRmsState at \[0\], TraceState at \[2\]",
            ),
            (
                optax.rmsprop(0.1),
                jaxopt_adam.rmsprop(0.1, momentum=0.9, centered=True),
                r"must hold ScaleByRStdDevState and TraceState.*found ScaleByRmsState at \[0\]",
            ),
            (
                optax.rmsprop(0.1),
                jaxopt_adam.rmsprop(0.1, bias_correction=True),
                r"must hold ScaleByRmsWithCountState, .*found ScaleByRmsState at \[0\]",
            ),
            (optax.sgd(0.1), jaxopt_adam.sgd(falling), r"no count at which the schedule of sgd\(.*falling\)"),
            (
                optax.chain(optax.adam(0.1), optax.adam(0.1)),
                jaxopt_adam.adam(0.1),
                r"found ScaleByAdamState at \[0\]\[0\], ScaleByAdamState at \[1\]\[0\]; pass the part",
            ),
        ],
    )
    def test_of_another_optimizer_s_state(self, given, optimizer, said):
        with pytest.raises(ValueError, match=said):
            from_optax(given.init(draw()), optimizer)

    def test_of_counts_that_differ(self):
        adam, schedule = optax.adam(falling).init(draw())
        state = adam, schedule._replace(count=jnp.asarray(3))
        with pytest.raises(ValueError, match="same count everywhere, found 0, 3"):
            from_optax(state, jaxopt_adam.adam(falling))

    def test_of_states_that_are_not_the_optimizer_s(self):
        params = draw()
        adam, sgd = jaxopt_adam.adam(0.1), jaxopt_adam.sgd(0.1)
        state = adam.init(params)
        with pytest.raises(TypeError, match=r"state must be AdamState, as adam\(.*has it, got LionState"):
            to_optax(jaxopt_adam.lion(0.1).init(params), adam)
        with pytest.raises(TypeError, match=r"state must be AdamState, .*got tuple"):
            to_optax(optax.adam(0.1).init(params), adam)
        with pytest.raises(ValueError, match=r"state.trace must be None, as sgd\(.*, got .*'layer'"):
            to_optax(jaxopt_adam.sgd(0.1, 0.9).init(params), sgd)
        with pytest.raises(ValueError, match=r"state.trace must be PyTreeDef.*, as sgd\(.*, got None"):
            to_optax(sgd.init(params), jaxopt_adam.sgd(0.1, 0.9))
        with pytest.raises(ValueError, match=r"state.nu must have the same tree as state.mu, .*'layer'.*, got .*\*"):
            to_optax(state._replace(nu=params["scale"]), adam)

    def test_of_params_with_another_tree(self):
        adam, params = jaxopt_adam.adam(0.1), draw()
        with pytest.raises(ValueError, match=r"params must have the same tree as state.mu, .*'layer'.*, got .*\[\*"):
            to_optax(adam.init(params), adam, [params["scale"]])

    @pytest.mark.parametrize("name", ["learning_rate", "weight_decay"])
    def test_of_trees_of_rates(self, name):
        params = draw()
        optimizer = jaxopt_adam.adamw(**{"learning_rate": 0.1, name: {"layer": 0.1, "scale": 0.2}})
        with pytest.raises(ValueError, match=f"{name} must be a number or a schedule for optax, got a tree"):
            to_optax(optimizer.init(params), optimizer)

    def test_of_complex_moments_that_mean_something_else(self):
        params, optimizer = draw(dtype=np.complex64), jaxopt_adam.adadelta(0.1)
        said = r"leaf \['layer'\]\['w'\] must be real, got complex64"
        with pytest.raises(TypeError, match=said):
            from_optax(optax.adadelta(0.1).init(params), optimizer)
        with pytest.raises(TypeError, match=said):
            to_optax(optimizer.init(params), optimizer, params)

    def test_of_complex_moments_that_optax_keeps_real(self):
        params, optimizer = draw(dtype=np.complex64), jaxopt_adam.adam(0.1, mu_dtype="float32")
        said = r"leaf \['layer'\]\['w'\]: state.mu must be real, since optax keeps it in float32, got complex64"
        with pytest.raises(TypeError, match=said):
            to_optax(optimizer.init(params), optimizer, params)

    def test_of_moments_that_the_hyperparameters_have_not(self):
        params = draw()
        state = optax.adafactor(min_dim_size_to_factor=2).init(params)
        with pytest.raises(ValueError, match=r"\['layer'\]\['w'\]: state.v_row must have shape None, got \(3,\)"):
            from_optax(state, jaxopt_adam.adafactor())
        state = optax.contrib.muon(0.1).init(params)
        numbers = {"layer": None, "scale": None}
        with pytest.raises(ValueError, match=r"\['layer'\]\['w'\]: state.nu must have shape \(4, 3\), got None"):
            from_optax(state, jaxopt_adam.muon(0.1, muon_weight_dimension_numbers=numbers))

    def test_of_moments_that_are_no_moments(self):
        state = optax.adam(0.1).init({"a": jnp.arange(3)})
        with pytest.raises(TypeError, match=r"leaf \['a'\] must have a floating-point dtype, got int32"):
            from_optax(state, jaxopt_adam.adam(0.1))


def test_every_rule_in_both_libraries_is_covered():
    ours = set(RULES)
    both = {name for name in ours if hasattr(optax, name) or hasattr(optax.contrib, name)}
    assert both == {rule for rule, _ in FULL}
    assert both <= {rule for rule, _ in CASES}


@pytest.mark.parametrize(
    ("made", "name"),
    [
        (jaxopt_adam.muon(0.1, matrix_axes=lambda path, shape: None), "matrix_axes=None"),
        (jaxopt_adam.prodigy(bias_correction=False), "bias_correction=True"),
    ],
)
def test_arguments_that_optax_has_not(made, name):
    params = {"w": jnp.ones((2, 3))}
    with pytest.raises(ValueError, match=f"must have {name}"):
        to_optax(made.init(params), made, params)


@pytest.mark.parametrize("moments", ["int8", "int4"])
@pytest.mark.parametrize("rule", [lion, adam])
def test_codes_are_converted_first(rule, moments):
    optimizer, params = rule(0.1, moments=moments), {"w": jax.ShapeDtypeStruct((64, 256), jnp.float32)}
    state = jax.eval_shape(optimizer.init, params)
    for each in (optimizer, rule(0.1)):
        with pytest.raises(ValueError, match=r"must have moments in float32.*; jaxopt_adam.convert_state converts"):
            to_optax(state, each)
    converted = jax.eval_shape(
        lambda state: to_optax(convert_state(state, optimizer, rule(0.1), params), rule(0.1)), state
    )
    assert_as_made(converted, getattr(optax, rule.__name__)(0.1), params)


def test_a_state_of_optax_in_place_of_ours():
    for state in (optax.adam(0.1).init(1.0), optax.sgd(0.1).init(1.0)):
        with pytest.raises(TypeError, match=r"state must .*; jaxopt_adam.from_optax takes over a state of optax's$"):
            adam(0.1).update(1.0, state)
    with pytest.raises(TypeError, match=r"state must have count, as what init returns has, got tuple$"):
        adam(0.1).update(1.0, ())
