"""What depth does to the condition number, and which weights, skips and step sizes go with it."""

import math
from typing import Any

from spectrax import checks
from spectrax.theory.random_matrices.arguments import real


def branch_norm_for_depth(target_condition_number: Any, /, *, depth: int, rho: Any = 1.0) -> float:
    r"""Return the largest norm of the branches for which a deep product keeps its condition number for certain.

    For p layers D_j W_j + rho I with \|D_j W_j\| <= delta < \|rho\| the condition number of the product is at most
    ((\|rho\| + delta) / (\|rho\| - delta))^p = exp(2 p artanh(delta / \|rho\|)). So it stays under kappa if

        delta <= \|rho\| tanh(log(kappa) / (2 p)).

    This goes like 1 / p. Random weights that don't depend on the slopes allow 1 / sqrt(p), but in a network the
    pattern follows the weights, and with slopes that are never negative the drift adds up over the layers.

    Args:
        target_condition_number: kappa, at least 1.
        depth: The number of layers p.
        rho: The factor of the skip, any sign.

    Returns:
        The largest delta.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If an argument is out of its range.

    Example:
        >>> from spectrax.theory.random_matrices import branch_norm_for_depth
        >>> round(branch_norm_for_depth(9.0, depth=1), 10)
        0.8
        >>> round(branch_norm_for_depth(9.0, depth=100), 5)
        0.01099

    Source:
        Derived above from Weyl's inequality.
    """
    exponent = _log_per_layer(target_condition_number, depth) / 2
    return abs(real("rho", rho)) * math.tanh(exponent)


def skip_for_depth(target_condition_number: Any, /, *, depth: int, branch_norm: Any) -> float:
    """Return the smallest skip with which a deep product keeps its condition number for certain.

    rho >= delta coth(log(kappa) / (2 p)), the inverse of `branch_norm_for_depth`.

    Args:
        target_condition_number: kappa, at least 1.
        depth: The number of layers p.
        branch_norm: The bound delta on the norms of the branches.

    Returns:
        The smallest rho; 0 for branches that vanish.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If an argument is out of its range, or the target is 1 with branches that don't vanish.

    Example:
        >>> from spectrax.theory.random_matrices import skip_for_depth
        >>> round(skip_for_depth(9.0, depth=1, branch_norm=0.8), 10)
        1.0

    Source:
        As `branch_norm_for_depth`.
    """
    exponent, delta = _log_per_layer(target_condition_number, depth) / 2, real("branch_norm", branch_norm, low=0)
    if delta == 0:
        return 0.0
    if exponent == 0:
        raise ValueError("target_condition_number must be larger than 1 for branches that don't vanish, got 1")
    return delta / math.tanh(exponent)


def _log_per_layer(target: Any, depth: int) -> float:
    checks.positive_integer("depth", depth)
    return math.log(real("target_condition_number", target, low=1)) / depth


def convnet_depth_slope(n: int, /) -> float:
    """Return by how much log kappa grows with each layer of a deep network without skips.

    For square Gaussian layers of width n and slopes of modulus one (abs, linear) the growth rates of the singular
    values of the product are log(c^2 / n) / 2 + (log 2 + psi(j / 2)) / 2 for j = 1, ..., n, with the digamma function
    psi. The slope is the difference of the outermost, (psi(n / 2) - psi(1 / 2)) / 2, whatever c is.

    Args:
        n: The width.

    Returns:
        The slope in natural logarithms per layer, near log(2 n) / 2 + 0.29; divide by log 10 for decades.

    Raises:
        TypeError: If the width is not an integer.
        ValueError: If it is below 1.

    Example:
        >>> import math
        >>> from spectrax.theory.random_matrices import convnet_depth_slope
        >>> round(convnet_depth_slope(32) / math.log(10), 3)
        1.022

    Source:
        Newman 1986 (doi:10.1007/BF01464284) for the growth rates of products of Gaussian matrices.
    """
    checks.positive_integer("n", n)
    return (_digamma(n / 2) - _digamma(0.5)) / 2


def _digamma(x: float) -> float:
    """Return psi(x) for x > 0: the recurrence up to 10, then the asymptotic series, whose rest is below 1e-16."""
    total = 0.0
    while x < 10:
        total -= 1 / x
        x += 1
    u = 1 / (x * x)
    coefficients = (1 / 12, -1 / 120, 1 / 252, -1 / 240, 1 / 132, -691 / 32760, 1 / 12, -3617 / 8160)
    series = 0.0
    for coefficient in reversed(coefficients):
        series = u * (coefficient + series)
    return total + math.log(x) - 0.5 / x - series


def negative_slope_factor(negative_slope: Any, /) -> float:
    r"""Return by how much a layer's own leaky slopes can multiply the condition number: 1 / \|eta\|.

    The loss as a function of one layer's weights has the singular values of M D, with D the slopes of the layer and M
    the layers after it. kappa(M D) <= kappa(M) / \|eta\| for slopes between \|eta\| and 1: no skip helps against it.

    Args:
        negative_slope: eta, of modulus at most 1.

    Returns:
        The factor; 1 for the absolute value, inf for ReLU, which loses directions instead.

    Raises:
        TypeError: If the slope is not a number.
        ValueError: If its modulus is above 1.

    Example:
        >>> from spectrax.theory.random_matrices import negative_slope_factor
        >>> negative_slope_factor(-0.25)
        4.0

    Source:
        Ostrowski 1959 (doi:10.1073/pnas.45.5.740); for networks Riedi, Balestriero & Baraniuk 2023
        (doi:10.1007/s00365-022-09601-5).
    """
    eta = abs(real("negative_slope", negative_slope, low=-1, high=1))
    return 1 / eta if eta > 0 else math.inf


def largest_step_size(s_max: Any, /, *, batch_size: int = 1) -> float:
    r"""Return below which step size gradient descent on one layer's quadratic is stable: G / s_max^2.

    Of the mean over G samples of the squared error \|Q_g vec(W) - r_g\|^2 the Hessian is 2 Q^T Q / G, with Q the stack
    of all Q_g; gradient descent contracts if the step times its largest eigenvalue is below 2.

    Args:
        s_max: The largest singular value of the stack Q.
        batch_size: The number of samples G; 1 for the summed loss.

    Returns:
        The step size; inf where s_max is 0.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If s_max is negative, or the batch size below 1.

    Example:
        >>> from spectrax.theory.random_matrices import largest_step_size
        >>> largest_step_size(4.0, batch_size=8)
        0.5

    Source:
        Riedi, Balestriero & Baraniuk 2023 (doi:10.1007/s00365-022-09601-5) for the quadratic.
    """
    checks.positive_integer("batch_size", batch_size)
    s = real("s_max", s_max, low=0)
    return batch_size / s / s if s > 0 else math.inf
