"""A state of another rule is refused by its name, and by its fields where it has no name."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_family import FACTORIES, TABLE

from jaxopt_adam import (
    adam,
    adamw,
    amsgrad,
    from_optax,
    laprop,
    lion,
    master_weights,
    nadam,
    observe,
    sgd,
    stochastic_rounding,
)

PARAMS = jnp.ones(3)
OPTIMIZERS = {
    name: FACTORIES[name](learning_rate=0.1, **(row.options if row else {}))
    for name in FACTORIES
    if (row := TABLE.get(name)) is not None
}
STATES = {name: optimizer.init(PARAMS) for name, optimizer in OPTIMIZERS.items()}


def test_every_rule_refuses_every_other_state():
    pairs = 0
    for rule, other in itertools.permutations(OPTIMIZERS, 2):
        one, another = (type(STATES[name]).__name__ for name in (rule, other))
        if one != another:
            with pytest.raises(TypeError, match=rf"must be an? {one}, .* got an? {another}"):
                OPTIMIZERS[rule].update(PARAMS, STATES[other], PARAMS)
            pairs += 1
    assert pairs > 600


def test_rules_that_share_their_state_go_on_with_it():
    state = adam(0.1).init(PARAMS)
    for optimizer in (adamw(0.1), nadam(0.1)):
        assert type(optimizer.update(PARAMS, state, PARAMS)[1]) is type(state)


def test_a_mapping_is_a_state_by_its_fields():
    optimizer = adam(0.1)
    state = optimizer.init(PARAMS)
    expected, after = optimizer.update(PARAMS, state)
    update, restored = optimizer.update(PARAMS, state._asdict())
    np.testing.assert_array_equal(update, expected)
    assert jax.tree.structure(restored) == jax.tree.structure(after)
    with pytest.raises(TypeError, match="must have the fields count, mu, nu, got 'nu_max' too"):
        optimizer.update(PARAMS, amsgrad(0.1).init(PARAMS)._asdict())
    with pytest.raises(TypeError, match="state must have nu"):
        optimizer.update(PARAMS, lion(0.1).init(PARAMS)._asdict())


def test_a_field_that_is_none_may_be_there_or_not():
    optimizer = sgd(0.1)
    for state in ({"count": jnp.int32(0)}, {"count": jnp.int32(0), "trace": None}):
        np.testing.assert_allclose(optimizer.update(PARAMS, state)[0], -0.1, rtol=1e-6)


def test_what_from_optax_makes_is_accepted_and_optax_states_are_not():
    state = optax.adam(0.1).init(PARAMS)
    optimizer = adam(0.1)
    optimizer.update(PARAMS, from_optax(state, optimizer))
    with pytest.raises(TypeError, match=r"AdamState.*got a ScaleByAdamState.*from_optax"):
        optimizer.update(PARAMS, state[0])


def test_laprop_does_not_go_on_with_adamw():
    with pytest.raises(TypeError, match="must be a LapropState"):
        laprop(0.1).update(PARAMS, adamw(0.1).init(PARAMS), PARAMS)


def test_wrappers_refuse_each_others_states():
    params = jnp.ones(3, jnp.bfloat16)
    wrappers = [master_weights(adam(0.1)), stochastic_rounding(adam(0.1)), observe(adam(0.1))]
    states = [optimizer.init(params) for optimizer in wrappers]
    for (optimizer, own), other in itertools.product(zip(wrappers, states, strict=True), states):
        if other is not own:
            with pytest.raises(
                TypeError, match=rf"must be an? {type(own).__name__}, .* got (an? )?{type(other).__name__}"
            ):
                optimizer.update(params, other, params)
