"""Data parallelism on digits, with the optimizer's state cut over the devices: python examples/data_parallel.py.

Every device has the whole network and a part of each batch, and XLA adds up the gradients. The state of the optimizer
is cut (ZeRO-1; Rajbhandari et al., 2020): a device keeps the moments of its part of the weights, updates that part, and
gets the other parts from the other devices. With a whole state each device has all moments and does the whole update.
The program trains both ways, shows what each device holds, and compares the weights. Without an accelerator it makes
virtual devices of the CPU.
"""

import argparse
import functools
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from jaxopt_adam import adamw, placement, state_shardings
from jaxopt_adam.lab.data import DataError, Digits, embedded, from_folder, orders

HIDDEN = 256
BATCH = 256
PROGRESS = 10  # steps between two lines of progress
LAYOUTS = {"cut": "data", "whole": None}  # the axis of the mesh over which the state is cut

Params = dict[str, Array]


def network(key: Array, pixels: int) -> Params:
    """The parameters of a new network with two hidden layers."""
    first, second, third = jax.random.split(key, 3)
    return {
        "w1": jax.random.normal(first, (pixels, HIDDEN)) * (2 / pixels) ** 0.5,
        "b1": jnp.zeros(HIDDEN),
        "w2": jax.random.normal(second, (HIDDEN, HIDDEN)) * (2 / HIDDEN) ** 0.5,
        "b2": jnp.zeros(HIDDEN),
        "w3": jax.random.normal(third, (HIDDEN, 10)) * (2 / HIDDEN) ** 0.5,
        "b3": jnp.zeros(10),
    }


def logits(params: Params, images: ArrayLike) -> Array:
    """The outputs of the network, one for each digit."""
    hidden = jax.nn.relu(jnp.asarray(images) @ params["w1"] + params["b1"])
    hidden = jax.nn.relu(hidden @ params["w2"] + params["b2"])
    return hidden @ params["w3"] + params["b3"]


def cost(params: Params, images: Array, labels: Array) -> Array:
    """The mean cross-entropy in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, images), labels).mean()


def train(mesh: Mesh, layout: str, digits: Digits, steps: int) -> tuple[Params, Any]:
    """The weights and the state after a training run.

    Args:
        mesh: the devices, along an axis ``data``.
        layout: ``"cut"`` or ``"whole"``, for the state.
        digits: the data.
        steps: the number of steps.
    """
    whole = NamedSharding(mesh, PartitionSpec())
    divided = NamedSharding(mesh, PartitionSpec("data"))
    optimizer = adamw(2e-3, weight_decay=0.01)
    images, labels = digits.train
    params = jax.jit(network, static_argnums=1, out_shardings=whole)(jax.random.key(0), images.shape[1])
    shardings = state_shardings(optimizer, params, cut=LAYOUTS[layout])
    state = jax.jit(optimizer.init, out_shardings=shardings)(params)

    # The old weights and state are donated, and the new ones stay where they are.
    @functools.partial(jax.jit, donate_argnums=(0, 1), out_shardings=(whole, shardings, whole))
    def step(params: Params, state: Any, images: Array, labels: Array) -> tuple[Any, Any, Array]:
        value, gradients = jax.value_and_grad(cost)(params, images, labels)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    for number, batch in enumerate(orders(len(labels), steps, BATCH, seed=0)):
        # Each device gets its part of the batch.
        part = jax.device_put((images[batch], labels[batch]), divided)
        params, state, value = step(params, state, *part)
        value.block_until_ready()  # many unfinished steps can deadlock virtual devices
        if number % PROGRESS == 0 or number == steps - 1:
            message = f"\r{layout} state, step {number + 1} of {steps}, cost {value:.3f}"
            print(message, end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return params, state


def main() -> None:
    """Train with each layout, show what the devices hold, and compare the weights."""
    # Without a usage, an error is one line.
    parser = argparse.ArgumentParser(description=__doc__, usage=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="20 steps, which takes seconds")
    parser.add_argument("--devices", type=int, metavar="N", help="all accelerators, or 8 of the CPU, if not given")
    parser.add_argument("--state", choices=LAYOUTS, help="train with this layout only")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="IDX files, such as MNIST's, in place of sklearn's")
    arguments = parser.parse_args()
    if arguments.devices is not None and arguments.devices < 1:
        parser.error(f"--devices must be at least 1, got {arguments.devices}")
    jax.config.update("jax_num_cpu_devices", arguments.devices or 8)  # before anything asks for a device
    devices = jax.devices()[: arguments.devices]
    if len(devices) < (arguments.devices or 1):
        parser.error(f"--devices: only {len(devices)} of {arguments.devices} are there ({devices[0].platform})")
    if BATCH % len(devices):
        parser.error(f"--devices must divide the batch of {BATCH}, got {len(devices)}")
    try:
        digits = from_folder(arguments.data) if arguments.data else embedded()
    except DataError as error:
        parser.error(str(error))

    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
    steps = 20 if arguments.quick else 200
    ends = {}
    for layout in [arguments.state] if arguments.state else LAYOUTS:
        params, state = train(mesh, layout, digits, steps)
        ends[layout] = jax.device_get(params)
        accuracy = np.mean(np.argmax(logits(ends[layout], digits.test[0]), axis=1) == digits.test[1])
        where = placement(state)
        print(f"\n{layout} state on {len(devices)} devices\n{where}")
        print(f"{layout} state: {where.nbytes_on_each_device:,} bytes on each device, test accuracy {accuracy:.1%}")
    if len(ends) == 2:
        cut, whole = (jax.tree.leaves(ends[layout]) for layout in LAYOUTS)
        same = all(np.array_equal(one, other) for one, other in zip(cut, whole, strict=True))
        largest = max(np.abs(one - other).max() for one, other in zip(cut, whole, strict=True))
        print("\nThe weights are the same to the bit." if same else f"\nThe weights differ by up to {largest:.1e}.")


if __name__ == "__main__":
    main()
