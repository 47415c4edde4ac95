"""The penalty that is a function of a map's extreme singular values, by vectors that are followed from step to step."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from spectrax import checks, explicit_axes
from spectrax.operators import LinearOperator
from spectrax.regularizers import following, meshes
from spectrax.regularizers.blocks import Ritz, bottom_kind, needs_key, renew
from spectrax.regularizers.maps import Maps, MatrixAxes
from spectrax.regularizers.penalty import (
    Options,
    Penalty,
    PenaltyState,
    SpectralMeasurements,
    check_key,
    nothing_measured,
    options_of,
    own_key,
    penalty_of,
    total,
)
from spectrax.spectrum import Dense, svds

PyTree = Any
Value = Callable[[jax.Array, jax.Array, LinearOperator], jax.Array]
_GUARDED = 4  # vectors that are followed at each end with a tolerance, at least


def extremes_penalty(
    value: Value,
    ends: tuple[int, int],
    maps: Maps | MatrixAxes | None,
    *,
    renew_every: int,
    tolerance: float | None,
    mask: Callable[[str], bool] | None,
    batched: bool,
    num_samples: int | None,
) -> Penalty:
    """Return the sum over maps of a function of their extreme singular values.

    Args:
        value: A function of the largest values, of the smallest ones (NaN if there are none), both descending, and of
            the map.
        ends: How many values it takes at the top and at the bottom.
        maps: As in `condition_number_penalty`, and so are the others.
        renew_every: Steps between two factorisations.
        tolerance: Estimated relative error above which the vectors of explicit matrices are improved at once.
        mask: Which maps to act on.
        batched: Whether `maps` takes one sample.
        num_samples: How many samples of the batch are used.

    Returns:
        The penalty's functions.

    Raises:
        ValueError: If an option is out of its range.
    """
    checks.positive_integer("block_size", ends[0])
    checks.positive_integer("renew_every", renew_every)
    if tolerance is not None:
        checks.number_in("tolerance", tolerance, 0, 0.5, low_open=True)
    options = options_of(maps, mask, batched, num_samples)
    build = _Extremes(value, ends, renew_every, tolerance, options)
    return penalty_of(build, functools.partial(_specs, options.maps))


@dataclasses.dataclass(frozen=True)
class _Extremes:
    """A penalty that is a function of some singular values at one or both ends."""

    value: Value
    ends: tuple[int, int]
    renew_every: int
    tolerance: float | None
    options: Options

    def _ends(self, operator: LinearOperator) -> tuple[int, int]:
        """Blocks of at most half of the values: the two of them never overlap, except at 1 x n."""
        half = max(min(operator.shape) // 2, 1)
        return min(self.ends[0], half), min(self.ends[1], half)

    def _followed_ends(self, operators: dict[str, LinearOperator]) -> dict[str, tuple[int, int]]:
        """With a tolerance some vectors more than the penalty takes: an error is judged by what lies beyond a value."""
        least = 1 if self.tolerance is None else _GUARDED
        ends = {}
        for name, operator in operators.items():
            half = max(min(operator.shape) // 2, 1)
            ends[name] = tuple(min(max(count, least), half) if count else 0 for count in self.ends)
        return ends

    def init(self, params: PyTree, key: jax.Array | None, **batch: PyTree) -> PenaltyState:
        applied = jnp.zeros((), jnp.int32)
        key = own_key(key)
        if self.options.batched:
            del batch
            return PenaltyState(applied, key, {}, nothing_measured(("jacobian",), params), {})
        operators = self.options.operators(params)
        needing = [name for name, op in operators.items() if needs_key(op)]
        check_key(key, "find singular vectors of", needing)
        state = PenaltyState(applied, key, {}, nothing_measured(operators, params), {})
        _, state = self._followed(params, operators, self.renew(params, state), jnp.zeros((), bool), None)
        return state

    def renew(self, params: PyTree, state: PenaltyState) -> PenaltyState:
        if self.options.batched:
            return state
        operators = self.options.operators(params)
        key = None if state.key is None else jax.random.fold_in(state.key, state.applied)
        ends = self._followed_ends(operators)
        tracks = {} if self.tolerance is None else following.begin(operators, ends)
        return state._replace(blocks=renew(operators, ends, key, state.blocks), tracks=tracks)

    def apply(self, params: PyTree, state: PenaltyState, **batch: PyTree) -> tuple[jax.Array, PenaltyState]:
        if self.options.batched:
            return self._apply_batched(params, state, batch)
        operators = self.options.operators(params)
        due = (state.applied > 0) & (state.applied % self.renew_every == 0)
        found, state = self._followed(params, operators, state, due, self.tolerance)
        values = []
        for name, (top, bottom) in found.items():
            counts = self._ends(operators[name])
            values.append(self.value(top.values[: counts[0]], bottom.values[-max(counts[1], 1) :], operators[name]))
        return total(values), state._replace(applied=state.applied + 1)

    def _followed(
        self,
        params: PyTree,
        operators: dict[str, LinearOperator],
        state: PenaltyState,
        due: jax.Array,
        tolerance: float | None,
    ) -> tuple[dict[str, tuple[Ritz, Ritz]], PenaltyState]:
        key = None if state.key is None else functools.partial(jax.random.fold_in, state.key, state.applied)
        remade = functools.partial(self.options.operators, jax.lax.stop_gradient(params))
        found, kept, blocks, tracks = following.step(
            operators, remade, self._followed_ends(operators), state.blocks, state.tracks, due=due, key=key,
            tolerance=tolerance, reliable=self.tolerance or following.RELIABLE, renew_every=self.renew_every,
        )  # fmt: skip
        state = state._replace(blocks=blocks, tracks=tracks)
        return found, self._record(state, jax.lax.stop_gradient(found), kept, operators)

    def kinds(self, params: PyTree, **batch: PyTree) -> dict[str, str]:
        if self.options.batched:
            return {"jacobian": "exact"}
        kinds = {"upper": "lower", "estimate": "estimate"}  # an upper bound of sigma_min makes kappa a lower one
        operators = jax.eval_shape(self.options.operators, params)
        return {name: kinds[bottom_kind(op)] for name, op in operators.items()}

    def _record(
        self,
        state: PenaltyState,
        found: dict[str, tuple[Ritz, Ritz]],
        kept: dict[str, jax.Array],
        operators: dict[str, LinearOperator],
    ) -> PenaltyState:
        single = {name: jnp.abs(bottom.values[-1]) for name, (_, bottom) in found.items()}
        largest = {name: top.values[0] for name, (top, _) in found.items()}
        conditions = {name: condition(largest[name], single[name], max(operators[name].shape)) for name in found}
        measurements = SpectralMeasurements(
            sigma_max=largest,
            sigma_min=single,
            condition_number=conditions,
            residual={name: _ratio(bottom.residual, bottom.values[-1]) for name, (_, bottom) in found.items()},
            sigma_max_error={name: top.error for name, (top, _) in found.items()},
            sigma_min_error={name: bottom.error for name, (_, bottom) in found.items()},
            converged=kept,
        )
        return state._replace(measurements=measurements)

    def _apply_batched(self, params, state, batch):
        def one(operators, key):
            values, ends = [], {}
            for name, operator in operators.items():
                counts = self._ends(operator)
                top = svds(operator, counts[0], which="largest", method=Dense(), key=key)
                bottom = svds(operator, max(counts[1], 1), which="smallest", method=Dense(), key=key)
                values.append(self.value(top.s, bottom.s, operator))
                converged = top.converged[0] & bottom.converged[-1]
                ends[name] = (top.s[0], bottom.s[-1], bottom.residuals[-1], converged, top.residuals[0])
            return total(values), ends

        values, ends = self.options.per_sample(one, params, batch, state.key)
        if set(ends) != set(state.measurements.sigma_max):
            raise ValueError(f"maps of one sample must return one operator named 'jacobian', got {', '.join(ends)}")
        ends = jax.lax.stop_gradient(ends)
        measured = SpectralMeasurements(
            sigma_max={name: jnp.median(end[0]) for name, end in ends.items()},
            sigma_min={name: jnp.median(end[1]) for name, end in ends.items()},
            condition_number={name: jnp.median(_ratio(end[0], end[1])) for name, end in ends.items()},
            residual={name: jnp.max(_ratio(end[2], end[1])) for name, end in ends.items()},
            sigma_max_error={name: jnp.max(_ratio(end[4], end[0])) for name, end in ends.items()},
            sigma_min_error={name: jnp.max(_ratio(end[2], end[1])) for name, end in ends.items()},
            converged={name: jnp.all(end[3]) for name, end in ends.items()},
        )
        # in the dtypes that the state began with, whatever those of the samples are
        measured = jax.tree.map(lambda old, new: new.astype(old.dtype), state.measurements, measured)
        return jnp.mean(values), state._replace(applied=state.applied + 1, measurements=measured)


def _specs(maps: Maps, params: PyTree, state: PenaltyState) -> PenaltyState:
    blocks, tracks = meshes.of_blocks(maps, params, state.blocks), meshes.of_tracks(maps, params, state.tracks)
    return explicit_axes.replicated_specs(state)._replace(blocks=blocks, tracks=tracks)


def condition(largest: jax.Array, smallest: jax.Array, size: int) -> jax.Array:
    """Return their ratio, or inf where the smallest is at round-off, as `sx.condition_number` does."""
    singular = smallest <= size**0.5 * jnp.finfo(largest.dtype).eps * largest
    return jnp.where(singular, jnp.inf, _ratio(largest, smallest))


def _ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.where(b == 0, jnp.inf, a / jnp.where(b == 0, jnp.ones_like(b), b))
