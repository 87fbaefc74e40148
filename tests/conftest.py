"""Fixtures that all rooms' tests share, and an option to run a part of them."""

import jax
import pytest


@pytest.fixture
def x64():
    """float64 and complex128 within the test."""
    with jax.enable_x64(True):
        yield


def pytest_addoption(parser):
    parser.addoption("--every", type=int, default=1, metavar="N", help="run the first of each N tests only")


@pytest.hookimpl(trylast=True)  # of those that other options leave
def pytest_collection_modifyitems(config, items):
    left = items[:: config.option.every]
    config.hook.pytest_deselected(items=[item for item in items if item not in left])
    items[:] = left
