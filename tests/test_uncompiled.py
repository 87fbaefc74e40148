"""Steps without `jax.jit`: the first compiles what it needs, no later one does, and all do what a compiled one does."""

import functools
import logging

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from public import RULES
from test_family import TABLE

from jaxopt_adam import Moment, _eager, adam, adamw, ema, grid, leafwise, optimizer
from jaxopt_adam.storage import Blockwise, _blockwise

GRADS = np.random.default_rng(0).standard_normal((2, 64, 64)).astype(np.float32)
OPTIMIZERS = {
    "float32": adamw(0.1),
    "bfloat16": adamw(0.1, moments="bfloat16"),
    "int8": adamw(0.1, moments="int8"),
    "mu_dtype": adamw(0.1, mu_dtype=jnp.bfloat16),
}


PARAMS = {"w": jnp.asarray(GRADS[0]), "b": jnp.asarray(GRADS[1, 0])}
ONE_PROGRAM = {"adam", "adamw", "lamb", "lion", "rmsprop", "sgd"}


def compilations(caplog, function, *args):
    caplog.clear()
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        result = function(*args)
    return result, sum("Compiling" in record.getMessage() for record in caplog.records)


def plainly(optimizer, grads, state):
    return optimizer.update(grads, state, grads)


def in_a_batch(optimizer, grads, state):
    return jax.vmap(optimizer.update)(grads, state, grads)


def differentiated(optimizer, grads, state):
    def total(grads):
        updates, after = optimizer.update(grads, state, grads)
        return updates.sum(), after

    return jax.grad(total, has_aux=True)(grads)


WAYS = [(way, name) for way in (plainly, differentiated) for name in OPTIMIZERS]
# In a batch codes would take the same few hundred operations, compiled for other shapes.
WAYS += [(in_a_batch, name) for name in OPTIMIZERS if name != "int8"]


@pytest.mark.parametrize(("way", "name"), WAYS, ids=lambda each: getattr(each, "__name__", each))
def test_only_the_first_step_compiles(name, way, caplog):
    optimizer = OPTIMIZERS[name]
    state = (jax.vmap(optimizer.init) if way is in_a_batch else optimizer.init)(GRADS)
    _, state = way(optimizer, GRADS, state)
    assert compilations(caplog, way, optimizer, GRADS, state)[1] == 0
    assert compilations(caplog, jax.jit(lambda x: x), 1.0)[1] == 1  # as it would be counted


def stepped(made, steps=3):
    state = made.init(PARAMS)
    for _ in range(steps):
        updates, state = made.update(PARAMS, state, PARAMS)
    return updates, state


@pytest.mark.parametrize("name", RULES)
def test_a_step_is_one_program_and_rounds_as_one(name, caplog):
    made = RULES[name](learning_rate=0.1, **TABLE[name].options)
    # To an elementwise rule a vector is what a matrix is.
    params = {"w": PARAMS["w"]} if TABLE[name].elementwise and name not in ONE_PROGRAM else PARAMS
    state = made.init(params)
    _eager.compiled.cache_clear()  # of what other tests have compiled
    found, programs = compilations(caplog, made.update, params, state, params)
    # The learning rate is an argument here and a constant there, so its products may differ by a rounding.
    expected = jax.jit(made.update)(params, state, params)
    # In muon's chain of matrix products a rounding grows.
    chex.assert_trees_all_close(found, expected, rtol=2e-6, atol=1e-6 if name == "muon" else 1e-8)
    if name in ONE_PROGRAM:
        assert programs == 1


@pytest.mark.parametrize("bits", [8, 4])
def test_the_first_code_of_a_moment_is_one_program(bits, caplog):
    _blockwise._start.clear_cache()
    (code, scale), programs = compilations(caplog, functools.partial(Blockwise(bits).start, nonnegative=True), 0.25)
    assert programs == 1
    expected = jax.jit(functools.partial(Blockwise(bits).start, nonnegative=True))(0.25)
    chex.assert_trees_all_equal((code, scale), expected)


def test_no_digit_of_a_decay_is_lost():
    """Which float32 has not; as an argument of a compiled step it would be rounded."""
    made = adam(0.1, b2=0.9999)
    state = made.init(PARAMS)
    chex.assert_trees_all_equal(made.update(PARAMS, state), jax.jit(made.update)(PARAMS, state))
    rounded = jax.jit(lambda made: made.update(PARAMS, state))(made)[1]
    assert np.any(made.update(PARAMS, state)[1].nu["w"] != rounded.nu["w"])


def test_a_new_learning_rate_or_a_new_optimizer_compiles_nothing(caplog):
    made = adamw(0.1)
    state = made.init(PARAMS)
    _, state = made.update(PARAMS, state, PARAMS)
    for rate in (0.3, 0.7):
        for other in (made.replace(learning_rate=rate), adamw(rate), adamw(jnp.float32(rate))):
            (updates, _), programs = compilations(caplog, other.update, PARAMS, state, PARAMS)
            assert programs <= (not isinstance(other.hyperparameters["learning_rate"], float))
            expected, _ = jax.jit(other.update)(PARAMS, state, PARAMS)
            chex.assert_trees_all_close(updates, expected, rtol=1e-6)


class Plateau:
    """A schedule that somebody changes, and that looks at the count."""

    factor = 1.0

    def __call__(self, count):
        return self.factor if count < 2 else 0.5 * self.factor


def test_schedules_and_masks_are_called_at_each_step():
    schedule, rates = Plateau(), []
    made = adam(schedule)
    state = made.init(PARAMS)
    for step in range(4):
        schedule.factor = 1.0 + step
        updates, state = made.update(PARAMS, state)
        rates.append(float(jnp.abs(updates["w"]).max()))
    np.testing.assert_allclose(rates, [1.0, 2.0, 1.5, 2.0], rtol=1e-5)
    chosen = {"w": True, "b": False}
    made = adamw(0.1, weight_decay=0.5, mask=lambda params: dict(chosen))
    first, _ = made.update(PARAMS, made.init(PARAMS), PARAMS)
    chosen["w"] = False
    second, _ = made.update(PARAMS, made.init(PARAMS), PARAMS)
    np.testing.assert_allclose(second["w"] - first["w"], 0.05 * PARAMS["w"], rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(second["b"], first["b"])


def test_a_tree_of_schedules():
    made = adam({"w": optax.linear_schedule(0.1, 0.0, 4), "b": 0.2})
    _, state = stepped(made)
    chex.assert_trees_all_close(made.update(PARAMS, state), jax.jit(made.update)(PARAMS, state), rtol=1e-6)


def test_a_rule_that_looks_at_its_values():
    """Its control flow cannot be traced, so its steps are not compiled; and it is asked once only."""
    calls = []

    @optimizer
    def looking(learning_rate, decay=0.9, moments="float32"):
        def first(grad, old, step):
            return old._replace(mu=ema(old.mu, grad, decay))

        def second(grad, old, new, step):
            calls.append(isinstance(new.mu, jax.core.Tracer))
            return -step.rate * (new.mu if float(new.mu.max()) > 0 else grad)

        return leafwise(
            optax.ScaleByLionState, first, second, storage=moments, learning_rate=learning_rate, mu=Moment()
        )

    made = looking(0.5, decay=0.0)
    grads = {"w": jnp.array([1.0, 2.0])}
    state = made.init(grads)
    for _ in range(2):
        updates, state = made.update(grads, state)
        np.testing.assert_allclose(updates["w"], [-0.5, -1.0])
    assert calls == [True, False, False]


@pytest.mark.parametrize("extra", [bytearray(b"no hash"), np.arange(3.0)], ids=["bytearray", "array"])
def test_a_rule_with_an_argument_that_has_no_hash(extra):
    @optimizer
    def with_extra(learning_rate, extra=None, moments="float32"):
        def first(grad, old, step):
            return old

        def second(grad, old, new, step):
            return -step.rate * len(extra) * grad

        return leafwise(
            optax.ScaleByLionState, first, second, storage=moments, learning_rate=learning_rate, mu=Moment()
        )

    made = with_extra(0.5, extra=extra)
    updates, _ = made.update(PARAMS, made.init(PARAMS))
    np.testing.assert_allclose(updates["w"], -0.5 * len(extra) * PARAMS["w"], rtol=1e-6)


def test_what_is_wrong_is_said_as_before():
    turned = jax.tree.map(lambda number: -number, adam(0.1))
    with pytest.raises(ValueError, match="adam: learning_rate must be"):
        turned.update(PARAMS, adam(0.1).init(PARAMS))
    with pytest.raises(ValueError, match=r"leaf \['w'\]"):
        adam(0.1).update(PARAMS | {"w": PARAMS["b"]}, adam(0.1).init(PARAMS))
    rows, _ = grid(adam, learning_rate=[0.1, 0.2])
    with pytest.raises(ValueError, match=r"jax\.vmap"):
        rows.update(PARAMS, adam(0.1).init(PARAMS))


def test_leaves_on_several_devices():
    one, other = jax.devices()[:2]
    params = {"w": jax.device_put(PARAMS["w"], one), "b": jax.device_put(PARAMS["b"], other)}
    made = adam(0.1)
    updates, state = made.update(params, made.init(params))
    assert updates["w"].devices() == {one}
    assert updates["b"].devices() == {other} == state.nu["b"].devices()
    chex.assert_trees_all_close(jax.device_get(updates), jax.device_get(made.update(PARAMS, made.init(PARAMS))[0]))
