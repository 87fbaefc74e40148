"""Eight virtual devices: the state lives where the parameters do, and a step needs no word between devices."""

import os
import subprocess
import sys
import textwrap

PROGRAM = textwrap.dedent(
    """
    import inspect
    import re

    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    import jaxopt_adam
    from jaxopt_adam import rules

    assert len(jax.devices()) == 8
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    generator = np.random.default_rng(0)
    params, grads = generator.standard_normal((2, 16, 8)).astype(np.float32)
    step = lambda optimizer, grads, state, params: optimizer.update({"w": grads}, state, {"w": params})
    for name in rules.__all__:
        factory = getattr(rules, name)
        if not inspect.isfunction(factory):
            continue
        optimizer = factory(0.1)
        alone = jax.jit(step)(optimizer, grads, optimizer.init({"w": jnp.asarray(params)}), params)
        for spec in (PartitionSpec("x"), PartitionSpec(None, "y"), PartitionSpec("x", "y")):
            sharding = NamedSharding(mesh, spec)
            sharded = [jax.device_put(each, sharding) for each in (grads, params)]
            state = optimizer.init({"w": sharded[1]})
            for leaf in jax.tree.leaves(state):
                assert leaf.ndim == 0 or leaf.sharding == sharding, (name, spec, leaf.sharding)
            arguments = optimizer, sharded[0], state, sharded[1]
            compiled = jax.jit(step).lower(*arguments).compile()
            said = re.findall("all-gather|all-reduce|all-to-all|collective", compiled.as_text())
            assert not said, (name, spec, said)
            together = compiled(*arguments)
            for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
                np.testing.assert_array_equal(one, other, err_msg=f"{name} {spec}")
                assert one.ndim == 0 or other.sharding.is_equivalent_to(sharding, 2), (name, spec, other.sharding)
        print(name)
    """
)


def test_every_rule_on_eight_devices():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "adam\n" in done.stdout
