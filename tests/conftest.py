"""Shared fixtures: strict dtype promotion everywhere, 64-bit mode on request."""

import os
from importlib.metadata import version

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")

# Nearly all of the suite's time is compilation. LLVM's optimisations are left out (JAX_DISABLE_MOST_OPTIMIZATIONS=0
# brings them back, as .ci/run does on the newest versions), and so are XLA's parallel code generation and fusion
# emitters, which together take half of the rest; jaxlib 0.12 no longer knows the switch, and aborts on it.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if version("jaxlib").startswith("0.10."):
    _FLAGS = "--xla_cpu_parallel_codegen_split_count=1 --xla_cpu_use_fusion_emitters=false"
    os.environ["XLA_FLAGS"] = f"{_FLAGS} {os.environ.get('XLA_FLAGS', '')}".strip()

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture(scope="module", autouse=True)
def _forget_programs():
    """Free a module's compiled programs after it: a thousand of them take gigabytes and most of a process's maps."""
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def _forget_programs_of_slow_tests(request):
    """The same after each slow test: some modules of them would run out of maps, which ends in a segmentation fault."""
    yield
    if request.node.get_closest_marker("slow"):
        jax.clear_caches()


@pytest.fixture
def x64():
    """Switch 64-bit mode on for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def key():
    """The key that a caller of a random routine brings."""
    return jax.random.key(20230)
