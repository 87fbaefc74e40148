"""Python calls within the package while a step is traced."""

import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jaxopt_adam import adamw

of_one_leaf = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks/traced_calls.py"))["of_one_leaf"]


@pytest.mark.parametrize(("moments", "most"), [("float32", 60), ("int8", 400)])
def test_calls_for_one_further_leaf(moments, most):
    optimizer = adamw(1e-3, moments=moments)
    assert 0 < of_one_leaf(optimizer).total() <= 10
    assert 10 < of_one_leaf(optimizer, alike=False).total() <= most


def test_schedules_are_traced_once_a_step():
    calls = []

    def schedule(count):
        calls.append(count)
        return 0.1 / (1 + count)

    params = {str(index): jax.ShapeDtypeStruct((3,), jnp.float32) for index in range(5)}
    optimizer = adamw(schedule, weight_decay=schedule)
    state = jax.eval_shape(optimizer.init, params)
    calls.clear()
    jax.eval_shape(optimizer.update, params, state, params)
    assert len(calls) == 2
