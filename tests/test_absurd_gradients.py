"""Finite gradients whose squares are not: a rule goes on, and comes back to life as its averages forget them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from test_family import FACTORIES

from jaxopt_adam import adam, cautious, checked, observe, summary

FACTORIES = FACTORIES | {"cautious(adam)": lambda learning_rate: cautious(adam(learning_rate, b2=0.9))}
SIZES = jnp.float32([1.0, 1e19, 1e25, 3e38])
"""Of the gradients at two steps; the first is what all others are."""

FORGETFUL = {
    "sgd": {"momentum": 0.9, "nesterov": True},
    "adadelta": {},
    "rmsprop": {"momentum": 0.9},
    "adam": {"b2": 0.9},
    "adamw": {"b2": 0.9},
    "nadam": {"b2": 0.9},
    "nadamw": {"b2": 0.9},
    "adamax": {"b2": 0.9},
    "adamaxw": {"b2": 0.9},
    "radam": {"b2": 0.9},
    "adabelief": {"b2": 0.9, "eps": 1e-3},
    "adan": {"b1": 0.9, "b3": 0.9},
    "lion": {"b2": 0.9},
    "lamb": {"b2": 0.9},
    "novograd": {"b2": 0.9},
    "adopt": {"b2": 0.9},
    "ademamix": {"b2": 0.9, "b3": 0.9},
    "schedule_free_adamw": {"b2": 0.9, "weight_lr_power": 0.0},
    "muon": {"adam_b2": 0.9},
    "prodigy": {"betas": (0.9, 0.9)},
    "adam_mini": {"b2": 0.9},
    "adam_atan2": {"b2": 0.9},
    "laprop": {"b2": 0.9},
    "stable_adamw": {"b2": 0.9},
    "cautious(adam)": {},
}
"""Rules that forget, with hyperparameters with which they do within a thousand steps."""

UNFORGETTING = {"adagrad", "amsgrad", "yogi", "adafactor", "soap"}
"""Those that do not, by their papers, as their docstrings say. (Soap has tests of its own.)"""

RATELESS = {"adadelta": {"learning_rate": 1.0}, "prodigy": {"learning_rate": 1.0}}
STEPS = 1500


@functools.cache
def sizes_of_updates(rule):
    """The largest size of each update, of shape (sizes, steps)."""
    options = {"learning_rate": 0.01} | FORGETFUL.get(rule, {}) | RATELESS.get(rule, {})
    optimizer = FACTORIES[rule](**options)
    params = {"matrix": jnp.ones((4, 3)), "vector": jnp.ones(5)}

    @jax.jit
    @jax.vmap
    def run(size):
        def step(state, index):
            factor = jnp.where((index == 5) | (index == 6), size, 1.0) * (1 + 0.1 * jnp.sin(1.7 * index))
            gradients = jax.tree.map(lambda param: factor * param, params)
            updates, state = optimizer.update(gradients, state, params)
            return state, jnp.max(jnp.stack([jnp.max(jnp.abs(update)) for update in jax.tree.leaves(updates)]))

        return jax.lax.scan(step, optimizer.init(params), jnp.arange(STEPS))[1]

    return np.asarray(run(SIZES))


def test_every_rule_is_in_a_list():
    assert set(FORGETFUL) | UNFORGETTING == set(FACTORIES)
    assert not set(FORGETFUL) & UNFORGETTING


# SGD's step is a sum of the gradients themselves.
@pytest.mark.parametrize("rule", sorted((set(FORGETFUL) | UNFORGETTING) - {"sgd", "soap"}))
def test_every_update_stays_finite(rule):
    assert np.isfinite(sizes_of_updates(rule)).all()


@pytest.mark.parametrize("rule", [rule for rule in FORGETFUL if rule != "sgd"])
def test_the_update_at_the_absurd_gradient_is_no_larger_than_a_new_gradient_makes_it(rule):
    """As large as after a gradient that is 1,000 times its predecessors', say: of a size that decays decide."""
    usual, *absurd = sizes_of_updates(rule)[:, :20].max(1)
    assert (absurd < 30 * usual).all()


@pytest.mark.parametrize("rule", FORGETFUL)
def test_it_comes_back_to_life(rule):
    usual, *absurd = sizes_of_updates(rule)[:, -50:].mean(1)
    np.testing.assert_allclose(absurd, usual, rtol=0.5 if rule in ("adadelta", "schedule_free_adamw") else 0.05)


@pytest.mark.parametrize("size", [1e19, 3e38])
def test_checked_and_observe_show_it(size):
    params = {"w": jnp.ones(3)}
    gradients = {"w": jnp.float32([1.0, size, 1.0])}
    for rule in ("adagrad", "adam", "adafactor"):
        optimizer = checked(FACTORIES[rule](learning_rate=0.1))
        error, _ = checkify.checkify(jax.jit(optimizer.update))(gradients, optimizer.init(params), params)
        expected = (
            "leaf ['w'] at step 1: the gradient is so large that a rule that squares it takes it for less in 1 of 3"
        )
        assert error.get().startswith(expected)
    optimizer = checked(FACTORIES["sgd"](learning_rate=0.1))
    error, _ = checkify.checkify(jax.jit(optimizer.update))(gradients, optimizer.init(params), params)
    assert error.get() is None
    optimizer = observe(adam(0.1))
    _, state = optimizer.update(gradients, optimizer.init(params), params)
    assert summary(state)["gradient_norm"] > 1e18


@pytest.mark.parametrize("rule", ["adam", "adabelief", "adan", "yogi", "rmsprop"])
def test_an_infinite_gradient_shows(rule):
    """It is no size to forget: the update is NaN, and so are the next."""
    optimizer, params = FACTORIES[rule](learning_rate=0.1), jnp.ones(3)
    gradients = jnp.float32([1.0, jnp.inf, -jnp.inf])
    update, state = optimizer.update(gradients, optimizer.init(params), params)
    np.testing.assert_array_equal(np.isnan(update), [False, True, True])
    update, _ = optimizer.update(params, state, params)
    np.testing.assert_array_equal(np.isnan(update), [False, True, True])
