"""Penalties against a full decomposition by NumPy in 64 bits, and their gradients against its central differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from numpy.testing import assert_allclose, assert_array_equal

import spectrax as sx
from spectrax.regularizers import (
    MatrixAxes,
    condition_number_penalty,
    jacobian_maps,
    orthogonality_penalty,
    spectral_norm_penalty,
)

# Kernels by name, for maps whose shorter sides are below the limit of whole decompositions (128), and above it. One
# shorter side for all of them: they share one compiled decomposition.
SMALL = {
    "tall": (3, 3, 3, 5),  # 80 x 48
    "wide": (3, 3, 5, 3),  # 48 x 80
    "strided": (3, 3, 2, 3),  # 48 x 128
    "dense": (48, 60),
}
LARGE = {
    "same": (3, 3, 4, 4),  # 144 x 144
    "tall": (3, 3, 4, 5),  # 180 x 144
    "strided": (3, 3, 2, 4),  # 144 x 288
    "dense": (150, 144),
}


def small_maps(params):
    conv = functools.partial(sx.conv_operator, padding="SAME")
    operators = {name: conv(params[name], (4, 4)) for name in ("tall", "wide")}
    operators["strided"] = conv(params["strided"], (8, 8), strides=2)
    return operators | {"dense": sx.aslinearoperator(params["dense"].T)}


def large_maps(params):
    conv = functools.partial(sx.conv_operator, padding="SAME")
    operators = {name: conv(params[name], (6, 6)) for name in ("same", "tall")}
    operators["strided"] = conv(params["strided"], (12, 12), strides=2)
    return operators | {"dense": sx.aslinearoperator(params["dense"].T)}


def one_conv_small(params):
    return {"conv": sx.conv_operator(params["kernel"], (4, 4), padding="SAME")}


def random_params(shapes, dtype, seed=0):
    rng = np.random.default_rng(seed)
    fans = {name: np.prod(shape[:-1]) for name, shape in shapes.items()}
    return {name: jnp.asarray(rng.standard_normal(s) / fans[name] ** 0.5, dtype) for name, s in shapes.items()}


def dense(maps, params):
    """The maps as float64 matrices; they depend linearly on the parameters."""
    return {name: np.asarray(op.to_dense()).astype(np.float64) for name, op in maps(params).items()}


def log_condition(s, block, eps):
    count = min(block, max(len(s) // 2, 1))
    return np.mean(np.log(s[:count])) - np.mean(np.log(s[-count:] + eps * s[0]))


def true_value(kind, block, matrix, eps):
    s = np.linalg.svd(matrix, compute_uv=False)
    if kind == "condition_number":
        return log_condition(s, block, eps)
    return s[0] ** 2 / 2 if kind == "spectral_norm" else np.sum((s**2 - 1) ** 2)


@functools.cache
def made(kind, maps, **options):
    factories = {
        "condition_number": condition_number_penalty,
        "spectral_norm": spectral_norm_penalty,
        "orthogonality": orthogonality_penalty,
    }
    return factories[kind](maps, **options)


@functools.cache
def compiled(penalty):
    return (
        jax.jit(penalty.init),
        jax.jit(jax.value_and_grad(penalty.apply, has_aux=True)),
        jax.jit(penalty.renew),
    )


def blank(penalty, params, key):
    """A state with nothing in it, at a step where `apply` renews: saves the compilation of `init`."""
    shapes = jax.eval_shape(penalty.init, params, key)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes._replace(key=None))
    return zeros._replace(key=key, applied=jnp.asarray(64, jnp.int32))


def evaluate(penalty, params, key, state=None):
    state = blank(penalty, params, key) if state is None else state
    (value, state), gradient = compiled(penalty)[1](params, state)
    return value, gradient, state


def check_against_central_differences(kind, block, maps, shapes, dtype, key, *, value_rtol, gradient_rtol, eps=None):
    """Value and gradient of the sum; each parameter belongs to one map, so its derivative is checked by itself."""
    penalty = made(kind, maps, block_size=block)
    params = random_params(shapes, dtype)
    value, gradient, state = evaluate(penalty, params, key)
    assert value.dtype == dtype
    eps = np.finfo(dtype).eps if eps is None else eps
    matrices = dense(maps, params)
    assert_allclose(value, sum(true_value(kind, block, m, eps) for m in matrices.values()), rtol=value_rtol)
    directions = random_params(shapes, dtype, seed=1)
    moves = dense(maps, directions)
    for name, matrix in matrices.items():
        h = 1e-6
        ends = [true_value(kind, block, matrix + t * moves[name], eps) for t in (h, -h)]
        expected = (ends[0] - ends[1]) / (2 * h)
        actual = np.vdot(np.asarray(gradient[name], np.float64), np.asarray(directions[name], np.float64))
        scale = abs(expected) + 1e-3 * np.linalg.norm(gradient[name]) * np.linalg.norm(directions[name])
        assert abs(actual - expected) <= gradient_rtol * scale, name
    return state, matrices


@pytest.mark.parametrize(("kind", "block"), [("condition_number", 1), ("condition_number", 8), ("spectral_norm", 4)])
def test_small_maps_in_64_bits(x64, kind, block):
    state, _ = check_against_central_differences(
        kind, block, small_maps, SMALL, jnp.float64, None, value_rtol=1e-11, gradient_rtol=1e-6
    )
    assert all(state.measurements.converged.values())


@pytest.mark.parametrize("block", [3, 4, 5, 1000])
def test_blocks_of_an_explicit_matrix_are_at_most_half_of_it(x64, block):
    matrix = np.random.default_rng(0).standard_normal((12, 9))  # nine values: four at each end
    penalty = condition_number_penalty(block_size=block)
    params = {"kernel": jnp.asarray(matrix)}
    state = penalty.init(params, None)
    assert_allclose(
        penalty.apply(params, state)[0], log_condition(np.linalg.svd(matrix)[1], block, 2.2e-16), rtol=1e-12
    )
    assert state.blocks["kernel"].top.shape == (min(block, 4), 9)


def test_small_maps_in_32_bits():
    check_against_central_differences(
        "condition_number", 8, small_maps, SMALL, jnp.float32, None, value_rtol=1e-4, gradient_rtol=2e-3
    )


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
def test_large_maps(request, key, dtype):
    if dtype == "float64":
        request.getfixturevalue("x64")
    # beyond 128 the vectors have relative residuals of 1e-3: values are right to 1e-6, derivatives to 1e-3 over a gap
    state, _ = check_against_central_differences(
        "condition_number", 8, large_maps, LARGE, dtype, key, value_rtol=1e-4, gradient_rtol=1e-2
    )
    assert all(state.measurements.converged.values())


def test_orthogonality_of_matrices_is_exact(x64):
    params = random_params({"dense": (12, 8), "dense_wide": (8, 12)}, jnp.float64)
    penalty = orthogonality_penalty()
    value, gradient, _ = evaluate(penalty, params, None)
    matrices = {name: np.asarray(leaf) for name, leaf in params.items()}
    assert_allclose(value, sum(true_value("orthogonality", 0, m, 0) for m in matrices.values()), rtol=1e-12)
    for name, matrix in matrices.items():
        u, s, v = np.linalg.svd(matrix, full_matrices=False)
        assert_allclose(gradient[name], (u * (4 * s * (s**2 - 1))) @ v, rtol=1e-9, atol=1e-10)


def test_orthogonality_of_convolutions_is_an_unbiased_estimate(x64):
    params, chosen = random_params(SMALL, jnp.float64), {"tall", "wide", "strided"}
    penalty = orthogonality_penalty(small_maps, num_probes=4, mask=chosen.__contains__)
    draws = jax.jit(jax.vmap(lambda key: penalty.apply(params, penalty.init(params, key))[0]))
    values = np.asarray(draws(jax.random.split(jax.random.key(0), 200)))
    matrices = [m for name, m in dense(small_maps, params).items() if name in chosen]
    truth = sum(true_value("orthogonality", 0, m, 0) for m in matrices)
    # Var |B z|^2 = 2 (|G|_F^2 - |diag G|^2) for random signs z and G = B^T B
    variance = 0.0
    for m in matrices:
        short = m if m.shape[0] >= m.shape[1] else m.T
        b = short.T @ short - np.eye(short.shape[1])
        gram = b.T @ b
        variance += 2 * (np.sum(gram**2) - np.sum(np.diag(gram) ** 2)) / 4
    assert abs(values.mean() - truth) <= 4 * np.sqrt(variance / 200)
    assert 0.7 <= values.std() / np.sqrt(variance) <= 1.4


def test_orthogonality_draws_new_signs_at_every_step_and_averages_probes(x64, key):
    params = {"kernel": random_params(SMALL, jnp.float64)["tall"]}
    few, many = (orthogonality_penalty(one_conv_small, num_probes=count) for count in (1, 64))
    state = few.init(params, key)
    step = jax.jit(few.apply)
    first, state = step(params, state)
    second, state = step(params, state)
    assert first != second
    assert int(state.applied) == 2
    keys = jax.random.split(key, 60)
    spread = [
        np.std(jax.jit(jax.vmap(lambda k, p=p: p.apply(params, p.init(params, k))[0]))(keys)) for p in (few, many)
    ]
    assert 4 < spread[0] / spread[1] < 16  # sqrt(64) = 8


def test_gradient_of_the_orthogonality_estimate(x64, key):
    """For fixed signs it is a polynomial in the kernel: central differences of its own value."""
    params = {"kernel": random_params(SMALL, jnp.float64)["tall"]}
    penalty = made("orthogonality", one_conv_small)
    _, apply, _ = compiled(penalty)
    state = penalty.init(params, key)
    direction = random_params(SMALL, jnp.float64, seed=1)["tall"]
    gradient = apply(params, state)[1]["kernel"]
    ends = [apply({"kernel": params["kernel"] + h * direction}, state)[0][0] for h in (1e-5, -1e-5)]
    assert_allclose(jnp.vdot(gradient, direction), (ends[0] - ends[1]) / 2e-5, rtol=1e-7)


def orthogonal(n, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]


def with_values(s):
    n = len(s)
    return orthogonal(n) @ np.diag(s) @ orthogonal(n, 1)


SQUARE = {
    "zero": np.zeros((6, 6)),
    "identity": np.eye(6),
    "orthogonal": orthogonal(6),
    "all equal": 3 * orthogonal(6),
    "rank 1": np.outer(np.arange(1.0, 7), np.ones(6)),
    "rank 5": with_values([5.0, 4, 3, 2, 1, 0]),
    "one entry": np.eye(6)[:1].T @ np.eye(6)[1:2],
    "tiny": 1e-20 * with_values([6.0, 5, 4, 3, 2, 1]),
    "tiny and singular": 1e-20 * with_values([6.0, 5, 4, 3, 0, 0]),
    "huge": 1e17 * with_values([6.0, 5, 4, 3, 2, 1]),
    "huge and singular": 1e17 * with_values([6.0, 5, 4, 3, 0, 0]),
}


def is_finite(tree):
    return all(np.isfinite(np.asarray(leaf, np.float64)).all() for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["condition_number", "spectral_norm", "orthogonality"])
def test_finite_at_every_square_matrix(kind, dtype):
    penalty, state = made(kind, None), None
    for name, matrix in SQUARE.items():
        if kind == "orthogonality" and name.startswith("huge"):
            continue  # its fourth power is beyond float32
        params = {"kernel": jnp.asarray(matrix, dtype)}
        state = blank(penalty, params, None) if state is None else state
        value, gradient, _ = evaluate(penalty, params, None, state)
        assert value.dtype == jnp.float32, name
        assert gradient["kernel"].dtype == dtype, name
        assert is_finite(value), (name, value)
        assert is_finite(gradient), (name, gradient)
        exact = np.asarray(params["kernel"]).astype(np.float64)
        block = {"condition_number": 8, "spectral_norm": 4, "orthogonality": 0}[kind]
        if "singular" in name or name in ("rank 1", "rank 5", "one entry", "zero"):
            continue  # at the floor the value is that of round-off
        assert_allclose(value, true_value(kind, block, exact, np.finfo(np.float32).eps), rtol=1e-5, atol=1e-5)


def test_at_zero_the_condition_penalty_rests():
    value, gradient, state = evaluate(made("condition_number", None), {"kernel": jnp.zeros((6, 6))}, None)
    assert float(value) == 0
    assert_array_equal(gradient["kernel"], 0)
    assert np.isinf(state.measurements.condition_number["kernel"])


def test_a_singular_matrix_is_at_the_floor_and_its_gradient_lifts_the_smallest_value():
    """The bottom value is eps s_1: the block mean is log(5 4 3 / (2 1 eps 5)) / 3."""
    penalty = made("condition_number", None)
    params = {"kernel": jnp.asarray(SQUARE["rank 5"], jnp.float32)}
    value, gradient, _ = evaluate(penalty, params, None)
    eps = np.finfo(np.float32).eps
    highest = (np.log(60) - np.log(2) - np.log(5 * eps)) / 3
    assert highest - np.log(8) / 3 <= float(value) <= highest + 1e-5  # the computed zero may be some eps
    lifted = np.asarray(params["kernel"], np.float64) - 1e-8 * np.asarray(gradient["kernel"], np.float64)
    s = np.linalg.svd(lifted, compute_uv=False)
    assert s[-1] >= 30 * eps * s[0]


@pytest.mark.parametrize("kind", ["condition_number", "spectral_norm", "orthogonality"])
def test_thin_matrices(x64, kind):
    rng = np.random.default_rng(0)
    matrices = {f"{m}x{n}": rng.standard_normal((m, n)) for m, n in [(1, 7), (7, 1), (1, 1), (2, 3), (3, 3)]}
    value, gradient, state = evaluate(made(kind, None), jax.tree.map(jnp.asarray, matrices), None)
    block = {"condition_number": 8, "spectral_norm": 4, "orthogonality": 0}[kind]
    expected = sum(true_value(kind, block, m, np.finfo(np.float64).eps) for m in matrices.values())
    assert_allclose(value, expected, rtol=1e-11)
    assert is_finite(gradient)
    if kind == "condition_number":
        for name, matrix in matrices.items():
            assert_allclose(state.measurements.condition_number[name], np.linalg.cond(matrix), rtol=1e-10)


def test_finite_at_degenerate_maps_beyond_the_whole_decomposition(key):
    """One compiled program for matrices, convolutions and their adjoints."""
    penalty = made("condition_number", large_maps, block_size=8)
    shapes = random_params(LARGE, jnp.float32)
    zero = jax.tree.map(jnp.zeros_like, shapes)
    delta = {name: k.at[1, 1].set(jnp.eye(*k.shape[2:])) for name, k in zero.items() if name != "dense"}
    identity = delta | {"dense": jnp.eye(150, 144)}
    rng = np.random.default_rng(0)
    low = jnp.asarray(rng.standard_normal((150, 5)) @ rng.standard_normal((5, 144)), jnp.float32)
    halved = {name: k.at[..., 1].set(k[..., 0]) for name, k in shapes.items() if name != "dense"}
    singular = halved | {"dense": low}
    cases = {"zero": zero, "identity": identity, "singular": singular}
    cases |= {"tiny": jax.tree.map(lambda k: 1e-20 * k, shapes), "huge": jax.tree.map(lambda k: 1e17 * k, shapes)}
    start = blank(penalty, shapes, key)
    for name, params in cases.items():
        value, gradient, state = evaluate(penalty, params, key, start)
        assert is_finite(value), (name, value)
        assert is_finite(gradient), name
        for which, matrix in dense(large_maps, params).items():
            norm = np.linalg.norm(matrix, 2)
            assert_allclose(state.measurements.sigma_max[which], norm, rtol=1e-4, err_msg=f"{name} {which}")


def test_tiny_and_huge_kernels_have_the_same_condition_number(key):
    """Beyond the whole decomposition too: the penalty does not see the scale."""
    penalty = made("condition_number", large_maps, block_size=8)
    params = random_params(LARGE, jnp.float32)
    start = blank(penalty, params, key)
    expected = evaluate(penalty, params, key, start)[0]
    for scale in (1e-20, 1e17):
        scaled = jax.tree.map(lambda k, s=scale: s * k, params)
        assert_allclose(evaluate(penalty, scaled, key, start)[0], expected, rtol=1e-4)


def test_bfloat16_convolutions(key):
    params = jax.tree.map(lambda k: k.astype(jnp.bfloat16), random_params(SMALL, jnp.float32))
    for kind in ("condition_number", "orthogonality"):
        value, gradient, state = evaluate(made(kind, small_maps), params, key)
        assert value.dtype == jnp.float32
        assert is_finite((value, gradient))
        assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(gradient))
        if kind != "orthogonality":
            for name, matrix in dense(small_maps, params).items():
                norm = np.linalg.norm(matrix, 2)
                assert_allclose(state.measurements.sigma_max[name], norm, rtol=2e-2, err_msg=name)


# --- what is measured ---


def test_measurements_right_after_init(x64):
    penalty = made("condition_number", small_maps, block_size=8)
    params = random_params(SMALL, jnp.float64)
    measurements = compiled(penalty)[0](params, None).measurements
    for name, matrix in dense(small_maps, params).items():
        s = np.linalg.svd(matrix, compute_uv=False)
        assert_allclose(measurements.sigma_max[name], s[0], rtol=1e-12)
        assert_allclose(measurements.sigma_min[name], s[-1], rtol=1e-10)
        assert_allclose(measurements.condition_number[name], s[0] / s[-1], rtol=1e-10)
        assert measurements.residual[name] < 1e-8
        assert measurements.converged[name]
        assert all(jnp.shape(field[name]) == () for field in measurements)
    assert all(set(field) == set(SMALL) for field in measurements)


def test_the_spectral_norm_measures_no_bottom():
    params = {"kernel": jnp.diag(jnp.array([3.0, 1.0]))}
    penalty = spectral_norm_penalty()
    measurements = penalty.init(params, None).measurements
    assert float(measurements.sigma_max["kernel"]) == pytest.approx(3)
    assert np.isnan(measurements.sigma_min["kernel"])
    assert np.isnan(measurements.condition_number["kernel"])
    assert np.isnan(measurements.residual["kernel"])
    assert measurements.converged["kernel"]


def test_orthogonality_measures_nothing():
    penalty = orthogonality_penalty()
    params = {"kernel": jnp.eye(3)}
    state = penalty.apply(params, penalty.init(params, None))[1]
    assert all(np.isnan(field["kernel"]) for field in state.measurements[:4])
    assert not state.measurements.converged["kernel"]


def test_between_renewals_ritz_values_stay_on_their_side_and_renewal_restores(x64):
    penalty = condition_number_penalty(small_maps, block_size=4, renew_every=3)
    init, apply, _ = compiled(penalty)
    params = random_params(SMALL, jnp.float64)
    state = init(params, None)
    (_, state), _ = apply(params, state)
    drift = random_params(SMALL, jnp.float64, seed=2)
    gaps = []
    for step in range(1, 5):
        params = jax.tree.map(lambda p, d: p + 1e-2 * d, params, drift)
        (_, state), _ = apply(params, state)
        gap = 0.0
        for name, matrix in dense(small_maps, params).items():
            s = np.linalg.svd(matrix, compute_uv=False)
            top, bottom = state.measurements.sigma_max[name], state.measurements.sigma_min[name]
            assert top <= s[0] * (1 + 1e-12)
            assert bottom >= s[-1] * (1 - 1e-10)
            radius = state.measurements.residual[name] * bottom / np.sqrt(2)
            assert np.abs(s - bottom).min() <= radius + 1e-12
            gap += float(bottom / s[-1] - 1)
        gaps.append(gap)
        if step == 3:
            assert gap < 1e-8
    assert gaps[0] > 1e-4
    assert gaps[1] > gaps[0]
    assert gaps[3] > 1e-4  # and drifts away again
    assert int(state.applied) == 5


def test_renewal_happens_at_multiples_of_its_interval_only(x64):
    penalty = condition_number_penalty(block_size=2, renew_every=2)
    params = {"kernel": jnp.asarray(with_values([6.0, 5, 4, 3, 2, 1]))}
    state = penalty.init(params, None)
    seen = []
    for _ in range(5):
        before = state.blocks
        state = penalty.apply({"kernel": params["kernel"] + 0.1 * jnp.eye(6)}, state)[1]
        after = state.blocks
        seen.append(bool(jnp.any(before["kernel"].bottom != after["kernel"].bottom)))
    assert seen[:3] == [False, False, True]
    assert not seen[3]


def test_renew_is_what_apply_does_at_its_interval(key):
    penalty = made("condition_number", large_maps, block_size=8)
    init, _, renew = compiled(penalty)
    params = random_params(LARGE, jnp.float32)
    state = init(params, key)
    moved = jax.tree.map(lambda p, d: p + 1e-2 * d, params, random_params(LARGE, jnp.float32, seed=1))
    renewed = renew(moved, state._replace(applied=jnp.asarray(64, jnp.int32)))
    assert jax.tree.structure(renewed) == jax.tree.structure(state)
    assert int(renewed.applied) == 64
    (_, after), _ = compiled(penalty)[1](moved, state._replace(applied=jnp.asarray(64, jnp.int32)))
    for name, matrix in dense(large_maps, moved).items():
        s = np.linalg.svd(matrix, compute_uv=False)
        assert_allclose(after.measurements.sigma_min[name], s[-1], rtol=1e-4, atol=1e-6 * s[0])
        assert_allclose(after.blocks[name].bottom, renewed.blocks[name].bottom, atol=1e-5)
        assert after.measurements.converged[name]


def test_large_ritz_values_stay_on_their_side(key):
    penalty = made("condition_number", large_maps, block_size=8)
    init, apply, _ = compiled(penalty)
    params = random_params(LARGE, jnp.float32)
    (_, state), _ = apply(params, init(params, key))
    moved = jax.tree.map(lambda p, d: p + 1e-2 * d, params, random_params(LARGE, jnp.float32, seed=1))
    (_, state), _ = apply(moved, state)
    for name, matrix in dense(large_maps, moved).items():
        s = np.linalg.svd(matrix, compute_uv=False)
        top, bottom = (float(x[name]) for x in (state.measurements.sigma_max, state.measurements.sigma_min))
        assert top <= s[0] * (1 + 1e-5)
        assert bottom >= s[-1] - 1e-5 * s[0]
        assert np.abs(s - bottom).min() <= float(state.measurements.residual[name]) * bottom / np.sqrt(2) + 1e-5 * s[0]


def test_converged_says_when_the_renewal_met_no_finite_number():
    penalty = made("condition_number", None)
    for bad in (jnp.nan, jnp.inf):
        params = {"kernel": jnp.eye(6).at[0, 1].set(bad)}
        _, _, state = evaluate(penalty, params, None)
        assert not state.measurements.converged["kernel"]


def test_the_state_is_never_differentiated():
    penalty = condition_number_penalty()
    params = {"kernel": jnp.asarray(with_values([6.0, 5, 4, 3, 2, 1]), jnp.float32)}
    state = penalty.init(params, None)
    gradient = jax.jit(jax.grad(lambda p: penalty.apply(p, state)[1].measurements.sigma_max["kernel"]))(params)
    assert_array_equal(gradient["kernel"], 0)


def test_kinds():
    conditions = condition_number_penalty(small_maps)
    params = random_params(SMALL, jnp.float32)
    assert conditions.kinds(params) == dict.fromkeys(SMALL, "lower")
    kinds = orthogonality_penalty(small_maps).kinds(params)
    assert kinds == {n: "exact" if n == "dense" else "estimate" for n in SMALL}
    batched = condition_number_penalty(jacobian_maps(lambda p, x: p @ x), batched=True)
    assert batched.kinds(jnp.eye(2), x=jnp.ones((3, 2))) == {"jacobian": "exact"}
    structs = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params)
    assert conditions.kinds(structs) == conditions.kinds(params)


# --- which maps ---


def test_masks_by_name(x64):
    params = random_params(SMALL, jnp.float64)
    penalty = condition_number_penalty(small_maps, mask={"dense", "wide"}.__contains__)
    value, gradient, state = evaluate(penalty, params, None)
    matrices = dense(small_maps, params)
    eps = np.finfo(np.float64).eps
    expected = sum(true_value("condition_number", 8, matrices[name], eps) for name in ("dense", "wide"))
    assert_allclose(value, expected, rtol=1e-10)
    assert set(state.blocks) == set(state.measurements.sigma_max) == {"dense", "wide"}
    assert_array_equal(gradient["tall"], 0)
    assert np.any(gradient["dense"] != 0)
    assert set(penalty.kinds(params)) == {"dense", "wide"}


def test_matrix_axes_with_batch_axes_are_a_sum_over_matrices(x64):
    w = np.random.default_rng(0).standard_normal((3, 6, 2, 4))
    value, _, state = evaluate(condition_number_penalty(MatrixAxes(1, (2, 3))), {"w": jnp.asarray(w)}, None)
    matrices = [w[i].reshape(6, 8) for i in range(3)]
    expected = sum(log_condition(np.linalg.svd(m, compute_uv=False), 8, np.finfo(float).eps) for m in matrices)
    assert_allclose(value, expected, rtol=1e-11)
    assert list(state.measurements.sigma_max) == ["w[0]", "w[1]", "w[2]"]


# --- the Jacobian at each sample of a batch ---


def model(params, x):
    return jnp.tanh(params["w2"] @ jnp.tanh(params["w1"] @ x + params["b"]))


def numpy_jacobians(params, xs):
    w1, w2, b = (np.asarray(params[name], np.float64) for name in ("w1", "w2", "b"))
    for x in np.asarray(xs, np.float64):
        hidden = np.tanh(w1 @ x + b)
        out = np.tanh(w2 @ hidden)
        yield (1 - out**2)[:, None] * w2 @ ((1 - hidden**2)[:, None] * w1)


def model_params(seed=0):
    rng = np.random.default_rng(seed)
    arrays = {"w1": rng.standard_normal((7, 5)), "w2": rng.standard_normal((4, 7)), "b": rng.standard_normal(7)}
    return jax.tree.map(jnp.asarray, arrays)


@pytest.mark.parametrize("num_samples", [None, 3])
@pytest.mark.parametrize("kind", ["condition_number", "spectral_norm", "orthogonality"])
def test_batched_jacobians(x64, kind, num_samples):
    params, xs = model_params(), jnp.asarray(np.random.default_rng(1).standard_normal((6, 5)))
    penalty = made(kind, jacobian_maps(model), batched=True, num_samples=num_samples)
    block = {"condition_number": 8, "spectral_norm": 4, "orthogonality": 0}[kind]
    eps = np.finfo(float).eps

    def true(params):
        used = xs if num_samples is None else xs[:num_samples]
        return np.mean([true_value(kind, block, m, eps) for m in numpy_jacobians(params, used)])

    function = jax.jit(jax.value_and_grad(penalty.apply, has_aux=True))
    (value, state), gradient = function(params, penalty.init(params, None), x=xs)
    assert_allclose(value, true(params), rtol=1e-10)
    direction, h = model_params(seed=2), 1e-6
    ends = [true(jax.tree.map(lambda p, d, t=t: p + t * d, params, direction)) for t in (h, -h)]
    actual = sum(jnp.vdot(gradient[name], direction[name]) for name in params)
    assert_allclose(actual, (ends[0] - ends[1]) / (2 * h), rtol=1e-6)
    assert int(state.applied) == 1
    if kind == "condition_number":
        used = list(numpy_jacobians(params, xs if num_samples is None else xs[:num_samples]))
        kappas = [np.linalg.cond(m) for m in used]
        assert_allclose(state.measurements.condition_number["jacobian"], np.median(kappas), rtol=1e-9)
        norms = [np.linalg.norm(m, 2) for m in used]
        assert_allclose(state.measurements.sigma_max["jacobian"], np.median(norms), rtol=1e-9)
        assert state.measurements.converged["jacobian"]


def test_extra_arguments_for_others_are_ignored():
    params, xs = jax.tree.map(lambda p: p.astype(jnp.float32), model_params()), jnp.ones((2, 5))
    penalty = spectral_norm_penalty(jacobian_maps(model), batched=True)
    state = penalty.init(params, None)
    plain = penalty.apply(params, state, x=xs)[0]
    assert penalty.apply(params, state, x=xs, value=jnp.float32(1.0), loss_fn=None)[0] == plain
    weights = {"kernel": jnp.eye(2)}
    on_weights = spectral_norm_penalty()
    assert float(on_weights.apply(weights, on_weights.init(weights, None), x=xs)[0]) == pytest.approx(0.5)


def test_a_jacobian_that_vanishes_is_finite():
    params = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), model_params())
    for kind in ("condition_number", "spectral_norm", "orthogonality"):
        penalty = made(kind, jacobian_maps(model), batched=True)
        function = jax.jit(jax.value_and_grad(penalty.apply, has_aux=True))
        (value, _), gradient = function(params, penalty.init(params, None), x=jnp.ones((2, 5)))
        assert is_finite((value, gradient)), kind


@pytest.mark.parametrize("kind", ["condition_number", "spectral_norm", "orthogonality"])
def test_batched_without_its_samples(kind):
    penalty = made(kind, jacobian_maps(model), batched=True)
    params = model_params()
    state = penalty.init(params, None)
    with pytest.raises(ValueError, match=r"needs the samples as keyword arguments: some of params, x"):
        penalty.apply(params, state)
    with pytest.raises(ValueError, match="needs the samples"):
        penalty.apply(params, state, y=jnp.ones((2, 5)))


# --- errors ---


def test_a_missing_key_names_the_maps_that_need_it():
    params = random_params(LARGE, jnp.float32) | {"small": jnp.eye(3)}

    def maps(params):
        return large_maps(params) | {"small": sx.aslinearoperator(params["small"])}

    with pytest.raises(ValueError, match=r"key.* is needed .* same, tall, strided, dense$"):
        condition_number_penalty(maps).init(params, None)
    with pytest.raises(ValueError, match=r"key.* is needed .* same, tall, strided$"):
        orthogonality_penalty(maps).init(params, None)
    with pytest.raises(TypeError, match="key must be a PRNG key"):
        condition_number_penalty(maps).init(params, 3)
    with pytest.raises(TypeError, match="key must be one PRNG key"):
        orthogonality_penalty(maps).init(params, jax.random.split(jax.random.key(0)))


@pytest.mark.parametrize("factory", [condition_number_penalty, spectral_norm_penalty])
@pytest.mark.parametrize("option", ["block_size", "renew_every", "num_samples"])
def test_options_out_of_range(factory, option):
    for value, error in ((0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match=option):
            factory(batched=option == "num_samples", **{option: value})


def test_options_of_the_orthogonality_penalty():
    with pytest.raises(ValueError, match="num_probes must be at least 1"):
        orthogonality_penalty(num_probes=0)
    with pytest.raises(ValueError, match="num_samples is for batched=True only"):
        orthogonality_penalty(num_samples=2)
    with pytest.raises(ValueError, match="num_samples is for batched=True only"):
        condition_number_penalty(num_samples=2)
    with pytest.raises(TypeError, match="maps must be a function"):
        condition_number_penalty({"a": jnp.eye(2)})


@pytest.mark.parametrize("kind", ["condition_number", "spectral_norm", "orthogonality"])
def test_maps_that_return_something_else(kind):
    for junk in (jnp.eye(2), {"a": jnp.eye(2)}, [sx.aslinearoperator(jnp.eye(2))], None):
        with pytest.raises(TypeError, match="must return a dict of names and LinearOperators"):
            made(kind, lambda params, junk=junk: junk).init({}, None)


@pytest.mark.parametrize("kind", ["condition_number", "spectral_norm", "orthogonality"])
def test_a_mask_that_leaves_nothing(kind):
    with pytest.raises(ValueError, match="the mask leaves none of the maps a, b"):
        made(kind, None, mask=lambda name: False).init({"a": jnp.eye(2), "b": jnp.eye(2)}, None)
    with pytest.raises(ValueError, match="there are none"):
        made(kind, lambda params: {}).init({}, None)


# --- transforms of JAX ---


def test_vmap_over_seeds(x64):
    kernels = np.random.default_rng(0).standard_normal((3, 12, 8))
    penalty = condition_number_penalty()

    def run(kernel):
        state = penalty.init({"kernel": kernel}, None)
        value, state = penalty.apply({"kernel": kernel}, state)
        return value, state.measurements.sigma_min["kernel"]

    values, smallest = jax.jit(jax.vmap(run))(jnp.asarray(kernels))
    for index, kernel in enumerate(kernels):
        s = np.linalg.svd(kernel, compute_uv=False)
        assert_allclose(values[index], log_condition(s, 8, 2.2e-16), rtol=1e-12)
        assert_allclose(smallest[index], s[-1], rtol=1e-12)


def test_forward_mode_agrees_with_reverse_mode(x64):
    penalty = condition_number_penalty(one_conv_small)
    kernel, direction = (random_params(SMALL, jnp.float64, seed=seed)["wide"] for seed in (0, 1))
    state = jax.jit(lambda kernel: penalty.init({"kernel": kernel}, None))(kernel)

    @jax.jit
    def both(kernel):
        def value(kernel):
            return penalty.apply({"kernel": kernel}, state)[0]

        return jax.jvp(value, (kernel,), (direction,))[1], jnp.vdot(jax.grad(value)(kernel), direction)

    assert_allclose(*both(kernel), rtol=1e-9)


@pytest.mark.parametrize("kind", ["condition_number", "orthogonality"])
def test_scan_and_eval_shape_keep_the_state(kind):
    penalty = made(kind, one_conv_small)
    params = {"kernel": random_params(SMALL, jnp.float32)["tall"]}
    state = jax.jit(penalty.init)(params, jax.random.key(0))
    shapes = jax.eval_shape(penalty.apply, params, state)[1]
    jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype) or pytest.fail(f"{a} {b}"), state, shapes)
    final, values = jax.lax.scan(lambda s, _: penalty.apply(params, s)[::-1], state, length=3)
    assert int(final.applied) == 3
    assert values.shape == (3,)
    if kind != "orthogonality":
        assert_allclose(values, values[0], rtol=1e-6)


@pytest.mark.parametrize("kind", ["condition_number", "spectral_norm", "orthogonality"])
def test_a_batched_penalty_keeps_its_state_in_64_bit_mode_with_32_bit_parameters(x64, kind):
    params = jax.tree.map(lambda p: p.astype(jnp.float32), model_params())
    penalty = made(kind, jacobian_maps(model), batched=True)
    state = penalty.init(params, None)
    after = jax.eval_shape(lambda s: penalty.apply(params, s, x=jnp.ones((2, 5), jnp.float32))[1], state)
    assert jax.tree.map(lambda a: a.dtype, state) == jax.tree.map(lambda a: a.dtype, after)


@pytest.mark.parametrize("maps", ["small", "large"])
def test_lowering_for_every_platform(maps):
    zoo, shapes = {"small": (small_maps, SMALL), "large": (large_maps, LARGE)}[maps]
    penalty = made("condition_number", zoo, block_size=8)
    params = random_params(shapes, jnp.float32)
    state = jax.eval_shape(penalty.init, params, jax.random.key(0))
    for function in (penalty.apply, penalty.renew):
        exported = export.export(jax.jit(function), platforms=("cpu", "cuda", "rocm", "tpu"))(params, state)
        assert set(exported.platforms) == {"cpu", "cuda", "rocm", "tpu"}


def test_nan_comes_through_and_a_singular_matrix_measures_inf():
    penalty = sx.regularizers.condition_number_penalty()
    matrix = jnp.outer(jnp.arange(1.0, 13.0), jnp.arange(1.0, 11.0))
    state = penalty.init({"kernel": matrix}, None)
    assert np.isinf(state.measurements.condition_number["kernel"])
    assert np.isnan(penalty.apply({"kernel": matrix * jnp.nan}, state)[0])
