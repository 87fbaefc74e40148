"""The error of Adam's update with moments in fewer bits: python benchmarks/moments_error.py [--mnist FOLDER].

Two networks are trained with Adam in float32. The same gradients go to Adam with moments in fewer bits, and its updates
are compared with the exact ones, on every matrix of weights that is large enough for codes. That is the error after
many steps; the error of storing and loading the exact moments once is measured too. Writes
docs/tables/moments_error.md, docs/images/moments_error.png and docs/images/moments_largest.png.
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
from matplotlib.ticker import FuncFormatter
from other_formats import OTHERS, Format
from trainings import Params, Training, trainings

import jaxopt_adam
from jaxopt_adam import Moment, load_moments
from jaxopt_adam.lab.figures import new_figure, save, style
from jaxopt_adam.storage import StorageName
from jaxopt_adam.storage._leaves import storage_of_leaves
from jaxopt_adam.storage._passes import Halves

B1, B2, EPS, RATE = 0.9, 0.999, 1e-8, 1e-3
EVERY = 50
"""The steps from one measurement to the next."""
ONCE, REPLAYED = (50, 500, 2000), (100, 500, 1500)
"""The steps that the table shows."""

OURS: dict[str, StorageName] = {"ours, 16 bits": "bfloat16", "ours, 8 bits": "int8", "ours, 4 bits": "int4"}
ROOT = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Contestant:
    """Adam with one kind of storage for its moments.

    Args:
        init: ``init(weights)``: the state.
        update: ``update(grads, state)``: the update at a learning rate of −1, and the state.
        nu: ``nu(state)``: the second moments.
        once: ``once(mu, nu, count)``: the update with exact moments, after one encoding and decoding.
        size: bytes a parameter for both moments.
    """

    init: Callable[[Params], Any]
    update: Callable[..., tuple[Any, Any]]
    nu: Callable[[Any], Params]
    once: Callable[[Params, Params, Array], Params]
    size: Callable[[Params], float]


def direction(mu: Array, nu: Array, count: Array) -> Array:
    """Adam's update at a learning rate of −1."""
    debiased = jaxopt_adam.debias(mu, B1, count), jaxopt_adam.debias(nu, B2, count)
    return debiased[0] / (jnp.sqrt(debiased[1]) + EPS)


def library(moments: StorageName) -> Contestant:
    """Ours: the optimizer itself."""
    optimizer = jaxopt_adam.adam(None, B1, B2, EPS, moments=moments)

    def nu(state: Any) -> Params:
        # The packed codes of both moments have the parameter's shape.
        params = {name: jax.ShapeDtypeStruct(numbers.shape, jnp.float32) for name, numbers in state.mu.items()}
        return load_moments(state, optimizer, params).nu  # pyright: ignore[reportAttributeAccessIssue]

    def leaf_once(mu: Array, nu: Array, count: Array) -> Array:
        kinds = {"mu": Moment(over="nu", denominator=jaxopt_adam.Denominator(EPS)), "nu": Moment(real=True)}
        [leaf] = storage_of_leaves(kinds, moments, [((), mu)])
        empty = leaf.start((), mu)
        scalars = 1 - B1**count, 1 - B2**count

        def update(inputs: Any, _: Any, new: Any) -> Array:
            (mu, nu), (c1, c2) = new, inputs[-1]
            return mu / c1 / (jnp.sqrt(nu / c2) + EPS)

        rule = Halves(lambda inputs, _: inputs[:2], update)
        return leaf.step(rule, (mu, nu, scalars), empty, count.astype(jnp.int32))[0]

    def once(mu: Params, nu: Params, count: Array) -> Params:
        return {name: leaf_once(mu[name], nu[name], count) for name in mu}

    def size(weights: Params) -> float:
        state = jax.eval_shape(optimizer.init, weights)
        elements = sum(each.size for each in weights.values())
        kept = jax.tree.leaves((state.mu, state.nu))  # pyright: ignore[reportAttributeAccessIssue]
        return sum(each.size * each.dtype.itemsize for each in kept) / elements

    return Contestant(optimizer.init, optimizer.update, nu, once, size)


def other(form: Format) -> Contestant:
    """Adam with moments in another library's format, whose update is computed before the moments are rounded."""

    def init(weights: Params) -> Any:
        kept = {name: form.store(zeros, zeros) for name, zeros in optax.tree.zeros_like(weights).items()}
        return jnp.zeros([]), kept, weights

    def loaded(state: Any) -> dict[str, tuple[Array, Array]]:
        return {name: form.load(kept, state[2][name].shape) for name, kept in state[1].items()}

    def update(grads: Params, state: Any) -> tuple[Params, Any]:
        count = state[0] + 1
        kept, after = {}, {}
        for name, (mu, nu) in loaded(state).items():
            grad = grads[name]
            new = jaxopt_adam.ema(mu, grad, B1), jaxopt_adam.ema(nu, grad**2, B2)
            after[name], kept[name] = direction(*new, count), form.store(*new)
        return after, (count, kept, state[2])

    def nu(state: Any) -> Params:
        return {name: moments[1] for name, moments in loaded(state).items()}

    def once(mu: Params, nu: Params, count: Array) -> Params:
        return {name: direction(*form.load(form.store(mu[name], nu[name]), mu[name].shape), count) for name in mu}

    return Contestant(init, update, nu, once, lambda _: form.size)


def errors(updates: Params, exact: Params) -> Array:
    """For each matrix the relative RMS error of the update, and its largest element over the exact largest."""
    return jnp.array(
        [
            [jnp.linalg.norm(updates[name] - each) / jnp.linalg.norm(each), _largest(updates[name]) / _largest(each)]
            for name, each in exact.items()
        ]
    )


def log_error(nu: Params, exact: Params) -> Array:
    """For each matrix the mean logarithm of ν over the exact ν, where that is not zero."""
    return jnp.array([jnp.mean(jnp.log(nu[name] / each), where=each > 0) for name, each in exact.items()])


def measure(training: Training, contestants: dict[str, Contestant], steps: int, seed: int) -> dict[str, Any]:
    """The errors of every contestant every `EVERY` steps, for each matrix."""
    key, start = jax.random.split(jax.random.key(seed))
    params = training.init(start)
    coded = [name for name, param in params.items() if param.ndim == 2 and param.size >= 4096]
    adam = jaxopt_adam.adam(RATE, B1, B2, EPS)

    def some(tree: Params) -> Params:
        return {name: tree[name] for name in coded}

    def step(carry: Any, key: Array) -> tuple[Any, Any]:
        params, state, others, _ = carry
        grads = jax.grad(training.loss)(params, training.batch(key))
        updates, state = adam.update(grads, state)
        moved = {name: each.update(some(grads), others[name]) for name, each in contestants.items()}
        last = {name: update for name, (update, _) in moved.items()}
        others = {name: after for name, (_, after) in moved.items()}
        return (optax.apply_updates(params, updates), state, others, last), None

    @jax.jit
    def stretch(carry: Any, first: Array) -> tuple[Any, Any]:
        keys = jax.vmap(functools.partial(jax.random.fold_in, key))(first + jnp.arange(EVERY))
        carry = jax.lax.scan(step, carry, keys)[0]
        _, state, others, last = carry
        mu, nu = some(state.mu), some(state.nu)
        exact = {name: direction(mu[name], nu[name], state.count) for name in coded}
        found = {}
        for name, each in contestants.items():
            once = errors(each.once(mu, nu, state.count.astype(jnp.float32)), exact)
            found[name] = once, errors(last[name], exact), log_error(each.nu(others[name]), nu)
        return carry, found

    others = {name: each.init(some(params)) for name, each in contestants.items()}
    last = dict.fromkeys(contestants, some(params))
    carry, found = (params, adam.init(params), others, last), []
    for first in range(0, steps, EVERY):
        carry, now = stretch(carry, jnp.asarray(first))
        found.append(now)
    stacked = jax.tree.map(lambda *each: np.stack(each), *found)
    # In the order of the contestants, which a pytree does not keep.
    return {
        name: {
            "size": contestants[name].size(some(params)),
            "once": once[..., 0],
            "once largest": once[..., 1],
            "replayed": replayed[..., 0],
            "replayed largest": replayed[..., 1],
            "bias": bias,
        }
        for name in contestants
        for once, replayed, bias in [stacked[name]]
    }


def table(found: dict[str, dict[str, Any]]) -> str:
    """A Markdown table: the worst matrix of each training."""
    at = lambda steps: [step // EVERY - 1 for step in steps]
    rows = [
        "| training | moments | bytes a parameter | once: error at "
        + ", ".join(map(str, ONCE))
        + " | largest | replayed: error at "
        + ", ".join(map(str, REPLAYED))
        + " | largest | mean log error of ν |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for training, contestants in found.items():
        for name, each in contestants.items():
            once, replayed = each["once"][at(ONCE)].max(axis=1), each["replayed"][at(REPLAYED)].max(axis=1)
            largest = each["once largest"][at(ONCE)].max(), each["replayed largest"][at(REPLAYED)].max()
            bias = each["bias"][at(REPLAYED)].ravel()
            cells = [
                training,
                name,
                f"{each['size']:.2f}",
                ", ".join(map(_short, once)),
                f"{_short(largest[0])} ×",
                ", ".join(map(_short, replayed)),
                f"{_short(largest[1])} ×",
                f"{bias[np.abs(bias).argmax()]:+.3f}".replace("-inf", "−∞"),
            ]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def plots(found: dict[str, dict[str, Any]]) -> None:
    """Write the figures: errors and largest updates against steps."""
    labels = {
        "replayed": ("moments_error.png", "relative error of the update"),
        "replayed largest": ("moments_largest.png", "largest update over the exact largest"),
    }
    for which, (file, label) in labels.items():
        figure, row = new_figure(len(found), width=10, height=4.4, sharey=True)
        for axes, (training, contestants) in zip(row, found.items(), strict=True):
            for index, (name, each) in enumerate(contestants.items()):
                worst = each[which].max(axis=1)
                axes.plot(EVERY * np.arange(1, len(worst) + 1), worst, label=name, **style(index))
            axes.set(xlabel="step", yscale="log", title=training.capitalize())
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        row[0].set_ylabel(f"{label},\nworst matrix")
        figure.legend(*row[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
        save(figure, ROOT / "docs" / "images" / file)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, help="a folder of IDX files; by default scikit-learn's digits")
    parser.add_argument("--steps", type=int, default=2000, help="no fewer than 2000, for the table")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.steps < max(*ONCE, *REPLAYED):
        parser.error(f"--steps must be at least {max(*ONCE, *REPLAYED)}")
    contestants = {name: library(moments) for name, moments in OURS.items()}
    contestants |= {name: other(form) for name, form in OTHERS.items()}
    found = {}
    for training in trainings(options.mnist):
        found[training.short] = measure(training, contestants, options.steps, options.seed)
        print(table({training.short: found[training.short]}), flush=True)
    names = "".join(f"- {each.short}: {each.name}\n" for each in trainings(options.mnist))
    (ROOT / "docs" / "tables").mkdir(exist_ok=True)
    (ROOT / "docs" / "tables" / "moments_error.md").write_text(f"{table(found)}\n\n{names}")
    plots(found)


def _largest(array: Array) -> Array:
    return jnp.max(jnp.abs(array))


def _short(number: float) -> str:
    return f"{number:.3f}" if number < 1 else f"{number:.2f}" if number < 10 else f"{number:,.0f}"


if __name__ == "__main__":
    main()
