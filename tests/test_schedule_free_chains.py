"""Transformations after `schedule_free_adamw` in a chain are refused as soon as their effect can be seen."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_adam import adam, cautious, master_weights, observe, schedule_free_adamw, schedule_free_eval_params

PARAMS = {"w": jnp.array([10.0, -3.0]), "b": jnp.float32(2.0)}
# Transformations with a state that change updates, and such as do not.
CHANGING = {
    "ema": optax.ema(0.9),
    "trace": optax.trace(0.9),
    "schedule": optax.scale_by_schedule(lambda count: 0.5),
    "adam": adam(0.1),
    "noise": optax.add_noise(0.1, 0.55, 0),
    "chain": optax.chain(optax.clip(1.0), optax.ema(0.9)),
}
HARMLESS = {
    "identity": optax.identity(),
    "masked": optax.masked(adam(0.1), {"w": False, "b": False}),
    "chain of nothing": optax.chain(optax.identity(), optax.identity()),
}


def trained(optimizer, steps, params=PARAMS):
    state = optimizer.init(params)
    for _ in range(steps):
        updates, state = optimizer.update(jax.tree.map(lambda x: 2 * x, params), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("name", CHANGING)
def test_a_part_that_follows_is_refused_by_name(name):
    params, state = trained(optax.chain(optax.clip(1e9), schedule_free_adamw(0.1), CHANGING[name]), 0)
    with pytest.raises(ValueError, match=r"after that of schedule_free_adamw.*put it before"):
        schedule_free_eval_params(state, params)


@pytest.mark.parametrize("name", ["ema", "trace", "schedule"])
def test_within_other_states_it_is_refused_as_well(name):
    chain = optax.chain(observe(schedule_free_adamw(0.1)), CHANGING[name])
    params, state = trained(optax.chain(optax.apply_if_finite(chain, 3)), 0)
    with pytest.raises(ValueError, match=r"after that of schedule_free_adamw"):
        schedule_free_eval_params(state, params)


@pytest.mark.parametrize("name", [*CHANGING, *HARMLESS])
def test_what_comes_before_and_what_is_harmless_after_is_not(name):
    before = [] if name in HARMLESS else [CHANGING[name]]
    after = [HARMLESS[name]] if name in HARMLESS else []
    params, state = trained(optax.chain(*before, schedule_free_adamw(0.1), *after), 0)
    result = schedule_free_eval_params(state, params)
    assert jax.tree.structure(result) == jax.tree.structure(params)


def test_two_of_them_for_parts_of_the_parameters():
    parts = [optax.masked(schedule_free_adamw(0.1), {"w": w, "b": not w}) for w in (True, False)]
    apart, state = trained(optax.chain(*parts), 5)
    whole, state_of_whole = trained(schedule_free_adamw(0.1), 5)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-6),
        schedule_free_eval_params(state, apart),
        schedule_free_eval_params(state_of_whole, whole),
    )


@pytest.mark.parametrize("after", [optax.clip(1e-3), optax.scale(0.5)])
def test_without_a_state_it_is_seen_before_the_second_update(after):
    params, state = trained(optax.chain(schedule_free_adamw(0.1), after), 1)
    with pytest.raises(ValueError, match=r"leaf \['b'\].*after 1 updates are its z.*no other transformation"):
        schedule_free_eval_params(state, params)


def test_parameters_that_are_not_those_of_the_state():
    optimizer = schedule_free_adamw(0.1)
    with pytest.raises(ValueError, match=r"leaf \['b'\].*after 0 updates"):
        schedule_free_eval_params(optimizer.init(PARAMS), jax.tree.map(lambda x: x + 1, PARAMS))


jitted_eval_params = jax.jit(schedule_free_eval_params)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("wrap", [lambda inner: inner, master_weights], ids=["alone", "master_weights"])
def test_parameters_as_they_are_trained_are_taken(dtype, wrap):
    start = jax.tree.map(lambda x: (x * 1.2345).astype(dtype), PARAMS)
    for state_dtype in (None, "bfloat16"):
        optimizer = wrap(schedule_free_adamw(1e-3, state_dtype=state_dtype, weight_decay=0.1))
        for steps in (0, 1, 2):
            params, state = trained(optimizer, steps, start)
            result = jitted_eval_params(state, params)
            jax.tree.map(np.testing.assert_array_equal, schedule_free_eval_params(state, params), result)


def test_cautious_would_change_its_updates():
    with pytest.raises(ValueError, match=r"inner.*schedule_free_adamw"):
        cautious(schedule_free_adamw(0.1))
