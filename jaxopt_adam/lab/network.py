"""ReLU networks that classify handwritten digits."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from jax import Array

Layers = list[dict[str, Array]]
"""The weights `w` and the biases `b` of each layer."""


def initial(keys: Array | Sequence[Array], sizes: Sequence[int]) -> Layers:
    """He-initialized weights, and biases of zero.

    Args:
        keys: a random key for each layer.
        sizes: the number of inputs, of the units of each hidden layer, and of classes.
    """
    return [
        {"w": jax.random.normal(key, (n, m)) * jnp.sqrt(2 / n), "b": jnp.zeros(m)}
        for key, (n, m) in zip(keys, itertools.pairwise(sizes), strict=True)
    ]


def logits(layers: Layers, images: Array) -> Array:
    """The outputs of the last layer, shape (images, classes)."""
    first, *rest = layers
    values = images @ first["w"] + first["b"]
    for layer in rest:
        values = jax.nn.relu(values) @ layer["w"] + layer["b"]
    return values


def cost(layers: Layers, images: Array, labels: Array) -> Array:
    """The mean cross-entropy, in nats per image."""
    return optax.softmax_cross_entropy_with_integer_labels(logits(layers, images), labels).mean()
