"""Every public routine for convolutions at one shape, what compiling it takes, and whether it lowers for TPUs."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

import spectrax as sx
from spectrax.spectrum.convolution.norms import METHODS
from spectrax.spectrum.convolution.singular_values import TRANSFORMS

ESTIMATES = ("tensor_norm", "exact")  # they take a key


def routines(size: int) -> dict[str, Callable[[jax.Array], Any]]:
    """Return functions of a square kernel; the image is size x size."""
    shape, key = (size, size), jax.random.key(0)
    frequencies = jnp.zeros((size * size, 2))

    def values(**options) -> Callable:
        return lambda kernel: sx.conv_singular_values(kernel, shape, **options)

    def norm(**options) -> Callable:
        return lambda kernel: sx.conv_norm(kernel, input_shape=shape, **options).value

    def product(**options) -> Callable:
        def applied(kernel: jax.Array) -> Any:
            operator = sx.conv_operator(kernel, shape, **options)
            return operator.rmatvec(operator.matvec(jnp.ones(operator.in_struct.shape)))

        return applied

    def folded(kernel: jax.Array) -> Any:
        one = jnp.ones(kernel.shape[-1])
        return sx.fold_batch_norm(kernel, scale=one, bias=one, mean=one, var=one, epsilon=1e-5)

    found: dict[str, Callable[[jax.Array], Any]] = {"conv_symbol": lambda kernel: sx.conv_symbol(kernel, frequencies)}
    for transform in TRANSFORMS[1:]:
        found[f"conv_singular_values, circular, {transform}"] = values(padding="CIRCULAR", transform=transform)
    found["conv_singular_values, SAME, dense"] = values(padding="SAME", max_bytes=2**32)
    found["conv_singular_values, SAME, quantile"] = values(padding="SAME", method="quantile")
    for method in METHODS[1:]:
        own = {"key": key} if method in ESTIMATES else {}
        found[f"conv_norm, SAME, {method}"] = norm(padding="SAME", method=method, **own)
    found["conv_norm, circular, exact"] = norm(padding="CIRCULAR", method="exact")
    found["conv_norm, circular, gram"] = norm(padding="CIRCULAR", method="gram")
    found["conv_norm, SAME, certified"] = norm(padding="SAME", certified=True)
    for padding in ("circular", "SAME"):
        tracker = sx.conv_extremes(shape, padding=padding.upper())
        found[f"conv_extremes, {padding}, init"] = lambda kernel, tracker=tracker: tracker.init(kernel, key)
        found[f"conv_extremes, {padding}, update"] = lambda kernel, tracker=tracker: tracker.update(
            kernel, tracker.init(kernel, key)
        )
    for name, options in {
        "SAME": {"padding": "SAME"},
        "stride 2": {"padding": "SAME", "strides": 2},
        "transposed": {"padding": ((1, 1), (1, 1)), "input_dilation": 2},
    }.items():
        found[f"conv_operator, {name}, A^H A"] = product(**options)
        found[f"conv_norm, {name}, size-free certified"] = lambda kernel, options=options: (
            sx.conv_norm(kernel, certified=True, **options).value
        )
    found["cayley"] = lambda kernel: sx.cayley(kernel.reshape(-1, kernel.shape[-1]))
    found["row_isometry_error"] = lambda kernel: sx.row_isometry_error(kernel, shape)
    found["clip_spectral_norm"] = lambda kernel: sx.clip_spectral_norm(kernel, 1.0, shape)
    found["conv_row_normalize"] = lambda kernel: sx.conv_row_normalize(kernel, shape)
    found["cayley_convolution"] = lambda kernel: sx.cayley_convolution(kernel, shape)
    found["aol_rescale"] = sx.aol_rescale
    found["conv_orthogonality"] = sx.conv_orthogonality
    found["fold_batch_norm"] = folded
    return found


def compilation(function: Callable[[jax.Array], Any], kernel: jax.Array) -> dict[str, Any]:
    """Return the CPU seconds of tracing and of compiling, the second time, and what lowering for TPUs gives."""
    row: dict[str, Any] = {}
    for _ in range(2):
        jax.clear_caches()
        began = time.process_time()
        lowered = jax.jit(function).lower(kernel)
        traced = time.process_time()
        lowered.compile()
        row = {"trace_cpu_seconds": traced - began, "compile_cpu_seconds": time.process_time() - traced}
    return row | {"tpu": tpu(function, kernel)}


def tpu(function: Callable[[jax.Array], Any], kernel: jax.Array) -> dict[str, Any]:
    """Return the CPU seconds of lowering for TPUs and the size of the StableHLO text, or the error."""
    jax.clear_caches()
    began = time.process_time()
    try:
        text = jax.export.export(jax.jit(function), platforms=["tpu"])(kernel).mlir_module()
    except Exception as error:  # which routines don't lower is what is asked
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    return {"cpu_seconds": time.process_time() - began, "stablehlo_bytes": len(text.encode())}
