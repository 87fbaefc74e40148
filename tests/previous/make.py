"""What this version writes, for later versions to read: python tests/previous/make.py.

It writes the folder of this version beside this file: the configs of all optimizers, states after three steps with the
updates of a fourth, and a folder of checkpoints. Run it once, at a release. Its files are never made anew.
"""

import json
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

sys.path.insert(0, str(Path(__file__).parent.parent))
from public import RULES

import jaxopt_adam
from jaxopt_adam import adamw, chain, master_weights, observe, to_config
from jaxopt_adam.checkpoint import Checkpoints
from jaxopt_adam.lifted import clip_by_global_norm
from jaxopt_adam.schedules import warmup_cosine_decay_schedule

STEPS = 3
SMALL = {"w": (3, 4), "b": (5,), "s": ()}
LARGE = {"w": (64, 64), "b": (5,)}
CODED = {
    f"{name}_{moments}": RULES[name](1e-3, moments=moments, **options)
    for moments in ("bfloat16", "int8", "int4")
    for name, options in (("adamw", {}), ("sgd", {"momentum": 0.9}), ("laprop", {}), ("amsgrad", {}), ("ademamix", {}))
}
"""A rule for each way in which moments are stored: a pair, one alone, two alone, a pair and one, a pair and two."""


def optimizers():
    """The optimizers whose states are kept, by name, each with the shapes of its parameters."""
    for name, factory in RULES.items():
        yield name, factory(1e-3), SMALL
    for name, optimizer in CODED.items():
        yield name, optimizer, LARGE
    recipe = chain(
        clip_by_global_norm(1.0),
        adamw(warmup_cosine_decay_schedule(0.0, 1e-2, 2, 10), weight_decay=0.1, moments="int8"),
    )
    yield "recipe", recipe, LARGE
    yield "observed", observe(adamw(1e-3)), SMALL


def weights(shapes):
    """The parameters of a start."""
    return {
        name: jnp.asarray(np.cos(np.arange(np.prod(shape, dtype=int)) + 1.0), jnp.float32).reshape(shape)
        for name, shape in shapes.items()
    }


def gradients(shapes, count):
    """The gradients of a step."""
    return {
        name: jnp.asarray(np.sin(1.3 * np.arange(np.prod(shape, dtype=int)) + count), jnp.float32).reshape(shape)
        for name, shape in shapes.items()
    }


def fourth(optimizer, shapes, state):
    """The updates of a fourth step, which starts where the first one did."""
    updates, _ = optimizer.update(gradients(shapes, STEPS), state, weights(shapes))
    return updates


def leaves(name, tree):
    """The arrays of a tree by name and path."""
    return {name + jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(tree)}


def main():
    """Write the folder."""
    folder = Path(__file__).parent / jaxopt_adam.__version__
    if folder.exists():
        raise SystemExit(f"{folder.name} was written before, and what a version has written does not change")
    folder.mkdir()
    configs, arrays = {}, {}
    for name, optimizer, shapes in optimizers():
        configs[name] = to_config(optimizer)
        params = weights(shapes)
        state = optimizer.init(params)
        for count in range(STEPS):
            updates, state = optimizer.update(gradients(shapes, count), state, params)
            params = optax.apply_updates(params, updates)
        arrays |= leaves(f"{name}/state", state) | leaves(f"{name}/updates", fourth(optimizer, shapes, state))
    (folder / "configs.json").write_text(json.dumps(configs, indent=1, sort_keys=True) + "\n")
    np.savez_compressed(folder / "states.npz", **arrays)
    optimizer = master_weights(adamw(1e-3, moments="int8"))
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), weights(LARGE))
    tree = {"params": params, "state": optimizer.init(params)}
    with Checkpoints(folder / "checkpoints", optimizer) as checkpoints:
        checkpoints.save(1, tree)
    # Locks of a database that nobody has open.
    for lock in folder.rglob("*.lock"):
        shutil.rmtree(lock) if lock.is_dir() else lock.unlink()


if __name__ == "__main__":
    main()
