"""One contract for all penalties: values by NumPy, gradients by central differences, and degenerate spectra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import spectrax as sx
from spectrax import regularizers

EPS = float(np.finfo(np.float64).eps)


def ends(s, block):
    count = min(block, max(len(s) // 2, 1))
    return s[:count], s[-count:]


def ratios(s, block):
    top, bottom = ends(s, block)
    return top / (bottom + EPS * s[0])


def entropy_rank(s):
    p = s / s.sum()
    return np.exp(-np.sum(p * np.log(p)))


def coherence(A):
    A = A if A.shape[0] >= A.shape[1] else A.T
    return np.abs(A.T @ A - np.eye(A.shape[1])).max()


def outside(values, low, high):
    return np.sum(np.maximum(values - high, 0) ** 2 + np.maximum(low - values, 0) ** 2) / 2


# Each penalty with its value for a matrix A (outputs x inputs) that has the singular values s, by the definition.
EVERY = {
    "log condition": (regularizers.condition_number_penalty(), lambda A, s: np.mean(np.log(ratios(s, 8)))),
    "condition": (
        regularizers.condition_number_penalty(form="plain", block_size=1),
        lambda A, s: ratios(s, 1)[0],
    ),
    "squared condition, hinge": (
        regularizers.condition_number_penalty(form="squared", block_size=2, target=2.0),
        lambda A, s: max(0, np.mean(ratios(s, 2) ** 2) - 4),
    ),
    "log condition, hinge": (
        regularizers.condition_number_penalty(block_size=1, target=1.5),
        lambda A, s: max(0, np.log(ratios(s, 1)[0]) - np.log(1.5)),
    ),
    "smooth condition": (
        regularizers.smooth_condition_penalty(),
        lambda A, s: (s[0] ** 2 - np.sum(A**2) / min(A.shape)) / 2,
    ),
    "spectral norm": (regularizers.spectral_norm_penalty(), lambda A, s: s[0] ** 2 / 2),
    "unit norm": (regularizers.unit_norm_penalty(), lambda A, s: (s[0] ** 2 - 1) ** 2),
    "unit norm, cubed": (regularizers.unit_norm_penalty(exponent=3), lambda A, s: (s[0] ** 3 - 1) ** 2),
    "band": (
        regularizers.band_penalty(0.9, 1.1, block_size=2),
        lambda A, s: outside(ends(s, 2)[0], 0, 1.1) + outside(ends(s, 2)[1], 0.9, np.inf),
    ),
    "SRIP": (
        regularizers.restricted_isometry_penalty(),
        lambda A, s: np.abs(s[[0, -1]] ** 2 - 1).max(),
    ),
    "soft orthogonality": (regularizers.orthogonality_penalty(), lambda A, s: np.sum((s**2 - 1) ** 2)),
    "double soft orthogonality": (
        regularizers.orthogonality_penalty(form="double_soft"),
        lambda A, s: np.sum((A.T @ A - np.eye(A.shape[1])) ** 2) + np.sum((A @ A.T - np.eye(A.shape[0])) ** 2),
    ),
    "mutual coherence": (regularizers.orthogonality_penalty(form="mutual_coherence"), lambda A, s: coherence(A)),
    "nuclear norm": (regularizers.schatten_norm_penalty(), lambda A, s: s.sum()),
    "Schatten norm": (regularizers.schatten_norm_penalty(p=2.5), lambda A, s: np.sum(s**2.5) / 2.5),
    "Frobenius norm": (regularizers.frobenius_norm_penalty(), lambda A, s: np.sum(A**2) / 2),
    "effective rank": (regularizers.effective_rank_penalty(), lambda A, s: entropy_rank(s)),
    "effective rank, raised": (
        regularizers.effective_rank_penalty(direction="raise"),
        lambda A, s: len(s) - entropy_rank(s),
    ),
    "stable rank": (regularizers.stable_rank_penalty(), lambda A, s: np.sum(s**2) / s[0] ** 2),
    "stable rank, raised": (
        regularizers.stable_rank_penalty(direction="raise"),
        lambda A, s: len(s) - np.sum(s**2) / s[0] ** 2,
    ),
    "log-determinant": (regularizers.log_determinant_penalty(), lambda A, s: np.sum(s**2 - np.log(s**2 + EPS) - 1)),
    "RankMin": (regularizers.rank_penalty(0.5), lambda A, s: np.sum(s[s < 0.5] ** 2) / 2),
    "RankMax": (
        regularizers.rank_penalty(1.2, direction="raise"),
        lambda A, s: np.sum((s[s > 1.2] - 1.2) ** 2) / 2,
    ),
    "Schur": (
        regularizers.conv_norm_penalty(method="schur"),
        lambda A, s: np.sqrt(np.abs(A).sum(0).max() * np.abs(A).sum(1).max()),
    ),
    "tap sum": (regularizers.conv_norm_penalty(method="tap_sum"), lambda A, s: s[0]),
}
every_penalty = pytest.mark.parametrize("name", EVERY)


def params_of(seed=0, dtype="float64"):
    """A tall and a wide kernel, and what is no matrix."""
    rng = np.random.default_rng(seed)
    shapes = {"tall": (8, 5), "wide": (4, 6), "bias": (3,)}
    return {name: jnp.asarray(rng.normal(size=shape) / 2.2, dtype) for name, shape in shapes.items()}


@every_penalty
def test_values_by_the_definition_and_gradients_by_central_differences(name, x64):
    penalty, definition = EVERY[name]
    params, direction = params_of(0), params_of(7)

    @jax.jit
    def value(t):
        moved = jax.tree.map(lambda a, b: a + t * b, params, direction)
        return penalty.apply(moved, penalty.init(moved, None))[0]

    step = 1e-6
    for t in (0.0, 0.3):
        matrices = [np.asarray(params[each] + t * direction[each]).T for each in ("tall", "wide")]
        expected = sum(definition(A, np.linalg.svd(A, compute_uv=False)) for A in matrices)
        assert_allclose(value(t), expected, rtol=1e-10)
    expected = (value(step) - value(-step)) / (2 * step)
    assert_allclose(jax.jit(jax.grad(value))(0.0), expected, rtol=1e-6, atol=1e-7)


DEGENERATE = {
    "zero": np.zeros((6, 4)),
    "rank one": np.outer(np.arange(1.0, 7), [1, 2, 0, -1]) / 8,
    "orthonormal": np.linalg.qr(np.random.default_rng(0).normal(size=(6, 4)))[0],
    "identity": np.eye(4),
    "one row": np.array([[0.5, -1.0, 2.0]]),
    "one entry": np.array([[0.5]]),
    "tiny": 1e-20 * np.random.default_rng(0).normal(size=(4, 4)),
}


@every_penalty
def test_degenerate_spectra(name):
    """Finite values and gradients, in 16 bits too, and a state of one structure; NaN comes through."""
    penalty, _ = EVERY[name]
    update = jax.jit(jax.value_and_grad(penalty.apply, has_aux=True))
    params = {each: jnp.asarray(matrix, jnp.float32) for each, matrix in DEGENERATE.items()}
    params |= {f"{each}, 16": jnp.asarray(DEGENERATE[each], jnp.bfloat16) for each in ("zero", "rank one", "identity")}
    state = penalty.init(params, None)
    (value, after), gradient = update(params, state)
    assert value.dtype == jnp.float32
    assert np.isfinite(value)
    for kernel, own in gradient.items():
        assert own.dtype == params[kernel].dtype
        assert np.isfinite(own.astype(jnp.float32)).all(), kernel
    assert jax.tree.structure(after) == jax.tree.structure(state)
    both = zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True)
    assert all((a.shape, a.dtype) == (b.shape, b.dtype) for a, b in both)
    broken = {"kernel": jnp.full((4, 3), jnp.nan)}
    assert np.isnan(penalty.apply(broken, penalty.init(broken, None))[0])


def test_convolutions_with_their_geometry(x64):
    """Values of the true matrix where the form is of the map, and of the kernel where it is of that."""
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3, 2, 4)) / 4)

    def maps(params):
        return {"conv": sx.conv_operator(params, (4, 4), padding="SAME")}

    s = np.linalg.svd(maps(kernel)["conv"].to_dense(), compute_uv=False)
    key = jax.random.key(0)
    for name, made, expected in (
        ("smooth", regularizers.smooth_condition_penalty(maps), (s[0] ** 2 - np.mean(s**2)) / 2),
        ("nuclear", regularizers.schatten_norm_penalty(maps), s.sum()),
        ("ocnn", regularizers.orthogonality_penalty(maps, form="ocnn"), sx.conv_orthogonality(kernel, side="rows")),
        ("lorth", regularizers.orthogonality_penalty(maps, form="lorth"), sx.conv_orthogonality(kernel)),
        ("gram", regularizers.conv_norm_penalty(maps), sx.conv_norm(kernel, padding="SAME", method="gram").value),
    ):
        value, _ = made.apply(kernel, made.init(kernel, key))
        assert_allclose(value, expected, rtol=1e-9, err_msg=name)
        assert name != "gram" or value >= s[0]


def test_published_numbers(x64):
    """A kernel with orthonormal columns has nothing for Lorth and its number of spare outputs for OCNN."""
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 2)))[0].T.reshape(1, 1, 2, 6)
    maps = lambda params: {"conv": sx.conv_operator(params, (4, 4), padding="CIRCULAR")}  # noqa: E731
    for form, expected in (("lorth", 0), ("ocnn", 4)):
        penalty = regularizers.orthogonality_penalty(maps, form=form)
        assert_allclose(penalty.apply(jnp.asarray(q), penalty.init(jnp.asarray(q), None))[0], expected, atol=1e-12)
    # Nenov, Haider & Balazs: kappa <= sqrt(1 + 2 nu r / s_min^2), with equality in two dimensions; r = 0.517129 there
    # belongs to kappa = 1.4734
    smooth = regularizers.smooth_condition_penalty()
    matrix = jnp.asarray(np.random.default_rng(1).normal(size=(2, 2)))
    r, s = smooth.apply(matrix, smooth.init(matrix, None))[0], np.linalg.svd(matrix, compute_uv=False)
    assert_allclose(np.sqrt(1 + 4 * r / s[-1] ** 2), s[0] / s[-1], rtol=1e-12)
    smallest = np.sqrt(4 * 0.517129 / (1.4734**2 - 1))
    matrix = jnp.diag(jnp.array([1.4734 * smallest, smallest]))
    assert_allclose(smooth.apply(matrix, smooth.init(matrix, None))[0], 0.517129, rtol=1e-12)
    # one step of 0.1 along it lowers the condition number
    lower = matrix - 0.1 * jax.grad(lambda p: smooth.apply(p, smooth.init(p, None))[0])(matrix)
    assert np.linalg.cond(lower) < 1.4


def test_the_product_of_norms(x64):
    penalty = regularizers.frobenius_product_penalty()
    params = params_of()
    state = penalty.init(params, None)
    norms = [np.linalg.norm(params[name]) for name in ("tall", "wide")]
    value, gradient = jax.value_and_grad(lambda p: penalty.apply(p, state)[0])(params)
    assert_allclose(value, np.prod(norms), rtol=1e-12)
    assert_allclose(gradient["tall"], params["tall"] * norms[1] / norms[0], rtol=1e-10)
    one_zero = params | {"tall": 0 * params["tall"]}
    assert all(
        np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.grad(lambda p: penalty.apply(p, state)[0])(one_zero))
    )


def model(params, x):
    return jnp.tanh(x @ params["tall"])[:4] @ params["wide"]


def test_jacobians_of_samples(x64):
    """The mean over samples of the formulas' values, for the Jacobian of each."""
    params, xs = params_of(), jnp.asarray(np.random.default_rng(5).normal(size=(6, 8)))
    maps = regularizers.jacobian_maps(model)
    jacobians = np.asarray(jax.vmap(jax.jacrev(model, argnums=1), (None, 0))(params, xs))
    spectra = np.linalg.svd(jacobians, compute_uv=False)
    cases = {
        "Frobenius": (regularizers.frobenius_norm_penalty(maps, batched=True), np.mean(np.sum(spectra**2, -1)) / 2),
        "nuclear": (regularizers.schatten_norm_penalty(maps, batched=True), np.mean(spectra.sum(-1))),
        "spectral": (regularizers.spectral_norm_penalty(maps, batched=True), np.mean(spectra[:, 0] ** 2) / 2),
        "band": (
            regularizers.band_penalty(0.0, 0.5, maps, batched=True, block_size=2),
            np.mean([outside(s[:2], 0, 0.5) for s in spectra]),
        ),
    }
    for name, (penalty, expected) in cases.items():
        state = penalty.init(params, jax.random.key(0))
        assert_allclose(penalty.apply(params, state, x=xs)[0], expected, rtol=1e-8, err_msg=name)
        gradient = jax.grad(lambda p, penalty=penalty, state=state: penalty.apply(p, state, x=xs)[0])(params)
        assert np.any(gradient["tall"] != 0)


def test_the_jacobian_regulariser_is_unbiased(x64):
    """The mean over 2,000 draws lies within four standard errors of the exact value; each sample has its own draws."""
    params, xs = params_of(), jnp.asarray(np.random.default_rng(5).normal(size=(3, 8)))
    maps = regularizers.jacobian_maps(model)
    exact = regularizers.frobenius_norm_penalty(maps, batched=True)
    value, _ = exact.apply(params, exact.init(params, None), x=xs)
    estimate = regularizers.frobenius_norm_penalty(maps, batched=True, num_probes=1)

    @jax.jit
    def draws(keys):
        return jax.vmap(lambda key: estimate.apply(params, estimate.init(params, key), x=xs)[0])(keys)

    found = np.asarray(draws(jax.random.split(jax.random.key(0), 2000)))
    assert abs(found.mean() - value) < 4 * found.std() / np.sqrt(len(found))
    state = estimate.init(params, jax.random.key(1))
    first, state = estimate.apply(params, state, x=xs)
    assert first != estimate.apply(params, state, x=xs)[0]  # drawn anew at every step
    with pytest.raises(ValueError, match="a PRNG key"):
        estimate.apply(params, estimate.init(params, None), x=xs)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: regularizers.condition_number_penalty(form="cubed"), ValueError, "form must be one of"),
        (lambda: regularizers.condition_number_penalty(target=0.5), ValueError, "target must be at least 1"),
        (lambda: regularizers.band_penalty(2.0, 1.0), ValueError, "high must be at least 2"),
        (lambda: regularizers.band_penalty(-1.0, 1.0), ValueError, "low must be at least 0"),
        (lambda: regularizers.unit_norm_penalty(exponent=0), ValueError, "exponent must be at least 1"),
        (lambda: regularizers.orthogonality_penalty(form="hard"), ValueError, "form must be one of"),
        (lambda: regularizers.schatten_norm_penalty(p=0.5), ValueError, "p must lie in"),
        (lambda: regularizers.effective_rank_penalty(direction="up"), ValueError, "direction must be one of"),
        (lambda: regularizers.stable_rank_penalty(direction="up"), ValueError, "direction must be one of"),
        (lambda: regularizers.rank_penalty(0.0), ValueError, "threshold must be larger than 0"),
        (lambda: regularizers.conv_norm_penalty(method="exact"), ValueError, "method must be one of"),
        (lambda: regularizers.frobenius_norm_penalty(num_probes=0), ValueError, "num_probes must be at least 1"),
    ],
)
def test_what_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_what_is_refused_when_applied():
    def dilated(params):
        return {"conv": sx.conv_operator(params, (9,), padding="SAME", kernel_dilation=2, strides=2)}

    def product(params):
        return {"product": sx.aslinearoperator(params[0]) @ sx.aslinearoperator(params[0].T)}

    params = jnp.ones((3, 2, 2))
    for penalty, error, message in (
        (regularizers.orthogonality_penalty(dilated, form="lorth"), ValueError, "not defined for kernel_dilation"),
        (regularizers.conv_norm_penalty(product), TypeError, "acts on convolutions"),
    ):
        state = penalty.init(params, None)
        with pytest.raises(error, match=message):
            penalty.apply(params, state)
