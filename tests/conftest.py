"""Shared fixtures: strict dtype promotion everywhere, 64-bit mode on request."""

import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")

# Most of the suite's time is compilation. LLVM's optimisations are left out (JAX_DISABLE_MOST_OPTIMIZATIONS=0 brings
# them back, as .ci/run does on the newest versions), and programs that come up again, in the suite's workers and in
# commands that a test starts, are taken from a cache that lives as long as the session.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
_OWN_CACHE = None
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _OWN_CACHE = tempfile.mkdtemp(prefix="spectrax-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _OWN_CACHE
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import jax  # noqa: E402  (after the environment that it reads)
import pytest  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")


def pytest_unconfigure():
    """Remove the cache; only the process that made it, which the workers inherit it from, does so."""
    if _OWN_CACHE is not None:
        shutil.rmtree(_OWN_CACHE, ignore_errors=True)


@pytest.fixture
def x64():
    """Switch 64-bit mode on for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def key():
    """The key that a caller of a random routine brings."""
    return jax.random.key(20230)
