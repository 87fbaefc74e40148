"""Several processes that train one network on digits: python examples/multi_process.py --processes 2.

All devices of all processes are one mesh. Each of them has a part of the weights, of the optimizer's state and of the
batch: fully sharded data parallelism (FSDP). A process reads its own part of each batch only.

With --processes alone the program starts so many processes on this machine, on virtual devices of the CPU, and watches
them: when one dies, it ends the others. Without arguments it is one process of a job that Slurm, Kubernetes or a TPU
pod has started, as in: srun --ntasks 8 python examples/multi_process.py. Where nothing of the kind starts it, give each
process --processes, --rank and --coordinator.

With --folder, one that all processes see, the run is saved, and the same command resumes from the newest complete step,
with any number of processes. That needs orbax: pip install "jaxopt-adam[checkpoint]".
"""

import argparse
import contextlib
import functools
import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxopt_adam import Optimizer, abstract_state, adamw, nbytes
from jaxopt_adam.lab.data import embedded, orders

HIDDEN = 256
BATCH = 256
PROGRESS = 10  # steps between two lines of progress
HEARTBEAT = 30  # seconds of silence after which a process counts as dead, and JAX ends the others

Params = dict[str, Array]


def network(pixels: int) -> Params:
    """The parameters of a new network with two hidden layers."""
    first, second, third = jax.random.split(jax.random.key(0), 3)
    return {
        "w1": jax.random.normal(first, (pixels, HIDDEN)) * (2 / pixels) ** 0.5,
        "b1": jnp.zeros(HIDDEN),
        "w2": jax.random.normal(second, (HIDDEN, HIDDEN)) * (2 / HIDDEN) ** 0.5,
        "b2": jnp.zeros(HIDDEN),
        "w3": jax.random.normal(third, (HIDDEN, 10)) * (2 / HIDDEN) ** 0.5,
        "b3": jnp.zeros(10),
    }


def logits(params: Params, images: Array) -> Array:
    """The outputs of the network, one for each digit."""
    hidden = jax.nn.relu(images @ params["w1"] + params["b1"])
    hidden = jax.nn.relu(hidden @ params["w2"] + params["b2"])
    return hidden @ params["w3"] + params["b3"]


def cost(params: Params, images: Array, labels: Array) -> Array:
    """The mean cross-entropy in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, images), labels).mean()


def accuracy(params: Params, images: Array, labels: Array) -> Array:
    """The fraction of the images whose largest output is their digit's."""
    return jnp.mean(jnp.argmax(logits(params, images), axis=1) == labels)


def divided(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """A sharding that divides the first axis that the devices divide; where there is none, each device has all."""
    axis = next((axis for axis, size in enumerate(shape) if size % mesh.size == 0), None)
    return NamedSharding(mesh, PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, "data"))


def digest(params: Params, whole: NamedSharding) -> str:
    """The start of the SHA-256 of all weights, which every process gathers for it."""
    gathered = jax.jit(lambda params: params, out_shardings=whole)(params)
    return hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(gathered))).hexdigest()[:16]


def say(line: str) -> None:
    """Print a line in one write, so that the lines of several processes do not mix."""
    print(f"{line}\n", end="", flush=True)


def saved(folder: Path | None, optimizer: Optimizer) -> Any:
    """The checkpoints in a folder, as a context; without a folder that of None."""
    if folder is None:
        return contextlib.nullcontext()
    from jaxopt_adam.checkpoint import Checkpoints  # needs orbax

    return Checkpoints(folder, optimizer)


def train(mesh: Mesh, steps: int, every: int, folder: Path | None) -> None:
    """Start or resume a training run over all devices of all processes, and print its results.

    Args:
        mesh: the devices, along an axis ``data``.
        steps: the number of steps.
        every: the number of steps between two checkpoints.
        folder: the folder of the checkpoints; None for none.
    """
    rank, ranks = jax.process_index(), jax.process_count()
    digits = embedded()
    images, labels = digits.train
    whole = NamedSharding(mesh, PartitionSpec())
    by_rows = NamedSharding(mesh, PartitionSpec("data"))
    optimizer = adamw(2e-3, weight_decay=0.01, moments="int8")
    start = functools.partial(network, images.shape[1])
    params_like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=divided(mesh, leaf.shape)),
        jax.eval_shape(start),
    )
    like = {"params": params_like, "state": abstract_state(optimizer, params_like)}
    where = jax.tree.map(lambda leaf: leaf.sharding, like)

    @functools.partial(jax.jit, donate_argnums=(0, 1), out_shardings=(where["params"], where["state"], whole))
    def step(params: Params, state: Any, images: Array, labels: Array) -> tuple[Any, Any, Array]:
        value, gradients = jax.value_and_grad(cost)(params, images, labels)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    share = BATCH // ranks
    with saved(folder, optimizer) as checkpoints:  # waits for the last save
        resumed = None if checkpoints is None else checkpoints.restore(like, numbers="script")
        if resumed is None:
            # Weights and state are born in their places: no process ever has all of them.
            first, params = 0, jax.jit(start, out_shardings=where["params"])()
            state = jax.jit(optimizer.init, out_shardings=where["state"])(params)
        else:
            first, params, state = resumed.step, resumed.tree["params"], resumed.tree["state"]
            say(f"rank {rank} has resumed at step {first}")
        for number, batch in enumerate(orders(len(labels), steps, BATCH, seed=0)[first:], first):
            own = batch[rank * share : (rank + 1) * share]
            part = (jax.make_array_from_process_local_data(by_rows, rows[own]) for rows in (images, labels))
            params, state, value = step(params, state, *part)
            value.block_until_ready()  # many unfinished steps can deadlock virtual devices
            if rank == 0 and (number % PROGRESS == 0 or number == steps - 1):
                print(f"\rstep {number + 1} of {steps}, cost {value:.3f}", end="", file=sys.stderr, flush=True)
            if checkpoints and ((number + 1) % every == 0 or number == steps - 1):
                checkpoints.save(number + 1, {"params": params, "state": state})
    reached = jax.jit(accuracy, out_shardings=whole)(params, *digits.test)
    if rank == 0:
        print(file=sys.stderr)
        sizes = [f"{nbytes(tree, on_each_device=True):,} of {nbytes(tree):,}" for tree in (params, state)]
        say(f"each of {mesh.size} devices has {sizes[0]} bytes of the weights and {sizes[1]} of the state")
        say(f"test accuracy {reached:.1%} after {steps} steps")
    say(f"rank {rank}: the hash of the weights is {digest(params, whole)}")


def run(processes: int, arguments: list[str]) -> int:
    """Start processes of this program on this machine and watch them.

    Args:
        processes: the number of processes.
        arguments: the command line of each, without its rank and the address of the coordinator.

    Returns:
        The exit code: 0 if all have ended well. The first that has not is told in a line, and the others are ended.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    signal.signal(signal.SIGTERM, stop)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    children: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(processes):
            command = [sys.executable, __file__, *arguments, "--rank", str(rank), "--coordinator", address]
            children.append(subprocess.Popen(command, env=environment))
        while None in (codes := [child.poll() for child in children]) and not any(codes):
            time.sleep(0.1)
        for rank, code in enumerate(codes):
            if code:
                told = signal.Signals(-code).name if code < 0 else f"exit code {code}"
                print(f"\nrank {rank} has ended with {told}; the others are ended too", file=sys.stderr)
                return 2 if code == 2 else 1
        return 0
    finally:
        for child in children:
            child.kill()
            child.wait()


def stop(number: int, frame: FrameType | None) -> None:
    """End this process as an error does, so that `run` ends the others."""
    sys.exit(128 + number)


def main() -> None:
    """Start the processes, or be one of them."""
    # Without a usage, an error is one line.
    parser = argparse.ArgumentParser(description=__doc__, usage=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="20 steps, which takes seconds")
    parser.add_argument("--steps", type=int, metavar="N", help="the number of steps; 200 if not given")
    parser.add_argument("--every", type=int, metavar="N", default=20, help="steps between two checkpoints")
    parser.add_argument("--folder", type=Path, metavar="FOLDER", help="where checkpoints are kept; none if not given")
    parser.add_argument("--processes", type=int, metavar="N", help="the number of processes")
    parser.add_argument("--devices", type=int, metavar="N", default=4, help="of each process, if it has a CPU only")
    parser.add_argument("--rank", type=int, metavar="I", help="be this one of the processes, from 0")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="where the process of rank 0 is found")
    arguments = parser.parse_args()
    for name in ("steps", "every", "processes", "devices"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    by_hand = arguments.rank is not None
    if by_hand != (arguments.coordinator is not None) or (by_hand and arguments.processes is None):
        parser.error("--rank and --coordinator are given together, and with --processes")
    if by_hand and not 0 <= arguments.rank < arguments.processes:
        parser.error(f"--rank must be from 0 to {arguments.processes - 1}, got {arguments.rank}")
    if arguments.processes and (BATCH % (arguments.processes * arguments.devices)):
        parser.error(f"--processes times --devices must divide the batch of {BATCH}")
    if arguments.processes and not by_hand:
        sys.exit(run(arguments.processes, sys.argv[1:]))

    jax.config.update("jax_num_cpu_devices", arguments.devices)  # before anything asks for a device
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if by_hand:
        jax.distributed.initialize(
            arguments.coordinator, arguments.processes, arguments.rank, heartbeat_timeout_seconds=HEARTBEAT
        )
    else:
        try:
            jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT)
        except ValueError:  # no address of a coordinator
            parser.error("no Slurm, Kubernetes or TPU pod has started this process; give --processes 2")
    try:
        devices = jax.devices()
    except RuntimeError as error:
        parser.error(f"processes cannot exchange arrays here, which needs gloo on a CPU ({error})")
    if BATCH % len(devices):
        parser.error(f"the {len(devices)} devices must divide the batch of {BATCH}")
    here = f"{jax.local_device_count()} of {len(devices)} devices"
    say(f"rank {jax.process_index()} of {jax.process_count()} is process {os.getpid()} with {here}")
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,))
    try:
        train(mesh, arguments.steps or (20 if arguments.quick else 200), arguments.every, arguments.folder)
    except ValueError as error:
        if "restore:" not in str(error) and "Checkpoints:" not in str(error):
            raise
        parser.error(str(error))
    jax.distributed.shutdown()  # waits for the others


if __name__ == "__main__":
    main()
