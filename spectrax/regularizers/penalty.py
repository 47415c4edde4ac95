"""What a penalty is: a set of pure functions, a state of arrays, and the maps that it acts on."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from spectrax import checks, explicit_axes
from spectrax.operators import LinearOperator
from spectrax.regularizers.blocks import Blocks
from spectrax.regularizers.maps import Maps, MatrixAxes, matrix_maps
from spectrax.regularizers.tracking import Track

PyTree = Any


class SpectralMeasurements(NamedTuple):
    """What a penalty saw of each map at its last step: dicts by name of scalars.

    Attributes:
        sigma_max: The largest Ritz value (singular value of the map on its kept vectors): a lower bound of the norm.
        sigma_min: The smallest Ritz value: an upper bound of the smallest singular value, or an estimate (`kinds`).
        condition_number: Their ratio; inf where sigma_min is at round-off, at most sqrt(max(m, n)) eps sigma_max.
        residual: The residual of sigma_min divided by sigma_min; NaN for an estimate.
        sigma_max_error: Estimated relative error of sigma_max at this step.
        sigma_min_error: The same for sigma_min; inf where it is at round-off, NaN where sigma_min is an estimate.
        converged: Whether these errors, but for round-off, are within the penalty's tolerance (0.01 without one): False
            says that the values were lost, as far as residuals show it.
    """

    sigma_max: dict[str, jax.Array]
    sigma_min: dict[str, jax.Array]
    condition_number: dict[str, jax.Array]
    residual: dict[str, jax.Array]
    sigma_max_error: dict[str, jax.Array]
    sigma_min_error: dict[str, jax.Array]
    converged: dict[str, jax.Array]


class PenaltyState(NamedTuple):
    """What a penalty carries from step to step: arrays only, so that it can be checkpointed and sharded.

    Attributes:
        applied: Number of `apply` calls, int32; not called `count`, since Optax's states have one each.
        key: A PRNG key, or None.
        blocks: Singular vectors by name of the map.
        measurements: What the last step saw.
        tracks: What is kept of explicit matrices beside their blocks, by shape, with a tolerance only.
    """

    applied: jax.Array
    key: jax.Array | None
    blocks: dict[str, Blocks]
    measurements: SpectralMeasurements
    tracks: dict[str, Track]


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


Rule = Callable[[PyTree, PenaltyState], PenaltyState]


class Build(Protocol):
    """The functions of a penalty, for arrays on one device or on automatic axes."""

    @property
    def init(self) -> Callable[..., PenaltyState]: ...

    @property
    def apply(self) -> Callable[..., tuple[jax.Array, PenaltyState]]: ...

    @property
    def renew(self) -> Callable[..., PenaltyState]: ...

    @property
    def kinds(self) -> Callable[..., dict[str, str]]: ...


def penalty_of(build: Build, rule: Rule = lambda params, state: explicit_axes.replicated_specs(state)) -> Penalty:
    """Return a penalty whose functions take parameters on any mesh.

    Args:
        build: The functions.
        rule: A function of the parameters and of the first state that gives the specs of that state's arrays on a mesh
            with explicit axes.

    Returns:
        The penalty. Its value is a copy on each device, and its state keeps the shardings that it came with.
    """
    return Penalty(
        explicit_axes.with_init_specs(build.init, rule),
        explicit_axes.with_specs(
            build.apply, lambda params, state, **_: (PartitionSpec(), explicit_axes.specs_of(state))
        ),
        explicit_axes.with_specs(build.renew, lambda params, state: explicit_axes.specs_of(state)),
        explicit_axes.with_init_specs(build.kinds),
    )


@dataclasses.dataclass(frozen=True)
class Options:
    """The maps that a penalty acts on."""

    maps: Maps
    mask: Callable[[str], bool] | None
    batched: bool
    num_samples: int | None

    def operators(self, params: PyTree, **batch: PyTree) -> dict[str, LinearOperator]:
        """Return the operators by name, without those that the mask leaves out."""
        operators = self.maps(params, **batch)
        if not isinstance(operators, dict) or not all(isinstance(op, LinearOperator) for op in operators.values()):
            raise TypeError(f"maps must return a dict of names and LinearOperators, got {operators!r}")
        chosen = {name: op for name, op in operators.items() if self.mask is None or self.mask(name)}
        if not chosen:
            raise ValueError(f"the mask leaves none of the maps {', '.join(operators) or '(there are none)'}")
        checks.automatic_axes("a map", chosen)
        return chosen

    def per_sample(self, function: Callable, params: PyTree, batch: dict[str, PyTree], key: jax.Array | None) -> Any:
        """Evaluate function(operators, key) for every sample of the batch, each with a key of its own."""
        batch = accepted(self.maps, batch)
        if not batch:
            names = ", ".join(inspect.signature(self.maps).parameters)
            raise ValueError(f"batched=True needs the samples as keyword arguments: some of {names}")
        batch = jax.tree.map(lambda leaf: leaf[: self.num_samples], batch)
        count = jax.tree.leaves(batch)[0].shape[0]
        keys = None if key is None else jax.random.split(key, count)
        return jax.vmap(lambda sample, own: function(self.operators(params, **sample), own))(batch, keys)


def options_of(
    maps: Maps | MatrixAxes | None, mask: Callable[[str], bool] | None, batched: bool, num_samples: int | None
) -> Options:
    """Return the maps that a penalty acts on, from what its maker was given.

    Args:
        maps: A function from params to named operators, or matrix axes; None for the default ones.
        mask: Which of the names are penalised; None for all.
        batched: Whether the maps are those of one sample of a batch.
        num_samples: How many samples of the batch are used; None for all.

    Returns:
        The options.

    Raises:
        ValueError: If `num_samples` is not positive, or given without `batched`.
        TypeError: If maps are neither a function nor axes.
    """
    if num_samples is not None:
        checks.positive_integer("num_samples", num_samples)
        if not batched:
            raise ValueError("num_samples is for batched=True only")
    if maps is None or isinstance(maps, MatrixAxes):
        maps = matrix_maps(maps)
    if not callable(maps):
        raise TypeError(f"maps must be a function from params to named operators or MatrixAxes, got {maps!r}")
    return Options(maps, mask, batched, num_samples)


def accepted(function: Callable, batch: dict[str, PyTree]) -> dict[str, PyTree]:
    """Return those keyword arguments that a function names: others are for other transformations of a chain."""
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return batch
    return {name: leaf for name, leaf in batch.items() if name in parameters}


def own_key(key: jax.Array | None) -> jax.Array | None:
    """Return a copy of a PRNG key for a state, which may be donated to a compiled step while its user keeps the key.

    Args:
        key: A PRNG key or None.

    Returns:
        The copy.

    Raises:
        TypeError: If it is neither.
    """
    if key is None:
        return None
    checks.key("key", key)
    return jnp.copy(key)


def nothing_measured(names: Any, params: PyTree) -> SpectralMeasurements:
    """Return NaN in the dtype that the measurements will have, so that the state can be carried through a scan."""
    dtypes = [jnp.result_type(leaf) for leaf in jax.tree.leaves(params)]
    wide = any(jnp.issubdtype(dtype, jnp.inexact) and jnp.finfo(dtype).bits == 64 for dtype in dtypes)

    def nan():
        return {name: jnp.full((), jnp.nan, jnp.float64 if wide else jnp.float32) for name in names}

    return SpectralMeasurements(nan(), nan(), nan(), nan(), nan(), nan(), {name: jnp.zeros((), bool) for name in names})


def total(values: Any) -> jax.Array:
    """Return the sum of some scalars, in their own dtype."""
    return functools.reduce(jnp.add, values)


def check_key(key: jax.Array | None, purpose: str, needing: Sequence[str]) -> None:
    """Refuse a missing PRNG key where some maps need one.

    Args:
        key: A PRNG key or None.
        purpose: What it is for, as in "find singular vectors of".
        needing: The names of the maps that need one.

    Raises:
        ValueError: If it is None and there is such a map.
    """
    if key is None and needing:
        names = ", ".join(needing)
        raise ValueError(f"a PRNG key (for instance key=jax.random.key(0)) is needed to {purpose} {names}")
