"""What earlier versions have written goes on: configs, states, checkpoints; `previous/make.py` has written them."""

import functools
import json
import runpy
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxopt_adam import adamw, from_config, master_weights, to_config
from jaxopt_adam.checkpoint import Checkpoints

HOME = Path(__file__).parent / "previous"
MAKE = runpy.run_path(str(HOME / "make.py"))
# To the largest update: other compilers' options round otherwise, and a change of basis amplifies that.
TOLERANCES = {"muon": 1e-5, "soap": 1e-2}
CASES = {name: (optimizer, shapes) for name, optimizer, shapes in MAKE["optimizers"]()}


def arrays_like(tree, arrays, name):
    """A tree with the arrays that were written under a name; each of them has the shape and the dtype of its leaf."""

    def found(path, leaf):
        array = arrays[name + jax.tree_util.keystr(path)]
        # NumPy's files do not know the name of bfloat16.
        array = array.view(ml_dtypes.bfloat16) if array.dtype.kind == "V" else array
        assert (array.shape, array.dtype) == (leaf.shape, leaf.dtype), path
        return jnp.asarray(array)

    return jax.tree.map_with_path(found, tree)


@pytest.fixture(scope="module", params=sorted(path.name for path in HOME.iterdir() if path.name[0].isdigit()))
def version(request):
    return HOME / request.param


@pytest.fixture(scope="module")
def arrays(version):
    with np.load(version / "states.npz") as file:
        return dict(file)


@pytest.mark.parametrize("name", CASES)
def test_a_config_and_a_state_go_on(version, arrays, name):
    optimizer, shapes = CASES[name]
    read = from_config(json.loads((version / "configs.json").read_text())[name])
    assert to_config(read) == to_config(optimizer)
    state = arrays_like(jax.eval_shape(read.init, MAKE["weights"](shapes)), arrays, f"{name}/state")
    assert sum(key.startswith(f"{name}/state") for key in arrays) == len(jax.tree.leaves(state))
    updates = jax.jit(functools.partial(MAKE["fourth"], read, shapes))(state)
    wanted = arrays_like(updates, arrays, f"{name}/updates")
    for leaf in updates:
        largest = np.abs(wanted[leaf]).max()
        off = TOLERANCES.get(name, 1e-6) * largest
        np.testing.assert_allclose(updates[leaf], wanted[leaf], rtol=1e-5, atol=off, err_msg=leaf)


def test_a_checkpoint_goes_on(version, tmp_path):
    shutil.copytree(version / "checkpoints", tmp_path / "checkpoints")
    optimizer = master_weights(adamw(1e-3, moments="int8"))
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), MAKE["weights"](MAKE["LARGE"]))
    like = {"params": params, "state": jax.jit(optimizer.init)(params)}
    with Checkpoints(tmp_path / "checkpoints", optimizer) as checkpoints:
        resumed = checkpoints.restore(like)
    assert resumed is not None
    assert (resumed.step, dict(resumed.skipped)) == (1, {})
    jax.tree.map(np.testing.assert_array_equal, resumed.tree, like)
