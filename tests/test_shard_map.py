"""Within shard_map a rule is right on a device's part of a leaf, or refuses it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from test_family import FACTORIES, TABLE
from test_sharding import jit_as_users_do

from jaxopt_adam import adamw, cautious, lamb, master_weights, observe, rmsprop, sgd, stochastic_rounding

pytestmark = pytest.mark.devices

P = PartitionSpec
SHAPE = (64, 256)


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))


def arrays(count, dtype=np.float32):
    generator = np.random.default_rng(0)
    return [{"w": generator.standard_normal(SHAPE).astype(dtype)} for _ in range(count)]


def specs_of(state):
    """Parts of the arrays that have the parameter's leaf, the whole of the others."""
    return jax.tree.map(lambda leaf: P("x") if jnp.shape(leaf)[:1] == SHAPE[:1] else P(), state)


def within(mesh, optimizer, state, **options):
    specs = specs_of(state)
    return functools.partial(jax.shard_map, mesh=mesh, **options)(
        optimizer.update, in_specs=(P("x"), specs, P("x")), out_specs=(P("x"), specs)
    )


@pytest.mark.parametrize("name", FACTORIES)
def test_every_rule_is_right_or_refuses(mesh, name):
    """With the parts of a leaf: elementwise rules in float32 have the bits of the whole, all others refuse."""
    optimizer = FACTORIES[name](learning_rate=0.1, **TABLE[name].options)
    params, *gradients = arrays(3)
    state = optimizer.init(params)
    update = within(mesh, optimizer, state)
    if not TABLE[name].elementwise:
        with pytest.raises(ValueError, match=r"leaf \['w'\]: within jax.shard_map .*'x'.*check_vma=False"):
            jax.eval_shape(update, gradients[0], state, params)
        return
    alone, together = state, state
    update, expected = jit_as_users_do(update), jit_as_users_do(optimizer.update)
    for grads in gradients:
        whole, alone = expected(grads, alone, params)
        parts, together = jax.block_until_ready(update(grads, together, params))
        jax.tree.map(np.testing.assert_array_equal, jax.device_get((parts, together)), jax.device_get((whole, alone)))


REFUSED = {
    "bfloat16": adamw(0.1, moments="bfloat16"),
    "int8": adamw(0.1, moments="int8"),
    "int4": rmsprop(0.1, moments="int4"),
    "observe": observe(sgd(0.1)),
    "cautious": cautious(sgd(0.1)),
    "chain": optax.chain(optax.scale(1.0), lamb(0.1)),
    "stochastic_rounding": stochastic_rounding(sgd(0.1)),
    "master_weights": master_weights(sgd(0.1), bits=24),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_rounded_or_summed_refuses_a_part(mesh, name):
    optimizer = REFUSED[name]
    dtype = jnp.bfloat16 if name in ("stochastic_rounding", "master_weights") else np.float32
    params, grads = arrays(2, dtype)
    state = optimizer.init(params)
    with pytest.raises(ValueError, match=r"leaf \['w'\]: within jax.shard_map"):
        jax.eval_shape(within(mesh, optimizer, state), grads, state, params)


def test_a_state_that_does_not_fit_within_says_why(mesh):
    """Of a part that is too small for codes the state would be expected in float32."""
    optimizer = adamw(0.1, moments="int8")
    params = {"w": jnp.ones((64, 64))}  # of which a device has fewer elements than have codes
    state = optimizer.init(params)
    with pytest.raises(ValueError, match=r"leaf \['w'\]: within jax.shard_map .* state is that of the whole leaf"):
        jax.eval_shape(within(mesh, optimizer, state), params, state, params)


@pytest.mark.parametrize("optimizer", [lamb(0.1), adamw(0.1, moments="int8"), observe(adamw(0.1))], ids=str)
def test_whole_leaves_are_right_within(mesh, optimizer):
    """Parameters that every device has whole, and averaged gradients: what is in the step does not vary."""
    params, *gradients = arrays(9)
    batch = jax.tree.map(lambda *leaves: np.stack(leaves), *gradients)
    state = optimizer.init(params)

    def step(params, state, own):
        grads = jax.tree.map(lambda leaf: jax.lax.pmean(leaf[0], "x"), own)
        return optimizer.update(grads, state, params)

    run = jax.shard_map(step, mesh=mesh, in_specs=(P(), P(), P("x")), out_specs=(P(), P()))
    updates, _ = jax.jit(run)(params, state, batch)
    mean = jax.tree.map(lambda leaf: leaf.mean(0), batch)
    expected, _ = jax.jit(optimizer.update)(mean, state, params)
    np.testing.assert_allclose(updates["w"], expected["w"], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("optimizer", [lamb(0.1), adamw(0.1, moments="int8")], ids=str)
def test_each_device_may_have_a_leaf_of_its_own(mesh, optimizer):
    """Without the check of what varies, as the error says; the result is that of the devices' own leaves."""
    leaves = np.random.default_rng(0).standard_normal((8, 64, 128)).astype(np.float32)

    def own(leaf):
        updates, _ = optimizer.update(leaf[0], optimizer.init(leaf[0]), leaf[0])
        return updates[None]

    run = jax.shard_map(own, mesh=mesh, in_specs=P("x"), out_specs=P("x"), check_vma=False)
    expected = [optimizer.update(leaf, optimizer.init(leaf), leaf)[0] for leaf in leaves]
    np.testing.assert_allclose(jax.jit(run)(leaves), np.stack(expected), rtol=1e-5, atol=1e-6)


def test_init_within_is_as_the_part(mesh):
    """A state that is made within varies as its parameter does, so that a loop can carry it."""

    def train(params):
        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(params, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), length=3)[0][0]

    optimizer = adamw(0.1)
    params = jax.device_put(arrays(1)[0], NamedSharding(mesh, P("x")))
    run = jax.shard_map(train, mesh=mesh, in_specs=P("x"), out_specs=P("x"))
    np.testing.assert_allclose(jax.jit(run)(params)["w"], jax.jit(train)(params)["w"], rtol=1e-6)
