r"""The largest and the smallest singular value of a wide random skip layer, in the limit of large width.

The layer's Jacobian is J = D W + rho I, with W of size n x n whose entries are independent with mean 0 and variance
c^2 / n, and D = diag(d) independent of W. Hachem, Loubaton & Najim (2007) give the law of its squared singular values
as n grows: with r_i = d_i^2 and x outside of the support,

    T_i = 1 / (-x (1 + c^2 r_i g) + rho^2 / a),    a = 1 + c^2 mean(r_i T_i),    g = mean(T_i (1 + c^2 r_i g)) / a,

whose edges are where this system in (a, g) becomes singular. It can be solved in closed form along a curve, so that
no continuation in x is needed:

1. mean(T_i (-x (1 + c^2 r_i g) + rho^2 / a)) = 1 is -x a g + (rho^2 / a) mean T = 1; and the third equation is
   a g = mean T + c^2 g mean(r T) = mean T + g (a - 1), that is g = mean T.
2. Let q = rho^2 / a - x and w = c^2 x g / q, so that T_i = 1 / (q (1 - w r_i)). With m(w) = mean 1 / (1 - w r_i) and
   m_1(w) = mean r_i / (1 - w r_i) = (m - 1) / w the system becomes g = m / q and a = 1 + c^2 m_1 / q, hence
   x = q^2 w / (c^2 m), and q solves the quadratic  w q^2 + c^2 (2 m - 1) q + c^2 m (c^2 m_1 - rho^2) = 0.
3. Its two roots give sqrt(x) = |sqrt(rho^2 + c^2 / (4 w m)) +- c (2 m - 1) / (2 sqrt(w m))|. Right of the support
   all T_i < 0, left of it all T_i > 0; both mean 0 < w < 1 / max r. There x moves from its end (infinity, or 0) to
   the edge as w grows from 0, and the system is singular where dx/dw = 0. So

       s_max = min_w { sqrt(rho^2 + c^2 / (4 w m)) + c (2 m - 1) / (2 sqrt(w m)) },
       s_min = max_w { sqrt(rho^2 + c^2 / (4 w m)) - c (2 m - 1) / (2 sqrt(w m)) }, or 0 where that is not positive.

For r = 1 the extremum is at the root of a quadratic, which gives the closed form. With rho = 0 the formula holds as
well: s_max = c min_w sqrt(m / w), which is 2 c for r = 1.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from spectrax.theory.random_matrices.arguments import real
from spectrax.theory.random_matrices.slopes import SlopeDistribution, Slopes, distribution

_EPS = float(np.finfo(np.float64).eps)


class SkipLayerLimits(NamedTuple):
    """The ends of the spectrum of a random layer as its width grows.

    Attributes:
        s_max: The limit of the largest singular value.
        s_min: The limit of the smallest one; 0 where it vanishes as the width grows.
    """

    s_max: float
    s_min: float

    @property
    def condition_number(self) -> float:
        """s_max / s_min, inf where the condition number grows with the width without bound."""
        return self.s_max / self.s_min if self.s_min > 0 else math.inf


def skip_layer_limits(c: Any, /, *, rho: Any = 1.0, slopes: Slopes) -> SkipLayerLimits:
    r"""Return the limits of the extreme singular values of D W + rho I as the width n grows.

    W is n x n with independent entries of mean 0, variance c^2 / n and bounded fourth moment, Gaussian or uniform for
    instance; D = diag(slopes) is independent of W. For slopes of one modulus d, with C = c d and
    a = sqrt(1 + 8 rho^2 / C^2),

        s_max = C sqrt((a + 3)^3 / (8 (a + 1))),    s_min = C sqrt((a - 3)^3 / (8 (a - 1))) if C < \|rho\|, else 0.

    Otherwise the edges follow from an extremum over one variable (see the module). s_min > 0 exactly where
    c sqrt(m2) < \|rho\|, with m2 the mean of the squared slopes: up to there the condition number is bounded in n.

    Slopes that depend on W through the data, as in a network, change the limits of one layer little, since the
    dependence is of rank one; over many layers with an activation that is never negative they can matter.

    Args:
        c: The weights' scale, sqrt(n) times the standard deviation of an entry; not negative. \|W\| is near 2 c.
        rho: The factor of the skip, any sign; 0 for none (for slopes of 1 the square Marchenko-Pastur law).
        slopes: The name of an activation, with half of its units active; one slope; an array or list with the slope of
            every unit; or a tuple (values, probabilities), for instance from `activation_slopes`.

    Returns:
        `(s_max, s_min)`, floats in double precision, with the property `condition_number`.

    Raises:
        TypeError: If an argument is not a number, or is being traced.
        ValueError: If c is negative, a number is not finite, or the slopes are not a distribution.

    Cost:
        On the host: about a hundred sums over the distinct slopes.

    Derivatives:
        None.

    Example:
        >>> from spectrax.theory.random_matrices import skip_layer_limits
        >>> limits = skip_layer_limits(0.5, rho=1.0, slopes="relu")
        >>> round(limits.s_max, 3), round(limits.s_min, 3), round(limits.condition_number, 2)
        (1.618, 0.491, 3.29)
        >>> skip_layer_limits(1.5, rho=1.0, slopes="relu").s_min
        0.0

    Source:
        Bordenave & Chafai 2012 (doi:10.1214/11-PS183) for slopes of one modulus; Hachem, Loubaton & Najim 2007
        (doi:10.1214/105051606000000925) for the system of equations; the reduction to one variable is
        derived in the module's docstring.
    """
    scale, skip, slope = real("c", c, low=0), abs(real("rho", rho)), distribution(slopes)
    top = slope.largest
    if 2 * scale * top <= 0.25 * _EPS * skip:  # a perturbation below round-off, with that of zero
        return SkipLayerLimits(skip, skip)
    scaled = scale * top
    if np.all(np.abs(slope.values) == top):
        return _one_modulus(scaled, skip)
    return several_moduli(scaled, skip, SlopeDistribution(slope.values / top, slope.probabilities))


def _one_modulus(c: float, rho: float) -> SkipLayerLimits:
    a = math.hypot(1, math.sqrt(8) * rho / c)
    s_max = c * (a + 3) * math.sqrt((a + 3) / (8 * (a + 1)))
    if is_at_least(c, rho):
        return SkipLayerLimits(s_max, 0.0)
    # a - 3 = (a^2 - 9) / (a + 3), which keeps its digits near c = rho
    gap = 8 * (rho / c - 1) * (rho / c + 1) / (a + 3)
    return SkipLayerLimits(s_max, c * gap * math.sqrt(gap / (8 * (a - 1))))


def several_moduli(c: float, rho: float, slopes: SlopeDistribution, /) -> SkipLayerLimits:
    """Return the limits for slopes whose largest modulus is 1, by the extremum over w of the module's docstring.

    Args:
        c: The weights' scale, positive.
        rho: The factor of the skip, not negative, and not so large that c is below its round-off.
        slopes: The slopes.

    Returns:
        The limits.
    """
    r, share, ratio = slopes.values**2, slopes.probabilities, rho / c
    m2 = float(share @ r)

    def means(w: float) -> tuple[float, float, float, float]:
        """Return m and m', then (rho / c)^2 - m_1 and m_1': the third without cancellation for small w."""
        factors = 1 / (1 - w * r)
        gap = (ratio - math.sqrt(m2)) * (ratio + math.sqrt(m2)) - w * float(share @ (r * r * factors))
        return (
            float(share @ factors),
            float(share @ (r * factors**2)),
            gap,
            float(share @ (r * factors) ** 2),
        )

    def slope_of_max(w: float) -> float:
        """The derivative of s_max's bracket, times 8 (w m)^(3/2) / c."""
        m, dm, _, _ = means(w)
        curl = 4 * w * m * dm - 4 * m * m + 2 * m + 2 * w * dm
        return curl - (m + w * dm) / math.hypot(ratio * math.sqrt(w * m), 0.5)

    def slope_of_min(w: float) -> float:
        """The derivative by log w of log s_min^2, with the sign turned."""
        m, dm, gap, dm1 = means(w)
        if gap <= 0:  # beyond the zero of the bracket
            return 1.0
        root = math.hypot(1, 2 * ratio * math.sqrt(w * m))
        inner = 2 * ratio**2 * (m + w * dm) / root + 2 * dm
        return -(1 + w * dm / m - 2 * w * dm1 / gap - 2 * w * inner / (root + 2 * m - 1))

    w = _sign_change(slope_of_max)
    m = means(w)[0]
    half = 0.5 / math.sqrt(w * m)
    s_max = c * (math.hypot(ratio, half) + (2 * m - 1) * half)
    if is_at_least(c * math.sqrt(m2), rho):
        return SkipLayerLimits(s_max, 0.0)
    w = _sign_change(slope_of_min)
    m, _, gap, _ = means(w)
    # the bracket, with the difference of its two terms written as a quotient
    s_min = 2 * c * math.sqrt(w * m) * gap / (math.hypot(1, 2 * ratio * math.sqrt(w * m)) + 2 * m - 1)
    return SkipLayerLimits(s_max, max(s_min, 0.0))


def is_at_least(spread: float, rho: float, /) -> bool:
    """Return whether c sqrt(m2) >= rho up to round-off: there the smallest singular value vanishes.

    Args:
        spread: c sqrt(m2).
        rho: The factor of the skip.

    Returns:
        Whether it is.
    """
    return spread >= rho * (1 - 8 * _EPS)


def _sign_change(function: Callable[[float], float]) -> float:
    """Return where a function on (0, 1), negative at first and positive in the end, changes its sign.

    Bisection between neighbouring floats; by ratios near zero, where the place may lie at any order of magnitude.
    """
    low, high = 1e-300, 1 - _EPS
    while True:
        middle = math.sqrt(low) * math.sqrt(high) if high > 4 * low else 0.5 * (low + high)
        if not low < middle < high:
            return low
        if function(middle) < 0:
            low = middle
        else:
            high = middle


def active_condition_number(active_fraction: Any, /) -> float:
    """Return the limit of s_max over the smallest non-zero singular value of D W, for a ReLU layer without a skip.

    The rows of the active units alone are a Gaussian matrix of shape (p n, n), so that by the law of Marchenko & Pastur
    the quotient goes to (1 + sqrt p) / (1 - sqrt p). The other directions are lost: the rank is p n.

    Args:
        active_fraction: The share p of active units, in (0, 1].

    Returns:
        The limit, inf for p = 1.

    Raises:
        TypeError: If the fraction is not a number.
        ValueError: If it lies outside of (0, 1].

    Example:
        >>> from spectrax.theory.random_matrices import active_condition_number
        >>> round(active_condition_number(0.5), 2)
        5.83

    Source:
        Bai & Yin 1993 (doi:10.1214/aop/1176989118).
    """
    root = math.sqrt(real("active_fraction", active_fraction, low=0, high=1, low_open=True))
    return (1 + root) / (1 - root) if root < 1 else math.inf
