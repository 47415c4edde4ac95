"""Shared fixtures: strict dtype promotion everywhere, 64-bit mode on request."""

import gc
import os
import subprocess
import sys
import textwrap
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
# OpenBLAS, which does LAPACK's work in NumPy, SciPy and jaxlib, would start as many threads as there are cores in every
# worker of pytest; they wait for each other while spinning, and a notebook of 15 seconds took two minutes.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Nearly all of the suite's time is compilation. LLVM's optimisations are left out (JAX_DISABLE_MOST_OPTIMIZATIONS=0
# brings them back, as .ci/run does on the newest versions), and so are XLA's parallel code generation and fusion
# emitters, which together take half of the rest (jaxlib 0.12 no longer knows the switch, and aborts on it), and its
# passes over loops, a tenth.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1" and version("jaxlib").startswith("0.10."):
    _LOOPS = "while-loop-trip-count-annotator,while-loop-invariant-code-motion,simplify-while-loops"
    _FLAGS = (
        "--xla_cpu_parallel_codegen_split_count=1 --xla_cpu_use_fusion_emitters=false "
        f"--xla_disable_hlo_passes={_LOOPS}"
    )
    if _FLAGS not in os.environ.get("XLA_FLAGS", ""):  # as it is in pytest's workers, which inherit them
        os.environ["XLA_FLAGS"] = f"{_FLAGS} {os.environ.get('XLA_FLAGS', '')}".strip()

import jax
import numpy as np
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
# Python looks less often for cycles among the many objects of a trace: a twentieth of the time.
gc.set_threshold(100_000, 50, 100)


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


@pytest.fixture(scope="session")
def on_eight_devices():
    """Run a program, a path or a text, on eight host devices in a process of its own; what it prints comes back."""

    def run(program):
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
        # With fewer threads than devices, which JAX takes from NPROC, collectives would wait for each other for ever.
        settings = {"XLA_FLAGS": flags, "NPROC": "16", "JAX_PLATFORMS": "cpu"}
        environment = {**os.environ, **settings, "PYTHONPATH": str(Path(__file__).parents[1])}
        arguments = [str(program)] if isinstance(program, Path) else ["-c", textwrap.dedent(program)]
        done = subprocess.run(
            [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout.strip()

    return run


@pytest.fixture(scope="session")
def convolution_matrix():
    """The matrix of a convolution, built entry by entry in NumPy from its definition."""

    def build(kernel, sizes, *, padding="CIRCULAR", strides=1, groups=1, dilation=1, spread=1):
        kernel = np.asarray(kernel)
        *taps, channels, features = kernel.shape
        strides, reach = np.broadcast_to(strides, len(taps)), (np.array(taps) - 1) * dilation + 1
        sizes, inputs = (np.array(sizes) - 1) * spread + 1, tuple(sizes)
        total = np.maximum((-(-np.array(sizes) // strides) - 1) * strides + reach - sizes, 0)
        named = {
            "CIRCULAR": ((reach - 1) // 2, reach // 2),
            "SAME": (total // 2, total - total // 2),
            "VALID": (0 * total, 0 * total),
            "FULL": (reach - 1, reach - 1),
        }
        before, after = named[padding] if isinstance(padding, str) else np.array(padding).T
        image = (sizes + before + after - reach) // strides + 1
        matrix = np.zeros((*image, features, *inputs, groups * channels), kernel.dtype)
        own = features // groups
        for y in np.ndindex(*image):
            for p in np.ndindex(*taps):
                x = np.array(y) * strides + np.array(p) * dilation - before
                if padding == "CIRCULAR":
                    x = x % sizes
                if np.all((x >= 0) & (x < sizes) & (x % spread == 0)):
                    x = x // spread
                    for g in range(groups):
                        rows, columns = slice(g * own, (g + 1) * own), slice(g * channels, (g + 1) * channels)
                        matrix[(*y, rows, *x, columns)] += kernel[p][:, rows].T
        return matrix.reshape(np.prod(image) * features, -1)

    return build
