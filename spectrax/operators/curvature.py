"""Curvature of a loss in a network's parameters: symmetric operators, known by their products with vectors.

Over mini-batched data an operator is the mean of those of the batches, summed in their order by a `scan`: beside the
data, memory is that of one batch, for a derivative of the operator as well.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.core as jax_core
import jax.numpy as jnp

from spectrax import checks, explicit_axes, layouts, vectors
from spectrax.operators.curvature_products import described, gauss_newton_product, hessian_product, linearized
from spectrax.operators.host_operator import HostOperator, first_batch, is_source
from spectrax.operators.jacobian import jacobian_operator
from spectrax.operators.linear_operator import LinearOperator, register
from spectrax.programs.canonical import canonical
from spectrax.programs.hoisting import Direct, Program, hoist

PyTree = Any


@register(children=("consts", "params", "batches", "weights", "args"), static=("program", "in_struct", "out_struct"))
class CurvatureOperator(LinearOperator):
    """A symmetric operator on the space of the parameters; made by the functions of this module."""

    program: Program | Direct

    def __init__(self, product: Callable, params: PyTree, batches: PyTree, weights: Any, args: tuple):
        """Trace product(params, v, batch, *args), or product(params, v, *args) where there are no batches."""
        params = _checked(params)
        self.in_struct = self.out_struct = layouts.placed(vectors.structure(params), params)
        with _hint(batches), jax.default_matmul_precision("highest"):
            batches, weights, *one = _batched(batches, weights)
            hoisted = hoist(product, self.in_struct, self.in_struct, *one, *_structures(args))
        self.program, self.consts = hoisted.program, hoisted.consts
        self.params, self.batches, self.weights, self.args = params, batches, weights, args

    @property
    def hermitian(self):
        return True

    def products(self):
        if self.batches is None:
            start = vectors.zeros(self.in_struct)
            with jax.default_matmul_precision("highest"):
                _, linear = jax.linearize(lambda v: self.program(self.consts, self.params, v, *self.args), start)

            def matvec(v):
                with jax.default_matmul_precision("highest"):
                    return linear(v)

            return matvec, matvec

        def mean(v):
            given = (self.consts, self.params, v, self.batches, self.weights, self.args)
            run = functools.partial(_mean, self.program)  # a scan runs along no axis that is split on an explicit one
            return explicit_axes.with_automatic_axes(run, explicit_axes.specs_of(self.params), *given)

        return mean, mean

    def loop_products(self):
        """Return the product twice, linearisation and all in the form that a loop runs fastest."""
        product = canonical(lambda v: self.products()[0](v), self.in_struct)
        return product, product


def _operator(product: Callable, params: PyTree, batches: Any, weights: Any, args: tuple) -> LinearOperator:
    """Return the operator of product(params, v, batch, *args) over stacked batches, or over those of an iterator."""
    if not is_source(batches):
        return CurvatureOperator(product, params, batches, weights, args)
    params = _checked(params)
    if weights is not None:
        weights = jnp.asarray(weights)
        if weights.ndim != 1:
            raise ValueError(f"weights must be one number for each batch, shape (count,), got {weights.shape}")
        _check_weights(weights)
    (first, used), struct = first_batch(batches), vectors.structure(params)
    with jax.default_matmul_precision("highest"):
        hoisted = hoist(product, struct, struct, vectors.structure(first), *_structures(args))
    return HostOperator(hoisted.program, hoisted.consts, params, batches, weights, args, first, used)


def _checked(params: PyTree) -> PyTree:
    params = jax.tree.map(jnp.asarray, params)
    if not vectors.size(params):
        raise ValueError(f"params must hold at least one number, got {described(params)}")
    for leaf in jax.tree.leaves(params):
        checks.inexact("params", leaf.dtype)
        if vectors.is_complex(leaf.dtype):
            raise TypeError(f"params must be real, got {leaf.dtype.name}: curvature of complex ones is not defined")
    return params


def _check_weights(weights: jax.Array) -> None:
    if not jnp.issubdtype(weights.dtype, jnp.floating) and not jnp.issubdtype(weights.dtype, jnp.integer):
        raise TypeError(f"weights must be real numbers, got {weights.dtype.name}")
    if isinstance(weights, jax_core.Tracer):
        return
    with jax.ensure_compile_time_eval():
        if jnp.any(weights < 0):
            raise ValueError(f"weights must not be negative, got {weights.tolist()}")
        if not jnp.any(weights != 0):
            raise ValueError(f"weights must not all be zero, got {weights.tolist()}")


def _batched(batches: PyTree, weights: Any) -> tuple:
    """Return the batches and their weights as arrays, and behind them the structure of one batch, if there are any."""
    if batches is None:
        if weights is not None:
            raise ValueError("weights are those of the batches, and there are no batches")
        return None, None
    batches = jax.tree.map(jnp.asarray, batches)
    count = checks.leading_axis("batches", batches)
    if count == 0:
        raise ValueError(f"batches must hold at least one batch, got {described(batches)}")
    if weights is not None:
        weights = jnp.asarray(weights)
        if weights.shape != (count,):
            raise ValueError(f"weights must be one number for each batch, shape ({count},), got {weights.shape}")
        _check_weights(weights)
    return batches, weights, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), batches)


@contextlib.contextmanager
def _hint(batches: Any) -> Iterator[None]:
    """Add to an exception what a list of batches, which is stacked like any pytree, would have to be."""
    try:
        yield
    except Exception as error:
        if _looks_listed(batches):
            error.add_note(
                "batches is one pytree whose leaves have a leading axis of batches, or a function that returns an "
                f"iterator over them: if the {len(batches)} entries of this {type(batches).__name__} are batches, "
                "stack them by jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches), or give lambda: iter(batches)"
            )
        raise


def _looks_listed(batches: Any) -> bool:
    """Say whether the entries could be batches: alike, and more than the arrays of one tuple."""
    if not isinstance(batches, list | tuple) or not batches:
        return False
    structures = {jax.tree.structure(entry) for entry in batches}
    is_array = jax.tree_util.treedef_is_leaf(next(iter(structures)))
    return len(structures) == 1 and (isinstance(batches, list) or not is_array)


def _structures(args: tuple) -> tuple:
    checks.array_arguments(args)
    return vectors.structure(args)


@functools.partial(jax.jit, static_argnums=0)
def _mean(program, consts, params, v, batches, weights, args):
    """Return the weighted mean of the batches' products, one after the other, added up in the working dtype."""
    wide = vectors.working_struct(vectors.structure(params))

    # Rematerialised, so that a derivative of the sum keeps no more than one batch's intermediate results, either.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def term(batch, weight):
        with jax.default_matmul_precision("highest"):
            image = vectors.cast(program(consts, params, v, batch, *args), wide)
        return image if weight is None else vectors.scale(weight, image)

    def add(total, one):
        return vectors.add(total, term(*one)), None

    total, _ = jax.lax.scan(add, vectors.zeros(wide), (batches, weights))
    if weights is None:
        count = jax.tree.leaves(batches)[0].shape[0]
        mean = vectors.scale(1 / count, total)
    else:
        mean = jax.tree.map(lambda leaf: leaf / jnp.sum(weights.astype(leaf.dtype)), total)
    return vectors.cast(mean, params)


@dataclasses.dataclass(frozen=True)
class _HessianProduct:
    loss: Callable[..., jax.Array]

    def __call__(self, params: PyTree, v: PyTree, *rest: Any) -> PyTree:
        return hessian_product(lambda point: self.loss(point, *rest), params, v)


@dataclasses.dataclass(frozen=True)
class _GaussNewtonProduct:
    model: Callable[..., PyTree]
    loss: Callable[..., jax.Array]

    def __call__(self, params: PyTree, v: PyTree, *rest: Any) -> PyTree:
        model, loss = (lambda point: self.model(point, *rest)), (lambda outputs: self.loss(outputs, *rest))
        return gauss_newton_product(model, loss, params, v)


@dataclasses.dataclass(frozen=True)
class _SampleFisherProduct:
    losses: Callable[..., jax.Array]

    def __call__(self, params: PyTree, v: PyTree, *rest: Any) -> PyTree:
        values, pushforward, pullback = linearized("losses", lambda point: self.losses(point, *rest), params)
        if getattr(values, "ndim", None) != 1 or not len(values):
            raise ValueError(f"losses must return one number for each sample, shape (count,), got {described(values)}")
        return pullback(pushforward(v) / values.shape[0])


@dataclasses.dataclass(frozen=True)
class _Categorical:
    """The negative log-likelihood whose Hessian is that of any label: log sum exp of the logits, mean over samples."""

    def __call__(self, logits: jax.Array, *rest: Any) -> jax.Array:
        del rest
        if getattr(logits, "ndim", 0) < 1 or not logits.size:
            raise ValueError(f"model must return logits, classes along the last axis, got {described(logits)}")
        logits = logits.astype(vectors.working_dtype(logits.dtype))
        return jnp.mean(jax.nn.logsumexp(logits, axis=-1))


@dataclasses.dataclass(frozen=True)
class _Gaussian:
    """Half the squared outputs, mean over the leading axis: the Hessian of half the squared error of any target."""

    def __call__(self, outputs: PyTree, *rest: Any) -> jax.Array:
        del rest
        leaves = jax.tree.leaves(outputs)
        if not leaves or any(leaf.ndim == 0 or not leaf.shape[0] for leaf in leaves):
            raise ValueError(f"model must return outputs, samples along the leading axis, got {described(outputs)}")
        wide = max((vectors.working_dtype(leaf.dtype) for leaf in leaves), key=lambda dtype: jnp.finfo(dtype).bits)
        squares = [jnp.sum(jnp.square(leaf.astype(wide))) / (2 * leaf.shape[0]) for leaf in leaves]
        return jnp.sum(jnp.stack(squares))


_LIKELIHOODS = {"categorical": _Categorical(), "gaussian": _Gaussian()}


def hessian_operator(
    loss: Callable, params: PyTree, /, *args: Any, batches: PyTree = None, weights: Any = None
) -> LinearOperator:
    """Return the Hessian of loss(params, *args) in the parameters as a matrix-free operator.

    Args:
        loss: Returns a number; with `batches` of loss(params, batch, *args), and the operator is the mean over them.
        params: A pytree of real arrays.
        *args: Further arguments, pytrees of arrays.
        batches: Pytree of mini-batches, stacked along the leading axis of every leaf; None for none. Or a function
            that returns an iterator over them, the same ones in the same order at each call: the operator is then a
            `HostOperator`, whose products are passes over the data from the host, for the stepwise functions.
        weights: Weights of the batches, shape (count,), not negative; None for equal ones. The operator is the sum of
            weight times the batch's over the sum of the weights. Where the last batch is padded and the loss is a mean
            over what is no padding, the numbers of samples are the weights that make it the mean over all samples.

    Returns:
        A symmetric operator from the structure of the parameters to itself, in their dtypes. The batches' products are
        added up in 32 bits at least.

    Raises:
        TypeError: If a parameter is complex or an integer, a further argument is no array, or the loss returns
            anything but one real number.
        ValueError: If the loss returns an array with axes; if there are no parameters; if the batches' leading axes
            differ or are empty; if the weights do not fit them, or are known and one is negative or all are zero.

    Cost:
        A product takes about four evaluations of the loss, for each batch in turn; without batches what does not depend
        on the vector is computed once for each call of `products`.

    Derivatives:
        In the parameters, the batches, the weights and the further arguments. The gradient of a `custom_vjp` inside the
        loss is differentiated as its rule gives it; it must be the gradient of something, or else the Hessian is not
        symmetric, which is not checked.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import spectrax as sx
        >>> H = sx.hessian_operator(lambda w: w[0] ** 2 * w[1], jnp.array([1.0, 3.0]))
        >>> H.to_dense().tolist()
        [[6.0, 2.0], [2.0, 0.0]]

    Source:
        Pearlmutter 1994, "Fast exact multiplication by the Hessian".
    """
    return _operator(_HessianProduct(loss), params, batches, weights, args)


def ggn_operator(
    model: Callable, loss: Callable, params: PyTree, /, *args: Any, batches: PyTree = None, weights: Any = None
) -> LinearOperator:
    """Return the generalised Gauss-Newton matrix J^T H J of loss(model(params, *args), *args).

    J is the Jacobian of the model's outputs in the parameters and H the Hessian of the loss in the outputs.

    Args:
        model: Returns the outputs, a pytree.
        loss: Returns a number, convex in the outputs if the operator is to be positive semidefinite.
        params: A pytree of real arrays.
        *args: Further arguments of both.
        batches: As in `hessian_operator`: model(params, batch, *args) and loss(outputs, batch, *args).
        weights: As in `hessian_operator`.

    Returns:
        A symmetric operator from the structure of the parameters to itself.

    Raises:
        TypeError: As in `hessian_operator`; if the model returns anything but floating-point arrays.
        ValueError: As in `hessian_operator`.

    Cost:
        As in `hessian_operator`, about three evaluations of the model.

    Derivatives:
        As in `hessian_operator`. J v is the transpose of the model's vector-Jacobian product, so that a `custom_vjp`
        inside counts; its backward rule must be linear.

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
    return _operator(_GaussNewtonProduct(model, loss), params, batches, weights, args)


def fisher_operator(
    model: Callable, params: PyTree, /, *args: Any, likelihood: str, batches: PyTree = None, weights: Any = None
) -> LinearOperator:
    """Return the Fisher information matrix of a model's distribution of labels, mean over samples.

    The expectation is taken over the model's own labels, in closed form: no labels are needed.

    Args:
        model: Returns logits, samples and other axes leading and classes along the last axis ("categorical"); or the
            means of normal distributions of variance one, samples along the leading axis ("gaussian").
        params: A pytree of real arrays.
        *args: Further arguments of the model.
        likelihood: "categorical" or "gaussian".
        batches: As in `hessian_operator`: model(params, batch, *args). The mean in each batch is over all its samples:
            padding of constant outputs adds nothing but is counted, so multiply the operator by all over real samples.
        weights: As in `hessian_operator`.

    Returns:
        A symmetric positive semidefinite operator from the structure of the parameters to itself.

    Raises:
        TypeError: As in `ggn_operator`.
        ValueError: As in `hessian_operator`; for another likelihood; if there are no samples.

    Cost:
        As in `ggn_operator`.

    Derivatives:
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
    return _operator(_GaussNewtonProduct(model, _LIKELIHOODS[likelihood]), params, batches, weights, args)


def empirical_fisher_operator(
    losses: Callable, params: PyTree, /, *args: Any, batches: PyTree = None, weights: Any = None
) -> LinearOperator:
    """Return the mean of g g^T over the gradients g of the samples' losses.

    Args:
        losses: Returns the losses of the samples, shape (count,).
        params: A pytree of real arrays.
        *args: Further arguments.
        batches: As in `hessian_operator`: losses(params, batch, *args). As in `fisher_operator`, padding of constant
            loss adds nothing but is counted.
        weights: As in `hessian_operator`.

    Returns:
        A symmetric positive semidefinite operator from the structure of the parameters to itself.

    Raises:
        TypeError: As in `hessian_operator`; if the losses are no floating-point array.
        ValueError: As in `hessian_operator`; if the losses are no vector, or an empty one.

    Cost:
        About three evaluations of the losses a product; the gradients are not formed.

    Derivatives:
        As in `ggn_operator`, with the losses in place of the model.

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
    return _operator(_SampleFisherProduct(losses), params, batches, weights, args)


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
