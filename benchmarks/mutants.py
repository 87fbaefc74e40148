"""Faults put into the library's arithmetic, and how many of them the tests catch: python benchmarks/mutants.py.

A mutant is the library with one operator, comparison or constant changed. They are drawn from all places where the
modules below compute, with a seed, so that the same ones can be tried on another version of the tests. For each mutant
the nearest tests are run, and with `--all` then all others, until one fails. Mutants that no test catches are printed,
to be looked at: some change nothing that anybody could see, such as the constant of a hash.

The nearest tests take about half an hour on two cores, `--all` as much again for every few mutants that survive them.
It needs what the tests need, and a clean checkout.
"""

import argparse
import ast
import concurrent.futures
import copy
import dataclasses
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "jaxopt_adam"
MODULES = ("_averages.py", "_rule.py", "_cautious.py", "rules/*.py", "storage/*.py", "weights/*.py", "solve.py")
NEAREST = {
    "_averages": ["test_averages.py", "test_rules.py"],
    "_rule": ["test_family.py", "test_rules.py", "test_hyperparameters.py", "test_properties.py", "test_leafwise.py"],
    "_cautious": ["test_cautious.py", "test_absurd_gradients.py"],
    "rules": ["test_rules.py", "test_whole_leaf_rules.py", "test_family.py", "test_absurd_gradients.py"],
    "rules/muon": ["test_whole_leaf_rules.py", "test_family.py", "test_properties.py", "test_describe.py"],
    "rules/schedule_free_adamw": ["test_schedule_free_chains.py", "test_rules.py", "test_family.py"],
    "rules/soap": ["test_whole_leaf_rules.py", "test_family.py", "test_soap.py"],
    "rules/_matrices": ["test_whole_leaf_rules.py", "test_family.py", "test_soap.py"],
    "storage": ["test_storage.py", "test_moments.py", "test_bfloat16_moments.py", "test_sharding_moments.py"],
    "storage/_codes": ["test_storage.py", "test_moments.py", "test_sharding_moments.py", "test_checks.py"],
    "storage/_kernel": ["test_kernel.py"],
    "storage/_pairs": ["test_bfloat16_moments.py"],
    "storage/_patterns": ["test_bfloat16_moments.py", "test_weights.py", "test_weights_small_steps.py"],
    "weights": ["test_weights.py", "test_weights_small_steps.py"],
    "solve": ["test_solve.py"],
}
"""The tests that are run first, by module or folder; of a rule those that have its name."""
MINUTES = 30

SWAPS: dict[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One fault: the file, the place of the node among the nodes that can be changed, and the change in words."""

    path: str
    index: int
    text: str


def places(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a module that can be changed: operators and constants, but not those of annotations."""
    skipped: set[int] = set()
    for node in ast.walk(tree):
        annotations = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript):
            annotations.append(node.value)  # as the name of a type
        for annotation in filter(None, annotations):
            skipped |= {id(each) for each in ast.walk(annotation)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        operators = [getattr(node, "op", None), *getattr(node, "ops", [])]
        is_number = isinstance(node, ast.Constant) and type(node.value) in (int, float)
        if any(type(each) in SWAPS for each in operators) or is_number or _is_minus(node):
            yield node


def change(node: ast.AST) -> str:
    """Change a node in place; what was changed, in words."""
    before = ast.unparse(copy.deepcopy(node))
    if isinstance(node, ast.Constant):
        value = node.value
        assert isinstance(value, int | float)
        node.value = value + 1 if isinstance(value, int) else 2 * value or 1.0
    elif isinstance(node, ast.UnaryOp):
        node.op = ast.UAdd()
    elif isinstance(node, ast.Compare):
        node.ops[0] = SWAPS[type(node.ops[0])]()
    else:
        node.op = SWAPS[type(node.op)]()  # pyright: ignore[reportAttributeAccessIssue]
    return f"{before}  →  {ast.unparse(node)}"


def _is_minus(node: ast.AST) -> bool:
    return isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)


def drawn(root: Path, number: int, seed: int) -> list[Mutant]:
    """So many mutants of the library below `root`."""
    every = []
    for pattern in MODULES:
        for path in sorted((root / PACKAGE).glob(pattern)):
            tree = ast.parse(path.read_text())
            for index, node in enumerate(places(tree)):
                line = getattr(node, "lineno", 0)
                text = change(copy.deepcopy(node))
                every.append(Mutant(str(path.relative_to(root)), index, f"{path.relative_to(root)}:{line}: {text}"))
    return random.Random(seed).sample(every, number)


def apply(mutant: Mutant, root: Path) -> None:
    """Change the module below `root`."""
    path = root / mutant.path
    tree = ast.parse(path.read_text())
    change(list(places(tree))[mutant.index])
    path.write_text(ast.unparse(tree))


def nearest(mutant: Mutant) -> list[str]:
    """The arguments of pytest for the nearest tests."""
    module = Path(mutant.path).relative_to(PACKAGE)
    room, name = module.parts[0].removesuffix(".py"), str(module.with_suffix(""))
    files = [f"tests/{each}" for each in NEAREST.get(name, NEAREST[room])]
    is_rule = room == "rules" and name not in NEAREST and not module.stem.startswith("_")
    return [*files, "-k", module.stem] if is_rule else files


def caught(mutant: Mutant, tests: Path, *, whole: bool) -> str | None:
    """The test that catches a mutant, or None; `tests` is the checkout whose tests are run, the nearest or all."""
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(folder) / "checkout"
        ignored = shutil.ignore_patterns(".git", "__pycache__", ".hypothesis", "artifacts", "report")
        shutil.copytree(ROOT, copied, ignore=ignored)
        if tests != ROOT:
            shutil.rmtree(copied / "tests")
            shutil.copytree(tests / "tests", copied / "tests", ignore=ignored)
        apply(mutant, copied)
        environment = os.environ | {"PYTHONPATH": str(copied), "PYTHONDONTWRITEBYTECODE": "1"}
        options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "-m"]
        for arguments in [nearest(mutant), ["tests"]][: 1 + whole]:
            command = [sys.executable, "-m", "pytest", *options, "", *arguments]
            try:
                done = subprocess.run(
                    command, cwd=copied, env=environment, capture_output=True, text=True, timeout=60 * MINUTES
                )
            except subprocess.TimeoutExpired:
                return "it does not end"
            failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
            if done.returncode in (1, 2, 3, 4):
                return failed[0].split(" - ")[0] if failed else "nothing can be run"
    return None


def main() -> None:
    """Try the mutants, and print those that no test catches."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--tests", type=Path, default=ROOT, help="another checkout, whose tests are run in place of these"
    )
    parser.add_argument("--all", action="store_true", help="run all tests where the nearest catch nothing")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--list", action="store_true", help="print the mutants, and try none")
    given = parser.parse_args()
    mutants = drawn(ROOT, given.number, given.seed)
    if given.list:
        print("\n".join(mutant.text for mutant in mutants))
        return
    number = 0
    with concurrent.futures.ThreadPoolExecutor(given.workers) as pool:
        running = {pool.submit(caught, mutant, given.tests.resolve(), whole=given.all): mutant for mutant in mutants}
        for done in concurrent.futures.as_completed(running):
            number += done.result() is not None
            print(f"{done.result() or 'SURVIVES'}  {running[done].text}", flush=True)
    print(f"{number} of {len(mutants)} are caught")


if __name__ == "__main__":
    main()
