"""A flax model with its optimizer: python examples/flax_model.py."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxopt_adam import adamw


class Model(nnx.Module):
    """A network with one hidden layer."""

    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(2, 16, rngs=rngs)
        self.out = nnx.Linear(16, 1, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Apply the network to rows of two numbers."""
        return self.out(nnx.tanh(self.hidden(x)))


def cost(model: Model, x: Array, y: Array) -> Array:
    """The mean squared error."""
    return jnp.mean((model(x)[:, 0] - y) ** 2)


@nnx.jit
def step(model: Model, optimizer: nnx.Optimizer, x: Array, y: Array) -> Array:
    """One step of training; returns the cost before it."""
    value, grads = nnx.value_and_grad(cost)(model, x, y)
    optimizer.update(model, grads)
    return value


model = Model(nnx.Rngs(0))
optimizer = nnx.Optimizer(model, adamw(0.01), wrt=nnx.Param)
x = jax.random.uniform(jax.random.key(1), (256, 2), minval=-1)
y = x[:, 0] * x[:, 1]
costs = [float(step(model, optimizer, x, y)) for _ in range(500)]
print(f"cost {costs[0]:.4f} at first, {costs[-1]:.6f} after {len(costs)} steps")
