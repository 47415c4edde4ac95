"""The penalty on the largest curvature of a loss, by a vector that is followed from step to step."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from spectrax import checks, explicit_axes, vectors
from spectrax.operators.curvature_products import gauss_newton_product, hessian_product
from spectrax.regularizers.blocks import Blocks
from spectrax.regularizers.penalty import (
    Penalty,
    PenaltyState,
    accepted,
    check_key,
    nothing_measured,
    own_key,
    penalty_of,
)
from spectrax.spectrum import Lanczos, eigsh

PyTree = Any
_NAME = "curvature"


def sharpness_penalty(
    loss: Callable[..., jax.Array], /, *, model: Callable[..., PyTree] | None = None, num_steps: int = 4
) -> Penalty:
    r"""Penalise the largest eigenvalue of the Hessian of a loss, or of its Gauss-Newton matrix, in the parameters.

    At every step a few steps of Lanczos start from the eigenvector of the step before, so that it is followed while
    parameters and batch change. The value is v^T H v for the vector found, a lower bound of the eigenvalue that is
    close where the vector converged.

    Args:
        loss: `loss(params, **batch)`, a scalar; with `model` `loss(outputs, **batch)` of the model's outputs, convex in
            these.
        model: `model(params, **batch)`: take the Gauss-Newton matrix J^T H_loss J, which has no negative eigenvalue,
            in place of the Hessian.
        num_steps: How many products of the curvature with a vector are taken at a step, two at least.

    Returns:
        The penalty's functions. `apply` and the Optax update take the batch as keyword arguments, of which both
        functions are handed those that they name. In the measurements, under the name "curvature", `sigma_max` is the
        value (negative where no direction curves upwards) and `residual` \|H v - value v\| over its modulus.

    Raises:
        ValueError: If `num_steps` is less than two; in `init` if there is no key.
        TypeError: If `num_steps` is not an integer.

    Cost:
        `num_steps` + 4 products with the Hessian, each some two gradients, and one derivative of such a product.

    Derivatives:
        v^T dH v, first order; third derivatives of the loss.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import spectrax as sx
        >>> penalty = sx.regularizers.sharpness_penalty(lambda w, x: jnp.sum(x * w**2) / 2)
        >>> w, x = jnp.ones(3), jnp.array([1.0, 5.0, 2.0])
        >>> state = penalty.init(w, jax.random.key(0))
        >>> round(float(penalty.apply(w, state, x=x)[0]), 4)
        5.0

    Source:
        Yao et al. 2020, arXiv 1912.07145, for Hessian products by power iteration; Cui et al. 2022, arXiv 2212.00311,
        for the penalty with the vector held fixed.
    """
    checks.positive_integer("num_steps", num_steps)
    if num_steps < 2:
        raise ValueError(f"num_steps must be at least 2, got {num_steps}")
    build = _Sharpness(loss, model, int(num_steps))
    return penalty_of(build, _specs)


@dataclasses.dataclass(frozen=True)
class _Sharpness:
    loss: Callable[..., jax.Array]
    model: Callable[..., PyTree] | None
    num_steps: int

    def init(self, params: PyTree, key: jax.Array | None, **batch: PyTree) -> PenaltyState:
        del batch
        check_key(key, "find the top eigenvector of", ["the Hessian"])
        key = own_key(key)
        assert key is not None
        chosen, _ = _split(params)
        start = vectors.normal(key, vectors.working_struct(vectors.structure(chosen)), 1)
        blocks = {_NAME: Blocks(start, None, jnp.zeros((2,), bool))}
        return PenaltyState(jnp.zeros((), jnp.int32), key, blocks, nothing_measured((_NAME,), params), {})

    def renew(self, params: PyTree, state: PenaltyState) -> PenaltyState:
        del params
        return state

    def kinds(self, params: PyTree, **batch: PyTree) -> dict[str, str]:
        del params, batch
        return {_NAME: "lower"}

    def apply(self, params: PyTree, state: PenaltyState, **batch: PyTree) -> tuple[jax.Array, PenaltyState]:
        chosen, merged = _split(params)
        assert state.key is not None

        def product(point: list[jax.Array], v: list[jax.Array]) -> list[jax.Array]:
            return self._product(lambda leaves: merged(leaves), point, v, batch)

        fixed, start = jax.lax.stop_gradient((chosen, state.blocks[_NAME].top))
        wide = vectors.working_struct(vectors.structure(chosen))
        operator = (lambda v: vectors.cast(product(fixed, vectors.cast(v, fixed)), wide)), wide
        found = eigsh(
            operator, 1, which="largest", key=jax.random.fold_in(state.key, state.applied), v0=start,
            method=Lanczos(subspace_size=min(self.num_steps, vectors.size(wide)), max_restarts=1, probe=False),
        )  # fmt: skip
        finite = jnp.all(jnp.isfinite(vectors.as_matrix(found.eigenvectors)))
        top = jax.lax.stop_gradient(vectors.select(finite, found.eigenvectors, start))
        v = vectors.row(top, 0)
        image = vectors.cast(product(chosen, vectors.cast(v, fixed)), wide)
        value = vectors.vdot(v, image)
        measured = state.measurements
        own = jax.lax.stop_gradient(value).astype(measured.sigma_max[_NAME].dtype)
        residual = vectors.norm(jax.lax.stop_gradient(vectors.subtract(image, vectors.scale(value, v))))
        ratio = jnp.where(own == 0, jnp.inf, residual / jnp.abs(jnp.where(own == 0, 1, own))).astype(own.dtype)
        converged = ratio <= 1e-2
        measured = measured._replace(sigma_max={_NAME: own}, residual={_NAME: ratio}, converged={_NAME: converged})
        blocks = {_NAME: Blocks(top, None, jnp.stack([converged, jnp.zeros((), bool)]))}
        return value, state._replace(applied=state.applied + 1, blocks=blocks, measurements=measured)

    def _product(self, merged, point, v, batch):
        """Return the curvature's product with a vector, at a point."""
        if self.model is None:
            return hessian_product(lambda leaves: self.loss(merged(leaves), **accepted(self.loss, batch)), point, v)
        model = functools.partial(self.model, **accepted(self.model, batch))
        loss = functools.partial(self.loss, **accepted(self.loss, batch))
        return gauss_newton_product(lambda leaves: model(merged(leaves)), loss, point, v)


def _specs(params: PyTree, state: PenaltyState) -> PenaltyState:
    block = state.blocks[_NAME]
    top = [PartitionSpec(None, *spec) for spec in explicit_axes.specs_of(_split(params)[0])]
    blocks = {_NAME: explicit_axes.replicated_specs(block)._replace(top=top)}
    return explicit_axes.replicated_specs(state)._replace(blocks=blocks)


def _split(params: PyTree) -> tuple[list[jax.Array], Callable[[list[jax.Array]], PyTree]]:
    """Return the leaves that are not integers, and the way back to the whole tree."""
    leaves, treedef = jax.tree.flatten(params)
    real = [jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) for leaf in leaves]

    def merged(chosen: list[jax.Array]) -> PyTree:
        remaining = iter(chosen)
        return treedef.unflatten([next(remaining) if own else leaf for own, leaf in zip(real, leaves, strict=True)])

    return [leaf for own, leaf in zip(real, leaves, strict=True) if own], merged
