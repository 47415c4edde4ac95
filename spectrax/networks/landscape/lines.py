"""The loss along a line in one layer's weights, as its exact pieces, with every kink between them."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import core as jax_core

from spectrax import checks, vectors
from spectrax.networks.landscape.operators import LayerProblem, layer_problem, weight_direction
from spectrax.networks.landscape.quadratic import check_quadratic, check_real, check_target
from spectrax.networks.layer_finding import Network
from spectrax.programs.equations import lowest_precision
from spectrax.programs.hoisting import compiled
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
        A `LossAlongLine`. Kinks that are closer than their rounding errors are one. A decision that the output doesn't
        see, such as that of a unit that a later maximum passes over, is a kink at which the curvature does not jump.

    Raises:
        TypeError: As `layer_operator`; if weights or outputs are complex; or if called under `jit`, since the number of
            pieces depends on the values.
        ValueError: As `local_quadratic`; if the network computes in 16 bits, whose roundings look like kinks; if start
            is not below stop, the direction has another shape than the weight, or the loss is not finite.

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
    check_real("loss_along_line", problem)
    function, weight = problem.function(bias=False), problem.weights(bias=False)
    if lowest_precision(function, weight, problem.arrays, problem.point) < 32:
        raise ValueError("loss_along_line: the network computes in 16 bits, whose roundings look like kinks")
    direction = weight_direction("direction", direction, problem)
    y = check_target(problem, y)
    points = problem.point if batched else jax.tree.map(lambda leaf: leaf[None], problem.point)
    targets = y if batched else jax.tree.map(lambda leaf: leaf[None], y)
    pieces = _pieces(problem, direction, points, targets, float(start), float(stop), chunk_size)
    if not np.all(np.isfinite(pieces.value) & np.isfinite(pieces.slope) & np.isfinite(pieces.curvature)):
        raise ValueError("loss_along_line: the loss is not finite everywhere between start and stop")
    return _sum_over_samples(pieces, float(start), float(stop))


class _Pieces(NamedTuple):
    """Pieces of the lines of single samples, in any order; all of shape (pieces,) but for `pattern`, (pieces, 2)."""

    sample: np.ndarray
    low: np.ndarray
    high: np.ndarray
    low_error: np.ndarray
    value: np.ndarray
    slope: np.ndarray
    curvature: np.ndarray
    pattern: np.ndarray


class _AtPlace(NamedTuple):
    """A network at one place t of a line: what it decides by, and the loss; each with its derivative in t.

    `pattern` is a hash of the decisions' signs, and of which of them there are: equal ones for equal decisions.
    """

    decisions: jax.Array
    decision_slopes: jax.Array
    value: jax.Array
    slope: jax.Array
    curvature: jax.Array
    pattern: jax.Array


@dataclasses.dataclass(frozen=True)
class _AtPlaces:
    """What a network is at places of a line, each with the number of its sample."""

    network: Network
    place: int

    def __call__(self, arrays, weight, direction, points, targets, samples, t) -> _AtPlace:
        def one(sample: jax.Array, t: jax.Array) -> _AtPlace:
            point, target = vectors.row(points, sample), vectors.row(targets, sample)

            def along(t: jax.Array) -> tuple[jax.Array, PyTree]:
                with jax.default_matmul_precision("highest"):
                    found = trace(self.network, arrays, point, weights={self.place: weight + t * direction})
                flat = [jnp.ravel(each).astype(t.dtype) for each in found.switches]
                return jnp.concatenate([jnp.zeros(0, t.dtype), *flat]), found.output

            (decisions, output), (decision_slopes, moves) = jax.jvp(along, (t,), (jnp.ones_like(t),))
            residual = vectors.subtract(output, target)
            squares = vectors.norm(residual) ** 2, 2 * vectors.vdot(residual, moves), 2 * vectors.norm(moves) ** 2
            codes = jnp.where(jnp.isnan(decisions), 2, jnp.sign(decisions) + 4).astype(jnp.uint32)
            bits = jax.random.bits(jax.random.key(0), (2, decisions.size), jnp.uint32)  # any fixed numbers: a hash
            pattern = jnp.sum(bits * codes, axis=1, dtype=jnp.uint32)
            return _AtPlace(decisions, decision_slopes, *squares, pattern)

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
    fixed = problem.arrays, weight.astype(dtype), direction.astype(dtype), points, targets
    some = jnp.zeros(chunk_size, int), jnp.zeros(chunk_size, dtype)
    at_places = compiled(_AtPlaces(problem.network, problem.place), *map(vectors.structure, (*fixed, *some)))
    eps = float(jnp.finfo(dtype).eps)
    scale = max(abs(start), abs(stop))
    count = jax.tree.leaves(points)[0].shape[0]
    samples, low, high = np.arange(count), np.full(count, start), np.full(count, stop)
    low_error, dealt_with = np.zeros(count), np.full(count, -1)
    finished: list[_Pieces] = []
    while len(samples):
        take = slice(0, chunk_size)
        own, a, b, error, last = samples[take], low[take], high[take], low_error[take], dealt_with[take]
        samples, low, high, low_error, dealt_with = (
            each[chunk_size:] for each in (samples, low, high, low_error, dealt_with)
        )
        middle = ((a + b) / 2).astype(dtype)
        fill = (0, chunk_size - len(own))
        at = at_places(*fixed, jnp.asarray(np.pad(own, fill)), jnp.asarray(np.pad(middle, fill, mode="edge")))
        at = jax.tree.map(lambda leaf: np.asarray(leaf)[: len(own)], at)  # noqa: B023
        zeros, errors = _zeros(at, order, middle, a, b, order > last[:, None], eps, scale)
        first = np.min(np.where(np.isnan(zeros), len(struct), order), axis=1, initial=len(struct))
        done = first == len(struct)
        finished.append(
            _Pieces(*(each[done] for each in (own, a, b, error, at.value, at.slope, at.curvature, at.pattern)))
        )
        for i in np.flatnonzero(~done):
            chosen = np.flatnonzero((order == first[i]) & ~np.isnan(zeros[i]))
            inside, inside_errors = _distinct(zeros[i][chosen], errors[i][chosen])
            ends = np.concatenate([[a[i]], inside, [b[i]]])
            samples = np.append(samples, np.full(len(ends) - 1, own[i]))
            low, high = np.append(low, ends[:-1]), np.append(high, ends[1:])
            low_error = np.concatenate([low_error, [error[i]], inside_errors])
            dealt_with = np.append(dealt_with, np.full(len(ends) - 1, max(first[i], last[i])))
    return _Pieces(*map(np.concatenate, zip(*finished, strict=True)))


def _zeros(
    at: _AtPlace, order: np.ndarray, middle: np.ndarray, low: np.ndarray, high: np.ndarray, new: np.ndarray,
    eps: float, scale: float,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Return where each decision of each piece is zero inside of it, NaN where it is not, and the zeros' errors."""
    middle, low, high = (each.astype(np.float64)[:, None] for each in (middle, low, high))
    decisions, slopes = (each.astype(np.float64) for each in (at.decisions, at.decision_slopes))
    with np.errstate(divide="ignore", invalid="ignore"):
        zeros = middle - decisions / slopes
        candidate = (zeros > low) & (zeros < high) & (high - low > 4 * eps * scale)
        # A decision is a sum whose terms are as large as the others of its array are, as a rule.
        usual = np.zeros_like(decisions)
        for array in np.unique(order[candidate.any(axis=0)]):
            usual[:, order == array] = _usual_size(np.asarray(decisions)[:, order == array])
        errors = 16 * eps * (scale + (np.abs(decisions) + usual) / np.abs(slopes))
    # What is zero at an end up to rounding is so at the same place as what split the piece there. A decision that split
    # it itself is found there once more, with a larger error; one that compares with the largest may split again.
    margin = np.where(new, errors, 4 * errors)
    inside = candidate & (zeros > low + margin) & (zeros < high - margin)
    return np.where(inside, zeros, np.nan), errors


def _usual_size(decisions: np.ndarray) -> np.ndarray:
    """Return the median size of each row's entries, without NaN and zeros; zero where nothing is left."""
    sizes = np.sort(np.where(np.isnan(decisions) | (decisions == 0), np.inf, np.abs(decisions)), axis=1)
    count = np.isfinite(sizes).sum(axis=1, keepdims=True)
    return np.where(count > 0, np.take_along_axis(sizes, np.maximum(count - 1, 0) // 2, axis=1), 0)


def _distinct(places: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the places in order, one of those that lie within their errors of each other."""
    order = np.argsort(places)
    places, errors = places[order], errors[order]
    apart = np.ones(len(places), bool)
    apart[1:] = np.diff(places) > errors[1:] + errors[:-1]
    return places[apart], errors[apart]


def _sum_over_samples(pieces: _Pieces, start: float, stop: float) -> LossAlongLine:
    samples = [_without_spurious_kinks(pieces, number) for number in np.unique(pieces.sample)]
    lows, errors = (np.concatenate([getattr(own, name)[1:] for own in samples]) for name in ("low", "low_error"))
    breaks = np.concatenate([[start], _distinct(lows, errors)[0], [stop]])
    middles = (breaks[:-1] + breaks[1:]) / 2
    value, slope, curvature = (np.zeros_like(middles) for _ in range(3))
    for own in samples:
        at = np.searchsorted(own.low, middles, side="right") - 1
        step = middles - (own.low[at] + own.high[at]) / 2
        value += own.value[at] + own.slope[at] * step + own.curvature[at] * step**2 / 2
        slope += own.slope[at] + own.curvature[at] * step
        curvature += own.curvature[at]
    return LossAlongLine(breaks, value, slope, curvature)


def _without_spurious_kinks(pieces: _Pieces, sample: int) -> _Pieces:
    """Return one sample's pieces in order, those joined between which all decisions are the same.

    A maximum is taken apart where two of its candidates are equal, which is no kink where a third one is larger.
    """
    chosen = np.flatnonzero(pieces.sample == sample)
    own = _Pieces(*(each[chosen[np.argsort(pieces.low[chosen])]] for each in pieces))
    own = own._replace(value=own.value.astype(np.float64), slope=own.slope.astype(np.float64),
                       curvature=own.curvature.astype(np.float64))  # fmt: skip
    changes = np.ones(len(own.low), bool)
    changes[1:] = np.any(own.pattern[1:] != own.pattern[:-1], axis=1)
    group = np.cumsum(changes) - 1
    widths = own.high - own.low
    by_width = np.lexsort((widths, group))
    widest = by_width[np.append(np.flatnonzero(np.diff(group[by_width])), len(group) - 1)]  # the last of each group
    low = own.low[changes]
    high = np.append(low[1:], own.high[-1])
    step = (low + high) / 2 - (own.low[widest] + own.high[widest]) / 2
    return own._replace(
        sample=own.sample[widest],
        low=low,
        high=high,
        low_error=own.low_error[changes],
        value=own.value[widest] + own.slope[widest] * step + own.curvature[widest] * step**2 / 2,
        slope=own.slope[widest] + own.curvature[widest] * step,
        curvature=own.curvature[widest],
        pattern=own.pattern[widest],
    )
