"""What becomes an operator, and what is refused."""

import jax
import jax.numpy as jnp
import lineax
import numpy as np
import pytest
from jax.experimental import sparse
from numpy.testing import assert_allclose

import spectrax as sx

VECTOR = jax.ShapeDtypeStruct((3,), jnp.float32)


def test_an_operator_is_returned_as_it_is():
    A = sx.aslinearoperator(jnp.ones((2, 3)))
    assert sx.aslinearoperator(A) is A


def test_numpy_arrays_and_pairs():
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert_allclose(sx.aslinearoperator(matrix).to_dense(), matrix)
    assert_allclose(sx.aslinearoperator((lambda v: matrix @ v, VECTOR)).to_dense(), matrix)
    assert_allclose(sx.aslinearoperator((lambda v, a: a @ v, VECTOR), jnp.asarray(matrix)).to_dense(), matrix)
    assert_allclose(sx.aslinearoperator(lambda v: matrix @ v, jnp.ones(3)).to_dense(), matrix)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_bcoo(dtype, x64):
    rng = np.random.default_rng(0)
    phase = 1 + 0.5j if dtype == "complex128" else 1.0
    dense = np.where(rng.uniform(size=(6, 4)) < 0.4, rng.normal(size=(6, 4)) * phase, 0)
    matrix = sparse.BCOO.fromdense(jnp.asarray(dense))
    A = sx.aslinearoperator(matrix)
    assert A.shape == (6, 4)
    assert_allclose(A.to_dense(), dense)
    u = jnp.asarray(rng.normal(size=6).astype(dtype))
    assert_allclose(A.rmatvec(u), dense.conj().T @ np.asarray(u), atol=1e-14)
    assert_allclose(jax.jit(lambda M, v: sx.aslinearoperator(M) @ v)(matrix, A.rmatvec(u)), dense @ A.rmatvec(u))
    gradient = jax.grad(lambda data: jnp.abs(jnp.sum(sx.aslinearoperator(
        sparse.BCOO((data, matrix.indices), shape=matrix.shape)) @ jnp.ones(4, dtype))) ** 2)(matrix.data)  # fmt: skip
    assert_allclose(np.abs(gradient), 2 * np.abs(dense.sum()), rtol=1e-10)


def test_lineax_operators(x64):
    rng = np.random.default_rng(0)
    matrix, other = rng.normal(size=(4, 3)), rng.normal(size=(3, 3))
    struct = jax.ShapeDtypeStruct((3,), jnp.float64)
    cases = {
        "matrix": (lineax.MatrixLinearOperator(jnp.asarray(matrix)), matrix),
        "diagonal": (lineax.DiagonalLinearOperator(jnp.asarray(matrix[0])), np.diag(matrix[0])),
        "composed": (
            lineax.MatrixLinearOperator(jnp.asarray(matrix)) @ lineax.MatrixLinearOperator(jnp.asarray(other)),
            matrix @ other,
        ),
        "function": (lineax.FunctionLinearOperator(lambda v: jnp.asarray(matrix) @ v, struct), matrix),
    }
    for name, (operator, dense) in cases.items():
        A = sx.aslinearoperator(operator)
        assert_allclose(A.to_dense(), dense, atol=1e-14, err_msg=name)
        u = jnp.asarray(rng.normal(size=dense.shape[0]))
        assert_allclose(A.rmatvec(u), dense.T @ np.asarray(u), atol=1e-14, err_msg=name)


def test_the_arrays_of_lineax_operators_are_children(x64):
    traces = []

    @jax.jit
    def top(A):
        traces.append(A)
        return jnp.sum(A.matvec(jnp.ones(3)))

    for number in range(10):
        matrix = jnp.full((4, 3), float(number))
        assert float(top(sx.aslinearoperator(lineax.MatrixLinearOperator(matrix)))) == 12.0 * number
    assert len(traces) == 1
    gradient = jax.grad(lambda m: top(sx.aslinearoperator(lineax.MatrixLinearOperator(m))))(jnp.ones((4, 3)))
    assert_allclose(gradient, np.ones((4, 3)))
    batch = jax.vmap(lambda m: sx.aslinearoperator(lineax.MatrixLinearOperator(m)))(jnp.ones((5, 4, 3)))
    assert batch.shape == (4, 3)


def test_functions_that_are_not_linear_are_refused_when_the_adjoint_is_needed():
    A = sx.aslinearoperator(jnp.sin, VECTOR)
    with pytest.raises(TypeError, match="expected a linear function of its first argument"):
        A.rmatvec(jnp.ones(3))


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((jnp.ones(3),), ValueError, r"two axes \(m, n\), got shape \(3,\)"),
        ((jnp.ones((2, 3, 4)),), ValueError, "two axes"),
        ((jnp.ones((0, 3)),), ValueError, "at least one row and one column"),
        ((jnp.ones((2, 3), jnp.int32),), TypeError, "floating-point or complex dtype, got int32"),
        ((jnp.ones((2, 3), bool),), TypeError, "got bool"),
        ((jnp.ones((2, 3)), 1), TypeError, "an array takes no further arguments, got 1"),
        ((sx.aslinearoperator(jnp.ones((2, 3))), 1), TypeError, "a LinearOperator takes no further arguments"),
        ((sparse.BCOO.fromdense(jnp.ones((2, 3))), 1), TypeError, "a BCOO matrix takes no further"),
        ((sparse.BCOO.fromdense(jnp.ones((2, 3), jnp.int32)),), TypeError, "got int32"),
        ((sparse.BCOO.fromdense(jnp.ones((2, 3, 4)), n_batch=1),), ValueError, "without batch and dense axes"),
        ((lineax.DiagonalLinearOperator(jnp.ones(3)), 1), TypeError, "a lineax operator takes no further"),
        ((jnp.sin,), TypeError, "a function needs the structure of its vector"),
        (("matrix",), TypeError, "expected a LinearOperator.*got str"),
        ((None,), TypeError, "got NoneType"),
        ((jnp.cumsum, jax.ShapeDtypeStruct((3,), jnp.int32)), TypeError, "the input of a linear operator must have"),
        ((lambda v: jnp.ones(2), ()), ValueError, "the input of a linear operator must have at least one entry"),
        ((lambda v: (), VECTOR), ValueError, "the output of a linear operator must have at least one entry"),
        ((lambda v: v[:0], VECTOR), ValueError, "the output of a linear operator must have at least one entry"),
        ((lambda v: v.astype(jnp.int32), VECTOR), TypeError, "the output of a linear operator must have a floating"),
        ((lambda v: v.astype(jnp.complex64), VECTOR), TypeError, "real on both sides or complex on both sides"),
        ((jnp.real, jax.ShapeDtypeStruct((3,), jnp.complex64)), TypeError, "real on both sides or complex"),
    ],
)
def test_what_is_refused(args, error, message):
    with pytest.raises(error, match=message):
        sx.aslinearoperator(*args)


@pytest.mark.parametrize(
    "function", [jnp.conj, lambda v: 2 * v + v.conj(), lambda v: v.real.astype(v.dtype), jax.jit(jnp.conj)]
)
def test_functions_that_are_linear_over_the_reals_only_are_refused(function):
    struct = jax.ShapeDtypeStruct((2,), jnp.complex64)
    with pytest.raises(TypeError, match="must be linear over the complex numbers: it contains"):
        sx.aslinearoperator(function, struct)


def test_a_complex_product_that_is_written_out_is_taken_where_it_can_be_tried():
    def turned(v):
        return jax.lax.complex(2 * v.real - 3 * v.imag, 3 * v.real + 2 * v.imag)

    struct = jax.ShapeDtypeStruct((2,), jnp.complex64)
    assert_allclose(sx.aslinearoperator(turned, struct).to_dense(), (2 + 3j) * np.eye(2), rtol=1e-6)
    with pytest.raises(TypeError, match="cannot be tried under a trace"):
        jax.jit(lambda: sx.aslinearoperator(turned, struct).to_dense())()
