"""What the spectra of Jacobians at many samples say, without keeping the matrices."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from spectrax import checks, explicit_axes, vectors
from spectrax.operators.dense_jacobians import chunk_options, sampled_jacobian
from spectrax.operators.jacobian_chunks import ChunkOptions, Chunks, Lines, Sampled, lines_of, over_groups, over_lines
from spectrax.spectrum.functions import power_of_two, scaled_values
from spectrax.spectrum.methods import FACTORIZED_ENTRIES, FACTORIZED_SIDE, Method, can_be_dense
from spectrax.spectrum.quantities import condition_number, round_off
from spectrax.spectrum.svds import svds

PyTree = Any

STATISTICS = ("singular_values", "condition_number", "rank", "frobenius_norm")
DECOMPOSED = 6  # how many matrices of a sample are held while it is decomposed
DEFAULT_BYTES = 2**24  # the bound of the temporary memory if nobody gives one


class JacobianSpectrum(NamedTuple):
    """Statistics of the Jacobians at many samples; those that were not asked for are None.

    Attributes:
        singular_values: Shape (samples, min(m, n)), or (samples, k); descending. NaN for a sample whose output or
            Jacobian is not finite, and for a value that did not converge.
        condition_number: sigma_max / sigma_min of min(m, n) values, shape (samples,): inf where sigma_min is at
            round-off, sqrt(max(m, n)) eps sigma_max; NaN where an end did not converge.
        rank: How many values are above that round-off, int32 of shape (samples,); -1 where they are not finite.
        frobenius_norm: The root of the sum of all squared values, shape (samples,).
        residuals: With `k`: those of the singular values, as in `svds`.
        converged: With `k`: which of them converged.
    """

    singular_values: jax.Array | None = None
    condition_number: jax.Array | None = None
    rank: jax.Array | None = None
    frobenius_norm: jax.Array | None = None
    residuals: jax.Array | None = None
    converged: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class _Options:
    chunks: ChunkOptions
    statistics: frozenset[str]
    k: int | None = None
    method: Method | str = "auto"
    tol: float | None = None
    max_matvecs: int | None = None


def jacobian_spectrum(
    function: Callable, xs: PyTree, /, *args: Any,
    statistics: str | Iterable[str] = ("singular_values", "condition_number", "rank", "frobenius_norm"),
    argnum: int = 0, select: str | Callable[[str], bool] | None = None, mode: str = "auto",
    chunk_size: int | None = None, max_bytes: int | None = None, allow_training: bool = False, k: int | None = None,
    method: Method | str = "auto", tol: float | None = None, max_matvecs: int | None = None,
    key: jax.Array | None = None,
) -> JacobianSpectrum:  # fmt: skip
    """Return statistics of the spectra of the Jacobians of f(x, *args) at many samples.

    The Jacobians of some samples are made dense as `batched_jacobian` makes them, decomposed without vectors, and
    forgotten before those of the next ones are made. The Frobenius norm alone is summed up from chunks of rows or
    columns, and no whole matrix is made at all. With `k`, nothing is made dense that `svds` would not make: for
    Jacobians that are too large.

    - In the input: `jacobian_spectrum(f, xs, params)` of f(x, params).
    - In the parameters: `jacobian_spectrum(f, xs, params, argnum=1)`.
    - In those of one layer: `jacobian_spectrum(f, xs, params, argnum=1, select="dense_0")`. For the weights of all
      layers by one sweep see `landscape.layer_spectra`, for the maps between them `local_linear`.

    Args:
        function: A function f(x, *args) of one sample.
        xs: The samples, stacked along the leading axis of every leaf.
        *args: Further arguments of f, the same for all samples.
        statistics: Which of the fields of `JacobianSpectrum` to compute, one name or several; by default all, with `k`
            the rank left out.
        argnum: As in `batched_jacobian`.
        select: As in `batched_jacobian`.
        mode: As in `batched_jacobian`.
        chunk_size: How many samples are worked on at a time; by default as many as `max_bytes` allows.
        max_bytes: The most memory that the computation may hold beside its arguments and its result, by a count of the
            arrays in its program; None for 16 MiB, or the least that is possible. Not with `k`.
        allow_training: As in `batched_jacobian`.
        k: How many of the largest singular values `svds` is to find at each sample, one sample after the other; None
            for all of them from dense matrices.
        method: With `k`, as in `svds`.
        tol: Likewise.
        max_matvecs: Likewise.
        key: Likewise; every sample gets a key of its own.

    Returns:
        The statistics, split over explicit axes as the samples are. All are exact to round-off where the matrices were
        made dense; with `k` see `svds` and `condition_number`.

    Raises:
        TypeError: As `batched_jacobian`.
        ValueError: As `batched_jacobian`; if a statistic is not known; if a Jacobian is larger than the limits of what
            is made dense (4096 on the shorter side, 2**24 entries) and neither `k` nor `max_bytes` is given; for the
            rank or `max_bytes` with `k`.

    Cost:
        As `batched_jacobian`, and one decomposition for each sample. The Frobenius norm alone costs no decomposition.

    Derivatives:
        Forward and reverse, in xs and in the arguments; the first ones right for distinct values. Zero for the
        condition number where it is inf. The Frobenius norm has derivatives of any order, zero at a zero matrix.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> f = lambda x, w: w @ jnp.abs(x)
        >>> found = sx.jacobian_spectrum(f, jnp.ones((5, 2)), jnp.diag(jnp.array([1.0, 4.0])))
        >>> found.singular_values.shape, found.condition_number[0].item(), found.rank.tolist()
        ((5, 2), 4.0, [2, 2, 2, 2, 2])
    """
    chunks = chunk_options(mode, samples=chunk_size, max_bytes=max_bytes)
    wanted = _wanted(statistics, k)
    limits = {"method": method, "tol": tol, "max_matvecs": max_matvecs}

    def run(xs: PyTree, args: tuple, key: jax.Array | None) -> JacobianSpectrum:
        sampled = sampled_jacobian(
            function, xs, args, mode=mode, argnum=argnum, select=select, allow_training=allow_training
        )
        return _statistics(sampled, chunks, wanted, k, limits, key)

    return explicit_axes.with_automatic_axes(run, explicit_axes.leading_spec(xs), xs, args, key)


def _statistics(
    sampled: Sampled, chunks: ChunkOptions, wanted: frozenset[str], k: int | None, limits: dict[str, Any],
    key: jax.Array | None,
) -> JacobianSpectrum:  # fmt: skip
    shape = sampled.operator.shape
    if k is None:
        unused = {"method": "auto", "tol": None, "max_matvecs": None}
        given = [name for name, value in limits.items() if value != unused[name]]
        if given:
            raise ValueError(f"{', '.join(given)} is for svds, which is used where k is given")
        if wanted != {"frobenius_norm"} and chunks.max_bytes is None and not can_be_dense(shape):
            raise ValueError(
                f"a Jacobian of shape {shape} is above the limits of {FACTORIZED_SIDE} on the shorter side and "
                f"{FACTORIZED_ENTRIES} on the entries: give max_bytes= to have it made dense nevertheless, k= for some "
                'of its largest singular values, or take statistics="frobenius_norm"'
            )
        options = _Options(chunks, wanted)
        return _dense_statistics(sampled, options)
    checks.positive_integer("k", k)
    if chunks.max_bytes is not None or "rank" in wanted:
        raise ValueError("with k=, the Jacobians are not made dense: there is no max_bytes and no rank")
    if key is None:
        raise ValueError("with k=, jacobian_spectrum needs key= (for instance jax.random.key(0))")
    checks.key("key", key)
    return _iterative_statistics(sampled, key, _Options(chunks, wanted, k, **limits))


def _wanted(statistics: str | Iterable[str], k: int | None) -> frozenset[str]:
    wanted = (statistics,) if isinstance(statistics, str) else tuple(statistics)
    for name in wanted:
        checks.choice("statistics", name, STATISTICS)
    if not wanted:
        raise ValueError(f"statistics must name one at least, of {', '.join(STATISTICS)}")
    found = frozenset(wanted)
    return found - {"rank"} if k is not None and found == frozenset(STATISTICS) else found


@functools.partial(jax.jit, static_argnames="options")
def _dense_statistics(sampled: Sampled, options: _Options) -> JacobianSpectrum:
    lines = lines_of(sampled, options.chunks.mode)
    if options.statistics == {"frobenius_norm"}:
        return _norms(sampled, lines, options)
    dtype = vectors.working_dtype(lines.dtype)
    kept = math.prod(lines.shape) * (lines.dtype.itemsize + DECOMPOSED * dtype.itemsize)

    def of_group(local: list[jax.Array], chunks: Chunks) -> JacobianSpectrum:
        empty = jnp.zeros((chunks.together, *lines.shape), lines.dtype)
        matrices = over_lines(lines, local, chunks, empty, lines.write)
        return jax.vmap(lambda matrix: _of_matrix(matrix.astype(dtype), sampled, options.statistics))(matrices)

    return _streamed(sampled, lines, options, of_group, kept)


def _of_matrix(matrix: jax.Array, sampled: Sampled, statistics: frozenset[str]) -> JacobianSpectrum:
    scaled, relative, unit = scaled_values(matrix)
    finite = jnp.isfinite(unit)
    floor = round_off(sampled.operator) * relative[0]
    singular = relative[-1] <= floor
    condition = jnp.where(singular, jnp.inf, relative[0] / jnp.where(singular, 1, relative[-1]))
    found = {
        "singular_values": relative * unit,
        "condition_number": condition * jnp.where(finite, 1, jnp.nan).astype(condition.dtype),
        "rank": jnp.where(finite, jnp.sum(relative > floor, dtype=jnp.int32), -1),
        "frobenius_norm": _root(jnp.sum(jnp.square(jnp.abs(scaled)))) * unit,
    }
    return JacobianSpectrum(**{name: value for name, value in found.items() if name in statistics})


def _root(square: jax.Array) -> jax.Array:
    """The square root, with derivative zero at zero."""
    return jnp.where(square == 0, 0, jnp.sqrt(jnp.where(square == 0, 1, square)))


def _streamed(
    sampled: Sampled, lines: Lines, options: _Options, of_group: Callable[[list[jax.Array], Chunks], PyTree], kept: int
) -> PyTree:
    """Return what is computed from groups of samples for all of them, NaN where the function is not finite."""
    if sampled.count == 0:
        return _empty(lines.shape, vectors.real_dtype(vectors.working_dtype(lines.dtype)), options)
    chunks = lines.chunks(sampled.count, options.chunks, default=DEFAULT_BYTES, kept=kept)
    struct = jax.eval_shape(
        lambda samples: of_group(jax.vmap(lines.program.at)(samples), chunks),
        vectors.structure(jax.tree.map(lambda leaf: leaf[: chunks.together], sampled.samples)),
    )
    empty = jax.tree.map(lambda leaf: jnp.zeros((sampled.count, *leaf.shape[1:]), leaf.dtype), struct)

    def group(carry: PyTree, first: Any, local: list[jax.Array], values: jax.Array) -> PyTree:
        found = of_group(local, chunks)
        return vectors.set_rows(carry, first, _where(jnp.all(jnp.isfinite(values), axis=1), found))

    return over_groups(lines, sampled, chunks, empty, group)


def _is_finite(sampled: Sampled, sample: PyTree) -> jax.Array:
    """Whether the function's value is: a unit that is NaN has slope zero as one that is switched off."""
    leaves = jax.tree.leaves(sampled.at(sample).value())
    return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]).all()


def _where(finite: jax.Array, found: PyTree) -> PyTree:
    """Return what was found where the samples are finite, elsewhere NaN, -1 or False."""

    def choose(leaf: jax.Array) -> jax.Array:
        other = jnp.nan if jnp.issubdtype(leaf.dtype, jnp.inexact) else -1 if leaf.dtype == jnp.int32 else False
        return jnp.where(finite.reshape((-1,) + (1,) * (leaf.ndim - 1)), leaf, jnp.asarray(other, leaf.dtype))

    return jax.tree.map(choose, found)


def _norms(sampled: Sampled, lines: Lines, options: _Options) -> JacobianSpectrum:
    """The Frobenius norms from chunks of lines, each with a scale of its own."""
    dtype = vectors.working_dtype(lines.dtype)
    real = vectors.real_dtype(dtype)

    def of_group(local: list[jax.Array], chunks: Chunks) -> JacobianSpectrum:
        rounds = -(-lines.count // chunks.lines)

        def step(parts: tuple[jax.Array, jax.Array], image: PyTree, sample: Any, line: Any) -> tuple:
            number = -(-line // chunks.lines)
            is_new = (
                line + jnp.arange(chunks.lines, dtype=jnp.int32) >= number * chunks.lines
            )  # the last chunk may overlap

            def of_sample(image: PyTree) -> tuple[jax.Array, jax.Array]:
                rows = [leaf.reshape(chunks.lines, -1).astype(dtype) for leaf in jax.tree.leaves(image)]
                rows = [jnp.where(is_new[:, None], leaf, 0) for leaf in rows]
                scale = power_of_two(jnp.stack([jnp.max(jnp.abs(jax.lax.stop_gradient(leaf))) for leaf in rows]))
                squares = [jnp.sum(jnp.square(jnp.abs(leaf / scale.astype(dtype)))) for leaf in rows]
                square = functools.reduce(jnp.add, squares)
                return jnp.where(square == 0, 0, scale), square  # that of a chunk of zeros says nothing of the others

            found = jax.vmap(of_sample)(image)
            place = sample, number.astype(sample.dtype)
            return tuple(
                jax.lax.dynamic_update_slice(all_, own[:, None], place) for all_, own in zip(parts, found, strict=True)
            )

        empty = jnp.zeros((chunks.together, rounds), real), jnp.zeros((chunks.together, rounds), real)
        scales, squares = over_lines(lines, local, chunks, empty, step)
        largest = jnp.max(scales, axis=1)
        largest = jnp.where(largest == 0, 1, largest)
        sums = jnp.sum(squares * jnp.square(scales / largest[:, None]), axis=1)
        return JacobianSpectrum(frobenius_norm=jnp.where(jnp.isfinite(sums), _root(sums) * largest, jnp.nan))

    return _streamed(sampled, lines, options, of_group, 0)


@functools.partial(jax.jit, static_argnames="options")
def _iterative_statistics(sampled: Sampled, key: jax.Array, options: _Options) -> JacobianSpectrum:
    wanted, limits = options.statistics, {"tol": options.tol, "max_matvecs": options.max_matvecs}
    if sampled.count == 0:
        return _empty(
            sampled.operator.shape, vectors.real_dtype(vectors.working_dtype(sampled.operator.dtype)), options
        )

    def of_sample(given: tuple[PyTree, jax.Array]) -> JacobianSpectrum:
        sample, own_key = given
        operator, keys = sampled.at(sample), jax.random.split(own_key)
        found = {}
        if "singular_values" in wanted:
            assert options.k is not None
            result = svds(operator, options.k, method=options.method, key=keys[0], **limits)
            values = result.s * jnp.where(result.converged, 1, jnp.nan).astype(result.s.dtype)
            found |= {"singular_values": values, "residuals": result.residuals, "converged": result.converged}
        if "condition_number" in wanted:
            found["condition_number"] = condition_number(operator, method=options.method, key=keys[1], **limits)
        one = jax.tree.map(lambda leaf: leaf[None], JacobianSpectrum(**found))
        return jax.tree.map(lambda leaf: leaf[0], _where(_is_finite(sampled, sample)[None], one))

    found = jax.lax.map(of_sample, (sampled.samples, jax.random.split(key, sampled.count)))
    if "frobenius_norm" in wanted:
        norms = _norms(sampled, lines_of(sampled, options.chunks.mode), options)
        found = found._replace(frobenius_norm=norms.frobenius_norm)
    return found


def _empty(shape: tuple[int, int], dtype: Any, options: _Options) -> JacobianSpectrum:
    count = min(shape) if options.k is None else options.k
    found = {
        "singular_values": jnp.zeros((0, count), dtype),
        "condition_number": jnp.zeros(0, dtype),
        "rank": jnp.zeros(0, jnp.int32),
        "frobenius_norm": jnp.zeros(0, dtype),
    }
    found = {name: value for name, value in found.items() if name in options.statistics}
    if options.k is not None and "singular_values" in found:
        found |= {"residuals": jnp.zeros((0, count), dtype), "converged": jnp.zeros((0, count), bool)}
    return JacobianSpectrum(**found)
