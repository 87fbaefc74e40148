"""The code at the end of the page; it runs as it stands."""

CODE = {
    "train": """\
import jax
import jax.numpy as jnp
import optax
from jaxopt_adam import adam

inputs = jax.random.normal(jax.random.key(0), (256, 8))
targets = inputs @ jnp.arange(8.0)


def cost(params, inputs, targets):
    return jnp.mean((inputs @ params["w"] + params["b"] - targets) ** 2)


@jax.jit
def step(optimizer, params, state, inputs, targets):
    grads = jax.grad(cost)(params, inputs, targets)
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state


optimizer = adam(learning_rate=0.1)
params = {"w": jnp.zeros(8), "b": jnp.zeros(())}
state = optimizer.init(params)
for i in range(300):
    batch = slice(64 * (i % 4), 64 * (i % 4) + 64)
    params, state = step(optimizer, params, state, inputs[batch], targets[batch])
""",
    "grid": """\
from jaxopt_adam import descend, grid

optimizers, table = grid(adam, learning_rate=[0.001, 0.01, 0.1], b1=[0.5, 0.9])
ways = jax.vmap(lambda each: descend(lambda x: (x - 3.0) ** 2, 0.0, each, steps=100))(optimizers)
best = table[ways.value[:, -1].argmin()]
""",
    "minimize": """\
from jaxopt_adam import minimize

result = minimize(lambda x: (x - 3.0) ** 2, 0.0, adam(0.1), tol=1e-8)
print(result.x, result.steps, result.status_name)
""",
}
"""The pieces by name, in the order in which they run."""
