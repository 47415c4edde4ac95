"""Dense Jacobians in chunks against `vmap` of `jacrev` and `jacfwd`, and against their bound of memory."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from numpy.testing import assert_allclose

import spectrax as sx
from spectrax.operators.jacobian_chunks import ChunkOptions, Sampled, lines_of


def mlp(x, params):
    for weight in params[:-1]:
        x = jax.nn.relu(weight @ x)
    return params[-1] @ x


def mlp_data(rng, sizes=(30, 24, 24, 5), count=11):
    params = [jnp.asarray(rng.normal(size=(m, n)) / n**0.5) for n, m in itertools.pairwise(sizes)]
    return jnp.asarray(rng.normal(size=(count, sizes[0]))), params


def convolve(x, kernel, stride):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x[None], kernel, (stride, stride), "SAME", dimension_numbers=numbers)[0]


def cnn(x, kernels):
    for number, kernel in enumerate(kernels):
        x = jnp.tanh(convolve(x, kernel, 1 + number % 2))
    return jnp.maximum(x[::2], x[1::2])


def cnn_data(rng, count=5):
    channels = (2, 4, 4)
    kernels = [jnp.asarray(rng.normal(size=(3, 3, m, n)) / 4) for m, n in itertools.pairwise(channels)]
    return jnp.asarray(rng.normal(size=(count, 8, 8, 2))), kernels


def tree_function(x, weights):
    hidden = jnp.tanh(weights["a"] @ x["left"]) * x["right"]
    return {"first": weights["b"] @ hidden, "second": jnp.sum(hidden)}


def tree_data(rng, count=6):
    xs = {"left": jnp.asarray(rng.normal(size=(count, 4))), "right": jnp.asarray(rng.normal(size=(count, 3)))}
    return xs, {"a": jnp.asarray(rng.normal(size=(3, 4))), "b": jnp.asarray(rng.normal(size=(2, 3)))}


def flat(tree, count, rows):
    """The blocks of `jacrev` side by side: columns in the order of the leaves."""
    return np.concatenate([np.asarray(leaf).reshape(count, rows, -1) for leaf in jax.tree.leaves(tree)], axis=2)


def expected(f, xs, args, argnum=0):
    """The Jacobians as JAX makes them, as matrices."""
    count = jax.tree.leaves(xs)[0].shape[0]

    def joined(*arguments):
        return jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(f(*arguments))])

    made = jax.vmap(lambda x: jax.jacrev(joined, argnum)(x, *args))(xs)
    return flat(made, count, jax.tree.leaves(made)[0].shape[1])


CASES = {"mlp": (mlp, mlp_data), "cnn": (cnn, cnn_data), "trees": (tree_function, tree_data)}


def smallest(f, xs, args, mode):
    """The least bound that is accepted, from the message of the error."""
    with pytest.raises(ValueError, match="max_bytes=1 is too small") as found:
        jax.eval_shape(lambda xs: sx.batched_jacobian(f, xs, *args, mode=mode, max_bytes=1), xs)
    return int(str(found.value).split("take about ")[1].split()[0])


@pytest.mark.parametrize("mode", ["forward", "reverse"])
@pytest.mark.parametrize("name", CASES)
def test_chunks_of_all_sizes(name, mode, x64):
    f, data = CASES[name]
    xs, args = data(np.random.default_rng(0))
    truth = expected(f, xs, (args,))
    least = smallest(f, xs, (args,), mode)
    some = {"max_bytes": least}, {} if name == "cnn" else {"chunk_size": 2, "max_bytes": 4 * least}
    for options in some:
        assert_allclose(sx.batched_jacobian(f, xs, args, mode=mode, **options), truth, atol=1e-13)
    one = jax.tree.map(lambda leaf: leaf[1], xs)
    assert_allclose(sx.jacobian(f, one, args, mode=mode, chunk_size=5), truth[1], atol=1e-13)


def test_groups_and_chunks_that_do_not_divide(x64):
    """Groups of samples, chunks of samples in a group, and chunks of lines, each with an overlap at its end."""
    count = 13
    xs, params = mlp_data(np.random.default_rng(1), count=count)
    truth = expected(mlp, xs, (params,))
    seen = set()
    least = smallest(mlp, xs, (params,), "reverse")
    for max_bytes in (least, least + 1_600, least + 4_000, least + 12_000):
        operator = sx.jacobian_operator(mlp, xs[0], params)
        sampled = Sampled(operator, (xs, {}), of_point=True)
        seen.add(lines_of(sampled, "reverse").chunks(count, ChunkOptions(max_bytes=max_bytes), default=0))
        assert_allclose(sx.batched_jacobian(mlp, xs, params, max_bytes=max_bytes, mode="reverse"), truth, atol=1e-13)
    assert any(c.lines < 5 for c in seen)
    assert any(c.together > c.samples for c in seen)


@pytest.mark.parametrize(
    ("name", "mode", "wide"),
    [("mlp", "forward", False), ("mlp", "reverse", True), ("cnn", "forward", True), ("cnn", "reverse", False)],
)
def test_the_bound_of_memory_holds(name, mode, wide, request):
    if wide:
        request.getfixturevalue("x64")
    f, data = CASES[name]
    xs, args = data(np.random.default_rng(0), count=40)
    xs, args = jax.tree.map(lambda leaf: leaf.astype(jnp.float64 if wide else jnp.float32), (xs, args))
    least = smallest(f, xs, (args,), mode)
    for max_bytes in (least, 2 * least):
        made = functools.partial(sx.batched_jacobian, f, mode=mode, max_bytes=max_bytes)
        memory = jax.jit(lambda xs, args, made=made: made(xs, args)).lower(xs, args).compile().memory_analysis()
        assert memory.temp_size_in_bytes <= max_bytes
    free = jax.jit(lambda xs, args: sx.batched_jacobian(f, xs, args, mode=mode, chunk_size=40)).lower(xs, args)
    assert free.compile().memory_analysis().temp_size_in_bytes > 2 * least  # so that the bound was one


def test_the_automatic_mode():
    def is_reverse(f, x):
        return lines_of(Sampled(sx.jacobian_operator(f, x), (x[None], {}), of_point=True), "auto").reverse

    wide, tall = jnp.ones((3, 20)), jnp.ones((20, 3))
    assert is_reverse(lambda x: jnp.tanh(wide @ x), jnp.ones(20))
    assert not is_reverse(lambda x: jnp.tanh(tall @ x), jnp.ones(3))
    assert is_reverse(lambda x: jnp.tanh(jnp.ones((2, 40)) @ x), jnp.ones(40))
    # fewer rows than columns, but the transpose of a lookup is a scatter
    assert not is_reverse(lambda x: 2 * x[jnp.array([4, 2, 2, 7] * 5)], jnp.ones(25))


@pytest.mark.parametrize("outputs", [1, 8])
def test_loops_without_a_reverse_mode_are_taken_forward(outputs, x64):
    """Also where one row would be cheaper than eight columns."""
    decay = jnp.linspace(0.5, 0.9, 8)

    def f(x):
        halved = jax.lax.while_loop(lambda y: jnp.sum(y**2) > 1, lambda y: decay * y, x)
        return jnp.cumsum(halved)[-outputs:]

    steps = next(n for n in range(20) if np.sum(np.asarray(decay) ** (2 * n) * 4) <= 1)
    truth = (np.tril(np.ones((8, 8))) * np.asarray(decay) ** steps)[-outputs:]
    assert_allclose(sx.batched_jacobian(f, jnp.full((2, 8), 2.0), chunk_size=2), np.stack([truth] * 2), rtol=1e-14)


@pytest.mark.parametrize("mode", ["auto", "forward", "reverse"])
def test_holomorphic_functions(mode, x64):
    rng = np.random.default_rng(2)
    w = jnp.asarray(rng.normal(size=(4, 3)) + 1j * rng.normal(size=(4, 3)))
    xs = jnp.asarray(rng.normal(size=(5, 3)) + 1j * rng.normal(size=(5, 3)))
    truth = np.cos(np.asarray(xs @ w.T))[:, :, None] * np.asarray(w)
    made = sx.batched_jacobian(lambda x, w: jnp.sin(w @ x), xs, w, mode=mode, chunk_size=2)
    assert_allclose(made, truth, rtol=1e-12)


@jax.custom_vjp
def scaled_backward(x):
    return x**2


scaled_backward.defvjp(lambda x: (x**2, None), lambda _, u: (5.0 * u,))


def test_custom_rules_scalars_and_half_precision(x64):
    xs = jnp.arange(12.0).reshape(4, 3)
    assert_allclose(sx.batched_jacobian(scaled_backward, xs, chunk_size=3), np.broadcast_to(5 * np.eye(3), (4, 3, 3)))
    with pytest.raises(TypeError, match="mode 'forward' needs"):
        sx.batched_jacobian(scaled_backward, xs, mode="forward")
    scalars = sx.batched_jacobian(lambda x: jnp.sin(x), xs[:, 0], chunk_size=3)
    assert_allclose(scalars[:, 0, 0], np.cos(xs[:, 0]), rtol=1e-14)
    assert_allclose(sx.batched_jacobian(jnp.sum, xs), np.ones((4, 1, 3)))
    half = sx.batched_jacobian(lambda x: x**2, xs.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    assert_allclose(half.astype(jnp.float32), 2 * np.eye(3) * np.asarray(xs)[:, None])


def test_no_samples_and_samples_that_are_nan(x64):
    xs, params = mlp_data(np.random.default_rng(3))
    assert sx.batched_jacobian(mlp, xs[:0], params).shape == (0, 5, 30)

    made = sx.batched_jacobian(mlp, xs.at[4].set(jnp.nan), params)
    truth = expected(mlp, xs, (params,))
    others = np.arange(len(xs)) != 4
    assert np.all(np.isnan(made[4]))
    assert_allclose(made[others], truth[others], atol=1e-13)
    for mode in ("forward", "reverse"):
        f = lambda x: {"a": x[:2], "b": x[2:] * jnp.array([1.0, jnp.nan])}  # noqa: E731
        rows = sx.jacobian(f, jnp.arange(4.0), mode=mode, chunk_size=3)
        assert_allclose(rows, np.where(np.arange(4)[:, None] == 3, np.nan, np.eye(4)))


def test_other_arguments_and_leaves(x64):
    xs, weights = tree_data(np.random.default_rng(4))
    whole = expected(tree_function, xs, (weights,), argnum=1)
    assert_allclose(sx.batched_jacobian(tree_function, xs, weights, argnum=1), whole, atol=1e-13)
    assert_allclose(sx.batched_jacobian(tree_function, xs, weights, argnum=1, select="b"), whole[..., 12:], atol=1e-13)
    made = sx.batched_jacobian(tree_function, xs, weights, select=lambda path: path != "left", mode="forward")
    assert_allclose(made, expected(tree_function, xs, (weights,))[..., 4:], atol=1e-13)

    def three(x, scale, weights, index):
        return scale * tree_function(x, weights)["first"][index]

    rest = jnp.float64(3.0), weights, jnp.array([1])
    made = sx.batched_jacobian(three, xs, *rest, argnum=2, select="a", chunk_size=4)
    assert_allclose(made, 3 * whole[:, 1:2, :12], atol=1e-13)
    with pytest.raises(ValueError, match=r"argnum must lie in \[0, 1\]"):
        sx.batched_jacobian(tree_function, xs, weights, argnum=2)
    with pytest.raises(TypeError, match="argnum must be an integer"):
        sx.batched_jacobian(tree_function, xs, weights, argnum=1.0)
    with pytest.raises(ValueError, match="select chooses none of the leaves a, b; got 'first'"):
        sx.batched_jacobian(tree_function, xs, weights, argnum=1, select="first")
    with pytest.raises(TypeError, match=r"argnum=1 and select=None choose must have .* got int32: leave such leaves"):
        sx.batched_jacobian(lambda x, w: w["a"] @ x["left"], xs, {**weights, "n": jnp.int32(3)}, argnum=1)
    with pytest.raises(TypeError, match="select must be a path"):
        sx.batched_jacobian(tree_function, xs, weights, argnum=1, select=3)


def test_derivatives_through_chunks(x64):
    xs, weights = tree_data(np.random.default_rng(5), count=3)
    direction = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size).reshape(leaf.shape)), weights)

    def value(weights, xs):
        made = sx.batched_jacobian(tree_function, xs, weights, max_bytes=9_500, mode="reverse")
        return jnp.sum(made**3)

    def moved(step):
        return value(jax.tree.map(lambda w, d: w + step * d, weights, direction), xs)

    slope = (moved(1e-5) - moved(-1e-5)) / 2e-5
    gradient = jax.jit(jax.grad(value))(weights, xs)
    assert_allclose(sum(jax.tree.leaves(jax.tree.map(lambda g, d: jnp.sum(g * d), gradient, direction))), slope, 1e-7)
    assert_allclose(jax.jvp(lambda w: value(w, xs), (weights,), (direction,))[1], slope, rtol=1e-7)


def test_equal_functions_compile_once():
    traces = []

    def counted(x, w):
        traces.append(x.shape)
        return jnp.tanh(w @ x)

    for number in range(10):
        sx.batched_jacobian(counted, jnp.full((3, 4), float(number)), jnp.full((2, 4), float(number)))
    after_first = len(traces)
    sx.batched_jacobian(counted, jnp.full((3, 4), 20.0), jnp.full((2, 4), 20.0))
    assert len(traces) == after_first <= 4


class Model(linen.Module):
    @linen.compact
    def __call__(self, x, train):
        x = linen.BatchNorm(use_running_average=not train)(linen.Dense(3)(x))
        return linen.Dropout(0.5, deterministic=not train)(x)


def test_training_mode_of_flax_linen():
    model, xs = Model(), jnp.ones((2, 4))
    variables = model.init(jax.random.key(0), xs, train=False)
    rngs = {"dropout": jax.random.key(1)}
    made = sx.batched_jacobian(lambda x: model.apply(variables, x[None], train=False)[0], xs)
    assert made.shape == (2, 3, 4)

    def updating(x):
        return model.apply(variables, x[None], train=True, mutable=["batch_stats"], rngs=rngs)

    for function in (sx.batched_jacobian, sx.jacobian_spectrum):
        with pytest.raises(ValueError, match=r"training mode: it returns batch statistics .*train=False"):
            function(updating, xs)
    dropping = linen.Dropout(0.5, deterministic=False)
    with pytest.raises(ValueError, match=r"training mode: it draws random numbers .*, as dropout does"):
        sx.batched_jacobian(lambda x: dropping.apply({}, x, rngs=rngs), xs)
    mask = sx.batched_jacobian(lambda x: dropping.apply({}, x, rngs=rngs), xs, allow_training=True)
    assert set(np.unique(mask)) <= {0.0, 2.0}
    with pytest.raises(ValueError, match="draws random numbers"):
        sx.jacobian(lambda x: dropping.apply({}, x, rngs=rngs), xs[0])


def test_training_mode_of_flax_nnx():
    xs, dropout = jnp.ones((2, 4)), nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    graph, state = nnx.split(dropout)

    def dropping(x):
        return nnx.merge(graph, state)(x)

    with pytest.raises(ValueError, match=r"changes the state of its model, as training mode does|draws random numbers"):
        sx.batched_jacobian(dropping, xs)
    dropout.eval()
    graph, state = nnx.split(dropout)
    assert_allclose(sx.batched_jacobian(lambda x: nnx.merge(graph, state)(x), xs), np.stack([np.eye(4)] * 2))


def test_training_mode_of_own_layers():
    net = sx.layers.chain(sx.layers.dense(3), sx.layers.batch_norm(), sx.layers.activation("relu"))
    variables, xs = net.init(jax.random.key(0), (4,)), jnp.ones((2, 4))
    assert sx.batched_jacobian(lambda x, v: net.apply(v, x), xs, variables).shape == (2, 3, 4)
    with pytest.raises(ValueError, match="batch_norm in training averages over the vmapped axis"):
        sx.batched_jacobian(lambda x: net.apply(variables, x, train=True), xs)
    # inside of the axis that the statistics are averaged over
    with pytest.raises(ValueError, match="reduces over a named axis"):
        jax.vmap(lambda x: sx.jacobian(lambda x: net.apply(variables, x, train=True)[0], x), axis_name="batch")(xs)
    layer = sx.jacobian_spectrum(lambda x, v: net.apply(v, x), xs, variables, argnum=1, select="params/dense_0")
    assert layer.singular_values.shape == (2, 3)


def test_bounds_that_are_refused():
    with pytest.raises(ValueError, match=r"max_bytes=100 is too small: 1 row\(s\) of the Jacobians of 1 sample"):
        sx.batched_jacobian(lambda x: jnp.sum(x)[None], jnp.ones((3, 500)), max_bytes=100)
    for function, x in ((sx.jacobian, jnp.ones(2)), (sx.batched_jacobian, jnp.ones((2, 2)))):
        with pytest.raises(ValueError, match="max_bytes must be at least 1"):
            function(jnp.sin, x, max_bytes=0)


def test_closures_over_arrays_on_explicit_axes_are_refused():
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        xs = jax.device_put(jnp.ones((2, 3)), jax.NamedSharding(mesh, jax.P("d")))
        for function in (sx.batched_jacobian, sx.jacobian, sx.jacobian_spectrum):
            assert jnp.all(jnp.isfinite(jax.tree.leaves(function(jnp.sin, xs))[0]))
            with pytest.raises(ValueError, match="give the function its arrays as arguments"):
                function(lambda x: jnp.sin(x) * xs[0], xs)


@pytest.mark.parametrize("value", ["a", len, jnp.float32, {"mode": "mean"}])
def test_arguments_that_are_no_arrays(value):
    def f(x, how):
        return 2 * x

    x = jnp.ones((2, 3))
    for make in (sx.jacobian, sx.batched_jacobian, sx.jacobian_operator, sx.jacobian_spectrum):
        with pytest.raises(TypeError, match=r"args must be arrays, got .*: bind it to the function with functools"):
            make(f, x, value)
    with pytest.raises(TypeError, match="args must be arrays"):
        sx.batched_jacobian(f, x, value, argnum=1)
    for fine in (None, 1, np.float32(2), jax.random.key(0)):
        assert sx.jacobian(f, x[0], fine).shape == (3, 3)
