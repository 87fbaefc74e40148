"""Eight virtual devices: moments in few bits live where the parameters do, and a step communicates nothing."""

import re

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from test_sharding import COLLECTIVES, jit_as_users_do

from jaxopt_adam import adamw, grid

pytestmark = pytest.mark.devices

SHAPES = {"wide": (64, 512), "tall": (256, 64)}
# Of the short last axis there are two blocks, which two devices can have.
MESHES = {
    "first": ((8,), {"wide": PartitionSpec("x", None), "tall": PartitionSpec("x", None)}),
    "last": ((8,), {"wide": PartitionSpec(None, "x"), "tall": PartitionSpec("x", None)}),
    "both": ((4, 2), {"wide": PartitionSpec("x", "y"), "tall": PartitionSpec("x", "y")}),
}
STEPS = 4


@pytest.mark.parametrize("storage", ["bfloat16", "int8", "int4", {"nu": "int4"}], ids=str)
def test_moments_on_eight_devices(storage):
    arrays = 1 if storage == "bfloat16" else 2
    assert len(jax.devices()) == 8
    generator = np.random.default_rng(0)
    params, *gradients = (
        {key: generator.standard_normal(shape).astype(np.float32) for key, shape in SHAPES.items()}
        for _ in range(STEPS + 1)
    )
    optimizer = adamw(0.1, moments=storage)
    update = jit_as_users_do(optimizer.update)
    alone, state = [], optimizer.init(params)
    for grads in gradients:
        updates, state = update(grads, state, params)
        alone.append(jax.device_get((updates, state)))
    for name, (sizes, specs) in MESHES.items():
        axes = ("x", "y")[: len(sizes)]
        mesh, explicit = (
            jax.make_mesh(sizes, axes, axis_types=(kind,) * len(sizes)) for kind in (AxisType.Auto, AxisType.Explicit)
        )

        def put(tree, mesh=mesh, specs=specs):
            return {key: jax.device_put(leaf, NamedSharding(mesh, specs[key])) for key, leaf in tree.items()}

        own = put(params)
        together = optimizer.init(own)
        assert_sharded(together, specs, name, arrays)
        compiled = update.lower(own, together, own).compile()
        assert not re.findall(COLLECTIVES, compiled.as_text()), name
        for grads, expected in zip(gradients, alone, strict=True):
            updates, together = compiled(put(grads), together, own)
            assert_sharded((updates, together), specs, name, arrays)
            jax.tree.map(np.testing.assert_array_equal, jax.device_get((updates, together)), expected)
        # Within jit, init and update see shardings where they are a part of the types.
        with jax.set_mesh(explicit):
            own = put(params, explicit)
            state = jax.eval_shape(optimizer.init, own)
            updates, after = jax.eval_shape(optimizer.update, own, state, own)
            assert_sharded((state, updates, after), specs, name, arrays)
            # So they do where the optimizer's numbers are traced on that mesh, or computed on it.
            for made in (optimizer, grid(adamw, learning_rate=[0.1, 0.2], moments=storage)[0].row(1)):
                traced = jax.eval_shape(lambda each, *given: each.update(*given), made, own, state, own)
                assert_sharded(traced, specs, name, arrays)


def assert_sharded(tree, specs, name, arrays):
    """The arrays that a leaf has have their parameter's sharding, as the updates have."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    checked = 0
    for path, leaf in leaves:
        key = next((key.key for key in path if isinstance(key, jax.tree_util.DictKey)), None)
        if key is not None:
            own = getattr(leaf.sharding, "spec", ())
            assert (*own, *[None] * (leaf.ndim - len(own))) == tuple(specs[key]), (name, path, leaf.sharding)
            checked += 1
    assert sum(leaf.dtype in ("uint8", "uint16", "uint32") for _, leaf in leaves) >= arrays * len(SHAPES)
    assert checked >= arrays * len(SHAPES)
