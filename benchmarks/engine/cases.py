"""What is decomposed: matrices with known spectra, a convolution, and the Jacobians of small networks.

A case is made in 64 bits and rounded once to the dtype that it is solved in. What is verified, is verified against the
rounded data in 64 bits: the residuals by products in 64 bits, the values by LAPACK.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft
import scipy.sparse.linalg

import spectrax as sx


class Problem:
    """One operator in one dtype, with everything that solvers and checks ask of it."""

    def __init__(self, name: str, dtype: str, make: Callable[[Any], Any], *, matrix: np.ndarray | None = None):
        self.name, self.dtype = name, np.dtype(dtype)
        self.x64 = self.dtype == np.float64
        with jax.enable_x64(self.x64):
            self.operator = sx.aslinearoperator(make(self.dtype))
        with jax.enable_x64(True):
            self._exact = sx.aslinearoperator(make(None))
            self._apply = jax.jit(lambda operator, rows: operator.matmat(rows))
            self._adjoint = jax.jit(lambda operator, rows: operator.rmatmat(rows))
        self.shape = self.operator.shape
        self.matrix = None if matrix is None else matrix.astype(dtype)

    @functools.cached_property
    def start(self) -> np.ndarray:
        """The start vector that every solver gets, on the side of the input."""
        return np.random.default_rng(7).normal(size=self.shape[1]).astype(self.dtype)

    def structured(self, rows: np.ndarray, dtype: Any = None) -> jax.Array:
        """Give a stack of flat input vectors the operator's shape."""
        return jnp.asarray(rows, dtype or self.dtype).reshape(-1, *self.operator.in_struct.shape)

    def apply(self, rows: np.ndarray) -> np.ndarray:
        """Return A applied to each row, in 64 bits."""
        return self._in_64(self._apply, rows, self._exact.in_struct)

    def adjoint(self, rows: np.ndarray) -> np.ndarray:
        """Return A^T applied to each row, in 64 bits."""
        return self._in_64(self._adjoint, rows, self._exact.out_struct)

    def _in_64(self, product: Any, rows: np.ndarray, struct: Any) -> np.ndarray:
        with jax.enable_x64(True):
            stack = jnp.asarray(rows, jnp.float64).reshape(len(rows), *struct.shape)
            return np.asarray(product(self._exact, stack)).reshape(len(rows), -1)

    @functools.cached_property
    def host_products(self) -> tuple[Callable, Callable]:
        """The products for solvers on the host: NumPy's for a matrix, the compiled ones of the operator otherwise."""
        if self.matrix is not None:
            matrix = self.matrix
            return (lambda v: matrix @ v), (lambda u: matrix.T @ u)
        inputs, outputs = self.operator.in_struct.shape, self.operator.out_struct.shape
        matvec = jax.jit(lambda operator, v: operator.products()[0](v.reshape(inputs)).reshape(-1))
        rmatvec = jax.jit(lambda operator, u: operator.products()[1](u.reshape(outputs)).reshape(-1))
        dtype = self.dtype
        return (
            lambda v: np.asarray(matvec(self.operator, np.asarray(v, dtype).reshape(-1))),
            lambda u: np.asarray(rmatvec(self.operator, np.asarray(u, dtype).reshape(-1))),
        )

    @functools.cached_property
    def truth(self) -> tuple[np.ndarray, bool]:
        """The singular values, descending, and whether these are all: LAPACK's, or ARPACK's largest 40 in 64 bits."""
        if min(self.shape) <= 4096:
            with jax.enable_x64(True):
                dense = np.asarray(self._exact.to_dense(chunk_size=256))
            if dense.shape[0] > dense.shape[1]:
                dense = np.linalg.qr(dense, mode="r")
            return np.linalg.svd(dense, compute_uv=False), True
        exact = scipy.sparse.linalg.LinearOperator(
            (self.shape[1],) * 2, matvec=lambda v: self.adjoint(self.apply(v.reshape(1, -1)))[0], dtype=np.float64
        )
        options = {"tol": 1e-12, "ncv": 120, "v0": np.random.default_rng(11).normal(size=self.shape[1])}
        values = scipy.sparse.linalg.eigsh(exact, 40, which="LM", return_eigenvectors=False, **options)
        return np.sqrt(np.sort(values)[::-1]), False


def rounded(data: Any, dtype: str, working: Any) -> Any:
    """Round data once to the dtype of the problem, and hand it over in that dtype or in 64 bits."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf.astype(dtype), working or jnp.float64), data)


def dense(name: str, matrix: np.ndarray, dtype: str) -> Problem:
    return Problem(name, dtype, lambda working: rounded(matrix, dtype, working), matrix=matrix)


def with_values(values: np.ndarray, shape: tuple[int, int], seed: int) -> np.ndarray:
    """Return a matrix with the given singular values: random signs and cosine transforms on both sides, twice."""
    rng = np.random.default_rng(seed)
    m, n = shape
    matrix = np.zeros(shape)
    matrix[np.arange(n), np.arange(n)] = values
    for _ in range(2):
        for axis, size in ((0, m), (1, n)):
            signs = rng.choice([-1.0, 1.0], size=size)
            signs = signs[:, None] if axis == 0 else signs
            matrix = scipy.fft.dct(matrix * signs, axis=axis, norm="ortho")
    return matrix


@functools.lru_cache(maxsize=2)
def _matrix(name: str, m: int, n: int) -> np.ndarray:
    gaussian = np.random.default_rng(0).normal(size=(m, n)) / (np.sqrt(m) + np.sqrt(n))
    if name == "Gaussian":
        return gaussian
    if name == "geometric":
        return with_values(sx.testing.geometric_decay(n, condition_number=1e4), (m, n), 1)
    if name == "clustered":  # five values 1e-3 apart, the others well below
        values = np.concatenate([1 - 1e-3 * np.arange(5), np.linspace(0.8, 0.1, n - 5)])
        return with_values(values, (m, n), 2)
    values = np.linalg.svd(gaussian, compute_uv=False)
    values[:3] = values[0]
    return with_values(values, (m, n), 3)


MATRICES = ("Gaussian", "geometric", "clustered", "repeated")


def matrix(name: str, dtype: str, *, quick: bool = False) -> Problem:
    m, n = (300, 150) if quick else (2000, 1000)
    return dense(f"{name} {m}x{n}", _matrix(name, m, n), dtype)


def convolution(dtype: str, *, quick: bool = False) -> Problem:
    side, channels = (8, 8) if quick else (32, 64)
    kernel = np.random.default_rng(4).normal(size=(3, 3, channels, channels)) / np.sqrt(9 * channels)

    def make(working: Any) -> Any:
        return sx.conv_operator(rounded(kernel, dtype, working), (side, side, channels), padding="SAME")

    return Problem(f"convolution, {channels} channels, {side}x{side}", dtype, make)


def network(x: jax.Array, kernels: list[jax.Array]) -> jax.Array:
    """Return the image after six 3x3 convolutions, with a rectifier behind all but the last."""
    for i, kernel in enumerate(kernels):
        numbers = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x[None], kernel, (1, 1), "SAME", dimension_numbers=numbers)[0]
        x = jax.nn.relu(x) if i + 1 < len(kernels) else x
    return x


def network_data(side: int, channels: int) -> tuple[np.ndarray, list[np.ndarray]]:
    rng = np.random.default_rng(5)
    widths = [3] + [channels] * 6
    kernels = [rng.normal(size=(3, 3, a, b)) * np.sqrt(2 / (9 * a)) for a, b in itertools.pairwise(widths)]
    return rng.normal(size=(side, side, 3)), kernels


def jacobian(dtype: str, *, side: int = 16, channels: int = 16) -> Problem:
    """The Jacobian of the network: 4096 x 768 by default, and 1024 x 192 for a side of 8."""
    data = network_data(side, channels)

    def make(working: Any) -> Any:
        return sx.jacobian_operator(network, *rounded(data, dtype, working))

    return Problem(f"CNN Jacobian {side * side * channels}x{3 * side * side}", dtype, make)


def transform(v: jax.Array, signs: jax.Array, values: jax.Array) -> jax.Array:
    """A linear function that is no matrix: cosine transforms around a diagonal."""
    return jax.scipy.fft.dct(values * jax.scipy.fft.dct(signs * v, norm="ortho"), norm="ortho")


def linear_function(dtype: str, *, size: int = 1024, condition_number: float = 25.0) -> Problem:
    signs = np.random.default_rng(6).choice([-1.0, 1.0], size=size)
    values = sx.testing.linear_decay(size, condition_number=condition_number)[::-1].copy()

    def make(working: Any) -> Any:
        struct = jax.ShapeDtypeStruct((size,), working or jnp.float64)
        return sx.aslinearoperator(transform, struct, *rounded((signs, values), dtype, working))

    return Problem(f"linear function {size}x{size}, condition number {condition_number:g}", dtype, make)


def conditioned(m: int, n: int, condition_number: float, dtype: str) -> Problem:
    """A matrix with geometric decay down to a given condition number."""
    values = sx.testing.geometric_decay(n, condition_number=condition_number)
    return dense(f"{m}x{n}, condition number {condition_number:.0e}", with_values(values, (m, n), 9), dtype)
