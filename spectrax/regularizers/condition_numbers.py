"""Penalties on condition numbers: of the extreme singular values, or by their smooth upper bound."""

import math
from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp

from spectrax import checks, spectrum
from spectrax.operators import LinearOperator
from spectrax.regularizers.extremes import extremes_penalty
from spectrax.regularizers.maps import Maps, MatrixAxes
from spectrax.regularizers.penalty import Penalty

_FORMS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "log": lambda top, bottom: jnp.log(top) - jnp.log(bottom),
    "plain": lambda top, bottom: top / bottom,
    "squared": lambda top, bottom: jnp.square(top / bottom),
}


def condition_number_penalty(
    maps: Maps | MatrixAxes | None = None,
    *,
    form: str = "log",
    target: float = 1.0,
    block_size: int = 8,
    renew_every: int = 64,
    tolerance: float | None = None,
    mask: Callable[[str], bool] | None = None,
    batched: bool = False,
    num_samples: int | None = None,
) -> Penalty:
    r"""Penalise the condition number of each map, or its logarithm.

    The sum over all maps of the mean over i <= block_size of f(s_i, s_{n+1-i} + eps s_1), with s_i the singular values
    and f their ratio, its logarithm or its square; `block_size=1` is the condition number itself. A whole block keeps
    the gradient bounded where the smallest value is far below its neighbours, and lifts these before they become the
    smallest. Near zero maps and rank deficiency the value and the gradient are finite; for "log" the gradient can reach
    1 / (eps s_1), which is too large for float16, for "plain" and "squared" 1 / eps and 1 / eps^2 times that: keep such
    parameters in float32 or bfloat16.

    Args:
        maps: A function from parameters to named operators (`sx.layers.linear_maps(net, input_shape)`, or your own), or
            `MatrixAxes`, or None for parameters of shape (in, out).
        form: "log" (scale-free gradients), "plain" or "squared".
        target: Only what exceeds this condition number counts, max(0, value - f(target, 1)): a hinge.
        block_size: How many singular values at each end (at most half of them).
        renew_every: Steps between two factorisations of the maps; in between the values are Ritz values on the blocks.
        tolerance: Estimated relative error of the extreme values above which an explicit matrix is worked on more in
            the same step: its vectors are improved by products with it and with the inverse of an older factor, and
            where that is not enough the matrix is factorised; `renew_every` is then the age of a factor at most. What
            could not be brought below it has `converged=False` in the measurements. None leaves all to the schedule.
        mask: Which maps to act on, by name; all by default.
        batched: Whether `maps` takes one sample: it is then called for every sample of the batch, the extra arguments
            of `apply`, and each map is decomposed wholly at every step; the penalty is the mean over samples.
        num_samples: With `batched`, how many samples of the batch are used; all by default.

    Returns:
        The penalty's functions.

    Raises:
        ValueError: If an option is out of its range.
        TypeError: If `target` is not a number.

    Cost:
        At every step one product of each map with 2 block_size vectors and its derivative; at a renewal a factorisation
        of each map up to the limits of `svds`. With a tolerance the state also holds a triangular factor of each matrix
        with a shorter side from 129 to 1024.

    Derivatives:
        First order, with respect to the parameters.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import spectrax as sx
        >>> penalty = sx.regularizers.condition_number_penalty(block_size=1)
        >>> params = {"kernel": jnp.diag(jnp.array([1.0, 10.0]))}
        >>> value, state = penalty.apply(params, penalty.init(params, None))
        >>> round(float(value), 4)
        2.3026
    """
    checks.choice("form", form, tuple(_FORMS))
    checks.number_in("target", target, 1, math.inf)
    ratio = _FORMS[form]

    def value(top: jax.Array, bottom: jax.Array, operator: LinearOperator) -> jax.Array:
        del operator
        eps = jnp.finfo(top.dtype).eps
        largest = jnp.where(top[0] < jnp.finfo(top.dtype).tiny / eps, 0 * top[0], top[0])  # what is smaller underflows
        nonzero = ~(largest == 0)  # NaN must come through
        safe_top = jnp.where(nonzero, jnp.maximum(top, eps * largest), 1)
        safe_bottom = jnp.where(nonzero, jnp.maximum(bottom, 0) + eps * largest, 1)
        # The forms don't depend on the scale, and without it no square under- or overflows. (Of two divisions XLA would
        # make one, and so bring it back.)
        _, exponent = jnp.frexp(jax.lax.stop_gradient(safe_top[0]))
        factor = jnp.ldexp(jnp.ones_like(safe_top[0]), -jnp.clip(exponent, -126, 126))
        found = jnp.mean(ratio(safe_top * factor, safe_bottom * factor))
        if target == 1:  # eps may bring it below
            return found
        limit = ratio(jnp.asarray(target, top.dtype), jnp.ones((), top.dtype))
        return jnp.where(found > limit, found - limit, 0 * found)

    return extremes_penalty(
        value, (block_size, block_size), maps, renew_every=renew_every, tolerance=tolerance, mask=mask, batched=batched,
        num_samples=num_samples,
    )  # fmt: skip


def smooth_condition_penalty(
    maps: Maps | MatrixAxes | None = None,
    *,
    block_size: int = 4,
    renew_every: int = 64,
    tolerance: float | None = None,
    mask: Callable[[str], bool] | None = None,
    batched: bool = False,
    num_samples: int | None = None,
) -> Penalty:
    r"""Penalise s_1^2 / 2 - \|A\|_F^2 / (2 nu) for each map, with nu = min(m, n): zero at a condition number of one.

    It never looks at the smallest singular value and yet bounds it: with the value r of one map the condition number
    is at most sqrt(1 + 2 nu r / s_nu^2), with equality for nu = 2. The gradient is s_1 u_1 v_1^H - A / nu, which also
    raises all other singular values.

    Args:
        maps: As in `condition_number_penalty`; the maps must be matrices, convolutions, or small enough to be dense.
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
        As `spectral_norm_penalty`, and the Frobenius norm of each map.

    Derivatives:
        First order.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> penalty = sx.regularizers.smooth_condition_penalty()
        >>> params = {"kernel": jnp.diag(jnp.array([1.0, 3.0]))}
        >>> float(penalty.apply(params, penalty.init(params, None))[0])
        2.0

    Source:
        Nenov, Haider & Balazs 2024, (Almost) Smooth Sailing: Towards Numerical Stability of Neural Networks Through
        Differentiable Regularization of the Condition Number.
    """

    def value(top: jax.Array, bottom: jax.Array, operator: LinearOperator) -> jax.Array:
        del bottom
        square = jnp.square(cast(jax.Array, spectrum.frobenius_norm(operator)).astype(top.dtype))
        return (jnp.square(top[0]) - square / min(operator.shape)) / 2

    return extremes_penalty(
        value, (block_size, 0), maps, renew_every=renew_every, tolerance=tolerance, mask=mask, batched=batched,
        num_samples=num_samples,
    )  # fmt: skip
