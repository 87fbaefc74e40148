"""The trainings that the benchmarks of accuracy have in common: a classifier of digits and a model of characters."""

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxopt_adam.lab import data, network

__all__ = ["Training", "characters", "classifier", "trainings"]

Params = dict[str, Array]
Batch = Any


@dataclasses.dataclass(frozen=True)
class Training:
    """A model and its data.

    Args:
        name: a description.
        short: one word, for names of files.
        init: ``init(key)``: parameters in float32.
        loss: ``loss(params, batch)``, computed in float32 whatever the dtype of the parameters.
        batch: ``batch(key)``: a batch of the training data.
        seen: a large sample of the training data.
        held_out: data that is not trained on.
    """

    name: str
    short: str
    init: Callable[[Array], Params]
    loss: Callable[[Params, Batch], Array]
    batch: Callable[[Array], Batch]
    seen: Batch
    held_out: Batch


def trainings(mnist: Path | None, kept_pixels: float = 1.0) -> list[Training]:
    """Both trainings.

    Args:
        mnist: a folder of IDX files, None for the digits that come with scikit-learn.
        kept_pixels: the share of the pixels of a training image that are shown. With all pixels the network soon
            learns a small set of digits by heart.
    """
    return [classifier(mnist, kept_pixels=kept_pixels), characters()]


def classifier(
    mnist: Path | None,
    sizes: tuple[int, ...] = (256, 128, 10),
    batch_size: int = 128,
    kept_pixels: float = 1.0,
) -> Training:
    """A ReLU network that tells digits apart."""
    digits = data.embedded() if mnist is None else data.from_folder(mnist)
    images, labels = map(jnp.asarray, digits.train)
    test_images, test_labels = digits.test
    widths = images.shape[1], *sizes

    def init(key: Array) -> Params:
        layers = network.initial([jax.random.fold_in(key, layer) for layer in range(len(sizes))], widths)
        return {f"{name} {layer}": values for layer, both in enumerate(layers) for name, values in both.items()}

    def loss(params: Params, batch: Batch) -> Array:
        params = _in_float32(params)
        shown, wanted = batch
        layers = [{name: params[f"{name} {layer}"] for name in ("w", "b")} for layer in range(len(sizes))]
        return _cross_entropy(network.logits(layers, shown), wanted)

    def batch(key: Array) -> Batch:
        chosen = jax.random.randint(key, (batch_size,), 0, len(labels))
        shown = images[chosen]
        if kept_pixels < 1:
            seen = jax.random.bernoulli(jax.random.fold_in(key, 1), kept_pixels, shown.shape)
            shown = jnp.where(seen, shown / kept_pixels, 0)
        return shown, labels[chosen]

    source = "scikit-learn's digits" if mnist is None else "MNIST"
    name = f"classifier {'-'.join(map(str, widths))} on {source}"
    some = slice(0, 10_000)
    held_out = jnp.asarray(test_images[some]), jnp.asarray(test_labels[some])
    return Training(name, "classifier", init, loss, batch, (images[some], labels[some]), held_out)


def characters(width: int = 64, layers: int = 2, heads: int = 4, context: int = 64, batch_size: int = 16) -> Training:
    """A small transformer that guesses the next character of the standard library's source text."""
    text = _standard_library(1_000_000)
    cut = len(text) * 9 // 10
    train, rest = jnp.asarray(text[:cut]), jnp.asarray(text[cut:])
    matrices = {"query key value": (width, 3 * width), "mix": (width, width), "up": (width, 4 * width)}
    matrices["down"] = 4 * width, width

    def init(key: Array) -> Params:
        keys = iter(jax.random.split(key, 3 + layers * len(matrices)))
        params = {
            "characters": 0.02 * jax.random.normal(next(keys), (128, width)),
            "places": 0.02 * jax.random.normal(next(keys), (context, width)),
            "head": jax.random.normal(next(keys), (width, 128)) / width**0.5,
        }
        for layer in range(layers):
            params |= {f"gain {layer}{part}": jnp.ones(width) for part in "ab"}
            for name, shape in matrices.items():
                params[f"{name} {layer}"] = jax.random.normal(next(keys), shape) / shape[0] ** 0.5
        return params

    def loss(params: Params, batch: Batch) -> Array:
        params = _in_float32(params)
        hidden = params["characters"][batch[:, :-1]] + params["places"]
        for layer in range(layers):
            projected = _normalized(hidden) * params[f"gain {layer}a"] @ params[f"query key value {layer}"]
            split = [part.reshape(*part.shape[:2], heads, -1) for part in jnp.split(projected, 3, axis=-1)]
            mixed = jax.nn.dot_product_attention(*split, is_causal=True).reshape(hidden.shape)
            hidden = hidden + mixed @ params[f"mix {layer}"]
            wide = jax.nn.gelu(_normalized(hidden) * params[f"gain {layer}b"] @ params[f"up {layer}"])
            hidden = hidden + wide @ params[f"down {layer}"]
        return _cross_entropy(_normalized(hidden) @ params["head"], batch[:, 1:])

    def windows(source: Array, starts: Array) -> Array:
        return source[starts[:, None] + jnp.arange(context + 1)]

    def batch(key: Array) -> Batch:
        return windows(train, jax.random.randint(key, (batch_size,), 0, len(train) - context))

    spread = functools.partial(np.linspace, 0, num=256, dtype=np.int32)
    seen, held_out = (windows(each, jnp.asarray(spread(stop=len(each) - context - 1))) for each in (train, rest))
    name = f"transformer of {layers} layers of width {width} on the standard library's source text"
    return Training(name, "transformer", init, loss, batch, seen, held_out)


def _standard_library(size: int) -> np.ndarray:
    """The first `size` characters of the modules beside `os`, by name; all that is not ASCII becomes one character."""
    content = b""
    for path in sorted(Path(os.__file__).parent.glob("*.py")):
        content += path.read_bytes()
        if len(content) >= size:
            break
    return np.minimum(np.frombuffer(content[:size], np.uint8), 127).astype(np.int32)


def _in_float32(params: Params) -> Params:
    return {name: param.astype(jnp.float32) for name, param in params.items()}


def _normalized(hidden: Array) -> Array:
    return hidden * jax.lax.rsqrt(jnp.mean(hidden**2, axis=-1, keepdims=True) + 1e-6)


def _cross_entropy(logits: Array, wanted: Array) -> Array:
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), wanted[..., None], axis=-1))
