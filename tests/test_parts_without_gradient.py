"""Models of which some leaves are no parameters: update gets the whole model, and None where there is no gradient."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_family import FACTORIES, TABLE

from jaxopt_adam import adam, adamw, cautious, master_weights, observe, sgd


def params():
    return {"w": jnp.linspace(1.0, 2.0, 6).reshape(2, 3), "activation": None, "sizes": (None, jnp.ones(3))}


def model():
    return {"w": jnp.linspace(1.0, 2.0, 6).reshape(2, 3), "activation": jnp.tanh, "sizes": (7, jnp.ones(3))}


def gradients():
    return jax.tree.map(lambda leaf: 0.1 + leaf, params())


@pytest.mark.parametrize("rule", FACTORIES)
def test_every_rule_looks_at_no_leaf_without_a_gradient(rule):
    optimizer = FACTORIES[rule](learning_rate=0.1, **TABLE[rule].options)
    state = optimizer.init(params())
    expected, _ = optimizer.update(gradients(), state, params())
    updates, _ = optimizer.update(gradients(), state, model())
    jax.tree.map(np.testing.assert_array_equal, updates, expected)


@pytest.mark.parametrize("wrap", [cautious, observe, master_weights])
def test_nor_does_a_wrapper(wrap):
    optimizer = wrap(adamw(0.1))
    state = optimizer.init(params())
    expected, _ = optimizer.update(gradients(), state, params())
    updates, _ = optimizer.update(gradients(), state, model())
    jax.tree.map(np.testing.assert_array_equal, updates, expected)


def test_masks_and_trees_of_rates_are_for_what_has_gradients():
    optimizer = adamw(
        {"w": 0.1, "activation": None, "sizes": (None, 0.2)},
        weight_decay=0.5,
        mask=lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree),
    )
    updates, _ = optimizer.update(gradients(), optimizer.init(params()), model())
    np.testing.assert_allclose(updates["w"], -0.1 * (1 + 0.5 * params()["w"]), rtol=1e-5)
    np.testing.assert_allclose(updates["sizes"][1], -0.2, rtol=1e-5)


def test_init_of_a_rule_without_moments_needs_nothing_of_a_leaf():
    updates, _ = sgd(0.1).update(gradients(), sgd(0.1).init(model()), model())
    np.testing.assert_allclose(updates["w"], -0.1 * gradients()["w"], rtol=1e-6)
    with pytest.raises(TypeError, match=r"\['activation'\]"):
        adam(0.1).init(model())


def test_equinox_trains_with_the_whole_model():
    network = eqx.nn.MLP(2, 1, 4, 1, key=jax.random.key(0))
    optimizer = adamw(0.01, weight_decay=0.1)
    state = optimizer.init(eqx.filter(network, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(network, state):
        grads = eqx.filter_grad(lambda each: jnp.sum(jax.vmap(each)(jnp.ones((3, 2))) ** 2))(network)
        updates, state = optimizer.update(grads, state, network)
        return eqx.apply_updates(network, updates), state

    after, _ = step(network, state)
    assert after.activation is network.activation
    assert not np.array_equal(after.layers[0].weight, network.layers[0].weight)


def test_another_tree_is_still_an_error_that_names_what_differs():
    optimizer = adamw(0.1)
    wrong = model() | {"extra": jnp.ones(2)}
    with pytest.raises(ValueError, match="same tree as params"):
        optimizer.update(gradients(), optimizer.init(params()), wrong)
