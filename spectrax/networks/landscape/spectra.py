"""What the singular values of a layer's matrix say about descent on the loss."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from spectrax import vectors
from spectrax.networks.landscape.operators import LayerProblem, layer_operator, layer_problem
from spectrax.operators import LinearOperator, jacobian_operator
from spectrax.programs.layers import trace
from spectrax.spectrum import Dense, singular_values
from spectrax.spectrum.functions import materializable

PyTree = Any


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("values",), meta_fields=("num_weights", "num_samples", "eps", "size")
)
@dataclasses.dataclass(frozen=True)
class LayerSpectrum:
    """The singular values of Q, the matrix by which a layer's weights act on the output, and what follows from them.

    The loss is the sum of squares |f - y|^2 over outputs and samples, without a factor; for their mean over samples
    divide curvatures by `num_samples` and multiply steps by it.

    Attributes:
        values: Singular values, descending, shape (min(outputs, weights),).
        num_weights: How many weights the layer has.
        num_samples: How many samples Q stands for.
        eps: The round-off of the dtype.
        size: The longer side of Q.
    """

    values: jax.Array
    num_weights: int
    num_samples: int
    eps: float
    size: int

    @property
    def rank(self) -> jax.Array:
        """How many values exceed the round-off of Q, size * eps * the largest; -1 where Q is not finite."""
        return jnp.where(self._finite, jnp.sum(self.values > self._floor, dtype=jnp.int32), -1)

    @property
    def condition_number(self) -> jax.Array:
        """The largest value over the smallest one that is not zero to round-off: kappa+; NaN for a zero matrix."""
        zero = self.values[0] == 0
        return jnp.where(zero, jnp.nan, self.values[0] / jnp.where(zero, 1, self._smallest))

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
        return 1 / self.values[0] ** 2

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
            Shape (min(outputs, weights),); inf along flat directions.
        """
        resolved = self.values > self._floor
        widths = jnp.where(resolved, math.sqrt(excess) / jnp.where(resolved, self.values, 1), jnp.inf)
        return jnp.where(self._finite, widths, jnp.nan)

    @property
    def _finite(self) -> jax.Array:
        return jnp.all(jnp.isfinite(self.values))

    @property
    def _floor(self) -> jax.Array:
        return self.size * self.eps * self.values[0]

    @property
    def _smallest(self) -> jax.Array:
        return jnp.min(jnp.where(self.values > self._floor, self.values, jnp.inf))


def layer_spectrum(
    net: Any, params: PyTree, layer: str, x: PyTree, /, *, batched: bool = False, bias: bool = False,
    max_bytes: int | None = None,
) -> LayerSpectrum:  # fmt: skip
    """Return the singular values of a layer's matrix Q, and through them the shape of the loss in its weights.

    For one sample and a layer that multiplies a vector by a matrix they are |z| s_i(M D) (with a bias
    sqrt(|z|^2 + 1) s_i(M D)), from the small matrix M D; otherwise Q is made dense.

    Args:
        net: As in `layer_operator`.
        params: As in `layer_operator`.
        layer: As in `layer_operator`.
        x: As in `layer_operator`.
        batched: As in `layer_operator`.
        bias: As in `layer_operator`.
        max_bytes: How large Q may be where it is made dense, as in `singular_values`.

    Returns:
        A `LayerSpectrum`.

    Raises:
        TypeError: As `layer_operator`.
        ValueError: As `layer_operator`; or if Q is larger than the limits or than `max_bytes`.

    Cost:
        As many products as the network has outputs, and a decomposition of Q or of M D.

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
    Q = layer_operator(net, params, layer, x, batched=batched, bias=bias)
    eps = vectors.eps((Q.in_struct, Q.out_struct))
    samples = jax.tree.leaves(problem.point)[0].shape[0] if batched else 1
    if not batched and _multiplies_one_vector(problem):
        after = jacobian_operator(_AfterLayer(problem.network, problem.place), jnp.zeros_like(problem.site.output),
                                  problem.arrays, problem.point)  # fmt: skip
        z = problem.site.input.astype(vectors.working_dtype(problem.site.input.dtype))
        length = vectors.norm({"z": z, "one": jnp.ones((int(bias),), z.dtype)})
        values = length * _all_values(after, max_bytes)
        values = jnp.pad(values, (0, max(min(Q.shape) - values.shape[0], 0)))  # the rest of them is zero
        values = values[: min(Q.shape)]
    else:
        values = _all_values(Q, max_bytes)
    return LayerSpectrum(values, Q.shape[1], samples, eps, max(Q.shape))


def _all_values(operator: LinearOperator, max_bytes: int | None) -> jax.Array:
    materializable(operator, max_bytes)  # or raises
    return singular_values(operator, method=Dense())  # as it is: the round-off is that of its own products


def _multiplies_one_vector(problem: LayerProblem) -> bool:
    """Whether the layer is h = W z with vectors z and h, each weight used once."""
    site = problem.site
    return site.kind == "dense" and site.weight.size == site.input.size * site.output.size


@dataclasses.dataclass(frozen=True)
class _AfterLayer:
    network: Any
    place: int

    def __call__(self, tap: jax.Array, arrays: list[jax.Array], x: PyTree) -> PyTree:
        return trace(self.network, arrays, x, taps={self.place: tap}).output
