"""Small steps, whose time is not arithmetic."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import optax

import jaxopt_adam
from benchmarks import work
from benchmarks.contest import Case, Parts, Prepared, Scene, timed

MANY = 20
"""Steps in a row whose time is one measurement."""


def repeated(optimizer: Any, shapes: work.Shapes, as_argument: bool = False) -> Callable[[], Prepared]:
    """A contestant: a compiled step, whose time is that of its dispatch."""

    def prepare() -> Prepared:
        grads = work.numbers(shapes, seed=1)
        carry: Any = work.numbers(shapes), optimizer.init(grads)
        if as_argument:
            jitted = jax.jit(work.stepped, donate_argnums=(1, 2))
            function = lambda *given: jitted(optimizer, *given)
        else:
            function = jax.jit(lambda *given: work.stepped(optimizer, *given), donate_argnums=(0, 1))

        def run() -> Parts:
            nonlocal carry
            start = time.perf_counter()
            for _ in range(MANY):
                carry = function(*carry, grads)
            jax.block_until_ready(carry)
            return {"step": (time.perf_counter() - start) / MANY}

        return Prepared(run)

    return prepare


def eager(optimizer: Any, shapes: work.Shapes) -> Callable[[], Prepared]:
    """A contestant: `update` without jit."""

    def prepare() -> Prepared:
        params = work.numbers(shapes)
        state = optimizer.init(params)
        return Prepared(timed(lambda: optimizer.update(params, state, params)))

    return prepare


def eager_init(optimizer: Any, shapes: work.Shapes) -> Callable[[], Prepared]:
    """A contestant: `init` without jit."""

    def prepare() -> Prepared:
        params = work.numbers(shapes)
        return Prepared(timed(lambda: optimizer.init(params)))

    return prepare


def cases(quick: bool) -> Iterator[Case]:
    """Few and many small leaves."""
    ours, theirs = jaxopt_adam.adam(1e-3), optax.adam(1e-3)
    seconds = 0.3 if quick else 1.0
    for leaves in (2, 10, 144):
        shapes = work.alike(leaves, 64)
        contestants = {
            "adam": repeated(ours, shapes),
            "adam as an argument": repeated(ours, shapes, as_argument=True),
            "adam as an argument, on the device": repeated(jax.device_put(ours), shapes, as_argument=True),
            "optax.adam": repeated(theirs, shapes),
        }
        most = dict.fromkeys(list(contestants)[1:3], 1.02 if leaves == 144 else 1.1)
        yield Case(f"a jitted step of {leaves} leaves", contestants, "optax.adam", seconds, most=most)
    for leaves in (2, 10) if quick else (2, 10, 144):
        shapes = work.alike(leaves, 64)
        contestants = {"adam": eager(ours, shapes), "optax.adam": eager(theirs, shapes)}
        yield Case(f"update of {leaves} leaves without jit", contestants, "optax.adam", seconds, most={"adam": 1.0})
    for leaves in (2, 100) if quick else (2, 1000):
        shapes = work.alike(leaves, 64)
        contestants = {"adam": eager_init(ours, shapes), "optax.adam": eager_init(theirs, shapes)}
        yield Case(f"init of {leaves:,} leaves without jit", contestants, "optax.adam", seconds, most={"adam": 1.0})


SCENE = Scene(
    "dispatch",
    "Small steps",
    "Steps of a few small leaves, whose time is that of calls: jitted, with the optimizer closed over or as an "
    "argument, and without jit.",
    cases,
)
