"""The table of transforms: every public function of the lower floors under every transformation of JAX."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import spectrax as sx
from spectrax import testing

SHAPE = (8, 6)
KEY = jax.random.key(11)
NORMS = ("condition_number", "frobenius_norm")


def linear(v, matrix):
    return {"y": matrix @ v["x"]}


def tanh_layer(x, matrix):
    return jnp.tanh(matrix @ x)


def function_operator(matrix):
    return sx.aslinearoperator(linear, {"x": jax.ShapeDtypeStruct((6,), matrix.dtype)}, matrix)


def point(matrix, count=6):
    return jnp.linspace(0.1, 1.0, count, dtype=jnp.finfo(matrix.dtype).dtype).astype(matrix.dtype)


def gram(matrix):
    """A Hermitian matrix, in the round-off of its two halves as well."""
    product = jnp.matmul(matrix.conj().T, matrix, precision="highest")
    return (product + product.conj().T) / 2


def density(matrix):
    return sx.spectral_density(matrix, key=KEY, num_probes=2, num_steps=4, spectrum="singular_values")


def as_kernel(matrix):
    return matrix.reshape(4, 2, 6)


# From a matrix to arrays whose every entry is smooth in it.
TABLE = {
    "svds, dense": lambda A: sx.svds(A, 2).s,
    "svds, vectors": lambda A: jnp.abs(sx.svds(A, 2).v) ** 2,
    "svds, function": lambda A: sx.svds(function_operator(A), 2, key=KEY).s,
    "eigsh": lambda A: sx.eigsh(gram(A), 2, which="smallest").eigenvalues,
    "eigsh, vectors": lambda A: jnp.abs(sx.eigsh(gram(A), 2, which="largest").eigenvectors) ** 2,
    "singular_values": sx.singular_values,
    "spectral_norm": sx.spectral_norm,
    "spectral_norm, full": lambda A: sx.spectral_norm(A, full=True).value,
    "smallest_singular_value": sx.smallest_singular_value,
    "condition_number": sx.condition_number,
    "log_condition_number": sx.log_condition_number,
    "log_condition_number, full": lambda A: sx.log_condition_number(A, full=True).value,
    "extreme_singular_values": lambda A: sx.extreme_singular_values(A)[:2],
    "spectral_function": lambda A: sx.spectral_function(A, lambda s: jnp.log(s) + A[0, 0].real.astype(s.dtype) * s),
    "norms of the whole spectrum": lambda A: (sx.nuclear_norm(A), sx.schatten_norm(A, 3), sx.frobenius_norm(A)),
    "ranks": lambda A: (sx.effective_rank(function_operator(A), max_bytes=1024), sx.stable_rank(A)),
    "conv_singular_values, circular": lambda A: jnp.sum(
        sx.conv_singular_values(as_kernel(A), (4,), padding="CIRCULAR") ** 3
    ),
    "conv_singular_values, same": lambda A: sx.conv_singular_values(as_kernel(A), (4,), padding="SAME"),
    "conv_norm, on the kernel": lambda A: sx.conv_norm(as_kernel(A), padding="SAME", method="gram", num_steps=2).value,
    "conv_norm, on a grid": lambda A: sx.conv_norm(as_kernel(A), padding="SAME", method="grid").value,
    "conv_symbol": lambda A: jnp.abs(sx.conv_symbol(as_kernel(A), jnp.array([[0.3], [2.0]], A.dtype))),
    "kernels clipped": lambda A: sx.clip_spectral_norm(as_kernel(A), 1.5, (5,)),
    "kernels with rows of length one": lambda A: (
        sx.conv_row_normalize(as_kernel(A), (5,)),
        sx.row_isometry_error(as_kernel(A), (5,)).astype(A.dtype),
    ),
    "kernels rescaled": lambda A: sx.aol_rescale(as_kernel(A), strides=2),
    "kernels of Cayley transforms": lambda A: (sx.cayley(A), sx.cayley_convolution(as_kernel(A), (5,))),
    "conv_orthogonality": lambda A: sx.conv_orthogonality(as_kernel(A)).astype(A.dtype),
    "folding": lambda A: sx.fold_batch_norm(
        as_kernel(A), scale=A[0], bias=A[1], mean=A[2], var=abs(A[3]) ** 2, epsilon=0.5
    ),
    "jacobian": lambda A: sx.jacobian(tanh_layer, point(A), A),
    "jacobian, reverse in chunks": lambda A: sx.jacobian(tanh_layer, point(A), A, mode="reverse", chunk_size=3),
    "batched_jacobian": lambda A: sx.batched_jacobian(tanh_layer, jnp.stack([point(A), 2 * point(A)]), A, chunk_size=1),
    "jacobian_spectrum, norms and condition numbers": lambda A: sx.jacobian_spectrum(
        tanh_layer, jnp.stack([point(A) / 4, point(A) / 2, point(A)]), A, statistics=NORMS, chunk_size=2
    ),
    "jacobian_operator": lambda A: sx.jacobian_operator(tanh_layer, point(A), A).matvec(point(A)),
    "jacobian_operator, adjoint": lambda A: sx.jacobian_operator(tanh_layer, point(A), A).H @ point(A, 8),
    "aslinearoperator, matrix": lambda A: sx.aslinearoperator(A).H @ (sx.aslinearoperator(A) @ jnp.tanh(A[0])),
    "aslinearoperator, function": lambda A: function_operator(A).rmatvec({"y": jnp.tanh(A[:, 0])}),
    "aslinearoperator, closure": lambda A: sx.aslinearoperator(lambda v: jnp.sin(A) @ v, point(A)) @ point(A),
    "conv_operator": lambda A: sx.conv_operator(as_kernel(A) ** 2, (5,), padding="SAME").matvec(
        jnp.ones((5, 2), A.dtype)
    ),
    "conv_operator, adjoint": lambda A: (
        sx.conv_operator(as_kernel(A) ** 2, (5,), padding="FULL", strides=2).H @ jnp.ones((4, 6), A.dtype)
    ),
    "trace and logdet": lambda A: (
        sx.trace(gram(A)).astype(A.dtype),
        sx.logdet(gram(A) + jnp.eye(6, dtype=A.dtype)).astype(A.dtype),
    ),
    "to_dense": lambda A: (sx.aslinearoperator(A) @ function_of(A).H).to_dense(),
}

# The same for the iterations, whose compilations take seconds each.
ITERATIONS = {
    "svds, lanczos": lambda A: sx.svds(A, 2, method=sx.Lanczos(), key=KEY).s,
    "svds, inverse": lambda A: sx.svds(A, 1, which="smallest", method=sx.InverseLanczos(), key=KEY).s,
    "eigsh, lanczos": lambda A: (
        sx.eigsh(gram(A), 2, which="largest_magnitude", method=sx.Lanczos(), key=KEY).eigenvalues
    ),
}
# What has no derivative.
BOUNDS = {
    "spectral_norm_bound": lambda A: sx.spectral_norm_bound(A, key=KEY, num_steps=4).value,
    "spectral_density": lambda A: density(A).count(0.5, 2.0).value,
    "estimates of trace and logdet": lambda A: (
        sx.trace(gram(A), key=KEY, method=sx.XTrace(), max_matvecs=4).astype(A.dtype),
        sx.logdet(gram(A) + jnp.eye(6, dtype=A.dtype), key=KEY, method=sx.StochasticLanczos(2, 4)).astype(A.dtype),
    ),
}
EVERY = {**TABLE, **ITERATIONS, **BOUNDS}


def function_of(matrix):
    return sx.aslinearoperator(lambda v: jnp.cos(matrix) @ v, point(matrix))


def matrices(count, dtype="float64"):
    spectrum = np.geomspace(3, 1, 6)
    return jnp.stack([
        testing.with_singular_values(jax.random.key(seed), spectrum, SHAPE, dtype).to_dense() for seed in range(count)
    ])  # fmt: skip


def close(got, expected, **tolerances):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: assert_allclose(a, b, **tolerances), got, expected)


def scalar(f):
    """A number that depends on every entry, smoothly and not only linearly."""
    return lambda A: sum(jnp.sum(jnp.sin(leaf) + leaf**2) for leaf in jax.tree.leaves(f(A)))


@pytest.mark.parametrize(
    "name",
    [*TABLE, *BOUNDS, "svds, lanczos"] + [pytest.param(n, marks=pytest.mark.slow) for n in list(ITERATIONS)[1:]],
)
def test_jit_vmap_and_scan(name, x64):
    f, several = EVERY[name], matrices(4)
    each = [f(A) for A in several]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *each)
    close(jax.jit(f)(several[0]), each[0], rtol=1e-9, atol=1e-12)
    close(jax.vmap(f)(several), stacked, rtol=1e-9, atol=1e-12)
    _, scanned = jax.lax.scan(lambda carry, A: (carry, f(A)), 0, several)
    close(scanned, stacked, rtol=1e-9, atol=1e-12)
    nested = jax.vmap(jax.vmap(f))(several.reshape(2, 2, *SHAPE))
    close(nested, jax.tree.map(lambda leaf: leaf.reshape(2, 2, *leaf.shape[1:]), stacked), rtol=1e-9, atol=1e-12)


def check_derivatives(f, *, second):
    A, direction = matrices(2)
    f = jax.jit(scalar(f))

    def slope(g):
        ahead, behind = g(A + 1e-5 * direction), g(A - 1e-5 * direction)
        return jax.tree.map(lambda a, b: (a - b) / 2e-5, ahead, behind)

    expected = slope(f)
    gradient = jax.jit(jax.grad(f))
    assert_allclose(jnp.sum(gradient(A) * direction), expected, rtol=1e-6, atol=1e-8)
    assert_allclose(jax.jit(lambda A, D: jax.jvp(f, (A,), (D,))[1])(A, direction), expected, rtol=1e-6, atol=1e-8)
    if second:
        along = jax.grad(lambda A: jnp.sum(jax.grad(f)(A) * direction))
        assert_allclose(jax.jit(along)(A), slope(gradient), rtol=1e-5, atol=1e-6)
    each = np.stack([gradient(A), gradient(direction)])
    assert_allclose(jax.vmap(jax.grad(f))(jnp.stack([A, direction])), each, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", TABLE)
def test_grad_jvp_and_grad_of_grad(name, x64):
    # two names that end in the same call share their second derivative
    check_derivatives(TABLE[name], second=name not in ("svds, dense", "extreme_singular_values", "condition_number"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ITERATIONS)
def test_grad_jvp_and_grad_of_grad_of_iterations(name, x64):
    check_derivatives(ITERATIONS[name], second=True)


@pytest.mark.parametrize("name", EVERY)
def test_shapes_are_known_and_dtypes_kept(name):
    """Nothing runs under `eval_shape`; in 32-bit mode 32 bits stay 32 bits, and complex stays complex."""
    f = EVERY[name]
    for dtype in ("float32", "complex64"):
        if dtype == "complex64" and (name.startswith("conv_s") or "vectors" in name):
            continue
        known = jax.eval_shape(f, jax.ShapeDtypeStruct(SHAPE, dtype))
        got = f(matrices(1, dtype)[0])
        assert jax.tree.map(lambda a: (a.shape, a.dtype), known) == jax.tree.map(lambda a: (a.shape, a.dtype), got)
        of_values = any(word in name for word in ("svds", "eigsh", "singular", "norm", "number", "rank", "spectral"))
        for leaf in jax.tree.leaves(got):
            assert leaf.dtype == ("float32" if of_values else dtype)
    for dtype in ("bfloat16", "float16"):
        if name.startswith(("conv_s", "to_dense")):
            continue  # NumPy's and LAPACK's 16-bit routines do not exist
        for leaf in jax.tree.leaves(jax.eval_shape(f, jax.ShapeDtypeStruct(SHAPE, dtype))):
            assert leaf.dtype == ("float32" if of_values else dtype)


@pytest.mark.parametrize("name", EVERY)
def test_one_trace_for_ten_calls(name):
    traces = []

    @jax.jit
    def counted(A):
        traces.append(A.shape)
        return EVERY[name](A)

    several = matrices(2, "float32")
    for number in range(10):
        counted(several[number % 2])
    assert len(traces) == 1
    assert counted._cache_size() == 1


def test_svds_compiles_once_outside_of_jit():
    """Its own cache: for another matrix, another key and another start, and for fresh operators of one function."""
    cache = sys.modules["spectrax.spectrum.svds"]._jitted
    several = matrices(3, "float32")
    for number in range(10):
        sx.svds(function_operator(several[number % 3]), 2, method=sx.Dense())
        if number == 0:
            before = cache._cache_size()
    assert cache._cache_size() == before
    for number in range(10):
        v0 = jnp.full((1, 6), float(number + 1))
        sx.svds(several[number % 3], 2, method=sx.Lanczos(subspace_size=5), key=jax.random.key(number), v0=v0)
        if number == 0:
            before = cache._cache_size()
    assert cache._cache_size() == before


@pytest.mark.parametrize("name", EVERY)
def test_lowering_for_every_platform(name):
    """Nothing but what exists on each of them: no callback, and on TPU no SVD inside of a Krylov loop."""
    f = EVERY[name]
    struct = jax.ShapeDtypeStruct(SHAPE, jnp.float32)
    exported = jax.export.export(jax.jit(f), platforms=("cpu", "cuda", "rocm", "tpu"))(struct)
    assert "callback" not in exported.mlir_module()
    if name in TABLE:
        jax.export.export(jax.jit(jax.grad(scalar(f))), platforms=("tpu",))(struct)


SHARDED = """
    import jax, jax.numpy as jnp, numpy as np
    import spectrax as sx
    from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

    assert len(jax.devices()) == 8
    mesh = Mesh(np.array(jax.devices()), ("data",))
    key = jax.random.key(0)
    A = sx.testing.with_singular_values(key, np.geomspace(2, 0.5, 24), (32, 24)).to_dense()
    methods = {"dense": sx.Dense(), "lanczos": sx.Lanczos()}
    for name, method in methods.items():
        alone = sx.svds(A, 2, method=method, key=key)
        for spec in (P("data", None), P(None, "data")):
            placed = jax.device_put(A, NamedSharding(mesh, spec))
            result = sx.svds(placed, 2, method=method, key=key)
            assert bool(result.converged.all()), (name, spec)
            bound = (alone.residuals + result.residuals) * 0.5**0.5 + 20 * 1.2e-7 * 2
            assert (np.abs(alone.s - result.s) <= bound).all(), (name, spec, alone.s, result.s)
            sx.testing.assert_singular_values(result, np.asarray(A))
    placed = jax.device_put(jnp.stack([A] * 8), NamedSharding(mesh, P("data")))
    norms = jax.jit(jax.vmap(sx.spectral_norm))(placed)
    assert norms.sharding.is_equivalent_to(NamedSharding(mesh, P("data")), 1), norms.sharding
    assert np.abs(norms - 2).max() < 1e-5
    print("same")
"""


def test_eight_virtual_devices(on_eight_devices):
    assert on_eight_devices(SHARDED).endswith("same")
