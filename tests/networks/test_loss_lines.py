"""The loss on lines and planes in one layer's weights: against the loss itself, on fine grids."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import spectrax as sx
from spectrax.networks.landscape.operators import layer_problem
from spectrax.networks.local_linear import decisions


def mlp(activation, width=8):
    net = sx.models.mlp(3, width=width, depth=3, activation=activation, rho=0.5)
    variables = net.init(jax.random.key(0), (4,))
    return net, variables, "skip_3/body/dense_0", jax.random.normal(jax.random.key(1), (5, 4))


def cnn():
    layers = [
        sx.layers.convolution(3, (3, 3), padding="SAME"),
        sx.layers.activation("relu"),
        sx.layers.max_pool((2, 2)),
        sx.layers.flatten(),
        sx.layers.dense(3),
    ]
    net = sx.layers.chain(*layers)
    variables = net.init(jax.random.key(0), (6, 6, 1))
    return net, variables, "conv_0", jax.random.normal(jax.random.key(1), (2, 6, 6, 1))


NETS = {
    "relu": functools.partial(mlp, "relu"),
    "abs": functools.partial(mlp, "abs"),
    "hard_tanh": functools.partial(mlp, "hard_tanh"),
    "cnn": cnn,
}


def problem_of(case):
    net, variables, layer, xs = NETS[case]()
    layer = next(each.name for each in sx.find_layers(net, variables, xs[0]) if each.name == layer or case == "cnn")
    problem = layer_problem(net, variables, layer, xs, batched=True)
    weight = problem.site.weight
    direction = jax.random.normal(jax.random.key(2), weight.shape)
    direction *= jnp.linalg.norm(weight) / jnp.linalg.norm(direction)
    outputs = problem.function(bias=False)
    targets = jax.random.normal(jax.random.key(3), (len(xs), 3))
    loss = jax.jit(lambda w: jnp.sum((outputs(w, problem.arrays, problem.point) - targets) ** 2))
    return (net, variables, layer), (xs, targets), problem, weight, direction, loss


@pytest.mark.parametrize("case", NETS)
def test_the_pieces_are_the_loss(case, x64):
    """The loss at 4,001 places, and as many kinks as sign changes of the decisions between them."""
    which, data, problem, weight, direction, loss = problem_of(case)
    line = sx.landscape.loss_along_line(*which, direction, *data, batched=True, start=-1, stop=1)
    t = np.linspace(-1, 1, 4001)
    expected = np.asarray(jax.lax.map(lambda t: loss(weight + t * direction), jnp.asarray(t), batch_size=500))
    assert_allclose(line(t), expected, atol=1e-13 * expected.max())
    assert line.minimum[1] <= expected.min() + 1e-13
    assert_allclose(line(line.minimum[0]), line.minimum[1], rtol=1e-12)
    assert np.all(np.diff(line.breaks) > 0)
    assert len(line.kinks) > 10
    if case == "cnn":  # whose maxima decide between pairs that change
        return

    def signs(t):
        at = {problem.place: weight + t * direction}
        return jnp.sign(jax.vmap(lambda x: decisions(problem.network, problem.arrays, x, weights=at))(data[0]))

    seen = np.asarray(jax.lax.map(jax.jit(signs), jnp.asarray(t), batch_size=500)).reshape(len(t), -1)
    flips = np.argwhere(seen[1:] * seen[:-1] < 0)[:, 0]
    assert len(line.kinks) - 2 <= len(flips) <= len(line.kinks)  # two within one step of the grid may undo each other
    for t_0, t_1 in zip(t[flips], t[flips + 1], strict=True):
        assert np.any((line.kinks >= t_0) & (line.kinks <= t_1))


def test_every_piece_is_a_quadratic_of_its_own(x64):
    """Curvatures from central differences inside of each piece, the meter from them."""
    which, data, _, weight, direction, loss = problem_of("relu")
    line = sx.landscape.loss_along_line(*which, direction, *data, batched=True, start=-0.5, stop=0.5, chunk_size=7)
    middles, steps = (line.breaks[1:] + line.breaks[:-1]) / 2, np.diff(line.breaks) / 2.5
    wide = steps > 1e-4
    offsets = np.array([-1, 0, 1])[:, None] * steps + middles
    left, middle, right = np.vectorize(lambda t: float(loss(weight + t * direction)))(offsets)
    curvature = (left - 2 * middle + right) / steps**2
    assert_allclose(line.curvature[wide], curvature[wide], rtol=1e-4)
    assert_allclose(line.slope[wide], ((right - left) / (2 * steps))[wide], rtol=1e-6, atol=1e-8)
    assert_allclose(line.curvature_jumps, np.abs(line.curvature[1:] / line.curvature[:-1] - 1), rtol=1e-12)
    assert_allclose(line.total_variation, np.abs(np.diff(np.log(line.curvature))).sum(), rtol=1e-12)


def test_a_loss_that_is_flat_on_a_part_of_the_line(x64):
    f = lambda params, x: jax.nn.relu(params["w"] @ x)  # noqa: E731
    x, y = jnp.array([1.0, 2.0]), jnp.ones(2)
    line = sx.landscape.loss_along_line(f, {"w": -jnp.eye(2)}, "w", jnp.eye(2), x, y, stop=4.0)
    assert_allclose(line.curvature, [0, 10], rtol=1e-14)
    assert line.curvature_jumps.tolist() == [np.inf]
    assert line.total_variation == np.inf
    flat = sx.landscape.loss_along_line(f, {"w": -jnp.eye(2)}, "w", jnp.eye(2), x, y, stop=0.5)
    assert flat.curvature_jumps.size == 0
    assert flat.total_variation == 0
    assert_allclose(flat.minimum[1], 2, rtol=1e-14)


def one_entry(function):
    """A network of one number t, so that the line is t itself."""
    f = lambda params, x: function((params["w"] @ x)[0])[None]  # noqa: E731
    return functools.partial(
        sx.landscape.loss_along_line, f, {"w": jnp.zeros((1, 1))}, "w", jnp.ones((1, 1)), jnp.ones(1), jnp.zeros(1)
    )


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_kinks_at_the_same_place_are_one(dtype):
    """Shrinking a layer without bias turns all of its units at once, in every sample."""
    with jax.enable_x64(dtype == "float64"):
        r = np.random.default_rng(0)
        weight, head, xs = (jnp.asarray(r.normal(size=shape)) for shape in ((40, 10), (3, 40), (4, 10)))
        f = lambda params, x: head @ jax.nn.relu(params["w"] @ x)  # noqa: E731
        line = sx.landscape.loss_along_line(
            f, {"w": weight}, "w", -0.37 * weight, xs, jnp.zeros((4, 3)), batched=True, stop=4.0
        )
    assert_allclose(line.kinks, [1 / 0.37], rtol=1e-3 if dtype == "float32" else 1e-12)
    h = [np.maximum(sign * np.asarray(xs) @ np.asarray(weight).T, 0) @ np.asarray(head).T for sign in (1, -1)]
    expected = [2 * 0.37**2 * np.sum(each**2) for each in h]
    assert_allclose(line.curvature, expected, rtol=1e-4 if dtype == "float32" else 1e-11)
    assert_allclose(line.total_variation, abs(np.log(expected[1] / expected[0])), rtol=1e-4)


def test_a_maximum_has_kinks_where_its_winner_changes(x64):
    steps = one_entry(lambda t: jnp.max(jnp.array([0.0, 1.0, 2.0]) * t - jnp.array([0.0, 1.0, 3.0])))
    whole = steps(stop=5.0)
    assert_allclose(whole.kinks, [1.0, 2.0])
    assert_allclose(whole.curvature, [0.0, 2.0, 8.0])
    assert_allclose(steps(stop=1.9).kinks, [1.0])
    r = np.random.default_rng(1)
    slopes, offsets = r.normal(size=(2, 12))
    t = np.linspace(-5, 5, 20001)
    winners = np.argmax(slopes[:, None] * t + offsets[:, None], axis=0)
    changes = t[:-1][np.diff(winners) != 0]
    assert len(changes) >= 2
    # one after the other: a maximum that a later one passes over decides as well, and the curvature does not jump
    many = one_entry(
        lambda t: functools.reduce(jnp.maximum, [a * t + b for a, b in zip(slopes, offsets, strict=True)])
    )(start=-5.0, stop=5.0)
    jumps = many.kinks[many.curvature_jumps > 1e-9]
    assert len(jumps) == len(changes) < len(many.kinks)
    assert_allclose(jumps, changes, atol=1e-3)
    assert_allclose(many(t), np.max(slopes[:, None] * t + offsets[:, None], axis=0) ** 2, atol=1e-12)


def test_an_overtaking_close_to_another_is_found():
    steep = one_entry(lambda t: jnp.max(jnp.array([0.0, 100.0, 1e6]) * t - jnp.array([0.0, 0.0, 99.99])))
    line = steep(start=-1.0, stop=3.0)
    assert_allclose(line.kinks, [0.0, 1e-4], atol=1e-7)
    assert_allclose(line(np.array([2e-5, 5e-5, 9e-5])), [4e-6, 2.5e-5, 8.1e-5], rtol=1e-4)


def test_one_sample_and_float32():
    net, variables, layer, xs = mlp("leaky_relu")
    target = jnp.ones(3)
    problem = layer_problem(net, variables, layer, xs[0], batched=False)
    weight, direction = problem.site.weight, jax.random.normal(jax.random.key(5), problem.site.weight.shape)
    line = sx.landscape.loss_along_line(net, variables, layer, direction, xs[0], target, start=-3, stop=3)
    output = problem.function(bias=False)

    @jax.jit
    @jax.vmap
    def at(t):
        moved = weight + t * direction
        signs = jnp.sign(decisions(problem.network, problem.arrays, xs[0], weights={problem.place: moved}))
        return jnp.sum((output(moved, problem.arrays, xs[0]) - target) ** 2), signs

    t = np.linspace(-3, 3, 2001, dtype=np.float32)
    expected, signs = (np.asarray(each) for each in at(t))
    assert_allclose(line(t), expected, atol=100 * np.finfo(np.float32).eps * expected.max())
    assert len(line.kinks) == np.sum(signs[1:] != signs[:-1]) > 3


@pytest.mark.parametrize("case", ["relu", "cnn"])
def test_a_slice_equals_the_quadratic_in_its_region_and_nowhere_else(case, x64):
    which, data, _, weight, _, loss = problem_of(case)
    plane = sx.landscape.loss_slice(*which, *data, batched=True, resolution=25)
    first, second = (jnp.asarray(each) for each in plane.directions)
    Q = np.asarray(sx.landscape.layer_operator(*which, data[0], batched=True).to_dense())
    s = np.linalg.svd(Q, compute_uv=False)
    s = s[s > 1e-10 * s[0]]
    assert_allclose(plane.singular_values, s[[0, -1]], rtol=1e-9)
    a, b = np.meshgrid(plane.coordinates, plane.coordinates, indexing="ij")
    pairs = [(0, 0), (3, 20), (12, 12), (24, 1)]
    assert_allclose(
        [plane.loss[pair] for pair in pairs],
        [float(loss(weight + a[pair] * first + b[pair] * second)) for pair in pairs],
        rtol=1e-12,
    )
    r = np.asarray(jax.vmap(functools.partial(which[0].apply, which[1]))(data[0]) - data[1]).reshape(-1)
    steps = (Q @ np.asarray(plane.directions).reshape(2, -1).T).T
    quadratic = np.sum((r + a[..., None] * steps[0] + b[..., None] * steps[1]) ** 2, axis=-1)
    assert_allclose(plane.quadratic, quadratic, rtol=1e-11)
    inside = plane.contains(np.stack([a, b], axis=-1))
    differs = np.abs(plane.loss - quadratic) > 1e-12 * plane.loss.max()
    assert not np.any(differs & inside)
    assert inside[12, 12]
    assert 0.05 < inside.mean() < 0.95
    assert np.mean(differs[~inside]) > (0.5 if case == "cnn" else 0.9)  # not every decision is seen in the output
    # the nearest point of the border is as far as is said, in units of directions of length one
    corners, following = plane.border, np.roll(plane.border, -1, axis=0)
    edge = following - corners
    corners, edge = (rows[np.linalg.norm(edge, axis=1) > 0] for rows in (corners, edge))  # where three lines meet
    away = np.abs(edge[:, 0] * corners[:, 1] - edge[:, 1] * corners[:, 0]) / np.linalg.norm(edge, axis=1)
    assert_allclose(away.min(), plane.reach, rtol=1e-9)


def test_a_slice_along_given_directions(x64):
    f = lambda params, x: jax.nn.relu(params["w"] @ x)  # noqa: E731
    first, second = jnp.array([[1.0, 0.0], [0.0, 0.0]]), jnp.array([[0.0, 0.0], [0.0, 2.0]])
    x, y = jnp.array([1.0, 3.0]), jnp.zeros(2)
    given = {"directions": (first, second), "extent": 4.0, "resolution": 5}
    plane = sx.landscape.loss_slice(f, {"w": jnp.eye(2)}, "w", x, y, **given)
    # relu(1 + a)^2 + relu(3 + 6 b)^2: kinks at a = -1 and b = -1/2
    a, b = np.meshgrid(plane.coordinates, plane.coordinates, indexing="ij")
    assert_allclose(plane.loss, np.maximum(1 + a, 0) ** 2 + np.maximum(3 + 6 * b, 0) ** 2)
    assert_allclose(plane.quadratic, (1 + a) ** 2 + (3 + 6 * b) ** 2)
    assert_allclose(sorted(map(tuple, plane.border)), [(-1, -0.5), (-1, 4), (4, -0.5), (4, 4)])
    assert plane.reach == 0.5
    assert plane.singular_values.tolist() == [1.0, 3.0]
    assert plane.contains([[-1, 0], [-1.01, 0], [0, -0.49], [0, -0.51]]).tolist() == [True, False, True, False]
    at_kink = sx.landscape.loss_slice(f, {"w": jnp.diag(jnp.array([0.0, 1.0]))}, "w", x, y, **given)
    assert at_kink.reach == 0
    assert not at_kink.contains(np.zeros(2))
    linear = sx.landscape.loss_slice(lambda p, x: p["w"] @ x, {"w": jnp.eye(2)}, "w", x, y, resolution=3)
    assert linear.reach == np.inf
    assert_allclose(linear.loss, linear.quadratic, rtol=1e-12)
    assert_allclose(linear.coordinates, [-np.sqrt(2), 0, np.sqrt(2)])


def with_own(variables, layer, own):
    return variables | {"params": variables["params"] | {layer: own}}


@pytest.mark.parametrize("seed", range(3))
def test_the_curvature_of_the_cross_entropy(seed, x64):
    """Eigenvalues of JAX's Hessian, at several samples and with the bias."""
    net = sx.models.mlp(4, width=5, depth=2, activation="relu", rho=0.3)
    variables = net.init(jax.random.key(seed), (3,))
    xs = 3 * jax.random.normal(jax.random.key(seed + 10), (3, 3))
    layer = sx.find_layers(net, variables, xs[0])[0].name
    params = jax.tree.map(lambda leaf: leaf, variables)
    own = params["params"][layer]

    def loss(weights):
        params["params"][layer] = weights
        logits = jax.vmap(functools.partial(net.apply, params))(xs)
        return -jnp.sum(jax.nn.log_softmax(logits)[jnp.arange(3), jnp.array([1, 0, 3])])

    flat, back = jax.flatten_util.ravel_pytree(own)
    hessian = np.asarray(jax.hessian(lambda v: loss(back(v)))(flat))
    found = sx.landscape.cross_entropy_bounds(net, variables, layer, xs, batched=True, bias=True)
    p = np.asarray(jax.nn.softmax(jax.vmap(functools.partial(net.apply, variables))(xs)))
    Q = np.asarray(jax.vmap(lambda x: jax.jacobian(lambda v: net.apply(with_own(params, layer, back(v)), x))(flat))(xs))
    s = np.linalg.svd((Q - Q.mean(axis=1, keepdims=True)).reshape(12, -1), compute_uv=False)
    assert_allclose(found.lower, p.min() * s**2, atol=1e-11 * s[0] ** 2)
    assert_allclose(found.upper, min(p.max(), 0.5) * s**2, atol=1e-11 * s[0] ** 2)
    expected = np.linalg.eigvalsh(hessian)[::-1][: found.actual.size]
    assert_allclose(found.actual, expected, atol=1e-12 * expected[0])
    assert bool(found.applies)
    assert np.all(found.lower <= expected + 1e-12 * expected[0])
    assert np.all(expected <= found.upper + 1e-12 * expected[0])
    assert np.all(found.lower[:3] > 0)


def test_a_plane_needs_two_directions(x64):
    f = lambda params, x: params["w"] @ x  # noqa: E731
    plane = functools.partial(sx.landscape.loss_slice, f, {"w": jnp.ones((1, 3))}, "w", jnp.ones(3), jnp.ones(1))
    with pytest.raises(ValueError, match="two that are parallel"):
        plane()
    with pytest.raises(ValueError, match="two that are parallel"):
        plane(directions=(jnp.ones((1, 3)), -2 * jnp.ones((1, 3))))


def test_a_region_too_thin_for_the_plane_is_empty(x64):
    f = lambda params, x: jax.nn.relu(params["w"] @ x)  # noqa: E731
    first, second = jnp.array([[1.0, 0], [0, 0]]), jnp.array([[0, 0], [0, 1.0]])
    tiny = {"w": jnp.diag(jnp.array([1e-16, 1.0]))}
    plane = sx.landscape.loss_slice(
        f, tiny, "w", jnp.ones(2), jnp.zeros(2), directions=(first, second), extent=1.0, resolution=3
    )
    assert plane.reach == 0  # a unit at its kink, up to rounding
    assert not plane.contains([[0.0, 0.0], [-1.0, -1.0]]).any()


def test_16_bits_and_complex_numbers_are_refused():
    x, y = jnp.ones(2), jnp.ones(2)
    half = lambda params, x: jax.nn.relu(params["w"].astype(jnp.bfloat16) @ x.astype(jnp.bfloat16))  # noqa: E731
    with pytest.raises(ValueError, match="computes in 16 bits"):
        sx.landscape.loss_along_line(half, {"w": jnp.eye(2)}, "w", jnp.eye(2), x, y)
    linear = lambda params, x: params["w"] @ x  # noqa: E731
    unit = {"w": jnp.eye(2)}
    with pytest.raises(TypeError, match="y must be real"):
        sx.landscape.loss_along_line(linear, unit, "w", jnp.eye(2), x, y.astype(jnp.complex64))
    with pytest.raises(TypeError, match="direction must be real"):
        sx.landscape.loss_along_line(linear, unit, "w", unit["w"].astype(jnp.complex64), x, y)
    for call in (sx.landscape.loss_along_line, sx.landscape.loss_slice):
        extra = (jnp.eye(2),) if call is sx.landscape.loss_along_line else ()
        with pytest.raises(TypeError, match="real weight and a real output"):
            call(linear, {"w": jnp.eye(2, dtype=jnp.complex64)}, "w", *extra, x.astype(jnp.complex64), y)
    with pytest.raises(TypeError, match="floating"):
        sx.landscape.loss_slice(lambda p, x: jnp.argmax(p["w"] @ x)[None], unit, "w", x, jnp.ones(1))


def test_what_cannot_be_had_is_refused():
    net, variables, layer, xs = mlp("relu")
    ys = jnp.zeros((5, 3))
    weight = layer_problem(net, variables, layer, xs[0], batched=False).site.weight
    line = functools.partial(sx.landscape.loss_along_line, net, variables, layer)
    with pytest.raises(ValueError, match="start must be below stop"):
        line(weight, xs, ys, batched=True, start=1.0, stop=1.0)
    with pytest.raises(ValueError, match=r"direction must have the shape of the weight, \(8, 8\), got \(8,\)"):
        line(weight[0], xs, ys, batched=True)
    with pytest.raises(ValueError, match="direction must be finite"):
        line(weight * jnp.nan, xs, ys, batched=True)
    with pytest.raises(ValueError, match="shape of the output"):
        line(weight, xs, ys[:, :2], batched=True)
    with pytest.raises(ValueError, match="not finite"):
        line(weight, xs.at[0, 0].set(jnp.nan), ys, batched=True)
    with pytest.raises(TypeError, match="under jit or vmap"):
        jax.jit(lambda x: line(weight, x, ys, batched=True).value)(xs)
    with pytest.raises(ValueError, match="must lie between"):
        line(weight, xs[0], ys[0])(1.5)
    plane = functools.partial(sx.landscape.loss_slice, net, variables, layer, xs, ys, batched=True)
    with pytest.raises(ValueError, match="odd and at least 3"):
        plane(resolution=4)
    with pytest.raises(ValueError, match="extent must be positive"):
        plane(extent=0.0)
    with pytest.raises(ValueError, match=r"singular values that are not zero to round-off, got number 64"):
        plane(directions=(0, 64))
    with pytest.raises(ValueError, match="must not be zero"):
        plane(directions=(weight, 0 * weight))
    smooth = sx.models.mlp(3, width=4, depth=1, activation="tanh")
    smooth_variables = smooth.init(jax.random.key(0), (4,))
    name = sx.find_layers(smooth, smooth_variables, xs[0])[0].name
    for call in (sx.landscape.loss_along_line, sx.landscape.loss_slice):
        extra = (jnp.ones((4, 4)),) if call is sx.landscape.loss_along_line else ()
        with pytest.raises(ValueError, match="is not piecewise affine"):
            call(smooth, smooth_variables, name, *extra, xs[0], ys[0])
    bounds = sx.landscape.cross_entropy_bounds(smooth, smooth_variables, name, xs[0])
    assert not bool(bounds.applies)
    with pytest.raises(ValueError, match="at least two classes"):
        sx.landscape.cross_entropy_bounds(lambda p, x: p["w"] @ x, {"w": jnp.ones((1, 4))}, "w", xs[0])


class Unhashable:
    """A head whose weights may change between two calls; as many users' own objects, it cannot be hashed."""

    __hash__ = None

    def __init__(self):
        self.scale = 1.0

    def __call__(self, params, x):
        return self.scale * jnp.ones((1, 2)) @ jax.nn.relu(params["w"] @ x)


@pytest.mark.parametrize("hashable", [True, False])
def test_what_a_network_closes_over_counts_as_it_is_now(hashable):
    """Nothing compiled for the first call goes on with the arrays that were closed over then."""
    head = {"row": jnp.ones((1, 2))}
    net = (lambda params, x: head["row"] @ jax.nn.relu(params["w"] @ x)) if hashable else Unhashable()
    params, x, y = {"w": jnp.eye(2)}, jnp.ones(2), jnp.zeros(1)
    plane = jnp.array([[1.0, 0], [0, 0]]), jnp.array([[0.0, 0], [0, 1]])
    for scale in (1.0, 3.0):
        head["row"] = scale * jnp.ones((1, 2))
        if not hashable:
            net.scale = jnp.float32(scale)
        # the output is scale (1, 1) W x = 2 scale, and Q = x^T kron scale (1, 1)
        line = sx.landscape.loss_along_line(net, params, "w", jnp.eye(2), x, y)
        assert_allclose(line(0.0), (2 * scale) ** 2, rtol=1e-6)
        loss = sx.landscape.loss_slice(net, params, "w", x, y, resolution=3, extent=0.1, directions=plane).loss
        assert_allclose(loss[1, 1], (2 * scale) ** 2, rtol=1e-6)
        for spectrum in (
            sx.landscape.layer_spectrum(net, params, "w", x),
            jax.tree.map(lambda leaf: leaf[0], sx.landscape.layer_spectra(net, params, x[None])["w"]),
        ):
            assert_allclose(spectrum.values[0], 2 * scale, rtol=1e-6)
