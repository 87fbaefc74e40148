"""Steps without `jax.jit`: the first compiles each of its operations, and no later one compiles anything."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_adam import adamw

GRADS = np.random.default_rng(0).standard_normal((2, 64, 64)).astype(np.float32)
OPTIMIZERS = {
    "float32": adamw(0.1),
    "bfloat16": adamw(0.1, moments="bfloat16"),
    "int8": adamw(0.1, moments="int8"),
    "mu_dtype": adamw(0.1, mu_dtype=jnp.bfloat16),
}


def plainly(optimizer, grads, state):
    return optimizer.update(grads, state, grads)


def in_a_batch(optimizer, grads, state):
    return jax.vmap(optimizer.update)(grads, state, grads)


def differentiated(optimizer, grads, state):
    def total(grads):
        updates, after = optimizer.update(grads, state, grads)
        return updates.sum(), after

    return jax.grad(total, has_aux=True)(grads)


@pytest.mark.parametrize("way", [plainly, in_a_batch, differentiated], ids=lambda way: way.__name__)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_only_the_first_step_compiles(name, way, caplog):
    optimizer = OPTIMIZERS[name]

    def compiled(function, *args):
        caplog.clear()
        with jax.log_compiles(), caplog.at_level(logging.WARNING):
            result = function(*args)
        return result, sum("Compiling" in record.getMessage() for record in caplog.records)

    state = (jax.vmap(optimizer.init) if way is in_a_batch else optimizer.init)(GRADS)
    (_, state), _ = compiled(way, optimizer, GRADS, state)
    assert compiled(way, optimizer, GRADS, state)[1] == 0
    assert compiled(jax.jit(lambda x: x), 1.0)[1] == 1  # as it would be counted
