"""The curvature of the softmax cross-entropy in one layer's weights, between bounds from singular values."""

from typing import Any

import jax
import jax.numpy as jnp

from spectrax import vectors
from spectrax.networks.landscape.factors import values_of
from spectrax.networks.landscape.operators import layer_problem
from spectrax.networks.landscape.quadratic import is_quadratic
from spectrax.spectrum.functions import materializable
from spectrax.theory.perturbation import Bound
from spectrax.theory.perturbation.bounds import bound

PyTree = Any


def cross_entropy_bounds(
    net: Any, params: PyTree, layer: str, x: PyTree, /, *, batched: bool = False, bias: bool = False,
    max_bytes: int | None = None,
) -> Bound:  # fmt: skip
    """Bound the eigenvalues of the cross-entropy's Hessian in one layer's weights by singular values.

    With logits that are affine in the weights, f = Q vec(W) + q, the cross-entropy with a softmax is convex in them,
    and its Hessian is Q^T S Q with S = diag(p) - p p^T for the probabilities p, whatever the labels are. With the
    projection P = I - 1 1^T / m for m classes, and s_i the singular values of P Q,

        p_min s_i^2 <= lambda_i <= min(p_max, 1/2) s_i^2.

    For many samples (or positions: the classes are along the output's last axis) P and S act on each, p_min and p_max
    are those of all, and the loss is the sum.

    Args:
        net: As in `layer_operator`; its output is an array of logits.
        params: As in `layer_operator`.
        layer: As in `layer_operator`.
        x: As in `layer_operator`.
        batched: As in `layer_operator`.
        bias: As in `layer_operator`.
        max_bytes: How large Q may be, as in `singular_values`.

    Returns:
        A `Bound` on the eigenvalues, descending, shape (min(outputs, weights),), with their actual values. It applies
        if the network is piecewise affine.

    Raises:
        TypeError: As `layer_operator`.
        ValueError: As `layer_operator`; or if the output is no array of at least two classes, or Q is too large.

    Cost:
        Q is made dense, and two decompositions.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> f = lambda params, x: params["w"] @ x
        >>> found = sx.landscape.cross_entropy_bounds(f, {"w": jnp.zeros((2, 2))}, "w", jnp.array([3.0, 4.0]))
        >>> [round(float(each[0]), 4) for each in (found.lower, found.actual, found.upper)]
        [12.5, 12.5, 12.5]

    Source:
        S >= p_min P and S <= p_max P by comparing the quadratic forms sum p_a (v_a - mean)^2 with sum v_a^2 on vectors
        of mean zero, |S| <= 1/2 by Gershgorin; then Weyl's monotonicity.
    """
    problem = layer_problem(net, params, layer, x, batched=batched)
    Q = problem.operator(bias=bias)
    out = Q.out_struct
    if not isinstance(out, jax.ShapeDtypeStruct) or len(out.shape) < 1 + batched or out.shape[-1] < 2:
        raise ValueError(f"the output must be one array with the logits of at least two classes, got {out}")
    materializable(Q, max_bytes)  # or raises
    weight = problem.weights(bias=bias)
    logits = problem.function(bias=bias)(weight, problem.arrays, problem.point)
    dtype = vectors.working_dtype(out.dtype)
    p = jax.nn.softmax(logits.astype(dtype))
    rows = Q.to_dense().astype(dtype).reshape(*out.shape, -1)
    # S = C^T C with C = diag(sqrt p) (I - 1 p^T): no cancellation, and singular values instead of eigenvalues
    means = jnp.sum(p[..., None] * rows, axis=-2, keepdims=True)
    weighted = jnp.sqrt(p)[..., None] * (rows - means)
    centred = rows - jnp.mean(rows, axis=-2, keepdims=True)
    s, actual = (values_of(each.reshape(Q.shape)) ** 2 for each in (centred, weighted))
    return bound(
        "softmax", "eigenvalues of the Hessian", "f affine in the weights: p_min s_i(P Q)^2 <= lambda_i(H) <= "
        "min(p_max, 1/2) s_i(P Q)^2",
        applies=is_quadratic(problem), lower=jnp.min(p) * s, upper=jnp.minimum(jnp.max(p), 0.5) * s,
        actual=actual, round_off=10 * max(Q.shape) * vectors.eps((Q.in_struct, out)) * s[0],
    )  # fmt: skip
