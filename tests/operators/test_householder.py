"""QR factorisations with Q as reflectors: the identities that define them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from spectrax.operators import householder


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("shape", [(7, 4), (4, 4), (4, 7), (5, 1), (1, 5)])
def test_q_r_is_the_matrix(shape, dtype, x64):
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=shape) + (1j * rng.normal(size=shape) if dtype == "complex128" else 0)
    for case in (matrix, matrix * 0, np.ones(shape, dtype)):
        reflectors, r = jax.jit(householder.factorize)(jnp.asarray(case, dtype))
        count = min(shape)
        q = np.asarray(householder.apply(reflectors, jnp.eye(count, dtype=dtype)))
        assert r.shape == (count, shape[1])
        assert_allclose(q @ np.asarray(r), case, atol=1e-14)
        assert_allclose(q.conj().T @ q, np.eye(count), atol=1e-14)
        assert_allclose(np.tril(r, -1), np.zeros((count, shape[1])))
