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


WITHIN_SHARD_MAP = textwrap.dedent(
    """
    import functools

    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import AxisType, PartitionSpec

    from jaxopt_adam import adam, minimize

    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec("x")

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=spec, out_specs=spec)
    def each_on_its_device(start):
        result = minimize(lambda x: jnp.sum((x - 3.0) ** 2), start, adam(0.1), tol=1e-8)
        return jnp.stack([result.x, result.steps.astype(float)[None]], axis=1)

    starts = jnp.arange(8.0)
    alone = [minimize(lambda x: (x - 3.0) ** 2, start, adam(0.1), tol=1e-8) for start in starts]
    expected = np.array([[each.x, each.steps] for each in alone])
    np.testing.assert_allclose(each_on_its_device(starts), expected, rtol=1e-5)
    """
)


def run_on_eight_devices(program: str) -> str:
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_every_rule_on_eight_devices():
    assert "adam\n" in run_on_eight_devices(PROGRAM)


def test_minimize_within_shard_map():
    run_on_eight_devices(WITHIN_SHARD_MAP)
