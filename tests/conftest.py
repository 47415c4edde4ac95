"""Shared fixtures: strict dtype promotion everywhere, 64-bit mode on request."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def x64():
    """Switch 64-bit mode on for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def key():
    """The key that a caller of a random routine brings."""
    return jax.random.key(20230)
