"""A small training with checkpoints, which the tests run in processes of their own and kill."""

import hashlib
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxopt_adam import abstract_state, adamw
from jaxopt_adam.checkpoint import Checkpoints

OPTIMIZER = adamw(1e-3, moments="int8")
SHAPE = (64, 128)  # large enough for codes


def run(folder, log, *, steps, every=10, devices=1, process=0, processes=1, port=0):
    """Train to a number of steps, from the newest step in a folder if there is one, and write each loss to a log.

    Args:
        folder: the folder of the checkpoints.
        log: a file, to which each process adds lines: "from" with the step and the hash of the tree that it starts
            from, the number and the loss of each step, and "at" with the hash of the tree at its end.
        steps: the last step.
        every: the steps from one save to the next.
        devices: the devices of each process.
        process: the number of this process.
        processes: the number of processes.
        port: where process 0 listens, if there are several.
    """
    # Processes of pytest have eight.
    os.environ["XLA_FLAGS"] = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
    jax.config.update("jax_num_cpu_devices", devices)
    if processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"localhost:{port}", processes, process, initialization_timeout=60)
    mesh = jax.make_mesh((devices * processes,), ("data",), axis_types=(AxisType.Auto,))
    with Path(log).open("a") as file, Checkpoints(folder, OPTIMIZER, keep=3) as checkpoints:

        def write(*words):
            print(*words, file=file, flush=True)

        resumed = checkpoints.restore(_like(mesh))
        first, tree = (0, _start(mesh)) if resumed is None else (resumed.step, resumed.tree)
        write("from", first, digest(tree))
        number = first
        for number in range(first + 1, steps + 1):
            tree, loss = _step(OPTIMIZER, tree)
            write(number, float(loss).hex())
            if number % every == 0:
                checkpoints.save(number, tree)
        write("at", number, digest(tree))


def digest(tree):
    """A hash of all arrays of a tree, wherever they are."""
    sums = hashlib.sha256()
    whole = jax.jit(lambda array: array, out_shardings=NamedSharding(_mesh_of(tree), PartitionSpec()))
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(whole(leaf).addressable_data(0))
        sums.update(f"{jax.tree_util.keystr(path)} {array.dtype}{array.shape}".encode() + array.tobytes())
    return sums.hexdigest()


def _mesh_of(tree):
    return tree["params"]["w"].sharding.mesh


def _placed_like(mesh):
    return {
        "w": jax.ShapeDtypeStruct(SHAPE, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("data"))),
        "b": jax.ShapeDtypeStruct((SHAPE[1],), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec())),
    }


def _like(mesh):
    params = _placed_like(mesh)
    return {
        "params": params,
        "state": abstract_state(OPTIMIZER, params),
        "data": jax.ShapeDtypeStruct((), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec())),
    }


def _start(mesh):
    like = _like(mesh)

    def make():
        params = {"w": 0.1 * jax.random.normal(jax.random.key(0), SHAPE), "b": jnp.zeros(SHAPE[1])}
        return {"params": params, "state": OPTIMIZER.init(params), "data": jnp.int32(0)}

    return jax.jit(make, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, like))()


@jax.jit(donate_argnums=1)
def _step(optimizer, tree):
    """A step on the batch that the tree's place in the data says."""
    x = jax.random.normal(jax.random.fold_in(jax.random.key(1), tree["data"]), (16, SHAPE[0]))

    def cost(params):
        return jnp.mean((x @ params["w"] + params["b"] - jnp.sum(x, 1, keepdims=True)) ** 2)

    value, gradients = jax.value_and_grad(cost)(tree["params"])
    updates, state = optimizer.update(gradients, tree["state"], tree["params"])
    params = optax.apply_updates(tree["params"], updates)
    return {"params": params, "state": state, "data": tree["data"] + 1}, value
