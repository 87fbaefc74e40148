"""Walks along sequences of gradients, by the library and by its oracles, and how far two of them are apart."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest


def falling(count):
    return 0.1 / (1 + 0.01 * count)


def rising(count):
    return 0.001 * (1 + 0.1 * count)


def name_of(case):
    if not isinstance(case, dict):
        return getattr(case, "__name__", str(case))
    return ",".join(f"{name}={getattr(value, '__name__', value)}" for name, value in case.items()) or "defaults"


def over(cases):
    return pytest.mark.parametrize(("rule", "arguments"), cases, ids=name_of)


def noisy_gradients(steps, seed=0, imaginary=False):
    """A slope that drifts, under heavy-tailed noise, of sizes from 1e-4 to 100; the last ten are mostly zero."""
    generator = np.random.default_rng(seed)
    size = 40
    drift = generator.normal(size=size) * np.cos(np.linspace(0, 3, steps))[:, None]
    gradients = (drift + generator.standard_t(4, size=(steps, size))) * 10 ** np.linspace(-4, 2, size)
    if imaginary:
        gradients = gradients + 1j * noisy_gradients(steps, seed + 100)
    gradients[:, -10:] *= generator.random((steps, 10)) < 0.1
    return gradients


def start(imaginary=False):
    generator = np.random.default_rng(99)
    return generator.normal(size=40) + (1j * generator.normal(size=40) if imaginary else 0)


def scan_updates(transformation, params, gradients, state=None, *, moving=True):
    """As the oracles' `walk`; to be called within jit."""
    state = transformation.init(params) if state is None else state

    def step(carry, grad):
        params, state = carry
        updates, state = transformation.update(grad, state, params)
        return (jax.tree.map(jnp.add, params, updates) if moving else params, state), updates

    (_, state), updates = jax.lax.scan(step, (params, state), gradients)
    return updates, state


def library_updates(transformation, params, gradients, state=None, *, moving=True):
    gradients, params = jnp.asarray(gradients), jnp.asarray(params)
    return jax.jit(lambda: scan_updates(transformation, params, gradients, state, moving=moving))()


def deviation(updates, right):
    """The largest distance between two walks, of each element relative to the distance that it travelled."""
    chex.assert_equal_shape([updates, right])
    updates, right = (np.asarray(each).astype(np.complex128) for each in (updates, right))
    assert np.isfinite(updates).all()
    distance = np.abs(right).sum(0)
    apart = np.abs(updates - right).sum(0)  # at least as much as at any step between
    assert (distance > 0).all()
    return (apart / distance).max()
