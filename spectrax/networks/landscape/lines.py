"""The loss along a line in one layer's weights, as its exact pieces, with every kink between them."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import core as jax_core

from spectrax import checks, vectors
from spectrax.networks.landscape.operators import LayerProblem, layer_problem, weight_direction
from spectrax.networks.landscape.quadratic import check_quadratic, check_target
from spectrax.networks.layer_finding import Network
from spectrax.programs.layers import trace

PyTree = Any


@dataclasses.dataclass(frozen=True)
class LossAlongLine:
    """The squared error along a line, a quadratic on each piece; in float64 on the host.

    On piece i, from `breaks[i]` to `breaks[i + 1]`, the loss at t is value + slope (t - m) + curvature (t - m)^2 / 2,
    with m the piece's middle.

    Attributes:
        breaks: The start, the kinks and the end, ascending; shape (pieces + 1,).
        value: The loss in the middle of each piece, shape (pieces,).
        slope: Its derivative there, likewise.
        curvature: Its second derivative on the piece, likewise.
    """

    breaks: np.ndarray
    value: np.ndarray
    slope: np.ndarray
    curvature: np.ndarray

    def __call__(self, t: Any) -> np.ndarray:
        """Return the loss at places on the line.

        Args:
            t: Places between the first and the last break, of any shape.

        Returns:
            The loss, of the same shape.

        Raises:
            ValueError: If a place lies outside.
        """
        t = np.asarray(t, np.float64)
        if not np.all((t >= self.breaks[0]) & (t <= self.breaks[-1])):
            raise ValueError(f"t must lie between {self.breaks[0]} and {self.breaks[-1]}, got {t}")
        piece = np.clip(np.searchsorted(self.breaks, t, side="right") - 1, 0, len(self.value) - 1)
        step = t - self._middles[piece]
        return self.value[piece] + self.slope[piece] * step + self.curvature[piece] * step**2 / 2

    @property
    def kinks(self) -> np.ndarray:
        """Where the network decides something differently in one of the samples, ascending."""
        return self.breaks[1:-1]

    @property
    def minimum(self) -> tuple[float, float]:
        """The place of the smallest loss on the line, and the loss there."""
        with np.errstate(divide="ignore", invalid="ignore"):
            lowest = self._middles - self.slope / self.curvature
        lowest = np.clip(np.where(np.isnan(lowest), self._middles, lowest), self.breaks[:-1], self.breaks[1:])
        step = lowest - self._middles
        values = self.value + self.slope * step + self.curvature * step**2 / 2
        best = int(np.argmin(values))
        return float(lowest[best]), float(values[best])

    @property
    def curvature_jumps(self) -> np.ndarray:
        """How much the curvature changes at each kink, relative to what it was before; inf where that was zero."""
        before, after = self.curvature[:-1], self.curvature[1:]
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(before == after, 0, np.abs(after - before) / before)

    @property
    def total_variation(self) -> float:
        """That of the logarithm of the curvature; inf where the curvature is zero on some pieces, but not on all."""
        with np.errstate(divide="ignore", invalid="ignore"):
            logarithms = np.log(self.curvature)
            return float(np.sum(np.where(self.curvature[1:] == self.curvature[:-1], 0, np.abs(np.diff(logarithms)))))

    @property
    def _middles(self) -> np.ndarray:
        return (self.breaks[:-1] + self.breaks[1:]) / 2


def loss_along_line(
    net: Any, params: PyTree, layer: str, direction: Any, x: PyTree, y: PyTree, /, *, start: float = 0.0,
    stop: float = 1.0, batched: bool = False, chunk_size: int = 64,
) -> LossAlongLine:  # fmt: skip
    """Return the squared error |f - y|^2 on the line W + t * direction in one layer's weights, piece by piece.

    Along such a line a piecewise-affine network's output is affine between the kinks, where some unit changes its
    piece, so that the loss is a quadratic there. The kinks are not searched for with small steps, which would miss
    some: in the order in which the network decides, each decision is affine in t between those before it, and its zero
    is computed. `kinks`, `curvature_jumps` and `total_variation` measure how erratic the landscape is.

    Args:
        net: As in `layer_operator`; the network must be piecewise affine.
        params: As in `layer_operator`.
        layer: As in `layer_operator`.
        direction: The change of the weight for t = 1, in the weight's shape.
        x: As in `layer_operator`.
        y: The target, in the structure of the output; with `batched=True` along a leading axis.
        start: The first t.
        stop: The last t, larger.
        batched: Whether x and y hold many samples; the loss is then their sum, and each has its own kinks.
        chunk_size: How many pieces are looked at in one call of the compiled program.

    Returns:
        A `LossAlongLine`. Kinks closer than round-off are one. A decision that the output doesn't see, such as that of
        a unit that a later maximum passes over, is a kink at which the curvature does not jump.

    Raises:
        TypeError: As `layer_operator`; or if called under `jit`, since the number of pieces depends on the values.
        ValueError: As `local_quadratic`; or if start is not below stop, if the direction has another shape than the
            weight, or if the loss is not finite.

    Cost:
        About two evaluations of the network and its derivative for each kink of each sample.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> f = lambda params, x: jax.nn.relu(params["w"] @ x)
        >>> w, x, y = -jnp.eye(2), jnp.array([1.0, 2.0]), jnp.ones(2)
        >>> line = sx.landscape.loss_along_line(f, {"w": w}, "w", jnp.eye(2), x, y, stop=4.0)
        >>> line.kinks.tolist(), line.curvature.tolist(), [round(each, 6) for each in line.minimum]
        ([1.0], [0.0, 10.0], [1.6, 0.2])

    Source:
        Kinks by propagation of the decisions in order: Sotoudeh & Thakur, "Computing Linear Restrictions of Neural
        Networks", NeurIPS 2019, arXiv:1908.06214. The measures follow the question of Riedi, Balestriero & Baraniuk
        (doi:10.1007/s00365-022-09601-5).
    """
    checks.positive_integer("chunk_size", chunk_size)
    if not (np.isfinite(start) and np.isfinite(stop) and start < stop):
        raise ValueError(f"start must be below stop, both finite, got start={start}, stop={stop}")
    problem = layer_problem(net, params, layer, x, batched=batched)
    leaves = jax.tree.leaves((problem.arrays, problem.point, direction, y))
    if any(isinstance(leaf, jax_core.Tracer) for leaf in leaves):
        raise TypeError("loss_along_line finds as many pieces as there are, which cannot be under jit or vmap")
    check_quadratic("loss_along_line", problem)
    direction = weight_direction("direction", direction, problem)
    y = check_target(problem, y)
    points = problem.point if batched else jax.tree.map(lambda leaf: leaf[None], problem.point)
    targets = y if batched else jax.tree.map(lambda leaf: leaf[None], y)
    pieces = _pieces(problem, direction, points, targets, float(start), float(stop), chunk_size)
    if not np.all(np.isfinite(pieces.value) & np.isfinite(pieces.slope) & np.isfinite(pieces.curvature)):
        raise ValueError("loss_along_line: the loss is not finite everywhere between start and stop")
    return _sum_over_samples(pieces, float(start), float(stop))


class _Pieces(NamedTuple):
    """Pieces of the lines of single samples, in any order; all of shape (pieces,)."""

    sample: np.ndarray
    low: np.ndarray
    high: np.ndarray
    value: np.ndarray
    slope: np.ndarray
    curvature: np.ndarray


class _AtPlace(NamedTuple):
    """A network at one place t of a line: what it decides by, and the loss; each with its derivative in t."""

    decisions: jax.Array
    decision_slopes: jax.Array
    value: jax.Array
    slope: jax.Array
    curvature: jax.Array


@functools.partial(jax.jit, static_argnames=("network", "place"))
def _at_places(network: Network, place: int, arrays, weight, direction, points, targets, samples, t) -> _AtPlace:
    def one(sample: jax.Array, t: jax.Array) -> _AtPlace:
        point, target = vectors.row(points, sample), vectors.row(targets, sample)

        def along(t: jax.Array) -> tuple[jax.Array, PyTree]:
            with jax.default_matmul_precision("highest"):
                found = trace(network, arrays, point, weights={place: weight + t * direction})
            flat = [jnp.ravel(each).astype(t.dtype) for each in found.switches]
            return jnp.concatenate([jnp.zeros(0, t.dtype), *flat]), found.output

        (decisions, output), (decision_slopes, moves) = jax.jvp(along, (t,), (jnp.ones_like(t),))
        residual = vectors.subtract(output, target)
        squares = vectors.norm(residual) ** 2, 2 * vectors.vdot(residual, moves), 2 * vectors.norm(moves) ** 2
        return _AtPlace(decisions, decision_slopes, *squares)

    return jax.vmap(one)(samples, t)


def _pieces(
    problem: LayerProblem, direction: jax.Array, points: PyTree, targets: PyTree, start: float, stop: float,
    chunk_size: int,
) -> _Pieces:  # fmt: skip
    """Split the line of each sample until no decision changes inside of a piece.

    An open piece carries the number of the array of decisions that was dealt with last. In its middle all decisions
    are evaluated, with their derivatives; the first array in the network's order with zeros inside is affine between
    the ends, since nothing before it changes, so that its zeros are right, and it splits the piece.
    """
    struct = jax.eval_shape(
        lambda: trace(problem.network, problem.arrays, vectors.row(points, 0)).switches  # of one sample
    )
    order = np.repeat(np.arange(len(struct)), [int(np.prod(each.shape)) for each in struct])
    weight = problem.site.weight
    dtype = vectors.working_dtype(weight.dtype)
    eps = float(jnp.finfo(dtype).eps)
    scale = max(abs(start), abs(stop))
    count = jax.tree.leaves(points)[0].shape[0]
    samples, low, high = np.arange(count), np.full(count, start), np.full(count, stop)
    dealt_with = np.full(count, -1)
    finished: list[_Pieces] = []
    while len(samples):
        take = slice(0, chunk_size)
        own, a, b, last = samples[take], low[take], high[take], dealt_with[take]
        samples, low, high, dealt_with = (each[chunk_size:] for each in (samples, low, high, dealt_with))
        middle = ((a + b) / 2).astype(dtype)
        fill = (0, chunk_size - len(own))
        at = _at_places(problem.network, problem.place, problem.arrays, weight.astype(dtype), direction.astype(dtype),
                        points, targets, np.pad(own, fill), np.pad(middle, fill, mode="edge"))  # fmt: skip
        at = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64)[: len(own)], at)  # noqa: B023
        zeros = _zeros(at, middle, a, b, order > last[:, None], eps, scale)
        first = np.min(np.where(np.isnan(zeros), len(struct), order), axis=1, initial=len(struct))
        done = first == len(struct)
        finished.append(_Pieces(own[done], a[done], b[done], at.value[done], at.slope[done], at.curvature[done]))
        for i in np.flatnonzero(~done):
            inside = np.unique(zeros[i][(order == first[i]) & ~np.isnan(zeros[i])])
            ends = np.concatenate([[a[i]], inside, [b[i]]])
            samples = np.append(samples, np.full(len(ends) - 1, own[i]))
            low, high = np.append(low, ends[:-1]), np.append(high, ends[1:])
            dealt_with = np.append(dealt_with, np.full(len(ends) - 1, max(first[i], last[i])))
    return _Pieces(*map(np.concatenate, zip(*finished, strict=True)))


def _zeros(
    at: _AtPlace, middle: np.ndarray, low: np.ndarray, high: np.ndarray, new: np.ndarray, eps: float, scale: float
) -> np.ndarray:
    """Return where each decision of each piece is zero inside of it, NaN where it is not."""
    middle, low, high = (each.astype(np.float64)[:, None] for each in (middle, low, high))
    with np.errstate(divide="ignore", invalid="ignore"):
        zeros = middle - at.decisions / at.decision_slopes
    # A decision that split the piece is zero at its end, up to rounding: it is not found once more. One that compares
    # with the largest may split again, since it is another one after that.
    margin = np.where(new, 0, np.sqrt(eps) * (high - low))
    inside = (zeros > low + margin) & (zeros < high - margin) & (high - low > 4 * eps * scale)
    return np.where(inside, zeros, np.nan)


def _sum_over_samples(pieces: _Pieces, start: float, stop: float) -> LossAlongLine:
    breaks = np.unique(np.concatenate([[start, stop], pieces.low]))
    middles = (breaks[:-1] + breaks[1:]) / 2
    value, slope, curvature = (np.zeros_like(middles) for _ in range(3))
    for sample in np.unique(pieces.sample):
        own = np.flatnonzero(pieces.sample == sample)
        own = own[np.argsort(pieces.low[own])]
        own = own[np.searchsorted(pieces.low[own], middles, side="right") - 1]
        step = middles - (pieces.low[own] + pieces.high[own]) / 2
        value += pieces.value[own] + pieces.slope[own] * step + pieces.curvature[own] * step**2 / 2
        slope += pieces.slope[own] + pieces.curvature[own] * step
        curvature += pieces.curvature[own]
    return LossAlongLine(breaks, value, slope, curvature)
