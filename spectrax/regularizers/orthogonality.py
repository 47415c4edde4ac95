"""Penalties on the distance of linear maps from orthogonality."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from spectrax import checks, spectrum, vectors
from spectrax.operators import LinearOperator
from spectrax.operators.conversion import MatrixOperator
from spectrax.operators.convolution import ConvolutionOperator
from spectrax.operators.precision import in_working_precision
from spectrax.regularizers.blocks import short_side
from spectrax.regularizers.maps import Maps, MatrixAxes
from spectrax.regularizers.penalty import Penalty
from spectrax.regularizers.sums import sum_penalty
from spectrax.spectrum.methods import can_be_dense

PyTree = Any


def orthogonality_penalty(
    maps: Maps | MatrixAxes | None = None,
    *,
    form: str = "soft",
    num_probes: int = 8,
    mask: Callable[[str], bool] | None = None,
    batched: bool = False,
    num_samples: int | None = None,
) -> Penalty:
    r"""Penalise the distance of each map from an isometry.

    The forms, summed over maps, with the identity I of the side that is meant:

    - "soft": \|A^H A - I\|_F^2 = sum_i (s_i^2 - 1)^2, the Gram matrix being that of the shorter side. For explicit
      matrices it is exact; for other maps the unbiased estimate \|(A^H A - I) z\|^2, averaged over random signs z that
      are drawn anew at every step.
    - "double_soft": \|A^H A - I\|_F^2 + \|A A^H - I\|_F^2. One of the two cannot vanish: the second form is the
      first, doubled, plus \|m - n\|, so it asks for the same in a map that is not square; estimated as "soft" is.
    - "mutual_coherence": the largest modulus of an entry of A^H A - I, of the shorter side. For maps that are small
      enough to be dense only.
    - "ocnn": for convolutions, the mean over all frequencies of \|F F^H - I\|_F^2, by the kernel's products with itself
      at every shift by the stride (`spectrax.conv_orthogonality`). It holds for circular padding of every size, and
      says that the norm of a zero-padded convolution is at most one. Other maps are taken as "soft".
    - "lorth": the same, but of columns where there are more outputs than inputs times strides, for which rows cannot be
      orthonormal; zero then says so.

    Args:
        maps: As in `condition_number_penalty`.
        form: One of the five.
        num_probes: How many random vectors estimate a norm.
        mask: Which maps to act on, by name.
        batched: As in `condition_number_penalty`; the value is then exact.
        num_samples: As in `condition_number_penalty`.

    Returns:
        The penalty's functions. No singular value is measured: all measurements are NaN.

    Raises:
        ValueError: If an option is out of its range; when applied, if a map is too large for "mutual_coherence", or a
            convolution is dilated for "ocnn" and "lorth".

    Cost:
        A Gram matrix for explicit matrices, one convolution of the kernel with itself for "ocnn" and "lorth", otherwise
        two products with `num_probes` vectors; and their derivatives.

    Derivatives:
        Any order; of "mutual_coherence" the first, of the largest entry.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> penalty = sx.regularizers.orthogonality_penalty()
        >>> params = {"kernel": jnp.diag(jnp.array([1.0, 2.0]))}
        >>> float(penalty.apply(params, penalty.init(params, None))[0])
        9.0

    Source:
        Bansal, Chen & Wang 2018, arXiv 1810.09102 (the first three); Hutchinson 1989 for the estimate; Wang et al.
        2020, arXiv 1911.12207 ("ocnn", without its square root); Achour, Malgouyres & Mamalet 2022, arXiv 2108.05623
        ("lorth").
    """
    checks.choice("form", form, ("soft", "double_soft", "mutual_coherence", "ocnn", "lorth"))
    checks.positive_integer("num_probes", num_probes)

    def by_kernel(operator: LinearOperator) -> bool:
        return form in {"ocnn", "lorth"} and isinstance(operator, ConvolutionOperator)

    def random(operator: LinearOperator) -> bool:
        exact = batched or form == "mutual_coherence" or isinstance(operator, MatrixOperator)
        return not exact and not by_kernel(operator)

    def value(operator: LinearOperator, key: jax.Array | None) -> jax.Array:
        if by_kernel(operator):
            return _of_kernel(operator, "rows" if form == "ocnn" else "auto")
        tall = short_side(in_working_precision(operator))
        if form == "mutual_coherence":
            return jnp.max(jnp.abs(_deviation(_dense(tall))))
        found = _estimated(tall, key, num_probes) if key is not None else _square(_deviation(_dense(tall)))
        return 2 * found + (tall.shape[0] - tall.shape[1]) if form == "double_soft" else found

    return sum_penalty(value, maps, mask=mask, batched=batched, num_samples=num_samples, random=random)


def _of_kernel(operator: LinearOperator, side: str) -> jax.Array:
    assert isinstance(operator, ConvolutionOperator)
    geometry = operator.geometry
    for name in ("input_dilation", "kernel_dilation"):
        dilation = getattr(geometry, name)
        # without strides a dilation of the kernel only moves the frequencies
        if any(step != 1 for step in dilation) and (name == "input_dilation" or any(s != 1 for s in geometry.strides)):
            raise ValueError(f"the forms 'ocnn' and 'lorth' are not defined for {name}={dilation}: take 'soft'")
    return spectrum.conv_orthogonality(
        operator.kernel, strides=geometry.strides, side=side, feature_group_count=geometry.feature_group_count
    )


def _dense(tall: LinearOperator) -> jax.Array:
    if not isinstance(tall, MatrixOperator) and not can_be_dense(tall.shape):
        raise ValueError(f"the matrix of shape {tall.shape} is too large to be made dense: take the form 'soft'")
    return tall.to_dense()


def _deviation(tall: jax.Array) -> jax.Array:
    tall = tall.astype(vectors.working_dtype(tall.dtype))
    gram = jnp.matmul(tall.conj().T, tall, precision=vectors.HIGHEST)
    return gram - jnp.eye(gram.shape[0], dtype=gram.dtype)


def _square(matrix: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(jnp.abs(matrix)))


def _estimated(tall: LinearOperator, key: jax.Array, num_probes: int) -> jax.Array:
    matmat, rmatmat = tall._block_products()
    probes = _signs(key, tall.in_struct, num_probes)
    return jnp.mean(jnp.square(vectors.stack_norms(vectors.subtract(rmatmat(matmat(probes)), probes))))


def _signs(key: jax.Array, struct: PyTree, count: int) -> PyTree:
    leaves, treedef = jax.tree.flatten(struct)
    keys = jax.random.split(key, len(leaves))
    return treedef.unflatten(
        [jax.random.rademacher(k, (count, *leaf.shape), leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)]
    )
