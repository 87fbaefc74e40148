"""The page for those who come from optax: where what programs read out of a state is."""

import re
from pathlib import Path

import chex
import jax.numpy as jnp
import optax
import pytest

import jaxopt_adam

PAGE = (Path(__file__).parent.parent / "docs" / "how_to" / "from_optax.md").read_text()
PARAMS = {"w": jnp.ones((2, 2))}
SCHEDULE = optax.constant_schedule(0.1)
OPTIMIZERS = {
    "mu": (optax.adam(0.1), jaxopt_adam.adam(0.1)),
    "nu": (optax.adamw(0.1), jaxopt_adam.adamw(0.1)),
    "trace": (optax.sgd(0.1, momentum=0.9), jaxopt_adam.sgd(0.1, momentum=0.9)),
    "count": (optax.adam(SCHEDULE), jaxopt_adam.adam(SCHEDULE)),
}


@pytest.mark.parametrize("field", OPTIMIZERS)
def test_fields_are_where_the_page_says(field):
    (cells,) = [
        line.split("|")[1:3]
        for line in PAGE.splitlines()
        if line.startswith("| `state") and f"`state[0].{field}`" in line
    ]
    (theirs, there), (ours, here) = (
        (
            each.update(PARAMS, each.init(PARAMS), PARAMS)[1],
            next(name for name in re.findall("`(.*?)`", cell) if field in name),
        )
        for each, cell in zip(OPTIMIZERS[field], cells, strict=True)
    )
    chex.assert_trees_all_close(eval(here, {"state": ours}), eval(there, {"state": theirs}))
    chex.assert_trees_all_close(optax.tree.get_all_with_path(ours, field)[0][1], eval(there, {"state": theirs}))


def test_an_index_finds_the_count_and_of_it_another_trace():
    state = jaxopt_adam.sgd(0.1, momentum=0.9).init(PARAMS)
    assert state[0] is state.count
    assert callable(state[0].trace)
    with pytest.raises(AttributeError, match="object has no attribute 'mu'"):
        jaxopt_adam.adam(0.1).init(PARAMS)[0].mu  # noqa: B018
