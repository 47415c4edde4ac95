"""Every public function that computes arrays lowers for CPU, CUDA, ROCm and TPU at once, in 32 bits and no callback.

One row for each: a small call, as a function of arrays, and the shapes of these. What has no row has a reason. A name
may have several rows, told apart by what follows a comma.
"""

import inspect

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import spectrax as sx
from spectrax.theory import perturbation, random_matrices

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
KEY = jax.random.key(0)


def f32(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


M, S, ROW, KERNEL, LINE = f32(8, 6), f32(6, 6), f32(6), f32(3, 3, 2, 2), f32(3, 2, 2)
SAME = {"padding": "SAME"}
CIRCULAR = {"padding": "CIRCULAR"}
ONE_DEVICE = NamedSharding(jax.make_mesh((1,), ("x",), axis_types=(AxisType.Auto,)), PartitionSpec())
MLP = sx.models.mlp(4, width=6, depth=2, rho=1.0)
CNN = sx.models.convnet(3, width=2, depth=1)


def linear(v, matrix):
    return matrix @ v


def operator(A):
    return sx.aslinearoperator(linear, jax.ShapeDtypeStruct((A.shape[1],), A.dtype), A)


def symmetric(A):
    return (A + A.T) / 2


def tanh_layer(x, A):
    return jnp.tanh(A @ x)


def error(outputs, x):
    return jnp.mean((outputs - jnp.sum(x)) ** 2)


def applied(net, *shape):
    """A network with its initial parameters, on one sample."""
    return lambda x: net.apply(net.init(KEY, shape), x), f32(*shape)


def normalized(x):
    net = sx.layers.batch_norm()
    variables = net.init(KEY, (6,))
    train = lambda x: net.apply(variables, x, train=True)  # noqa: E731
    return jax.vmap(train, axis_name="batch")(x), net.apply(variables, x[0])


def on_layer(function, **options):
    """A function of the landscape, of the network's first layer and a batch."""
    return (
        lambda x: function(MLP, MLP.init(KEY, (6,)), "dense_1", x, batched=True, **options),
        f32(3, 6),
    )


def penalized(penalty, **batch):
    """Value and gradient of a penalty, state included, and the vectors found anew where no sample is needed for it."""

    def step(params, batch):
        state = penalty.init(params, KEY, **batch)
        found = jax.value_and_grad(penalty.apply, has_aux=True)(params, state, **batch)
        return found, None if batch else penalty.renew(params, state)

    return step, {"kernel": M}, batch


def followed(penalty):
    """The same where the map is known by its products alone, in the vectors' restarted search and in the step."""
    maps = lambda params: {"map": operator(params["kernel"])}  # noqa: E731
    return penalized(penalty(maps))


def updated(transform):
    """An Optax transformation on the gradient of half the squared entries."""

    def step(params):
        return transform.update(params, transform.init(params), params)

    return step, {"kernel": M}


def round_trip(form, shape):
    return lambda kernel: form.apply(form.init(kernel)), shape


def tracked(kernel):
    form = sx.parametrizations.tracked_spectral_norm()
    return form.apply(kernel, form.update(kernel, form.init(kernel, KEY)))


def extremes(kernel):
    tracker = sx.conv_extremes((6, 6), **SAME)
    return tracker.update(kernel, tracker.init(kernel, KEY))


def monitored(params):
    monitor = sx.monitor.spectrum_monitor()
    return monitor.update(params, monitor.init(params))


def quantity(function, **options):
    return lambda A: (function(operator(A), full=True, **options), function(A)), M


def trained(params, state, x):
    """A step of training with a penalty on the condition numbers of all layers."""
    gradient = jax.grad(lambda p: jnp.mean(jax.vmap(lambda one: MLP.apply({"params": p}, one))(x) ** 2))(params)
    return OPTIMIZER.update(gradient, state, params)


MAPS = sx.layers.linear_maps(MLP, (6,))
OPTIMIZER = optax.chain(
    sx.transforms.add_spectral_penalty(sx.regularizers.condition_number_penalty(MAPS), 0.1, key=KEY), optax.sgd(0.1)
)
WEIGHTS = jax.eval_shape(lambda: MLP.init(KEY, (6,))["params"])
LANCZOS = {"method": sx.Lanczos(), "key": KEY}
PENALTIES = sx.regularizers
FORMS = sx.parametrizations

ROWS = {
    "aol_rescale": (sx.aol_rescale, KERNEL),
    "aslinearoperator": (lambda A: operator(A).rmatvec(sx.aslinearoperator(A).matvec(A[0])), M),
    "batched_jacobian": (lambda A: sx.batched_jacobian(tanh_layer, A, A, chunk_size=3), M),
    "cayley": (sx.cayley, M),
    "cayley_convolution": (lambda k: sx.cayley_convolution(k, (5, 5)), KERNEL),
    "clip_spectral_norm": (lambda k: sx.clip_spectral_norm(k, 1.0, (5, 5)), KERNEL),
    "condition_number": quantity(sx.condition_number, **LANCZOS),
    "conv_extremes": (extremes, KERNEL),
    "conv_norm": (lambda k: sx.conv_norm(k, **SAME, method="grid"), KERNEL),
    "conv_norm, of the input's size": (lambda k: sx.conv_norm(k, input_shape=(6, 6), **SAME, key=KEY), KERNEL),
    "conv_operator": (lambda k: sx.conv_operator(k, (5, 5), **SAME).to_dense(chunk_size=None), KERNEL),
    "conv_orthogonality": (sx.conv_orthogonality, KERNEL),
    "conv_row_normalize": (lambda k: sx.conv_row_normalize(k, (5,)), LINE),
    "conv_singular_values": (lambda k: sx.conv_singular_values(k, (5, 5), **CIRCULAR), KERNEL),
    "conv_symbol": (sx.conv_symbol, KERNEL, f32(4, 2)),
    "effective_rank": quantity(sx.effective_rank),
    "eigsh": (lambda A: sx.eigsh(symmetric(A), 2, which="smallest"), S),
    "eigsh, Lanczos": (lambda A: sx.eigsh(symmetric(A), 2, which="largest_magnitude", **LANCZOS), S),
    "empirical_fisher_operator": (
        lambda A: sx.empirical_fisher_operator(lambda w, x: jnp.tanh(x @ w), A[0], A).matvec(A[0]),
        M,
    ),
    "extreme_singular_values": (sx.extreme_singular_values, M),
    "fisher_operator": (
        lambda A: sx.fisher_operator(lambda w, x: x @ w, A, A.T, likelihood="categorical").matvec(A),
        M,
    ),
    "fold_batch_norm": (
        lambda k, v: sx.fold_batch_norm(k, scale=v, bias=v, mean=v, var=v**2, epsilon=1e-5),
        KERNEL,
        f32(2),
    ),
    "frobenius_norm": quantity(sx.frobenius_norm, key=KEY),
    "ggn_operator": (
        lambda A: sx.ggn_operator(lambda w, x: jnp.tanh(x @ w), error, A[0], batches=A[:, None]).matvec(A[0]),
        M,
    ),
    "hessian_operator": (
        lambda A: sx.hessian_operator(lambda w, x: jnp.sum(jnp.tanh(x @ w)), A[0], batches=A).matvec(A[0]),
        M,
    ),
    "jacobian": (lambda A: sx.jacobian(tanh_layer, A[0], A), M),
    "jacobian_operator": (lambda A: sx.jacobian_operator(tanh_layer, A[0], A).H @ A[:, 0], M),
    "jacobian_spectrum": (lambda A: sx.jacobian_spectrum(tanh_layer, A, A), M),
    "landscape.cross_entropy_bounds": on_layer(sx.landscape.cross_entropy_bounds),
    "landscape.layer_gram": on_layer(sx.landscape.layer_gram),
    "landscape.layer_operator": (
        lambda x: sx.landscape.layer_operator(MLP, MLP.init(KEY, (6,)), "dense_1", x[0]).to_dense(),
        f32(3, 6),
    ),
    "landscape.layer_spectra": (lambda x: sx.landscape.layer_spectra(MLP, MLP.init(KEY, (6,)), x), f32(3, 6)),
    "landscape.layer_spectra, of convolutions": (
        lambda x: sx.landscape.layer_spectra(CNN, CNN.init(KEY, (4, 4, 1)), x),
        f32(2, 4, 4, 1),
    ),
    "landscape.layer_spectrum": on_layer(sx.landscape.layer_spectrum),
    "landscape.local_quadratic": (
        lambda x, y: sx.landscape.local_quadratic(MLP, MLP.init(KEY, (6,)), "dense_1", x, y, batched=True),
        f32(3, 6),
        f32(3, 4),
    ),
    "layers.activation": applied(sx.layers.activation("leaky_relu"), 6),
    "layers.average_pool": applied(sx.layers.average_pool(2, padding="SAME"), 5, 5, 2),
    "layers.batch_norm": (normalized, f32(3, 6)),
    "layers.chain": applied(sx.layers.chain(sx.layers.dense(4), sx.layers.activation("relu")), 6),
    "layers.concatenating_skip": applied(sx.layers.concatenating_skip(sx.layers.dense(4)), 6),
    "layers.convolution": applied(sx.layers.convolution(4, (3, 3), padding="SAME", strides=2), 5, 5, 2),
    "layers.dense": applied(sx.layers.dense(4), 6),
    "layers.flatten": applied(sx.layers.flatten(), 3, 2),
    "layers.global_average_pool": applied(sx.layers.global_average_pool(), 5, 5, 2),
    "layers.layer_norm": applied(sx.layers.layer_norm(), 6),
    "layers.linear_maps": (
        lambda x: {name: A.to_dense() for name, A in MAPS(MLP.init(KEY, (6,))["params"]).items()} | {"x": x},
        ROW,
    ),
    "layers.max_pool": applied(sx.layers.max_pool(2), 4, 4, 2),
    "layers.skip": applied(sx.layers.skip(sx.layers.dense(6)), 6),
    "layers.variance_scaling": (lambda x: x * sx.layers.variance_scaling(2.0)(KEY, (6, 6), jnp.float32), S),
    "local_linear": (lambda x: sx.local_linear(MLP, MLP.init(KEY, (6,)), x).A.to_dense(), ROW),
    "log_condition_number": quantity(sx.log_condition_number, key=KEY),
    "logdet": (lambda A: sx.logdet(A @ A.T + jnp.eye(6), full=True), S),
    "logdet, of products": (
        lambda A: sx.logdet(
            sx.aslinearoperator(lambda v: A @ (A.T @ v) + v, ROW), key=KEY, method=sx.StochasticLanczos(), full=True
        ),
        S,
    ),
    "models.convnet": applied(CNN, 4, 4, 1),
    "models.densenet": applied(sx.models.densenet(3, width=2, depth=1), 4, 4, 1),
    "models.mlp": applied(MLP, 6),
    "models.resnet": applied(sx.models.resnet(3, width=2, depth=1, normalization="batch"), 4, 4, 1),
    "monitor.spectrum_monitor": (monitored, {"kernel": M}),
    "with_shardings": (lambda A: sx.with_shardings(A, ONE_DEVICE).matvec(A[0]), M),
    "ntk_operator": (lambda A: sx.ntk_operator(lambda w, x: jnp.tanh(x @ w), A[0], A).matvec(A[:, 0]), M),
    "nuclear_norm": quantity(sx.nuclear_norm),
    "parametrizations.aol": round_trip(FORMS.aol(), KERNEL),
    "parametrizations.bjorck": round_trip(FORMS.bjorck(), M),
    "parametrizations.cayley": round_trip(FORMS.cayley(), M),
    "parametrizations.cayley_convolution": round_trip(FORMS.cayley_convolution((5, 5)), KERNEL),
    "parametrizations.clipped": round_trip(FORMS.clipped(1.0, (5, 5)), KERNEL),
    "parametrizations.factored": round_trip(FORMS.factored(rank=2), KERNEL),
    "parametrizations.row_normalized": round_trip(FORMS.row_normalized((5,)), LINE),
    "parametrizations.spectral_normalized": round_trip(FORMS.spectral_normalized(), M),
    "parametrizations.tracked_spectral_norm": (tracked, M),
    "preconditioners.circulant": (
        lambda k: sx.preconditioners.circulant(sx.conv_operator(k, (6, 6), **SAME)).matvec(jnp.ones((6, 6, 2))),
        KERNEL,
    ),
    "preconditioners.from_matrix": (lambda A: sx.preconditioners.from_matrix(A).matvec(A[0]), M),
    "preconditioners.sketched": (lambda A: sx.preconditioners.sketched(A, KEY).matvec(A[0]), f32(30, 6)),
    "product_log_condition_number": (sx.product_log_condition_number, f32(2, 6, 6)),
    "product_log_singular_values": (sx.product_log_singular_values, f32(2, 6, 6)),
    "regularizers.band_penalty": penalized(PENALTIES.band_penalty(0.5, 2.0)),
    "regularizers.condition_number_penalty": penalized(PENALTIES.condition_number_penalty()),
    "regularizers.condition_number_penalty, of products": followed(PENALTIES.condition_number_penalty),
    "regularizers.conv_norm_penalty": penalized(PENALTIES.conv_norm_penalty()),
    "regularizers.effective_rank_penalty": penalized(PENALTIES.effective_rank_penalty()),
    "regularizers.factor_orthogonality_penalty": (
        lambda k: (lambda p, raw: p.apply(raw, p.init(raw, None)))(
            PENALTIES.factor_orthogonality_penalty(), {"dense": FORMS.factored().init(k)}
        ),
        M,
    ),
    "regularizers.factor_sparsity_penalty": (
        lambda k: (lambda p, raw: p.apply(raw, p.init(raw, None)))(
            PENALTIES.factor_sparsity_penalty(), {"dense": FORMS.factored().init(k)}
        ),
        M,
    ),
    "regularizers.frobenius_norm_penalty": penalized(PENALTIES.frobenius_norm_penalty()),
    "regularizers.frobenius_product_penalty": (
        lambda p: (lambda penalty: penalty.apply(p, penalty.init(p, None)))(PENALTIES.frobenius_product_penalty()),
        {"a": S, "b": S},
    ),
    "regularizers.jacobian_maps": penalized(
        PENALTIES.spectral_norm_penalty(
            PENALTIES.jacobian_maps(lambda p, x: jnp.tanh(p["kernel"] @ x)), batched=True, num_samples=2
        ),
        x=f32(3, 6),
    ),
    "regularizers.log_determinant_penalty": penalized(PENALTIES.log_determinant_penalty()),
    "regularizers.matrix_maps": (
        lambda p: {name: A.to_dense() for name, A in PENALTIES.matrix_maps()(p).items()},
        {"kernel": M},
    ),
    "regularizers.orthogonality_penalty": penalized(PENALTIES.orthogonality_penalty()),
    "regularizers.rank_penalty": penalized(PENALTIES.rank_penalty(1.5)),
    "regularizers.restricted_isometry_penalty": penalized(PENALTIES.restricted_isometry_penalty()),
    "regularizers.schatten_norm_penalty": penalized(PENALTIES.schatten_norm_penalty()),
    "regularizers.sharpness_penalty": penalized(
        PENALTIES.sharpness_penalty(lambda p, x: jnp.sum(jnp.tanh(p["kernel"] @ x) ** 2)), x=ROW
    ),
    "regularizers.smooth_condition_penalty": penalized(PENALTIES.smooth_condition_penalty()),
    "regularizers.spectral_norm_penalty": penalized(PENALTIES.spectral_norm_penalty()),
    "regularizers.stable_rank_penalty": penalized(PENALTIES.stable_rank_penalty()),
    "regularizers.unit_norm_penalty": penalized(PENALTIES.unit_norm_penalty()),
    "row_isometry_error": (lambda k: sx.row_isometry_error(k, (5,)), LINE),
    "schatten_norm": quantity(lambda A, **options: sx.schatten_norm(A, 3.0, **options)),
    "singular_values": (sx.singular_values, M),
    "smallest_singular_value": quantity(sx.smallest_singular_value, **LANCZOS),
    "spectral_density": (
        lambda A: (lambda found: (found.sum(jnp.log), found.density(A[0]), found.count(upper=0.0)))(
            sx.spectral_density(symmetric(A), key=KEY, num_probes=2, num_steps=4)
        ),
        S,
    ),
    "spectral_density, of singular values": (
        lambda A: sx.spectral_density(operator(A), key=KEY, num_probes=2, num_steps=4, spectrum="singular_values"),
        M,
    ),
    "spectral_function": (lambda A: sx.spectral_function(A, jnp.log), M),
    "spectral_norm": quantity(sx.spectral_norm, **LANCZOS),
    "spectral_norm_bound": (lambda A: sx.spectral_norm_bound(operator(A), key=KEY, num_steps=4), M),
    "stable_rank": quantity(sx.stable_rank, key=KEY),
    "svds": (lambda A: sx.svds(A, 2), M),
    "svds, Lanczos": (lambda A: sx.svds(operator(A), 2, **LANCZOS), M),
    "svds, blocks": (lambda A: sx.svds(A, 2, key=KEY, method=sx.Lanczos(block_size=2)), f32(30, 20)),
    "svds, InverseLanczos": (lambda A: sx.svds(A, 1, which="smallest", key=KEY, method=sx.InverseLanczos()), M),
    "svds, Davidson": (
        lambda A: sx.svds(A, 1, which="smallest", key=KEY, method=sx.Davidson(preconditioner="sketch")),
        f32(60, 12),
    ),
    "testing.hilbert": (lambda v: sx.testing.hilbert((8, 6)).matvec(v), ROW),
    "testing.kahan": (lambda v: sx.testing.kahan((8, 6)).matvec(v), ROW),
    "theory.perturbation.circular_skip_bounds": (lambda k: perturbation.circular_skip_bounds(k, (5,), 1.0), LINE),
    "theory.perturbation.circular_skip_singular_values": (
        lambda k: perturbation.circular_skip_singular_values(k, (5,), 1.0),
        LINE,
    ),
    "theory.perturbation.condition_numbers": (perturbation.condition_numbers, S, f32(3)),
    "theory.perturbation.critical_rho": (perturbation.critical_rho, S),
    "theory.perturbation.densenet_bounds": (lambda A: perturbation.densenet_bounds([A], 1.0), S),
    "theory.perturbation.gated_bounds": (perturbation.gated_bounds, S, ROW),
    "theory.perturbation.identity_shift_bounds": (lambda A: perturbation.identity_shift_bounds(A, 1.0), S),
    "theory.perturbation.identity_shift_derivatives": (lambda A: perturbation.identity_shift_derivatives(A, 1.0), S),
    "theory.perturbation.preactivation_bounds": (lambda A, d: perturbation.preactivation_bounds(A, d, 1.0), S, ROW),
    "theory.perturbation.product_bounds": (lambda A: perturbation.product_bounds(A, 1.0), f32(2, 6, 6)),
    "theory.perturbation.product_derivatives": (lambda A: perturbation.product_derivatives(A, 1.0), f32(2, 6, 6)),
    "theory.perturbation.projection_skip_bounds": (lambda A: perturbation.projection_skip_bounds(A, A, 1.0), S),
    "theory.perturbation.singular_value_path": (perturbation.singular_value_path, S, f32(3)),
    "theory.perturbation.skip_slope_bounds": (lambda A, d: perturbation.skip_slope_bounds(A, d, 1.0), S, ROW),
    "theory.perturbation.slope_bounds": (perturbation.slope_bounds, S, ROW),
    "theory.perturbation.slope_change_bounds": (perturbation.slope_change_bounds, S, ROW, ROW),
    "theory.perturbation.two_layer_block_bounds": (lambda A: perturbation.two_layer_block_bounds(A, A, 1.0), S),
    "theory.random_matrices.expected_dropout_gram": (
        lambda A: random_matrices.expected_dropout_gram(A, rate=0.5),
        S,
    ),
    "theory.random_matrices.expected_gram_floor": (
        lambda A: random_matrices.expected_gram_floor(symmetric(A), slopes="relu"),
        S,
    ),
    "theory.random_matrices.expected_pattern_gram": (
        lambda A: random_matrices.expected_pattern_gram(A, slopes="relu"),
        S,
    ),
    "theory.random_matrices.sample_skip_layer": (
        lambda x: x @ random_matrices.sample_skip_layer(KEY, n=6, c=0.5, slopes="relu"),
        ROW,
    ),
    "theory.topology.layerwise_dynamical_isometry": (
        lambda A: sx.theory.topology.layerwise_dynamical_isometry({"one": A, "two": 2 * A}),
        M,
    ),
    "trace": (lambda A: sx.trace(operator(A), key=KEY, max_matvecs=4, full=True), S),
    "trace, XTrace": (lambda A: sx.trace(operator(A), key=KEY, method=sx.XTrace(), full=True), S),
    "trace, Hutch++": (lambda A: sx.trace(operator(A), key=KEY, method=sx.HutchPlusPlus(), full=True), S),
    "transforms.add_spectral_penalty": (trained, WEIGHTS, jax.eval_shape(OPTIMIZER.init, WEIGHTS), f32(3, 6)),
    "transforms.clip_singular_values": updated(sx.transforms.clip_singular_values(0.5, 2.0)),
    "transforms.gradient_oscillation": updated(sx.transforms.gradient_oscillation(0.1)),
    "transforms.project_spectral_norm": updated(sx.transforms.project_spectral_norm(1.0)),
    "transforms.track_spectrum": updated(sx.transforms.track_spectrum()),
}

_NUMBERS = "numbers in, numbers out: a closed form or an integral, on the host"
_ON_THE_HOST = "looks at values, so that it needs concrete ones"
_ON_STEPS = "the host takes the steps; each is a compiled program of what eigsh, svds and spectral_density consist of"
WITHOUT = {
    "find_layers": "describes a program: names and shapes",
    "landscape.loss_along_line": "as many kinks as there are: the length depends on values",
    "landscape.loss_slice": "a polygon with as many corners as there are: the length depends on values",
    "monitor.jsonl": "writes a file",
    "monitor.kinds": "names of what is static",
    "monitor.log": "hands numbers to a callback",
    "monitor.scalars": _ON_THE_HOST,
    "parametrizations.low_rank_flops": _NUMBERS,
    "parametrizations.prune_by_energy": "the rank that is kept is a shape, and depends on values",
    "raise_unless_successful": _ON_THE_HOST,
    "regularizers.flax_axes": "axes by name",
    "stepwise_density": _ON_STEPS,
    "stepwise_eigsh": _ON_STEPS,
    "stepwise_svds": _ON_STEPS,
    "testing.assert_eigenvalues": _ON_THE_HOST,
    "testing.assert_singular_values": _ON_THE_HOST,
    "testing.clustered": "NumPy, in 64 bits",
    "testing.gallery": "a table of cases; their operators are those of with_singular_values, hilbert and kahan",
    "testing.geometric_decay": "NumPy, in 64 bits",
    "testing.linear_decay": "NumPy, in 64 bits",
    "testing.repeated": "NumPy, in 64 bits",
    "testing.with_singular_values": "a matrix made by NumPy, in 64 bits, from a key that is known",
    "theory.topology.nn_degree": _NUMBERS,
    "theory.topology.nn_density": _NUMBERS,
    "theory.topology.nn_mass": _NUMBERS,
    **{
        f"theory.random_matrices.{name}": _NUMBERS
        for name in random_matrices.__all__
        if inspect.isfunction(getattr(random_matrices, name))
        and f"theory.random_matrices.{name}" not in ROWS
        and inspect.signature(getattr(random_matrices, name)).return_annotation != jax.Array
    },
}


def public_functions():
    """The shortest path of every function that can be reached from the package by public names."""
    found, seen, left = {}, set(), [((), sx)]
    while left:
        path, module = left.pop()
        own = [name for name, o in vars(module).items() if getattr(o, "__module__", "") == module.__name__]
        for name in getattr(module, "__all__", [name for name in own if not name.startswith("_")]):
            symbol, full = getattr(module, name), (*path, name)
            if inspect.ismodule(symbol) and (len(full), full) not in seen and len(full) < 4:
                seen.add((len(full), full))
                left.append((full, symbol))
            elif inspect.isfunction(symbol):
                found[symbol] = min(found.get(symbol, full), full, key=lambda path: (len(path), path))
    return {".".join(path) for path in found.values()}


def test_every_public_function_is_in_the_table():
    public = public_functions()
    rows = {name.partition(",")[0] for name in ROWS}
    assert sorted(public - rows - set(WITHOUT)) == []
    assert sorted((rows | set(WITHOUT)) - public) == []
    assert not rows & set(WITHOUT)


def exported(function, *structs):
    flat = jax.jit(lambda *args: [leaf for leaf in jax.tree.leaves(function(*args)) if isinstance(leaf, jax.Array)])
    return jax.export.export(flat, platforms=PLATFORMS)(*structs)


@pytest.mark.parametrize("name", ROWS)
def test_it_lowers_for_every_platform(name):
    found = exported(*ROWS[name])
    assert found.platforms == PLATFORMS
    assert found.out_avals
    assert "f64" not in found.mlir_module()


def test_what_one_platform_lacks_is_seen():
    with pytest.raises(NotImplementedError, match="tpu"):
        exported(jnp.linalg.eig, S)
    with pytest.raises(NotImplementedError, match="python_callback"):
        exported(lambda A: jax.pure_callback(lambda A: A, S, A), S)
    with jax.enable_x64(True):
        assert "f64" in exported(lambda A: A.astype("float64"), S).mlir_module()
