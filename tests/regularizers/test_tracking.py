"""Values that are followed with a tolerance, against LAPACK's in float64: drift, abrupt changes, degenerate cases."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import spectrax as sx
from spectrax.integrations import checkpoints
from spectrax.regularizers import condition_number_penalty, improvement, spectral_norm_penalty, tracking

M, N = 180, 140  # above the side that is decomposed wholly
PENALTY = condition_number_penalty(block_size=1, tolerance=1e-2)
INIT, APPLY = jax.jit(PENALTY.init), jax.jit(PENALTY.apply)


def matrix(kappa, shape=(M, N), seed=0):
    rng = np.random.default_rng(seed)
    rank = min(shape)
    u, v = (np.linalg.qr(rng.standard_normal((size, rank)))[0] for size in shape)
    return (u * np.geomspace(1, 1 / kappa, rank)) @ v.T


def drifting(A, drift, steps, *, turning, seed=1):
    """Add random matrices; or turn the singular vectors and keep the values."""
    rng = np.random.default_rng(seed)
    values = np.linalg.svd(A, compute_uv=False)
    for _ in range(steps):
        change = rng.standard_normal(A.shape)
        A = A + drift * np.linalg.norm(A) * change / np.linalg.norm(change)
        if turning:
            u, _, vh = np.linalg.svd(A, full_matrices=False)
            A = (u * values) @ vh
        yield A


def params_of(A):
    return {"w": jnp.asarray(A.T, jnp.float32)}


def check(measured, A, name="w", *, within=None):
    """The estimates cover the errors; return these."""
    s = np.linalg.svd(np.asarray(A, np.float64), compute_uv=False)
    top = abs(float(measured.sigma_max[name]) / s[0] - 1)
    bottom = abs(float(measured.sigma_min[name]) / s[-1] - 1)
    covered = top <= measured.sigma_max_error[name] and bottom <= measured.sigma_min_error[name]
    if within is not None:
        assert top <= within
        assert bottom <= within
    return top, bottom, bool(covered)


def one_track(state):
    (track,) = state.tracks.values()
    return track


@pytest.mark.parametrize(
    ("kappa", "drift", "turning", "most", "least"),
    [
        (1e3, 1e-2, True, 1.0, 0.9),
        (1e3, 1e-3, True, 0.3, 0.0),
        (10.0, 1e-3, True, 0.0, 0.0),
        (1e3, 1e-2, False, 1.0, 0.3),
    ],
)
def test_drifting_matrices_are_followed(kappa, drift, turning, most, least):
    """Within 1 % at every step, by as many factorisations as the drift takes; the vectors of the start would not do."""
    begun = matrix(kappa)
    state = first = INIT(params_of(begun), jax.random.key(0))
    covered, factorised = [], []
    for A in drifting(begun, drift, 30, turning=turning):
        _, state = APPLY(params_of(A), state)
        covered.append(check(state.measurements, A, within=1e-2)[2])
        factorised.append(int(one_track(state).factor.age[0]) == 0)
        assert state.measurements.converged["w"]
    assert np.mean(covered) >= 0.99
    assert least <= np.mean(factorised) <= most
    if kappa == 1e3:
        old = np.asarray(first.blocks["w"].bottom, np.float64)
        assert np.linalg.svd(A @ old.T, compute_uv=False)[-1] > 1.05 * np.linalg.svd(A, compute_uv=False)[-1]


def test_abrupt_changes_are_seen():
    """Two columns become equal, which leaves the small residuals of the old vectors as they are; all is replaced."""
    A = matrix(10.0)
    state = INIT(params_of(A), jax.random.key(0))
    for moved in drifting(A, 1e-4, 4, turning=False):
        _, state = APPLY(params_of(moved), state)
    singular = A.copy()
    singular[:, 7] = singular[:, 30]
    _, after = APPLY(params_of(singular), state)
    assert one_track(after).factor.age[0] == 0
    assert after.measurements.condition_number["w"] == np.inf
    assert np.isfinite(PENALTY.apply(params_of(singular), state)[0])
    replaced = matrix(100.0, seed=5)
    _, after = APPLY(params_of(replaced), state)
    for _ in range(3):  # a new matrix may take some steps, and says so
        _, after = APPLY(params_of(replaced), after)
    check(after.measurements, replaced, within=1e-2)


def test_new_matrices_at_every_step():
    """Whoever has not lost track is right."""
    state = INIT(params_of(matrix(1e4)), jax.random.key(0))
    for seed in range(8):
        A = matrix(1e4, seed=seed + 10)
        _, state = APPLY(params_of(A), state)
        errors = check(state.measurements, A)
        assert errors[2] or not state.measurements.converged["w"], errors


def test_what_cannot_be_followed_says_so(monkeypatch):
    """With one round at each end a step does not suffice for a new matrix; several steps do."""
    monkeypatch.setattr(improvement, "_FRESH_ROUNDS", 1)
    monkeypatch.setattr(improvement, "_TOP_ROUNDS", 1)
    monkeypatch.setattr(improvement, "_LOOK_DEPTH", 1)
    penalty = condition_number_penalty(block_size=1, tolerance=1e-2)
    apply = jax.jit(penalty.apply)
    state, A = INIT(params_of(matrix(1e3)), jax.random.key(0)), matrix(1e3, seed=1)
    kept = []
    for _ in range(6):
        _, state = apply(params_of(A), state)
        kept.append(bool(state.measurements.converged["w"]))
        assert check(state.measurements, A)[2] or not kept[-1]
    assert not kept[0]
    assert kept[-1]
    check(state.measurements, A, within=1e-2)


def test_degenerate_matrices():
    """One compiled program: zero, identity, rank one, tiny, huge, not finite, and back."""
    A = matrix(50.0)
    start = INIT(params_of(A), jax.random.key(0))
    gradient = jax.jit(jax.value_and_grad(PENALTY.apply, has_aux=True))
    rank_one = np.outer(A[:, 0], A[0])
    for case, B in {"zero": 0 * A, "identity": np.eye(M, N), "rank one": rank_one}.items():
        (value, state), slope = gradient(params_of(B), start)
        for _ in range(2):
            (value, state), slope = gradient(params_of(B), state)
        assert np.isfinite(value), case
        assert np.isfinite(slope["w"]).all(), case
        assert_allclose(state.measurements.sigma_max["w"], np.linalg.norm(B, 2), rtol=1e-2, atol=1e-30, err_msg=case)
        assert_allclose(state.measurements.sigma_min["w"], float(case == "identity"), atol=1e-5)
    for scale in (1e-30, 1e30):
        (value, state), slope = gradient(params_of(scale * matrix(50.0)), start)
        assert_allclose(value, np.log(50), rtol=1e-2)
        assert np.isfinite(slope["w"]).all()
    broken = A.copy()
    broken[3, 3] = np.nan
    (value, state), _ = gradient(params_of(broken), start)
    assert np.isnan(value)
    assert not state.measurements.converged["w"]
    for _ in range(2):
        (value, state), _ = gradient(params_of(A), state)
    check(state.measurements, A, within=1e-2)
    assert_allclose(value, np.log(50), rtol=1e-2)


def test_equal_shapes_are_worked_on_together_and_apart():
    """Of three matrices one drifts fast: it alone is factorised; wide and tall ones and a scanned stack share."""
    fast, slow = matrix(1e3), matrix(30.0, seed=3)
    params = {"wide": jnp.asarray(slow, jnp.float32), "stack": jnp.asarray(np.stack([fast.T, slow.T]), jnp.float32)}
    maps = sx.regularizers.matrix_maps(lambda name, leaf: sx.regularizers.MatrixAxes(leaf.ndim - 2, leaf.ndim - 1))
    penalty = condition_number_penalty(maps, block_size=1, tolerance=1e-2)
    state = jax.jit(penalty.init)(params, jax.random.key(0))
    (label,) = state.tracks
    assert state.tracks[label].factor.age.shape == (3,)
    apply = jax.jit(penalty.apply)
    ages = []
    for A in drifting(fast, 1e-2, 4, turning=True):
        params["stack"] = params["stack"].at[0].set(jnp.asarray(A.T, jnp.float32))
        _, state = apply(params, state)
        check(state.measurements, A, "stack[0]", within=1e-2)
        check(state.measurements, slow, "stack[1]", within=1e-2)
        check(state.measurements, slow, "wide", within=1e-2)
        ages.append(np.asarray(state.tracks[label].factor.age))
    order = list(state.measurements.sigma_max)
    quick = order.index("stack[0]")
    assert all(age[quick] == 0 for age in ages)
    assert all(np.delete(age, quick).min() == step + 1 for step, age in enumerate(ages))


def test_one_trace_donation_and_a_restart_from_a_checkpoint(tmp_path):
    """A hundred steps of one program; the state goes through a file in the middle and nothing changes."""
    traces = []
    chain = optax.chain(
        sx.transforms.add_spectral_penalty(PENALTY, 1e-3, key=jax.random.key(1)),
        optax.inject_hyperparams(optax.sgd)(1e-3),
    )
    x, y = jax.random.normal(jax.random.key(2), (16, M)), jnp.ones((16, N))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, x, y):
        traces.append(0)
        slope = jax.grad(lambda p: jnp.mean((x @ p["w"] - y) ** 2))(params)
        updates, state = chain.update(slope, state, params)
        return optax.apply_updates(params, updates), state

    def trained(steps, travel):
        params = {"w": jnp.asarray(matrix(100.0), jnp.float32)}
        state = chain.init(params)
        for index in range(steps):
            if travel and index == steps // 2:
                state = checkpoints.restore(checkpoints.save(tmp_path / "state", state), like=state)
            few = index >= steps // 2  # another size of the batch, and another learning rate
            state[1].hyperparams["learning_rate"] = jnp.asarray(1e-1 if few else 1e-2, jnp.float32)
            params, state = step(params, state, x, y)
        return params, state

    params, state = trained(100, travel=True)
    assert len(traces) == 1
    other, _ = trained(100, travel=False)
    assert_array_equal(params["w"], other["w"])
    measured = optax.tree.get(state, "measurements")
    assert measured.converged["w"]


def test_the_state_of_large_layers_is_small():
    """At d = 4096 without a factor: at most 2 % of Adam's state; up to 1024 with one."""
    for side, most in ((4096, 0.02), (1024, 0.6)):
        params = {"w": jax.ShapeDtypeStruct((side, side), jnp.float32)}
        state = jax.eval_shape(condition_number_penalty(tolerance=1e-2).init, params, jax.random.key(0))
        adam = jax.eval_shape(optax.adam(1e-3).init, params)
        size = [
            sum(
                leaf.size * leaf.dtype.itemsize
                for leaf in jax.tree.leaves(tree)
                if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            )
            for tree in (state, adam)
        ]
        assert size[0] <= most * size[1]
        assert (next(iter(state.tracks.values())).factor.lower is not None) == (side <= tracking.FACTOR_SIDE)


def test_a_new_largest_direction_is_found():
    """A rank-one matrix grows from nothing, as in training: the norm is followed from outside the block."""
    penalty = spectral_norm_penalty(block_size=2, tolerance=1e-2)
    A = matrix(1.2)
    state = jax.jit(penalty.init)(params_of(A), jax.random.key(0))
    apply, rng = jax.jit(penalty.apply), np.random.default_rng(3)
    u, v = rng.standard_normal(M), rng.standard_normal(N)
    for index in range(30):
        B = A + 0.08 * index * np.outer(u / np.linalg.norm(u), v / np.linalg.norm(v))
        _, state = apply(params_of(B), state)
    assert_allclose(state.measurements.sigma_max["w"], np.linalg.norm(B, 2), rtol=1e-2)


@pytest.mark.parametrize("size", [64, N])
def test_values_that_move_outside_the_block(size):
    """Diagonal matrices, whose old vectors keep a residual of zero while another entry passes them at either end."""
    penalty = condition_number_penalty(block_size=1, tolerance=1e-2)
    diagonal = np.linspace(1, 2, size)
    state = jax.jit(penalty.init)(params_of(np.diag(diagonal)), jax.random.key(0))
    apply, errors = jax.jit(penalty.apply), []
    for index in range(1, 60):
        diagonal[10], diagonal[20] = 1.1 + 0.05 * index, 1.1 * 0.97**index
        _, state = apply(params_of(np.diag(diagonal)), state)
        top, bottom = (float(getattr(state.measurements, end)["w"]) for end in ("sigma_max", "sigma_min"))
        errors.append(max(abs(top / diagonal.max() - 1), abs(bottom / diagonal.min() - 1)))
    assert max(errors) < 0.1  # they pass the others between two looks; at the end they are 4 and 0.18
    assert max(errors[30:]) < 0.01


def test_a_jump_behind_a_matrix_that_is_not_finite():
    A = matrix(10.0, (64, 64))
    penalty = spectral_norm_penalty(tolerance=1e-2)
    state, apply = penalty.init(params_of(A), jax.random.key(0)), jax.jit(penalty.apply)
    for moved in drifting(A, 1e-4, 6, turning=False):
        _, state = apply(params_of(moved), state)
    _, state = apply(params_of(A * np.nan), state)
    B = A + 3 * np.outer(np.eye(64)[5], np.eye(64)[7])
    _, state = apply(params_of(B), state)
    assert_allclose(state.measurements.sigma_max["w"], np.linalg.norm(B, 2), rtol=1e-2)


@pytest.mark.parametrize("tolerance", [0, 0.6, -0.1, "0.1", True])
def test_tolerances_out_of_range(tolerance):
    with pytest.raises((ValueError, TypeError), match="tolerance"):
        condition_number_penalty(tolerance=tolerance)


@pytest.mark.parametrize("tolerance", [None, 1e-2])
def test_a_matrix_that_is_not_finite_when_a_renewal_is_due(tolerance):
    """The renewal waits: nothing of such a matrix goes into the vectors or the factor."""
    penalty = condition_number_penalty(block_size=1, tolerance=tolerance, renew_every=3)
    A = matrix(10.0, seed=4)
    state, apply = jax.jit(penalty.init)(params_of(A), jax.random.key(0)), jax.jit(penalty.apply)
    for index, moved in enumerate(drifting(A, 1e-3, 12, turning=True)):
        broken = index in (3, 4)
        value, state = apply(params_of(moved * np.nan if broken else moved), state)
        assert np.isnan(value) == broken
        if not broken:
            assert_allclose(value, np.log(10), rtol=2e-2)


@pytest.mark.parametrize("renew_every", [2, 64])
def test_a_value_that_jumps_outside_the_block_as_a_renewal_is_made(renew_every):
    """The factorisation that a jump asks for holds the new value already: it is looked for with the new one."""
    rng = np.random.default_rng(2)
    u, v = (np.linalg.qr(rng.standard_normal((size, N)))[0] for size in (M, N))
    values = np.linspace(1, 2, N)
    penalty = condition_number_penalty(block_size=1, tolerance=1e-2, renew_every=renew_every)
    state = jax.jit(penalty.init)(params_of((u * values) @ v.T), jax.random.key(0))
    apply = jax.jit(penalty.apply)
    for index in range(12):
        values[20] = 0.9 if index >= 6 else values[20]
        A = (u * values) @ v.T + 1e-5 * rng.standard_normal((M, N))
        _, state = apply(params_of(A), state)
        check(state.measurements, A, within=1e-2)


def test_a_difference_of_two_columns_is_seen():
    """Vectors of signs would not change with it wherever they agree in both."""
    A = np.diag(np.linspace(1, 2, N))
    for other in range(31, 41):
        state = INIT(params_of(A), jax.random.key(0))
        for step in range(3):
            _, state = APPLY(params_of(A * (1 + 1e-5 * step)), state)
        B = A.copy()
        B[70, 30], B[70, other] = 3, -3
        _, state = APPLY(params_of(B), state)
        check(state.measurements, B, within=1e-2)


def test_states_of_other_penalties_are_refused():
    params = params_of(matrix(10.0))
    state = INIT(params, jax.random.key(0))
    with pytest.raises(ValueError, match=r"must track 180x140 float32, 4 \+ 4, got nothing"):
        PENALTY.apply(params, state._replace(tracks={}))
    with pytest.raises(ValueError, match=r"vectors of w of shape \(1, 140\), got \(4, 140\)"):
        condition_number_penalty(block_size=1).apply(params, state)
    with pytest.raises(ValueError, match="must hold vectors of other, got w"):
        PENALTY.apply({"other": params["w"]}, state)


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from spectrax.regularizers import condition_number_penalty

mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
rng = np.random.default_rng(0)
shapes = {"a": (256, 192), "b": (192, 256), "c": (64, 32)}
params = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
penalty = condition_number_penalty(tolerance=1e-2)

def placed(step):
    moved = {name: jnp.asarray(w * (1 + 1e-3 * step), jnp.float32) for name, w in params.items()}
    return {name: jax.device_put(w, NamedSharding(mesh, P("d", None))) for name, w in moved.items()}

state = jax.jit(penalty.init)(placed(0), jax.random.key(0))
gradient = jax.jit(jax.value_and_grad(penalty.apply, has_aux=True))
for step in range(10):
    (value, state), slope = gradient(placed(step), state)
for name, w in params.items():
    s = np.linalg.svd(w * 1.009, compute_uv=False)
    np.testing.assert_allclose(state.measurements.sigma_max[name], s[0], rtol=1e-2)
    np.testing.assert_allclose(state.measurements.sigma_min[name], s[-1], rtol=1e-2)
    assert state.measurements.converged[name]
    assert slope[name].sharding.num_devices == 8
    assert np.isfinite(slope[name]).all()
"""


def test_parameters_that_are_sharded_over_devices(on_eight_devices):
    on_eight_devices(SHARDED)
