"""Penalties on the distance of linear maps from orthogonality."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from spectrax import checks, vectors
from spectrax.operators import LinearOperator
from spectrax.operators.conversion import MatrixOperator
from spectrax.operators.precision import in_working_precision
from spectrax.regularizers.blocks import short_side
from spectrax.regularizers.maps import Maps, MatrixAxes
from spectrax.regularizers.penalty import Options, Penalty, PenaltyState, nothing_measured, options_of, total

PyTree = Any


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
    build = _Orthogonality(num_probes, options_of(maps, mask, batched, num_samples))
    return Penalty(build.init, build.apply, build.renew, build.kinds)


@dataclasses.dataclass(frozen=True)
class _Orthogonality:
    """A penalty on the Frobenius distance between the Gram operator and the identity."""

    num_probes: int
    options: Options

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
        return PenaltyState(jnp.zeros((), jnp.int32), key, {}, nothing_measured(names, params))

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
                lambda operators: total(_distance(short_side(op).to_dense()) for op in operators.values()),
                params,
                batch,
            )
            return jnp.mean(values), next_state
        key = None if state.key is None else jax.random.fold_in(state.key, state.applied)
        operators = self.options.operators(params)
        return total(self._one(op, key, index) for index, op in enumerate(operators.values())), next_state

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
