"""The gallery: named matrices with known singular values, over all of which every estimator is run."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectrax import checks, vectors
from spectrax.operators import LinearOperator, aslinearoperator
from spectrax.testing.matrices import hilbert_matrix, kahan_matrix, random_matrix
from spectrax.testing.spectra import clustered, geometric_decay, linear_decay, repeated


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A matrix and its singular values.

    Attributes:
        name: What it is called; unique in a gallery.
        matrix: A NumPy array of shape (m, n), float64 or complex128.
        singular_values: All min(m, n) of them, descending, float64.
    """

    name: str
    matrix: np.ndarray
    singular_values: np.ndarray

    @property
    def is_complex(self) -> bool:
        """Whether the matrix is complex, so that it needs a complex dtype."""
        return vectors.is_complex(self.matrix.dtype)

    def operator(self, dtype: Any = jnp.float32) -> LinearOperator:
        """Return the matrix, rounded to a dtype, as an operator.

        Args:
            dtype: A floating-point dtype, or a complex one, which a complex matrix needs.

        Returns:
            An operator that holds the matrix.

        Raises:
            TypeError: If the dtype is not inexact, or is real and the matrix is complex.
        """
        return aslinearoperator(jnp.asarray(self._rounded(dtype)))

    def rounding(self, dtype: Any = jnp.float32) -> float:
        """Return how far a singular value of the rounded matrix may lie from the listed one, at most (Weyl).

        Args:
            dtype: As in `operator`.

        Returns:
            The Frobenius norm of what rounding changed, and the round-off of the 64-bit numbers that are listed.
        """
        changed = self._rounded(dtype).astype(np.complex128) - self.matrix
        own = 8 * np.finfo(np.float64).eps * max(self.matrix.shape) * self.singular_values[0]
        return float(np.linalg.norm(changed) + own)

    def _rounded(self, dtype: Any) -> np.ndarray:
        checks.inexact("dtype", dtype)
        if self.is_complex and not vectors.is_complex(dtype):
            raise TypeError(
                f"the matrix {self.name!r} is complex and needs a complex dtype, got {jnp.dtype(dtype).name}"
            )
        return self.matrix.astype(dtype)


def gallery(key: jax.Array, /, *, shape: tuple[int, int] = (40, 32)) -> tuple[Case, ...]:
    """Return named matrices with known singular values: easy ones, singular ones, crowded ones, hopeless ones.

    Identity; zero; low rank; two clusters; repeated values of multiplicity 2, 3 and 6; linear and geometric decay with
    condition numbers from 1e1 to 1e12; Hilbert and Kahan; complex ones. All have the same shape, so that a compiled
    routine serves for all of them, but for the last four: the transposed shape, a square, one row, one column.

    Args:
        key: A PRNG key, for the orthonormal factors of those with a prescribed spectrum.
        shape: (m, n), with min(m, n) at least 12.

    Returns:
        The cases. Nothing is on a device yet: `case.operator(dtype)` puts it there.

    Raises:
        ValueError: If the shape is too small.
        TypeError: If the key is not a PRNG key.

    Example:
        >>> import jax, numpy as np
        >>> import spectrax as sx
        >>> for case in sx.testing.gallery(jax.random.key(0)):
        ...     found = sx.singular_values(case.operator(np.complex64))
        ...     assert abs(found - case.singular_values).max() < 1e-5 * max(case.singular_values[0], 1), case.name
    """
    checks.key("key", key)
    count = min(shape)
    if count < 12:
        raise ValueError(f"shape must have at least 12 rows and columns, got {shape}")
    prescribed = {
        "low rank": (np.array([3.0, 2.0, 1.0]), shape),
        "clusters": (clustered(count, width=1e-4), shape),
        "repeated twice": (repeated(count, multiplicity=2), shape),
        "repeated three times": (repeated(count, multiplicity=3), shape),
        "repeated six times": (repeated(count, multiplicity=6), shape),
        "linear 1e1": (linear_decay(count, condition_number=1e1), shape),
        "linear 1e6": (linear_decay(count, condition_number=1e6), shape),
        "geometric 1e1": (geometric_decay(count, condition_number=1e1), shape),
        "geometric 1e3": (geometric_decay(count, condition_number=1e3), shape),
        "geometric 1e6": (geometric_decay(count, condition_number=1e6), shape),
        "geometric 1e9": (geometric_decay(count, condition_number=1e9), shape),
        "geometric 1e12": (geometric_decay(count, condition_number=1e12), shape),
        "complex": (geometric_decay(count, condition_number=1e2), shape),
        "complex repeated": (repeated(count, multiplicity=2), shape),
        "transposed": (geometric_decay(count, condition_number=1e2), shape[::-1]),
        "square": (geometric_decay(count, condition_number=1e2), (count, count)),
        "one row": (np.array([2.0]), (1, count)),
        "one column": (np.array([2.0]), (count, 1)),
    }
    cases = [
        Case("identity", np.eye(*shape), np.ones(count)),
        Case("zero", np.zeros(shape), np.zeros(count)),
        *(_computed(name, matrix) for name, matrix in _troublesome(shape).items()),
    ]
    for number, (name, (values, own_shape)) in enumerate(prescribed.items()):
        matrix = random_matrix(
            jax.random.fold_in(key, number), values, own_shape, is_complex=name.startswith("complex")
        )
        cases.append(Case(name, matrix, np.pad(values, (0, min(own_shape) - len(values)))))
    return tuple(cases)


def _troublesome(shape: tuple[int, int]) -> dict[str, np.ndarray]:
    return {"hilbert": hilbert_matrix(shape), "kahan": kahan_matrix(shape, 1.2)}


def _computed(name: str, matrix: np.ndarray) -> Case:
    """Without a closed form: values from LAPACK in 64 bits, right to eps times the largest."""
    return Case(name, matrix, np.linalg.svd(matrix, compute_uv=False))
