"""The time of a step as parameters, leaves or devices grow in number."""

from collections.abc import Iterator

import jax
import optax
from jax.sharding import NamedSharding, PartitionSpec

import jaxopt_adam
from benchmarks import work
from benchmarks.contest import Case, Scene


def cases(quick: bool) -> Iterator[Case]:
    """Steps of more and more parameters, then of more and more leaves, then on more and more devices."""
    ours, theirs = jaxopt_adam.adam(1e-3), optax.adam(1e-3)
    for exponent in range(4, 7 if quick else 9):
        shapes = {"w": (10 ** (exponent - 3), 1000)}
        contestants = {"adam": work.step(ours, shapes), "optax.adam": work.step(theirs, shapes)}
        yield Case(f"parameters: {10**exponent}", contestants, "optax.adam", seconds=0.3, rounds=7)
    for leaves in (1, 4, 16, 64) if quick else (1, 4, 16, 64, 250, 1000, 2000):
        shapes = work.alike(leaves, 4096)
        contestants = {"adam": work.step(ours, shapes), "optax.adam": work.step(theirs, shapes)}
        yield Case(f"leaves: {leaves}", contestants, "optax.adam", seconds=0.3, rounds=7)
    for devices in (1, 2, 4, 8):
        if devices <= len(jax.devices()):
            mesh = jax.make_mesh((devices,), ("x",), devices=jax.devices()[:devices])
            rows, shapes = NamedSharding(mesh, PartitionSpec("x")), {"w": (512 if quick else 4096, 4096)}
            contestants = {
                "adam": work.step(ours, shapes, sharding=rows),
                "optax.adam": work.step(theirs, shapes, sharding=rows),
            }
            yield Case(f"devices: {devices}", contestants, "optax.adam", seconds=0.3, rounds=7)


SCENE = Scene(
    "growth",
    "As work grows",
    "A step of more and more parameters in one leaf, of more and more leaves of 4,096 elements, and of one matrix "
    "divided among more and more virtual devices, which share the cores. The fitted exponent is that of time in the "
    "number: of parameters from 10⁶ on, of leaves from 16 on.",
    cases,
    processes=2,
    devices=8,
)
