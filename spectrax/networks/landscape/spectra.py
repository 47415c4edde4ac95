"""What the singular values of a layer's matrix say about descent on the loss."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from spectrax import vectors
from spectrax.networks.landscape.factors import (
    check_size,
    factors,
    in_own_bases,
    multiplies_one_vector,
    padded,
    stacked,
)
from spectrax.networks.landscape.gram import gram_values
from spectrax.networks.landscape.operators import layer_problem, where_finite
from spectrax.spectrum import Dense, singular_values

PyTree = Any


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("values",),
    meta_fields=("num_weights", "num_samples", "eps", "size", "gram"),
)
@dataclasses.dataclass(frozen=True)
class LayerSpectrum:
    """The singular values of Q, the matrix by which a layer's weights act on the output, and what follows from them.

    The loss is the sum of squares |f - y|^2 over outputs and samples, without a factor; for their mean over samples
    divide curvatures by `num_samples` and multiply steps by it.

    Attributes:
        values: Singular values, descending along the last axis, shape (min(outputs, weights),). An axis before it, as
            of `layer_spectra`, is one of several matrices Q, and everything below has it, too.
        num_weights: How many weights the layer has.
        num_samples: How many samples each Q stands for.
        eps: The round-off of the dtype.
        size: The longest side of the matrices that were decomposed.
        gram: Whether the values are square roots of the eigenvalues of Q Q^T, with half the digits. Then a value that
            is not above `floor` need not be zero, it is not resolved: the rank is that of what is seen, and the
            condition number that of the resolved values.
    """

    values: jax.Array
    num_weights: int
    num_samples: int
    eps: float
    size: int
    gram: bool = False

    @property
    def floor(self) -> jax.Array:
        """What is round-off: size * eps * the largest value; in the Gram form sqrt(size * eps) * the largest."""
        share = self.size * self.eps
        return (math.sqrt(share) if self.gram else share) * self.values[..., 0]

    @property
    def rank(self) -> jax.Array:
        """How many values exceed `floor`; -1 where Q is not finite."""
        return jnp.where(self._finite, jnp.sum(self._resolved, axis=-1, dtype=jnp.int32), -1)

    @property
    def condition_number(self) -> jax.Array:
        """The largest value over the smallest one that is not zero to round-off: kappa+; NaN for a zero matrix."""
        largest = self.values[..., 0]
        smallest = jnp.min(jnp.where(self._resolved, self.values, jnp.inf), axis=-1)
        return jnp.where(largest == 0, jnp.nan, largest / jnp.where(largest == 0, 1, smallest))

    @property
    def flat_directions(self) -> jax.Array:
        """How many directions in the space of the weights the loss does not change in; -1 where Q is not finite."""
        return jnp.where(self._finite, self.num_weights - self.rank, -1)

    @property
    def eccentricity(self) -> jax.Array:
        """That of the ellipse spanned by the steepest and the flattest direction that is not flat."""
        return jnp.sqrt(jnp.maximum(1 - self.condition_number**-2.0, 0))

    @property
    def largest_step(self) -> jax.Array:
        """Gradient descent on |f - y|^2 is stable for steps below this, 1 / s_1^2."""
        return 1 / self.values[..., 0] ** 2

    @property
    def convergence_rate(self) -> jax.Array:
        """The factor by which descent with the best step shrinks the distance, (k^2 - 1) / (k^2 + 1)."""
        squared = self.condition_number**2
        return (squared - 1) / (squared + 1)

    def basin_widths(self, excess: float) -> jax.Array:
        """Return the half-widths of {loss <= minimum + excess} along the singular directions, sqrt(excess) / s_i.

        Args:
            excess: How far above the minimum, positive.

        Returns:
            The shape of `values`; inf along flat directions.
        """
        resolved = self._resolved
        widths = jnp.where(resolved, math.sqrt(excess) / jnp.where(resolved, self.values, 1), jnp.inf)
        return jnp.where(self._finite[..., None], widths, jnp.nan)

    @property
    def _finite(self) -> jax.Array:
        return jnp.all(jnp.isfinite(self.values), axis=-1)

    @property
    def _resolved(self) -> jax.Array:
        return self.values > self.floor[..., None]


def layer_spectrum(
    net: Any, params: PyTree, layer: str, x: PyTree, /, *, batched: bool = False, bias: bool = False,
    max_bytes: int | None = None, gram: bool = False,
) -> LayerSpectrum:  # fmt: skip
    """Return the singular values of a layer's matrix Q, and through them the shape of the loss in its weights.

    For one sample and a layer that multiplies a vector by a matrix they are |z| s_i(M D) (with a bias
    sqrt(|z|^2 + 1) s_i(M D)), from the small matrix M D. For many samples of such a layer, Q is made dense with the
    vectors z of the samples in an orthonormal basis of their span, and likewise the rows of all M D, where the samples
    are fewer than the inputs, or their outputs than the units: this shortens Q, changes no value but zeros, and squares
    nothing. For other layers Q is made dense as it is. For many samples at once, each by itself, see `layer_spectra`.

    Args:
        net: As in `layer_operator`.
        params: As in `layer_operator`.
        layer: As in `layer_operator`.
        x: As in `layer_operator`.
        batched: As in `layer_operator`.
        bias: As in `layer_operator`.
        max_bytes: How large the matrix that is decomposed may be, in place of the limits on shapes.
        gram: Whether to take the square roots of the eigenvalues of Q Q^T (see `layer_gram`): for a Q that is too
            large otherwise. Values below `floor`, sqrt(size * eps) times the largest, are lost in round-off.

    Returns:
        A `LayerSpectrum`; with NaN for its values where the network's output is not finite.

    Raises:
        TypeError: As `layer_operator`.
        ValueError: As `layer_operator`; or if the matrix that is decomposed is larger than the limits or than
            `max_bytes`.

    Cost:
        As many products as the network has outputs, for each sample, and a decomposition. With G samples, m outputs,
        d inputs and n units of the layer that of a matrix of Gm x min(G, d) min(Gm, n); with `gram` of Gm x Gm.

    Derivatives:
        Those of singular values, first ones right for distinct values. A derivative for many samples makes Q dense as
        it is, and is a `ValueError` where that is larger than the limits. With `gram` values above the floor only.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> f = lambda params, x: jnp.abs(params["first"] @ x)
        >>> found = sx.landscape.layer_spectrum(f, {"first": jnp.eye(2)}, "first", jnp.array([3.0, 4.0]))
        >>> found.values.tolist(), int(found.rank), int(found.flat_directions)
        ([5.0, 5.0], 2, 2)

    Source:
        As `layer_operator`.
    """
    problem = layer_problem(net, params, layer, x, batched=batched)
    Q = problem.operator(bias=bias)
    samples = jax.tree.leaves(problem.point)[0].shape[0] if batched else 1
    rows, inputs, units = Q.shape[0], problem.site.input.size + int(bias), problem.site.output.size
    by_factors = multiplies_one_vector(problem.site)
    size = max(Q.shape)
    if gram:
        values = gram_values(problem, Q, bias=bias, max_bytes=max_bytes)
        size = max(rows, inputs, units) if by_factors else size
    elif not by_factors:
        check_size(layer, Q.shape, Q.dtype, max_bytes, _ADVICE)
        values = singular_values(Q, method=Dense())  # as it is: the round-off is that of its own products
    elif not batched:
        check_size(layer, (rows, units), Q.dtype, max_bytes, _ADVICE)
        z, after = factors(problem, bias=bias)
        values, size = vectors.norm(z) * singular_values(after[0], method=Dense()), max(rows, units)
    else:
        shape = rows, min(samples, inputs) * min(rows, units)
        check_size(layer, shape, Q.dtype, max_bytes, _ADVICE)
        values = _reduced_values(_Limit(layer, max_bytes), *factors(problem, bias=bias))
        size = max(*shape, inputs, units)
    eps = vectors.eps((Q.in_struct, Q.out_struct))
    values = where_finite(problem.output(), padded(values, min(Q.shape)))
    return LayerSpectrum(values, Q.shape[1], samples, eps, size, gram)


_ADVICE = "or take gram=True, which decomposes Q Q^T instead and loses values below sqrt(eps) times the largest"


@dataclasses.dataclass(frozen=True)
class _Limit:
    layer: str
    max_bytes: int | None


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _reduced_values(limit: _Limit, inputs: jax.Array, after: jax.Array) -> jax.Array:
    """Return the singular values of [z_g^T kron (M_g D_g)], zeros left out."""
    return singular_values(stacked(*in_own_bases(inputs, after)), method=Dense())


@_reduced_values.defjvp
def _reduced_values_jvp(limit, primals, tangents):
    # the factor of a QR decomposition has no derivative where rows depend on each other; Q as it is always has one
    inputs, after = primals
    shape = (after.shape[0] * after.shape[1], inputs.shape[1] * after.shape[2])
    check_size(limit.layer, shape, after.dtype, limit.max_bytes, "this is for derivatives: take fewer samples")
    values = _reduced_values(limit, *primals)
    _, tangent = jax.jvp(lambda *pair: singular_values(stacked(*pair), method=Dense()), primals, tangents)
    return values, padded(tangent, values.shape[0])
