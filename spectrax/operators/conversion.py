"""What becomes a linear operator: matrices, sparse matrices, lineax operators and linear functions."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.core as jax_core
import jax.numpy as jnp

from spectrax import checks, layouts, vectors
from spectrax.operators.linear_operator import LinearOperator, MatVec, register
from spectrax.programs.equations import primitives_on
from spectrax.programs.hoisting import Direct, Program, hoist

PyTree = Any


@register(children=("matrix",), static=("in_struct", "out_struct"))
class MatrixOperator(LinearOperator):
    """A matrix of shape (m, n) that acts on vectors of shape (n,)."""

    def __init__(self, matrix: jax.Array):
        m, n = matrix.shape
        self.matrix = matrix
        rows, columns = layouts.matrix_shardings(matrix)
        self.in_struct = jax.ShapeDtypeStruct((n,), matrix.dtype, sharding=columns)
        self.out_struct = jax.ShapeDtypeStruct((m,), matrix.dtype, sharding=rows)

    def products(self):
        matrix = self.matrix
        dot = functools.partial(jnp.matmul, precision=vectors.HIGHEST)
        return (lambda v: dot(matrix, v)), (lambda u: dot(u.conj(), matrix).conj())

    def loop_products(self):
        return self.products()

    def _block_products(self):
        matrix = self.matrix
        dot = functools.partial(jnp.matmul, precision=vectors.HIGHEST)
        return (lambda rows: dot(rows, matrix.T)), (lambda rows: dot(rows, matrix.conj()))

    def to_dense(self, *, chunk_size: int | None = 256) -> jax.Array:
        """Return the matrix itself."""
        del chunk_size
        return self.matrix


@register(children=("consts", "args"), static=("program", "in_struct", "out_struct"))
class FunctionOperator(LinearOperator):
    """A linear function f(v, *args), whose adjoint comes from its transpose."""

    program: Program | Direct

    def __init__(self, function: Callable, in_struct: PyTree, args: tuple = ()):
        given, in_struct = in_struct, vectors.structure(in_struct)
        with jax.default_matmul_precision("highest"):
            hoisted = hoist(function, in_struct, *vectors.structure(args))
        check_spaces(in_struct, hoisted.out_struct)
        self.program, self.consts, self.args = hoisted.program, hoisted.consts, args
        self.in_struct = layouts.placed(in_struct, given)
        self.out_struct = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), hoisted.out_struct)
        if vectors.is_complex(self.dtype):
            check_complex_linear("the function of a linear operator", self.products()[0], in_struct)

    def products(self):
        def matvec(v):
            with jax.default_matmul_precision("highest"):
                return self.program(self.consts, v, *self.args)

        return matvec, adjoint(matvec, self.in_struct)


def adjoint(matvec: MatVec, in_struct: PyTree) -> MatVec:
    """Return u -> A^H u = conj(A^T conj(u)) for a linear function."""

    def rmatvec(u):
        with jax.default_matmul_precision("highest"):
            try:
                transposed = jax.linear_transpose(matvec, in_struct)
                (image,) = transposed(vectors.conj(u))
            except (NotImplementedError, AssertionError) as error:
                raise TypeError(
                    "expected a linear function of its first argument, whose transpose JAX can derive; "
                    f"transposing it failed with {type(error).__name__}: {error}"
                ) from error
        return vectors.conj(image)

    return rmatvec


_REAL_LINEAR = frozenset({"conj", "real", "imag", "complex", "abs"})


def check_complex_linear(what: str, product: MatVec, struct: PyTree) -> None:
    """Raise `TypeError` where a product is linear over the real numbers only, as the conjugation of a vector is.

    A program without conj, real and imag is complex-linear. With them it may be (a product of complex numbers written
    out): A(i v) = i A(v) is then tried on one vector, unless values are not known because of a trace.

    Args:
        what: What is spoken of in the message.
        product: The product with a vector.
        struct: The structure of the vector.

    Raises:
        TypeError: If the product is not linear over the complex numbers, or may not be and cannot be tried.
    """

    def turn(vector: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: leaf * jnp.asarray(1j, leaf.dtype), vector)

    found = primitives_on(product, struct) & _REAL_LINEAR
    if not found:
        return
    v = vectors.normal(jax.random.key(0), struct)
    turned, image = product(turn(v)), product(v)
    if not any(isinstance(leaf, jax_core.Tracer) for leaf in jax.tree.leaves((turned, image))):
        difference = float(vectors.norm(vectors.subtract(turned, turn(image))))
        if difference <= 1e3 * vectors.eps(image) * float(vectors.norm(image)):
            return
    raise TypeError(
        f"{what} must be linear over the complex numbers: it contains {', '.join(sorted(found))}, and A(i v) = i A(v) "
        "does not hold, or cannot be tried under a trace"
    )


def check_spaces(in_struct: PyTree, out_struct: PyTree) -> None:
    """Raise unless both sides are non-empty, of inexact dtypes, and both real or both complex."""
    for name, struct in (("input", in_struct), ("output", out_struct)):
        leaves = jax.tree.leaves(struct)
        if not leaves or vectors.size(struct) == 0:
            raise ValueError(f"the {name} of a linear operator must have at least one entry, got {struct}")
        for leaf in leaves:
            checks.inexact(f"the {name} of a linear operator", leaf.dtype)
    kinds = {vectors.is_complex(leaf.dtype) for leaf in jax.tree.leaves((in_struct, out_struct))}
    if len(kinds) > 1:
        raise TypeError(
            "a linear operator must be real on both sides or complex on both sides, got "
            f"input {in_struct} and output {out_struct}"
        )


def aslinearoperator(operator: Any, /, *args: Any) -> LinearOperator:
    """Return `operator` as a `LinearOperator`.

    Args:
        operator: One of

            - a `LinearOperator`, which is returned as it is;
            - an array of shape (m, n) with a floating-point or complex dtype;
            - a `jax.experimental.sparse.BCOO` matrix;
            - a lineax operator, or any object with `mv`, `T`, `in_structure` and `out_structure`;
            - a linear function f(v, *args), followed by the structure of v: a pytree of arrays or of
              `jax.ShapeDtypeStruct`. The pair `(f, in_struct)` as one argument means the same, so that it can be
              handed to everything that takes an operator.
        *args: For a function, the structure of v (unless it came in a pair) and the arguments after v. Data that the
            operator is to be differentiated by belongs here; what f closes over is found and becomes a leaf as well,
            but then f is traced anew at every call.

    Returns:
        The operator, with input and output spaces as described by its `in_struct` and `out_struct`.

    Raises:
        TypeError: If the object is none of the above, has an integer dtype, maps real to complex vectors, or is a
            function of complex vectors that is linear over the real numbers only. That a function of real vectors is
            linear is not checked.
        ValueError: If an array is not a matrix, or one of the dimensions is zero.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import spectrax as sx
        >>> cumulative = sx.aslinearoperator(jnp.cumsum, jax.ShapeDtypeStruct((3,), jnp.float32))
        >>> cumulative.rmatvec(jnp.ones(3)).tolist()
        [3.0, 2.0, 1.0]
    """
    if isinstance(operator, LinearOperator):
        _no_more(args, "a LinearOperator")
        return operator
    if isinstance(operator, tuple) and len(operator) == 2 and callable(operator[0]):
        return FunctionOperator(operator[0], operator[1], args)
    if _is_lineax(operator):
        _no_more(args, "a lineax operator")
        return _from_lineax(operator)
    if _is_bcoo(operator):
        _no_more(args, "a BCOO matrix")
        return _from_bcoo(operator)
    if hasattr(operator, "shape") and hasattr(operator, "dtype"):
        _no_more(args, "an array")
        return _from_array(operator)
    if callable(operator):
        if not args:
            raise TypeError("a function needs the structure of its vector: aslinearoperator(f, in_struct, *args)")
        return FunctionOperator(operator, args[0], args[1:])
    raise TypeError(
        "expected a LinearOperator, a matrix, a BCOO matrix, a lineax operator, or a linear function with the "
        f"structure of its input; got {type(operator).__name__}"
    )


def _no_more(args: tuple, what: str) -> None:
    if args:
        raise TypeError(f"{what} takes no further arguments, got {len(args)}")


def _from_array(array: Any) -> LinearOperator:
    array = jnp.asarray(array)
    if array.ndim != 2:
        raise ValueError(f"an array as a linear operator must have two axes (m, n), got shape {array.shape}")
    if 0 in array.shape:
        raise ValueError(f"a linear operator must have at least one row and one column, got shape {array.shape}")
    checks.inexact("an array as a linear operator", array.dtype)
    return MatrixOperator(array)


def _from_bcoo(operator: Any) -> LinearOperator:
    if operator.ndim != 2 or operator.n_batch or operator.n_dense:
        raise ValueError(
            "a BCOO operator must be a matrix without batch and dense axes, got "
            f"shape {operator.shape}, n_batch {operator.n_batch}, n_dense {operator.n_dense}"
        )
    in_struct = jax.ShapeDtypeStruct((operator.shape[1],), operator.dtype)
    checks.inexact("a BCOO operator", operator.dtype)
    return FunctionOperator(_sparse_product, in_struct, (operator,))


def _sparse_product(v: jax.Array, matrix: Any) -> jax.Array:
    return matrix @ v


def _is_bcoo(value: Any) -> bool:
    return type(value).__name__ == "BCOO" and hasattr(value, "indices")


def _is_lineax(value: Any) -> bool:
    return all(hasattr(value, name) for name in ("mv", "T", "in_structure", "out_structure"))


class _LineaxProduct:
    """The product of a lineax operator whose arrays were taken out: hashable whenever the rest of it is."""

    def __init__(self, treedef: Any, static: tuple, is_array: tuple[bool, ...]):
        self._key = (treedef, static, is_array)

    def __call__(self, v: PyTree, arrays: list) -> PyTree:
        treedef, static, is_array = self._key
        array, other = iter(arrays), iter(static)
        leaves = [next(array) if taken else next(other) for taken in is_array]
        return treedef.unflatten(leaves).mv(v)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _LineaxProduct) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


def _from_lineax(operator: Any) -> LinearOperator:
    leaves, treedef = jax.tree.flatten(operator)
    is_array = tuple(hasattr(leaf, "dtype") and hasattr(leaf, "shape") for leaf in leaves)
    arrays = [leaf for leaf, taken in zip(leaves, is_array, strict=True) if taken]
    static = tuple(leaf for leaf, taken in zip(leaves, is_array, strict=True) if not taken)
    return FunctionOperator(_LineaxProduct(treedef, static, is_array), operator.in_structure(), (arrays,))
