"""Preconditioners against the inverse that they approximate, and what `svds` makes of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import spectrax as sx
from spectrax import testing

KEY = jax.random.key(0)


def matrix_of(values, shape, dtype="float64", seed=0):
    return testing.with_singular_values(jax.random.key(seed), values, shape, dtype).to_dense()


def short_gram(A):
    dense = np.asarray(A.to_dense())
    return dense.conj().T @ dense if dense.shape[0] >= dense.shape[1] else dense @ dense.conj().T


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("shape", [(16, 12), (12, 16), (12, 12)])
def test_from_the_matrix_itself_is_the_inverse(shape, dtype, x64):
    matrix = matrix_of(np.geomspace(1, 1e-3, 12), shape, dtype)
    struct = {"x": jax.ShapeDtypeStruct((2, shape[1] // 2), matrix.dtype)}
    as_function = sx.aslinearoperator(lambda v, m: {"y": m @ v["x"].reshape(-1)}, struct, matrix)
    for A in (sx.aslinearoperator(matrix), as_function):
        M = sx.preconditioners.from_matrix(A)
        tall = A if shape[0] >= shape[1] else A.H
        assert M.in_struct == M.out_struct == tall.in_struct
        # R is divided by its largest entry
        scaled = np.asarray(M.to_dense()) @ short_gram(A)
        assert_allclose(scaled / scaled[0, 0], np.eye(12), atol=1e-8)


def test_from_a_singular_matrix_is_finite():
    for matrix in (jnp.zeros((5, 4)), jnp.ones((5, 4)), jnp.eye(5, 4) * 1e-30):
        assert bool(jnp.isfinite(sx.preconditioners.from_matrix(matrix) @ jnp.ones(4)).all())


@pytest.mark.parametrize("shape", [(400, 20), (20, 400), (50, 20), (64, 20)])
def test_a_sketch_is_within_a_factor(shape, x64):
    for values in (np.geomspace(1, 1e-5, 20), np.r_[np.ones(19), 1e-3]):
        spread = []
        for seed in range(5):
            A = sx.aslinearoperator(matrix_of(values, shape, seed=seed))
            M = np.asarray(sx.preconditioners.sketched(A, jax.random.key(seed), chunk_size=7).to_dense())
            ratios = np.sqrt(np.abs(np.linalg.eigvals(M @ short_gram(A))))
            spread.append(ratios.max() / ratios.min())
        # (1 + sqrt(1/3)) / (1 - sqrt(1/3)) = 3.7 for a Gaussian sketch of three times the rows
        assert max(spread) < 6


def test_a_sketch_of_rows_that_stand_alone(x64):
    """Rows that nothing else can replace, as those of the identity above zeros, must not be lost."""
    A = sx.aslinearoperator(jnp.eye(2000, 20))
    ratios = np.linalg.eigvalsh(np.asarray(sx.preconditioners.sketched(A, KEY).to_dense()))
    assert (ratios.max() / ratios.min()) ** 0.5 < 6


CIRCULAR = {
    "one axis": ((3, 2, 2), (8,), {}),
    "two axes": ((3, 3, 2, 3), (6, 5), {}),
    "three axes": ((3, 1, 3, 2, 2), (4, 3, 4), {}),
    "wide": ((3, 3, 3, 2), (6, 5), {}),
    "groups": ((3, 3, 1, 4), (6, 4), {"feature_group_count": 2}),
    "dilated": ((3, 3, 2, 2), (7, 6), {"kernel_dilation": 2}),
}


@pytest.mark.parametrize("dtype", ["complex128", pytest.param("float64", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CIRCULAR)
def test_for_a_circular_convolution_it_is_the_inverse(name, dtype, x64):
    shape, size, options = CIRCULAR[name]
    kernel = 0.1 * jax.random.normal(KEY, shape, dtype)
    center = tuple(k // 2 for k in shape[:-2])
    kernel = kernel.at[center].add(jnp.ones(shape[-2:], dtype) if options.get("feature_group_count") else
                                   jnp.eye(*shape[-2:], dtype=dtype))  # fmt: skip
    A = sx.conv_operator(kernel, size, padding="CIRCULAR", **options)
    M = sx.preconditioners.circulant(A)
    assert M.in_struct == (A.in_struct if A.shape[0] >= A.shape[1] else A.out_struct)
    square = float(sx.conv_singular_values(kernel, size, padding="CIRCULAR", **options)[0]) ** 2
    assert_allclose(M.to_dense() @ short_gram(A), square * np.eye(min(A.shape)), atol=1e-11)
    assert_allclose(M.H.to_dense(), M.to_dense(), atol=1e-12)


def test_16_bit_convolutions_have_32_bit_preconditioners():
    A = sx.conv_operator(jnp.ones((3, 2, 2), jnp.bfloat16), (8,), padding="SAME")
    assert sx.preconditioners.circulant(A).dtype == jnp.float32


@pytest.mark.parametrize(("make", "error", "message"), [
    (lambda: sx.preconditioners.circulant(jnp.eye(3)), TypeError, "for what conv_operator returns .*MatrixOperator"),
    (lambda: sx.preconditioners.circulant(sx.conv_operator(jnp.ones((3, 1, 1)), (8,), padding="SAME", strides=2)),
     ValueError, r"needs stride 1 .* got strides \(2,\)"),
    (lambda: sx.preconditioners.sketched(jnp.eye(3), 0), TypeError, "key must be a PRNG key"),
    (lambda: sx.preconditioners.sketched(jnp.eye(3), KEY, chunk_size=0), ValueError, "chunk_size must be at least 1"),
    (lambda: sx.preconditioners.from_matrix(jnp.ones(3)), ValueError, "two axes"),
])  # fmt: skip
def test_what_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("wide", [False, True])
def test_svds_with_the_factor_of_a_nearby_matrix(wide, x64):
    values = np.geomspace(1, 1e-4, 30)
    matrix = matrix_of(values, (30, 40) if wide else (40, 30))
    A = sx.aslinearoperator(lambda v, m: m @ v, jax.ShapeDtypeStruct(matrix.shape[1:], matrix.dtype), matrix)
    nearby = matrix + 1e-6 * jax.random.normal(KEY, matrix.shape)
    M = sx.preconditioners.from_matrix(nearby)
    preconditioner = (lambda r: M @ r, M.in_struct) if wide else M
    result = sx.svds(A, 2, which="smallest", method=sx.Davidson(max_steps=120), key=KEY, preconditioner=preconditioner)
    testing.assert_singular_values(result, A, which="smallest")
    assert bool(result.converged.all())


def test_a_preconditioner_serves_the_lower_end_alone(x64):
    matrix = matrix_of(np.geomspace(1, 1e-4, 12), (16, 12))
    M = sx.preconditioners.from_matrix(matrix)
    assert_allclose(sx.condition_number(matrix, key=KEY, preconditioner=M), 1e4, rtol=1e-8)
    quantity = sx.smallest_singular_value(matrix, key=KEY, preconditioner=M, full=True)
    assert quantity.kind == "upper"  # and not "exact", as without it
    assert float(quantity.lower) == 0


def test_a_preconditioner_of_another_size_or_for_another_method_is_refused():
    A = jnp.eye(40, 30)
    M = sx.preconditioners.from_matrix(jnp.eye(40, 30))
    for options, message in (
        ({"method": sx.Dense()}, "is of use for Davidson"),
        ({"method": sx.Fallback(sx.Lanczos(), sx.Dense())}, "is of use for Davidson"),
        ({"preconditioner": jnp.eye(40)}, r"input of the preconditioner must have shape \(30,\), got \(40,\)"),
        ({"preconditioner": jnp.ones((20, 30))}, "output of the preconditioner must have shape"),
        ({"which": "largest"}, "use which='smallest'"),
    ):
        arguments = {"which": "smallest", "preconditioner": M, "key": KEY, **options}
        with pytest.raises(ValueError, match=message):
            sx.svds(A, **arguments)


def test_nothing_flows_through_a_preconditioner(x64):
    matrix = matrix_of(np.geomspace(1, 0.1, 12), (16, 12))

    @functools.partial(jax.jit, static_argnums=2)
    def value(matrix, nearby, method):
        M = sx.preconditioners.from_matrix(nearby)
        return sx.svds(matrix, 1, which="smallest", method=method, key=KEY, preconditioner=M).s[0]

    u, _, vh = np.linalg.svd(matrix, full_matrices=False)
    for method in (sx.Davidson(), sx.Fallback(sx.Davidson(max_steps=60), sx.Dense())):
        gradients = jax.grad(value, (0, 1))(matrix, matrix, method)
        assert_allclose(gradients[0], np.outer(u[:, -1], vh[-1]), atol=1e-9)
        assert_allclose(gradients[1], np.zeros((16, 12)))


def test_a_batch_of_operators_with_their_preconditioners(x64):
    matrices = jnp.stack([matrix_of(np.geomspace(1, 10.0**-e, 12), (16, 12), seed=e) for e in (1, 2, 3)])

    def smallest(matrix):
        M = sx.preconditioners.from_matrix(matrix)
        return sx.svds(matrix, 1, which="smallest", key=KEY, preconditioner=M)

    result = jax.jit(jax.vmap(smallest))(matrices)
    assert bool(result.converged.all())
    assert_allclose(result.s[:, 0], [1e-1, 1e-2, 1e-3], rtol=1e-9)
