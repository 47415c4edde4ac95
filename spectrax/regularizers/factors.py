"""Penalties on kernels that are trained as factors U diag(s) V, by `parametrizations.factored`."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from spectrax import checks, vectors
from spectrax.regularizers.maps import path_name
from spectrax.regularizers.penalty import Penalty, PenaltyState, nothing_measured, own_key, penalty_of, total

PyTree = Any
Factors = Mapping[str, jax.Array]


def factor_orthogonality_penalty(*, mask: Callable[[str], bool] | None = None) -> Penalty:
    r"""Penalise factors that are not orthonormal, (\|U^H U - I\|_F^2 + \|V V^H - I\|_F^2) / r^2 for rank r.

    Args:
        mask: Which kernels to act on, by their paths; all by default.

    Returns:
        The penalty's functions, of parameters with dicts {"u", "s", "v"} in them, the raw ones of
        `sx.parametrizations.factored`. No singular value is measured.

    Raises:
        ValueError: When applied, if there is no such dict.

    Cost:
        Two Gram matrices for each kernel.

    Derivatives:
        Any order.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> raw = sx.parametrizations.factored().init(jnp.diag(jnp.array([3.0, 1.0])))
        >>> penalty = sx.regularizers.factor_orthogonality_penalty()
        >>> params = {"dense": raw | {"u": 2 * raw["u"]}}
        >>> round(float(penalty.apply(params, penalty.init(params, None))[0]), 4)
        4.5

    Source:
        Yang et al. 2020, arXiv 2004.09031, equation 4.
    """

    def value(raw: Factors) -> jax.Array:
        rank = raw["s"].shape[0]
        columns, rows = _wide(raw["u"]).reshape(-1, rank), _wide(raw["v"]).reshape(rank, -1)
        grams = vectors.matmul(vectors.adjoint(columns), columns), vectors.matmul(rows, vectors.adjoint(rows))
        return total(jnp.sum(jnp.square(jnp.abs(gram - jnp.eye(rank, dtype=gram.dtype)))) for gram in grams) / rank**2

    return _of_factors(value, mask)


def factor_sparsity_penalty(*, form: str = "hoyer", mask: Callable[[str], bool] | None = None) -> Penalty:
    r"""Penalise how many singular values of a factored kernel are not zero.

    Args:
        form: "l1": sum \|s_i\|; "hoyer": \|s\|_1 / \|s\|_2 - 1; "hoyer_square": \|s\|_1^2 / \|s\|_2^2 - 1. The last two
            do not depend on the scale: zero for one value that is not zero, sqrt(r) - 1 and r - 1 for r equal ones.
        mask: Which kernels to act on, by their paths; all by default.

    Returns:
        The penalty's functions, as of `factor_orthogonality_penalty`.

    Raises:
        ValueError: If `form` is none of the three; when applied, if there are no factors.

    Cost:
        A sum over s.

    Derivatives:
        First order where no value is zero, and finite ones everywhere: zero at s = 0.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> raw = sx.parametrizations.factored().init(jnp.diag(jnp.array([3.0, 2.0, 1.0, 0.0])))
        >>> penalty = sx.regularizers.factor_sparsity_penalty(form="hoyer_square")
        >>> round(float(penalty.apply(raw, penalty.init(raw, None))[0]), 5)
        1.57143

    Source:
        Yang et al. 2020, arXiv 2004.09031, equations 5 and 6.
    """
    checks.choice("form", form, ("l1", "hoyer", "hoyer_square"))

    def value(raw: Factors) -> jax.Array:
        s = _wide(raw["s"])
        if form == "l1":
            return jnp.sum(jnp.abs(s))
        peak = jax.lax.stop_gradient(jnp.max(jnp.abs(s)))  # the scale does not matter: no square overflows
        nonzero = ~(peak == 0)
        s = jnp.where(nonzero, s / jnp.where(nonzero, peak, 1), 1)
        one, square = jnp.sum(jnp.abs(s)), jnp.sum(jnp.square(s))
        found = one * jax.lax.rsqrt(square) if form == "hoyer" else jnp.square(one) / square
        return jnp.where(nonzero, found - 1, 0)

    return _of_factors(value, mask)


def _wide(leaf: jax.Array) -> jax.Array:
    return leaf.astype(vectors.working_dtype(leaf.dtype))


def _of_factors(value: Callable[[Factors], jax.Array], mask: Callable[[str], bool] | None) -> Penalty:
    def factors(params: PyTree) -> dict[str, Factors]:
        leaves = jax.tree.leaves_with_path(params, is_leaf=_is_factors)
        found = {path_name(path): leaf for path, leaf in leaves if _is_factors(leaf)}
        if not found:
            raise ValueError('no parameter is a dict of factors {"u", "s", "v"}, as parametrizations.factored has them')
        chosen = {name: leaf for name, leaf in found.items() if mask is None or mask(name)}
        if not chosen:
            raise ValueError(f"the mask leaves none of the factored kernels {', '.join(found)}")
        return chosen

    def init(params: PyTree, key: jax.Array | None, **batch: PyTree) -> PenaltyState:
        del batch
        key = own_key(key)
        return PenaltyState(jnp.zeros((), jnp.int32), key, {}, nothing_measured(factors(params), params), {})

    def apply(params: PyTree, state: PenaltyState, **batch: PyTree) -> tuple[jax.Array, PenaltyState]:
        del batch
        return total(map(value, factors(params).values())), state._replace(applied=state.applied + 1)

    def renew(params: PyTree, state: PenaltyState) -> PenaltyState:
        del params
        return state

    def kinds(params: PyTree, **batch: PyTree) -> dict[str, str]:
        del batch
        return dict.fromkeys(factors(params), "exact")

    return penalty_of(Penalty(init, apply, renew, kinds))


def _is_factors(tree: Any) -> bool:
    return isinstance(tree, Mapping) and set(tree) == {"u", "s", "v"}
