"""Penalties on the largest singular values, or on both ends at once, by vectors followed from step to step."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from spectrax import checks
from spectrax.operators import LinearOperator
from spectrax.regularizers.extremes import extremes_penalty
from spectrax.regularizers.maps import Maps, MatrixAxes
from spectrax.regularizers.penalty import Penalty


def spectral_norm_penalty(
    maps: Maps | MatrixAxes | None = None,
    *,
    block_size: int = 4,
    renew_every: int = 64,
    tolerance: float | None = None,
    mask: Callable[[str], bool] | None = None,
    batched: bool = False,
    num_samples: int | None = None,
) -> Penalty:
    r"""Penalise half the squared spectral norm of each map, (1/2) sum s_1^2.

    Args:
        maps: As in `condition_number_penalty`.
        block_size: How many vectors are carried; more follow the largest value over a crossing.
        renew_every: Steps between two renewals.
        tolerance: As in `condition_number_penalty`.
        mask: Which maps to act on, by name.
        batched: As in `condition_number_penalty`.
        num_samples: As in `condition_number_penalty`.

    Returns:
        The penalty's functions. The measured sigma_min is NaN.

    Raises:
        ValueError: If an option is out of its range.

    Cost:
        As `condition_number_penalty` with one block.

    Derivatives:
        d = s_1 Re(u_1^H dA v_1).

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> penalty = sx.regularizers.spectral_norm_penalty()
        >>> params = {"kernel": jnp.diag(jnp.array([1.0, 3.0]))}
        >>> round(float(penalty.apply(params, penalty.init(params, None))[0]), 4)
        4.5

    Source:
        Yoshida & Miyato 2017, arXiv 1705.10941.
    """

    def value(top: jax.Array, bottom: jax.Array, operator: LinearOperator) -> jax.Array:
        del bottom, operator
        return jnp.square(top[0]) / 2

    return extremes_penalty(
        value, (block_size, 0), maps, renew_every=renew_every, tolerance=tolerance, mask=mask, batched=batched,
        num_samples=num_samples,
    )  # fmt: skip


def unit_norm_penalty(
    maps: Maps | MatrixAxes | None = None,
    *,
    exponent: int = 2,
    block_size: int = 4,
    renew_every: int = 64,
    tolerance: float | None = None,
    mask: Callable[[str], bool] | None = None,
    batched: bool = False,
    num_samples: int | None = None,
) -> Penalty:
    r"""Penalise spectral norms that are not one, sum (s_1^exponent - 1)^2.

    The spectral part of the regulariser for continual learning, which keeps networks trainable when tasks change; for
    biases and gains, whose distance from their initial values the paper penalises besides, use weight decay.

    Args:
        maps: As in `condition_number_penalty`.
        exponent: At least one.
        block_size: How many vectors are carried.
        renew_every: Steps between two renewals.
        tolerance: As in `condition_number_penalty`.
        mask: Which maps to act on, by name.
        batched: As in `condition_number_penalty`.
        num_samples: As in `condition_number_penalty`.

    Returns:
        The penalty's functions. The measured sigma_min is NaN.

    Raises:
        ValueError: If an option is out of its range.
        TypeError: If `exponent` is not an integer.

    Cost:
        As `spectral_norm_penalty`.

    Derivatives:
        d = 2 (s^k - 1) k s^(k-1) Re(u_1^H dA v_1); zero for a zero map if k > 1.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> penalty = sx.regularizers.unit_norm_penalty()
        >>> params = {"kernel": jnp.diag(jnp.array([1.0, 2.0]))}
        >>> round(float(penalty.apply(params, penalty.init(params, None))[0]), 4)
        9.0

    Source:
        Lewandowski et al. 2025, arXiv 2406.06811.
    """
    checks.positive_integer("exponent", exponent)

    def value(top: jax.Array, bottom: jax.Array, operator: LinearOperator) -> jax.Array:
        del bottom, operator
        return jnp.square(jax.lax.integer_pow(top[0], int(exponent)) - 1)

    return extremes_penalty(
        value, (block_size, 0), maps, renew_every=renew_every, tolerance=tolerance, mask=mask, batched=batched,
        num_samples=num_samples,
    )  # fmt: skip


def band_penalty(
    low: float,
    high: float,
    /,
    maps: Maps | MatrixAxes | None = None,
    *,
    block_size: int = 8,
    renew_every: int = 64,
    tolerance: float | None = None,
    mask: Callable[[str], bool] | None = None,
    batched: bool = False,
    num_samples: int | None = None,
) -> Penalty:
    r"""Penalise singular values outside a band, (1/2) sum max(0, s_i - high)^2 + max(0, low - s_i)^2.

    The sum is over the block_size largest and smallest values of each map. Those that are in the band have no gradient.

    Args:
        low: The lower end, at least zero.
        high: The upper end, at least `low`; inf for none.
        maps: As in `condition_number_penalty`.
        block_size: How many singular values at each end (at most half of them).
        renew_every: Steps between two factorisations.
        tolerance: As in `condition_number_penalty`.
        mask: Which maps to act on, by name.
        batched: As in `condition_number_penalty`.
        num_samples: As in `condition_number_penalty`.

    Returns:
        The penalty's functions.

    Raises:
        ValueError: If an option is out of its range.
        TypeError: If an end is not a number.

    Cost:
        As `condition_number_penalty`.

    Derivatives:
        First order; finite everywhere.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> penalty = sx.regularizers.band_penalty(0.5, 2.0)
        >>> params = {"kernel": jnp.diag(jnp.array([0.25, 1.0, 1.5, 4.0]))}
        >>> round(float(penalty.apply(params, penalty.init(params, None))[0]), 5)
        2.03125
    """
    checks.number_in("low", low, 0, math.inf)
    checks.number_in("high", high, low, math.inf)

    def value(top: jax.Array, bottom: jax.Array, operator: LinearOperator) -> jax.Array:
        del operator
        # of NaN neither side may be chosen
        above = jnp.where(top <= high, 0 * top, top - high) if high < math.inf else jnp.zeros_like(top)
        below = jnp.where(bottom >= low, 0 * bottom, low - bottom)
        return (jnp.sum(jnp.square(above)) + jnp.sum(jnp.square(below))) / 2

    return extremes_penalty(
        value, (block_size, block_size), maps, renew_every=renew_every, tolerance=tolerance, mask=mask, batched=batched,
        num_samples=num_samples,
    )  # fmt: skip


def restricted_isometry_penalty(
    maps: Maps | MatrixAxes | None = None,
    *,
    block_size: int = 4,
    renew_every: int = 64,
    tolerance: float | None = None,
    mask: Callable[[str], bool] | None = None,
    batched: bool = False,
    num_samples: int | None = None,
) -> Penalty:
    r"""Penalise the spectral norm of A^H A - I, max(\|s_1^2 - 1\|, \|s_n^2 - 1\|), of each map's shorter side (SRIP).

    The published estimate, two power steps from a fresh random start, is on average a third too small and jumps from
    step to step; this one follows both ends.

    Args:
        maps: As in `condition_number_penalty`.
        block_size: How many vectors are carried at each end.
        renew_every: Steps between two factorisations.
        tolerance: As in `condition_number_penalty`.
        mask: Which maps to act on, by name.
        batched: As in `condition_number_penalty`.
        num_samples: As in `condition_number_penalty`.

    Returns:
        The penalty's functions.

    Raises:
        ValueError: If an option is out of its range.

    Cost:
        As `condition_number_penalty`.

    Derivatives:
        First order, of the end that is farther from one.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> penalty = sx.regularizers.restricted_isometry_penalty()
        >>> params = {"kernel": jnp.diag(jnp.array([0.5, 1.0, 1.0, 2.0]))}
        >>> round(float(penalty.apply(params, penalty.init(params, None))[0]), 5)
        3.0

    Source:
        Bansal, Chen & Wang 2018, arXiv 1810.09102, equation 5.
    """

    def value(top: jax.Array, bottom: jax.Array, operator: LinearOperator) -> jax.Array:
        del operator
        return jnp.maximum(jnp.abs(jnp.square(top[0]) - 1), jnp.abs(jnp.square(bottom[-1]) - 1))

    return extremes_penalty(
        value, (block_size, block_size), maps, renew_every=renew_every, tolerance=tolerance, mask=mask, batched=batched,
        num_samples=num_samples,
    )  # fmt: skip
