"""Penalties on the spectra of linear maps, as pairs of pure functions `init` and `apply`."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from spectrax import checks, vectors
from spectrax.operators import LinearOperator
from spectrax.operators.conversion import MatrixOperator
from spectrax.operators.precision import in_working_precision
from spectrax.regularizers.blocks import Blocks, Ritz, bottom_kind, needs_key, renew, ritz, short_side
from spectrax.regularizers.maps import Maps, MatrixAxes, matrix_maps
from spectrax.spectrum import Dense, svds

PyTree = Any


class SpectralMeasurements(NamedTuple):
    """What a penalty saw of each map at its last step: dicts by name of scalars.

    Attributes:
        sigma_max: The largest Ritz value (singular value of the map on its kept vectors): a lower bound of the norm.
        sigma_min: The smallest Ritz value: an upper bound of the smallest singular value, or an estimate (`kinds`).
        condition_number: Their ratio; inf where sigma_min is at round-off, at most sqrt(max(m, n)) eps sigma_max.
        residual: The residual of sigma_min divided by sigma_min; NaN for an estimate.
        converged: Whether both ends converged when they were last renewed.
    """

    sigma_max: dict[str, jax.Array]
    sigma_min: dict[str, jax.Array]
    condition_number: dict[str, jax.Array]
    residual: dict[str, jax.Array]
    converged: dict[str, jax.Array]


class PenaltyState(NamedTuple):
    """What a penalty carries from step to step: arrays only, so that it can be checkpointed and sharded.

    Attributes:
        applied: Number of `apply` calls, int32; not called `count`, since Optax's states have one each.
        key: A PRNG key, or None.
        blocks: Singular vectors by name of the map.
        measurements: What the last step saw.
    """

    applied: jax.Array
    key: jax.Array | None
    blocks: dict[str, Blocks]
    measurements: SpectralMeasurements


class Penalty(NamedTuple):
    """A penalty as pure functions.

    Attributes:
        init: `init(params, key, **batch) -> state`; finds the first vectors. The key may be None where every map is
            small enough to be decomposed wholly.
        apply: `apply(params, state, **batch) -> (value, state)`; the value is a differentiable scalar, of which the
            state carries no gradient.
        renew: `renew(params, state) -> state`; finds the vectors anew, as `apply` does every `renew_every` steps.
        kinds: `kinds(params, **batch) -> {name: kind}`, "exact", "lower" or "estimate": what the measured condition
            number of each map is.
    """

    init: Callable[..., PenaltyState]
    apply: Callable[..., tuple[jax.Array, PenaltyState]]
    renew: Callable[..., PenaltyState]
    kinds: Callable[..., dict[str, str]]


def condition_number_penalty(
    maps: Maps | MatrixAxes | None = None,
    *,
    block_size: int = 8,
    renew_every: int = 64,
    mask: Callable[[str], bool] | None = None,
    batched: bool = False,
    num_samples: int | None = None,
) -> Penalty:
    r"""Penalise the logarithm of the condition number of each map.

    The sum over all maps of the mean over i <= block_size of

        log s_i - log(s_{n+1-i} + eps s_1),

    with s_i the singular values; `block_size=1` is the logarithm of the condition number itself. A whole block keeps
    the gradient bounded where the smallest value is far below its neighbours, and lifts these before they become the
    smallest. Near zero maps and rank deficiency the value and the gradient are finite; the gradient can reach
    1 / (eps s_1), which is too large for float16: keep such parameters in float32 or bfloat16.

    Args:
        maps: A function from parameters to named operators (`sx.layers.linear_maps(net, input_shape)`, or your own), or
            `MatrixAxes`, or None for parameters of shape (in, out).
        block_size: How many singular values at each end (at most half of them).
        renew_every: Steps between two factorisations of the maps; in between the values are Ritz values on the blocks.
        mask: Which maps to act on, by name; all by default.
        batched: Whether `maps` takes one sample: it is then called for every sample of the batch, the extra arguments
            of `apply`, and each map is decomposed wholly at every step; the penalty is the mean over samples.
        num_samples: With `batched`, how many samples of the batch are used; all by default.

    Returns:
        The penalty's functions.

    Raises:
        ValueError: If an option is out of its range.

    Cost:
        At every step one product of each map with 2 block_size vectors and its derivative; at a renewal a QR
        factorisation of each map up to the limits of `svds`.

    Derivatives:
        First order, with respect to the parameters.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import spectrax as sx
        >>> penalty = sx.regularizers.condition_number_penalty(block_size=1)
        >>> params = {"kernel": jnp.diag(jnp.array([1.0, 10.0]))}
        >>> value, state = penalty.apply(params, penalty.init(params, None))
        >>> round(float(value), 4)
        2.3026
    """

    def value(top: jax.Array, bottom: jax.Array) -> jax.Array:
        eps = jnp.finfo(top.dtype).eps
        largest = jnp.where(top[0] < jnp.finfo(top.dtype).tiny / eps, 0 * top[0], top[0])  # what is smaller underflows
        nonzero = ~(largest == 0)  # NaN must come through
        safe_top = jnp.where(nonzero, jnp.maximum(top, eps * largest), 1)
        safe_bottom = jnp.where(nonzero, jnp.maximum(bottom, 0) + eps * largest, 1)
        return jnp.mean(jnp.log(safe_top)) - jnp.mean(jnp.log(safe_bottom))

    return _build(value, (block_size, block_size), maps, renew_every, mask, batched, num_samples)


def spectral_norm_penalty(
    maps: Maps | MatrixAxes | None = None,
    *,
    block_size: int = 4,
    renew_every: int = 64,
    mask: Callable[[str], bool] | None = None,
    batched: bool = False,
    num_samples: int | None = None,
) -> Penalty:
    r"""Penalise half the squared spectral norm of each map, (1/2) sum s_1^2.

    Args:
        maps: As in `condition_number_penalty`.
        block_size: How many vectors are carried; more follow the largest value over a crossing.
        renew_every: Steps between two renewals.
        mask: Which maps to act on, by name.
        batched: As in `condition_number_penalty`.
        num_samples: As in `condition_number_penalty`.

    Returns:
        The penalty's functions. The measured sigma_min is NaN.

    Raises:
        ValueError: If an option is out of its range.

    Cost:
        As `condition_number_penalty` with one block.

    Derivatives:
        d = s_1 Re(u_1^H dA v_1).

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> penalty = sx.regularizers.spectral_norm_penalty()
        >>> params = {"kernel": jnp.diag(jnp.array([1.0, 3.0]))}
        >>> round(float(penalty.apply(params, penalty.init(params, None))[0]), 4)
        4.5

    Source:
        Yoshida & Miyato 2017, arXiv 1705.10941.
    """

    def value(top: jax.Array, bottom: jax.Array) -> jax.Array:
        del bottom
        return jnp.square(top[0]) / 2

    return _build(value, (block_size, 0), maps, renew_every, mask, batched, num_samples)


def orthogonality_penalty(
    maps: Maps | MatrixAxes | None = None,
    *,
    num_probes: int = 8,
    mask: Callable[[str], bool] | None = None,
    batched: bool = False,
    num_samples: int | None = None,
) -> Penalty:
    r"""Penalise the distance of each map from an isometry, sum \|A^H A - I\|_F^2 = sum_i (s_i^2 - 1)^2.

    The Gram matrix is that of the shorter side. For explicit matrices the value is exact; for other maps it is the
    unbiased estimate \|(A^H A - I) z\|^2, averaged over random signs z that are drawn anew at every step.

    Args:
        maps: As in `condition_number_penalty`.
        num_probes: How many random vectors estimate the norm.
        mask: Which maps to act on, by name.
        batched: As in `condition_number_penalty`; the value is then exact.
        num_samples: As in `condition_number_penalty`.

    Returns:
        The penalty's functions. No singular value is measured: all measurements are NaN.

    Raises:
        ValueError: If an option is out of its range.

    Cost:
        A Gram matrix for explicit matrices, otherwise two products with `num_probes` vectors, and their derivatives.

    Derivatives:
        Any order.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> penalty = sx.regularizers.orthogonality_penalty()
        >>> params = {"kernel": jnp.diag(jnp.array([1.0, 2.0]))}
        >>> float(penalty.apply(params, penalty.init(params, None))[0])
        9.0

    Source:
        Bansal, Chen & Wang 2018, arXiv 1810.09102 (soft orthogonality); Hutchinson 1989 for the estimate.
    """
    checks.positive_integer("num_probes", num_probes)
    build = _Orthogonality(num_probes, _Options(_as_maps(maps), mask, batched, _samples(num_samples, batched)))
    return Penalty(build.init, build.apply, build.renew, build.kinds)


@dataclasses.dataclass(frozen=True)
class _Options:
    """The maps that a penalty acts on."""

    maps: Maps
    mask: Callable[[str], bool] | None
    batched: bool
    num_samples: int | None

    def operators(self, params: PyTree, **batch: PyTree) -> dict[str, LinearOperator]:
        operators = self.maps(params, **batch)
        if not isinstance(operators, dict) or not all(isinstance(op, LinearOperator) for op in operators.values()):
            raise TypeError(f"maps must return a dict of names and LinearOperators, got {operators!r}")
        chosen = {name: op for name, op in operators.items() if self.mask is None or self.mask(name)}
        if not chosen:
            raise ValueError(f"the mask leaves none of the maps {', '.join(operators) or '(there are none)'}")
        return chosen

    def per_sample(self, function: Callable, params: PyTree, batch: dict[str, PyTree]) -> Any:
        """Evaluate function(operators) for every sample of the batch."""
        parameters = inspect.signature(self.maps).parameters
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            batch = {
                name: leaf for name, leaf in batch.items() if name in parameters
            }  # others are for other transforms
        if not batch:
            raise ValueError(f"batched=True needs the samples as keyword arguments: some of {', '.join(parameters)}")
        batch = jax.tree.map(lambda leaf: leaf[: self.num_samples], batch)
        return jax.vmap(lambda sample: function(self.operators(params, **sample)))(batch)


def _samples(num_samples: int | None, batched: bool) -> int | None:
    if num_samples is not None:
        checks.positive_integer("num_samples", num_samples)
        if not batched:
            raise ValueError("num_samples is for batched=True only")
    return num_samples


def _as_maps(maps: Maps | MatrixAxes | None) -> Maps:
    if maps is None or isinstance(maps, MatrixAxes):
        return matrix_maps(maps)
    if not callable(maps):
        raise TypeError(f"maps must be a function from params to named operators or MatrixAxes, got {maps!r}")
    return maps


def _build(value, ends, maps, renew_every, mask, batched, num_samples) -> Penalty:
    checks.positive_integer("block_size", ends[0])
    checks.positive_integer("renew_every", renew_every)
    options = _Options(_as_maps(maps), mask, batched, _samples(num_samples, batched))
    build = _Extremes(value, ends, renew_every, options)
    return Penalty(build.init, build.apply, build.renew, build.kinds)


@dataclasses.dataclass(frozen=True)
class _Extremes:
    """A penalty that is a function of some singular values at one or both ends."""

    value: Callable[[jax.Array, jax.Array], jax.Array]
    ends: tuple[int, int]
    renew_every: int
    options: _Options

    def _ends(self, operator: LinearOperator) -> tuple[int, int]:
        """Blocks of at most half of the values: the two of them never overlap, except at 1 x n."""
        half = max(min(operator.shape) // 2, 1)
        return min(self.ends[0], half), min(self.ends[1], half)

    def init(self, params: PyTree, key: jax.Array | None, **batch: PyTree) -> PenaltyState:
        applied = jnp.zeros((), jnp.int32)
        if key is not None:
            checks.key("key", key)
        if self.options.batched:
            del batch
            return PenaltyState(applied, key, {}, _nothing_measured(("jacobian",), params))
        operators = self.options.operators(params)
        needing = [name for name, op in operators.items() if needs_key(op)]
        if key is None and needing:
            raise ValueError(
                f"a PRNG key (for instance key=jax.random.key(0)) is needed to find singular vectors of "
                f"{', '.join(needing)}"
            )
        state = PenaltyState(applied, key, {}, _nothing_measured(operators, params))
        return self._measured(self.renew(params, state), operators)

    def renew(self, params: PyTree, state: PenaltyState) -> PenaltyState:
        if self.options.batched:
            return state
        operators = self.options.operators(params)
        key = None if state.key is None else jax.random.fold_in(state.key, state.applied)
        ends = {name: self._ends(operator) for name, operator in operators.items()}
        blocks = renew(operators, ends, key, state.blocks)
        return state._replace(blocks=blocks)

    def apply(self, params: PyTree, state: PenaltyState, **batch: PyTree) -> tuple[jax.Array, PenaltyState]:
        if self.options.batched:
            return self._apply_batched(params, state, batch)
        due = (state.applied > 0) & (state.applied % self.renew_every == 0)
        frozen = jax.lax.stop_gradient((params, state))
        state = jax.lax.cond(due, lambda: self.renew(*frozen), lambda: frozen[1])
        operators = self.options.operators(params)
        found = {name: ritz(operator, state.blocks[name]) for name, operator in operators.items()}
        total = _total(self.value(top.values, bottom.values) for top, bottom in found.values())
        state = self._record(state, jax.lax.stop_gradient(found), operators)
        return total, state._replace(applied=state.applied + 1)

    def kinds(self, params: PyTree, **batch: PyTree) -> dict[str, str]:
        if self.options.batched:
            return {"jacobian": "exact"}
        kinds = {"upper": "lower", "estimate": "estimate"}  # an upper bound of sigma_min makes kappa a lower one
        operators = jax.eval_shape(self.options.operators, params)
        return {name: kinds[bottom_kind(op)] for name, op in operators.items()}

    def _measured(self, state: PenaltyState, operators: dict[str, LinearOperator]) -> PenaltyState:
        return self._record(state, {name: ritz(op, state.blocks[name]) for name, op in operators.items()}, operators)

    def _record(
        self, state: PenaltyState, found: dict[str, tuple[Ritz, Ritz]], operators: dict[str, LinearOperator]
    ) -> PenaltyState:
        single = {name: jnp.abs(bottom.values[-1]) for name, (_, bottom) in found.items()}
        largest = {name: top.values[0] for name, (top, _) in found.items()}
        conditions = {name: _condition(largest[name], single[name], max(operators[name].shape)) for name in found}
        measurements = SpectralMeasurements(
            sigma_max=largest,
            sigma_min=single,
            condition_number=conditions,
            residual={name: _ratio(bottom.residual, bottom.values[-1]) for name, (_, bottom) in found.items()},
            converged={name: jnp.all(state.blocks[name].converged) for name in found},
        )
        return state._replace(measurements=measurements)

    def _apply_batched(self, params, state, batch):
        def one(operators):
            values, ends = [], {}
            for name, operator in operators.items():
                counts = self._ends(operator)
                top = svds(operator, counts[0], which="largest", method=Dense(), key=state.key)
                bottom = svds(operator, max(counts[1], 1), which="smallest", method=Dense(), key=state.key)
                values.append(self.value(top.s, bottom.s))
                ends[name] = (top.s[0], bottom.s[-1], bottom.residuals[-1], top.converged[0] & bottom.converged[-1])
            return _total(values), ends

        values, ends = self.options.per_sample(one, params, batch)
        if set(ends) != set(state.measurements.sigma_max):
            raise ValueError(f"maps of one sample must return one operator named 'jacobian', got {', '.join(ends)}")
        ends = jax.lax.stop_gradient(ends)
        measured = SpectralMeasurements(
            sigma_max={name: jnp.median(end[0]) for name, end in ends.items()},
            sigma_min={name: jnp.median(end[1]) for name, end in ends.items()},
            condition_number={name: jnp.median(_ratio(end[0], end[1])) for name, end in ends.items()},
            residual={name: jnp.max(_ratio(end[2], end[1])) for name, end in ends.items()},
            converged={name: jnp.all(end[3]) for name, end in ends.items()},
        )
        # in the dtypes that the state began with, whatever those of the samples are
        measured = jax.tree.map(lambda old, new: new.astype(old.dtype), state.measurements, measured)
        return jnp.mean(values), state._replace(applied=state.applied + 1, measurements=measured)


@dataclasses.dataclass(frozen=True)
class _Orthogonality:
    """A penalty on the Frobenius distance between the Gram operator and the identity."""

    num_probes: int
    options: _Options

    def init(self, params: PyTree, key: jax.Array | None, **batch: PyTree) -> PenaltyState:
        if key is not None:
            checks.key("key", key)
        if self.options.batched:
            names: Any = ("jacobian",)
        else:
            names = operators = self.options.operators(params)
            needing = [name for name, op in operators.items() if not isinstance(op, MatrixOperator)]
            if key is None and needing:
                raise ValueError(
                    f"a PRNG key (for instance key=jax.random.key(0)) is needed to estimate the penalty on "
                    f"{', '.join(needing)}"
                )
        return PenaltyState(jnp.zeros((), jnp.int32), key, {}, _nothing_measured(names, params))

    def renew(self, params: PyTree, state: PenaltyState) -> PenaltyState:
        del params
        return state

    def kinds(self, params: PyTree, **batch: PyTree) -> dict[str, str]:
        if self.options.batched:
            return {"jacobian": "exact"}
        operators = jax.eval_shape(self.options.operators, params)
        return {name: "exact" if isinstance(op, MatrixOperator) else "estimate" for name, op in operators.items()}

    def apply(self, params: PyTree, state: PenaltyState, **batch: PyTree) -> tuple[jax.Array, PenaltyState]:
        next_state = state._replace(applied=state.applied + 1)
        if self.options.batched:
            values = self.options.per_sample(
                lambda operators: _total(_distance(short_side(op).to_dense()) for op in operators.values()),
                params,
                batch,
            )
            return jnp.mean(values), next_state
        key = None if state.key is None else jax.random.fold_in(state.key, state.applied)
        operators = self.options.operators(params)
        return _total(self._one(op, key, index) for index, op in enumerate(operators.values())), next_state

    def _one(self, operator: LinearOperator, key: jax.Array | None, index: int) -> jax.Array:
        tall = short_side(in_working_precision(operator))
        if isinstance(operator, MatrixOperator):
            return _distance(tall.to_dense())
        assert key is not None
        matmat, rmatmat = tall._block_products()
        probes = _signs(jax.random.fold_in(key, index), tall.in_struct, self.num_probes)
        return jnp.mean(jnp.square(vectors.stack_norms(vectors.subtract(rmatmat(matmat(probes)), probes))))


def _distance(tall: jax.Array) -> jax.Array:
    tall = tall.astype(vectors.working_dtype(tall.dtype))
    gram = jnp.matmul(tall.conj().T, tall, precision=vectors.HIGHEST)
    return jnp.sum(jnp.square(jnp.abs(gram - jnp.eye(gram.shape[0], dtype=gram.dtype))))


def _signs(key: jax.Array, struct: PyTree, count: int) -> PyTree:
    leaves, treedef = jax.tree.flatten(struct)
    keys = jax.random.split(key, len(leaves))
    return treedef.unflatten(
        [jax.random.rademacher(k, (count, *leaf.shape), leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)]
    )


def _nothing_measured(names: Any, params: PyTree) -> SpectralMeasurements:
    """Return NaN in the dtype that the measurements will have, so that the state can be carried through a scan."""
    dtypes = [jnp.result_type(leaf) for leaf in jax.tree.leaves(params)]
    wide = any(jnp.issubdtype(dtype, jnp.inexact) and jnp.finfo(dtype).bits == 64 for dtype in dtypes)

    def nan():
        return {name: jnp.full((), jnp.nan, jnp.float64 if wide else jnp.float32) for name in names}

    return SpectralMeasurements(nan(), nan(), nan(), nan(), {name: jnp.zeros((), bool) for name in names})


def _condition(largest: jax.Array, smallest: jax.Array, size: int) -> jax.Array:
    """Return their ratio, or inf where the smallest is at round-off, as `sx.condition_number` does."""
    singular = smallest <= size**0.5 * jnp.finfo(largest.dtype).eps * largest
    return jnp.where(singular, jnp.inf, _ratio(largest, smallest))


def _ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.where(b == 0, jnp.inf, a / jnp.where(b == 0, jnp.ones_like(b), b))


def _total(values: Any) -> jax.Array:
    return functools.reduce(jnp.add, values)
