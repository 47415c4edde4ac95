"""Jacobians as operators."""

import copy
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from spectrax import checks, layouts, vectors
from spectrax.operators.conversion import adjoint, check_complex_linear, check_spaces
from spectrax.operators.linear_operator import LinearOperator, register
from spectrax.programs.hoisting import Direct, Program, hoist

PyTree = Any

_CUSTOM_VJP = frozenset({"custom_vjp_call", "custom_vjp_call_jaxpr"})


@register(
    children=("consts", "point", "args"), static=("program", "in_struct", "out_struct", "reverse_only", "primitives")
)
class JacobianOperator(LinearOperator):
    """The Jacobian of f(x, *args) in x, at one point; made by `jacobian_operator`."""

    program: Program | Direct

    def __init__(self, function: Callable, point: PyTree, args: tuple = ()):
        self.in_struct = layouts.placed(vectors.structure(point), point)
        with jax.default_matmul_precision("highest"):
            hoisted = hoist(function, self.in_struct, *vectors.structure(args))
        check_spaces(self.in_struct, hoisted.out_struct)
        self.program, self.consts, self.point, self.args = hoisted.program, hoisted.consts, point, args
        self.out_struct = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), hoisted.out_struct)
        self.primitives = hoisted.primitives
        self.reverse_only = bool(hoisted.primitives & _CUSTOM_VJP)
        if vectors.is_complex(self.dtype):
            what = "the Jacobian of a complex function, which exists where the function is holomorphic,"
            if self.reverse_only:
                check_complex_linear(what, lambda u: jax.vjp(self._function, self.point)[1](u)[0], self.out_struct)
            else:
                check_complex_linear(what, lambda v: jax.linearize(self._function, self.point)[1](v), self.in_struct)

    def at(self, point: PyTree, args: tuple) -> "JacobianOperator":
        """Return the Jacobian of the same function at another point and with other arguments, without checks."""
        other = copy.copy(self)
        other.point, other.args = point, args
        return other

    def value(self) -> PyTree:
        """Return the function's value at the point."""
        return self._function(self.point)

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
        *args: Further arguments, pytrees of arrays. The operator can be differentiated with respect to these, to x, and
            to arrays that f closes over; a function that closes over none keeps `jit` from tracing anew at every call.

    Returns:
        An operator from the structure of x to the structure of f(x, *args).

    Raises:
        TypeError: If x or the result has an integer dtype, if one is real and the other complex, if f is complex and
            not holomorphic, or if a further argument is no array: bind that with `functools.partial`.

    Cost:
        One product is about one evaluation of f; the linearisation is done once for each call of `products`.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> J = sx.jacobian_operator(lambda x: x**2, jnp.array([1.0, 2.0]))
        >>> J.matvec(jnp.array([1.0, 1.0])).tolist()
        [2.0, 4.0]
    """
    checks.array_arguments(args)
    point = jax.tree.map(jnp.asarray, x)
    for leaf in jax.tree.leaves(point):
        checks.inexact("x", leaf.dtype)
    return JacobianOperator(function, point, args)
