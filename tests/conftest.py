"""Fixtures that all tests share, how they compile, and an option to run a part of them."""

import contextlib
import gc
import os
from pathlib import Path
from typing import NamedTuple

import compiling
import pytest
from filelock import FileLock


@pytest.fixture
def x64():
    """float64 and complex128 within the test."""
    import jax

    with jax.enable_x64(True):
        yield


class Article(NamedTuple):
    """The folder to which `jaxopt-adam explain` has written, and what it has printed."""

    folder: Path
    printed: str


@pytest.fixture(scope="session")
def article(tmp_path_factory):
    """The interactive article, made once for all workers."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if os.environ.get("PYTEST_XDIST_WORKER") else shared
    folder, printed = shared / "article", shared / "article.txt"
    with FileLock(shared / "article.lock"):
        if not printed.exists():
            from jaxopt_adam.lab.cli import main

            unfinished = printed.with_suffix(".part")
            with unfinished.open("w") as file, contextlib.redirect_stdout(file), pytest.raises(SystemExit) as stop:
                main(["explain", "--out", str(folder)])
            assert not stop.value.code
            unfinished.replace(printed)
    return Article(folder, printed.read_text())


def pytest_addoption(parser):
    parser.addoption("--every", type=int, default=1, metavar="N", help="run the first of each N tests only")
    parser.addoption("--of", metavar="MARKER", help="of those with this marker; and all others")
    parser.addoption("--as-users-do", action="store_true", help="compile with XLA's defaults rather than quickly")


def pytest_configure(config):
    """Set what XLA and JAX read when they are imported; workers and subprocesses inherit it."""
    quick = not config.option.as_users_do
    os.environ["XLA_FLAGS"] = compiling.flags(os.environ.get("XLA_FLAGS", ""), quick=quick)
    if quick:
        # No line numbers in what is lowered: nobody reads them, and to collect them takes a tenth of the time.
        os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
    # A trace makes many objects that live on, and a tenth of the time would go into looking for those that do not.
    gc.set_threshold(200_000, 20, 50)


@pytest.hookimpl(trylast=True)  # of those that other options leave
def pytest_collection_modifyitems(config, items):
    of = config.option.of
    sampled = [item for item in items if of is None or item.get_closest_marker(of)]
    dropped = set(sampled) - set(sampled[:: config.option.every])
    config.hook.pytest_deselected(items=[item for item in items if item in dropped])
    items[:] = [item for item in items if item not in dropped]
