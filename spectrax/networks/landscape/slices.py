"""The loss on a plane in one layer's weights: as it is, as the local quadratic, and the region where they agree."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import core as jax_core

from spectrax import checks, vectors
from spectrax.networks.landscape.operators import LayerProblem, layer_problem, weight_direction
from spectrax.networks.landscape.quadratic import check_quadratic, check_real, check_target
from spectrax.networks.layer_finding import Network
from spectrax.networks.local_linear import decisions
from spectrax.operators import LinearOperator
from spectrax.programs.hoisting import compiled
from spectrax.programs.layers import trace
from spectrax.spectrum.functions import materializable

PyTree = Any


@dataclasses.dataclass(frozen=True)
class LossSlice:
    """The squared error on the plane W + a * first + b * second; on the host.

    Attributes:
        coordinates: The values that a and b take, shape (resolution,), zero in the middle.
        loss: The loss at (a, b) = (coordinates[i], coordinates[j]), shape (resolution, resolution).
        quadratic: The local quadratic there, likewise: |Q vec(a * first + b * second) + r|^2.
        border: The corners of the region in the plane in which no decision changes and the two are equal, in order,
            shape (corners, 2); cut off where the plane drawn ends. A convex polygon; empty at a kink, and where it is
            too thin for the plane's coordinates.
        reach: The distance of the nearest kink in the plane; inf where nothing is decided.
        directions: The two directions, shape (2, *weight).
        singular_values: |Q first| / |first| and |Q second| / |second|, shape (2,): the singular values, for singular
            directions.
    """

    coordinates: np.ndarray
    loss: np.ndarray
    quadratic: np.ndarray
    border: np.ndarray
    reach: float
    directions: np.ndarray
    singular_values: np.ndarray

    def contains(self, points: Any) -> np.ndarray:
        """Say which points of the plane lie in the region, its border included.

        Args:
            points: Pairs (a, b), shape (..., 2).

        Returns:
            Booleans of shape (...,).
        """
        points = np.asarray(points, np.float64)
        if len(self.border) == 0:
            return np.zeros(points.shape[:-1], bool)
        edges = np.roll(self.border, -1, axis=0) - self.border
        away = points[..., None, :] - self.border
        areas = edges[:, 0] * away[..., 1] - edges[:, 1] * away[..., 0]
        rounding = 16 * np.finfo(np.float64).eps * np.abs(self.coordinates[-1]) * np.linalg.norm(edges, axis=1)
        return np.all(areas >= -rounding, axis=-1)


def loss_slice(
    net: Any, params: PyTree, layer: str, x: PyTree, y: PyTree, /, *, directions: Sequence[Any] = (0, -1),
    extent: float | None = None, resolution: int = 41, batched: bool = False, chunk_size: int = 64,
    max_bytes: int | None = None,
) -> LossSlice:  # fmt: skip
    """Return the squared error |f - y|^2 on a plane in one layer's weights, with the border of its quadratic region.

    Along the right singular directions of Q the quadratic is steepest and flattest: its level sets in the plane of the
    i-th and the j-th are ellipses with axes in the ratio s_j / s_i.

    Args:
        net: As in `layer_operator`; the network must be piecewise affine.
        params: As in `layer_operator`.
        layer: As in `layer_operator`.
        x: As in `layer_operator`.
        y: The target, in the structure of the output; with `batched=True` along a leading axis.
        directions: Two of them. A number says which right singular vector of Q, in descending order among those that
            are not zero to round-off, -1 for the last; an array in the weight's shape is taken as it is.
        extent: How far the plane reaches from the middle, in units of the directions; by default three times as far as
            the nearest kink in the plane, or the norm of the weight if there is none or the network is at one.
        resolution: The number of points on each axis; odd, so that the middle is one of them.
        batched: Whether x and y hold many samples; the loss is then their sum.
        chunk_size: How many points are evaluated at a time.
        max_bytes: How large Q may be where singular directions are asked for, as in `singular_values`.

    Returns:
        A `LossSlice`.

    Raises:
        TypeError: As `layer_operator`; if weights or outputs are complex; or if called under `jit`, since the number of
            corners depends on the values.
        ValueError: As `local_quadratic`; or if a direction has another shape than the weight, there are fewer singular
            directions, or the two are parallel; if the output is not finite; or if the extent is not positive, or the
            resolution even or below 3.

    Cost:
        resolution^2 evaluations of the network; a decomposition of Q for singular directions.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> f = lambda params, x: jax.nn.relu(params["w"] @ x)
        >>> x, y = jnp.array([1.0, 0.0]), jnp.ones(2)
        >>> plane = sx.landscape.loss_slice(f, {"w": jnp.eye(2) + 1}, "w", x, y, extent=2.0, resolution=3)
        >>> plane.singular_values.tolist(), round(plane.reach, 6)
        ([1.0, 1.0], 1.0)

    Source:
        As `layer_operator`. The region is the intersection of the half-planes in which the decisions keep their signs,
        by clipping a polygon at each (Sutherland & Hodgman, doi:10.1145/360767.360802).
    """
    checks.positive_integer("chunk_size", chunk_size)
    checks.positive_integer("resolution", resolution)
    if resolution < 3 or resolution % 2 == 0:
        raise ValueError(f"resolution must be odd and at least 3, got {resolution}")
    if extent is not None and not (np.isfinite(extent) and extent > 0):
        raise ValueError(f"extent must be positive and finite, got {extent}")
    if len(directions) != 2:
        raise ValueError(f"directions must be two, got {len(directions)}")
    problem = layer_problem(net, params, layer, x, batched=batched)
    if any(isinstance(leaf, jax_core.Tracer) for leaf in jax.tree.leaves((problem.arrays, problem.point, y))):
        raise TypeError("loss_slice finds as many corners as there are, which cannot be under jit or vmap")
    check_quadratic("loss_slice", problem)
    check_real("loss_slice", problem)
    y = check_target(problem, y)
    output = problem.output()
    if not all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(output)):
        raise ValueError("loss_slice: the network's output is not finite")
    Q = problem.operator(bias=False)
    pair = _directions(problem, Q, directions, max_bytes)
    planes = _half_planes(problem, pair)
    distances = planes[:, 0] / np.maximum(np.hypot(planes[:, 1], planes[:, 2]), np.finfo(np.float64).tiny)
    reach = float(np.min(distances, initial=np.inf))
    if reach <= 100 * float(jnp.finfo(pair.dtype).eps) * float(vectors.norm(problem.site.weight)):
        reach = 0.0  # a decision at its kink, up to rounding
    if extent is None:
        extent = 3 * reach if 0 < reach < np.inf else float(vectors.norm(problem.site.weight))
    coordinates = np.linspace(-extent, extent, resolution)
    places = np.stack(np.meshgrid(coordinates, coordinates, indexing="ij"), axis=-1).reshape(-1, 2)
    points, targets = (
        (problem.point, y) if batched else jax.tree.map(lambda leaf: leaf[None], (problem.point, y))  # one sample
    )
    arguments = problem.arrays, problem.site.weight, pair, points, targets, jnp.asarray(places, pair.dtype)
    losses = compiled(_Losses(problem.network, problem.place, chunk_size), *map(vectors.structure, arguments))
    loss = losses(*arguments)
    moves = [vectors.as_matrix(jax.tree.map(lambda leaf: leaf[None], Q.matvec(each)))[0] for each in pair]
    residual = vectors.as_matrix(jax.tree.map(lambda leaf: leaf[None], vectors.subtract(output, y)))[0]
    residual, first, second = (np.asarray(each, np.float64) for each in (residual, *moves))
    quadratic = np.sum((residual + places[:, :1] * first + places[:, 1:] * second) ** 2, axis=1)
    lengths = np.linalg.norm(np.asarray(pair, np.float64).reshape(2, -1), axis=1)
    return LossSlice(
        coordinates=coordinates,
        loss=np.asarray(loss, np.float64).reshape(resolution, resolution),
        quadratic=quadratic.reshape(resolution, resolution),
        border=_region(planes, extent) if reach > 0 else np.zeros((0, 2)),
        reach=reach,
        directions=np.asarray(pair),
        singular_values=np.array([np.linalg.norm(first), np.linalg.norm(second)]) / lengths,
    )


def _directions(
    problem: LayerProblem, Q: LinearOperator, directions: Sequence[Any], max_bytes: int | None
) -> jax.Array:
    found = []
    if any(isinstance(each, int) for each in directions):
        materializable(Q, max_bytes)  # or raises
        dense = Q.to_dense()
        _, s, vh = jnp.linalg.svd(dense.astype(vectors.working_dtype(dense.dtype)), full_matrices=False)
        rank = int(jnp.sum(s > max(Q.shape) * vectors.eps((Q.in_struct, Q.out_struct)) * s[0]))
        found = [row.reshape(problem.site.weight.shape) for row in vh[:rank]]
    pair = []
    for each in directions:
        if isinstance(each, int):
            if not -len(found) <= each < len(found):
                raise ValueError(
                    f"directions: Q has {len(found)} singular values that are not zero to round-off, got number {each}"
                )
            each = found[each]
        pair.append(weight_direction("directions", each, problem))
    lengths = [float(vectors.norm(each)) for each in pair]
    if 0 in lengths:
        raise ValueError("directions must not be zero")
    first, second = (
        each.astype(vectors.working_dtype(each.dtype)) / size for each, size in zip(pair, lengths, strict=True)
    )
    apart = min(float(vectors.norm(first - second)), float(vectors.norm(first + second)))
    if apart <= 100 * float(jnp.finfo(first.dtype).eps):
        raise ValueError("directions must span a plane, got two that are parallel")
    return jnp.stack(pair)


def _half_planes(problem: LayerProblem, pair: jax.Array) -> np.ndarray:
    """Return rows (g, g_a, g_b), g >= 0, for the half-planes g + a g_a + b g_b >= 0 in which nothing changes."""

    def of_sample(point: PyTree) -> jax.Array:
        def signed(weight: jax.Array) -> jax.Array:
            return decisions(problem.network, problem.arrays, point, weights={problem.place: weight})

        value, slopes = jax.vmap(lambda d: jax.jvp(signed, (problem.site.weight,), (d,)), out_axes=(None, 0))(pair)
        return jnp.stack([value, *slopes], axis=1)

    rows = jax.lax.map(of_sample, problem.point) if problem.batched else of_sample(problem.point)
    rows = np.asarray(rows, np.float64).reshape(-1, 3)
    rows = np.where(rows[:, :1] < 0, -rows, rows)
    return rows[~np.isnan(rows).any(axis=1) & ((rows[:, 1] != 0) | (rows[:, 2] != 0))]


@dataclasses.dataclass(frozen=True)
class _Losses:
    """The squared error at places of a plane."""

    network: Network
    place: int
    chunk_size: int

    def __call__(self, arrays, weight, pair, points, targets, places) -> jax.Array:
        def at(where: jax.Array) -> jax.Array:
            moved = weight + jnp.tensordot(where, pair, 1)

            def of_sample(point: PyTree, target: PyTree) -> jax.Array:
                with jax.default_matmul_precision("highest"):
                    output = trace(self.network, arrays, point, weights={self.place: moved}).output
                return vectors.norm(vectors.subtract(output, target)) ** 2

            return jnp.sum(jax.vmap(of_sample)(points, targets))

        return jax.lax.map(at, places, batch_size=min(self.chunk_size, len(places)))


def _region(planes: np.ndarray, extent: float) -> np.ndarray:
    """Cut the square of the given extent at each half-plane; corners counter-clockwise."""
    corners = extent * np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    distances = planes[:, 0] / np.hypot(planes[:, 1], planes[:, 2])
    for g, g_a, g_b in planes[np.argsort(distances)]:  # the nearest cut most
        heights = g + corners @ (g_a, g_b)
        if np.all(heights >= 0):
            continue
        kept = []
        for i in range(len(corners)):
            j = (i + 1) % len(corners)
            if heights[i] >= 0:
                kept.append(corners[i])
            if (heights[i] >= 0) != (heights[j] >= 0):
                kept.append(corners[i] + (corners[j] - corners[i]) * heights[i] / (heights[i] - heights[j]))
        corners = np.array(kept).reshape(-1, 2)
        if len(corners) < 3:
            return np.zeros((0, 2))
    x, y = corners.T
    area = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
    return corners if area > 1e-12 * extent**2 else np.zeros((0, 2))
