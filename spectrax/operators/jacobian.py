"""Jacobians, as operators and as dense arrays, of one sample and of many."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from spectrax import checks, vectors
from spectrax.operators.conversion import adjoint, check_complex_linear, check_spaces
from spectrax.operators.linear_operator import LinearOperator, register
from spectrax.programs.hoisting import Direct, Program, hoist

PyTree = Any

_CUSTOM_VJP = frozenset({"custom_vjp_call", "custom_vjp_call_jaxpr"})


@register(children=("consts", "point", "args"), static=("program", "in_struct", "out_struct", "reverse_only"))
class JacobianOperator(LinearOperator):
    """The Jacobian of f(x, *args) in x, at one point; made by `jacobian_operator`."""

    program: Program | Direct

    def __init__(self, function: Callable, point: PyTree, args: tuple = ()):
        self.in_struct = vectors.structure(point)
        with jax.default_matmul_precision("highest"):
            hoisted = hoist(function, self.in_struct, *vectors.structure(args))
        check_spaces(self.in_struct, hoisted.out_struct)
        self.program, self.consts, self.point, self.args = hoisted.program, hoisted.consts, point, args
        self.out_struct = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), hoisted.out_struct)
        self.reverse_only = bool(hoisted.primitives & _CUSTOM_VJP)
        if vectors.is_complex(self.dtype):
            what = "the Jacobian of a complex function, which exists where the function is holomorphic,"
            if self.reverse_only:
                check_complex_linear(what, lambda u: jax.vjp(self._function, self.point)[1](u)[0], self.out_struct)
            else:
                check_complex_linear(what, lambda v: jax.linearize(self._function, self.point)[1](v), self.in_struct)

    def _function(self, x: PyTree) -> PyTree:
        with jax.default_matmul_precision("highest"):
            return self.program(self.consts, x, *self.args)

    def products(self):
        if self.reverse_only:  # a custom_vjp has no forward mode: A is the transpose of its VJP
            _, vjp = jax.vjp(self._function, self.point)

            def rmatvec(u):
                with jax.default_matmul_precision("highest"):
                    return vectors.conj(vjp(vectors.conj(u))[0])

            return adjoint(rmatvec, self.out_struct), rmatvec
        _, pushforward = jax.linearize(self._function, self.point)

        def matvec(v):
            with jax.default_matmul_precision("highest"):
                return pushforward(v)

        return matvec, adjoint(matvec, self.in_struct)


def jacobian_operator(function: Callable, x: PyTree, /, *args: Any) -> LinearOperator:
    """Return the Jacobian of f(x, *args) with respect to x as a matrix-free operator.

    `matvec` is the directional derivative (a JVP), `rmatvec` its adjoint (a VJP). The function's own `custom_jvp` and
    `custom_vjp` rules are respected.

    Args:
        function: A function f(x, *args) of pytrees of arrays.
        x: The point, a pytree of floating-point or complex arrays.
        *args: Further arguments. The operator can be differentiated with respect to these, to x, and to arrays that f
            closes over; a function that closes over none keeps `jit` from tracing anew at every call.

    Returns:
        An operator from the structure of x to the structure of f(x, *args).

    Raises:
        TypeError: If x or the result has an integer dtype, if one is real and the other complex, or if f is complex
            and not holomorphic.

    Cost:
        One product is about one evaluation of f; the linearisation is done once for each call of `products`.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> J = sx.jacobian_operator(lambda x: x**2, jnp.array([1.0, 2.0]))
        >>> J.matvec(jnp.array([1.0, 1.0])).tolist()
        [2.0, 4.0]
    """
    point = jax.tree.map(jnp.asarray, x)
    for leaf in jax.tree.leaves(point):
        checks.inexact("x", leaf.dtype)
    return JacobianOperator(function, point, args)


def jacobian(
    function: Callable, x: PyTree, /, *args: Any, mode: str = "auto", chunk_size: int | None = None
) -> jax.Array:
    """Return the Jacobian of f(x, *args) with respect to x as a matrix of shape (m, n).

    Args:
        function: A function f(x, *args) of pytrees of arrays.
        x: The point.
        *args: Further arguments of f.
        mode: "forward" takes n JVPs, "reverse" m VJPs, "auto" the fewer of the two (reverse when m < n, and always for
            functions with a `custom_vjp`).
        chunk_size: How many JVPs or VJPs are taken in one batch; all of them if None.

    Returns:
        The matrix; row i belongs to output entry i, with leaves in the order of `jax.tree.leaves`.

    Raises:
        TypeError: As `jacobian_operator` does; and in forward mode for a function with a `custom_vjp`.
        ValueError: If `mode` is not one of the three or `chunk_size` is below one.

    Cost:
        min(m, n) products in mode "auto". Memory grows with `chunk_size` times one product's.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> sx.jacobian(lambda x: jnp.array([x[0] * x[1]]), jnp.array([2.0, 3.0])).tolist()
        [[3.0, 2.0]]
    """
    checks.choice("mode", mode, ("auto", "forward", "reverse"))
    if chunk_size is not None:
        checks.positive_integer("chunk_size", chunk_size)
    operator = jacobian_operator(function, x, *args)
    assert isinstance(operator, JacobianOperator)
    m, n = operator.shape
    if mode == "forward" and operator.reverse_only:
        raise TypeError("mode 'forward' needs forward-mode derivatives, which a custom_vjp inside f does not have")
    if mode == "auto":
        mode = "reverse" if m < n or operator.reverse_only else "forward"
    matvec, rmatvec = operator.products() if chunk_size is None else operator.loop_products()
    dtype = operator.dtype
    if mode == "forward":
        return _lines(matvec, operator.in_struct, n, dtype, chunk_size).T
    return _lines(rmatvec, operator.out_struct, m, dtype, chunk_size).conj()


def batched_jacobian(
    function: Callable, xs: PyTree, /, *args: Any, mode: str = "auto", chunk_size: int | None = None
) -> jax.Array:
    """Return the Jacobians of f(x, *args) at many points, shape (batch, m, n).

    Args:
        function: A function f(x, *args) of one sample.
        xs: The points, stacked along the leading axis of every leaf.
        *args: Further arguments of f, the same for all samples.
        mode: As in `jacobian`.
        chunk_size: How many samples are worked on at a time; all of them if None. Memory grows with it.

    Returns:
        The Jacobians, in the order of the samples.

    Raises:
        TypeError: As `jacobian` does.
        ValueError: If the leading axes differ, or `mode` or `chunk_size` is not valid.

    Cost:
        batch times min(m, n) products in mode "auto".

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> sx.batched_jacobian(jnp.sin, jnp.zeros((2, 1))).tolist()
        [[[1.0]], [[1.0]]]
    """
    checks.choice("mode", mode, ("auto", "forward", "reverse"))
    xs = jax.tree.map(jnp.asarray, xs)
    count = checks.leading_axis("xs", xs)

    def one(x):
        return jacobian(function, x, *args, mode=mode)

    if chunk_size is None:
        return jax.vmap(one)(xs)
    checks.positive_integer("chunk_size", chunk_size)
    return jax.lax.map(one, xs, batch_size=min(chunk_size, count))


def _lines(product: Callable, struct: PyTree, count: int, dtype: Any, chunk_size: int | None) -> jax.Array:
    """Return the images of all unit vectors of a space as rows."""

    def line(unit):
        image = product(vectors.row(vectors.from_matrix(unit[None], struct), 0))
        return jnp.concatenate([leaf.reshape(-1).astype(dtype) for leaf in jax.tree.leaves(image)])

    identity = jnp.eye(count, dtype=dtype)
    if chunk_size is None or chunk_size >= count:
        return jax.vmap(line)(identity)
    return jax.lax.map(line, identity, batch_size=chunk_size)
