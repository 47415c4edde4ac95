"""The inverse question: which weights, skips, slopes and depths keep the condition number under a target."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from spectrax import checks
from spectrax.theory.random_matrices.arguments import real
from spectrax.theory.random_matrices.limits import is_at_least, skip_layer_limits
from spectrax.theory.random_matrices.slopes import Slopes, activation_slopes, distribution


class ScaleThresholds(NamedTuple):
    """Below which scale c of the weights the condition number is bounded as the width grows.

    Attributes:
        all_slopes: For every pattern of slopes at once, rho / (2 d), with d the largest modulus of a slope.
        guaranteed: By the finite-width bounds for fixed slopes, rho / sqrt(d^2 + m2).
        exact: By the exact limits, rho / sqrt(m2): at and above it the condition number grows without bound.
    """

    all_slopes: float
    guaranteed: float
    exact: float


def scale_thresholds(*, rho: Any = 1.0, slopes: Slopes) -> ScaleThresholds:
    """Return the scales of random weights up to which a skip layer has a bounded condition number.

    Args:
        rho: The factor of the skip, any sign.
        slopes: As in `skip_layer_limits`.

    Returns:
        Three thresholds on c in ascending order, from `pattern_free_bounds`, `skip_layer_bounds` and
        `skip_layer_limits`; inf for slopes that are all zero, and 0 without a skip.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If an argument is not finite, or the slopes are not a distribution.

    Example:
        >>> from spectrax.theory.random_matrices import scale_thresholds
        >>> [round(threshold, 3) for threshold in scale_thresholds(rho=1.0, slopes="relu")]
        [0.5, 0.816, 1.414]

    Source:
        As the three functions.
    """
    skip, slope = abs(real("rho", rho)), distribution(slopes)
    root = slope.root_mean_square
    if root == 0:
        return ScaleThresholds(*(math.inf if skip > 0 else 0.0,) * 3)
    return ScaleThresholds(skip / (2 * slope.largest), skip / math.hypot(slope.largest, root), skip / root)


class Initialization(NamedTuple):
    """What an initialisation means for the condition number of a skip layer.

    Attributes:
        scale: c for independent entries, or the gain of an orthogonal matrix.
        condition_numbers: By activation, the limit of the condition number as the width grows; for "orthogonal" an
            upper bound at every width.
        verdicts: By activation one of "guaranteed" (a finite-width bound holds), "bounded" (the limit is finite, but
            that bound says nothing), "critical" (just at the threshold, where the condition number diverges with the
            width), "unbounded" (above it), or "unknown" (for "orthogonal", where no bound is known).
    """

    scale: float
    condition_numbers: dict[str, float]
    verdicts: dict[str, str]


def initializations(
    *, rho: Any = 1.0, negative_slope: Any = 0.1, active_fraction: Any = 0.5, gain: Any = 1.0
) -> dict[str, Initialization]:
    r"""Judge the usual initialisations of a square layer with a skip.

    | name             | entries of W                                        | c         |
    |------------------|-----------------------------------------------------|-----------|
    | "pytorch_linear" | uniform in +-1 / sqrt n, the default of its Linear  | 1/sqrt 3  |
    | "lecun"          | variance 1 / n, the default of Flax's Dense         | 1         |
    | "xavier"         | variance 2 / (n + n)                                | 1         |
    | "he"             | variance 2 / n                                      | sqrt 2    |
    | "orthogonal"     | gain times an orthogonal matrix                     | the gain  |

    For orthogonal W every slope of modulus at most 1 gives kappa <= (rho + g) / (rho - g) if g < rho; slopes of
    modulus one (abs) give (rho + g) / \|rho - g\| also above.

    Args:
        rho: The factor of the skip, any sign.
        negative_slope: The slope of inactive units for "leaky_relu", of modulus at most 1.
        active_fraction: The share of active units.
        gain: That of "orthogonal".

    Returns:
        By name the scale, and for the activations "abs", "relu" and "leaky_relu" the condition number and a verdict.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If an argument is out of its range.

    Example:
        >>> from spectrax.theory.random_matrices import initializations
        >>> table = initializations(rho=1.0)
        >>> table["he"].verdicts["relu"], table["lecun"].verdicts["relu"], table["pytorch_linear"].verdicts["abs"]
        ('critical', 'bounded', 'guaranteed')
        >>> round(table["pytorch_linear"].condition_numbers["abs"], 2)
        6.53

    Source:
        LeCun et al. 1998, Glorot & Bengio 2010, He et al. 2015 (arXiv 1502.01852), Saxe et al. 2014 (arXiv 1312.6120)
        for the initialisations; `skip_layer_limits` and `scale_thresholds` for what they mean.
    """
    skip, gain = abs(real("rho", rho)), real("gain", gain, low=0)
    eta = real("negative_slope", negative_slope, low=-1, high=1)
    patterns = {
        name: activation_slopes(name, active_fraction=active_fraction, negative_slope=eta)
        for name in ("abs", "relu", "leaky_relu")
    }
    scales = {"pytorch_linear": 1 / math.sqrt(3), "lecun": 1.0, "xavier": 1.0, "he": math.sqrt(2)}
    table = {}
    for name, c in scales.items():
        numbers, verdicts = {}, {}
        for activation, slopes in patterns.items():
            numbers[activation] = skip_layer_limits(c, rho=skip, slopes=slopes).condition_number
            verdicts[activation] = _verdict(c, skip, slopes)
        table[name] = Initialization(c, numbers, verdicts)
    numbers, verdicts = {}, {}
    for activation in patterns:
        apart = abs(skip - gain) if activation == "abs" else max(skip - gain, 0.0)
        numbers[activation] = (skip + gain) / apart if apart > 0 else math.inf
        verdicts[activation] = "guaranteed" if apart > 0 else "critical" if activation == "abs" else "unknown"
    table["orthogonal"] = Initialization(gain, numbers, verdicts)
    return table


def _verdict(c: float, rho: float, slopes: Slopes) -> str:
    thresholds, spread = scale_thresholds(rho=rho, slopes=slopes), distribution(slopes).root_mean_square
    if c < thresholds.guaranteed:
        return "guaranteed"
    if not is_at_least(c * spread, rho):
        return "bounded"
    return "critical" if is_at_least(rho, c * spread) else "unbounded"


def largest_scale(target_condition_number: Any, /, *, rho: Any = 1.0, slopes: Slopes, depth: int = 1) -> float:
    r"""Return the largest scale c of random weights that keeps the condition number under a target.

    By bisection on the exact limits, in which the condition number grows with c. For a product of several layers the
    target of each is the root target^(1 / depth), since kappa(A B) <= kappa(A) kappa(B): an upper bound, which random
    layers stay far below.

    Args:
        target_condition_number: At least 1.
        rho: The factor of the skip, any sign but not 0.
        slopes: As in `skip_layer_limits`; independent of the weights.
        depth: The number of layers.

    Returns:
        The largest c, for the limit of large width; inf for slopes that are all zero.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If an argument is out of its range, or there is no skip: then the condition number grows with the
            width for every c.

    Cost:
        About sixty times `skip_layer_limits`.

    Example:
        >>> from spectrax.theory.random_matrices import largest_scale, skip_layer_limits
        >>> c = largest_scale(5.0, rho=1.0, slopes="relu")
        >>> round(c, 3), round(skip_layer_limits(c, rho=1.0, slopes="relu").condition_number, 9)
        (0.653, 5.0)

    Source:
        `skip_layer_limits`.
    """
    target, skip, slope = _target(target_condition_number, depth), abs(real("rho", rho)), distribution(slopes)
    if skip == 0:
        raise ValueError("rho must not be 0: without a skip the condition number grows with the width at every scale")
    if slope.root_mean_square == 0:
        return math.inf
    if target == 1:
        return 0.0

    def fits(c: float) -> bool:
        return skip_layer_limits(c, rho=1.0, slopes=slope).condition_number <= target

    return skip * _last_that_fits(fits, 0.0, 1 / slope.root_mean_square)


def smallest_skip(target_condition_number: Any, /, *, c: Any, slopes: Slopes, depth: int = 1) -> float:
    """Return the smallest skip rho that keeps the condition number under a target.

    The condition number depends on c / rho alone, so that this is c divided by `largest_scale` at rho = 1.

    Args:
        target_condition_number: At least 1, and above 1 where the weights count.
        c: The weights' scale, positive.
        slopes: As in `skip_layer_limits`; independent of the weights.
        depth: The number of layers, as in `largest_scale`.

    Returns:
        The smallest rho; 0 for slopes that are all zero, when every rho > 0 will do.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If an argument is out of its range, or the target is 1 and can't be reached by any skip.

    Cost:
        As `largest_scale`.

    Example:
        >>> from spectrax.theory.random_matrices import smallest_skip
        >>> round(smallest_skip(5.0, c=1.0, slopes="relu"), 3)
        1.532

    Source:
        `skip_layer_limits`.
    """
    scale = real("c", c, low=0, low_open=True)
    largest = largest_scale(target_condition_number, rho=1.0, slopes=slopes, depth=depth)
    if largest == 0:
        raise ValueError("target_condition_number must be larger than 1: no skip gives random weights less")
    return scale / largest


def largest_depth(target_condition_number: Any, /, *, c: Any, rho: Any = 1.0, slopes: Slopes) -> int | float:
    """Return the largest number of random layers whose product keeps the condition number under a target.

    floor(log(target) / log(kappa)) with kappa the limit of one layer: kappa(A B) <= kappa(A) kappa(B). Random layers
    whose slopes don't depend on the weights do much better, with log kappa growing like the root of the depth at
    first; but slopes that follow the data add up, which this bound allows for layer by layer only.

    Args:
        target_condition_number: At least 1.
        c: The weights' scale; not negative.
        rho: The factor of the skip, any sign.
        slopes: As in `skip_layer_limits`; independent of the weights.

    Returns:
        The largest depth, an integer; inf where each layer has the condition number 1.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If an argument is out of its range, or one layer is too much already.

    Cost:
        As `skip_layer_limits`.

    Example:
        >>> from spectrax.theory.random_matrices import largest_depth
        >>> largest_depth(1000.0, c=0.25, rho=1.0, slopes="relu")
        11

    Source:
        `skip_layer_limits`.
    """
    target = _target(target_condition_number, 1)
    each = skip_layer_limits(c, rho=rho, slopes=slopes).condition_number
    if each > target:
        raise ValueError(f"target_condition_number must be at least that of one layer, {each:.4g}, got {target:g}")
    if each == 1:
        return math.inf
    depth = math.log(target) / math.log(each)
    return math.floor(depth * (1 + 1e-12))  # a target that is a power of it, in spite of round-off


def largest_negative_slope(
    target_condition_number: Any, /, *, c: Any, rho: Any = 1.0, active_fraction: Any = 0.5, depth: int = 1
) -> float:
    r"""Return the largest slope of inactive units that keeps the condition number under a target.

    With a skip the condition number grows with the modulus of the slope, from that of ReLU to that of abs and linear.
    (In a layer's own slopes it is the other way round: see `negative_slope_factor`.)

    Args:
        target_condition_number: At least 1.
        c: The weights' scale; not negative.
        rho: The factor of the skip, any sign.
        active_fraction: The share of units with slope 1.
        depth: The number of layers, as in `largest_scale`.

    Returns:
        The largest modulus, in [0, 1].

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If an argument is out of its range, or even a slope of 0 is too much.

    Cost:
        About sixty times `skip_layer_limits`.

    Example:
        >>> from spectrax.theory.random_matrices import largest_negative_slope
        >>> round(largest_negative_slope(4.0, c=0.5, active_fraction=0.5), 3)
        0.776

    Source:
        `skip_layer_limits`.
    """
    target, active = _target(target_condition_number, depth), real("active_fraction", active_fraction, low=0, high=1)

    def number(eta: float) -> float:
        slopes = activation_slopes("leaky_relu", active_fraction=active, negative_slope=eta)
        return skip_layer_limits(c, rho=rho, slopes=slopes).condition_number

    least = number(0.0)
    if least > target:
        raise ValueError(
            f"target_condition_number must be at least that of ReLU, for each layer {least:.4g}, got {target:.4g}; "
            "take smaller weights or a larger skip (largest_scale, smallest_skip)"
        )
    return 1.0 if number(1.0) <= target else _last_that_fits(lambda eta: number(eta) <= target, 0.0, 1.0)


def _target(value: Any, depth: int) -> float:
    checks.positive_integer("depth", depth)
    return real("target_condition_number", value, low=1) ** (1 / depth)


def _last_that_fits(fits: Callable[[float], bool], low: float, high: float) -> float:
    """Return the largest float in [low, high) that fits, given that low fits and high does not."""
    while True:
        middle = 0.5 * (low + high)
        if not low < middle < high:
            return low
        if fits(middle):
            low = middle
        else:
            high = middle
