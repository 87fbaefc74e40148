"""Fixtures that all rooms' tests share."""

import jax
import pytest


@pytest.fixture
def x64():
    """float64 and complex128 within the test."""
    with jax.enable_x64(True):
        yield
