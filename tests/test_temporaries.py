"""Arrays of a leaf's size that a step in float32 makes on the way, besides what it returns."""

import jax
import jax.numpy as jnp
import optax
import pytest
from compiling import AS_USERS_DO
from public import RULES

SIZE = 1024
# Those that are not here have matrix products, or overwrite what a later loop reads.
ARRAYS = {
    **dict.fromkeys(["adabelief", "adagrad", "adam", "adam_atan2", "adam_mini", "adamax", "adamaxw", "adamw"], 0),
    **dict.fromkeys(["adan", "ademamix", "amsgrad", "nadam", "nadamw", "novograd", "prodigy", "radam", "rmsprop"], 0),
    **dict.fromkeys(["schedule_free_adamw", "sgd", "yogi"], 0),
    **dict.fromkeys(["adafactor", "lamb", "stable_adamw"], 1),  # of which they need a mean
}


WITH_SUMS = ("adafactor", "adam_mini", "lamb", "novograd", "prodigy", "stable_adamw")


@pytest.mark.parametrize("name", ARRAYS)
def test_a_step_makes_no_more_arrays_than_it_must(name):
    """With the parameters and the state donated, and the update added to the parameters."""
    if jax.__version_info__ < (0, 10) and name in WITH_SUMS:
        pytest.skip("XLA's fast sums of squares came with JAX 0.10")
    made = RULES[name](learning_rate=0.01)
    params = {"w": jax.ShapeDtypeStruct((SIZE, SIZE), jnp.float32)}

    def step(params, state, grads):
        updates, state = made.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(made.init, params)
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile(AS_USERS_DO)
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    assert round(temporaries / (4 * SIZE * SIZE), 1) == ARRAYS[name]
