"""Linear operators as pytrees: arrays are leaves, what the operator does with them is static."""

import abc
import functools
import numbers
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from spectrax import checks, vectors
from spectrax.programs.canonical import canonical
from spectrax.programs.hoisting import FrozenTree

PyTree = Any
MatVec = Callable[[PyTree], PyTree]
Operator = TypeVar("Operator", bound="LinearOperator")


class LinearOperator(abc.ABC):
    """A linear map between two spaces of pytrees, known by its products with vectors.

    An operator is a pytree: its arrays are leaves, so that it passes through `jit`, `vmap`, `grad` and `scan`, and
    everything else is static. `in_struct` and `out_struct` describe one vector of each side and never depend on the
    leaves, whose shapes have one axis more in a batch of operators (`jax.vmap(sx.aslinearoperator)(matrices)`).

    The adjoint is `rmatvec`, u -> A^H u. `A @ x` takes one vector, or another operator, and never a stack of vectors;
    those go through `matmat` and `rmatmat`, with the vectors along the leading axis.

    Cost:
        `matvec` and `rmatvec` are one product each; `matmat` of k vectors is k products done as one batch.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> A = sx.aslinearoperator(jnp.array([[1.0, 2.0, 0.0], [0.0, 0.0, 3.0]]))
        >>> A.shape
        (2, 3)
        >>> A.rmatvec(jnp.array([1.0, 1.0])).tolist()
        [1.0, 2.0, 3.0]
    """

    in_struct: PyTree
    out_struct: PyTree

    @abc.abstractmethod
    def products(self) -> tuple[MatVec, MatVec]:
        """Return the functions v -> A v and u -> A^H u, without checks of their arguments.

        What does not depend on the vector, such as the linearisation of a network, is computed once, here: a loop asks
        for the products outside and applies them inside.
        """

    def loop_products(self) -> tuple[MatVec, MatVec]:
        """Return the same functions as `products`, in the form that a compiled loop runs fastest.

        They are traced once, here, and what does not depend on the vector is computed here, too: for a loop, where a
        single product is better off with those of `products`.
        """
        matvec, rmatvec = self.products()
        return canonical(matvec, self.in_struct), canonical(rmatvec, self.out_struct)

    @property
    def shape(self) -> tuple[int, int]:
        """The dimensions (m, n) of the output and the input space, counting every entry of every leaf."""
        return vectors.size(self.out_struct), vectors.size(self.in_struct)

    @property
    def hermitian(self) -> bool:
        """Whether A^H = A by construction, so that `rmatvec` is `matvec` itself; False where nothing is known."""
        return False

    @property
    def dtype(self) -> jnp.dtype:
        """The common dtype of both sides."""
        return jnp.result_type(vectors.result_dtype(self.in_struct), vectors.result_dtype(self.out_struct))

    def matvec(self, v: PyTree, /) -> PyTree:
        """Return A v.

        Args:
            v: A vector of the structure, shapes and dtypes of `in_struct`.

        Returns:
            A vector of the structure of `out_struct`.

        Raises:
            ValueError: If the structure or a shape of `v` differs from `in_struct`.
            TypeError: If a dtype of `v` differs.
        """
        checks.same_structure("v", v, self.in_struct)
        return self.products()[0](v)

    def rmatvec(self, u: PyTree, /) -> PyTree:
        """Return A^H u, with A^H the conjugate transpose.

        Args:
            u: A vector of the structure, shapes and dtypes of `out_struct`.

        Returns:
            A vector of the structure of `in_struct`.

        Raises:
            ValueError: If the structure or a shape of `u` differs from `out_struct`.
            TypeError: If a dtype of `u` differs.
        """
        checks.same_structure("u", u, self.out_struct)
        return self.products()[1](u)

    def matmat(self, stack: PyTree, /) -> PyTree:
        """Return A applied to each vector of a stack (leading axis), as a stack."""
        checks.same_structure("stack[0]", _first(stack), self.in_struct)
        return self._block_products()[0](stack)

    def rmatmat(self, stack: PyTree, /) -> PyTree:
        """Return A^H applied to each vector of a stack (leading axis), as a stack."""
        checks.same_structure("stack[0]", _first(stack), self.out_struct)
        return self._block_products()[1](stack)

    def _block_products(self) -> tuple[MatVec, MatVec]:
        matvec, rmatvec = self.products()
        return jax.vmap(matvec), jax.vmap(rmatvec)

    def fixed_block_products(self) -> tuple[MatVec, MatVec]:
        """Return the products with stacks of vectors, for where nothing is differentiated.

        For TPUs they are made one after the other: their compiler takes twice to three times as long for a batched
        product of a network as for one of the shapes that a loop has already.
        """
        if type(self)._block_products is not LinearOperator._block_products:
            return self._block_products()

        matvec, rmatvec = self.loop_products()
        return _one_by_one_on_tpu(matvec), _one_by_one_on_tpu(rmatvec)

    @property
    def _is_wide(self) -> bool:
        """Whether a convolution would have to be padded beforehand, see `programs.padding`."""
        return self.dtype in (jnp.float64, jnp.complex128)

    @property
    def H(self) -> "LinearOperator":
        """The adjoint operator A^H."""
        return AdjointOperator(self)

    @property
    def T(self) -> "LinearOperator":
        """The transposed operator A^T, which differs from A^H for complex operators."""
        return ConjugateOperator(AdjointOperator(self)) if vectors.is_complex(self.dtype) else AdjointOperator(self)

    def __matmul__(self, other: Any) -> Any:
        """Apply to one vector, or compose with another operator."""
        if isinstance(other, LinearOperator):
            return ComposedOperator(self, other)
        return self.matvec(other)

    def __add__(self, other: Any) -> "LinearOperator":
        """Return the sum of two operators."""
        if not isinstance(other, LinearOperator):
            return NotImplemented
        return SumOperator(self, other)

    def __sub__(self, other: Any) -> "LinearOperator":
        """Return the difference of two operators."""
        if not isinstance(other, LinearOperator):
            return NotImplemented
        return SumOperator(self, -1 * other)

    def __neg__(self) -> "LinearOperator":
        """Return -A."""
        return -1 * self

    def __mul__(self, scalar: Any) -> "LinearOperator":
        """Return the operator times a scalar."""
        if not isinstance(scalar, numbers.Number | jax.Array | np.ndarray | np.generic):
            return NotImplemented
        return ScaledOperator(scalar, self)

    __rmul__ = __mul__
    __array_ufunc__ = None  # numpy scalars on the left leave the product to us

    def to_dense(self, *, chunk_size: int | None = 256) -> jax.Array:
        """Return the operator as a matrix of shape (m, n).

        The products of the shorter side's unit vectors are taken, `chunk_size` of them at a time, and leaves are laid
        out in the order of `jax.tree.leaves`, each in row-major order.

        Args:
            chunk_size: How many unit vectors one batched product takes, which bounds the memory of what lies between;
                None for all of them.

        Returns:
            The matrix, in the dtype of the operator.

        Cost:
            min(m, n) products, and the memory of the matrix and of one chunk's intermediate results.
        """
        if chunk_size is not None:
            checks.positive_integer("chunk_size", chunk_size)
        m, n = self.shape
        at_once = chunk_size is None or chunk_size >= min(m, n)
        matvec, rmatvec = self.products() if at_once and not self._is_wide else self.loop_products()
        from_left = m < n
        struct, product = (self.out_struct, rmatvec) if from_left else (self.in_struct, matvec)

        def line(unit: jax.Array) -> jax.Array:
            image = product(vectors.row(vectors.from_matrix(unit[None], struct), 0))
            return jnp.concatenate([leaf.reshape(-1).astype(self.dtype) for leaf in jax.tree.leaves(image)])

        identity = jnp.eye(min(m, n), dtype=self.dtype)
        lines = jax.vmap(line)(identity) if at_once else jax.lax.map(line, identity, batch_size=chunk_size)
        return lines.conj() if from_left else lines.T

    def __repr__(self) -> str:
        """Name the kind, shape and dtype."""
        return f"{type(self).__name__}(shape={self.shape}, dtype={self.dtype.name})"


def _first(stack: PyTree) -> PyTree:
    leaves = jax.tree.leaves(stack)
    if not leaves or any(jnp.ndim(leaf) == 0 for leaf in leaves):
        raise ValueError("a stack of vectors must have a leading axis on every leaf")
    counts = {jnp.shape(leaf)[0] for leaf in leaves}
    if len(counts) != 1:
        raise ValueError(f"a stack of vectors must have one length of its leading axis, got {sorted(counts)}")
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf)[1:], jnp.result_type(leaf)), stack)


def _one_by_one_on_tpu(product: MatVec) -> MatVec:
    def apply(stack: PyTree) -> PyTree:
        if vectors.count(stack) == 1:
            return vectors.stacked(product)(stack)
        one_by_one = functools.partial(jax.lax.map, product)
        return jax.lax.platform_dependent(stack, tpu=one_by_one, default=jax.vmap(product))

    return apply


def register(children: tuple[str, ...], static: tuple[str, ...]) -> Callable[[type[Operator]], type[Operator]]:
    """Register an operator class as a pytree; unflattening sets the attributes and validates nothing."""

    def decorate(cls: type[Operator]) -> type[Operator]:
        def flatten_with_keys(operator):
            pairs = tuple((jax.tree_util.GetAttrKey(name), getattr(operator, name)) for name in children)
            return pairs, tuple(_freeze(getattr(operator, name)) for name in static)

        def flatten(operator):
            return (
                tuple(getattr(operator, name) for name in children),
                tuple(_freeze(getattr(operator, name)) for name in static),
            )

        def unflatten(aux, leaves):
            operator = object.__new__(cls)
            for name, leaf in zip(children, leaves, strict=True):
                object.__setattr__(operator, name, leaf)
            for name, value in zip(static, aux, strict=True):
                object.__setattr__(operator, name, value.tree if isinstance(value, FrozenTree) else value)
            return operator

        jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
        return cls

    return decorate


def _freeze(value: Any) -> Any:
    is_tree = isinstance(value, jax.ShapeDtypeStruct | dict | list | tuple)
    return FrozenTree(value) if is_tree else value


@register(children=("operator",), static=())
class AdjointOperator(LinearOperator):
    """The conjugate transpose of an operator."""

    def __init__(self, operator: LinearOperator):
        self.operator = operator

    @property
    def hermitian(self):
        return self.operator.hermitian

    @property
    def in_struct(self):
        return self.operator.out_struct

    @property
    def out_struct(self):
        return self.operator.in_struct

    def products(self):
        matvec, rmatvec = self.operator.products()
        return rmatvec, matvec

    def _block_products(self):
        matmat, rmatmat = self.operator._block_products()
        return rmatmat, matmat

    @property
    def H(self):
        return self.operator

    def to_dense(self, *, chunk_size: int | None = 256) -> jax.Array:
        return self.operator.to_dense(chunk_size=chunk_size).conj().T


@register(children=("operator",), static=())
class ConjugateOperator(LinearOperator):
    """The complex conjugate of an operator, v -> conj(A conj(v))."""

    def __init__(self, operator: LinearOperator):
        self.operator = operator

    @property
    def hermitian(self):
        return self.operator.hermitian

    @property
    def in_struct(self):
        return self.operator.in_struct

    @property
    def out_struct(self):
        return self.operator.out_struct

    def products(self):
        matvec, rmatvec = self.operator.products()
        return (lambda v: vectors.conj(matvec(vectors.conj(v)))), (lambda u: vectors.conj(rmatvec(vectors.conj(u))))


@register(children=("scalar", "operator"), static=())
class ScaledOperator(LinearOperator):
    """A scalar times an operator."""

    def __init__(self, scalar: Any, operator: LinearOperator):
        if jnp.ndim(scalar) != 0:
            raise ValueError(f"an operator is multiplied by scalars only, got an array of shape {jnp.shape(scalar)}")
        if jnp.iscomplexobj(scalar) and not vectors.is_complex(operator.dtype):
            raise TypeError("a real operator cannot be multiplied by a complex scalar: cast the operator first")
        self.scalar, self.operator = jnp.asarray(scalar, operator.dtype), operator

    @property
    def hermitian(self):
        return self.operator.hermitian and not vectors.is_complex(self.scalar.dtype)

    @property
    def in_struct(self):
        return self.operator.in_struct

    @property
    def out_struct(self):
        return self.operator.out_struct

    def products(self):
        matvec, rmatvec = self.operator.products()
        return (
            (lambda v: vectors.scale(self.scalar, matvec(v))),
            (lambda u: vectors.scale(self.scalar.conj(), rmatvec(u))),
        )


@register(children=("left", "right"), static=())
class SumOperator(LinearOperator):
    """The sum of two operators between the same spaces."""

    def __init__(self, left: LinearOperator, right: LinearOperator):
        checks.same_structure("the input of the right operand", right.in_struct, left.in_struct)
        checks.same_structure("the output of the right operand", right.out_struct, left.out_struct)
        self.left, self.right = left, right

    @property
    def hermitian(self):
        return self.left.hermitian and self.right.hermitian

    @property
    def in_struct(self):
        return self.left.in_struct

    @property
    def out_struct(self):
        return self.left.out_struct

    def products(self):
        (left, left_adjoint), (right, right_adjoint) = self.left.products(), self.right.products()
        return (
            (lambda v: vectors.add(left(v), right(v))),
            (lambda u: vectors.add(left_adjoint(u), right_adjoint(u))),
        )


@register(children=("left", "right"), static=())
class ComposedOperator(LinearOperator):
    """The product of two operators: the right one acts first."""

    def __init__(self, left: LinearOperator, right: LinearOperator):
        checks.same_structure("the output of the right operand", right.out_struct, left.in_struct)
        self.left, self.right = left, right

    @property
    def in_struct(self):
        return self.right.in_struct

    @property
    def out_struct(self):
        return self.left.out_struct

    def products(self):
        (left, left_adjoint), (right, right_adjoint) = self.left.products(), self.right.products()
        return (lambda v: left(right(v))), (lambda u: right_adjoint(left_adjoint(u)))
