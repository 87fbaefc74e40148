"""A flax transformer in bfloat16 with moments in 8 bits, sharded over a mesh: python examples/fsdp_nnx.py.

All parts of training a large model, at a small size. The mesh has two axes. Batches are divided along "data". Weights
are divided along "data" (FSDP) and along "model" (tensor parallelism), as they are annotated in the model, and the
state of the optimizer is divided as they are. Weights are bfloat16 with 8 extra bits in the state. Gradients of several
batches are accumulated and clipped, the learning rate warms up and decays, and figures of the steps are logged. With
--folder the run is saved. If it is killed, the same command resumes it. Without an accelerator the program makes
virtual devices of the CPU. It needs flax and orbax: pip install flax "jaxopt-adam[checkpoint]".
"""

import argparse
import contextlib
import functools
import sys
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxopt_adam import Optimizer, abstract_state, adamw, chain, master_weights, nbytes, observe, summary
from jaxopt_adam.checkpoint import Checkpoints
from jaxopt_adam.lifted import MultiSteps, clip_by_global_norm
from jaxopt_adam.schedules import warmup_cosine_decay_schedule

HEADS = 4
BATCH = 16
ACCUMULATED = 4  # batches of an update
PROGRESS = 10  # updates between two lines of the log
LOGGED = ("gradient_norm", "update_to_weight", "quantization_error")

TEXT = np.frombuffer("\n".join(topics.values()).encode("ascii", "ignore"), np.uint8)
HELD_OUT = len(TEXT) // 20  # characters at the end, which are not trained on


class Size(NamedTuple):
    """The size of a network, and of the pieces of text that it sees."""

    width: int = 128
    layers: int = 4
    length: int = 64


# ----------------------------------------------------------------------------------------------------------- the model


def dense(inputs: int, outputs: int, axes: tuple[str, str], rngs: nnx.Rngs) -> nnx.Linear:
    """A matrix in bfloat16, with the axis of the mesh along which each of its axes is divided."""
    bfloat16: Any = jnp.bfloat16
    where = {"out_sharding": axes}
    return nnx.Linear(
        inputs, outputs, use_bias=False, dtype=bfloat16, param_dtype=bfloat16, kernel_metadata=where, rngs=rngs
    )


def by_rows(x: Array) -> Array:
    """Activations of which each device has its part of the batch: XLA gathers the weights rather than these."""
    return jax.lax.with_sharding_constraint(x, PartitionSpec("data"))


class Block(nnx.Module):
    """Attention and a network of two layers, each with a norm before it and added to what it got."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.attention_norm = nnx.RMSNorm(width, param_dtype=jnp.bfloat16, rngs=rngs)
        self.attention_in = dense(width, 3 * width, ("data", "model"), rngs)
        self.attention_out = dense(width, width, ("model", "data"), rngs)
        self.mlp_norm = nnx.RMSNorm(width, param_dtype=jnp.bfloat16, rngs=rngs)
        self.mlp_in = dense(width, 4 * width, ("data", "model"), rngs)
        self.mlp_out = dense(4 * width, width, ("model", "data"), rngs)

    def __call__(self, x: Array) -> Array:
        """The activations after the block, of the same shape (batch, length, width)."""
        inputs = self.attention_in(self.attention_norm(x)).reshape(*x.shape[:2], 3, HEADS, -1)
        query, key, value = (inputs[:, :, index] for index in range(3))
        seen = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        x = x + by_rows(self.attention_out(seen.reshape(x.shape)))
        return x + by_rows(self.mlp_out(nnx.gelu(self.mlp_in(self.mlp_norm(x)))))


class Transformer(nnx.Module):
    """Characters to the logits of each next character."""

    def __init__(self, size: Size, rngs: nnx.Rngs):
        normal, where = nnx.initializers.normal(0.05), {"out_sharding": ("data", "model")}
        table = functools.partial(nnx.Param, **where)
        self.characters = table(normal(rngs.params(), (128, size.width), jnp.bfloat16))
        self.positions = table(normal(rngs.params(), (size.length, size.width), jnp.bfloat16))
        self.blocks = nnx.List([Block(size.width, rngs) for _ in range(size.layers)])
        self.norm = nnx.RMSNorm(size.width, param_dtype=jnp.bfloat16, rngs=rngs)
        self.head = dense(size.width, 128, ("data", "model"), rngs)

    def __call__(self, tokens: Array) -> Array:
        """Float32 logits of shape (batch, length, 128) for tokens of shape (batch, length)."""
        x = by_rows(self.characters[...][tokens] + self.positions[...])
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)).astype(jnp.float32)


# -------------------------------------------------------------------------------------------------------- the training


def matrices(params: Any) -> Any:
    """True for what decays: matrices and tables, but no scales."""
    # No layers are stacked here. The scales of stacked layers have two axes, and need a mask by their names.
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def recipe(updates: int) -> Optimizer:
    """The optimizer, from the inside to the outside.

    AdamW with moments in 8 bits and a schedule; clipping; the figures of the steps; the mean gradient of several
    batches; and around all of them the further bits of the weights, so that everything inside is in float32.
    """
    rate = warmup_cosine_decay_schedule(0.0, 3e-3, warmup_steps=0.1 * updates, decay_steps=updates, end_value=3e-5)
    rule = adamw(rate, b2=0.99, weight_decay=0.1, mask=matrices, moments="int8")
    observed = observe(chain(clip_by_global_norm(1.0), rule))
    accumulated = MultiSteps(observed, every_k_schedule=ACCUMULATED)
    return master_weights(accumulated, bits=24)


def batch(number: int, length: int) -> np.ndarray:
    """Pieces of the text. They depend on the number only, so that a resumed training sees what it would have seen."""
    starts = np.random.default_rng(number).integers(0, len(TEXT) - HELD_OUT - length, BATCH)
    return TEXT[starts[:, None] + np.arange(length + 1)].astype(np.int32)


def held_out(length: int) -> np.ndarray:
    """Pieces of the text that is not trained on, evenly spread."""
    starts = np.linspace(len(TEXT) - HELD_OUT, len(TEXT) - length - 1, 4 * BATCH).astype(int)
    return TEXT[starts[:, None] + np.arange(length + 1)].astype(np.int32)


def train(size: Size, mesh: Mesh, updates: int, every: int, folder: Path | None) -> None:
    """Start or resume a training run, and print its results.

    Args:
        size: the size of the network.
        mesh: the devices, along the axes ``data`` and ``model``.
        updates: the number of updates, each of the gradients of several batches.
        every: the number of updates between two checkpoints.
        folder: the folder of the checkpoints; None for none.
    """
    # The shapes, dtypes and shardings of everything come first, without an array.
    optimizer = recipe(updates)
    make = functools.partial(Transformer, size)
    definition, shapes = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))), nnx.Param)
    params_like = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        shapes,
        nnx.get_named_sharding(shapes, mesh),
    )
    like = {"params": params_like, "state": abstract_state(optimizer, params_like)}
    where = jax.tree.map(lambda leaf: leaf.sharding, like)
    whole, along_data = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))

    def cost(params: Any, text: Array) -> Array:
        logits = nnx.merge(definition, params)(text[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, text[:, 1:]).mean()

    # The old weights and state are donated, and the new ones stay where they are.
    @functools.partial(jax.jit, donate_argnums=(1, 2), out_shardings=(where["params"], where["state"], whole))
    def step(optimizer: Optimizer, params: Any, state: Any, text: Array) -> tuple[Any, Any, Array]:
        value, gradients = jax.value_and_grad(cost)(params, text)
        changes, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, changes), state, value

    saving = (
        contextlib.nullcontext() if folder is None else Checkpoints(folder, optimizer, known={"matrices": matrices})
    )
    with saving as checkpoints:  # waits for the last save
        # With another number of updates the schedule is another too, and the script's is meant.
        resumed = None if checkpoints is None else checkpoints.restore(like, numbers="script")
        if resumed is None:
            # Weights and state are born in their places: no device ever has all of them.
            start = jax.jit(lambda: nnx.state(make(nnx.Rngs(0)), nnx.Param), out_shardings=where["params"])
            first, params = 0, start()
            state = jax.jit(optimizer.init, out_shardings=where["state"])(params)
        else:
            first, params, state = resumed.step, resumed.tree["params"], resumed.tree["state"]
            for skipped, reason in resumed.skipped.items():
                print(f"update {skipped} is not whole: {reason}")
            print(f"resumed at update {first}", flush=True)
        for update in range(first, updates):
            values, rate = [], optimizer.current_learning_rate(state)
            for number in range(ACCUMULATED * update, ACCUMULATED * (update + 1)):
                text = jax.device_put(batch(number, size.length), along_data)
                params, state, value = step(optimizer, params, state, text)
                values.append(float(value))  # and wait: many unfinished steps can deadlock virtual devices
            is_last = update == updates - 1
            is_logged = update % PROGRESS == 0 or is_last
            # On a terminal, one line counts until the log has one. A file gets a line for each update.
            begin, end = ("\r", "\n" if is_logged else "") if sys.stderr.isatty() else ("", "\n")
            print(f"{begin}update {update + 1} of {updates}", end=end, file=sys.stderr, flush=True)
            if is_logged:
                observed, found = summary(state), {"loss": np.mean(values), "learning_rate": rate}
                found |= {name: figure for name, figure in observed.items() if name in LOGGED}
                line = ", ".join(f"{name} {each:.3g}" for name, each in found.items())
                # Large models are not observed at each update.
                print(f"update {update + 1}: {line} (figures of update {observed['step']})")
            if checkpoints and ((update + 1) % every == 0 or is_last):
                checkpoints.save(update + 1, {"params": params, "state": state})
    loss = jax.jit(cost, out_shardings=whole)(params, jax.device_put(held_out(size.length), along_data))
    for name, tree in (("weights", params), ("state", state)):
        print(f"{name}: {nbytes(tree, on_each_device=True):,} of {nbytes(tree):,} bytes on each of {mesh.size} devices")
    print(f"loss on text that was not trained on: {loss:.6f}")


def main() -> None:
    """Read the arguments and train."""
    # Without a usage, an error is one line.
    parser = argparse.ArgumentParser(description=__doc__, usage=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="12 updates of a smaller network")
    parser.add_argument("--devices", type=int, metavar="N", help="all accelerators, or 8 of the CPU, if not given")
    parser.add_argument("--model", type=int, metavar="N", help="devices along the axis model; 2 if that divides them")
    parser.add_argument("--updates", type=int, metavar="N", help="the number of updates; 200 if not given")
    parser.add_argument("--every", type=int, metavar="N", default=10, help="updates between two checkpoints")
    parser.add_argument("--folder", type=Path, metavar="FOLDER", help="where checkpoints are kept; none if not given")
    arguments = parser.parse_args()
    for name in ("devices", "model", "updates", "every"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    jax.config.update("jax_num_cpu_devices", arguments.devices or 8)  # before anything asks for a device
    devices = jax.devices()[: arguments.devices]
    if len(devices) < (arguments.devices or 1):
        parser.error(f"--devices: only {len(devices)} of {arguments.devices} are there ({devices[0].platform})")
    model = arguments.model or (1 if len(devices) % 2 else 2)
    if HEADS % model or len(devices) % model:
        parser.error(f"--model must divide the {HEADS} heads and the {len(devices)} devices, got {model}")
    if BATCH % (len(devices) // model):
        parser.error(f"--devices over --model must divide the batch of {BATCH}, got {len(devices) // model}")

    size = Size(width=64, layers=1, length=32) if arguments.quick else Size()
    shape = (len(devices) // model, model)
    mesh = jax.make_mesh(shape, ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=devices)
    with jax.set_mesh(mesh):
        try:
            train(size, mesh, arguments.updates or (12 if arguments.quick else 200), arguments.every, arguments.folder)
        except ValueError as error:
            if "restore:" not in str(error) and "Checkpoints:" not in str(error):
                raise
            parser.error(str(error))


if __name__ == "__main__":
    main()
