"""The examples run and print what they promise."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_learns(path):
    done = subprocess.run(
        [sys.executable, path], capture_output=True, text=True, timeout=300, check=False, env=os.environ
    )
    assert done.returncode == 0, done.stderr[-3000:]
    if path.stem == "sweep":
        assert float(done.stdout.partition("%")[0]) > 85
    else:
        first, last = map(float, re.findall(r"\d\.\d+", done.stdout))
        assert last < 0.1 * first
