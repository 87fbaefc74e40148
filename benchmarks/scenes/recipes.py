"""Clipping, AdamW with a mask, warm-up and cosine: as data, and as a chain of optax."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxopt_adam
from benchmarks import work
from benchmarks.contest import Case, Prepared, Scene, timed
from benchmarks.scenes.compilation import changed
from benchmarks.scenes.dispatch import repeated
from jaxopt_adam import lifted, schedules

MEMBERS = 16


def matrices(params: Any) -> Any:
    """A mask of weight decay."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def ours(peak: Any = 1e-3) -> Any:
    """The recipe as data."""
    rate = schedules.warmup_cosine_decay_schedule(0.0, peak, 10, 100)
    return jaxopt_adam.chain(lifted.clip_by_global_norm(1.0), jaxopt_adam.adamw(rate, weight_decay=0.1, mask=matrices))


def theirs(peak: float = 1e-3) -> Any:
    """The same of optax."""
    rate = optax.warmup_cosine_decay_schedule(0.0, peak, 10, 100)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.1, mask=matrices))


def together(shapes: work.Shapes) -> Callable[[], Prepared]:
    """A contestant: a step of many members, each with a recipe and parameters of its own, in one program."""

    def prepare() -> Prepared:
        recipes = jax.vmap(ours)(jnp.linspace(1e-4, 1e-2, MEMBERS))
        params = jax.tree.map(lambda leaf: jnp.stack([leaf] * MEMBERS), work.numbers(shapes))
        state = jax.vmap(lambda recipe, own: recipe.init(own))(recipes, params)
        step = jax.jit(jax.vmap(work.stepped))
        return Prepared(timed(lambda: step(recipes, params, state, params)))

    return prepare


def one_by_one(shapes: work.Shapes) -> Callable[[], Prepared]:
    """A contestant: the same steps of optax, each in a program of its own."""

    def prepare() -> Prepared:
        params = work.numbers(shapes)
        members = [theirs(1e-4 * (1 + index)) for index in range(MEMBERS)]
        steps = [jax.jit(lambda *given, member=member: work.stepped(member, *given)) for member in members]
        states = [member.init(params) for member in members]
        return Prepared(timed(lambda: [step(params, state, params) for step, state in zip(steps, states, strict=True)]))

    return prepare


def cases(quick: bool) -> Iterator[Case]:
    """The first step, small steps, a changed number, a population."""
    layers = 2 if quick else 22
    shapes = work.transformer(layers, 64)
    contestants = {"recipe": work.compilation(ours(), shapes), "optax.chain": work.compilation(theirs(), shapes)}
    name = f"the first step of {12 * layers} leaves"
    yield Case(name, contestants, "optax.chain", rounds=1, warm=False, most={"recipe": 0.7})
    small = work.alike(10, 64)
    contestants = {
        "recipe": repeated(ours(), small),
        "recipe as an argument": repeated(ours(), small, as_argument=True),
        "recipe as an argument, on the device": repeated(jax.device_put(ours()), small, as_argument=True),
        "optax.chain": repeated(theirs(), small),
    }
    most = dict.fromkeys(list(contestants)[1:3], 1.1)
    yield Case("a jitted step of 10 leaves", contestants, "optax.chain", 0.3 if quick else 1.0, most=most)
    contestants = {"recipe as an argument": changed(ours, True), "optax.chain": changed(theirs, False)}
    yield Case("the step after a changed peak, 24 leaves", contestants, "optax.chain", seconds=1, rounds=2)
    contestants = {f"{MEMBERS} recipes in one program": together(small), "optax.chain": one_by_one(small)}
    yield Case(f"a step of {MEMBERS} members", contestants, "optax.chain", seconds=0.5)


SCENE = Scene(
    "recipes",
    "Recipes",
    "Clipping by the global norm, AdamW with a mask, warm-up and cosine: the first step, small steps, the step after a "
    "changed peak with the compilation that it may need, and a step of a population.",
    cases,
    processes=3,
    cached=False,
)
