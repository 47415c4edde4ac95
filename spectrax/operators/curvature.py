"""Curvature of a loss in a network's parameters: symmetric operators, known by their products with vectors.

Over mini-batched data an operator is the mean of those of the batches, summed in their order by a `scan`: memory is
that of one batch.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from spectrax import checks, vectors
from spectrax.operators.jacobian import jacobian_operator
from spectrax.operators.linear_operator import LinearOperator, register
from spectrax.programs.hoisting import Direct, Program, hoist

PyTree = Any


@register(children=("consts", "params", "batches", "args"), static=("program", "in_struct", "out_struct"))
class CurvatureOperator(LinearOperator):
    """A symmetric operator on the space of the parameters; made by the functions of this module."""

    program: Program | Direct

    def __init__(self, product: Callable, params: PyTree, batches: PyTree, args: tuple):
        """Trace product(params, v, batch, *args), or product(params, v, *args) where there are no batches."""
        params = jax.tree.map(jnp.asarray, params)
        for leaf in jax.tree.leaves(params):
            checks.inexact("params", leaf.dtype)
            if vectors.is_complex(leaf.dtype):
                raise TypeError(f"params must be real, got {leaf.dtype.name}: curvature of complex ones is not defined")
        self.in_struct = self.out_struct = vectors.structure(params)
        one = ()
        if batches is not None:
            batches = jax.tree.map(jnp.asarray, batches)
            checks.leading_axis("batches", batches)
            one = (jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), batches),)
        with jax.default_matmul_precision("highest"):
            hoisted = hoist(product, self.in_struct, self.in_struct, *one, *vectors.structure(args))
        self.program, self.consts = hoisted.program, hoisted.consts
        self.params, self.batches, self.args = params, batches, args

    def products(self):
        if self.batches is None:
            start = vectors.zeros(self.in_struct)
            with jax.default_matmul_precision("highest"):
                _, linear = jax.linearize(lambda v: self.program(self.consts, self.params, v, *self.args), start)

            def matvec(v):
                with jax.default_matmul_precision("highest"):
                    return linear(v)

            return matvec, matvec

        count = checks.leading_axis("batches", self.batches)

        def mean(v):
            def add(total, batch):
                with jax.default_matmul_precision("highest"):
                    return vectors.add(total, self.program(self.consts, self.params, v, batch, *self.args)), None

            total, _ = jax.lax.scan(add, vectors.zeros(self.in_struct), self.batches)
            return vectors.scale(1 / count, total)

        return mean, mean


@dataclasses.dataclass(frozen=True)
class _HessianProduct:
    loss: Callable[..., jax.Array]

    def __call__(self, params: PyTree, v: PyTree, *rest: Any) -> PyTree:
        return jax.jvp(jax.grad(lambda point: _scalar(self.loss(point, *rest))), (params,), (v,))[1]


@dataclasses.dataclass(frozen=True)
class _GaussNewtonProduct:
    model: Callable[..., PyTree]
    loss: Callable[..., jax.Array]

    def __call__(self, params: PyTree, v: PyTree, *rest: Any) -> PyTree:
        outputs, pushforward = jax.linearize(lambda point: self.model(point, *rest), params)
        slope = jax.grad(lambda outputs: _scalar(self.loss(outputs, *rest)))
        curved = jax.jvp(slope, (outputs,), (pushforward(v),))[1]
        (pulled,) = jax.linear_transpose(pushforward, params)(curved)
        return pulled


@dataclasses.dataclass(frozen=True)
class _SampleFisherProduct:
    losses: Callable[..., jax.Array]

    def __call__(self, params: PyTree, v: PyTree, *rest: Any) -> PyTree:
        values, pushforward = jax.linearize(lambda point: self.losses(point, *rest), params)
        if getattr(values, "ndim", None) != 1:
            raise ValueError(f"losses must return one number for each sample, shape (count,), got {_shapes(values)}")
        (pulled,) = jax.linear_transpose(pushforward, params)(pushforward(v) / values.shape[0])
        return pulled


@dataclasses.dataclass(frozen=True)
class _Categorical:
    """The negative log-likelihood whose Hessian is that of any label: log sum exp of the logits, mean over samples."""

    def __call__(self, logits: jax.Array, *rest: Any) -> jax.Array:
        del rest
        if getattr(logits, "ndim", 0) < 1:
            raise ValueError(f"model must return logits, classes along the last axis, got {_shapes(logits)}")
        return jnp.mean(jax.nn.logsumexp(logits, axis=-1))


@dataclasses.dataclass(frozen=True)
class _Gaussian:
    """Half the squared outputs, mean over the leading axis: the Hessian of half the squared error of any target."""

    def __call__(self, outputs: PyTree, *rest: Any) -> jax.Array:
        del rest
        leaves = jax.tree.leaves(outputs)
        if not leaves or any(leaf.ndim == 0 for leaf in leaves):
            raise ValueError(f"model must return outputs with samples along the leading axis, got {_shapes(outputs)}")
        squares = [jnp.sum(jnp.square(leaf)) / (2 * leaf.shape[0]) for leaf in leaves]
        return jnp.sum(jnp.stack(squares))


_LIKELIHOODS = {"categorical": _Categorical(), "gaussian": _Gaussian()}


def hessian_operator(loss: Callable, params: PyTree, /, *args: Any, batches: PyTree = None) -> LinearOperator:
    """Return the Hessian of loss(params, *args) in the parameters as a matrix-free operator.

    Args:
        loss: Returns a number; with `batches` of loss(params, batch, *args), and the operator is the mean over them.
        params: A pytree of real arrays.
        *args: Further arguments.
        batches: Pytree of mini-batches, stacked along the leading axis of every leaf; None for none.

    Returns:
        A symmetric operator from the structure of the parameters to itself.

    Raises:
        TypeError: If a parameter is complex or an integer.
        ValueError: If the loss is no scalar, or the leading axes of the batches differ.

    Cost:
        A product takes about four evaluations of the loss, for each batch in turn; without batches what does not depend
        on the vector is computed once for each call of `products`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import spectrax as sx
        >>> H = sx.hessian_operator(lambda w: w[0] ** 2 * w[1], jnp.array([1.0, 3.0]))
        >>> H.to_dense().tolist()
        [[6.0, 2.0], [2.0, 0.0]]

    Source:
        Pearlmutter 1994, "Fast exact multiplication by the Hessian".
    """
    return CurvatureOperator(_HessianProduct(loss), params, batches, args)


def ggn_operator(
    model: Callable, loss: Callable, params: PyTree, /, *args: Any, batches: PyTree = None
) -> LinearOperator:
    """Return the generalised Gauss-Newton matrix J^T H J of loss(model(params, *args), *args).

    J is the Jacobian of the model's outputs in the parameters and H the Hessian of the loss in the outputs.

    Args:
        model: Returns the outputs, a pytree.
        loss: Returns a number, convex in the outputs if the operator is to be positive semidefinite.
        params: A pytree of real arrays.
        *args: Further arguments of both.
        batches: As in `hessian_operator`: model(params, batch, *args) and loss(outputs, batch, *args).

    Returns:
        A symmetric operator from the structure of the parameters to itself.

    Raises:
        TypeError: As in `hessian_operator`.
        ValueError: As in `hessian_operator`.

    Cost:
        As in `hessian_operator`, about three evaluations of the model.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> model, loss = lambda w, x, y: x @ w, lambda z, x, y: jnp.sum((z - y) ** 2) / 2
        >>> x, y = jnp.array([[1.0, 2.0]]), jnp.array([0.0])
        >>> sx.ggn_operator(model, loss, jnp.zeros(2), x, y).to_dense().tolist()
        [[1.0, 2.0], [2.0, 4.0]]

    Source:
        Schraudolph 2002, "Fast curvature matrix-vector products for second-order gradient descent".
    """
    return CurvatureOperator(_GaussNewtonProduct(model, loss), params, batches, args)


def fisher_operator(
    model: Callable, params: PyTree, /, *args: Any, likelihood: str, batches: PyTree = None
) -> LinearOperator:
    """Return the Fisher information matrix of a model's distribution of labels, mean over samples.

    The expectation is taken over the model's own labels, in closed form: no labels are needed.

    Args:
        model: Returns logits, samples and other axes leading and classes along the last axis ("categorical"); or the
            means of normal distributions of variance one, samples along the leading axis ("gaussian").
        params: A pytree of real arrays.
        *args: Further arguments of the model.
        likelihood: "categorical" or "gaussian".
        batches: As in `hessian_operator`: model(params, batch, *args).

    Returns:
        A symmetric positive semidefinite operator from the structure of the parameters to itself.

    Raises:
        TypeError: As in `hessian_operator`.
        ValueError: As in `hessian_operator`; for another likelihood.

    Cost:
        As in `ggn_operator`.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> F = sx.fisher_operator(lambda w, x: x @ w, jnp.zeros((1, 2)), jnp.ones((3, 1)), likelihood="categorical")
        >>> F.to_dense().tolist()
        [[0.25, -0.25], [-0.25, 0.25]]

    Source:
        Martens 2020, arXiv 1412.1193: for these likelihoods it equals the generalised Gauss-Newton matrix.
    """
    checks.choice("likelihood", likelihood, tuple(_LIKELIHOODS))
    return CurvatureOperator(_GaussNewtonProduct(model, _LIKELIHOODS[likelihood]), params, batches, args)


def empirical_fisher_operator(
    losses: Callable, params: PyTree, /, *args: Any, batches: PyTree = None
) -> LinearOperator:
    """Return the mean of g g^T over the gradients g of the samples' losses.

    Args:
        losses: Returns the losses of the samples, shape (count,).
        params: A pytree of real arrays.
        *args: Further arguments.
        batches: As in `hessian_operator`: losses(params, batch, *args).

    Returns:
        A symmetric positive semidefinite operator from the structure of the parameters to itself.

    Raises:
        TypeError: As in `hessian_operator`.
        ValueError: As in `hessian_operator`; if the losses are no vector.

    Cost:
        About three evaluations of the losses a product; the gradients are not formed.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> x, y = jnp.array([[1.0], [2.0]]), jnp.array([1.0, 0.0])
        >>> losses = lambda w, x, y: (x @ w - y) ** 2 / 2
        >>> sx.empirical_fisher_operator(losses, jnp.ones(1), x, y).to_dense().tolist()
        [[8.0]]

    Source:
        Kunstner et al. 2019, arXiv 1905.12558, where it parts from the Fisher information matrix.
    """
    return CurvatureOperator(_SampleFisherProduct(losses), params, batches, args)


def ntk_operator(function: Callable, params: PyTree, /, *args: Any) -> LinearOperator:
    """Return the neural tangent kernel J J^T of f(params, *args), with J its Jacobian in the parameters.

    Args:
        function: Returns the outputs of all samples, a pytree.
        params: A pytree of floating-point arrays.
        *args: Further arguments, as the samples.

    Returns:
        A symmetric positive semidefinite operator from the structure of the outputs to itself.

    Raises:
        TypeError: As in `jacobian_operator`.

    Cost:
        A product takes about two evaluations of f, which is linearised once for each call of `products`.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> K = sx.ntk_operator(lambda w, xs: xs @ w, jnp.zeros(2), jnp.array([[1.0, 2.0], [0.0, 1.0]]))
        >>> K.to_dense().tolist()
        [[5.0, 2.0], [2.0, 1.0]]

    Source:
        Jacot et al. 2018, arXiv 1806.07572.
    """
    J = jacobian_operator(function, params, *args)
    return J @ J.H


def _scalar(value: Any) -> jax.Array:
    if jnp.shape(value) != ():
        raise ValueError(f"loss must return one number, got {_shapes(value)}")
    return value


def _shapes(tree: PyTree) -> str:
    return f"shapes {[jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]}"
