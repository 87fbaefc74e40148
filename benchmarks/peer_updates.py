"""The updates of other libraries' own optimizers, for gradients of unlike sizes: python benchmarks/peer_updates.py.

Random gradients, in which each element has a scale of its own, go to Adam in float32, to Adam with moments in codes,
and to the 8-bit and 4-bit Adam of torchao and bitsandbytes as they are installed. FlashOptim needs a GPU, so its format
stands for it. Needs torch, torchao and bitsandbytes. Writes docs/tables/peer_updates.md.
"""

import argparse
import importlib
import importlib.metadata
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from other_formats import Format, flashoptim

import jaxopt_adam
from jaxopt_adam.storage import StorageName

SHAPE = (64, 256)
RATE = 1e-3
DECADES = {"of like sizes": 0.0, "over two decades": 2.0, "over four decades": 4.0, "over eight decades": 8.0}
LAST = 100
"""The steps at the end over which errors are averaged."""

ROOT = Path(__file__).parents[1]

Updates = Iterator[np.ndarray]


def ours(moments: StorageName) -> Callable[[np.ndarray], Updates]:
    """The updates of this library at a learning rate of −1."""

    def updates(gradients: np.ndarray) -> Updates:
        optimizer = jaxopt_adam.adam(None, moments=moments)
        state, update = optimizer.init(jnp.zeros(SHAPE)), jax.jit(optimizer.update)
        for gradient in gradients:
            direction, state = update(gradient, state)
            yield np.asarray(direction)

    return updates


def of_torch(module: str, name: str) -> Callable[[np.ndarray], Updates]:
    """The updates of an optimizer for PyTorch, as its parameter moves."""

    def updates(gradients: np.ndarray) -> Updates:
        import torch  # pyright: ignore[reportMissingImports]

        torch.set_num_threads(1)  # the matrix is small
        param = torch.nn.Parameter(torch.zeros(SHAPE))
        optimizer = getattr(importlib.import_module(module), name)([param], lr=RATE)
        for gradient in gradients:
            with torch.no_grad():
                param.zero_()  # so that no digit of the update is lost
            param.grad = torch.from_numpy(gradient)
            optimizer.step()
            yield -param.detach().numpy() / RATE

    return updates


def of_format(form: Format) -> Callable[[np.ndarray], Updates]:
    """The updates of Adam with moments in a format, computed before the moments are rounded."""

    def step(gradient: Any, kept: Any, count: Any) -> tuple[Any, Any]:
        mu, nu = form.load(kept, SHAPE)
        mu, nu = jaxopt_adam.ema(mu, gradient, 0.9), jaxopt_adam.ema(nu, gradient**2, 0.999)
        debiased = jaxopt_adam.debias(mu, 0.9, count), jaxopt_adam.debias(nu, 0.999, count)
        return debiased[0] / (jnp.sqrt(debiased[1]) + 1e-8), form.store(mu, nu)

    def updates(gradients: np.ndarray) -> Updates:
        kept, update = form.store(jnp.zeros(SHAPE), jnp.zeros(SHAPE)), jax.jit(step)
        for count, gradient in enumerate(gradients, 1):
            direction, kept = update(gradient, kept, float(count))
            yield np.asarray(direction)

    return updates


CONTESTANTS = {
    "ours, 16 bits": ours("bfloat16"),
    "ours, 8 bits": ours("int8"),
    "ours, 4 bits": ours("int4"),
    "bitsandbytes' Adam8bit": of_torch("bitsandbytes.optim", "Adam8bit"),
    "torchao's Adam8bit": of_torch("torchao.optim", "Adam8bit"),
    "torchao's Adam4bit": of_torch("torchao.optim", "Adam4bit"),
    "FlashOptim's format, 8 bits": of_format(flashoptim()),
}


def measured(contestant: Callable[[np.ndarray], Updates], gradients: np.ndarray, exact: list[np.ndarray]) -> str:
    """The error of the last updates relative to the norm of the exact ones, and their largest element over theirs."""
    last = list(contestant(gradients))[-LAST:]
    errors = [np.linalg.norm(one - right) / np.linalg.norm(right) for one, right in zip(last, exact, strict=True)]
    largest = [np.abs(one).max() / np.abs(right).max() for one, right in zip(last, exact, strict=True)]
    return f"{_short(float(np.mean(errors)))}, {_short(float(np.max(largest)))} ×"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")  # those of the other libraries
    heads = [f"{name}: error, largest" for name in DECADES]
    rows = {name: [name] for name in CONTESTANTS}
    for decades in DECADES.values():
        generator = np.random.default_rng(options.seed)
        scales = 10.0 ** generator.uniform(-decades / 2, decades / 2, SHAPE)
        noise = generator.standard_normal((options.steps, *SHAPE), np.float32)
        gradients = (scales * noise).astype(np.float32)
        exact = list(ours("float32")(gradients))[-LAST:]
        for name, contestant in CONTESTANTS.items():
            rows[name].append(measured(contestant, gradients, exact))
            print(rows[name][0], rows[name][-1], flush=True)
    lines = [["moments", *heads], ["---", *["--:"] * len(heads)], *rows.values()]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "torchao", "bitsandbytes"))
    (ROOT / "docs" / "tables" / "peer_updates.md").write_text(f"{table}\n\nOn a CPU, with {versions}.\n")


def _short(number: float) -> str:
    return f"{number:.3f}" if number < 1 else f"{number:.2f}" if number < 10 else f"{number:,.0f}"


if __name__ == "__main__":
    main()
