"""The penalty that is a sum over maps of something that is computed anew at every step."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from spectrax.operators import LinearOperator
from spectrax.regularizers.maps import Maps, MatrixAxes
from spectrax.regularizers.penalty import (
    Options,
    Penalty,
    PenaltyState,
    check_key,
    nothing_measured,
    options_of,
    own_key,
    penalty_of,
    total,
)

PyTree = Any
Value = Callable[[LinearOperator, jax.Array | None], jax.Array]


def sum_penalty(
    value: Value,
    maps: Maps | MatrixAxes | None,
    *,
    mask: Callable[[str], bool] | None,
    batched: bool,
    num_samples: int | None,
    random: Callable[[LinearOperator], bool] = lambda operator: False,
    combine: Callable[[list[jax.Array]], jax.Array] = total,
) -> Penalty:
    """Return the sum over maps of a function of each.

    Args:
        value: A function of a map and of a PRNG key, which is None where `random` says that it takes none.
        maps: As in `condition_number_penalty`, and so are the others.
        mask: Which maps to act on.
        batched: Whether `maps` takes one sample.
        num_samples: How many samples of the batch are used.
        random: Whether the value of a map is estimated from random numbers.
        combine: What is done with the values in place of adding them.

    Returns:
        The penalty's functions. No singular value is measured: all measurements are NaN.
    """
    build = _Sum(value, random, combine, options_of(maps, mask, batched, num_samples))
    return penalty_of(build)


@dataclasses.dataclass(frozen=True)
class _Sum:
    value: Value
    random: Callable[[LinearOperator], bool]
    combine: Callable[[list[jax.Array]], jax.Array]
    options: Options

    def init(self, params: PyTree, key: jax.Array | None, **batch: PyTree) -> PenaltyState:
        key = own_key(key)
        names: Any = ("jacobian",)
        if not self.options.batched:
            names = operators = self.options.operators(params)
            self._check_key(key, operators)
        return PenaltyState(jnp.zeros((), jnp.int32), key, {}, nothing_measured(names, params), {})

    def renew(self, params: PyTree, state: PenaltyState) -> PenaltyState:
        del params
        return state

    def kinds(self, params: PyTree, **batch: PyTree) -> dict[str, str]:
        if self.options.batched:
            return {"jacobian": "exact"}
        operators = jax.eval_shape(self.options.operators, params)
        return {name: "estimate" if self.random(operator) else "exact" for name, operator in operators.items()}

    def apply(self, params: PyTree, state: PenaltyState, **batch: PyTree) -> tuple[jax.Array, PenaltyState]:
        key = None if state.key is None else jax.random.fold_in(state.key, state.applied)
        next_state = state._replace(applied=state.applied + 1)
        if self.options.batched:
            return jnp.mean(self.options.per_sample(self._total, params, batch, key)), next_state
        return self._total(self.options.operators(params), key), next_state

    def _total(self, operators: dict[str, LinearOperator], key: jax.Array | None) -> jax.Array:
        self._check_key(key, operators)
        values = []
        for index, operator in enumerate(operators.values()):
            own = jax.random.fold_in(key, index) if key is not None and self.random(operator) else None
            values.append(self.value(operator, own))
        return self.combine(values)

    def _check_key(self, key: jax.Array | None, operators: dict[str, LinearOperator]) -> None:
        needing = [name for name, operator in operators.items() if self.random(operator)]
        check_key(key, "estimate the penalty on", needing)
