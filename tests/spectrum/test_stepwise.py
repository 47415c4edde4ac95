"""Step by step from the host: what the functions at once find, also over the batches of an iterator."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import spectrax as sx

RNG = np.random.default_rng(8)
M = RNG.normal(size=(50, 40))
S = (M.T @ M) / 50 - np.eye(40)
X, Y = RNG.normal(size=(5, 6, 40)), RNG.normal(size=(5, 6))
W = np.linspace(-1.0, 1.0, 40)
HESSIAN = np.einsum("bsi,bsj->ij", X, X) / 30


def squared_error(w, batch):
    x, y = batch
    return jnp.mean((x @ w - y) ** 2) / 2


def batches():
    return zip(X, Y, strict=True)


def over_iterator(batches=batches, dtype="float64", **options):
    return sx.hessian_operator(squared_error, jnp.asarray(W, dtype), batches=batches, **options)


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert_array_equal(x, y)


def through_the_disk(stepwise):
    """The result of a run whose every state was taken to NumPy and back, into an object made anew."""
    state = stepwise().init()
    while not stepwise().done(state):
        leaves, treedef = jax.tree.flatten(stepwise().advance(state))
        state = treedef.unflatten([jnp.asarray(np.array(leaf)) for leaf in leaves])
    return stepwise().result(state)


@pytest.mark.parametrize("which", ["largest", "largest_magnitude"])
def test_eigenpairs(which, key):
    matrix, v0 = jnp.asarray(S, "float32"), jnp.ones((2, 40))
    options = {"which": which, "key": key, "method": sx.Lanczos(subspace_size=12), "v0": v0}
    found = through_the_disk(lambda: sx.stepwise_eigsh(matrix, 2, **options))
    same(found, sx.eigsh(matrix, 2, **options))
    ends = np.linalg.eigvalsh(S)
    assert_allclose(found.eigenvalues[0], ends[np.argmax(np.abs(ends))] if "mag" in which else ends[-1], rtol=1e-5)


@pytest.mark.parametrize("turned", [False, True])
def test_singular_triplets(turned, key):
    matrix = jnp.asarray(M.T if turned else M, "float32")
    options = {"key": key, "method": sx.Lanczos(subspace_size=12)}
    stepwise = sx.stepwise_svds(matrix, 2, **options)
    state = stepwise.advance(stepwise.init())
    assert stepwise.metrics(state)["num_matvecs"] == 2 * int(state.num_steps) > 0
    found = stepwise.run(state)
    same(found, sx.svds(matrix, 2, **options))
    assert_allclose(found.s, np.linalg.svd(M, compute_uv=False)[:2], rtol=1e-5)


def test_what_is_not_known_yet_is_nan(key, x64):
    """Before there are as many directions as values are wanted: no vector of zeros is called converged."""
    method = sx.Lanczos(subspace_size=12)
    iterated = over_iterator()
    for make, A in ((sx.stepwise_eigsh, S), (sx.stepwise_svds, M), (sx.stepwise_eigsh, iterated)):
        options = {} if make is sx.stepwise_svds else {"which": "largest"}
        stepwise = make(A, 3, key=key, method=method, **options)
        state = stepwise.init()
        for missing in ([False, True, True], [False, False, True] if A is iterated else [False] * 3):
            found = stepwise.result(state)
            values = found.eigenvalues if "which" in options else found.s
            assert not found.converged.any() or not any(missing)
            assert np.isnan(values).tolist() == np.isnan(found.residuals).tolist() == missing
            assert found.status == sx.Status.NOT_CONVERGED or not any(missing)
            state = stepwise.advance(state)


@pytest.mark.parametrize("options", [{}, {"batch_size": 2}, {"spectrum": "singular_values"}])
def test_densities(options, key, x64):
    options = {"key": key, "num_probes": 4, "num_steps": 8, **options}
    found = through_the_disk(lambda: sx.stepwise_density(S, **options))
    expected = sx.spectral_density(S, **options)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert x.dtype == y.dtype
        assert_allclose(x, y, atol=1e-12)
    stepwise = sx.stepwise_density(S, **options)
    state = stepwise.init()
    with pytest.raises(ValueError, match="no probe is finished"):
        stepwise.result(state)
    part = stepwise.result(stepwise.advance(state))
    count = options.get("batch_size", 1)
    assert part.nodes.shape == (count, 8)
    assert_allclose(part.nodes, expected.nodes[:count], atol=1e-12)


def test_products_over_an_iterator(x64):
    H, v = over_iterator(), jnp.asarray(RNG.normal(size=(3, 40)))
    assert_allclose(H.to_dense(chunk_size=7), HESSIAN, atol=1e-13)
    assert_allclose(H.matmat(v), v @ HESSIAN, atol=1e-13)
    assert_allclose(H.rmatvec(v[0]), HESSIAN @ v[0], atol=1e-13)
    weights = np.arange(1, 6)
    expected = np.einsum("b,bsi,bsj->ij", weights / 15, X, X) / 6
    for dtype in ("int32", "float64"):
        assert_allclose(over_iterator(weights=weights.astype(dtype)).to_dense(), expected, atol=1e-13)


def test_eigenvalues_trace_and_log_determinant_over_an_iterator(key, x64):
    def loss(w, batch):
        return squared_error(w, batch) + jnp.sum(w**2) / 2

    passes = []

    def counted():
        passes.append(None)
        return batches()

    H = sx.hessian_operator(loss, jnp.asarray(W), batches=counted)
    dense = HESSIAN + np.eye(40)
    values = np.linalg.eigvalsh(dense)
    passes.clear()
    top = sx.stepwise_eigsh(H, 3, which="largest", key=key, method=sx.Lanczos(block_size=3)).run()
    assert bool(jnp.all(top.converged))
    assert_allclose(top.eigenvalues, values[::-1][:3], rtol=1e-9)
    # one pass for a block of three, and one for the residuals
    assert 3 * len(passes) == int(top.num_matvecs)
    assert_allclose(H.matmat(top.eigenvectors), top.eigenvalues[:, None] * top.eigenvectors, atol=1e-8)
    bottom = sx.stepwise_eigsh(H, which="smallest", key=key).run()
    assert_allclose(bottom.eigenvalues[0], values[0], rtol=1e-9)
    passes.clear()
    found = sx.stepwise_density(H, key=key, num_probes=20, num_steps=12, batch_size=10).run()
    assert len(passes) == 24
    for f, exact in ((lambda x: x, np.trace(dense)), (jnp.log, np.linalg.slogdet(dense)[1])):
        total = found.sum(f)
        assert total.lower <= exact <= total.upper
        assert total.upper - total.lower < 0.4 * abs(exact)
    stacked = sx.hessian_operator(loss, jnp.asarray(W), batches=(jnp.asarray(X), jnp.asarray(Y)))
    expected = sx.spectral_density(stacked, key=key, num_probes=20, num_steps=12)
    assert_allclose(found.nodes, expected.nodes, atol=1e-10)
    assert int(found.num_matvecs) == int(expected.num_matvecs)
    at_once = sx.eigsh(stacked, 3, which="largest", key=key, method=sx.Lanczos(block_size=3))
    assert_allclose(at_once.eigenvalues, top.eigenvalues, rtol=1e-12)
    assert int(at_once.num_matvecs) == int(top.num_matvecs)  # tested at the same sizes


def test_a_spectrum_that_is_exhausted_over_an_iterator(key, x64):
    H = sx.hessian_operator(lambda w, b: b * jnp.sum(w**2) / 2, jnp.zeros(6), batches=lambda: iter([2.0, 2.0]))
    found = sx.stepwise_density(H, key=key, num_probes=4, num_steps=5, batch_size=2).run()
    assert int(found.num_matvecs) <= 8  # of 20
    assert_allclose(found.nodes, 2.0, atol=1e-14)


def test_sums_over_batches_of_16_bits_are_taken_in_32(key):
    H = sx.hessian_operator(lambda w, b: b * jnp.sum(w * w) / 2, jnp.ones(3, "bfloat16"), batches=ones)
    assert H.matvec(jnp.ones(3, "bfloat16")).dtype == jnp.bfloat16
    assert_allclose(H.matvec(jnp.ones(3, "bfloat16")).astype("float32"), 1.0)  # 1 + 256 ones are 256 in 16 bits
    found = sx.stepwise_eigsh(H, which="largest", key=key).run()
    assert found.eigenvalues.dtype == jnp.float32
    assert_allclose(found.eigenvalues, 1.0, rtol=1e-2)


def ones():
    return (jnp.ones((), "bfloat16") for _ in range(600))


def test_nan_in_a_batch_is_seen(key):
    spoiled = [(x, y) for x, y in zip(X.astype("f4"), Y.astype("f4"), strict=True)]
    spoiled[2][0][0, 0] = np.nan
    H = over_iterator(lambda: iter(spoiled), "float32")
    assert int(sx.stepwise_eigsh(H, which="largest", key=key).run().status) == sx.Status.NOT_FINITE
    found = sx.stepwise_density(H, key=key, num_probes=2, num_steps=4).run()
    assert int(found.status) == sx.Status.NOT_FINITE
    assert np.isnan(found.nodes).all()


def test_what_is_no_iterator_over_the_same_batches(x64):
    with pytest.raises(TypeError, match="function that returns a fresh iterator"):
        over_iterator(batches())
    with pytest.raises(ValueError, match="at least one batch"):
        over_iterator(lambda: iter([]))
    used = batches()
    H = over_iterator(lambda: used)  # which takes the first batch already, to see what one is
    with pytest.raises(ValueError, match="twice"):
        H.matvec(H.params)
    shared = batches()
    H = over_iterator(lambda: (batch for batch in shared))
    with pytest.raises(ValueError, match="begins with another batch"):
        H.to_dense()
    uneven = [*batches(), (X[0, :3], Y[0, :3])]
    with pytest.raises(ValueError, match="batch 5"):
        over_iterator(lambda: iter(uneven)).to_dense()
    lengths = iter([5, 5, 4])
    H = over_iterator(lambda: iter(list(batches())[: next(lengths)]))
    H.matvec(H.params)
    with pytest.raises(ValueError, match="gave 4 batches, and 5 in the pass before"):
        H.matvec(H.params)
    for count in (4, 6):
        with pytest.raises(ValueError, match=f"{count} weights"):
            over_iterator(weights=np.ones(count)).matvec(H.params)


def test_compiled_functions_name_the_stepwise_ones(key, x64):
    H = over_iterator()
    for function in (
        lambda: sx.eigsh(H, which="largest", key=key),
        lambda: sx.eigsh(2 * H, which="largest", key=key, method=sx.Lanczos()),
        lambda: sx.spectral_density(H, key=key),
        lambda: sx.trace(H, key=key, max_matvecs=10),
        lambda: sx.logdet(H, key=key),
        lambda: jax.jit(H.matvec)(H.params),
    ):
        with pytest.raises(TypeError, match=r"stepwise_eigsh.*stepwise_density"):
            function()
    with pytest.raises(TypeError, match="stepwise_eigsh"):
        sx.stepwise_svds(H, key=key)
    with pytest.raises(TypeError, match="moduli"):
        sx.stepwise_density(H, key=key, spectrum="singular_values")


def test_arguments(key):
    matrix = jnp.asarray(S, "float32")
    for method in ("auto", sx.Dense(), sx.InverseLanczos()):
        with pytest.raises(TypeError, match="Lanczos"):
            sx.stepwise_eigsh(matrix, which="largest", key=key, method=method)
    with pytest.raises(ValueError, match="at most"):
        sx.stepwise_svds(matrix, 41, key=key)
    with pytest.raises(ValueError, match="batch_size must divide"):
        sx.stepwise_density(matrix, key=key, num_probes=4, batch_size=3)
    with pytest.raises(ValueError, match="square"):
        sx.stepwise_density(jnp.asarray(M), key=key)


def test_what_is_made_from_an_operator_over_an_iterator(key):
    H = over_iterator(dtype="float32")
    for made, name in ((2 * H, "ScaledOperator"), (H + H, "SumOperator"), (H.H, "AdjointOperator")):
        says = rf"takes an operator .* as it is, got .* \({name}\): put factors and sums into the loss, or scale"
        for function, options in (
            (sx.stepwise_eigsh, {"which": "largest"}),
            (sx.stepwise_svds, {}),
            (sx.stepwise_density, {"num_probes": 2, "num_steps": 3}),
        ):
            with pytest.raises(TypeError, match=f"{function.__name__} {says}"):
                function(made, key=key, **options)
