"""The Gram matrix Q Q^T of a layer: the smaller matrix where outputs are few and weights many, at half the digits."""

from typing import Any

import jax
import jax.numpy as jnp

from spectrax import vectors
from spectrax.networks.landscape.factors import check_size, factors, multiplies_one_vector
from spectrax.networks.landscape.operators import LayerProblem, layer_problem, where_finite
from spectrax.operators import LinearOperator
from spectrax.operators.precision import in_working_precision
from spectrax.spectrum.functions import power_of_two

PyTree = Any


def layer_gram(
    net: Any, params: PyTree, layer: str, x: PyTree, /, *, batched: bool = False, bias: bool = False,
    max_bytes: int | None = None,
) -> jax.Array:  # fmt: skip
    """Return the matrix Q Q^T of a layer, over the outputs of all samples.

    For a layer that multiplies one vector, with the input z_g at sample g and M_g D_g behind it, the block of two
    samples is <z_g, z_h> M_g D_g D_h M_h^T, with a bias (<z_g, z_h> + 1) M_g D_g D_h M_h^T; otherwise products with Q
    and Q^T give it. The sum over all layers, with their biases, is the empirical neural tangent kernel of the network's
    dense and convolutional layers. Squared singular values have half the digits: below sqrt(eps) times the largest one
    nothing is left of them, and `layer_spectrum` finds them from Q itself where that is possible.

    Args:
        net: As in `layer_operator`.
        params: As in `layer_operator`.
        layer: As in `layer_operator`.
        x: As in `layer_operator`.
        batched: As in `layer_operator`.
        bias: As in `layer_operator`.
        max_bytes: How large the matrix may be, in place of the limits on shapes.

    Returns:
        Shape (samples * outputs, samples * outputs), symmetric (Hermitian for complex networks); the outputs of the
        first sample come first, in the order of `jax.tree.leaves`.

    Raises:
        TypeError: As `layer_operator`.
        ValueError: As `layer_operator`; or if the matrix is larger than the limits or than `max_bytes`.

    Cost:
        For a layer that multiplies one vector min(outputs, units) products for each sample, and a product of two
        matrices of (samples * outputs) x units. Otherwise samples * outputs products with Q and with Q^T.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> f = lambda params, x: params["w"] @ x
        >>> x = jnp.array([[3.0, 4.0], [0.0, 1.0]])
        >>> sx.landscape.layer_gram(f, {"w": jnp.ones((1, 2))}, "w", x, batched=True).tolist()
        [[25.0, 4.0], [4.0, 1.0]]

    Source:
        As `layer_operator`; Jacot, Gabriel, Hongler 2018 (arXiv:1806.07572) for the kernel.
    """
    problem = layer_problem(net, params, layer, x, batched=batched)
    Q = problem.operator(bias=bias)
    return where_finite(problem.output(), gram_of(problem, Q, bias=bias, max_bytes=max_bytes))


def gram_of(problem: LayerProblem, Q: LinearOperator, *, bias: bool, max_bytes: int | None) -> jax.Array:
    """Return Q Q^T of a layer."""
    check_gram_size(problem, Q, max_bytes)
    if multiplies_one_vector(problem.site):
        return _product(*factors(problem, bias=bias))
    Q = in_working_precision(Q)
    gram = (Q @ Q.H).to_dense()
    return (gram + gram.conj().T) / 2


def check_gram_size(problem: LayerProblem, Q: LinearOperator, max_bytes: int | None) -> None:
    """Raise `ValueError` if Q Q^T is too large."""
    check_size(problem.name, (Q.shape[0], Q.shape[0]), Q.dtype, max_bytes, "or take fewer samples")


def gram_values(problem: LayerProblem, Q: LinearOperator, *, bias: bool, max_bytes: int | None) -> jax.Array:
    """Return the square roots of the eigenvalues of Q Q^T, descending; NaN where it is not finite."""
    check_gram_size(problem, Q, max_bytes)
    scale = jnp.ones((), vectors.real_dtype(vectors.working_dtype(Q.dtype)))
    if multiplies_one_vector(problem.site):  # scaled, so that squares neither overflow nor vanish
        inputs, after = factors(problem, bias=bias)
        own = power_of_two(inputs), power_of_two(after)
        scale = scale * own[0] * own[1]
        gram = _product(inputs / own[0].astype(inputs.dtype), after / own[1].astype(after.dtype))
    else:
        gram = gram_of(problem, Q, bias=bias, max_bytes=max_bytes)
    finite = jnp.all(jnp.isfinite(gram))
    squares = jnp.linalg.eigvalsh(jnp.where(finite, gram, 0))[::-1]
    positive = squares > 0
    roots = jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1)), 0)
    return roots * jnp.where(finite, scale, jnp.nan)


def _product(inputs: jax.Array, after: jax.Array) -> jax.Array:
    samples, outputs, units = after.shape
    rows = after.reshape(-1, units)
    blocks = jnp.matmul(rows, rows.conj().T, precision=vectors.HIGHEST)
    inner = jnp.matmul(inputs, inputs.conj().T, precision=vectors.HIGHEST)
    gram = blocks.reshape(samples, outputs, samples, outputs) * inner[:, None, :, None]
    return gram.reshape(samples * outputs, -1)
