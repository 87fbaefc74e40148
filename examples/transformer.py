"""A small transformer that learns to write like Python's manual, on many devices: python examples/transformer.py.

The layout says what each device holds. "replicated": all weights and the whole state. "zero1": all weights and a part
of the state. "fsdp": a part of both. With --folder the run is saved from time to time. If it is killed, the same
command resumes from the newest complete step, with this layout or another and on any number of devices. Without an
accelerator the program makes virtual devices of the CPU. It needs orbax: pip install "jaxopt-adam[checkpoint]".
"""

import argparse
import contextlib
import functools
import sys
import time
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxopt_adam import Optimizer, abstract_state, adamw, chain, nbytes
from jaxopt_adam.checkpoint import Checkpoints
from jaxopt_adam.lifted import clip_by_global_norm
from jaxopt_adam.schedules import warmup_cosine_decay_schedule

HEADS = 4
BATCH = 32
PROGRESS = 10  # steps between two lines of progress
LAYOUTS = ("fsdp", "zero1", "replicated")

Params = dict[str, Any]


class Size(NamedTuple):
    """The size of a network, and of the pieces of text that it sees."""

    width: int = 128
    layers: int = 4
    length: int = 64


TEXT = np.frombuffer("\n".join(topics.values()).encode("ascii", "ignore"), np.uint8)


def matrices(params: Params) -> Any:
    """True for what decays: tables and matrices, but no scales."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: "scale" not in jax.tree_util.keystr(path), params)


def recipe(steps: int, moments: str) -> Optimizer:
    """AdamW with clipped gradients; the learning rate warms up in a tenth of the steps, and then decays."""
    rate = warmup_cosine_decay_schedule(0.0, 3e-3, warmup_steps=0.1 * steps, decay_steps=steps, end_value=3e-5)
    rule = adamw(rate, b2=0.99, weight_decay=0.1, mask=matrices, moments=moments)  # pyright: ignore[reportArgumentType]
    return chain(clip_by_global_norm(1.0), rule)


def network(size: Size) -> Params:
    """The parameters of a new network; those of its layers have a first axis of layers."""
    width, layers, length = size
    keys = iter(jax.random.split(jax.random.key(0), 8))
    normal = lambda *shape: jax.random.normal(next(keys), shape) / np.sqrt(shape[-2])
    return {
        "characters": 0.2 * normal(128, width),
        "positions": 0.2 * normal(length, width),
        "layers": {
            "attention_scale": jnp.ones((layers, width)),
            "attention_in": normal(layers, width, 3 * width),
            "attention_out": normal(layers, width, width) / np.sqrt(2 * layers),
            "mlp_scale": jnp.ones((layers, width)),
            "mlp_in": normal(layers, width, 4 * width),
            "mlp_out": normal(layers, 4 * width, width) / np.sqrt(2 * layers),
        },
        "scale": jnp.ones(width),
        "head": normal(width, 128),
    }


def normalized(x: Array, scale: Array) -> Array:
    """RMSNorm (Zhang & Sennrich, 2019)."""
    return scale * x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)


def logits(params: Params, tokens: Array) -> Array:
    """The logits of each next character, of shape (batch, length, 128); tokens have shape (batch, length)."""

    def layer(x: Array, params: Params) -> tuple[Array, None]:
        # Each device gets the whole of a layer when it is the layer's turn. Without parts there is nothing to do.
        params = jax.lax.with_sharding_constraint(params, PartitionSpec())
        inputs = normalized(x, params["attention_scale"]) @ params["attention_in"]
        query, key, value = jnp.split(inputs.reshape(*x.shape[:2], HEADS, -1), 3, axis=-1)
        seen = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        x = x + seen.reshape(x.shape) @ params["attention_out"]
        hidden = jax.nn.gelu(normalized(x, params["mlp_scale"]) @ params["mlp_in"])
        return x + hidden @ params["mlp_out"], None

    x = params["characters"][tokens] + params["positions"]
    x, _ = jax.lax.scan(layer, x, params["layers"])
    return normalized(x, params["scale"]) @ params["head"]


def cost(params: Params, text: Array) -> Array:
    """The mean cross-entropy of each next character in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, text[:, :-1]), text[:, 1:]).mean()


def batch(step: int, length: int) -> np.ndarray:
    """Pieces of the text. They depend on the step only, so that a resumed training sees what it would have seen."""
    starts = np.random.default_rng(step).integers(0, len(TEXT) - length, BATCH)
    return TEXT[starts[:, None] + np.arange(length + 1)].astype(np.int32)


@jax.jit
def written(params: Params, key: Array) -> Array:
    """Characters that the network writes after a new line."""

    def write(tokens: Array, given: tuple[Array, Array]) -> tuple[Array, None]:
        at, key = given
        choice = jax.random.categorical(key, logits(params, tokens[None, :-1])[0, at] / 0.7)
        return tokens.at[at + 1].set(choice), None

    length = len(params["positions"])
    tokens = jnp.full(length + 1, ord("\n"))
    return jax.lax.scan(write, tokens, (jnp.arange(length), jax.random.split(key, length)))[0]


def abstract(optimizer: Optimizer, size: Size, mesh: Mesh, layout: str) -> dict[str, Any]:
    """The shapes, dtypes and shardings of the weights and of the state in a layout."""

    def placed(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        # The longest axis that the devices divide is divided. The axis of layers stays whole.
        axes = range(1 if path[0].key == "layers" else 0, leaf.ndim)
        divisible = [axis for axis in axes if leaf.shape[axis] % mesh.size == 0]
        longest = max(divisible, key=leaf.shape.__getitem__, default=None)
        spec = PartitionSpec(*(("data" if axis == longest else None) for axis in range(leaf.ndim)))
        spec = spec if layout == "fsdp" else PartitionSpec()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    params = jax.tree_util.tree_map_with_path(placed, jax.eval_shape(functools.partial(network, size)))
    return {"params": params, "state": abstract_state(optimizer, params, cut="data" if layout == "zero1" else None)}


def curve(losses: dict[int, float]) -> str:
    """A line for each of about ten of the losses, with a bar."""
    chosen = sorted(losses)[:: -max(1, len(losses) // 10)][::-1]
    return "\n".join(f"step {step:5}  loss {losses[step]:.3f}  {'█' * round(10 * losses[step])}" for step in chosen)


def train(size: Size, mesh: Mesh, layout: str, moments: str, steps: int, every: int, folder: Path | None) -> Params:
    """Start or resume a training run, and print its results.

    Args:
        size: the size of the network.
        mesh: the devices, along an axis ``data``.
        layout: one of `LAYOUTS`.
        moments: the storage of the moments.
        steps: the number of steps.
        every: the number of steps between two checkpoints.
        folder: the folder of the checkpoints; None for none.

    Returns:
        The weights.
    """
    optimizer = recipe(steps, moments)
    like = abstract(optimizer, size, mesh, layout)
    where = jax.tree.map(lambda leaf: leaf.sharding, like)
    whole = NamedSharding(mesh, PartitionSpec())
    by_rows = NamedSharding(mesh, PartitionSpec("data"))

    @functools.partial(jax.jit, donate_argnums=(1, 2), out_shardings=(where["params"], where["state"], whole))
    def step(optimizer: Optimizer, params: Params, state: Any, text: Array) -> tuple[Any, Any, Array]:
        value, gradients = jax.value_and_grad(cost)(params, text)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    losses: dict[int, float] = {}
    saving = (
        contextlib.nullcontext() if folder is None else Checkpoints(folder, optimizer, known={"matrices": matrices})
    )
    with saving as checkpoints:  # waits for the last save
        # With another number of steps the schedule is another too, and the script's is meant.
        resumed = None if checkpoints is None else checkpoints.restore(like, numbers="script")
        if resumed is None:
            start = jax.jit(network, static_argnums=0, out_shardings=where["params"])
            first, params = 0, start(size)
            state = jax.jit(optimizer.init, out_shardings=where["state"])(params)
        else:
            first, params, state = resumed.step, resumed.tree["params"], resumed.tree["state"]
            for skipped, reason in resumed.skipped.items():
                print(f"step {skipped} is not whole: {reason}")
            print(f"resumed at step {first}", flush=True)
        began = time.perf_counter()
        for number in range(first, steps):
            params, state, value = step(optimizer, params, state, jax.device_put(batch(number, size.length), by_rows))
            losses[number + 1] = float(value)  # and wait: many unfinished steps can deadlock virtual devices
            if number == first:
                began = time.perf_counter()  # the first step was compiled
            if number % PROGRESS == 0 or number == steps - 1:
                print(f"\rstep {number + 1} of {steps}, loss {value:.3f}", end="", file=sys.stderr, flush=True)
            if checkpoints and ((number + 1) % every == 0 or number == steps - 1):
                checkpoints.save(number + 1, {"params": params, "state": state})
        seconds = time.perf_counter() - began
    print(file=sys.stderr)
    if losses:
        print(curve(losses))
        print(f"loss of the last step: {losses[steps]:.6f}")
        print(f"{(len(losses) - 1) / seconds:.2f} steps a second")
    sizes = [nbytes(tree, on_each_device=True) for tree in (params, state)]
    print(f"{layout} on {mesh.size} devices, bytes on each: {sizes[0]:,} of weights, {sizes[1]:,} of state")
    return params


def main() -> None:
    """Train, and print a sample of what the network writes."""
    # Without a usage, an error is one line.
    parser = argparse.ArgumentParser(description=__doc__, usage=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="40 steps of a smaller network, which takes seconds")
    parser.add_argument("--devices", type=int, metavar="N", help="all accelerators, or 8 of the CPU, if not given")
    parser.add_argument("--layout", choices=LAYOUTS, default="fsdp", help="what each device holds")
    parser.add_argument("--moments", choices=("float32", "bfloat16", "int8", "int4"), default="float32")
    parser.add_argument("--steps", type=int, metavar="N", help="the number of steps; 400 if not given")
    parser.add_argument("--every", type=int, metavar="N", default=20, help="steps between two checkpoints")
    parser.add_argument("--folder", type=Path, metavar="FOLDER", help="where checkpoints are kept; none if not given")
    arguments = parser.parse_args()
    for name in ("devices", "steps", "every"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    jax.config.update("jax_num_cpu_devices", arguments.devices or 8)  # before anything asks for a device
    devices = jax.devices()[: arguments.devices]
    if len(devices) < (arguments.devices or 1):
        parser.error(f"--devices: only {len(devices)} of {arguments.devices} are there ({devices[0].platform})")
    if BATCH % len(devices):
        parser.error(f"--devices must divide the batch of {BATCH}, got {len(devices)}")

    size = Size(width=64, layers=2, length=32) if arguments.quick else Size()
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
    steps = arguments.steps or (40 if arguments.quick else 400)
    with jax.set_mesh(mesh):
        try:
            params = train(size, mesh, arguments.layout, arguments.moments, steps, arguments.every, arguments.folder)
        except ValueError as error:
            if "restore:" not in str(error) and "Checkpoints:" not in str(error):
                raise
            parser.error(str(error))
        print("a sample:" + bytes(np.asarray(written(params, jax.random.key(1)), np.uint8)).decode())


if __name__ == "__main__":
    main()
