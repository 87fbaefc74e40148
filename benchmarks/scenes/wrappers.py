"""The cost of what is put around an optimizer."""

from collections.abc import Iterator

import jax.numpy as jnp

import jaxopt_adam
from benchmarks import work
from benchmarks.contest import Case, Scene


def cases(quick: bool) -> Iterator[Case]:
    """Each wrapper beside the bare step."""
    adamw = jaxopt_adam.adamw(1e-3)
    small, large = {"w": (640, 1280)}, {"w": (1024, 4096) if quick else (4096, 4096)}
    seconds = 0.5 if quick else 1.0
    for name, shapes, most in (("0.8 M", small, 1.25), ("4 M" if quick else "16.8 M", large, 1.5)):
        contestants = {
            "adamw": work.step(adamw, shapes),
            "observe(adamw, every=1)": work.step(jaxopt_adam.observe(adamw, every=1), shapes),
            "observe(adamw)": work.step(jaxopt_adam.observe(adamw), shapes),
            "checked(adamw), off": work.step(jaxopt_adam.checked(adamw), shapes),
            "cautious(adamw)": work.step(jaxopt_adam.cautious(adamw), shapes),
        }
        limits = {"observe(adamw, every=1)": most, "checked(adamw), off": 1.02}
        yield Case(f"around a step of {name}", contestants, "adamw", seconds, most=limits)
    contestants = {
        "adamw": work.step(adamw, large, jnp.bfloat16),
        "master_weights(adamw)": work.step(jaxopt_adam.master_weights(adamw), large, jnp.bfloat16),
        "stochastic_rounding(adamw)": work.step(jaxopt_adam.stochastic_rounding(adamw), large, jnp.bfloat16),
    }
    yield Case("around a step of bfloat16 weights", contestants, "adamw", seconds, most={"master_weights(adamw)": 1.3})


SCENE = Scene(
    "wrappers",
    "Wrappers",
    "A step with a wrapper beside the bare step. Without `every` most steps are not observed if a leaf is large.",
    cases,
)
