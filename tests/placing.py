"""The specs of the arrays of a tree, for tests that compare them."""

import jax


def specs(tree):
    """The spec of each array by its path, without None at its end."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        spec = list(getattr(leaf.sharding, "spec", ()))
        while spec and spec[-1] is None:
            spec.pop()
        found[jax.tree_util.keystr(path)] = tuple(spec)
    return found
