"""The spectra of a network's layers at a training step, each number with what it is, and where to log them."""

import dataclasses
import functools
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from spectrax import checks, explicit_axes, spectrum
from spectrax.operators import LinearOperator
from spectrax.operators.precision import in_working_precision
from spectrax.regularizers import meshes
from spectrax.regularizers.blocks import Blocks, bottom_kind, needs_key, renew, ritz
from spectrax.regularizers.extremes import condition
from spectrax.regularizers.maps import Maps, MatrixAxes
from spectrax.regularizers.penalty import check_key, options_of, own_key
from spectrax.results import Quantity, Status
from spectrax.spectrum.methods import can_be_dense

PyTree = Any
Metrics = dict[str, "LayerMetrics"]
_NEAR = 1e-2  # relative residual up to which a followed value counts as found


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("sigma_max", "sigma_min", "condition_number", "stable_rank", "effective_rank"),
    meta_fields=(),
)
@dataclasses.dataclass(frozen=True)
class LayerMetrics:
    """What is known of one linear map.

    A value that is followed has the status NOT_CONVERGED while its residual is above a hundredth of it: it is then a
    bound, on the side that its kind says, and may be far from the truth.

    Attributes:
        sigma_max: The largest singular value: "exact" for maps that are decomposed wholly, otherwise "lower".
        sigma_min: The smallest of min(m, n): "exact", "upper", or "estimate" where a circular convolution stands in.
        condition_number: Their ratio: "exact", "lower" or "estimate"; inf where sigma_min is at round-off.
        stable_rank: The squared Frobenius norm over that of sigma_max: "exact" or "upper"; None where the norm cannot
            be had exactly.
        effective_rank: The exponential of the entropy of the singular values: "exact"; None for maps that cannot be
            decomposed wholly.
    """

    sigma_max: Quantity
    sigma_min: Quantity
    condition_number: Quantity
    stable_rank: Quantity | None
    effective_rank: Quantity | None


class MonitorState(NamedTuple):
    """What a monitor carries from step to step: arrays only.

    Attributes:
        step: How often it was updated, int32.
        key: A PRNG key, or None.
        blocks: Singular vectors of the maps that are too large to be decomposed at every measurement.
        metrics: The last measurement.
    """

    step: jax.Array
    key: jax.Array | None
    blocks: dict[str, Blocks]
    metrics: Metrics


class Monitor(NamedTuple):
    """A pair of pure functions.

    Attributes:
        init: `init(params, key=None) -> state`, with a first measurement in it. The key may be None where every map is
            small enough to be decomposed wholly.
        update: `update(params, state) -> (metrics, state)`; can be jitted and scanned over.
    """

    init: Callable[..., MonitorState]
    update: Callable[[PyTree, MonitorState], tuple[Metrics, MonitorState]]


def spectrum_monitor(
    maps: Maps | MatrixAxes | None = None,
    *,
    every: int = 1,
    block_size: int = 4,
    renew_every: int = 16,
    effective_rank: bool = True,
    mask: Callable[[str], bool] | None = None,
) -> Monitor:
    """Measure singular values, condition numbers and ranks of a network's layers while it trains.

    Args:
        maps: As in `sx.regularizers.condition_number_penalty`: `sx.layers.linear_maps(net, input_shape)`,
            `MatrixAxes`, or your own function.
        every: How often is measured, in updates; in between the metrics stay.
        block_size: How many vectors are followed at each end of a large map.
        renew_every: After how many measurements these are found anew by a factorisation.
        effective_rank: Whether to decompose also those large maps that can be, for it.
        mask: Which maps to measure, by name.

    Returns:
        The monitor. Nothing of it is differentiated.

    Raises:
        ValueError: If an option is out of its range; in `init` if a key is needed.

    Cost:
        At a measurement, for maps of a shorter side of up to 128 a values-only decomposition, and for larger ones some
        products with the vectors that are followed (and a decomposition with `effective_rank`).

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> monitor = sx.monitor.spectrum_monitor()
        >>> params = {"dense": {"kernel": jnp.diag(jnp.array([1.0, 4.0])), "bias": jnp.zeros(2)}}
        >>> metrics, state = monitor.update(params, monitor.init(params))
        >>> found = metrics["dense/kernel"].condition_number
        >>> float(found.value), found.kind
        (4.0, 'exact')
    """
    for name, value in (("every", every), ("block_size", block_size), ("renew_every", renew_every)):
        checks.positive_integer(name, value)
    options = options_of(maps, mask, False, None)
    build = _Monitor(options.operators, every, block_size, renew_every, effective_rank)
    rule = functools.partial(_specs, options.maps)
    return Monitor(
        explicit_axes.with_init_specs(build.init, rule),
        explicit_axes.with_specs(build.update, lambda params, state: (PartitionSpec(), explicit_axes.specs_of(state))),
    )


def _specs(maps: Maps, params: PyTree, state: MonitorState) -> MonitorState:
    return explicit_axes.replicated_specs(state)._replace(blocks=meshes.of_blocks(maps, params, state.blocks))


@dataclasses.dataclass(frozen=True)
class _Monitor:
    operators: Callable[[PyTree], dict[str, LinearOperator]]
    every: int
    block_size: int
    renew_every: int
    effective_rank: bool

    def init(self, params: PyTree, key: jax.Array | None = None) -> MonitorState:
        key = own_key(key)
        operators = jax.lax.stop_gradient(self.operators(params))
        large = self._large(operators)
        check_key(key, "find singular vectors of", list(large))
        blocks = self._renewed(large, key, {})
        return MonitorState(jnp.zeros((), jnp.int32), key, blocks, self._measured(operators, blocks))

    def update(self, params: PyTree, state: MonitorState) -> tuple[Metrics, MonitorState]:
        operators = jax.lax.stop_gradient(self.operators(params))

        def measured() -> tuple[dict[str, Blocks], Metrics]:
            large, blocks = self._large(operators), state.blocks
            if large:
                key = None if state.key is None else jax.random.fold_in(state.key, state.step)
                count = state.step // self.every
                due = (count > 0) & (count % self.renew_every == 0)
                blocks = jax.lax.cond(due, lambda: self._renewed(large, key, blocks), lambda: blocks)
            return blocks, self._measured(operators, blocks)

        if self.every == 1:
            blocks, metrics = measured()
        else:
            due = state.step % self.every == 0
            blocks, metrics = jax.lax.cond(due, measured, lambda: (state.blocks, state.metrics))
        return metrics, MonitorState(state.step + 1, state.key, blocks, metrics)

    def _large(self, operators: dict[str, LinearOperator]) -> dict[str, LinearOperator]:
        return {name: operator for name, operator in operators.items() if needs_key(operator)}

    def _renewed(
        self, large: dict[str, LinearOperator], key: jax.Array | None, old: dict[str, Blocks]
    ) -> dict[str, Blocks]:
        counts = {name: min(self.block_size, min(op.shape) // 2) for name, op in large.items()}
        return renew(large, {name: (count, count) for name, count in counts.items()}, key, old) if large else {}

    def _measured(self, operators: dict[str, LinearOperator], blocks: dict[str, Blocks]) -> Metrics:
        return {
            name: self._followed(operator, blocks[name]) if needs_key(operator) else _decomposed(operator)
            for name, operator in operators.items()
        }

    def _followed(self, operator: LinearOperator, blocks: Blocks) -> LayerMetrics:
        top, bottom = ritz(operator, blocks)
        largest, smallest = top.values[0], jnp.abs(bottom.values[-1])
        # by the residuals as they are now: vectors that converged when they were found may have been left behind
        known = [top.residual <= _NEAR * largest, bottom.residual <= _NEAR * smallest]
        at_top, at_bottom = (jnp.where(each, int(Status.CONVERGED), int(Status.NOT_CONVERGED)) for each in known)
        status = jnp.maximum(at_top, at_bottom)
        kind = bottom_kind(operator)
        stable = effective = None
        if can_be_dense(operator.shape):
            norm = cast(jax.Array, spectrum.frobenius_norm(operator))
            stable = _quantity(jnp.square(norm / _nonzero(largest)), "upper", at_top)
            if self.effective_rank:
                effective = cast(Quantity, spectrum.effective_rank(operator, full=True))
        return LayerMetrics(
            _quantity(largest, "lower", at_top),
            _quantity(smallest, kind, at_bottom),
            _quantity(condition(largest, smallest, max(operator.shape)), "lower" if kind == "upper" else kind, status),
            stable,
            effective,
        )


def _decomposed(operator: LinearOperator) -> LayerMetrics:
    matrix = in_working_precision(operator).to_dense()
    finite = jnp.all(jnp.isfinite(matrix))
    s = jnp.linalg.svd(jnp.where(finite, matrix, 0), compute_uv=False, full_matrices=False)
    s = s * jnp.where(finite, 1, jnp.nan).astype(s.dtype)
    status = jnp.where(finite, int(Status.CONVERGED), int(Status.NOT_FINITE))
    scaled = s / _nonzero(s[0])
    shares = scaled / _nonzero(jnp.sum(scaled))
    entropy = -jnp.sum(jnp.where(shares > 0, shares * jnp.log(jnp.where(shares > 0, shares, 1)), 0 * shares))
    zero = s[0] == 0
    exact = functools.partial(_quantity, kind="exact", status=status)
    return LayerMetrics(
        exact(s[0]),
        exact(s[-1]),
        exact(condition(s[0], s[-1], max(operator.shape))),
        exact(jnp.where(zero, 0, jnp.sum(jnp.square(scaled)))),
        exact(jnp.where(zero, 0, jnp.exp(entropy))),
    )


def _nonzero(x: jax.Array) -> jax.Array:
    return jnp.where(x == 0, jnp.ones_like(x), x)


def _quantity(value: jax.Array, kind: str, status: jax.Array) -> Quantity:
    nothing, everything = jnp.zeros_like(value), jnp.full_like(value, jnp.inf)
    lower = value if kind in {"exact", "lower"} else nothing
    return Quantity(value, lower, value if kind in {"exact", "upper"} else everything, status.astype(jnp.int32), kind)


def scalars(metrics: Metrics, /) -> dict[str, float]:
    """Return the metrics as numbers of Python by "layer/quantity", without those that are not known.

    Args:
        metrics: From a monitor; concrete, not traced.

    Returns:
        For instance {"dense/kernel/sigma_max": 4.0}.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> monitor, params = sx.monitor.spectrum_monitor(), {"w": jnp.eye(2)}
        >>> sx.monitor.scalars(monitor.init(params).metrics)["w/stable_rank"]
        2.0
    """
    host = jax.device_get(metrics)
    return {f"{name}/{field}": float(found.value) for name, field, found in _each(host)}


def kinds(metrics: Metrics, /) -> dict[str, str]:
    """Return what each of `scalars` is: "exact", "lower", "upper" or "estimate".

    Args:
        metrics: From a monitor.

    Returns:
        By the same names.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> monitor, params = sx.monitor.spectrum_monitor(), {"w": jnp.eye(2)}
        >>> sx.monitor.kinds(monitor.init(params).metrics)["w/sigma_min"]
        'exact'
    """
    return {f"{name}/{field}": found.kind for name, field, found in _each(metrics)}


def _each(metrics: Metrics):
    for name, layer in metrics.items():
        for field in dataclasses.fields(layer):
            found = getattr(layer, field.name)
            if found is not None:
                yield name, field.name, found


def log(callback: Callable[[int, Mapping[str, float]], Any], step: int, metrics: Metrics, /) -> None:
    """Hand the metrics of one step to a callback, on the host.

    Args:
        callback: Called with the step and the dict of `scalars`; for TensorBoard `lambda step, numbers: [
            writer.add_scalar(name, number, step) for name, number in numbers.items()]`, for Weights & Biases
            `lambda step, numbers: run.log(numbers, step=step)`; `jsonl(path)` writes lines.
        step: The number of the step.
        metrics: From a monitor; concrete, not traced.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> monitor, params = sx.monitor.spectrum_monitor(), {"w": jnp.eye(2)}
        >>> sx.monitor.log(lambda step, numbers: print(step, numbers["w/sigma_max"]), 7, monitor.init(params).metrics)
        7 1.0
    """
    callback(int(step), scalars(metrics))


def jsonl(path: str | os.PathLike[str], /) -> Callable[[int, Mapping[str, float]], None]:
    """Return a callback for `log` that appends a line of JSON for each step; what is not finite, as "inf" or "nan".

    Args:
        path: The file; its folder must be there.

    Returns:
        The callback.

    Example:
        >>> import pathlib, tempfile
        >>> import spectrax as sx
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "spectra.jsonl")
        ...     sx.monitor.jsonl(file)(3, {"w/sigma_max": 2.0})
        ...     file.read_text().strip()
        '{"step": 3, "w/sigma_max": 2.0}'
    """
    file = Path(path)

    def write(step: int, numbers: Mapping[str, float]) -> None:
        line = {"step": step} | {name: x if math.isfinite(x) else str(x) for name, x in numbers.items()}
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(line, allow_nan=False) + "\n")

    return write


__all__ = ["LayerMetrics", "Monitor", "MonitorState", "jsonl", "kinds", "log", "scalars", "spectrum_monitor"]
