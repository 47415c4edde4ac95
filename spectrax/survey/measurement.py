"""What is measured of one matrix: both ends of its spectrum with residuals, ranks, and how the values are distributed.

A matrix is taken with its longer side first, so that shapes that are each other's transpose share a compiled program.
"""

import contextlib
import functools
import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectrax.results import Status, SVDResult
from spectrax.spectrum import Dense, InverseLanczos, Lanczos, SpectralDensity, spectral_density, svds
from spectrax.spectrum.methods import BLOCK_SIZE, BLOCK_VALUES
from spectrax.survey.configuration import SpectrumConfig
from spectrax.survey.selection import Matrix
from spectrax.survey.verification import status_of, verified

# Below so many multiplications, m n^2 for each of the matrices of a shape, it takes less time to decompose all of them
# wholly than to compile the iterations: some 6 seconds on one core.
DENSE_WORK = 2e10
_BINS, _RANKS = 40, 129  # of a density, and of the curve of sorted values
_PROBES, _STEPS = 16, 64  # of a density that is estimated


def measure(matrix: Matrix, values: np.ndarray, config: SpectrumConfig, /) -> dict[str, Any]:
    """Measure one matrix.

    Args:
        matrix: Which one.
        values: Its entries, shape (m, n), of any real or complex floating-point dtype.
        config: What to measure.

    Returns:
        A record of plain numbers, strings, lists and dicts, with `finite` False and nothing measured where an entry is
        not finite. Each quantity is a dict with its `value` and its `kind`.
    """
    dtype = working_dtype(values.dtype, config.precision)
    with np.errstate(over="ignore"):
        work = np.asarray(values, dtype)
    peak = _peak(work)
    found: dict[str, Any] = {
        "name": matrix.name, "kind": matrix.kind, "shape": list(matrix.shape), "dtype": matrix.array.dtype,
        "quantized": matrix.array.quantized, "precision": dtype.name, "finite": math.isfinite(peak),
    }  # fmt: skip
    if not found["finite"]:
        return found
    # A power of two is taken out, exactly, where squares could overflow or lose digits.
    exponent = math.frexp(peak)[1] if peak != 0 and not 1e-6 < peak < 1e6 else 0
    if exponent:
        work = work * dtype.type(2.0 ** (-exponent // 2)) * dtype.type(2.0 ** (-exponent - -exponent // 2))
    tall = work if work.shape[0] >= work.shape[1] else work.T
    frobenius = _frobenius_norm(work)
    found["frobenius_norm"] = {"value": frobenius, "kind": "exact"}
    found["not_measured"] = {}
    context = jax.enable_x64(True) if dtype.itemsize // (1 + (dtype.kind == "c")) == 8 else contextlib.nullcontext()
    with context:
        array = jnp.asarray(tall)
        if is_dense(matrix, config):
            found["method"] = "dense"
            found |= _dense(array, tall, config)
        else:
            found["method"] = "iterative"
            found |= _iterative(array, tall, config, matrix.name, found["not_measured"])
    if "sigma_max" in found:
        found["stable_rank"] = _stable_rank(frobenius, found["sigma_max"], min(matrix.shape))
    if "sigma_min" in found:
        found["condition_number"] = _condition_number(found["sigma_max"], found["sigma_min"], array)
    with np.errstate(over="ignore"):  # values above the largest double are inf
        return _scaled(found, exponent) if exponent else found


def working_dtype(stored: Any, precision: str) -> np.dtype:
    """Return what a matrix is computed in.

    Args:
        stored: The dtype that it has.
        precision: "stored", "float32" or "float64".

    Returns:
        float32, float64, complex64 or complex128.
    """
    stored = np.dtype(stored)
    wide = stored.itemsize // (1 + (stored.kind == "c")) >= 8 if precision == "stored" else precision == "float64"
    if stored.kind == "c":
        return np.dtype(np.complex128 if wide else np.complex64)
    return np.dtype(np.float64 if wide else np.float32)


def is_dense(matrix: Matrix, config: SpectrumConfig) -> bool:
    """Whether a matrix is decomposed wholly, by a rule on shapes and counts.

    Args:
        matrix: The matrix.
        config: The survey's configuration.

    Returns:
        True for `method="dense"`, for what is too small to iterate on, and under "auto" where all matrices of the shape
        are decomposed in less time than the iterations take to compile.
    """
    m, n = max(matrix.shape), min(matrix.shape)
    if n > config.max_side:
        return False
    return (
        config.method == "dense" or 2 * config.k + 10 >= n
        or (config.method == "auto" and matrix.twins * m * n**2 <= DENSE_WORK)
    )  # fmt: skip


def _dense(array: jax.Array, tall: np.ndarray, config: SpectrumConfig) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if not config.wants_top:
        return _whole(np.asarray(_values(array), float), array, config)
    result = jax.device_get(_all_triplets(array, config.tol))
    s = np.asarray(result.s, float)
    found |= _largest(verified(result, min(config.k, s.size), tall, _tol(config, array)), array, exact=True)
    if config.wants_bottom:
        found["sigma_min"] = _smallest(result, _tol(config, array), array, exact=True)
    return found | (_whole(s, array, config) if config.wants_whole else {})


def _iterative(
    array: jax.Array, tall: np.ndarray, config: SpectrumConfig, name: str, not_measured: dict[str, str]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    seeds = np.array([config.seed, zlib.crc32(name.encode())], np.uint32)
    whole = None
    small = array.shape[1] <= config.max_side
    if config.wants_whole and small:
        whole = np.asarray(_values(array), float)
        found |= _whole(whole, array, config)
    elif config.wants_whole:
        found |= _estimated(_density(array, seeds), config)
    if config.wants_top:
        k = min(config.k, array.shape[1])
        found |= _largest(
            verified(jax.device_get(largest_triplets(array, seeds, k, config.tol)), k, tall, _tol(config, array)),
            array,
            exact=False,
        )
        _compare(found["sigma_max"], whole, 0, array)
    if config.wants_bottom and small:
        found["sigma_min"] = _smallest(
            jax.device_get(_bottom(array, seeds, config.tol)), _tol(config, array), array, exact=False
        )
        _compare(found["sigma_min"], whole, -1, array)
    if not small:
        reason = f"the shorter side, {array.shape[1]}, is above --max-side {config.max_side}"
        bottom, ranks, density = config.wants_bottom, "ranks" in config.measure, "density" in config.measure
        wanted = {"sigma_min": bottom, "condition_number": bottom, "rank": ranks, "spectrum": density}
        not_measured |= {name: reason for name, asked in wanted.items() if asked}
    return found


@functools.partial(jax.jit, static_argnums=1)
def _all_triplets(array: jax.Array, tol: float | None) -> SVDResult:
    return svds(array, min(array.shape), method=Dense(), tol=tol)


@functools.partial(jax.jit, static_argnums=(2, 3))
def largest_triplets(array: jax.Array, seeds: np.ndarray, k: int, tol: float | None) -> SVDResult:
    """Find the k largest triplets by iteration.

    Args:
        array: The matrix, shape (m, n).
        seeds: Two numbers for the start, uint32.
        k: How many.
        tol: As in `svds`.

    Returns:
        The triplets.
    """
    key = jax.random.fold_in(jax.random.key(seeds[0]), seeds[1])
    blocks = Lanczos(block_size=BLOCK_SIZE, subspace_size=2 * k + 10 * BLOCK_SIZE)
    return svds(array, k, method=Lanczos() if k < BLOCK_VALUES else blocks, tol=tol, key=key)


@functools.partial(jax.jit, static_argnums=2)
def _bottom(array: jax.Array, seeds: np.ndarray, tol: float | None) -> SVDResult:
    key = jax.random.fold_in(jax.random.key(seeds[0]), seeds[1])
    return svds(array, 1, which="smallest", method=InverseLanczos(), tol=tol, key=key)


@jax.jit
def _density(array: jax.Array, seeds: np.ndarray) -> SpectralDensity:
    key = jax.random.fold_in(jax.random.key(seeds[0]), ~seeds[1])
    return spectral_density(array, key=key, num_probes=_PROBES, num_steps=_STEPS, spectrum="singular_values")


@jax.jit
def _values(array: jax.Array) -> jax.Array:
    return jnp.linalg.svd(array, compute_uv=False)


def _largest(top: dict[str, Any], array: jax.Array, *, exact: bool) -> dict[str, Any]:
    good = top["status"] <= Status.AT_ROUND_OFF
    floor = _round_off(array)
    s, residuals = top["values"], top["residuals"]
    margin = math.sqrt(0.5) * residuals[0] + floor * s[0]
    kind = "exact" if exact and good else "lower"
    entry = {
        "value": s[0], "residual": residuals[0], "converged": bool(top["converged"][0]), "kind": kind,
        "lower": max(s[0] - margin, 0.0), "upper": s[0] + margin if kind == "exact" else math.inf,
        "status": top["status"].name.lower(), "refined": top["refined"],
    }  # fmt: skip
    if len(s) == 1:
        return {"sigma_max": entry}
    each = zip(s, residuals, top["converged"], strict=True)
    return {"sigma_max": entry, "top": [{"value": v, "residual": r, "converged": bool(c)} for v, r, c in each]}


def _smallest(result: SVDResult, tol: float, array: jax.Array, *, exact: bool) -> dict[str, Any]:
    value, residual = float(result.s[-1]), float(result.residuals[-1])
    status = status_of(result, slice(-1, None), tol)
    good = bool(result.converged[-1]) and math.isfinite(value)
    # Entries below the smallest normal number count as zero, those that a scale took there among them.
    margin = math.sqrt(0.5) * residual + math.sqrt(array.size) * float(jnp.finfo(array.dtype).tiny)
    return {
        "value": value, "residual": residual, "converged": good, "kind": "exact" if exact and good else "upper",
        "lower": max(value - margin, 0.0) if exact and good else 0.0, "upper": value + margin,
        "status": status.name.lower(),
    }  # fmt: skip


def _compare(entry: dict[str, Any], whole: np.ndarray | None, place: int, array: jax.Array) -> None:
    """Let a value by iteration be exact where the whole decomposition has the same, and fail where it has not."""
    if whole is None or not math.isfinite(entry["value"]):
        return
    margin = entry["residual"] + 4 * _round_off(array) * float(whole[0])
    if abs(entry["value"] - whole[place]) > margin:
        entry |= {"converged": False, "status": "not_converged", "value": float(whole[place])}
        entry |= {"residual": math.nan, "kind": "estimate", "lower": 0.0, "upper": math.inf}
    elif entry["converged"]:
        entry |= {"kind": "exact", "lower": max(entry["value"] - margin, 0.0), "upper": entry["value"] + margin}


def _condition_number(top: dict[str, Any], bottom: dict[str, Any], array: jax.Array) -> dict[str, Any]:
    """Return the quotient with its bounds; inf where sigma_min is at round-off, or at most its own residual."""
    if not (top["converged"] and bottom["converged"]):
        at_least = top["lower"] / bottom["upper"] if bottom["upper"] > 0 else math.inf
        sound = math.isfinite(bottom["upper"]) and math.isfinite(top["lower"])
        return {"value": math.nan, "lower": max(at_least, 1.0) if sound else 1.0, "upper": math.inf, "kind": "lower"}
    floor = _round_off(array) * top["value"]
    singular = bottom["value"] <= max(floor, math.sqrt(0.5) * bottom["residual"])
    lower = max(top["lower"] / bottom["upper"], 1.0) if bottom["upper"] > 0 else math.inf
    lower = lower if top["value"] > 0 else 1.0
    upper = top["upper"] / bottom["lower"] if bottom["lower"] > floor else math.inf
    value = math.inf if singular else top["value"] / bottom["value"]
    kind = "exact" if top["kind"] == bottom["kind"] == "exact" else "lower"
    return {"value": value, "lower": lower, "upper": upper, "kind": kind}


def _stable_rank(frobenius: float, top: dict[str, Any], side: int) -> dict[str, Any]:
    if top["value"] == 0:
        return {"value": 0.0, "lower": 0.0, "upper": 0.0, "kind": top["kind"]}
    if not top["converged"]:
        return {"value": math.nan, "lower": 1.0, "upper": float(side), "kind": "upper"}
    lower = (frobenius / top["upper"]) ** 2 if math.isfinite(top["upper"]) else 1.0
    upper = (frobenius / top["lower"]) ** 2 if top["lower"] > 0 else math.inf
    value = (frobenius / top["value"]) ** 2
    kind = "exact" if top["kind"] == "exact" else "upper"
    return {"value": value, "lower": max(lower, 1.0), "upper": min(upper, float(side)), "kind": kind}


def _whole(s: np.ndarray, array: jax.Array, config: SpectrumConfig) -> dict[str, Any]:
    """Return what follows from all singular values."""
    found: dict[str, Any] = {}
    if not np.all(np.isfinite(s)):
        nothing = {"value": math.nan, "kind": "estimate"}
        return {name: nothing for name in ("effective_rank", "rank") if "ranks" in config.measure}
    if "ranks" in config.measure:
        shares = s / s.sum() if s[0] > 0 else s
        shares = shares[shares > 0]
        entropy = -float(np.sum(shares * np.log(shares)))
        found["effective_rank"] = {"value": math.exp(entropy) if s[0] > 0 else 0.0, "kind": "exact"}
        found["rank"] = {"value": int(np.sum(s > max(array.shape) * _eps(array) * s[0])), "kind": "estimate"}
    if "density" in config.measure:
        places = np.unique(np.round(np.linspace(0, s.size - 1, min(_RANKS, s.size))).astype(int))
        counts, edges = np.histogram(s, bins=_BINS, range=(0.0, s[0] if s[0] > 0 else 1.0))
        found["density"] = {"edges": edges, "counts": counts, "kind": "exact"}
        found["spectrum"] = {"rank": places + 1, "value": s[places], "kind": "exact"}
    return found


def _estimated(density: SpectralDensity, config: SpectrumConfig) -> dict[str, Any]:
    """Return what random probes say of all singular values: estimates, the cumulative shares with intervals of 95 %."""
    found: dict[str, Any] = {}
    if "ranks" in config.measure:
        total = float(density.sum(lambda s: s).value)
        weighted = float(density.sum(lambda s: jnp.where(s > 0, s * jnp.log(jnp.where(s > 0, s, 1)), 0)).value)
        rank = math.exp(math.log(total) - weighted / total) if total > 0 else 0.0
        found["effective_rank"] = {"value": min(rank, float(density.dimension)), "kind": "estimate"}
    if "density" in config.measure:
        edges = np.linspace(0.0, float(jnp.max(density.nodes)), _BINS + 1)
        shares = density.cumulative(edges)
        cumulative = {name: np.asarray(getattr(shares, name), float) for name in ("value", "lower", "upper")}
        counts = np.maximum(np.diff(cumulative["value"]), 0) * density.dimension
        found["density"] = {"edges": edges, "counts": counts, "cumulative": cumulative, "kind": "estimate"}
    return found


def _peak(work: Any) -> float:
    """Return the largest modulus of a real or imaginary part; NaN or inf where an entry is not finite."""
    parts = (work.real, work.imag) if work.dtype.kind == "c" else (work,)
    return float(np.max([[np.max(part), -np.min(part)] for part in parts]))


def _frobenius_norm(matrix: np.ndarray) -> float:
    """Return the norm from sums in 64 bits, by parts of the rows that stay in the cache."""
    rows, total = max(1, 2**15 // matrix.shape[1]), 0.0
    wide = np.complex128 if matrix.dtype.kind == "c" else np.float64
    for start in range(0, matrix.shape[0], rows):
        part = matrix[start : start + rows].astype(wide)
        total += float(np.vdot(part, part).real)
    return math.sqrt(total)


def _scaled(found: dict[str, Any], exponent: int) -> dict[str, Any]:
    """Put back the power of two."""
    lengths = [found[name] for name in ("frobenius_norm", "sigma_max", "sigma_min") if name in found]
    for entry in [*lengths, *found.get("top", [])]:
        for name in ("value", "residual", "lower", "upper"):
            if name in entry:
                entry[name] = float(np.ldexp(entry[name], exponent))
    if "density" in found:
        found["density"]["edges"] = np.ldexp(found["density"]["edges"], exponent)
    if "spectrum" in found:
        found["spectrum"]["value"] = np.ldexp(found["spectrum"]["value"], exponent)
    return found


def _eps(array: jax.Array) -> float:
    return float(jnp.finfo(array.dtype).eps)


def _round_off(array: jax.Array) -> float:
    """The round-off of a decomposition relative to the largest value, as in `spectrum.quantities`."""
    return _eps(array) * max(array.shape) ** 0.5


def _tol(config: SpectrumConfig, array: jax.Array) -> float:
    return config.tol or (1e-10 if _eps(array) < 1e-10 else 1e-6)
