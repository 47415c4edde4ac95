"""Bounds on the singular values of random layers at finite width, each with the probability of holding."""

import math
from typing import Any, NamedTuple

from spectrax import checks
from spectrax.theory.random_matrices.arguments import real
from spectrax.theory.random_matrices.slopes import Slopes, distribution

SANKAR_SPIELMAN_TENG = 2.35  # the constant of their Theorem 3.3
# lim E log(kappa / n) = int_0^inf log(x) dF(x) for F(x) = exp(-2 / x - 2 / x^2)
EDELMAN = 1.537089435


class ExtremeBounds(NamedTuple):
    """Bounds on the extreme singular values of a random matrix.

    Attributes:
        s_max: An upper bound of the largest singular value.
        s_min: A lower bound of the smallest one; 0 where the theorem says nothing.
        probability_max: At least with this probability the first bound holds.
        probability_min: At least with this probability the second one holds.
        probability: At least with this probability both hold.
    """

    s_max: float
    s_min: float
    probability_max: float
    probability_min: float
    probability: float

    @property
    def condition_number(self) -> float:
        """An upper bound of the condition number, which holds where both do; inf where s_min is 0."""
        return self.s_max / self.s_min if self.s_min > 0 else math.inf


def _bounds(s_max: float, s_min: float, tails: tuple[float, float, float]) -> ExtremeBounds:
    return ExtremeBounds(s_max, max(s_min, 0.0), *(max(1 - tail, 0.0) for tail in tails))


def gaussian_matrix_bounds(rows: int, columns: int, /, *, t: Any, standard_deviation: Any = 1.0) -> ExtremeBounds:
    """Bound the extreme singular values of a Gaussian matrix.

    For N = max(rows, columns), n = min(rows, columns) and entries of standard deviation tau,

        s_1 <= tau (sqrt N + sqrt n + t),    s_n >= tau (sqrt N - sqrt n - t),

    each with probability at least 1 - exp(-t^2 / 2).

    Args:
        rows: The number of rows.
        columns: The number of columns.
        t: The margin, not negative: the larger, the wider and the more certain.
        standard_deviation: Of each of the independent entries, which have mean 0.

    Returns:
        The bounds. A square matrix has no lower bound by this theorem: see `smallest_singular_value_tail`.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a size is below 1, or a number negative or not finite.

    Example:
        >>> from spectrax.theory.random_matrices import gaussian_matrix_bounds
        >>> bounds = gaussian_matrix_bounds(400, 100, t=2.0)
        >>> bounds.s_max, bounds.s_min, round(bounds.probability, 3)
        (32.0, 8.0, 0.729)

    Source:
        Davidson & Szarek 2001, Local operator theory, random matrices and Banach spaces, Theorem II.13.
    """
    checks.positive_integer("rows", rows)
    checks.positive_integer("columns", columns)
    margin, tau = real("t", t, low=0), real("standard_deviation", standard_deviation, low=0)
    long, short = math.sqrt(max(rows, columns)), math.sqrt(min(rows, columns))
    tail = math.exp(-margin * margin / 2)
    return _bounds(tau * (long + short + margin), tau * (long - short - margin), (tail, tail, 2 * tail))


def gaussian_condition_number_cdf(x: Any, /) -> float:
    """Return lim P(kappa / n < x) = exp(-2 / x - 2 / x^2) for square Gaussian matrices of growing size n.

    The condition number of a layer without a skip is of the order of its width, and its tail is heavy: kappa / n
    exceeds x with a probability near 2 / x.

    Args:
        x: The condition number divided by the size; not negative.

    Returns:
        The probability.

    Raises:
        TypeError: If x is not a number.
        ValueError: If x is negative or not finite.

    Example:
        >>> from spectrax.theory.random_matrices import gaussian_condition_number_cdf
        >>> [round(gaussian_condition_number_cdf(x), 3) for x in (1, 2, 4, 8, 20)]
        [0.018, 0.223, 0.535, 0.755, 0.9]

    Source:
        Edelman 1988 (doi:10.1137/0609045).
    """
    x = real("x", x, low=0)
    if x == 0:
        return 0.0
    u = 1 / x if x > 1e-150 else math.inf
    return math.exp(-2 * u - 2 * u * u)


def expected_log_condition_number(n: int, /) -> float:
    """Return log n + 1.537, to which the mean of log kappa tends for square Gaussian matrices of size n.

    Args:
        n: The size.

    Returns:
        The limit's value at n, an estimate: at n = 50 the true mean is some 0.05 below.

    Raises:
        TypeError: If the size is not an integer.
        ValueError: If it is below 1.

    Example:
        >>> from spectrax.theory.random_matrices import expected_log_condition_number
        >>> round(expected_log_condition_number(100), 2)
        6.14

    Source:
        Edelman 1988 (doi:10.1137/0609045). The constant is the mean of log x under the limit law.
    """
    checks.positive_integer("n", n)
    return math.log(n) + EDELMAN


def smallest_singular_value_tail(epsilon: Any, /, *, n: int, c: Any, smallest_slope: Any = 1.0) -> float:
    r"""Bound the probability that the smallest singular value of D W + A is at most epsilon, for any fixed A.

    For Gaussian W of size n x n with entries of standard deviation c / sqrt(n), and slopes of modulus at least eta,

        P(s_n(D W + A) <= epsilon) <= 2.35 n epsilon / (c eta).

    With A = rho I this is the floor that a skip layer has whatever c and rho are, and with A = 0 that of a layer
    without a skip. For eta = 1 it is the theorem; then s_n(D W + A) >= eta s_n(W + D^-1 A) gives the rest.

    Args:
        epsilon: The level; not negative.
        n: The width.
        c: The weights' scale, sqrt(n) times the standard deviation of an entry.
        smallest_slope: The smallest modulus eta of a slope; 0 (as of ReLU) leaves no bound.

    Returns:
        An upper bound of the probability, 1 where the theorem says nothing.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If an argument is out of its range.

    Example:
        >>> from spectrax.theory.random_matrices import smallest_singular_value_tail
        >>> round(smallest_singular_value_tail(1e-4, n=100, c=1.0), 4)
        0.0235

    Source:
        Sankar, Spielman & Teng 2006 (doi:10.1137/S0895479803436202), Theorem 3.3.
    """
    epsilon, c = real("epsilon", epsilon, low=0), real("c", c, low=0)
    eta = abs(real("smallest_slope", smallest_slope))
    checks.positive_integer("n", n)
    if c * eta == 0:
        return 1.0
    return min(1.0, SANKAR_SPIELMAN_TENG * n * epsilon / (c * eta))


def skip_layer_bounds(
    c: Any, /, *, rho: Any = 1.0, slopes: Slopes, n: int | None = None, t: Any = None
) -> ExtremeBounds:
    r"""Bound the extreme singular values of D W + rho I for Gaussian W and slopes that don't depend on it.

    With m2 the mean of the squared slopes, d the largest modulus of one, and e = c d t / sqrt(n),

        s_n   >= \|rho\| - c sqrt(d^2 + m2) - e                                      with P >= 1 - exp(-t^2 / 2),
        s_1^2 <= (c (d + sqrt m2) + e)^2 + 2 \|rho\| (c sqrt(d^2 + m2) + e) + rho^2   with P >= 1 - 2 exp(-t^2 / 2),

    and both with P >= 1 - 3 exp(-t^2 / 2).

    The proof, for d = 1 (otherwise with D / d and c d), and for rho >= 0 (otherwise with -W). The Gaussian process
    X_x = x^T D W x on the sphere has increments of variance at most (c^2 / n) (\|D (x - y)\|^2 + \|x - y\|^2), those of
    (c / sqrt n) (<g, D x> + <g', x>); by Sudakov & Fernique the mean of its maximum, h = lambda_max(Sym(D W)), is at
    most c sqrt(1 + m2). By Chevet's inequality the mean of \|D W\| is at most c (1 + sqrt m2). Both are Lipschitz in
    the normal variables with the constant c / sqrt(n), so that each exceeds its mean by e with probability at most
    exp(-t^2 / 2); and -W has the law of W. Now s_n >= rho + lambda_min(Sym(D W)) (Fan & Hoffman), and
    \|(D W + rho I) x\|^2 = \|D W x\|^2 + 2 rho x^T D W x + rho^2.

    Args:
        c: The weights' scale, sqrt(n) times the standard deviation of an entry; not negative.
        rho: The factor of the skip, any sign.
        slopes: As in `skip_layer_limits`.
        n: The width; None for the limit of infinite width.
        t: The margin, given exactly if `n` is.

    Returns:
        The bounds. Without `n` they bound the limits, and the probabilities are 1.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If an argument is out of its range, or only one of `n` and `t` is given.

    Example:
        >>> from spectrax.theory.random_matrices import skip_layer_bounds
        >>> round(skip_layer_bounds(0.5, rho=1.0, slopes="abs").condition_number, 2)
        6.31
        >>> bounds = skip_layer_bounds(0.25, rho=1.0, slopes="relu", n=400, t=3.0)
        >>> round(bounds.condition_number, 2), round(bounds.probability, 3)
        (2.1, 0.967)

    Source:
        Derived above. The theorems it rests on: Davidson & Szarek 2001, Theorem II.13 and its proof; Fan & Hoffman
        1955 (doi:10.1090/S0002-9939-1955-0067841-7).
    """
    c, rho, slope = real("c", c, low=0), abs(real("rho", rho)), distribution(slopes)
    top, root = slope.largest, slope.root_mean_square
    margin, tail = _margin(c * top, n, t)
    radius = c * math.hypot(top, root) + margin
    norm = c * (top + root) + margin
    s_max = math.hypot(norm, rho, math.sqrt(2 * rho) * math.sqrt(radius))
    return _bounds(s_max, rho - radius, (2 * tail, tail, 3 * tail))


def pattern_free_bounds(
    c: Any, /, *, rho: Any = 1.0, largest_slope: Any = 1.0, n: int | None = None, t: Any = None
) -> ExtremeBounds:
    r"""Bound the singular values of D W + rho I for Gaussian W and all slopes at once, also those that depend on it.

    For every diagonal D whose entries have modulus at most d, with e = c d t / sqrt(n),

        \|rho\| - 2 c d - e <= s_n,    s_1 <= \|rho\| + 2 c d + e,

    together with probability at least 1 - exp(-t^2 / 2): \|D W\| <= d \|W\|, and the norm of W is bounded as in
    `gaussian_matrix_bounds`. So it holds over all activation patterns and all data.

    Args:
        c: The weights' scale, sqrt(n) times the standard deviation of an entry; not negative.
        rho: The factor of the skip, any sign.
        largest_slope: The largest modulus d of a slope.
        n: The width; None for the limit of infinite width.
        t: The margin, given exactly if `n` is.

    Returns:
        The bounds; the three probabilities are one.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If an argument is out of its range, or only one of `n` and `t` is given.

    Example:
        >>> from spectrax.theory.random_matrices import pattern_free_bounds
        >>> pattern_free_bounds(0.25, rho=1.0).condition_number
        3.0

    Source:
        Davidson & Szarek 2001, Theorem II.13, for the norm of W.
    """
    c, rho = real("c", c, low=0), abs(real("rho", rho))
    scaled = c * abs(real("largest_slope", largest_slope))
    margin, tail = _margin(scaled, n, t)
    norm = 2 * scaled + margin
    return _bounds(rho + norm, rho - norm, (tail, tail, tail))


def _margin(scale: float, n: int | None, t: Any) -> tuple[float, float]:
    """Return e = scale t / sqrt(n) and exp(-t^2 / 2), both 0 in the limit of infinite width."""
    if (n is None) != (t is None):
        raise ValueError(f"n and t must be given together, or neither for infinite width; got n={n!r} and t={t!r}")
    if n is None:
        return 0.0, 0.0
    checks.positive_integer("n", n)
    t = real("t", t, low=0)
    return scale * t / math.sqrt(n), math.exp(-t * t / 2)


def norm_condition_number_bound(norm: Any, /, *, rho: Any = 1.0) -> float:
    r"""Bound the condition number of M + rho I by a norm of M, for certain.

    kappa <= (\|rho\| + b) / (\|rho\| - b) for any b >= \|M\| below \|rho\|, by Weyl. With slopes of modulus at most 1
    both the spectral and the Frobenius norm of W are such numbers for M = D W.

    Args:
        norm: The norm b; not negative.
        rho: The factor of the skip, any sign.

    Returns:
        The bound, inf where the norm reaches the skip.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If the norm is negative, or a number not finite.

    Example:
        >>> from spectrax.theory.random_matrices import norm_condition_number_bound
        >>> norm_condition_number_bound(0.5, rho=1.0)
        3.0

    Source:
        Horn & Johnson 2012, Matrix Analysis, Corollary 7.3.5.
    """
    norm, rho = real("norm", norm, low=0), abs(real("rho", rho))
    return (rho + norm) / (rho - norm) if norm < rho else math.inf


def entrywise_condition_number_bound(
    largest_entry: Any, /, *, n: int, rho: Any = 1.0, largest_slope: Any = 1.0
) -> float:
    r"""Bound the condition number of D W + rho I by the largest weight, for certain: a box for the weights.

    For all weights with \|W_ij\| <= a and all slopes of modulus at most d, n a d < \|rho\| gives
    kappa <= (\|rho\| + n a d) / (\|rho\| - n a d), since \|W\| <= n a.

    Args:
        largest_entry: The largest modulus a of a weight.
        n: The width.
        rho: The factor of the skip, any sign.
        largest_slope: The largest modulus d of a slope.

    Returns:
        The bound, inf where n a d reaches the skip.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If an argument is out of its range.

    Example:
        >>> from spectrax.theory.random_matrices import entrywise_condition_number_bound
        >>> entrywise_condition_number_bound(0.05, n=10)
        3.0

    Source:
        As `norm_condition_number_bound`.
    """
    checks.positive_integer("n", n)
    a = real("largest_entry", largest_entry, low=0)
    return norm_condition_number_bound(n * a * abs(real("largest_slope", largest_slope)), rho=rho)


def norm_concentration(t: Any, /, *, half_width: Any) -> float:
    r"""Bound the probability that the norm of a matrix with bounded entries is t or more away from its median.

    For independent entries in [-a, a], of any law and any shape of the matrix, P(\| \|W\| - median \| >= t) is at most
    4 exp(-t^2 / (16 a^2)): the norm is convex and 1-Lipschitz. It does not depend on the size.

    Args:
        t: The distance; not negative.
        half_width: The bound a on an entry's modulus, positive.

    Returns:
        The bound, at most 1.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If an argument is out of its range.

    Example:
        >>> from spectrax.theory.random_matrices import norm_concentration
        >>> round(norm_concentration(0.5, half_width=0.05), 4)
        0.0077

    Source:
        Talagrand 1996 (doi:10.1214/aop/1042644705); scaled to intervals of length 2 a.
    """
    ratio = real("t", t, low=0) / real("half_width", half_width, low=0, low_open=True)
    return min(1.0, 4 * math.exp(-(min(ratio, 1e150) ** 2) / 16))
