"""LAPACK's test ratios: errors in units of the round-off of the dtype, over the whole gallery, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import spectrax as sx
from spectrax import testing

GALLERY = testing.gallery(jax.random.key(7))
METHODS = {
    "dense": sx.Dense(),
    "lanczos": sx.Lanczos(),
    "block": sx.Lanczos(block_size=3),
    "inverse": sx.InverseLanczos(),
}
THRESHOLD = 50.0  # that of LAPACK's own test of its SVD drivers (xDRVBD, svd.in)
DTYPES = ("float64", "float32", "complex128", "complex64", "bfloat16")
ENDS = [
    (name, which) for name in METHODS for which in ("largest", "smallest") if (name, which) != ("inverse", "largest")
]


def ratios(result, matrix, which):
    """Residual / (eps |A| max(m, n)), |I - U^H U| and |I - V^H V| / (eps max(m, n)), and the error of the values."""
    wide = matrix.astype(np.complex128 if np.iscomplexobj(matrix) else np.float64)
    true = np.linalg.svd(wide, compute_uv=False)
    k, longer = len(np.asarray(result.s)), max(matrix.shape)
    unit = float(jnp.finfo(result.s.dtype).eps) * longer
    norm = true[0] if true[0] > 0 else 1.0
    u, s, v = (np.asarray(part).astype(wide.dtype) for part in result[:3])
    residual = np.hypot(
        np.linalg.norm(v @ wide.T - s[:, None] * u, axis=1), np.linalg.norm(u @ wide.conj() - s[:, None] * v, axis=1)
    )
    defects = [np.abs(rows.conj() @ rows.T - np.eye(k)).max() / unit for rows in (u, v)]
    wanted = true[:k] if which == "largest" else true[-k:]
    error = np.abs(s.real - wanted)
    return residual, max(defects), error, unit * norm


def check(dtype, method, which, k, *, shapes, round_off):
    eps = float(jnp.finfo(np.float32 if dtype == "bfloat16" else dtype).eps)
    tol = 2 * eps if round_off else None
    claimed = 0
    for case in GALLERY:
        if case.is_complex and not dtype.startswith("complex"):
            continue
        if shapes == "one" and case.matrix.shape != (40, 32):
            continue
        operator = case.operator(dtype)
        matrix = np.asarray(operator.to_dense())
        count = min(k, min(matrix.shape))
        result = sx.svds(operator, count, which=which, method=METHODS[method], key=jax.random.key(1), tol=tol)
        where = (case.name, np.asarray(result.s), np.asarray(result.residuals), int(result.status))
        residual, defect, error, unit = ratios(result, matrix, which)
        assert defect <= THRESHOLD, where
        assert np.isfinite(np.asarray(result.s)).all(), where
        converged = bool(result.converged.all())
        assert converged == (int(result.status) <= sx.Status.AT_ROUND_OFF), where
        assert converged or method != "dense", where
        if not converged:  # flagged: the residuals are true all the same
            assert (np.abs(residual - np.asarray(result.residuals)) <= THRESHOLD * unit).all(), where
            continue
        claimed += 1
        if method == "dense" or round_off:
            assert (residual <= THRESHOLD * unit).all(), where
            assert (error <= THRESHOLD * unit).all(), where
        else:
            relative = 1e-10 if eps < 1e-10 else 1e-6
            allowed = np.maximum(relative * np.asarray(result.s, np.float64), THRESHOLD * unit)
            assert (residual <= allowed).all(), where
            assert (error <= allowed).all(), where
    assert claimed >= 10, f"{claimed} converged"


@pytest.mark.parametrize(
    ("dtype", "method", "which", "k"),
    [
        ("float64", "dense", "smallest", 3),
        ("complex64", "dense", "largest", 32),
        ("bfloat16", "lanczos", "largest", 3),
        ("complex128", "lanczos", "smallest", 1),
        ("float32", "block", "largest", 3),
        ("float64", "inverse", "smallest", 3),
    ],
)
def test_ratios(dtype, method, which, k, x64):
    check(dtype, method, which, k, shapes="one", round_off=True)


def test_an_error_shows(x64):
    """The ratios of a result that is off by a hundred units of round-off are above the threshold."""
    matrix = GALLERY[10].matrix.real
    result = sx.svds(matrix, 3, method=sx.Dense())
    off = 100 * np.finfo(np.float64).eps * 40 * float(result.s[0])
    for spoilt in (result._replace(s=result.s + off), result._replace(v=result.v * (1 + off))):
        residual, defect, error, unit = ratios(spoilt, matrix, "largest")
        assert max(residual.max() / unit, defect, error.max() / unit) > THRESHOLD


@pytest.mark.slow
@pytest.mark.parametrize("round_off", [True, False])
@pytest.mark.parametrize("k", [1, 3, 40])
@pytest.mark.parametrize(("method", "which"), ENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_ratios_everywhere(dtype, method, which, k, round_off, x64):
    check(dtype, method, which, k, shapes="all", round_off=round_off)
