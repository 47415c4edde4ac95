"""NN-Mass against the values of its authors' code and counted links; isometry against NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import spectrax as sx
from spectrax.theory.topology import layerwise_dynamical_isometry, nn_degree, nn_density, nn_mass

# width, depth, max_skip_channels, density, mass: as the authors' code gives them
CASES = [
    (8, 8, 10, 0.345238, 22.095238),
    (8, 4, 20, 1.0, 32.0),
    (16, 5, 0, 0.0, 0.0),
    (8, 16, 10, 0.164286, 21.028571),
    (32, 10, 50, 0.331597, 106.111111),
    (4, 3, 100, 1.0, 12.0),
]


@pytest.mark.parametrize(("width", "depth", "skips", "density", "mass"), CASES)
def test_the_authors_values(width, depth, skips, density, mass):
    cell = {"width": width, "depth": depth, "max_skip_channels": skips}
    assert round(nn_density(**cell), 6) == density
    assert round(nn_mass(**cell), 6) == mass


def test_three_cells_of_a_convolutional_network():
    assert_allclose(nn_mass(width=(32, 64, 128), depth=8, max_skip_channels=(10, 20, 40)), 160, rtol=1e-14)
    assert_allclose(nn_mass(width=[8, 8], depth=[8, 4], max_skip_channels=[10, 20]), 22.0952380952381 + 32, rtol=1e-14)


def test_few_skips_have_a_closed_form():
    for width, depth, skips in itertools.product((4, 9), (3, 5, 20), (0, 1, 4)):
        expected = 2 * depth * skips / (depth - 1)
        assert_allclose(nn_mass(width=width, depth=depth, max_skip_channels=skips), expected, rtol=1e-14)


def test_the_degree_is_the_mean_number_of_links():
    """Links of a cell with concatenation, counted one by one: a channel from further back reaches all outputs."""
    width, depth, skips = 4, 5, 6
    links = sum(width for layer in range(2, depth) for _ in range(min(width * (layer - 1), skips)))
    found = nn_degree(width=width, depth=depth, num_skip_links=links)
    assert_allclose(found, width + links / (width * depth), rtol=1e-15)
    assert nn_degree(width=(8, 16), depth=4, num_skip_links=0) == 24
    assert nn_degree(width=2, depth=1, num_skip_links=0) == 2


@pytest.mark.parametrize(
    ("function", "error", "match"),
    [
        (lambda: nn_mass(width=8, depth=2, max_skip_channels=1), ValueError, "depth must be at least 3"),
        (lambda: nn_mass(width=0, depth=3, max_skip_channels=1), ValueError, "width must be at least 1"),
        (lambda: nn_mass(width=8, depth=3, max_skip_channels=-1), ValueError, "max_skip_channels must not be negative"),
        (lambda: nn_mass(width=8, depth=3, max_skip_channels=1.5), TypeError, "max_skip_channels must be an integer"),  # type: ignore[arg-type]
        (lambda: nn_mass(width=8.0, depth=3, max_skip_channels=1), TypeError, "width must be an integer"),  # type: ignore[arg-type]
        (lambda: nn_mass(width=(8, 8), depth=(3, 3, 3), max_skip_channels=1), ValueError, "one length"),
        (lambda: nn_mass(width=(), depth=3, max_skip_channels=1), ValueError, "one length"),
        (lambda: nn_degree(width=8, depth=3, num_skip_links=-1), ValueError, "num_skip_links must not be negative"),
        (lambda: nn_degree(width=8, depth=0, num_skip_links=1), ValueError, "depth must be at least 1"),
    ],
)
def test_what_is_wrong_is_said(function, error, match):
    with pytest.raises(error, match=match):
        function()


def test_narrow_integers_do_not_overflow():
    small = {"width": np.uint8(200), "depth": np.uint8(20)}
    large = {"width": 200, "depth": 20}
    found = nn_density(**small, max_skip_channels=np.uint8(250))  # type: ignore[arg-type]
    assert found == nn_density(**large, max_skip_channels=250)
    assert nn_degree(**small, num_skip_links=np.uint8(250)) == nn_degree(**large, num_skip_links=250)  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_squares_leave_the_range_of_single_precision(scale):
    s = np.array([1.0, 2.0, 4.0])
    report = layerwise_dynamical_isometry({"a": jnp.float32(scale) * jnp.diag(jnp.array(s, jnp.float32))})
    assert_allclose(report.layers["a"][:2], scale * np.array([s.mean(), s.std()]), rtol=1e-6)
    assert_allclose((report.mean, report.std), scale * np.array([s.mean(), s.std(ddof=1)]), rtol=1e-6)


def check(report, matrices, rtol):
    values = {name: np.linalg.svd(np.asarray(A, np.float64), compute_uv=False) for name, A in matrices.items()}
    assert list(report.layers) == list(matrices)
    for name, s in values.items():
        expected = (s.mean(), s.std(), s[0], s[-1], s[0] / s[-1])
        assert_allclose(report.layers[name], expected, rtol=rtol, atol=rtol * s[0])
    together = np.concatenate(list(values.values()))
    assert_allclose(report.mean, together.mean(), rtol=rtol)
    assert_allclose(report.std, together.std(ddof=1), rtol=rtol)


def test_the_layers_of_a_network():
    layers = sx.layers
    net = layers.chain(
        layers.convolution(3, (3, 3), strides=2, padding="SAME"),
        layers.activation("relu"),
        layers.flatten(),
        layers.dense(5),
    )
    params = net.init(jax.random.key(0), (6, 6, 1))["params"]
    maps = layers.linear_maps(net, (6, 6, 1))
    report = jax.jit(lambda params: layerwise_dynamical_isometry(maps(params), method=sx.Dense()))(params)
    check(report, {name: operator.to_dense() for name, operator in maps(params).items()}, 2e-4)


def test_jacobians_of_layers_with_their_activations(x64):
    """ELU by automatic differentiation: the slopes are 1 and exp."""
    rng = np.random.default_rng(0)
    W, h = rng.normal(size=(4, 6)) / 2, rng.normal(size=6)

    def layer(x):
        return jax.nn.elu(W @ x)

    operators = {"first": sx.jacobian_operator(layer, jnp.asarray(h)), "second": jnp.asarray(W)}
    slopes = np.where(W @ h > 0, 1, np.exp(np.minimum(W @ h, 0)))
    report = layerwise_dynamical_isometry(operators, method=sx.Dense())
    check(report, {"first": slopes[:, None] * W, "second": W}, 1e-10)


def test_an_isometry_and_its_opposite(x64):
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(7, 4)))[0]
    report = layerwise_dynamical_isometry({"a": rotation, "b": jnp.eye(3), "zero": jnp.zeros((2, 2))})
    assert_allclose(report.layers["a"], (1, 0, 1, 1, 1), atol=1e-14)
    assert_allclose(report.layers["zero"], (0, 0, 0, 0, np.inf))
    assert_allclose(report.mean, 7 / 9, rtol=1e-14)
    single = layerwise_dynamical_isometry({"row": jnp.full((1, 4), 0.5)})
    assert_allclose((single.mean, single.std), (1, 0))
    flat = jax.grad(lambda a: layerwise_dynamical_isometry({"a": a}).layers["a"].std)(jnp.full((1, 4), 0.5))
    assert (flat == 0).all()


def test_dtypes_transforms_and_gradients():
    A = jax.random.normal(jax.random.key(0), (3, 4, 2))
    reports = jax.vmap(lambda a: layerwise_dynamical_isometry({"a": a}))(A)
    for i in range(3):
        assert_allclose(reports.mean[i], np.linalg.svd(A[i], compute_uv=False).mean(), rtol=1e-5)
    mixed = layerwise_dynamical_isometry({"a": A[0], "b": A[1].astype(jnp.bfloat16)})
    assert mixed.mean.dtype == jnp.float32
    gradient = jax.grad(lambda a: 2 * layerwise_dynamical_isometry({"a": a}).mean)(A[0])
    u, _, vh = np.linalg.svd(A[0], full_matrices=False)
    assert_allclose(gradient, u @ vh, atol=1e-5)


def test_wide_and_narrow_dtypes_together(x64):
    operators = {"a": jnp.eye(3), "b": 2 * jnp.eye(3, dtype=jnp.float32)}
    assert float(layerwise_dynamical_isometry(operators).mean) == 1.5


def test_mappings_that_are_none():
    with pytest.raises(TypeError, match="mapping"):
        layerwise_dynamical_isometry([jnp.eye(2)])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one operator at least"):
        layerwise_dynamical_isometry({})
