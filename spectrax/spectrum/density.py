"""A spectrum as random probes see it: densities, distributions, counts and sums, with intervals of confidence."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.core as jax_core
import jax.numpy as jnp

from spectrax import checks, krylov
from spectrax.krylov import quadrature
from spectrax.programs.hoisting import hoist
from spectrax.results import Quantity, Status
from spectrax.spectrum.confidence import mean_limits, share_limits
from spectrax.spectrum.functions import check_real_scalar

PyTree = Any
_SLACK = 1e-3
_ROUND_OFF = 16  # in units of eps: of sums of weights


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("nodes", "weights", "jacobi", "resolution", "num_matvecs", "status"),
    meta_fields=("spectrum", "dimension", "is_complex"),
)
@dataclasses.dataclass(frozen=True)
class SpectralDensity:
    r"""A spectrum as random probes see it: for each of them a quadrature of the spectral measure.

    The share of the spectrum on a set is the mean over the probes of the weights of its nodes. All methods give an
    interval that holds the true number with a probability of about `level`, each point for itself. Two errors are in
    it: that of a finite number of probes, and that of a finite number of steps. NaN where the status says that the
    operator was not finite or not Hermitian.

    Attributes:
        nodes: Shape (num_probes, num_steps), ascending for each probe.
        weights: Shape (num_probes, num_steps), of sum one for each probe; zero where the Krylov space was exhausted.
        jacobi: The Jacobi matrices that both come from, a `krylov.Jacobi` with a leading axis num_probes.
        resolution: The round-off of the nodes, a scalar: which side of a point a value lies on that is nearer to it
            than this is not known.
        num_matvecs: How many single vectors A or A^H was applied to, int32.
        status: A number of `Status`, int32.
        spectrum: "eigenvalues" or "singular_values".
        dimension: How many values the spectrum has: n, or min(m, n).
        is_complex: Whether the probes were complex.
    """

    nodes: jax.Array
    weights: jax.Array
    jacobi: krylov.Jacobi
    resolution: jax.Array
    num_matvecs: jax.Array
    status: jax.Array
    spectrum: str
    dimension: int
    is_complex: bool

    def sum(self, f: Callable[[jax.Array], jax.Array], /, *, level: float = 0.95) -> Quantity:
        r"""Return an estimate of sum_i f(lambda_i), the trace of f(A).

        The value is n times the mean over the probes of sum_j w_j f(theta_j). For probes on the sphere its variance
        and its skewness are known but for the second and third central moments of f over the spectrum, which the same
        quadrature gives, so that a single probe has an interval, too. It is widened on both sides by how much the value
        moved when the number of steps went from half of it to all of it, and by what f changes where round-off moves
        each node by `resolution`. That sees nothing of what f does between the nodes: for a function with steps or
        spikes use `count` or `density`.

        Args:
            f: A JAX function from a real scalar to a real scalar, smooth on the scale of the distance of nodes. Equal
                hashable functions that close over no array share one compiled program.
            level: The confidence level, in (0, 1).

        Returns:
            A `Quantity` of kind "estimate"; the interval is from `lower` to `upper`.

        Raises:
            ValueError: If f returns anything but a scalar.
            TypeError: If f returns anything but a real floating-point number.

        Cost:
            No product; f at each node.
        """
        checks.level(level)
        hoisted = hoist(f, jax.ShapeDtypeStruct((), self.nodes.dtype))
        check_real_scalar(hoisted.out_struct)
        return _sum(self, hoisted.consts, hoisted.program, level)

    def density(self, points: Any, /, *, width: Any = None, level: float = 0.95) -> Quantity:
        r"""Return the density of the spectrum, smoothed by a Gaussian: its integral over all points is one.

        It is (1/n) sum_i g(t - lambda_i), with g the normal density of standard deviation `width`; the interval is for
        this smooth function, and not for what it would be with another width. That of singular values spills over
        below zero.

        Args:
            points: Real numbers t, of any shape.
            width: Standard deviation of the Gaussian, a positive scalar. Default: the distance between the outermost
                nodes over the number of steps, about what the quadrature can resolve.
            level: The confidence level, in (0, 1).

        Returns:
            A `Quantity` of kind "estimate", with arrays of the shape of `points`; NaN for a traced width that is not
            positive.

        Raises:
            ValueError: If the width is no scalar, or is known and not positive in the dtype of the nodes.
            TypeError: If a point or the width is complex.

        Cost:
            No product; num_points num_probes num_steps exponentials.
        """
        checks.level(level)
        if width is not None:
            width = self._width(width)
        return _smoothed(self, self._points(points), width, level)

    def cumulative(self, points: Any, /, *, level: float = 0.95) -> Quantity:
        """Return which share of the spectrum lies below each point.

        Args:
            points: Real numbers t, of any shape.
            level: The confidence level, in (0, 1).

        Returns:
            A `Quantity` of kind "estimate", with arrays of the shape of `points` and values in [0, 1]. See `count` for
            how it is bounded.

        Raises:
            TypeError: If a point is complex.

        Cost:
            No product; for each point and each probe an eigendecomposition of a matrix of order num_steps + 1, or of
            twice that for singular values: 0.2 ms for 64 steps on a CPU.
        """
        checks.level(level)
        return _cumulative(self, self._points(points), level)

    def count(self, lower: Any = -math.inf, upper: Any = math.inf, *, level: float = 0.95) -> Quantity:
        r"""Return how many values of the spectrum lie in [lower, upper).

        How many eigenvalues are negative is `count(upper=0.0)`; how many singular values are under a threshold,
        `count(upper=threshold)`. A value within `resolution` of an end may be counted or not.

        For each probe the inequalities of Chebyshev, Markov and Stieltjes say between which numbers the mass of its
        spectral measure lies, whatever the rest of the spectrum: this covers the finite number of steps. The masses of
        random probes follow a Beta distribution whose parameters are the count that is asked for and the dimension: by
        inverting it, the interval covers the finite number of probes, even for a single one. It is rounded inwards to
        whole numbers where it holds one.

        Args:
            lower: A real number, or minus infinity.
            upper: A real number, or infinity.
            level: The confidence level, in (0, 1).

        Returns:
            A `Quantity` of kind "estimate": the middle of the mean bounds, and an interval in [0, dimension].

        Raises:
            ValueError: If an end is not a scalar.

        Cost:
            No product; as `cumulative` at two points.
        """
        checks.level(level)
        if jnp.shape(lower) or jnp.shape(upper):
            raise ValueError(
                f"lower and upper must be scalars, got shapes {jnp.shape(lower)} and {jnp.shape(upper)}: use jax.vmap"
            )
        return _count(self, jnp.stack([jnp.asarray(end, self.nodes.dtype) for end in (lower, upper)]), level)

    def _points(self, points: Any) -> jax.Array:
        if jnp.iscomplexobj(points):
            raise TypeError(f"points must be real numbers, got dtype {jnp.asarray(points).dtype}")
        return jnp.asarray(points, self.nodes.dtype)

    def _width(self, width: Any) -> Any:
        if jnp.shape(width):
            raise ValueError(f"width must be a scalar, got shape {jnp.shape(width)}: use jax.vmap")
        if jnp.iscomplexobj(width):
            raise TypeError(f"width must be a real number, got dtype {jnp.asarray(width).dtype}")
        dtype = self.nodes.dtype
        if not isinstance(width, jax_core.Tracer) and not float(width) >= float(jnp.finfo(dtype).tiny):
            bound = f"{float(jnp.finfo(dtype).tiny):.2g}, the least of {dtype.name}," if float(width) > 0 else "0,"
            raise ValueError(f"width must be larger than {bound} got {width}")
        return jnp.asarray(width, dtype)


def measure(matrix: krylov.Jacobi, spectrum: str) -> tuple[jax.Array, jax.Array]:
    """Return the nodes and weights over the spectrum that the Jacobi matrix of one probe stands for."""
    nodes, weights = quadrature.gauss(matrix)
    return (nodes, weights) if spectrum == "eigenvalues" else quadrature.folded(nodes, weights, matrix.size)


@functools.partial(jax.jit, static_argnames=("program", "level"))
def _sum(found: SpectralDensity, consts: PyTree, program: Any, level: float) -> Quantity:
    def f(node: jax.Array) -> jax.Array:
        return jnp.asarray(program(consts, node)).astype(node.dtype)

    at_nodes = jax.vmap(jax.vmap(f))
    value, lower, upper = _integral(found, at_nodes, level)
    margin = _round_off(found, at_nodes)
    return _quantity(found, *(found.dimension * number for number in (value, lower - margin, upper + margin)))


def _round_off(found: SpectralDensity, at_nodes: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """By how much the mean of a function over the spectrum moves where each node moves by the resolution."""
    values, least = at_nodes(found.nodes), 0 if found.spectrum == "singular_values" else -math.inf
    below = at_nodes(jnp.maximum(found.nodes - found.resolution, least))
    moved = [jnp.abs(end - values) for end in (below, at_nodes(found.nodes + found.resolution))]
    change = jnp.fmax(*moved)  # one end may lie where the function is not defined
    return jnp.sum(jnp.where(found.weights > 0, found.weights * change, 0)) / found.nodes.shape[0]


@functools.partial(jax.jit, static_argnames="level")
def _smoothed(found: SpectralDensity, points: jax.Array, width: Any, level: float) -> Quantity:
    nodes, steps = found.nodes, found.nodes.shape[1]
    span = jnp.max(nodes) - jnp.min(nodes)
    if width is None:
        peak = jnp.max(jnp.abs(nodes))
        least = jnp.where(peak > 0, float(jnp.finfo(nodes.dtype).eps) ** 0.5 * peak, 1)  # where all values are the same
        width = jnp.maximum(span / steps, least)
    width = jnp.where(width > 0, width, jnp.nan)

    def bells(nodes: jax.Array) -> jax.Array:
        bell = jnp.exp(-0.5 * jnp.square((points[..., None, None] - nodes) / width))
        return bell / (width * math.sqrt(2 * math.pi))

    value, lower, upper = _integral(found, bells, level)
    # a sum of Gaussians on a grid of distance h differs from its integral by the share 2 exp(-2 (pi width / h)^2)
    distance = math.pi / 2 * jnp.maximum(span, width) / steps
    share = 2 * jnp.exp(-2 * jnp.square(math.pi * width / distance))
    margin = share * jnp.mean(jnp.where(_is_open(found), jnp.max(found.weights, 1), 0)) / distance
    return _quantity(found, value, jnp.maximum(lower - margin, 0), upper + margin)


@functools.partial(jax.jit, static_argnames="level")
def _cumulative(found: SpectralDensity, points: jax.Array, level: float) -> Quantity:
    below, up_to = _masses(found, points.reshape(-1))
    return jax.tree.map(lambda leaf: leaf.reshape(points.shape), _share(found, below, up_to, level))


@functools.partial(jax.jit, static_argnames="level")
def _count(found: SpectralDensity, ends: jax.Array, level: float) -> Quantity:
    below, up_to = _masses(found, ends)
    at_least, at_most = jnp.maximum(below[1] - up_to[0], 0), jnp.maximum(up_to[1] - below[0], 0)
    share = _share(found, at_least, at_most, level)
    lower, upper = (found.dimension * limit for limit in (share.lower, share.upper))
    # a count is a whole number, but for the round-off of the limits
    inner = jnp.ceil(lower - _SLACK), jnp.floor(upper + _SLACK)
    is_empty = inner[0] > inner[1]
    lower, upper = (jnp.where(is_empty, outer, whole) for outer, whole in zip((lower, upper), inner, strict=True))
    value = jnp.clip(found.dimension * share.value, lower, upper)  # beyond it by no more than was rounded off
    return Quantity(value, lower, upper, share.status, kind="estimate")


def _masses(found: SpectralDensity, points: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Bounds of the mass below each point, for each probe: shape (points, num_probes)."""
    rules = jax.vmap(quadrature.gauss)(found.jacobi)
    each = jax.vmap(quadrature.masses, in_axes=(0, 0, None, None))
    below, up_to = jax.lax.map(lambda point: each(found.jacobi, rules, point, found.resolution), points)
    if found.spectrum == "singular_values":
        # half of the measure over +s and -s lies on either side of zero, and no singular value is negative
        below, up_to = 2 * below - 1, jnp.where(points[:, None] < -found.resolution, 0, 2 * up_to - 1)
    round_off = _ROUND_OFF * float(jnp.finfo(below.dtype).eps)
    certain = jnp.isinf(points)[:, None]
    return (
        jnp.where(certain, jnp.clip(below, 0, 1), jnp.clip(below - round_off, 0, 1)),
        jnp.where(certain, jnp.clip(up_to, 0, 1), jnp.clip(up_to + round_off, 0, 1)),
    )


def _share(found: SpectralDensity, below: jax.Array, up_to: jax.Array, level: float) -> Quantity:
    """Estimate shares from bounds for each probe, shape (..., num_probes)."""
    below, up_to = jnp.mean(below, -1), jnp.minimum(jnp.mean(up_to, -1), 1)
    count, is_complex = found.nodes.shape[0], found.is_complex
    lower, upper = share_limits(
        below, up_to, level=level, dimension=found.dimension, count=count, is_complex=is_complex
    )
    return _quantity(found, (below + up_to) / 2, lower, upper)


def _is_open(found: SpectralDensity) -> jax.Array:
    """For which probes the Krylov space was not exhausted, so that its quadrature has an error."""
    last = jnp.maximum(found.jacobi.size - 1, 0)
    return jnp.take_along_axis(found.jacobi.off_diagonal, last[:, None], 1)[:, 0] > 0


def _integral(
    found: SpectralDensity, at_nodes: Callable[[jax.Array], jax.Array], level: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The mean of a function over the spectrum with its interval; nodes are on the last two axes."""
    count, steps = found.nodes.shape
    values = at_nodes(found.nodes)
    over = functools.partial(jnp.sum, axis=(-1, -2))
    mean = over(found.weights * values) / count
    half = max(steps // 2, 1) * (found.jacobi.diagonal.shape[1] // steps)
    nodes, weights = jax.vmap(lambda one: measure(quadrature.leading(one, half), found.spectrum))(found.jacobi)
    change = jnp.sum(found.weights * values, -1) - jnp.sum(weights * at_nodes(nodes), -1)
    bias = jnp.abs(jnp.sum(jnp.where(_is_open(found), change, 0), -1)) / count
    if steps == 1:
        bias = jnp.where(jnp.any(_is_open(found)), jnp.inf, bias)
    deviations = jnp.where(found.weights > 0, values - mean[..., None, None], 0)
    lower, upper = mean_limits(
        mean, deviations, found.weights, level=level, dimension=found.dimension, is_complex=found.is_complex
    )
    margin = bias + _ROUND_OFF * float(jnp.finfo(values.dtype).eps) * over(found.weights * jnp.abs(values)) / count
    return mean, lower - margin, upper + margin


def _quantity(found: SpectralDensity, value: jax.Array, lower: jax.Array, upper: jax.Array) -> Quantity:
    known = found.status <= int(Status.AT_ROUND_OFF)
    value, lower, upper = (jnp.where(known, number, jnp.nan) for number in (value, lower, upper))
    return Quantity(value, lower, upper, jnp.broadcast_to(found.status, value.shape), kind="estimate")
