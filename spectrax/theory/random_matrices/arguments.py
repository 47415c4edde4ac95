"""What the theory's functions take: real numbers on the host, each checked and made a Python float."""

import math
from typing import Any

import jax
import jax.core as jax_core
import numpy as np

from spectrax import checks


def real(name: str, value: Any, /, *, low: float = -math.inf, high: float = math.inf, low_open: bool = False) -> float:
    """Return a finite real number as a float: a Python or NumPy number, or a concrete array without axes.

    Args:
        name: What the number is called in the message.
        value: The number.
        low: The least that it may be.
        high: The most that it may be.
        low_open: Whether `low` itself is left out.

    Returns:
        The number in double precision, since the theory runs on the host whatever the network's dtype is.

    Raises:
        TypeError: If it is not a real number, or is being traced.
        ValueError: If it is not finite, or out of its range.
    """
    if isinstance(value, jax_core.Tracer):
        raise TypeError(
            f"{name} must be a concrete number, since it is used on the host; got a tracer inside jit or vmap"
        )
    if isinstance(value, (jax.Array, np.ndarray)) and value.ndim == 0:
        value = value.item()
    if isinstance(value, float | int | np.floating) and not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    checks.number_in(name, value, low, high, low_open=low_open)
    return float(value)
