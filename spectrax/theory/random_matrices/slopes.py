"""Slopes of activations, as distributions: which values the diagonal of D takes, and for what share of the units."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.core as jax_core
import jax.numpy as jnp
import numpy as np

from spectrax import checks
from spectrax.theory.random_matrices.arguments import real

ACTIVATIONS = ("abs", "hard_tanh", "leaky_relu", "linear", "relu")


class SlopeDistribution(NamedTuple):
    """Which slopes occur, and for what share of the units.

    Attributes:
        values: Distinct slopes, shape (k,), float64.
        probabilities: The share of each, shape (k,), positive, with sum 1.
    """

    values: np.ndarray
    probabilities: np.ndarray

    @property
    def mean(self) -> float:
        """The mean slope."""
        return float(self.probabilities @ self.values)

    @property
    def mean_square(self) -> float:
        """The mean of the squared slopes, m2."""
        return float(self.probabilities @ self.values**2)

    @property
    def root_mean_square(self) -> float:
        """The root of m2, which neither overflows nor vanishes where the square does."""
        top = self.largest
        return top * math.sqrt(self.probabilities @ (self.values / top) ** 2) if top > 0 else 0.0

    @property
    def variance(self) -> float:
        """The variance of the slopes."""
        return float(self.probabilities @ (self.values - self.mean) ** 2)

    @property
    def largest(self) -> float:
        """The largest modulus of a slope."""
        return float(np.max(np.abs(self.values)))


# What `slopes=` takes: a name, one slope, an array of slopes, or (values, probabilities).
Slopes = str | float | Sequence[float] | np.ndarray | jax.Array | tuple[Any, Any]


def activation_slopes(name: str, /, *, active_fraction: float = 0.5, negative_slope: float = 0.01) -> SlopeDistribution:
    """Return the slopes of a piecewise linear activation.

    | name         | slopes                                                              |
    |--------------|---------------------------------------------------------------------|
    | "linear"     | 1                                                                   |
    | "abs"        | 1 on active units, -1 on the others                                 |
    | "relu"       | 1 on active units, 0 on the others                                  |
    | "leaky_relu" | 1 on active units, `negative_slope` on the others                   |
    | "hard_tanh"  | 1 on active units (those that are not saturated), 0 on the others   |

    Args:
        name: The activation.
        active_fraction: The share of active units: one half for "relu", "leaky_relu" and "abs" under any law of the
            pre-activations that is symmetric around zero.
        negative_slope: The other slope of "leaky_relu".

    Returns:
        The distribution, a tuple (values, probabilities); slopes without weight are left out.

    Raises:
        ValueError: If the name is not known, the fraction lies outside [0, 1], or the slope is not finite.

    Example:
        >>> from spectrax.theory.random_matrices import activation_slopes
        >>> slopes = activation_slopes("leaky_relu", negative_slope=0.1)
        >>> slopes.values.tolist(), slopes.probabilities.tolist()
        ([0.1, 1.0], [0.5, 0.5])
        >>> round(slopes.mean_square, 3)
        0.505
    """
    checks.choice("name", name, ACTIVATIONS)
    active = real("active_fraction", active_fraction, low=0, high=1)
    negative_slope = real("negative_slope", negative_slope)
    inactive = {"abs": -1.0, "hard_tanh": 0.0, "leaky_relu": negative_slope, "linear": 1.0, "relu": 0.0}[name]
    return _normalized(np.array([inactive, 1.0]), np.array([1 - active, active]))


def distribution(slopes: Slopes, /) -> SlopeDistribution:
    """Return the distribution that an argument `slopes` stands for.

    Args:
        slopes: The name of an activation, with half of its units active (see `activation_slopes`); one slope; an array
            or list with the slope of every unit, of any shape; or a tuple (values, probabilities).

    Returns:
        The distribution.

    Raises:
        TypeError: If the slopes are not real numbers, or are being traced.
        ValueError: If there are none, one is not finite, or the probabilities are not ones.
    """
    if isinstance(slopes, str):
        return activation_slopes(slopes)
    if isinstance(slopes, tuple):
        if len(slopes) != 2 or any(np.ndim(part) != 1 for part in slopes):
            raise ValueError(
                "slopes, as a tuple, must be (values, probabilities), two sequences of one length; give the slopes of "
                "single units as a list or an array"
            )
        values, probabilities = (_host_array("slopes", part) for part in slopes)
        if values.shape != probabilities.shape:
            raise ValueError(
                f"slopes must hold as many probabilities as values, got {values.size} values and {probabilities.size} "
                "probabilities"
            )
        total = float(np.sum(probabilities))
        if not (np.all(probabilities >= 0) and abs(total - 1) <= 1e-6):
            raise ValueError(f"the probabilities of slopes must not be negative, and have the sum 1, not {total:g}")
        return _normalized(values, probabilities)
    values = _host_array("slopes", slopes).ravel()
    return _normalized(values, np.ones(values.shape))


def _host_array(name: str, value: Any) -> np.ndarray:
    if isinstance(value, jax_core.Tracer):
        raise TypeError(f"{name} must be concrete, since they are used on the host; got a tracer inside jit or vmap")
    array = np.asarray(value)
    if not (np.issubdtype(array.dtype, np.number) or jnp.issubdtype(array.dtype, np.floating)) or np.iscomplexobj(
        array
    ):
        raise TypeError(f"{name} must be real numbers or the name of an activation, got {value!r}")
    array = array.astype(np.float64)
    if array.size == 0:
        raise ValueError(f"{name} must hold one number at least, got none")
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{name} must be finite, got {array[~np.isfinite(array)][0]}")
    return array


def _normalized(values: np.ndarray, weights: np.ndarray) -> SlopeDistribution:
    """Merge equal values, drop those without weight, and give the weights the sum 1."""
    values, where = np.unique(values[weights > 0] + 0.0, return_inverse=True)  # + 0.0 makes -0.0 a zero
    summed = np.bincount(where, weights[weights > 0], minlength=len(values))
    return SlopeDistribution(values, summed / math.fsum(summed))
