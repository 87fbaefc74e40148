"""Population-based training of digit classifiers in one compiled program: python examples/population.py.

Sixteen members train side by side. After each generation the worst quarter takes over the weights, the state and the
hyperparameters of the best quarter, and multiplies each hyperparameter by 0.8 or 1.25. For comparison, sixteen members
with the same start keep their hyperparameters. Members are ranked by their cost on validation data, and the best one of
each sixteen is measured on test data. The method is that of Jaderberg et al., Population Based Training of Neural
Networks, 2017.
"""

import argparse
import functools
import importlib.util
import itertools
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxopt_adam import Optimizer, adamw, chain
from jaxopt_adam.lab.data import DataError, embedded, from_folder
from jaxopt_adam.lifted import clip_by_global_norm
from jaxopt_adam.schedules import warmup_cosine_decay_schedule

MEMBERS = 16
HIDDEN = 64
BATCH = 64
# The hyperparameters of the first generation are drawn from these ranges, evenly in their logarithms, and later ones
# stay within them. A decay close to 1 is told by its distance from 1, which is what the factors change.
RANGES = {
    "peak_value": (1e-4, 1e-1),
    "weight_decay": (1e-4, 1.0),
    "max_norm": (0.1, 10.0),
    "1 - b1": (0.01, 0.5),
}


class Population(NamedTuple):
    """All that belongs to the members. Each leaf has a row for each member, those of the recipes too."""

    params: dict[str, Array]
    state: Any
    recipes: Optimizer


class Outcome(NamedTuple):
    """The results of a run.

    Attributes:
        costs: the cost of each member on validation data after each generation.
        peaks: the peak of the learning rate with which each member trained in each generation.
        test_cost: the cost on test data of the member that is best on validation data at the end.
        test_accuracy: its accuracy.
    """

    costs: Array
    peaks: Array
    test_cost: Array
    test_accuracy: Array


def recipe(numbers: dict[str, Array], steps: int) -> Optimizer:
    """AdamW with clipped gradients and a learning rate that warms up in a tenth of the steps and then decays."""
    rate = warmup_cosine_decay_schedule(0.0, numbers["peak_value"], warmup_steps=0.1 * steps, decay_steps=steps)
    rule = adamw(rate, b1=1 - numbers["1 - b1"], weight_decay=numbers["weight_decay"])
    return chain(clip_by_global_norm(numbers["max_norm"]), rule)


def numbers_of(recipes: Optimizer) -> dict[str, Array]:
    """The numbers that change, as `recipe` takes them."""
    clipping, rule = (recipes.hyperparameters[part].hyperparameters for part in ("clip_by_global_norm", "adamw"))
    return {
        "peak_value": rule["learning_rate"].hyperparameters["peak_value"],
        "weight_decay": rule["weight_decay"],
        "max_norm": clipping["max_norm"],
        "1 - b1": 1 - rule["b1"],
    }


def explore(recipes: Optimizer, key: Array) -> Optimizer:
    """The recipes with each number multiplied by 0.8 or 1.25, within its range."""
    numbers = numbers_of(recipes)
    for each, (name, old) in zip(jax.random.split(key, len(numbers)), numbers.items(), strict=True):
        factor = jax.random.choice(each, jnp.array([0.8, 1.25]), old.shape)
        numbers[name] = jnp.clip(old * factor, *RANGES[name])
    b1 = 1 - numbers.pop("1 - b1")
    return recipes.replace(b1=b1, **numbers)


def exploit_and_explore(population: Population, costs: Array, key: Array) -> Population:
    """Put copies of the best quarter, with changed recipes, in the place of the worst quarter."""
    order = jnp.argsort(costs)  # NaN comes last
    best, worst = order[: MEMBERS // 4], order[-(MEMBERS // 4) :]
    copies = jax.tree.map(lambda leaf: leaf[best], population)
    copies = copies._replace(recipes=explore(copies.recipes, key))
    return jax.tree.map(lambda leaf, copy: leaf.at[worst].set(copy), population, copies)


def logits(params: dict[str, Array], images: Array) -> Array:
    """The outputs of a network with one hidden layer."""
    return jax.nn.relu(images @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]


def cost(params: dict[str, Array], images: Array, labels: Array) -> Array:
    """The mean cross-entropy in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, images), labels).mean()


def network(key: Array, pixels: int) -> dict[str, Array]:
    """The parameters of a new network."""
    first, second = jax.random.split(key)
    return {
        "w1": jax.random.normal(first, (pixels, HIDDEN)) * (2 / pixels) ** 0.5,
        "b1": jnp.zeros(HIDDEN),
        "w2": jax.random.normal(second, (HIDDEN, 10)) * (2 / HIDDEN) ** 0.5,
        "b2": jnp.zeros(10),
    }


def population(key: Array, pixels: int, steps: int) -> Population:
    """Sixteen members with random weights and random hyperparameters."""
    first, second = jax.random.split(key)
    params = jax.vmap(network, in_axes=(0, None))(jax.random.split(first, MEMBERS), pixels)
    numbers = {
        name: jnp.exp(jax.random.uniform(each, (MEMBERS,), minval=np.log(low), maxval=np.log(high)))
        for each, (name, (low, high)) in zip(jax.random.split(second, len(RANGES)), RANGES.items(), strict=True)
    }
    recipes = jax.vmap(functools.partial(recipe, steps=steps))(numbers)
    return Population(params, jax.vmap(lambda each, params: each.init(params))(recipes, params), recipes)


def train(member: Population, images: Array, labels: Array, batches: Array) -> Population:
    """One member after a step for each row of `batches`, which holds indices of images."""

    def step(carry: tuple[Any, Any], batch: Array) -> tuple[tuple[Any, Any], None]:
        params, state = carry
        gradients = jax.grad(cost)(params, images[batch], labels[batch])
        updates, state = member.recipes.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, state), _ = jax.lax.scan(step, (member.params, member.state), batches)
    return Population(params, state, member.recipes)


@functools.partial(jax.jit, static_argnames=("generations", "steps"))
def run(digits: Any, seed: int, evolves: bool, generations: int, steps: int) -> Outcome:
    """Train sixteen members for some generations of so many steps each.

    Args:
        digits: the images and labels for training, validation and testing.
        seed: the seed of the weights, the hyperparameters, the batches and what is changed.
        evolves: whether members exploit and explore; otherwise all keep what they have.
        generations: the number of generations.
        steps: the number of steps of a generation.
    """
    (images, labels), validation, test = digits
    keys = jax.random.split(jax.random.key(seed), 3)
    batches = jax.random.randint(keys[1], (generations, steps, BATCH), 0, len(labels))

    def generation(members: Population, given: tuple[Array, Array]) -> tuple[Population, tuple[Array, Array]]:
        batches, key = given
        members = jax.vmap(train, in_axes=(0, None, None, None))(members, images, labels, batches)
        costs = jax.vmap(cost, in_axes=(0, None, None))(members.params, *validation)
        peaks = numbers_of(members.recipes)["peak_value"]
        members = jax.lax.cond(evolves, exploit_and_explore, lambda members, *_: members, members, costs, key)
        return members, (costs, peaks)

    start = population(keys[0], images.shape[1], generations * steps)
    given = batches, jax.random.split(keys[2], generations)
    end, (costs, peaks) = jax.lax.scan(generation, start, given)
    best = jax.tree.map(lambda leaf: leaf[jnp.nanargmin(costs[-1])], end.params)  # never among the replaced
    accuracy = jnp.mean(jnp.argmax(logits(best, test[0]), axis=1) == test[1])
    return Outcome(costs, peaks, cost(best, *test), accuracy)


def table(evolved: Outcome, fixed: Outcome) -> str:
    """Mean and standard deviation over the seeds, and which of the two was better."""
    lines = [f"{'best of sixteen members':24}{'test cost':>18}{'test accuracy':>20}"]
    for name, each in (("population-based", evolved), ("fixed hyperparameters", fixed)):
        costs, accuracies = np.asarray(each.test_cost), 100 * np.asarray(each.test_accuracy)
        lines.append(
            f"{name:24}{costs.mean():10.4f} ± {costs.std(ddof=1):.4f}"
            f"{accuracies.mean():11.2f} ± {accuracies.std(ddof=1):.2f} %"
        )
    gain = np.asarray(fixed.test_cost - evolved.test_cost)
    error = gain.std(ddof=1) / len(gain) ** 0.5
    better = "population-based training" if gain.mean() > 0 else "the best of the fixed settings"
    clearly = "more" if abs(gain.mean()) > 2 * error else "not more"
    lines.append(
        f"On average {better} has the lower test cost, by {abs(gain.mean()):.4f}.\n"
        f"That is {clearly} than twice the standard error, {error:.4f}.\n"
        f"Population-based training has it in {np.sum(gain > 0)} of {len(gain)} seeds."
    )
    return "\n".join(lines)


def draw(evolved: Outcome, fixed: Outcome, path: Path) -> None:
    """Draw the costs of the members of the first seed and the peaks of their learning rates."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained", dpi=150)
    rows = figure.subplots(2, 2, sharex=True, sharey="row")
    generations = np.arange(evolved.costs.shape[1])
    columns = (("population-based", evolved, "#0072B2"), ("fixed hyperparameters", fixed, "#D55E00"))
    for (upper, lower), (title, outcome, colour) in zip(rows.T, columns, strict=True):
        costs, peaks = np.asarray(outcome.costs[0]), np.asarray(outcome.peaks[0])
        best = np.nanargmin(costs, axis=1)
        for axes, values in ((upper, costs), (lower, peaks)):
            axes.plot(generations + 1, values, color=colour, alpha=0.45, linewidth=0.9)
            axes.plot(generations + 1, values[generations, best], color="black", label="best of this generation")
            axes.set_yscale("log")
            axes.grid(visible=True, color="#dddddd", linewidth=0.6)
        upper.set_title(title)
        upper.legend(frameon=False)
        lower.set_xlabel("generation")
        lower.xaxis.get_major_locator().set_params(integer=True)
    rows[0, 0].set_ylabel("validation cost (nats)")
    rows[1, 0].set_ylabel("peak of the learning rate")
    figure.savefig(path, format="png")


def main() -> None:
    """Run both kinds for each seed, print the table and draw the figure."""
    # Without a usage, an error is one line.
    parser = argparse.ArgumentParser(description=__doc__, usage=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="few generations and two seeds, which takes seconds")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="IDX files, such as MNIST's, in place of sklearn's")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="a PNG to draw, which needs matplotlib")
    arguments = parser.parse_args()
    if arguments.figure and not arguments.figure.parent.is_dir():
        parser.error(f"--figure: there is no folder {arguments.figure.parent}")
    if arguments.figure and not importlib.util.find_spec("matplotlib"):
        parser.error("--figure: matplotlib is not installed")
    try:
        digits = from_folder(arguments.data) if arguments.data else embedded()
    except DataError as error:
        parser.error(str(error))

    generations, steps, seeds = (5, 10, 2) if arguments.quick else (40, 25, 5)
    data = jax.tree.map(jnp.asarray, (digits.train, digits.validation, digits.test))
    outcomes: dict[bool, list[Outcome]] = {True: [], False: []}
    for number, (seed, evolves) in enumerate(itertools.product(range(seeds), outcomes)):
        print(f"\rrun {number + 1} of {2 * seeds}", end="", file=sys.stderr, flush=True)
        outcomes[evolves].append(jax.block_until_ready(run(data, seed, evolves, generations, steps)))
    print(file=sys.stderr)
    evolved, fixed = (jax.tree.map(lambda *each: jnp.stack(each), *outcomes[evolves]) for evolves in outcomes)
    print(f"{digits.name}, {seeds} seeds, {generations} generations of {steps} steps, mean ± standard deviation")
    print(table(evolved, fixed))
    print("traces of the program:", run._cache_size())  # pyright: ignore[reportAttributeAccessIssue]
    if arguments.figure:
        draw(evolved, fixed, arguments.figure)


if __name__ == "__main__":
    main()
