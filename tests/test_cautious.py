"""`cautious` where gradients are sparse, and the largest factor by which it scales an update."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from agreement import deviation, library_updates
from compiling import FUSED_AS_FOR_USERS
from oracles import ORACLES, walk

from jaxopt_adam import adam, cautious, lion, sgd


def rows_at_a_time(rows, seen, width=8):
    """A gradient of a table that is zero but for its first rows, as an embedding's is."""
    return jnp.zeros((rows, width)).at[:seen].set(jnp.linspace(-1, 1, seen * width).reshape(seen, width))


def test_rows_without_a_gradient_make_the_others_no_faster():
    table, gradient = jnp.zeros((50_000, 8)), rows_at_a_time(50_000, 16)
    optimizer = cautious(adam(0.001))
    updates, _ = optimizer.update(gradient, optimizer.init(table), table)
    np.testing.assert_allclose(jnp.max(jnp.abs(updates)), 0.001, rtol=1e-4)
    np.testing.assert_array_equal(updates[16:], 0.0)


@pytest.mark.parametrize("rule", [adam, lion])
def test_a_table_of_tokens_is_learned(rule):
    """Sixteen of 4,096 rows at a time, of which each comes to its target; the loss of all of them must fall."""
    target = jnp.sign(jax.random.normal(jax.random.key(0), (4096, 8)))
    rows = jnp.arange(16)

    def step(carry, key):
        table, state = carry
        seen = jax.random.choice(key, rows, (16,))
        gradient = jax.grad(lambda table: jnp.mean((table[seen] - target[seen]) ** 2))(table)
        updates, state = optimizer.update(gradient, state, table)
        table = optax.apply_updates(table, updates)
        return (table, state), jnp.mean((table[rows] - target[rows]) ** 2)

    optimizer, table = cautious(rule(0.01)), jnp.zeros((4096, 8))
    _, losses = jax.lax.scan(step, (table, optimizer.init(table)), jax.random.split(jax.random.key(1), 100))
    assert jnp.max(losses) <= 1.0
    assert losses[-1] < 0.5


def against(agreeing, size):
    """An optimizer whose update is uphill in all but some elements, by 1 each, for a gradient of ones."""
    direction = jnp.where(jnp.arange(size) < agreeing, -1.0, 1.0)
    return optax.stateless(lambda updates, params: direction * updates)


@pytest.mark.parametrize(("agreeing", "size"), [(1, 10**6), (1, 2), (3, 40), (1, 10), (0, 5), (7, 7)])
@pytest.mark.parametrize("max_scale", [1.0, 10.0, 1e30])
def test_no_update_grows_by_more_than_the_largest_factor(agreeing, size, max_scale):
    gradient = jnp.ones(size)
    updates, _ = cautious(against(agreeing, size), max_scale=max_scale).update(gradient, optax.EmptyState(), gradient)
    factor = min(max_scale, size / agreeing) if agreeing else 0.0
    np.testing.assert_allclose(-updates, np.where(np.arange(size) < agreeing, factor, 0.0), rtol=1e-2)


def test_what_the_optimizer_within_leaves_alone_does_not_count():
    """A mask within a leaf, as of frozen rows: the others take the steps that they would take by themselves."""
    rows = (jnp.arange(100) < 10).astype(float)
    frozen = optax.chain(sgd(0.1), optax.stateless(lambda updates, params: updates * rows))
    updates, _ = cautious(frozen).update(jnp.ones(100), cautious(frozen).init(jnp.ones(100)), jnp.ones(100))
    np.testing.assert_allclose(updates, -0.1 * rows, rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_without_zeros_and_with_no_largest_factor_it_is_the_papers():
    """Algorithm 1, as the authors have it, on gradients without a zero: the mean over the whole leaf, unbounded."""
    generator = np.random.default_rng(3)
    param, gradients = generator.normal(size=(6, 7)), generator.normal(size=(200, 6, 7))
    updates, _ = library_updates(cautious(adam(0.01), eps=0.0, max_scale=1e30), param, gradients)
    inner, _ = walk(ORACLES["adam"](0.01), param, gradients)
    agrees = inner * -gradients > 0
    assert agrees.mean((1, 2)).min() > 0.3
    paper = inner * agrees / agrees.mean((1, 2), keepdims=True)
    assert deviation(updates, paper) <= 1e-10
    bounded, _ = library_updates(cautious(adam(0.01), eps=0.0), param, gradients)
    assert deviation(bounded, paper) <= 1e-10


@pytest.mark.parametrize("imaginary", [1.0, 1j])
def test_an_update_that_is_no_number_is_not_hidden(imaginary):
    gradient = jnp.array([1.0, jnp.nan, 2.0]) * imaginary
    optimizer = cautious(adam(0.1))
    state = optimizer.init(jnp.ones_like(gradient))
    updates, state = optimizer.update(gradient, state)
    np.testing.assert_array_equal(jnp.isnan(updates), [False, True, False])
    updates, _ = optimizer.update(jnp.ones_like(gradient), state)
    np.testing.assert_array_equal(jnp.isnan(updates), [False, True, False])


def test_a_decay_of_one_is_not_hidden():
    updates = jax.jit(lambda b2: cautious(adam(0.1, b2=b2)).update(jnp.ones(2), cautious(adam(0.1)).init(jnp.ones(2))))(
        jnp.float32(jnp.nan)
    )[0]
    assert jnp.isnan(updates).all()


@pytest.mark.parametrize("rule", [adam, lion])
def test_nothing_full_size_is_kept_but_the_update(rule):
    if jax.__version_info__ < (0, 10):
        pytest.skip("XLA fuses sums of int8 with what they add up since JAX 0.10")
    params = jnp.zeros((256, 1024))

    def step(params, state, grads):
        updates, state = cautious(rule(0.1)).update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(rule(0.1).init, params)
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile(FUSED_AS_FOR_USERS)
    # And two counts, of a byte each, for each eight rows.
    assert compiled.memory_analysis().temp_size_in_bytes <= (1 + 2 / 32) * params.nbytes + 2**14
    # The counts are one pass over the gradient and the update.
    assert len(re.findall(r"= \(s8\[32,1024\]\S*, s8\[32,1024\]\S*\) fusion", compiled.as_text())) == 1
