"""Train a digit classifier with 24 learning rates and momenta at once: python examples/sweep.py."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from sklearn.datasets import load_digits

from jaxopt_adam import Optimizer, adam, grid

data, target = load_digits(return_X_y=True)
images, labels = jnp.asarray(data / 16, jnp.float32), jnp.asarray(target)


def accuracy(params: dict[str, Array]) -> Array:
    """The accuracy on the last 400 images, which are not trained on."""
    return jnp.mean(jnp.argmax(images[-400:] @ params["w"] + params["b"], axis=1) == labels[-400:])


def train(optimizer: Optimizer) -> Array:
    """The accuracy after 100 steps of logistic regression."""

    def cost(params: dict[str, Array]) -> Array:
        logits = images[:-400] @ params["w"] + params["b"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[:-400]).mean()

    def step(carry: Any, _: None) -> tuple[Any, None]:
        params, state = carry
        updates, state = optimizer.update(jax.grad(cost)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    params = {"w": jnp.zeros((64, 10)), "b": jnp.zeros(10)}
    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), length=100)
    return accuracy(params)


optimizers, table = grid(adam, learning_rate=[1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1], b1=[0.5, 0.9, 0.99])
accuracies = jax.jit(jax.vmap(train))(optimizers)
for row, reached in sorted(zip(table, accuracies.tolist(), strict=True), key=lambda pair: -pair[1])[:5]:
    print(f"{reached:.1%} with {row}")
