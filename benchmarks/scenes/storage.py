"""A step with moments or weights in fewer bits."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import optax

import jaxopt_adam
from benchmarks import work
from benchmarks.contest import Case, Scene
from jaxopt_adam.storage import Blockwise, StorageName

MOMENTS: dict[StorageName, float | None] = {"float32": None, "bfloat16": 0.75, "int8": 1.2, "int4": 1.3}
"""The ratios to optax's float32 step that steps should not exceed."""


def cases(quick: bool) -> Iterator[Case]:
    """AdamW on a matrix."""
    shapes = {"w": (1024, 4096) if quick else (4096, 4096)}
    seconds = 1 if quick else 3
    contestants = {"optax.adamw": work.step(optax.adamw(1e-3), shapes)}
    contestants |= {f"adamw, {name}": work.step(jaxopt_adam.adamw(1e-3, moments=name), shapes) for name in MOMENTS}
    for bits in (8, 4):
        made = jaxopt_adam.adamw(1e-3, moments=Blockwise(bits, rounding="nearest"))
        contestants[f"adamw, int{bits}, to the nearest"] = work.step(made, shapes)
    if jax.default_backend() == "gpu":
        for implementation in ("xla", "pallas"):
            made = jaxopt_adam.adamw(1e-3, moments=Blockwise(8, implementation=implementation))
            contestants[f"adamw, int8, {implementation}"] = work.step(made, shapes)
    contestants |= {
        "torchao's AdamW8bit": work.torch_step(work.of_module("torchao.optim", "AdamW8bit"), shapes),
        "torchao's AdamW4bit": work.torch_step(work.of_module("torchao.optim", "AdamW4bit"), shapes),
        "bitsandbytes' AdamW8bit": work.torch_step(work.of_module("bitsandbytes.optim", "AdamW8bit"), shapes),
        "a plain loop over the bytes of float32": work.copy(shapes),
    }
    most = {f"adamw, {name}": ratio for name, ratio in MOMENTS.items() if ratio}
    yield Case("moments in fewer bits", contestants, "optax.adamw", seconds, most=most)
    made = jaxopt_adam.adamw(1e-3)
    contestants = {
        "optax.adamw, float32 weights": work.step(optax.adamw(1e-3), shapes),
        "optax.adamw": work.step(optax.adamw(1e-3), shapes, jnp.bfloat16),
        "adamw": work.step(made, shapes, jnp.bfloat16),
        "master_weights(adamw)": work.step(jaxopt_adam.master_weights(made), shapes, jnp.bfloat16),
        "stochastic_rounding(adamw)": work.step(jaxopt_adam.stochastic_rounding(made), shapes, jnp.bfloat16),
    }
    yield Case("bfloat16 weights", contestants, "optax.adamw", seconds)


SCENE = Scene(
    "storage",
    "Moments and weights in fewer bits",
    "The AdamW step on one matrix. Codes are for memory and not for speed: such a step moves fewer bytes and does more "
    "arithmetic. Temporaries are what the compiled step needs besides its arguments.",
    cases,
)
