"""The time until a first step can run."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import optax

import jaxopt_adam
from benchmarks import work
from benchmarks.contest import Case, Parts, Prepared, Scene


def imported(module: str) -> Callable[[], Prepared]:
    """A contestant: the import of a module in a new process, whose bytecode is there as after an installation."""

    def prepare() -> Prepared:
        bytecode = tempfile.TemporaryDirectory()  # as long as `run` lives

        def run() -> Parts:
            environment = os.environ | {"PYTHONPYCACHEPREFIX": bytecode.name, "PYTHONDONTWRITEBYTECODE": ""}
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", f"import {module}"], check=True, env=environment)
            return {"step": time.perf_counter() - start}

        run()
        return Prepared(run)

    return prepare


def changed(make: Callable[[float], Any], as_argument: bool) -> Callable[[], Prepared]:
    """A contestant: the first step after the number that `make` takes was changed."""
    shapes = work.transformer(2, 64)

    def prepare() -> Prepared:
        params = work.numbers(shapes)
        state = make(1e-3).init(params)
        traces, rates = 0, iter(range(1, 10**9))

        @jax.jit
        def shared(*given: Any) -> Any:
            nonlocal traces
            traces += 1
            return work.stepped(*given)

        def run() -> Parts:
            optimizer: Any = make(1e-3 / next(rates))
            start = time.perf_counter()
            if as_argument:
                jax.block_until_ready(shared(optimizer, params, state, params))
            else:
                own = jax.jit(lambda *given: work.stepped(optimizer, *given))
                jax.block_until_ready(own(params, state, params))
            seconds = time.perf_counter() - start
            assert traces <= 1
            return {"step": seconds}

        return Prepared(run)

    return prepare


def cases(quick: bool) -> Iterator[Case]:
    """Trace, lower, compile; a changed number; import."""
    leaves, few, many = (24, 24, 60) if quick else (264, 264, 1000)
    transformer = work.transformer(leaves // 12, 64)
    # Codes need leaves of a certain size, and take long to compile.
    wide, wide_leaves = work.transformer(leaves // 36 or 1, 128), 12 * (leaves // 36 or 1)
    own = {str(index): (1 + index, 3) for index in range(few)}
    trees = {
        f"transformer, {leaves} leaves": transformer,
        f"{many:,} leaves of five shapes": work.alike(many, 60, 5),
        f"{few} leaves of {few} shapes": own,
    }
    for name, shapes in trees.items():
        contestants = {
            "adam": work.compilation(jaxopt_adam.adam(1e-3), shapes),
            "optax.adam": work.compilation(optax.adam(1e-3), shapes),
        }
        most = 0.85 if shapes is own else 0.6
        yield Case(name, contestants, "optax.adam", rounds=1, warm=False, most={"adam": most})
    stored = {"optax.adamw": optax.adamw(1e-3)}
    stored |= {f"adamw, {name}": jaxopt_adam.adamw(1e-3, moments=name) for name in ("bfloat16", "int8", "int4")}
    contestants = {name: work.compilation(optimizer, wide) for name, optimizer in stored.items()}
    most = {"adamw, int8": 4.0, "adamw, int4": 4.0}
    yield Case(
        f"moments in fewer bits, {wide_leaves} leaves", contestants, "optax.adamw", rounds=1, warm=False, most=most
    )
    for moments in ("float32", "int8"):
        made = jaxopt_adam.adamw(1e-3, moments=moments)
        contestants = {
            f"adamw, {moments}": work.compilation(made, wide),
            f"observe(adamw), {moments}": work.compilation(jaxopt_adam.observe(made), wide),
        }
        yield Case(
            f"observe, {moments}, {wide_leaves} leaves",
            contestants,
            f"adamw, {moments}",
            rounds=1,
            warm=False,
            most={f"observe(adamw), {moments}": 1.3},
        )
    contestants = {
        "adam as an argument": changed(jaxopt_adam.adam, True),
        "optax.adam": changed(optax.adam, False),
    }
    yield Case("the step after a changed learning rate, 24 leaves", contestants, "optax.adam", seconds=1, rounds=2)
    contestants = {"jaxopt_adam": imported("jaxopt_adam"), "optax": imported("optax")}
    yield Case("import", contestants, "optax", seconds=1, rounds=2, most={"jaxopt_adam": 1.05})


SCENE = Scene(
    "compilation",
    "The first step",
    "The time in which a step is traced, lowered and compiled, with empty caches; the first step after a changed "
    "learning rate, compilation included where there is one; and the time of the import in a new process.",
    cases,
    processes=3,
    cached=False,
)
