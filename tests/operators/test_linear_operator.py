"""Every kind of operator against its dense matrix in NumPy, and operators as pytrees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import spectrax as sx
from spectrax.operators.precision import in_working_precision

DTYPES = ("float64", "complex128")


def draw(rng, shape, dtype):
    values = rng.normal(size=shape)
    if np.issubdtype(dtype, np.complexfloating):
        values = values + 1j * rng.normal(size=shape)
    return np.asarray(values, dtype)


def matrix_case(rng, dtype):
    matrix = draw(rng, (5, 3), dtype)
    return sx.aslinearoperator(jnp.asarray(matrix)), matrix


def function_case(rng, dtype):
    """From a dict of two leaves to a tuple of two, with data given and data closed over."""
    a, b, c = draw(rng, (2, 3), dtype), draw(rng, (3, 4), dtype), draw(rng, (3, 2), dtype)
    closed = jnp.asarray(c)

    def f(v, a, b):
        return a @ v["x"].reshape(3), (b @ v["y"], closed @ (a @ v["x"].reshape(3)))

    in_struct = {"x": jax.ShapeDtypeStruct((1, 3), dtype), "y": jax.ShapeDtypeStruct((4,), dtype)}
    operator = sx.aslinearoperator(f, in_struct, jnp.asarray(a), jnp.asarray(b))
    dense = np.block([[a, np.zeros((2, 4))], [np.zeros((3, 3)), b], [c @ a, np.zeros((3, 4))]])
    return operator, dense


def jacobian_case(rng, dtype):
    weights, x = draw(rng, (4, 6), dtype), draw(rng, (6,), dtype)
    operator = sx.jacobian_operator(lambda x, w: jnp.sin(w @ x), jnp.asarray(x), jnp.asarray(weights))
    return operator, np.cos(weights @ x)[:, None] * weights


def convolution_case(rng, dtype):
    kernel = draw(rng, (2, 1, 3), dtype)
    operator = sx.conv_operator(jnp.asarray(kernel), (4, 1), padding="VALID")
    dense = np.zeros((3, 3, 4), dtype)
    for position in range(3):
        for tap in range(2):
            dense[position, :, position + tap] = kernel[tap, 0]
    return operator, dense.reshape(9, 4)


def adjoint_case(rng, dtype):
    operator, dense = function_case(rng, dtype)
    return operator.H, dense.conj().T


def transposed_case(rng, dtype):
    operator, dense = matrix_case(rng, dtype)
    return operator.T, dense.T


def transposed_adjoint_case(rng, dtype):
    operator, dense = function_case(rng, dtype)
    return operator.T.H, dense.conj()


def scaled_case(rng, dtype):
    operator, dense = function_case(rng, dtype)
    scalar = 2.0 - 3.0j if np.issubdtype(dtype, np.complexfloating) else -2.5
    return scalar * operator, scalar * dense


def sum_case(rng, dtype):
    (one, a), (other, b) = matrix_case(rng, dtype), matrix_case(rng, dtype)
    return one + other - -other * 3.0, a + 4 * b


def composed_case(rng, dtype):
    (one, a), (other, b) = matrix_case(rng, dtype), matrix_case(rng, dtype)
    return one @ other.H @ one, a @ b.conj().T @ a


CASES = {
    name.removesuffix("_case"): function
    for name, function in list(globals().items())
    if name.endswith("_case") and callable(function)
}


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def flat_rows(tree):
    return np.concatenate([np.asarray(leaf).reshape(len(leaf), -1) for leaf in jax.tree.leaves(tree)], axis=1)


def vector(rng, struct):
    return jax.tree.map(lambda leaf: jnp.asarray(draw(rng, leaf.shape, leaf.dtype)), struct)


def stack(rng, struct, count):
    return jax.tree.map(lambda leaf: jnp.asarray(draw(rng, (count, *leaf.shape), leaf.dtype)), struct)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_products_are_those_of_the_matrix(case, dtype, x64):
    rng = np.random.default_rng(3)
    operator, dense = CASES[case](rng, dtype)
    assert operator.shape == dense.shape
    assert operator.dtype == dtype
    v, u = vector(rng, operator.in_struct), vector(rng, operator.out_struct)
    rows, columns = stack(rng, operator.in_struct, 3), stack(rng, operator.out_struct, 2)
    assert_allclose(flat(operator.matvec(v)), dense @ flat(v), atol=1e-13)
    assert_allclose(flat(operator @ v), dense @ flat(v), atol=1e-13)
    assert_allclose(flat(operator.rmatvec(u)), dense.conj().T @ flat(u), atol=1e-13)
    assert_allclose(flat(operator.T.matvec(u)), dense.T @ flat(u), atol=1e-13)
    assert_allclose(flat(operator.H.matvec(u)), dense.conj().T @ flat(u), atol=1e-13)
    assert_allclose(flat(operator.H.rmatvec(v)), dense @ flat(v), atol=1e-13)
    assert_allclose(flat_rows(operator.matmat(rows)), flat_rows(rows) @ dense.T, atol=1e-13)
    assert_allclose(flat_rows(operator.rmatmat(columns)), flat_rows(columns) @ dense.conj(), atol=1e-13)
    assert jax.tree.structure(operator.matvec(v)) == jax.tree.structure(operator.out_struct)
    assert jax.tree.map(lambda x: (x.shape, x.dtype.name), operator.rmatvec(u)) == jax.tree.map(
        lambda x: (x.shape, x.dtype.name), operator.in_struct
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_to_dense_with_and_without_chunks(case, dtype, x64):
    operator, dense = CASES[case](np.random.default_rng(3), dtype)
    for chunk_size in (None, 2, 100):
        made = operator.to_dense(chunk_size=chunk_size)
        assert made.dtype == dtype
        assert_allclose(made, dense, atol=1e-13)
    assert_allclose(operator.H.to_dense(), dense.conj().T, atol=1e-13)
    assert_allclose(operator.T.to_dense(), dense.T, atol=1e-13)


@pytest.mark.parametrize("case", CASES)
def test_an_operator_is_a_pytree_of_arrays(case, x64):
    rng = np.random.default_rng(3)
    operator, dense = CASES[case](rng, "float64")
    leaves, treedef = jax.tree.flatten(operator)
    assert leaves
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    hash(treedef)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(operator)]
    assert len(set(paths)) == len(leaves)
    again = treedef.unflatten(leaves)
    assert type(again) is type(operator)
    assert jax.tree.structure(again) == treedef
    v = vector(rng, operator.in_struct)
    through = jax.jit(lambda A: A)(operator)
    assert_allclose(flat(through.matvec(v)), dense @ flat(v), atol=1e-13)
    # unflattening validates nothing: JAX fills treedefs with placeholders of its own
    treedef.unflatten([object() for _ in leaves])


@pytest.mark.parametrize("case", CASES)
def test_operators_are_carried_through_scan(case, x64):
    rng = np.random.default_rng(3)
    operator, dense = CASES[case](rng, "float64")
    v = vector(rng, operator.in_struct)

    def body(A, _):
        return jax.tree.map(lambda leaf: 2 * leaf, A), A.matvec(v)

    _, images = jax.lax.scan(body, operator, length=2)
    assert_allclose(flat(jax.tree.map(lambda rows: rows[0], images)), dense @ flat(v), atol=1e-13)
    assert not np.allclose(flat(jax.tree.map(lambda rows: rows[1], images)), dense @ flat(v))


def test_a_batch_of_operators_keeps_its_shape(x64):
    rng = np.random.default_rng(3)
    matrices, v = rng.normal(size=(4, 5, 3)), rng.normal(size=3)
    batch = jax.vmap(sx.aslinearoperator)(jnp.asarray(matrices))
    assert batch.shape == (5, 3)
    assert jax.tree.leaves(batch)[0].shape == (4, 5, 3)
    images = jax.vmap(lambda A: A.matvec(jnp.asarray(v)))(batch)
    assert_allclose(images, matrices @ v, atol=1e-13)
    nested = jax.vmap(jax.vmap(sx.aslinearoperator))(jnp.asarray(matrices.reshape(2, 2, 5, 3)))
    images = jax.vmap(jax.vmap(lambda A, x: A.H.matvec(x), (0, None)), (0, None))(nested, jnp.arange(5.0))
    assert_allclose(images.reshape(4, 3), np.arange(5.0) @ matrices, atol=1e-13)


def test_a_batch_of_operators_that_are_made_inside_vmap(x64):
    """What a function closes over under vmap is a tracer; it must become a leaf all the same."""
    rng = np.random.default_rng(3)
    matrices, v = rng.normal(size=(4, 5, 3)), rng.normal(size=3)
    struct = jax.ShapeDtypeStruct((3,), jnp.float64)
    batch = jax.vmap(lambda matrix: sx.aslinearoperator(lambda x: jnp.sin(matrix) @ x, struct))(jnp.asarray(matrices))
    assert batch.shape == (5, 3)
    images = jax.vmap(lambda A: A.matvec(jnp.asarray(v)))(batch)
    assert_allclose(images, np.sin(matrices) @ v, atol=1e-13)


def test_gradients_into_given_and_into_closed_over_data(x64):
    rng = np.random.default_rng(3)
    a, b, v, u = rng.normal(size=(5, 3)), rng.normal(size=(3,)), rng.normal(size=3), rng.normal(size=5)
    struct = jax.ShapeDtypeStruct((3,), jnp.float64)

    def value(a, b):
        A = sx.aslinearoperator(lambda x, given: given @ (b * x), struct, a)
        return jnp.asarray(u) @ A.matvec(jnp.asarray(v)) + jnp.sum(A.rmatvec(jnp.asarray(u)) ** 2)

    # u A v + |A^T u|^2 with A = a diag(b)
    image = b * (a.T @ u)
    expected_a = np.outer(u, b * v) + 2 * np.outer(u, b * image)
    expected_b = (a.T @ u) * v + 2 * image * (a.T @ u)
    for wrap in (lambda f: f, jax.jit):
        got_a, got_b = wrap(jax.grad(value, argnums=(0, 1)))(jnp.asarray(a), jnp.asarray(b))
        assert_allclose(got_a, expected_a, atol=1e-12)
        assert_allclose(got_b, expected_b, atol=1e-12)


def test_gradient_with_respect_to_an_operator_is_an_operator(x64):
    rng = np.random.default_rng(3)
    matrix, v = rng.normal(size=(5, 3)), rng.normal(size=3)
    gradient = jax.grad(lambda A: jnp.sum(A.matvec(jnp.asarray(v)) ** 2))(sx.aslinearoperator(jnp.asarray(matrix)))
    assert isinstance(gradient, sx.LinearOperator)
    assert_allclose(gradient.to_dense(), 2 * np.outer(matrix @ v, v), atol=1e-12)


def linear(v, a):
    return a @ v


def test_operators_of_the_same_function_are_of_the_same_type(x64):
    """One trace for ten calls: a module-level function is static, and so is a fresh object that equals it."""
    traces = []

    @jax.jit
    def norm(A, v):
        traces.append(A)
        return jnp.sum(A.matvec(v))

    struct = jax.ShapeDtypeStruct((3,), jnp.float64)
    for number in range(10):
        data = jnp.full((5, 3), float(number))
        operator = sx.aslinearoperator(linear, struct, data)
        assert float(norm(operator, jnp.ones(3))) == 15.0 * number
    assert len(traces) == 1
    assert norm._cache_size() == 1
    for number in range(10):
        norm(2.0 * (sx.aslinearoperator(jnp.full((5, 3), float(number))).H.H + operator), jnp.ones(3))
    assert len(traces) == 2


def test_a_fresh_closure_inside_jit_traces_once(x64):
    traces = []

    @jax.jit
    def norm(data, v):
        traces.append(data)
        return jnp.sum(sx.aslinearoperator(lambda x: data @ x, v).matvec(v))

    for number in range(10):
        norm(jnp.full((5, 3), float(number)), jnp.ones(3))
    assert len(traces) == 1


def test_bfloat16_products_and_their_working_precision():
    rng = np.random.default_rng(3)
    matrix = jnp.asarray(rng.normal(size=(5, 3)), jnp.bfloat16)
    exact = np.asarray(matrix).astype(np.float64)
    v = jnp.ones(3, jnp.bfloat16)
    operator = sx.aslinearoperator(matrix)
    assert operator.dtype == jnp.bfloat16
    assert operator.matvec(v).dtype == jnp.bfloat16
    explicit = in_working_precision(operator)
    assert explicit.dtype == jnp.float32
    assert_allclose(explicit.matvec(jnp.ones(3)), exact.sum(1), rtol=1e-5, atol=1e-6)
    inside = in_working_precision(sx.aslinearoperator(linear, v, matrix))
    assert inside.dtype == jnp.float32
    eps = float(jnp.finfo(jnp.bfloat16).eps)
    image = inside.matvec(jnp.ones(3))
    assert image.dtype == jnp.float32
    assert_allclose(image, exact.sum(1), atol=3 * eps * np.abs(exact).sum(1).max())
    back = inside.rmatvec(jnp.ones(5))
    assert back.dtype == jnp.float32
    assert_allclose(back, exact.sum(0), atol=5 * eps * np.abs(exact).sum(0).max())
    assert in_working_precision(explicit) is explicit


def test_numpy_scalars_multiply_from_the_left():
    A = sx.aslinearoperator(jnp.eye(2))
    for scalar in (2, 2.0, np.float32(2.0), np.float64(2.0), jnp.float32(2.0), jnp.asarray(2.0)):
        assert isinstance(scalar * A, sx.LinearOperator)
        assert_allclose((scalar * A).to_dense(), 2 * np.eye(2))
        assert_allclose((A * scalar).to_dense(), 2 * np.eye(2))
        assert (scalar * A).dtype == jnp.float32
    assert_allclose((-A).to_dense(), -np.eye(2))
    assert repr(A) == "MatrixOperator(shape=(2, 2), dtype=float32)"


def test_wrong_vectors():
    A = sx.aslinearoperator(jnp.ones((3, 2)))
    with pytest.raises(ValueError, match=r"v must have shape \(2,\), got \(3,\)"):
        A.matvec(jnp.ones(3))
    with pytest.raises(ValueError, match=r"u must have shape \(3,\), got \(2,\)"):
        A.rmatvec(jnp.ones(2))
    with pytest.raises(ValueError, match="v must be a pytree of structure"):
        A.matvec((jnp.ones(2),))
    with pytest.raises(TypeError, match="v must have dtype float32, got int32"):
        A.matvec(jnp.ones(2, jnp.int32))
    with pytest.raises(ValueError, match=r"v must have shape \(2,\), got \(2, 2\)"):
        A @ jnp.ones((2, 2))
    with pytest.raises(ValueError, match="leading axis on every leaf"):
        A.matmat(jnp.ones(()))
    with pytest.raises(ValueError, match=r"stack\[0\] must have shape \(2,\)"):
        A.matmat(jnp.ones(2))
    with pytest.raises(ValueError, match=r"stack\[0\] must have shape \(3,\)"):
        A.rmatmat(jnp.ones((4, 2)))
    pair = sx.aslinearoperator(lambda v: v[0], (jnp.ones(2), jnp.ones(2)))
    with pytest.raises(ValueError, match="one length of its leading axis"):
        pair.matmat((jnp.ones((3, 2)), jnp.ones((4, 2))))


def test_wrong_operands():
    A, B = sx.aslinearoperator(jnp.ones((3, 2))), sx.aslinearoperator(jnp.ones((2, 2)))
    with pytest.raises(ValueError, match="the output of the right operand must have shape"):
        A + B
    with pytest.raises(ValueError, match="the output of the right operand must have shape"):
        A @ A
    with pytest.raises(TypeError, match="unsupported operand"):
        A + 1.0
    with pytest.raises(TypeError, match="unsupported operand"):
        A - jnp.ones(2)
    with pytest.raises(TypeError):
        A * "2"
    with pytest.raises(ValueError, match="scalars only"):
        A * jnp.ones(2)
    with pytest.raises(TypeError, match="complex scalar"):
        A * 2j
    cumulative = sx.aslinearoperator(jnp.cumsum, jnp.ones(3))
    with pytest.raises(ValueError, match="chunk_size must be at least 1"):
        cumulative.to_dense(chunk_size=0)
    with pytest.raises(TypeError, match="chunk_size must be an integer"):
        cumulative.H.to_dense(chunk_size=2.5)


def test_closing_products_are_batched_but_for_tpus():
    W = np.random.default_rng(5).normal(size=(4, 3)).astype("float32")
    operator = sx.aslinearoperator(lambda v: W @ v, jax.ShapeDtypeStruct((3,), jnp.float32))
    matmat, _ = operator.fixed_block_products()
    stack = jnp.arange(6.0).reshape(2, 3)
    assert_allclose(matmat(stack), stack @ W.T, rtol=1e-5)
    for platform, loops in (("cpu", 0), ("tpu", 1)):
        text = jax.export.export(jax.jit(matmat), platforms=(platform,))(stack).mlir_module()
        assert text.count("stablehlo.while") == loops
