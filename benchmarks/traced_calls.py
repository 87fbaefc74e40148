"""Python calls within the package to trace one further leaf: python benchmarks/traced_calls.py.

Tracing is what a user waits for besides the compiler, and its time grows with the number of leaves. A count is exact
where a time is not: the calls of functions of the package (comprehensions among them, where Python makes them calls)
while the update of a tree is traced, less those of a tree with one leaf fewer. Leaves of one shape and dtype share a
trace; so the last leaf once has the shape of another, and once a shape of its own. Writes docs/tables/traced_calls.md.
With --by-function it prints in place of that which functions they are.
"""

import argparse
import collections
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxopt_adam

ROOT = Path(__file__).parents[1]
STORAGES = ("float32", "bfloat16", "int8", "int4")
PACKAGE = str(Path(jaxopt_adam.__file__).parent)


def traced(optimizer: optax.GradientTransformation, leaves: int, alike: bool = True) -> collections.Counter[str]:
    """The calls by function while an update of a tree of so many leaves is traced."""
    shapes = [(64, 128 if alike else 128 + 32 * index) for index in range(leaves)]
    params = {f"layer {index}": jax.ShapeDtypeStruct(shape, jnp.float32) for index, shape in enumerate(shapes)}
    state = jax.eval_shape(optimizer.init, params)
    calls: collections.Counter[str] = collections.Counter()

    def count(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE):
            calls[f"{Path(code.co_filename).relative_to(PACKAGE)}: {code.co_qualname}"] += 1

    sys.setprofile(count)
    try:
        jax.make_jaxpr(optimizer.update)(params, state, params)
    finally:
        sys.setprofile(None)
    return calls


def of_one_leaf(optimizer: optax.GradientTransformation, alike: bool = True) -> collections.Counter[str]:
    """The calls by function that one further leaf takes, whose shape another leaf has, or none."""
    traced(optimizer, 2, alike)  # what is cached is no leaf's
    return traced(optimizer, 9, alike) - traced(optimizer, 8, alike)


def main() -> None:
    """Count, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--by-function", action="store_true", help="print which functions the calls are of")
    by_function = parser.parse_args().by_function
    lines = [
        "| adamw with moments in | calls for a further leaf of the same shape | of another shape |",
        "|---|--:|--:|",
    ]
    for storage in STORAGES:
        optimizer = jaxopt_adam.adamw(1e-3, moments=storage)
        calls = of_one_leaf(optimizer, alike=False)
        lines.append(f"| {storage} | {of_one_leaf(optimizer).total()} | {calls.total()} |")
        if by_function:
            print(f"{storage}: {calls.total()}")
            print("".join(f"  {number:4} {name}\n" for name, number in calls.most_common()))
    if not by_function:
        text = "\n".join(lines) + "\n"
        (ROOT / "docs/tables/traced_calls.md").write_text(text)
        print(text, end="")


if __name__ == "__main__":
    main()
