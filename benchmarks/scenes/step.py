"""One step in float32."""

from collections.abc import Iterator

import optax

import jaxopt_adam
from benchmarks import work
from benchmarks.contest import Case, Scene


def cases(quick: bool) -> Iterator[Case]:
    """The same step on trees of several forms."""
    trees = {
        "one leaf, 32 M": {"w": (8192, 4096)},
        "transformer, 264 leaves, 74 M": work.transformer(),
        "1,000 leaves of 32,000": work.alike(1000, 32_000),
        "2,000 leaves of 256": work.alike(2000, 256),
    }
    if quick:
        trees = {"one leaf, 4 M": {"w": (1024, 4096)}, "60 leaves, 2 M": work.transformer(5, 176)}
    for name, shapes in trees.items():
        contestants = {
            "adam": work.step(jaxopt_adam.adam(1e-3), shapes),
            "optax.adam": work.step(optax.adam(1e-3), shapes),
            "torch.optim.Adam, fused": work.torch_step(work.torch_adam(fused=True), shapes),
            "torch.optim.Adam, foreach": work.torch_step(work.torch_adam(fused=False), shapes),
            "a plain loop over the same bytes": work.copy(shapes),
        }
        yield Case(name, contestants, "optax.adam", seconds=1, most={"adam": 1.0})


SCENE = Scene(
    "step",
    "A step in float32",
    "One Adam step with the old arrays donated. Such a step does little arithmetic and waits for the memory: it reads "
    "parameters, gradients and two moments and writes all but the gradients. The plain loop moves as many bytes.",
    cases,
)
