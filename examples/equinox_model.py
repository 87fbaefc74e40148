"""An equinox model, and a learning rate for each part of it: python examples/equinox_model.py."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from jaxopt_adam import Optimizer, adamw


def cost(model: eqx.nn.MLP, x: Array, y: Array) -> Array:
    """The mean squared error."""
    return jnp.mean((jax.vmap(model)(x)[:, 0] - y) ** 2)


@eqx.filter_jit
def step(optimizer: Optimizer, model: eqx.nn.MLP, state: Any, x: Array, y: Array) -> tuple[Any, Any, Array]:
    """One step of training; optimizers of arrays share its trace, and a Python number is static."""
    value, grads = eqx.filter_value_and_grad(cost)(model, x, y)
    updates, state = optimizer.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
    return eqx.apply_updates(model, updates), state, value


model = eqx.nn.MLP(in_size=2, out_size=1, width_size=16, depth=2, key=jax.random.key(0))
params = eqx.filter(model, eqx.is_inexact_array)
# Half the learning rate for the last layer, by a tree of rates that has the tree of the parameters.
rates = jax.tree.map(lambda _: 0.01, params)
rates = eqx.tree_at(lambda tree: (tree.layers[-1].weight, tree.layers[-1].bias), rates, (0.005, 0.005))
optimizer = adamw(rates)
state = optimizer.init(params)
x = jax.random.uniform(jax.random.key(1), (256, 2), minval=-1)
y = x[:, 0] * x[:, 1]
costs = []
for _ in range(500):
    model, state, value = step(optimizer, model, state, x, y)
    costs.append(float(value))
print(f"cost {costs[0]:.4f} at first, {costs[-1]:.6f} after {len(costs)} steps")
