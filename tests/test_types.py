"""Errors that type checkers find in programs that use the library, and programs that they accept."""

import importlib.util
import inspect
import json
import re
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import jax.numpy as jnp
import pytest
import typed
from public import RULES

import jaxopt_adam
from jaxopt_adam._arguments import Arguments
from jaxopt_adam.storage import NAMED, StorageName

LIBRARY = Path(jaxopt_adam.__file__).parents[1]
PROGRAMS = Path(typed.__file__)
MISTAKES = {
    number: line.split("#")[0].strip()
    for number, line in enumerate(PROGRAMS.read_text(encoding="utf-8").splitlines(), start=1)
    if line.endswith("  # mistake")
}


def test_correct_programs_run():
    typed.correct(jnp.asarray(0.5))


@pytest.mark.parametrize("program", MISTAKES.values())
def test_mistakes_do_not_run(program):
    with pytest.raises((TypeError, ValueError, AttributeError)):
        exec(program, vars(typed))


@pytest.mark.processes
def test_pyright(tmp_path):
    # JAX's own functions are typed in part.
    settings = {"typeCheckingMode": "strict", "extraPaths": [str(LIBRARY)], "reportUnknownMemberType": False}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    done = _run("pyright", ["--outputjson", "--pythonpath", sys.executable], tmp_path)
    reports = json.loads(done.stdout)["generalDiagnostics"]
    _compare({report["range"]["start"]["line"] + 1: report["message"] for report in reports})


@pytest.mark.processes
def test_mypy(tmp_path):
    # optax has types but does not say so, nor which of the names that it imports are its own.
    optax = "[mypy-optax.*]\nfollow_untyped_imports = True\nimplicit_reexport = True\n"
    (tmp_path / "mypy.ini").write_text(f"[mypy]\nstrict = True\nmypy_path = {LIBRARY}\n{optax}")
    done = _run("mypy", ["--follow-imports=silent", "--python-executable", sys.executable], tmp_path)
    lines = [re.match(rf"{PROGRAMS.name}:(\d+): error: (.*)", line) for line in done.stdout.splitlines()]
    _compare({int(line[1]): line[2] for line in lines if line})


def test_a_type_checker_knows_all_arguments_of_all_rules():
    factories = list(RULES.values())
    rules = [each for each in factories if inspect.isfunction(each) and hasattr(each, "__wrapped__")]
    names = {name for rule in rules for name in inspect.signature(rule).parameters}
    assert len(rules) > 20
    known = set(typing.get_type_hints(Arguments))
    assert known ^ names == set()
    assert typing.get_args(StorageName) == tuple(NAMED)


def _run(checker, arguments, folder):
    if importlib.util.find_spec(checker) is None:
        pytest.skip(f"{checker} is not installed")
    shutil.copy(PROGRAMS, folder)
    command = [sys.executable, "-m", checker, *arguments, PROGRAMS.name]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def _compare(found):
    missed = [program for number, program in MISTAKES.items() if number not in found]
    wrong = [f"line {number}: {message}" for number, message in found.items() if number not in MISTAKES]
    assert not missed, found
    assert not wrong
