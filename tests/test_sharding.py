"""Eight virtual devices: the state lies where the parameters do, and a step needs no communication."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as orbax
import pytest
from compiling import AS_USERS_DO
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from test_family import FACTORIES, TABLE, TO_ROUNDING, assert_near, assert_same

from jaxopt_adam import (
    adafactor,
    adam,
    adam_mini,
    adamw,
    lion,
    master_weights,
    minimize,
    muon,
    observe,
    prodigy,
    schedule_free_adamw,
    sgd,
    stochastic_rounding,
)

pytestmark = pytest.mark.devices

# A matrix in three ways, a vector and a scalar. Of Soap's bases only those of the short axis, since the longer one's
# first gradients leave eigenvectors of eigenvalue zero, which can be turned by no more than a rounding error.
SPECS = {
    "rows": ((16, 8), PartitionSpec("x", None)),
    "columns": ((16, 8), PartitionSpec(None, "y")),
    "both": ((16, 8), PartitionSpec("x", "y")),
    "vector": ((16,), PartitionSpec("x")),
    "scalar": ((), PartitionSpec()),
}
OPTIONS = {"soap": {"max_precond_dim": 8}}
COLLECTIVES = "all-gather|all-reduce|all-to-all|collective|reduce-scatter"


jit_as_users_do = functools.partial(jax.jit, compiler_options=AS_USERS_DO)


@pytest.mark.parametrize("name", FACTORIES)
def test_every_rule_on_eight_devices(name):
    """The bits of one device, in three ways of division, and for elementwise rules without communication."""
    assert len(jax.devices()) == 8
    mesh, explicit = (
        jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2) for kind in (AxisType.Auto, AxisType.Explicit)
    )
    generator = np.random.default_rng(0)
    params, *gradients = (
        {key: generator.standard_normal(shape).astype(np.float32) for key, (shape, _) in SPECS.items()}
        for _ in range(4)
    )

    def put(tree, mesh=mesh):
        return {key: jax.device_put(leaf, NamedSharding(mesh, SPECS[key][1])) for key, leaf in tree.items()}

    row = TABLE[name]
    optimizer = FACTORIES[name](learning_rate=0.1, **row.options | OPTIONS.get(name, {}))
    update = sharded_update = (jit_as_users_do if row.elementwise else jax.jit)(optimizer.update)
    alone, together = optimizer.init(params), optimizer.init(put(params))
    assert_sharded(together, name)
    if row.elementwise:
        sharded_update = update.lower(put(gradients[0]), together, put(params)).compile()
        assert not re.findall(COLLECTIVES, sharded_update.as_text())
        # The last bit of an array's reciprocal roots depends on its length, with some versions of XLA.
        assert not re.search(r"f32\[\d\S* rsqrt", sharded_update.as_text())
    for grads in gradients:
        updates, alone = update(grads, alone, params)
        sharded_updates, together = sharded_update(put(grads), together, put(params))
        assert_sharded((sharded_updates, together), name)
        one, other = jax.device_get(((sharded_updates, together), (updates, alone)))
        assert_same(one, other) if row.elementwise else assert_near(one, other, TO_ROUNDING.get(name, 1e-5))
    # Within jit, init and update see shardings where they are a part of the types.
    with jax.set_mesh(explicit):
        own = put(params, explicit)
        state = jax.eval_shape(optimizer.init, own)
        updates, after = jax.eval_shape(optimizer.update, own, state, own)
        assert_sharded((state, updates, after), name)


def test_explicit_axes_give_the_bits_of_one_device():
    """On a mesh with explicit axes the bits are those of one device, also where hyperparameters are constants."""
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    where = NamedSharding(mesh, PartitionSpec("x", "y"))
    generator = np.random.default_rng(0)
    params, grads = generator.standard_normal((2, 256, 512)).astype(np.float32)
    for optimizer in (adamw(1e-3, weight_decay=0.1), lion(1e-3, weight_decay=0.1), muon(1e-3, weight_decay=0.1)):
        update = jit_as_users_do(optimizer.update)
        alone, _ = update(grads, optimizer.init(params), params)
        with jax.set_mesh(mesh):
            own, slopes = jax.device_put((params, grads), where)
            together, _ = update(slopes, optimizer.init(own), own)
        if optimizer == muon(1e-3, weight_decay=0.1):  # whose products sum in another order
            np.testing.assert_allclose(together, alone, atol=1e-6)
        else:
            np.testing.assert_array_equal(together, alone)


def test_a_step_is_compiled_once(tmp_path):
    """A step is compiled once, from what `init` gives and from what a checkpoint restores."""
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    where = NamedSharding(mesh, PartitionSpec("x", "y"))
    ends = {"mesh": where, "device": jax.sharding.SingleDeviceSharding(jax.devices()[3])}
    made = {
        "adamw": adamw(0.1),
        "int8": adamw(0.1, moments="int8"),
        "adafactor": adafactor(0.1, min_dim_size_to_factor=8),
        "adam_mini": adam_mini(0.1),
        "schedule_free": schedule_free_adamw(0.1),
        "prodigy": prodigy(),
        "stochastic": stochastic_rounding(observe(sgd(0.1, momentum=0.9))),
        "master": master_weights(adamw(0.1)),
    }
    for (name, optimizer), end in itertools.product(made.items(), ends):
        dtype = jnp.bfloat16 if name in ("stochastic", "master") else jnp.float32
        params = jax.device_put({"w": jnp.ones((64, 128), dtype)}, ends[end])

        @jax.jit
        def step(params, state, optimizer=optimizer):
            updates, state = optimizer.update(params, state, params)
            return optax.apply_updates(params, updates), state

        state = optimizer.init(params)
        for leaf in jax.tree.leaves(state):
            assert leaf.committed, (name, end)
            assert leaf.sharding.device_set == ends[end].device_set, (name, end)
        for _ in range(3):
            params, state = jax.block_until_ready(step(params, state))
        assert step._cache_size() == 1, (name, end)
        if end == "mesh" and name in ("adamw", "int8", "adafactor"):
            checkpointer = orbax.StandardCheckpointer()
            checkpointer.save(tmp_path / name, state)
            checkpointer.wait_until_finished()
            restored = checkpointer.restore(tmp_path / name, optimizer.init(params))
            for _ in range(2):
                params, restored = jax.block_until_ready(step(params, restored))
            assert step._cache_size() == 1, name


def assert_sharded(tree, name):
    """Every array of the parameter's shape has the parameter's sharding."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        shape, spec = next((SPECS[key.key] for key in path if isinstance(key, jax.tree_util.DictKey)), (None, ()))
        if leaf.ndim and leaf.shape == shape:
            own = getattr(leaf.sharding, "spec", ())
            assert (*own, *[None] * (leaf.ndim - len(own))) == tuple(spec), (name, path, leaf.sharding)


def test_minimize_within_shard_map():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec("x")

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=spec, out_specs=spec)
    def each_on_its_device(start):
        result = minimize(lambda x: jnp.sum((x - 3.0) ** 2), start, adam(0.1), tol=1e-8)
        return jnp.stack([result.x, result.steps.astype(float)[None]], axis=1)

    starts = jnp.arange(8.0)
    alone = jax.jit(jax.vmap(lambda start: minimize(lambda x: (x - 3.0) ** 2, start, adam(0.1), tol=1e-8)))(starts)
    expected = np.stack([alone.x, alone.steps], axis=1)
    np.testing.assert_allclose(each_on_its_device(starts), expected, rtol=1e-5)
