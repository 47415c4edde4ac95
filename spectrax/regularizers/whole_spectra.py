"""Penalties on all singular values of a map: norms, ranks, and the log-determinant."""

import math
from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp

from spectrax import checks, spectrum, vectors
from spectrax.operators import LinearOperator
from spectrax.operators.precision import in_working_precision
from spectrax.regularizers.blocks import needs_key
from spectrax.regularizers.maps import Maps, MatrixAxes
from spectrax.regularizers.penalty import Penalty
from spectrax.regularizers.sums import sum_penalty


def schatten_norm_penalty(
    maps: Maps | MatrixAxes | None = None,
    *,
    p: float = 1.0,
    mask: Callable[[str], bool] | None = None,
    batched: bool = False,
    num_samples: int | None = None,
) -> Penalty:
    r"""Penalise (1/p) sum_i s_i^p of each map; for p = 1, the default, the nuclear norm, which lowers the rank.

    Args:
        maps: As in `condition_number_penalty`.
        p: At least one.
        mask: Which maps to act on, by name.
        batched: As in `condition_number_penalty`.
        num_samples: As in `condition_number_penalty`.

    Returns:
        The penalty's functions. No singular value is measured: all measurements are NaN.

    Raises:
        ValueError: If an option is out of its range; when applied, if a map is too large to be made dense.
        TypeError: If `p` is not a number.

    Cost:
        A whole decomposition of each map at every step: apply it every so many steps.

    Derivatives:
        U S^(p-1) V^H; for p = 1 zero along what is at round-off.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> penalty = sx.regularizers.schatten_norm_penalty()
        >>> params = {"kernel": jnp.diag(jnp.array([1.0, 3.0]))}
        >>> round(float(penalty.apply(params, penalty.init(params, None))[0]), 4)
        4.0
    """
    checks.number_in("p", p, 1, 1e6)

    def value(operator: LinearOperator, key: jax.Array | None) -> jax.Array:
        del key
        if p == 1:
            return cast(jax.Array, spectrum.nuclear_norm(operator))
        return cast(jax.Array, spectrum.spectral_function(operator, lambda s: s**p / p))

    return sum_penalty(value, maps, mask=mask, batched=batched, num_samples=num_samples)


def frobenius_norm_penalty(
    maps: Maps | MatrixAxes | None = None,
    *,
    num_probes: int | None = None,
    mask: Callable[[str], bool] | None = None,
    batched: bool = False,
    num_samples: int | None = None,
) -> Penalty:
    r"""Penalise half the squared Frobenius norm of each map, (1/2) sum_i s_i^2.

    With `maps=jacobian_maps(f)` and `batched=True` it is the Jacobian regulariser of Hoffman, Roberts & Yaida, which
    widens the margin around each sample.

    Args:
        maps: As in `condition_number_penalty`.
        num_probes: Estimate it without bias from so many random directions of the output, drawn anew at every step
            (and for every sample), \|A^H v\|^2 times the number of outputs; None for the exact value.
        mask: Which maps to act on, by name.
        batched: As in `condition_number_penalty`.
        num_samples: As in `condition_number_penalty`.

    Returns:
        The penalty's functions. No singular value is measured: all measurements are NaN.

    Raises:
        ValueError: If an option is out of its range; when applied, if a map is too large for its exact norm.

    Cost:
        `num_probes` products with A^H, and their derivative; exactly one for each of the shorter side, or none for an
        explicit matrix.

    Derivatives:
        Any order: Re<A, dA>.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import spectrax as sx
        >>> maps = sx.regularizers.jacobian_maps(lambda params, x: params @ x)
        >>> penalty = sx.regularizers.frobenius_norm_penalty(maps, batched=True)
        >>> params = jnp.diag(jnp.array([1.0, 3.0]))
        >>> round(float(penalty.apply(params, penalty.init(params, None), x=jnp.ones((4, 2)))[0]), 4)
        5.0

    Source:
        Hoffman, Roberts & Yaida 2019, arXiv 1908.02729.
    """
    if num_probes is not None:
        checks.positive_integer("num_probes", num_probes)

    def value(operator: LinearOperator, key: jax.Array | None) -> jax.Array:
        if num_probes is None:
            return jnp.square(cast(jax.Array, spectrum.frobenius_norm(operator))) / 2
        assert key is not None
        working = in_working_precision(operator)
        probes = vectors.normal(key, working.out_struct, int(num_probes))
        length = jnp.sqrt(jnp.asarray(working.shape[0], vectors.stack_norms(probes).dtype))
        probes = vectors.scale_rows(length / vectors.stack_norms(probes), probes)
        images = working._block_products()[1](probes)
        return jnp.mean(jnp.square(vectors.stack_norms(images))) / 2

    return sum_penalty(
        value, maps, mask=mask, batched=batched, num_samples=num_samples, random=lambda _: num_probes is not None
    )


def frobenius_product_penalty(
    maps: Maps | MatrixAxes | None = None,
    *,
    mask: Callable[[str], bool] | None = None,
) -> Penalty:
    r"""Penalise rho, the product of the Frobenius norms of all maps, by which bounds of generalisation are stated.

    Args:
        maps: As in `condition_number_penalty`. With `MatrixAxes` a convolution counts as its reshaped kernel, which is
            how the bounds are stated; the norm of the convolution itself grows with the root of the number of pixels.
        mask: Which maps to act on, by name.

    Returns:
        The penalty's functions. No singular value is measured: all measurements are NaN.

    Raises:
        ValueError: When applied, if a map is too large for its exact norm.

    Cost:
        That of the norms.

    Derivatives:
        Any order where no map is zero; finite there. The product of many layers over- or underflows: in float32 beyond
        1e38.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> penalty = sx.regularizers.frobenius_product_penalty()
        >>> params = {"a": jnp.diag(jnp.array([3.0, 4.0])), "b": 2 * jnp.eye(1)}
        >>> round(float(penalty.apply(params, penalty.init(params, None))[0]), 4)
        10.0

    Source:
        Xu et al. 2023, Research 6:0024, doi:10.34133/research.0024.
    """

    def value(operator: LinearOperator, key: jax.Array | None) -> jax.Array:
        del key
        return cast(jax.Array, spectrum.frobenius_norm(operator))

    def product(values: list[jax.Array]) -> jax.Array:
        return math.prod(values[1:], start=values[0])

    return sum_penalty(value, maps, mask=mask, batched=False, num_samples=None, combine=product)


def effective_rank_penalty(
    maps: Maps | MatrixAxes | None = None,
    *,
    direction: str = "lower",
    mask: Callable[[str], bool] | None = None,
    batched: bool = False,
    num_samples: int | None = None,
) -> Penalty:
    """Penalise the effective rank of each map, or what it lacks of the full rank.

    Args:
        maps: As in `condition_number_penalty`.
        direction: "lower": the sum of the effective ranks; "raise": that of min(m, n) minus them.
        mask: Which maps to act on, by name.
        batched: As in `condition_number_penalty`.
        num_samples: As in `condition_number_penalty`.

    Returns:
        The penalty's functions. No singular value is measured: all measurements are NaN.

    Raises:
        ValueError: If an option is out of its range; when applied, if a map is too large to be made dense.

    Cost:
        A whole decomposition of each map at every step.

    Derivatives:
        As `spectrax.effective_rank`: values at round-off contribute nothing, so that what is rank-deficient stays so.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> penalty = sx.regularizers.effective_rank_penalty(direction="raise")
        >>> params = {"kernel": jnp.diag(jnp.array([2.0, 2.0, 0.0]))}
        >>> round(float(penalty.apply(params, penalty.init(params, None))[0]), 4)
        1.0

    Source:
        Roy & Vetterli 2007, The effective rank: a measure of effective dimensionality.
    """
    checks.choice("direction", direction, ("lower", "raise"))

    def value(operator: LinearOperator, key: jax.Array | None) -> jax.Array:
        del key
        found = cast(jax.Array, spectrum.effective_rank(operator))
        return found if direction == "lower" else min(operator.shape) - found

    return sum_penalty(value, maps, mask=mask, batched=batched, num_samples=num_samples)


def stable_rank_penalty(
    maps: Maps | MatrixAxes | None = None,
    *,
    direction: str = "lower",
    mask: Callable[[str], bool] | None = None,
    batched: bool = False,
    num_samples: int | None = None,
) -> Penalty:
    r"""Penalise the stable rank \|A\|_F^2 / s_1^2 of each map, or what it lacks of the full rank.

    Args:
        maps: As in `condition_number_penalty`.
        direction: "lower": the sum of the stable ranks; "raise": that of min(m, n) minus them.
        mask: Which maps to act on, by name.
        batched: As in `condition_number_penalty`.
        num_samples: As in `condition_number_penalty`.

    Returns:
        The penalty's functions. No singular value is measured: all measurements are NaN.

    Raises:
        ValueError: If an option is out of its range.

    Cost:
        A decomposition or an iteration for the largest value of each map at every step; a key is needed for maps that
        are not small.

    Derivatives:
        As `spectrax.stable_rank`.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> penalty = sx.regularizers.stable_rank_penalty()
        >>> params = {"kernel": jnp.diag(jnp.array([1.0, 2.0]))}
        >>> round(float(penalty.apply(params, penalty.init(params, None))[0]), 4)
        1.25
    """
    checks.choice("direction", direction, ("lower", "raise"))

    def value(operator: LinearOperator, key: jax.Array | None) -> jax.Array:
        method = spectrum.Dense() if key is None else "auto"
        found = cast(jax.Array, spectrum.stable_rank(operator, key=key, method=method))
        return found if direction == "lower" else min(operator.shape) - found

    return sum_penalty(value, maps, mask=mask, batched=batched, num_samples=num_samples, random=needs_key)


def log_determinant_penalty(
    maps: Maps | MatrixAxes | None = None,
    *,
    mask: Callable[[str], bool] | None = None,
    batched: bool = False,
    num_samples: int | None = None,
) -> Penalty:
    r"""Penalise tr(G) - log det(G) - n of each map's Gram matrix G of the shorter side, sum_i s_i^2 - log s_i^2 - 1.

    It is the log-determinant divergence of G from the identity, zero for isometries; small singular values weigh far
    more than in \|G - I\|_F^2.

    Args:
        maps: As in `condition_number_penalty`.
        mask: Which maps to act on, by name.
        batched: As in `condition_number_penalty`.
        num_samples: As in `condition_number_penalty`.

    Returns:
        The penalty's functions. No singular value is measured: all measurements are NaN.

    Raises:
        ValueError: When applied, if a map is too large to be made dense.

    Cost:
        A whole decomposition of each map at every step.

    Derivatives:
        First order. In the logarithm s^2 is s^2 + eps, by which value and slope are finite at zero.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> penalty = sx.regularizers.log_determinant_penalty()
        >>> params = {"kernel": jnp.diag(jnp.array([1.0, 2.0]))}
        >>> round(float(penalty.apply(params, penalty.init(params, None))[0]), 4)
        1.6137
    """

    def value(operator: LinearOperator, key: jax.Array | None) -> jax.Array:
        del key
        return cast(jax.Array, spectrum.spectral_function(operator, _log_determinant))

    return sum_penalty(value, maps, mask=mask, batched=batched, num_samples=num_samples)


def rank_penalty(
    threshold: float,
    /,
    maps: Maps | MatrixAxes | None = None,
    *,
    direction: str = "lower",
    mask: Callable[[str], bool] | None = None,
    batched: bool = False,
    num_samples: int | None = None,
) -> Penalty:
    r"""Penalise half the squared distance of each map from what RankMin or RankMax makes of it.

    RankMin sets singular values below a threshold to zero, and RankMax those above one to it, so that the others weigh
    more: "lower" is (1/2) sum of s_i^2 over s_i < threshold, "raise" (1/2) sum of (s_i - threshold)^2 over the others.

    Args:
        threshold: Positive; 0.5 and 1.5 in the paper.
        maps: As in `condition_number_penalty`.
        direction: "lower" (RankMin) or "raise" (RankMax).
        mask: Which maps to act on, by name.
        batched: As in `condition_number_penalty`.
        num_samples: As in `condition_number_penalty`.

    Returns:
        The penalty's functions. No singular value is measured: all measurements are NaN.

    Raises:
        ValueError: If an option is out of its range; when applied, if a map is too large to be made dense.
        TypeError: If `threshold` is not a number.

    Cost:
        A whole decomposition of each map at every step.

    Derivatives:
        First order: the map minus its projection. "lower" jumps where a value crosses the threshold.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> penalty = sx.regularizers.rank_penalty(1.5, direction="raise")
        >>> params = {"kernel": jnp.diag(jnp.array([1.0, 3.5]))}
        >>> round(float(penalty.apply(params, penalty.init(params, None))[0]), 4)
        2.0

    Source:
        Goldblum et al. 2020, Truth or Backpropaganda?, arXiv 1910.00359; there as projections after some epochs.
    """
    checks.number_in("threshold", threshold, 0, math.inf, low_open=True)
    checks.choice("direction", direction, ("lower", "raise"))

    def of(s: jax.Array) -> jax.Array:
        low = s < threshold
        if direction == "lower":
            return jnp.where(low, jnp.square(s) / 2, 0 * s)
        return jnp.where(low, 0 * s, jnp.square(s - threshold) / 2)

    def value(operator: LinearOperator, key: jax.Array | None) -> jax.Array:
        del key
        return cast(jax.Array, spectrum.spectral_function(operator, of))

    return sum_penalty(value, maps, mask=mask, batched=batched, num_samples=num_samples)


def _log_determinant(s: jax.Array) -> jax.Array:
    square = jnp.square(s)
    return square - jnp.log(square + jnp.finfo(s.dtype).eps) - 1
