"""The dtypes in which hyperparameters arrive: the float32 answer, NaN or an error by name, and never a standstill."""

import functools
import inspect
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import checkify
from public import RULES
from test_family import TABLE

import jaxopt_adam
from jaxopt_adam import adam, adamw, checked, grid
from jaxopt_adam._data import checks
from jaxopt_adam._hyperparameters import Number, Pair

PARAMS = jnp.float32([1.0, -2.0, 0.5])
GRADIENTS = jnp.float32([0.3, -0.1, 2.0])

STEPS = 3
STILL_AT_FIRST = {"adopt", "soap"}
"""Rules whose first update is zero, by their papers."""


def numbers(rule):
    """The real numbers among a rule's hyperparameters by their names, and the names of the decays."""
    known = checks(RULES[rule])
    given = RULES[rule](learning_rate=0.1, **TABLE[rule].options).hyperparameters
    values = {name: given[name] for name, check in known.items() if isinstance(check, (Number, Pair))}
    values = {name: value for name, value in values.items() if isinstance(value, (float, tuple))}
    return values, [name for name in values if getattr(known[name], "below", np.inf) == 1]


def updates(optimizer, params=PARAMS, gradients=GRADIENTS, steps=STEPS):
    def step(state, _):
        update, state = optimizer.update(gradients, state, params)
        return state, update

    return jax.lax.scan(step, optimizer.init(params), length=steps)[1]


jitted = jax.jit(updates)


def assert_moves(rule, found):
    """No update is zero but those that are by the paper."""
    first = 1 if rule in STILL_AT_FIRST else 0
    assert ((found[first:] != 0) | np.isnan(found[first:])).all(), (rule, found)


@pytest.mark.parametrize("rule", RULES)
def test_narrow_arrays_are_computed_in_float32(rule):
    """As the same numbers in float32, to the bit, traced and not."""
    values, _ = numbers(rule)
    options = {"learning_rate": 0.1} | dict(TABLE[rule].options)
    for dtype in (jnp.bfloat16, jnp.float16):
        narrow = jax.tree.map(lambda value, dtype=dtype: jnp.asarray(value, dtype), values)
        # The others are arrays of float32, so that one program serves the wide numbers of both dtypes.
        kept = {
            name: value if _is_allowed(rule, name, value) else jax.tree.map(jnp.float32, values[name])
            for name, value in narrow.items()
        }
        wide = jax.tree.map(lambda value: value.astype(jnp.float32), kept)
        one, other = (jitted(RULES[rule](**options | each)) for each in (kept, wide))
        np.testing.assert_array_equal(one, other)
        assert one.dtype == jnp.float32
        assert_moves(rule, one)


def _is_allowed(rule, name, value):
    try:
        RULES[rule](**{"learning_rate": 0.1} | dict(TABLE[rule].options) | {name: value})
    except ValueError as error:
        return f"{rule}: {name}" not in str(error)  # an error by another name comes up again
    return True


def test_a_traced_negative_weight_decay_gives_nan():
    decayed = jax.jit(lambda decay: updates(adamw(0.1, weight_decay=decay)))
    assert np.isfinite(decayed(0.1)).all()
    assert np.isnan(decayed(-0.1)).all()


def test_negative_numbers_of_schedules_without_a_trace():
    for schedule in (lambda count: -0.1, lambda count: np.float32(-0.1)):
        with pytest.raises(ValueError, match=r"^learning_rate must be ≥ 0, got .*-0\.1"):
            updates(adam(schedule))
    # An array is not looked at.
    state = adam(0.1).init(PARAMS)
    assert np.isnan(adam(lambda count: jnp.float32(-0.1)).update(GRADIENTS, state)[0]).all()


@pytest.mark.parametrize("rule", RULES)
def test_a_traced_negative_rate_or_decay_that_is_one_gives_nan(rule):
    values, decays = numbers(rule)
    options = {"learning_rate": 0.1} | dict(TABLE[rule].options)
    usual = {"learning_rate": 0.1} | {name: values[name] for name in decays}
    # A row with the usual numbers, one with a negative rate, and one for each decay.
    wrong = [{}, {"learning_rate": -0.1}, *({name: 1.0} for name in decays)]
    rows = {name: np.float32([(usual | each)[name] for each in wrong]) for name in usual}

    def both(row):
        falling = {"learning_rate": lambda count: row["learning_rate"] - 0.2 * (count > 0)}
        return updates(RULES[rule](**options | row)), updates(RULES[rule](**options | row | falling))

    (right, negative, *stuck), falling = map(np.asarray, jax.jit(jax.vmap(both))(rows))
    assert np.isfinite(right).all()
    assert_moves(rule, right)
    assert np.isnan(negative).all()
    # Under the schedule the first rate is 0.1.
    assert np.isfinite(falling[0, 0]).all()
    assert np.isnan(falling[:2, 1:]).all()
    for name, found in zip(decays, stuck, strict=True):
        # Where a decay has no part in the update, it has none in what is wrong.
        assert np.isnan(found[-1]).all() or np.array_equal(found, right), name
        assert np.isnan(found[-1]).all() or name in IDLE.get(rule, ()), name


IDLE = {"muon": ("beta",)}
"""Decays that the leaf of this file has no use for."""


KINDS = {
    "python": float,
    "numpy": np.float64,
    "numpy float16": np.float16,
    "float16": jnp.float16,
    "bfloat16": jnp.bfloat16,
    "float32": jnp.float32,
}


@pytest.mark.parametrize(("kind", "decay"), list(itertools.product(KINDS, [0.0, 0.5, 0.9, 0.999, 0.99999, 0.99999999])))
def test_a_decay_of_any_kind(kind, decay):
    """The answer of the float32 number that it is, or an error that names it."""
    value = KINDS[kind](decay)
    if not float(np.float32(value)) < 1:
        with pytest.raises(ValueError, match=r"adam: b2 must be in \[0, 1\), got"):
            adam(0.1, b2=value)
        return
    found = jitted(adam(jnp.float32(0.1), b2=value))
    np.testing.assert_allclose(found, jitted(adam(jnp.float32(0.1), b2=jnp.float32(value))), rtol=1e-5)
    assert_moves("adam", found)


def test_what_float32_takes_for_one_is_refused_by_name():
    with pytest.raises(ValueError, match=r"adam: b2 .* 0\.99999999, which float32 rounds to 1\.0"):
        adam(0.1, b2=0.99999999)
    with pytest.raises(ValueError, match=r"adam: b2 .*0\.99999999.*float32"):
        grid(adam, learning_rate=[0.1], b2=[0.9, 0.99999999])
    with pytest.raises(ValueError, match=r"prodigy: betas\[1\]"):
        jaxopt_adam.prodigy(betas=(0.9, 0.99999999))
    with pytest.raises(ValueError, match=r"learning_rate.*float32 rounds to inf"):
        adam(1e39)


def test_float64_has_decays_that_float32_has_not(x64):
    optimizer = adam(0.1, b2=0.99999999)
    first, _ = optimizer.update(GRADIENTS, optimizer.init(PARAMS), PARAMS)
    for found in (first[None], jitted(optimizer)):
        assert_moves("adam", found)


def test_a_number_put_in_place_by_a_transformation_of_trees_is_checked_where_it_is_used():
    doubled = jax.tree.map(lambda number: 2 * number, adam(0.1))
    with pytest.raises(ValueError, match=r"adam: b1 must be in \[0, 1\), got 1\.8"):
        doubled.init(PARAMS)
    arrays = jax.tree.map(lambda number: jnp.float32(2 * number), adam(0.1))
    with pytest.raises(ValueError, match=r"adam: b1 must be in \[0, 1\), got Array\(1\.8"):
        updates(arrays)
    assert np.isnan(jitted(arrays)).all()


def test_inject_hyperparams_on_bfloat16_parameters():
    """It takes over the parameters' dtype, in which 0.999 is one."""
    params = PARAMS.astype(jnp.bfloat16)
    optimizer = optax.inject_hyperparams(adamw)(0.1)
    with pytest.raises(ValueError, match=r"adamw: b2 .* hyperparam_dtype=jax\.numpy\.float32"):
        optimizer.init(params)
    state = jax.jit(optimizer.init)(params)
    update, _ = jax.jit(optimizer.update)(params, state, params)
    assert np.isnan(np.asarray(update, np.float32)).all()
    optimizer = optax.inject_hyperparams(adamw, hyperparam_dtype=jnp.float32)(0.1)
    state = jax.jit(optimizer.init)(params)
    update, _ = jax.jit(optimizer.update)(params, state, params)
    np.testing.assert_allclose(np.asarray(update, np.float32), -0.1 * np.sign(PARAMS), rtol=0.01)


def test_inject_hyperparams_takes_every_number_of_adafactor():
    params = {"w": jnp.ones((3, 4))}
    optimizer = optax.inject_hyperparams(jaxopt_adam.adafactor, static_args="min_dim_size_to_factor")(0.1)
    state = jax.jit(optimizer.init)(params)
    update, _ = jax.jit(optimizer.update)(params, state, params)
    expected, _ = jaxopt_adam.adafactor(0.1).update(params, jaxopt_adam.adafactor(0.1).init(params), params)
    np.testing.assert_allclose(update["w"], expected["w"], rtol=1e-6)


def test_checked_names_a_decay_that_is_one():
    step = jax.jit(lambda decay: updates(checked(adam(0.1, b2=decay)), steps=1))
    error, _ = checkify.checkify(step)(jnp.float32(1.0))
    assert "adam's b2 at step 1 is 1.0 and not in [0, 1)" in error.get()


def test_a_schedule_of_narrow_numbers():
    rate = optax.constant_schedule(jnp.bfloat16(0.1))
    expected = jitted(adam(jnp.float32(jnp.bfloat16(0.1))))
    np.testing.assert_allclose(jitted(adam(rate)), expected, rtol=1e-6)
    with pytest.raises(ValueError, match="b3 must be"):
        jaxopt_adam.ademamix(0.1, b3=lambda count: 1.0).update(PARAMS, jaxopt_adam.ademamix(0.1).init(PARAMS), PARAMS)
    stuck = jaxopt_adam.ademamix(0.1, b3=lambda count: 1 - 0.0 * count)
    assert np.isnan(jitted(stuck)).all()


@functools.cache
def parameters_of(rule):
    return inspect.signature(RULES[rule]).parameters


def test_every_decay_has_the_check_of_a_decay():
    """A relative of the fault would be a decay whose kind forgets that it is one."""
    words = {"b1", "b2", "b3", "beta", "rho", "decay", "momentum", "beta3", "betas", "adam_b1", "adam_b2"}
    words |= {"shampoo_decay"}
    for rule in RULES:
        for name in words & set(parameters_of(rule)):
            check = checks(RULES[rule])[name]
            check = check.each if isinstance(check, Pair) else check
            assert isinstance(check, Number), (rule, name)
            assert check.below == 1, (rule, name)


@pytest.mark.parametrize(
    ("check", "allowed", "refused"),
    [
        (Number("in [-1, 2)", least=-1.0, below=2.0), [-1, 0, 1.5], [-1.5, 2.0, np.nan]),
        (Number("a real number", least=-np.inf), [-1e30, 0.0, 1e30], [np.nan, np.inf, -np.inf, -1e39]),
        (Number("above 0", positive=True), [1e-30], [0.0, -1.0]),
        (Number("from 0"), [0.0], [-1e-30]),
    ],
)
def test_the_range_of_a_number(check, allowed, refused):
    for value in allowed:
        assert check("own", value) == value
        assert (check("own", np.array([value, value])) == value).all()
    for value in refused:
        for given in (value, np.array([allowed[0], value])):
            with pytest.raises(ValueError, match=f"own must be {re.escape(check.expected)}, got"):
                check("own", given)
    assert jax.jit(lambda value: check("own", value))(-7.0) == -7  # traced numbers are taken on trust
