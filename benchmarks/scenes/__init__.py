"""The scenes, each in a file."""

from benchmarks.contest import Scene
from benchmarks.scenes import compilation, dispatch, growth, recipes, rules, step, storage, sweeps, wrappers

SCENES: dict[str, Scene] = {
    each.SCENE.name: each.SCENE
    for each in (step, compilation, dispatch, storage, sweeps, recipes, rules, wrappers, growth)
}
"""All scenes by name, in the order of the report."""
