"""Parametrizations of convolution kernels, laid out (spatial..., in / groups, out)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from spectrax import checks, spectrum, vectors
from spectrax.regularizers.parametrizations.contract import Parametrization
from spectrax.spectrum.convolution.clipping import check_bound


def aol(*, strides: int | Sequence[int] = 1, feature_group_count: int = 1) -> Parametrization:
    """Return almost-orthogonal kernels: norm at most one, for the paddings that `spectrax.aol_rescale` names.

    The raw parameters are a kernel, and the applied one is `spectrax.aol_rescale` of it.

    Args:
        strides: Those of the layer; where they are not one, its kernel must not be dilated.
        feature_group_count: That of the layer.

    Returns:
        The parametrization. `init` is exact for kernels that are fixed points, those with orthonormal columns; others
        come back rescaled by channel.

    Raises:
        ValueError: If strides or groups are not positive.
        TypeError: If one is not an integer.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> form = sx.parametrizations.aol()
        >>> form.apply(form.init(jnp.array([3.0, -3.0]).reshape(2, 1, 1))).ravel().tolist()
        [0.5, -0.5]

    Source:
        Prach & Lampert 2022 (arXiv 2208.03160).
    """
    _check_layer(strides, feature_group_count)

    def apply(raw: jax.Array) -> jax.Array:
        return spectrum.aol_rescale(raw, strides=strides, feature_group_count=feature_group_count)

    return Parametrization(jnp.asarray, apply, None, strides, feature_group_count)


def row_normalized(
    input_sizes: Sequence[int],
    /,
    *,
    eps: float | None = None,
    strides: int | Sequence[int] = 1,
    feature_group_count: int = 1,
) -> Parametrization:
    """Return kernels whose symbol has rows of unit length at every frequency.

    The raw parameters are a kernel, and the applied one is `spectrax.conv_row_normalize` of it: as large as the input,
    for circular padding.

    Args:
        input_sizes: The spatial sizes of the layer's input.
        eps: As in `spectrax.conv_row_normalize`.
        strides: Those of the layer.
        feature_group_count: That of the layer.

    Returns:
        The parametrization. `init` is exact, but for the size, for kernels that are fixed points, whose rows have unit
        length already.

    Raises:
        ValueError: If a size is not positive or `eps` is outside [0, 1].

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> form = sx.parametrizations.row_normalized((5,))
        >>> kernel = form.apply(form.init(jnp.array([1.0, 3.0, 0.5]).reshape(3, 1, 1)))
        >>> kernel.shape, bool(sx.row_isometry_error(kernel, (5,)) < 1e-5)
        ((5, 1, 1), True)

    Source:
        Liu et al. 2021 (arXiv 2103.00673), without running averages and with the derivative of the normalisation.
    """
    sizes = _sizes(input_sizes)
    if eps is not None:
        checks.number_in("eps", eps, 0, 1)
    _check_layer(strides, feature_group_count)

    def apply(raw: jax.Array) -> jax.Array:
        return spectrum.conv_row_normalize(
            raw, sizes, eps=eps, strides=strides, feature_group_count=feature_group_count
        )

    return Parametrization(jnp.asarray, apply, sizes, strides, feature_group_count)


def cayley_convolution(
    input_sizes: Sequence[int], /, *, strides: int | Sequence[int] = 1, feature_group_count: int = 1
) -> Parametrization:
    """Return orthogonal circular convolutions, by the Cayley transform of the symbol at each frequency.

    The raw parameters are a dict of a small "kernel" and of the "scale" to which it is brought before the transform;
    the applied kernel is `spectrax.cayley_convolution` of the two: as large as the input, for circular padding.

    Args:
        input_sizes: The spatial sizes of the layer's input.
        strides: Those of the layer.
        feature_group_count: That of the layer.

    Returns:
        The parametrization. `init` takes the kernel and its norm as they are, as the published layer does, and is not
        an inverse: the applied kernel is the transform of the given one. The raw kernel that gives a wanted orthogonal
        convolution is global in general.

    Raises:
        ValueError: If a size is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> form = sx.parametrizations.cayley_convolution((5,))
        >>> kernel = form.apply(form.init(jnp.array([1.0, 3.0, 0.5]).reshape(3, 1, 1)))
        >>> sx.conv_singular_values(kernel, (5,), padding="CIRCULAR").round(4).tolist()
        [1.0, 1.0, 1.0, 1.0, 1.0]

    Source:
        Trockman & Kolter 2021 (arXiv 2104.07167).
    """
    sizes = _sizes(input_sizes)
    _check_layer(strides, feature_group_count)

    def apply(raw: dict[str, jax.Array]) -> jax.Array:
        return spectrum.cayley_convolution(
            raw["kernel"], sizes, scale=raw["scale"], strides=strides, feature_group_count=feature_group_count
        )

    return Parametrization(with_scale, apply, sizes, strides, feature_group_count)


def with_scale(kernel: jax.Array) -> dict[str, jax.Array]:
    """Return a kernel and its 2-norm, the raw parameters of `cayley_convolution`."""
    norm = vectors.norm(kernel.astype(vectors.working_dtype(kernel.dtype)))
    return {"kernel": jnp.asarray(kernel), "scale": norm.astype(vectors.real_dtype(kernel.dtype))}


def clipped(
    bound: float | jax.Array,
    input_sizes: Sequence[int],
    /,
    *,
    rounds: int = 1,
    strides: int | Sequence[int] = 1,
    feature_group_count: int = 1,
) -> Parametrization:
    """Return kernels whose singular values, with circular padding, were clipped to [0, bound].

    The raw parameters are a kernel, and the applied one, of the same size, is `spectrax.clip_spectral_norm` of it. Its
    norm is above the bound by some percent after few rounds, and with another padding it is not bounded.

    Args:
        bound: The largest singular value that is wanted.
        input_sizes: The spatial sizes of the layer's input.
        rounds: As in `spectrax.clip_spectral_norm`.
        strides: Those of the layer.
        feature_group_count: That of the layer.

    Returns:
        The parametrization. `init` is exact for kernels of a circular norm of at most `bound`. Where a kernel's norm is
        above it, the gradient along what was clipped is zero or small.

    Raises:
        ValueError: If a size is not positive, or `bound` is negative.
        TypeError: If `rounds` is not an integer.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> form = sx.parametrizations.clipped(2.0, (8,), rounds=50)
        >>> kernel = form.apply(form.init(jnp.array([1.0, 2.0, 1.0]).reshape(3, 1, 1)))
        >>> round(float(sx.conv_singular_values(kernel, (8,), padding="CIRCULAR")[0]), 3)
        2.0

    Source:
        Sedghi, Gupta & Long 2019 (arXiv 1805.10408).
    """
    sizes = _sizes(input_sizes)
    checks.positive_integer("rounds", rounds)
    check_bound(bound)
    _check_layer(strides, feature_group_count)

    def apply(raw: jax.Array) -> jax.Array:
        return spectrum.clip_spectral_norm(
            raw, bound, sizes, rounds=rounds, strides=strides, feature_group_count=feature_group_count
        )

    return Parametrization(jnp.asarray, apply, None, strides, feature_group_count)


def _check_layer(strides: int | Sequence[int], feature_group_count: int) -> None:
    for step in strides if isinstance(strides, Sequence) else (strides,):
        checks.positive_integer("strides", step)
    checks.positive_integer("feature_group_count", feature_group_count)


def _sizes(input_sizes: Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(input_sizes) if isinstance(input_sizes, Sequence) else ()
    if len(sizes) not in (1, 2, 3):
        raise ValueError(f"input_sizes must be the 1, 2 or 3 spatial sizes of the input, got {input_sizes!r}")
    for size in sizes:
        checks.positive_integer("each of input_sizes", size)
    return sizes
