"""Parameters that say how their axes are divided: flax's boxes and variables, and equinox's sharded models."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxopt_adam import adafactor, adam_mini, adamw, master_weights, observe, rmsprop, soap

P = PartitionSpec
pytestmark = pytest.mark.clients
OPTIMIZERS = {
    "adamw": adamw(1e-2),
    "bfloat16": adamw(1e-2, moments="bfloat16"),
    "int8": adamw(1e-2, moments="int8"),
    "int4": rmsprop(1e-2, moments="int4"),
    "adafactor": adafactor(1e-2, min_dim_size_to_factor=8),
    "adam_mini": adam_mini(1e-2),
    "soap": soap(1e-2, max_precond_dim=64),
    "observe": observe(adamw(1e-2, moments="int8")),
    "master_weights": master_weights(adamw(1e-2)),
    "chain": optax.chain(optax.clip_by_global_norm(1.0), adamw(1e-2, moments="int8")),
    "MultiSteps": optax.MultiSteps(adamw(1e-2, moments="int8"), 2).gradient_transformation(),
}
RULES = ("embed", "data"), ("mlp", "model"), ("out", None)


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def assert_close(name, one, expected):
    """Equal to rounding, which may turn a few elements to their other neighbour in few bits, and eigenvectors a bit."""
    tolerance = 1e-3 if name == "soap" else 1e-5
    assert np.mean(np.abs(np.asarray(one) - np.asarray(expected))) < tolerance


class Model(nn.Module):
    with_init: staticmethod

    @nn.compact
    def __call__(self, x):
        make = nn.initializers.lecun_normal()
        x = nn.Dense(200, kernel_init=self.with_init(make, ("embed", "mlp")), name="one")(x)
        return nn.Dense(64, kernel_init=self.with_init(make, ("mlp", "embed")), name="two")(nn.relu(x))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_linen_boxes_with_logical_axes(mesh, name):
    """The flow of MaxText and t5x: the specs of the whole train state from the boxes of its abstract values."""
    model = Model(nn.with_logical_partitioning)
    x = jax.random.normal(jax.random.key(1), (256, 64))

    def create(key):
        return TrainState.create(apply_fn=model.apply, params=model.init(key, x)["params"], tx=OPTIMIZERS[name])

    abstract = jax.eval_shape(create, jax.random.key(0))
    specs = nn.get_partition_spec(abstract)
    shardings = nn.logical_to_mesh_sharding(specs, mesh, RULES)
    state = jax.jit(create, out_shardings=shardings)(jax.random.key(0))
    assert state.params["one"]["kernel"].value.sharding.spec == P("data", "model")

    def step(state, x):
        grads = jax.grad(lambda params: jnp.mean(state.apply_fn({"params": params}, x) ** 2))(state.params)
        return state.apply_gradients(grads=grads)

    alone = create(jax.random.key(0))
    boxed, unboxed = state, nn.unbox(state)
    for _ in range(2):
        alone = step(alone, x)
        # As they are, and unboxed, which is what MaxText does after `init`.
        boxed = jax.block_until_ready(jax.jit(step, out_shardings=shardings)(boxed, x))
        unboxed = jax.block_until_ready(jax.jit(step, out_shardings=nn.unbox(shardings))(unboxed, x))
    assert jax.tree.structure(alone) == jax.tree.structure(boxed)
    for one, other, expected in zip(*map(jax.tree.leaves, (boxed.params, unboxed.params, alone.params)), strict=True):
        assert_close(name, one, expected)
        assert_close(name, other, expected)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_nnx_with_sharding_annotations(mesh, name):
    """The flow of flax's guide: model and optimizer made within jit, constrained to the specs of their annotations."""

    class Net(nnx.Module):
        def __init__(self, rngs):
            make = nnx.initializers.lecun_normal()
            self.one = nnx.Linear(64, 200, kernel_init=nnx.with_partitioning(make, ("data", "model")), rngs=rngs)
            self.two = nnx.Linear(200, 64, kernel_init=nnx.with_partitioning(make, ("model", "data")), rngs=rngs)

        def __call__(self, x):
            return self.two(nnx.relu(self.one(x)))

    def create():
        model = Net(nnx.Rngs(0))
        return model, nnx.Optimizer(model, OPTIMIZERS[name], wrt=nnx.Param)

    @nnx.jit
    def create_sharded():
        model, optimizer = create()
        for part in (model, optimizer):
            state = nnx.state(part)
            nnx.update(part, jax.lax.with_sharding_constraint(state, nnx.get_partition_spec(state)))
        return model, optimizer

    @nnx.jit
    def step(model, optimizer, x):
        grads = nnx.grad(lambda model: jnp.mean(model(x) ** 2))(model)
        optimizer.update(model, grads)

    x = jax.random.normal(jax.random.key(1), (256, 64))
    with jax.set_mesh(mesh):
        model, optimizer = create_sharded()
        assert model.one.kernel.get_value().sharding.spec == P("data", "model")
        for _ in range(2):
            step(model, optimizer, x)
    with jax.set_mesh(jax.make_mesh((1, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2)):
        alone, with_alone = create()
    for _ in range(2):
        step(alone, with_alone, x)
    for one, expected in zip(jax.tree.leaves(nnx.state(model)), jax.tree.leaves(nnx.state(alone)), strict=True):
        assert_close(name, one, expected)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_equinox_filter_shard(mesh, name):
    """Model and state replicated by `filter_shard`, as in equinox's example, and a model that is divided."""
    optimizer = OPTIMIZERS[name]
    model = eqx.nn.MLP(64, 64, 200, 1, key=jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (256, 64))

    def step(model, state, x, sharding):
        model, state = eqx.filter_shard((model, state), sharding)
        grads = eqx.filter_grad(lambda model: jnp.mean(jax.vmap(model)(x) ** 2))(model)
        updates, state = optimizer.update(grads, state, eqx.filter(model, eqx.is_array))
        return eqx.filter_shard((eqx.apply_updates(model, updates), state), sharding)

    whole = NamedSharding(mesh, P())
    state = optimizer.init(eqx.filter(model, eqx.is_array))
    alone, state_of_alone = model, state
    model, state = eqx.filter_shard((model, state), whole)
    for _ in range(2):
        model, state = jax.block_until_ready(eqx.filter_jit(step)(model, state, x, whole))
        alone, state_of_alone = eqx.filter_jit(step)(alone, state_of_alone, x, jax.devices()[0])
    arrays = (jax.tree.leaves(eqx.filter(each, eqx.is_array)) for each in (model, alone))
    for one, expected in zip(*arrays, strict=True):
        assert one.sharding.is_equivalent_to(whole, one.ndim)
        assert_close(name, one, expected)
