"""The decomposition that stands in for an SVD on TPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from spectrax.krylov.projected import jordan_wielandt_svd, projected_svd

SIZE = 8


def matrices(rng, dtype):
    def unitary():
        draw = rng.normal(size=(SIZE, SIZE)) + (1j * rng.normal(size=(SIZE, SIZE)) if dtype.startswith("c") else 0)
        return np.linalg.qr(draw)[0]

    spectra = {
        "distinct": np.linspace(1, 2, SIZE),
        "spread": 10.0 ** -np.arange(SIZE),
        "repeated": np.repeat([3.0, 1.0], SIZE // 2),
        "rank one": np.eye(SIZE)[0],
        "rank five": np.array([5.0, 4, 3, 2, 1, 0, 0, 0]),
        "zero": np.zeros(SIZE),
    }
    made = {name: (unitary() * s) @ unitary().conj().T for name, s in spectra.items()}
    return {**made, "identity": np.eye(SIZE), "bidiagonal": np.eye(SIZE) + np.eye(SIZE, k=1)}


@pytest.mark.parametrize("decompose", [jordan_wielandt_svd, projected_svd])
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
def test_against_numpy(decompose, dtype, x64):
    eps = float(jnp.finfo(dtype).eps)
    decompose = jax.jit(decompose)
    for name, matrix in matrices(np.random.default_rng(0), dtype).items():
        given = jnp.asarray(matrix.astype(dtype))
        left, values, right_h = decompose(given)
        size = np.linalg.norm(matrix, 2)
        truth = np.linalg.svd(np.asarray(given).astype(np.complex128), compute_uv=False)
        assert_allclose(values, truth, atol=20 * eps * size, err_msg=name)
        assert (np.diff(values) <= 0).all(), name
        assert_allclose(left.conj().T @ left, np.eye(SIZE), atol=40 * eps, err_msg=name)
        assert_allclose(right_h @ right_h.conj().T, np.eye(SIZE), atol=40 * eps, err_msg=name)
        assert_allclose((left * values.astype(dtype)) @ right_h, matrix, atol=60 * eps * size, err_msg=name)
        assert values.dtype == jnp.finfo(dtype).dtype
