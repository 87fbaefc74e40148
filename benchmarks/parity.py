"""Final losses of training with less memory against float32: python benchmarks/parity.py [--mnist FOLDER].

Two networks are trained with AdamW, with the same hyperparameters, batches and starts: with everything in float32, with
moments in codes, with bfloat16 weights and 8 bits more, and, as a control, with plain bfloat16 weights. The learning
rate falls to zero along a cosine. Writes docs/tables/parity.md and docs/images/parity_*.png.
"""

import argparse
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from trainings import Params, Training, trainings

from jaxopt_adam import adamw, master_weights, with_master_params
from jaxopt_adam.lab.figures import new_figure, save, style

RATE = 1e-3
STEPS = {"classifier": 2000, "transformer": 1000}
EVERY = 100
"""The steps from one measurement of the losses to the next."""
ROOT = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A way to train.

    Args:
        optimizer: ``optimizer(learning_rate)``.
        start: ``start(params in float32, optimizer)``: the parameters and the state.
    """

    optimizer: Callable[[optax.Schedule], optax.GradientTransformation]
    start: Callable[[Params, optax.GradientTransformation], tuple[Any, Any]]


def plain(params: Params, optimizer: optax.GradientTransformation, dtype: Any = jnp.float32) -> tuple[Any, Any]:
    """A start with the parameters rounded to `dtype`."""
    params = {name: param.astype(dtype) for name, param in params.items()}
    return params, optimizer.init(params)


CONTROL = "plain bfloat16 weights"
CONTESTANTS = {
    "float32": Contestant(adamw, plain),
    "moments of 16 bits": Contestant(functools.partial(adamw, moments="bfloat16"), plain),
    "moments of 8 bits": Contestant(functools.partial(adamw, moments="int8"), plain),
    "moments of 4 bits": Contestant(functools.partial(adamw, moments="int4"), plain),
    "weights of 24 bits": Contestant(lambda rate: master_weights(adamw(rate), bits=24), with_master_params),
    "both: 24 and 8 bits": Contestant(
        lambda rate: master_weights(adamw(rate, moments="int8"), bits=24), with_master_params
    ),
    CONTROL: Contestant(adamw, functools.partial(plain, dtype=jnp.bfloat16)),
}


def losses(training: Training, contestant: Contestant, seeds: int) -> np.ndarray:
    """The loss on a sample of the training data and on held-out data, of shape (seeds, measurements, 2)."""
    optimizer = contestant.optimizer(optax.cosine_decay_schedule(RATE, STEPS[training.short]))

    def step(carry: Any, key: Array) -> tuple[Any, None]:
        params, state = carry
        grads = jax.grad(training.loss)(params, training.batch(key))
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    @functools.partial(jax.jit, donate_argnums=0)
    def stretch(carry: Any, key: Array, first: Array) -> tuple[Any, Array]:
        keys = jax.vmap(functools.partial(jax.random.fold_in, key))(first + jnp.arange(EVERY))
        carry, _ = jax.lax.scan(step, carry, keys)
        return carry, jnp.stack([training.loss(carry[0], data) for data in (training.seen, training.held_out)])

    def one(seed: int) -> np.ndarray:
        start, key = jax.random.split(jax.random.key(seed))
        carry, found = contestant.start(training.init(start), optimizer), []
        for first in range(0, STEPS[training.short], EVERY):
            carry, now = stretch(carry, key, jnp.asarray(first))
            found.append(now)
        return np.array(found)

    return np.stack([one(seed) for seed in range(seeds)])


def table(found: dict[str, dict[str, np.ndarray]]) -> str:
    """A Markdown table of the last losses: the mean over the seeds and their standard deviation."""
    rows = [
        "| training | AdamW with | training loss | held-out loss | of float32's, seed by seed |",
        "|---|---|--:|--:|--:|",
    ]
    for training, contestants in found.items():
        exact = contestants["float32"][:, -1]
        for name, each in contestants.items():
            last = each[:, -1]
            cells = [
                f"{mean:#.4g} ± {spread:.2g}" for mean, spread in zip(last.mean(0), last.std(0, ddof=1), strict=True)
            ]
            ratios = " and ".join(f"{ratio:.3f}" for ratio in (last / exact).mean(0))
            rows.append(f"| {training} | {name} | {' | '.join(cells)} | {ratios} |")
    return "\n".join(rows)


def plot(training: Training, contestants: dict[str, np.ndarray]) -> None:
    """Write the figure of one training: both losses against steps, means over the seeds, and the range of two."""
    figure, row = new_figure(2, width=10, height=4.4)
    steps = EVERY * np.arange(1, STEPS[training.short] // EVERY + 1)
    for column, (axes, what) in enumerate(zip(row, ("training loss", "held-out loss"), strict=True)):
        for index, (name, each) in enumerate(contestants.items()):
            curves = each[..., column]
            # Each line is thinner than the one below, so that all show.
            look: dict[str, Any] = style(index) | {"linewidth": 3.4 - 0.4 * index}
            axes.plot(steps, curves.mean(axis=0), label=name, **look)
            if name in ("float32", CONTROL):  # the ranges of the others cover that of the first
                low, high = curves.min(axis=0), curves.max(axis=0)
                axes.fill_between(steps, low, high, color=style(index)["color"], alpha=0.15, linewidth=0)
        axes.set(xlabel="step", ylabel=what)
        if training.short == "classifier":
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
    figure.suptitle(training.name[0].upper() + training.name[1:])
    figure.legend(*row[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    save(figure, ROOT / "docs" / "images" / f"parity_{training.short}.png")


def main() -> None:
    """Train, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, help="a folder of IDX files; by default scikit-learn's digits")
    parser.add_argument("--seeds", type=int, default=3, help="no fewer than 2, for the spread")
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error("--seeds must be at least 2")
    found, names = {}, []
    for training in trainings(options.mnist, kept_pixels=0.5):
        found[training.short] = {name: losses(training, each, options.seeds) for name, each in CONTESTANTS.items()}
        print(table({training.short: found[training.short]}), flush=True)
        plot(training, found[training.short])
        names.append(f"- {training.short}: {training.name}, {STEPS[training.short]:,} steps\n")
    (ROOT / "docs" / "tables").mkdir(exist_ok=True)
    (ROOT / "docs" / "tables" / "parity.md").write_text(f"{table(found)}\n\n{''.join(names)}")


if __name__ == "__main__":
    main()
