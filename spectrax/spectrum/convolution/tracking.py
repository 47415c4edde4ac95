"""Both ends of a convolution's spectrum at every step of a training run, from what the step before has found."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from spectrax import checks, explicit_axes, vectors
from spectrax.operators import LinearOperator, conv_operator
from spectrax.operators.convolution import ConvolutionGeometry, ConvolutionOperator, checked_kernel
from spectrax.results import Quantity, Status, SVDResult
from spectrax.spectrum import preconditioners
from spectrax.spectrum.convolution.singular_values import divides
from spectrax.spectrum.convolution.symbol import circular_frequencies, conv_symbol, grouped
from spectrax.spectrum.functions import status_of
from spectrax.spectrum.methods import Davidson, Lanczos, is_plain
from spectrax.spectrum.svds import svds

PyTree = Any


class ConvolutionExtremes(NamedTuple):
    """The largest and the smallest singular value of a convolution, with what is known of each.

    Attributes:
        sigma_max: Of kind "lower": the value is attained, and `upper` is a bound (inf where none is known).
        sigma_min: Of kind "upper", with `lower` a bound.
    """

    sigma_max: Quantity
    sigma_min: Quantity


class ConvolutionTracker(NamedTuple):
    """A pair of pure functions.

    Attributes:
        init: `init(kernel, key=None) -> state`, a pytree of arrays. Without circular padding the key is needed.
        update: `update(kernel, state) -> (ConvolutionExtremes, state)`.
    """

    init: Callable[..., PyTree]
    update: Callable[[jax.Array, PyTree], tuple[ConvolutionExtremes, PyTree]]


class CircularState(NamedTuple):
    """What is known of a circular convolution.

    Attributes:
        kernels: Those of the last step, by group.
        largest: The largest singular value of the symbol of each group at each frequency, when last computed, flat.
        smallest: The smallest one.
        drift: How far both may have moved since.
    """

    kernels: jax.Array
    largest: jax.Array
    smallest: jax.Array
    drift: jax.Array


class PaddedState(NamedTuple):
    """What is known of a convolution with another padding.

    Attributes:
        step: How many updates there were.
        key: A PRNG key.
        top: The singular vector of the shorter side for the largest value, a stack of one.
        bottom: That for the smallest one.
        inverse: The preconditioner, or None.
    """

    step: jax.Array
    key: jax.Array
    top: PyTree
    bottom: PyTree
    inverse: LinearOperator | None


def conv_extremes(
    input_shape: Sequence[int],
    /,
    *,
    padding: str | Sequence[tuple[int, int]],
    strides: int | Sequence[int] = 1,
    kernel_dilation: int | Sequence[int] = 1,
    feature_group_count: int = 1,
    num_frequencies: int | None = None,
    num_steps: int = 32,
    renew_every: int = 32,
    tol: float = 1e-3,
) -> ConvolutionTracker:
    r"""Track the largest and the smallest singular value of a convolution while its kernel changes.

    Circular padding: the singular values of the symbol are kept for every frequency, together with a bound of how far
    they may have moved since they were computed, the sum over steps and taps of the Frobenius norms of the changes. At
    each step the frequencies that were extreme are computed anew, and as many of those that by this bound could be. The
    values returned are those of the kernel as it is at frequencies that were just computed; the bounds hold for all.

    Other paddings: a few steps of Lanczos for the largest value and of Davidson for the smallest one, from the vectors
    of the step before; with stride 1 preconditioned by the circulant inverse of some steps ago.

    Args:
        input_shape: Spatial sizes of the input, with or without the channels.
        padding: As in `conv_operator`.
        strides: The step for each spatial axis.
        kernel_dilation: The spacing of kernel taps.
        feature_group_count: Number of groups.
        num_frequencies: Circular: how many frequencies (of all groups together) are computed at each step for each end;
            by default a sixteenth, and 8 at least.
        num_steps: Otherwise: how many steps are taken at most for each end.
        renew_every: Otherwise: after how many steps the preconditioner is made anew.
        tol: Otherwise: the relative residual at which an end counts as converged. Some singular value is then that
            near; that none beyond it was missed is not shown.

    Returns:
        The tracker's functions. They can be jitted and scanned over; a status of NOT_CONVERGED says that an end was
        lost in the steps allowed, and its value is then a one-sided bound only.

    Raises:
        ValueError: If an option is out of its range; by `init` if the shapes don't fit, the strides of a circular
            convolution don't divide the sizes, or a key is missing.

    Cost:
        Circular: 2 num_frequencies decompositions (values only) of out x (in * product of strides), and memory of three
        numbers for each frequency. Otherwise up to 4 num_steps products with one sample, and an FFT for each step.

    Derivatives:
        First derivatives of both values with respect to the kernel, ds = Re(u^H dA v); none of the bounds, and nothing
        through the state.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> tracker = sx.conv_extremes((8,), padding="CIRCULAR")
        >>> kernel = jnp.array([1.0, 3.0, 1.0]).reshape(3, 1, 1)
        >>> found, state = tracker.update(kernel, tracker.init(kernel))
        >>> round(float(found.sigma_max.value), 4), round(float(found.sigma_min.value), 4)
        (5.0, 1.0)

    Source:
        Weyl's inequality for the bounds; as `svds` for the rest.
    """
    for name, value in (("num_steps", num_steps), ("renew_every", renew_every)):
        checks.positive_integer(name, value)
    if num_frequencies is not None:
        checks.positive_integer("num_frequencies", num_frequencies)
    checks.number_in("tol", tol, 0, 1, low_open=True)

    def operator_of(kernel: jax.Array) -> ConvolutionOperator:
        kernel = checked_kernel(kernel)
        operator: Any = conv_operator(
            kernel.astype(vectors.working_dtype(kernel.dtype)), input_shape, padding=padding, strides=strides,
            kernel_dilation=kernel_dilation, feature_group_count=feature_group_count,
        )  # fmt: skip
        return operator

    if isinstance(padding, str) and padding.upper() == "CIRCULAR":
        build = _Circular(operator_of, num_frequencies)
    else:
        build = _Padded(operator_of, num_steps, renew_every, tol)
    return ConvolutionTracker(
        explicit_axes.with_init_specs(build.init),
        explicit_axes.with_specs(build.update, lambda kernel, state: (PartitionSpec(), explicit_axes.specs_of(state))),
    )


@dataclasses.dataclass(frozen=True)
class _Circular:
    """Values at all frequencies, some of them computed anew at each step."""

    operator_of: Callable[[jax.Array], ConvolutionOperator]
    num_frequencies: int | None

    def init(self, kernel: jax.Array, key: jax.Array | None = None) -> CircularState:
        del key
        operator = jax.lax.stop_gradient(self.operator_of(kernel))
        geometry = operator.geometry
        if not divides(geometry):
            raise ValueError(f"strides {geometry.strides} must divide the sizes {geometry.spatial_shape}")
        kernels = grouped(operator.kernel, geometry.feature_group_count)
        every = jnp.arange(kernels.shape[0] * len(_points(operator)), dtype=jnp.int32)
        values = _values(operator, kernels, every)
        return CircularState(kernels, values[:, 0], values[:, -1], jnp.zeros_like(values[:, 0]))

    def update(self, kernel: jax.Array, state: CircularState) -> tuple[ConvolutionExtremes, CircularState]:
        operator = self.operator_of(kernel)
        kernels = grouped(operator.kernel, operator.geometry.feature_group_count)
        now = jax.lax.stop_gradient(kernels)
        moved = jnp.sum(jnp.sqrt(jnp.sum(jnp.square(jnp.abs(now - state.kernels)), axis=(-2, -1))), axis=_spatial(now))
        drift = state.drift + jnp.repeat(moved, state.drift.shape[0] // len(moved))
        drift = jnp.where(jnp.isfinite(drift), drift, jnp.inf)  # after what was not finite everything is open
        count = min(self.num_frequencies or max(8, len(drift) // 16), len(drift))
        # those that were extreme, and those of which least is known: so all have their turn
        half = -(-count // 2)
        wanted = state.largest, state.largest + drift, -state.smallest, drift - state.smallest
        index = jnp.concatenate([jax.lax.top_k(each, half)[1] for each in wanted])
        values = _values(operator, now, index)
        largest, smallest = state.largest.at[index].set(values[:, 0]), state.smallest.at[index].set(values[:, -1])
        drift = drift.at[index].set(0)
        highest, lowest = index[jnp.argmax(values[:, 0])], index[jnp.argmin(values[:, -1])]
        sigma_max = _at(operator, kernels, highest)[0]
        sigma_min = _at(operator, kernels, lowest)[-1]
        status = status_of(jnp.all(jnp.isfinite(now)))
        eps = jnp.finfo(largest.dtype).eps
        slack = 8 * eps * max(kernels.shape[-2:]) * jax.lax.stop_gradient(sigma_max)
        upper, lower = jnp.max(largest + drift) + slack, jnp.maximum(jnp.min(smallest - drift) - slack, 0)
        found = ConvolutionExtremes(
            Quantity(sigma_max, jax.lax.stop_gradient(sigma_max) - slack, upper, status, "lower"),
            Quantity(sigma_min, lower, jax.lax.stop_gradient(sigma_min) + slack, status, "upper"),
        )
        return found, CircularState(now, largest, smallest, drift)


def _spatial(kernels: jax.Array) -> tuple[int, ...]:
    return tuple(range(1, kernels.ndim - 2))


def _points(operator: ConvolutionOperator) -> jax.Array:
    geometry = operator.geometry
    real = not vectors.is_complex(operator.dtype)
    frequencies, _ = circular_frequencies(geometry.spatial_shape, geometry.strides, real=real)
    return jnp.asarray(frequencies, vectors.real_dtype(operator.dtype))


def _at(operator: ConvolutionOperator, kernels: jax.Array, index: jax.Array) -> jax.Array:
    """Return the singular values of the symbol at one place of the flat list of groups and frequencies."""
    geometry, points = operator.geometry, _points(operator)
    symbol = conv_symbol(
        kernels[index // len(points)], points[index % len(points)], strides=geometry.strides,
        kernel_dilation=geometry.kernel_dilation,
    )  # fmt: skip
    return jnp.linalg.svd(symbol, full_matrices=False, compute_uv=False)


def _values(operator: ConvolutionOperator, kernels: jax.Array, index: jax.Array) -> jax.Array:
    together = max(min(_CHUNK_ENTRIES // kernels[0].size, len(index)), 1)
    return jax.lax.map(lambda i: _at(operator, kernels, i), index, batch_size=together)


_CHUNK_ENTRIES = 2**22  # of kernels that are worked on together


@dataclasses.dataclass(frozen=True)
class _Padded:
    """Singular vectors that are followed."""

    operator_of: Callable[[jax.Array], ConvolutionOperator]
    num_steps: int
    renew_every: int
    tol: float

    def init(self, kernel: jax.Array, key: jax.Array | None = None) -> PaddedState:
        checks.key("key", key)
        assert key is not None
        operator = jax.lax.stop_gradient(self.operator_of(kernel))
        short = _short(operator)
        top, bottom = (vectors.normal(k, short, 1) for k in jax.random.split(key))
        return PaddedState(jnp.zeros((), jnp.int32), key, top, bottom, _preconditioner(operator))

    def update(self, kernel: jax.Array, state: PaddedState) -> tuple[ConvolutionExtremes, PaddedState]:
        operator = self.operator_of(kernel)
        now = jax.lax.stop_gradient(operator)
        inverse = state.inverse
        if inverse is not None:
            due = (state.step % self.renew_every == 0) & (state.step > 0)
            inverse = jax.lax.cond(due, lambda: _preconditioner(now), lambda: state.inverse)
        keys = jax.random.split(jax.random.fold_in(state.key, state.step))
        method = Lanczos(subspace_size=min(self.num_steps, *operator.shape), max_restarts=1, probe=False)
        largest = svds(operator, 1, method=method, tol=self.tol, key=keys[0], v0=state.top)
        smallest = svds(
            operator, 1, which="smallest", method=Davidson(max_steps=self.num_steps, preconditioner="none"),
            tol=self.tol, key=keys[1], v0=state.bottom, preconditioner=inverse,
        )  # fmt: skip
        zero, inf = jnp.zeros_like(largest.s[0]), jnp.full_like(largest.s[0], jnp.inf)
        s_max, s_min = (jax.lax.stop_gradient(each.s[0]) for each in (largest, smallest))
        found = ConvolutionExtremes(
            Quantity(largest.s[0], s_max, inf, self._status(largest), "lower"),
            Quantity(smallest.s[0], zero, s_min, self._status(smallest), "upper"),
        )
        top, bottom = (self._followed(operator, each, old) for each, old in (
            (largest, state.top), (smallest, state.bottom)))  # fmt: skip
        return found, PaddedState(state.step + 1, state.key, top, bottom, inverse)

    def _status(self, result: SVDResult) -> jax.Array:
        """Judge by the residual alone: there are no steps to spare for a challenge by a random vector."""
        met = result.residuals[0] <= self.tol * result.s[0]
        return jnp.where(met, int(Status.CONVERGED), result.status).astype(jnp.int32)

    def _followed(self, operator: ConvolutionOperator, result: SVDResult, old: PyTree) -> PyTree:
        """Return the vector of the shorter side, or the old one where the new one is not finite."""
        new = jax.lax.stop_gradient(result.v if operator.shape[0] >= operator.shape[1] else result.u)
        return vectors.select(jnp.all(jnp.isfinite(vectors.as_matrix(new))), new, old)


def _short(operator: ConvolutionOperator) -> PyTree:
    return operator.in_struct if operator.shape[0] >= operator.shape[1] else operator.out_struct


def _preconditioner(operator: ConvolutionOperator) -> LinearOperator | None:
    geometry: ConvolutionGeometry = operator.geometry
    return preconditioners.circulant(operator) if is_plain(geometry) else None
