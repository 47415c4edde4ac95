"""Lists of singular values that are hard for one method or another: all descending, with the largest equal to one."""

import numpy as np

from spectrax import checks


def linear_decay(count: int, /, *, condition_number: float) -> np.ndarray:
    """Return values in equal steps from 1 down to 1 / condition_number.

    Args:
        count: How many.
        condition_number: The ratio of the first to the last, at least 1.

    Returns:
        A float64 NumPy array of shape (count,), descending.

    Raises:
        ValueError: If `count` or `condition_number` is below 1.
        TypeError: If `count` is not an integer or `condition_number` not a real number.

    Example:
        >>> import spectrax as sx
        >>> sx.testing.linear_decay(3, condition_number=2.0).tolist()
        [1.0, 0.75, 0.5]
    """
    _check(count, condition_number)
    return np.linspace(1.0, 1.0 / condition_number, count)


def geometric_decay(count: int, /, *, condition_number: float) -> np.ndarray:
    """Return values in equal ratios from 1 down to 1 / condition_number.

    Args:
        count: How many.
        condition_number: The ratio of the first to the last, at least 1.

    Returns:
        A float64 NumPy array of shape (count,), descending.

    Raises:
        ValueError: If `count` or `condition_number` is below 1.
        TypeError: If `count` is not an integer or `condition_number` not a real number.

    Example:
        >>> import spectrax as sx
        >>> sx.testing.geometric_decay(3, condition_number=4.0).tolist()
        [1.0, 0.5, 0.25]
    """
    _check(count, condition_number)
    return float(condition_number) ** -np.linspace(0.0, 1.0, count)


def clustered(count: int, /, *, width: float, condition_number: float = 10.0) -> np.ndarray:
    """Return two clusters of the given width, below 1 and above 1 / condition_number, each of half the values.

    Inside a cluster the values are at equal distances. Krylov methods separate them slowly, and the vectors that belong
    to them are determined only up to round-off divided by the distances.

    Args:
        count: How many.
        width: The relative width of a cluster, in (0, 1].
        condition_number: The ratio of the first to the last, at least 1.

    Returns:
        A float64 NumPy array of shape (count,), descending.

    Raises:
        ValueError: If an argument is out of its range.
        TypeError: If `count` is not an integer or another argument not a real number.

    Example:
        >>> import spectrax as sx
        >>> sx.testing.clustered(4, width=0.25, condition_number=2.0).tolist()
        [1.0, 0.75, 0.625, 0.5]
    """
    _check(count, condition_number)
    checks.number_in("width", width, 0.0, 1.0, low_open=True)
    upper = 1.0 - np.linspace(0.0, width, count - count // 2)
    lower = (1.0 + np.linspace(width, 0.0, count // 2)) / condition_number
    return np.sort(np.concatenate([upper, lower]))[::-1]


def repeated(count: int, /, *, multiplicity: int, condition_number: float = 10.0) -> np.ndarray:
    """Return values whose largest and smallest are each repeated, with equal steps between them.

    A Krylov space from one starting vector holds a single copy of each repeated value: routines that look for several
    values return the wrong ones here, most of them silently.

    Args:
        count: How many.
        multiplicity: How often the first and the last occur; at most half of `count`.
        condition_number: The ratio of the first to the last, at least 1.

    Returns:
        A float64 NumPy array of shape (count,), descending.

    Raises:
        ValueError: If an argument is out of its range.
        TypeError: If an argument has the wrong type.

    Example:
        >>> import spectrax as sx
        >>> sx.testing.repeated(5, multiplicity=2, condition_number=2.0).tolist()
        [1.0, 1.0, 0.75, 0.5, 0.5]
    """
    _check(count, condition_number)
    checks.positive_integer("multiplicity", multiplicity)
    if 2 * multiplicity > count:
        raise ValueError(f"multiplicity must be at most half of count = {count}, got {multiplicity}")
    middle = linear_decay(count - 2 * multiplicity + 2, condition_number=condition_number)
    return np.concatenate([np.full(multiplicity - 1, middle[0]), middle, np.full(multiplicity - 1, middle[-1])])


def _check(count: int, condition_number: float) -> None:
    checks.positive_integer("count", count)
    checks.number_in("condition_number", condition_number, 1.0, float("inf"))
