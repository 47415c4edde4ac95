"""Bad operators: an error with a message or a status, never a wrong number without a word, and never a hang."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import spectrax as sx
from spectrax import testing

pytestmark = pytest.mark.timeout(300)
KEY = jax.random.key(0)
SHAPE = (40, 32)
METHODS = {
    "dense": sx.Dense(),
    "lanczos": sx.Lanczos(),
    "block": sx.Lanczos(block_size=3),
    "inverse": sx.InverseLanczos(),
    "davidson": sx.Davidson(preconditioner="none"),
}
BOTTOM_ONLY = ("inverse", "davidson")
ENDS = [
    (method, which)
    for method in METHODS
    for which in ("largest", "smallest")
    if which == "smallest" or method not in BOTTOM_ONLY
]
# A compilation takes seconds: those whose program is that of another one but for its size are left to the slow suite.
USUAL = [("dense", "smallest"), ("lanczos", "largest"), ("inverse", "smallest"), ("davidson", "smallest")]
SOME_ENDS = [pytest.param(*end, marks=[] if end in USUAL else pytest.mark.slow) for end in ENDS]


@jax.tree_util.register_pytree_node_class
class Pair(sx.LinearOperator):
    """An operator of somebody else: its adjoint is a matrix of its own, and nothing says that it is the right one."""

    def __init__(self, forward, backward):
        self.forward, self.backward = forward, backward
        self.in_struct = jax.ShapeDtypeStruct((forward.shape[-1],), forward.dtype)
        self.out_struct = jax.ShapeDtypeStruct((forward.shape[-2],), forward.dtype)

    def products(self):
        def times(matrix, v):
            return jnp.matmul(matrix, v, precision="highest")

        return functools.partial(times, self.forward), functools.partial(times, self.backward)

    def tree_flatten(self):
        return (self.forward, self.backward), (self.in_struct, self.out_struct)

    @classmethod
    def tree_unflatten(cls, structs, leaves):
        pair = object.__new__(cls)
        pair.forward, pair.backward = leaves
        pair.in_struct, pair.out_struct = structs
        return pair


def matrix_of(dtype, shape=SHAPE, seed=0, condition_number=3.0):
    values = testing.linear_decay(min(shape), condition_number=condition_number)
    return np.asarray(testing.with_singular_values(jax.random.key(seed), values, shape, dtype).to_dense())


def rounded_to_10_bits(matrix):
    """As TF32 multiplies: 10 bits of mantissa."""
    fraction, exponent = np.frexp(matrix)
    return np.ldexp(np.round(fraction * 2.0**11) / 2.0**11, exponent).astype(matrix.dtype)


def one_entry_off(matrix):
    changed = np.array(matrix)
    changed[3, 5] += 0.1
    return changed


WRONG_ADJOINTS = {
    "negative": lambda matrix: -matrix,
    "one entry": one_entry_off,
    "one part in a hundred": lambda matrix: matrix * np.asarray(1.01, matrix.dtype),
    "ten bits": rounded_to_10_bits,
    "unrelated": lambda matrix: matrix_of(matrix.dtype, matrix.shape, seed=9),
    "zero": np.zeros_like,
}


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("method", "which"), SOME_ENDS)
def test_a_wrong_adjoint_is_named(method, which, dtype, x64):
    forward = matrix_of(dtype)
    right = sx.svds(Pair(forward, forward.T.copy()), 2, which=which, method=METHODS[method], key=KEY)
    testing.assert_singular_values(right, forward, which=which)
    assert bool(right.converged.all())
    for name, spoil in WRONG_ADJOINTS.items():
        result = sx.svds(Pair(forward, np.array(spoil(forward.T))), 2, which=which, method=METHODS[method], key=KEY)
        flagged = [sx.Status.ADJOINT_MISMATCH]
        if dtype == "float32" and name == "ten bits":  # a few units of round-off in what is looked at
            flagged.append(sx.Status.NOT_CONVERGED)
        assert int(result.status) in flagged, (name, result.status)
        assert not result.converged.any(), name


@pytest.mark.parametrize(("method", "which"), SOME_ENDS)
def test_a_wrong_adjoint_of_a_wide_operator_of_any_scale(method, which, x64):
    """From the other side it is the product itself that contradicts the adjoint."""
    for scale in (1e-30, 1.0, 1e30):
        backward = matrix_of("float64") * scale
        for name, spoil in WRONG_ADJOINTS.items():
            wide = Pair(np.array(spoil(backward.T)), backward)
            if name != "one entry" or scale == 1:
                with pytest.raises(sx.SpectraxError, match="operator and adjoint don't match: <u, A v> differs"):
                    sx.svds(wide, 2, which=which, method=METHODS[method], key=KEY, throw=True)
        result = sx.svds(Pair(backward.T.copy(), backward), 2, which=which, method=METHODS[method], key=KEY)
        assert bool(result.converged.all()), scale


def shifted(v, matrix, offset):
    return matrix @ v + offset


def with_wrong_transpose(v, matrix):
    """Two solvers that are told to JAX, of which one is wrong."""
    return jax.lax.custom_linear_solve(
        lambda x: jnp.linalg.inv(matrix) @ x, v, lambda _, b: matrix @ b, lambda _, b: 1.5 * (matrix.T @ b)
    )


@jax.custom_vjp
def layer(x, matrix):
    return jnp.tanh(matrix @ x)


def _layer_forward(x, matrix):
    return layer(x, matrix), (x, matrix)


def _layer_backward(residuals, g):
    _, matrix = residuals
    return matrix.T @ g, jnp.zeros_like(matrix)  # without the slope of tanh


layer.defvjp(_layer_forward, _layer_backward)


@pytest.mark.parametrize(("method", "which"), SOME_ENDS)
def test_functions_that_are_not_linear_or_contradict_themselves(method, which, x64):
    matrix = jnp.asarray(matrix_of("float64"))
    struct = jax.ShapeDtypeStruct((32,), matrix.dtype)
    offsets = [np.ones(40), 1e-6 * np.eye(40)[3]]
    operators = [sx.aslinearoperator(shifted, struct, matrix, jnp.asarray(offset)) for offset in offsets]
    operators.append(sx.aslinearoperator(with_wrong_transpose, struct, jnp.asarray(matrix_of("float64", (32, 32)))))
    for number, operator in enumerate(operators):
        result = sx.svds(operator, 2, which=which, method=METHODS[method], key=KEY)
        assert int(result.status) == sx.Status.ADJOINT_MISMATCH, (number, result)
        assert not result.converged.any()


def test_a_custom_rule_of_reverse_mode_is_the_only_one_there_is(x64):
    """Both products of such a Jacobian come from the one rule: consistent, and those of the rule."""
    matrix = jnp.asarray(matrix_of("float64"))
    x = jnp.linspace(-1.0, 1.0, 32)
    result = sx.svds(sx.jacobian_operator(layer, x, matrix), 2, method=sx.Lanczos(), key=KEY)
    assert bool(result.converged.all())
    testing.assert_singular_values(result, matrix)


@pytest.mark.parametrize(("method", "which"), SOME_ENDS)
def test_products_that_are_not_finite_for_some_vectors_or_in_the_adjoint_only(method, which):
    matrix = jnp.asarray(matrix_of("float32"))
    for value in (jnp.nan, jnp.inf):
        spoilt = matrix.T.at[4, 7].set(value)
        for operator in (Pair(matrix, spoilt), Pair(spoilt, matrix)):
            result = sx.svds(operator, 2, which=which, method=METHODS[method], key=KEY)
            assert int(result.status) == sx.Status.NOT_FINITE
            assert np.isnan(result.s).all()
            assert not result.converged.any()


@pytest.mark.parametrize(("method", "which"), SOME_ENDS)
def test_overflow_is_not_a_value(method, which):
    """Entries of 2e38 in rows of 32: the norm, 6e39, is no float32."""
    result = sx.svds(jnp.full(SHAPE, 2e38), 1, which=which, method=METHODS[method], key=KEY)
    if int(result.status) != sx.Status.NOT_FINITE:  # the smallest value, zero, is a float32
        assert which == "smallest"
        assert float(result.s[0]) <= 1e-4 * 2e38 * 36


def no_silent_error(result, matrix, which):
    """Every value within its bound of the right one, or flagged; computed by NumPy in 64 bits."""
    testing.assert_singular_values(result, jnp.asarray(matrix), which=which)


@pytest.mark.parametrize(("method", "which"), SOME_ENDS)
def test_zero_matrices_and_those_of_low_rank(method, which, x64):
    rng = np.random.default_rng(0)
    for dtype in ("float32", "complex128") if method == "inverse" else ("complex128",):
        scale = 1 + 1j if dtype.startswith("complex") else 1
        low_rank = (rng.normal(size=(40, 3)) @ rng.normal(size=(3, 32)) * scale).astype(dtype)
        one_entry = np.zeros(SHAPE, dtype)
        one_entry[7, 2] = 3
        for matrix in (np.zeros(SHAPE, dtype), one_entry, low_rank, np.ones(SHAPE, dtype)):
            for k in (5,) if method == "davidson" else (1, 5):
                result = sx.svds(matrix, k, which=which, method=METHODS[method], key=KEY)
                no_silent_error(result, matrix, which)
                if which == "largest":
                    assert bool(result.converged.all())


@pytest.mark.parametrize(("method", "which"), SOME_ENDS)
def test_one_row_and_one_column(method, which, x64):
    row = np.random.default_rng(0).normal(size=(1, 50))
    for matrix in (row.T, row.astype("float32"), row + 1j, np.zeros((50, 1)), row[:, :1]):
        result = sx.svds(matrix, 1, which=which, method=METHODS[method], key=KEY)
        no_silent_error(result, matrix, which)
        assert bool(result.converged.all())
        assert_allclose(result.s, [np.linalg.norm(matrix)], rtol=50 * float(jnp.finfo(matrix.dtype).eps))


@pytest.mark.parametrize(("method", "which"), SOME_ENDS)
def test_tiny_and_huge_numbers(method, which, x64):
    for dtype, scales in (("float32", (1e-25, 1e-18, 1e18, 1e35)), ("float64", (1e-280, 1e-160, 1e160, 1e300))):
        for scale in scales:
            matrix = (matrix_of("float64") * scale).astype(dtype)
            result = sx.svds(matrix, 2, which=which, method=METHODS[method], key=KEY)
            if method == "davidson" and not bool(result.converged.all()):
                assert int(result.status) > sx.Status.AT_ROUND_OFF  # without a preconditioner steps may run out
                continue
            assert bool(result.converged.all()), (dtype, scale, result.status)
            true = np.linspace(1, 1 / 3, 32)
            wanted = true[:2] if which == "largest" else true[-2:]
            room = np.asarray(result.residuals, np.float64) / scale + 50 * np.finfo(dtype).eps
            assert (np.abs(np.asarray(result.s, np.float64) / scale - wanted) <= room).all(), (dtype, scale)


NON_HERMITIAN = {
    "triangular": lambda h: np.triu(h),
    "one entry": one_entry_off,
    "a little": lambda h: h + 1e-6 * np.triu(np.ones_like(h), 1),
    "skew": lambda h: np.tril(h, -1) - np.tril(h, -1).T,
    "complex symmetric": lambda h: h + 0.5j * (h @ h).real,
}


@pytest.mark.parametrize(
    ("method", "which"),
    [
        pytest.param(method, which, marks=[] if which == "smallest" and method != "block" else pytest.mark.slow)
        for method in ("dense", "lanczos", "block")
        for which in ("largest", "smallest", "largest_magnitude")
    ],
)
def test_eigsh_of_what_is_not_hermitian(method, which, x64):
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.normal(size=(32, 32)))[0]
    hermitian = (q * np.linspace(-2, 3, 32)) @ q.T
    hermitian = (hermitian + hermitian.T) / 2
    for name, spoil in NON_HERMITIAN.items():
        matrix = jnp.asarray(spoil(hermitian))
        struct = jax.ShapeDtypeStruct((32,), matrix.dtype)
        for operator in (matrix, sx.aslinearoperator(shifted, struct, matrix, jnp.zeros(32, matrix.dtype))):
            result = sx.eigsh(operator, 2, which=which, method=METHODS[method], key=KEY)
            assert int(result.status) == sx.Status.ADJOINT_MISMATCH, (name, result.status)
            assert not result.converged.any(), name
        with pytest.raises(sx.SpectraxError, match="not Hermitian where it has to be"):
            sx.eigsh(matrix, 2, which=which, method=METHODS[method], key=KEY, throw=True)
    affine = sx.aslinearoperator(
        shifted, jax.ShapeDtypeStruct((32,), np.float64), jnp.asarray(hermitian), jnp.full(32, 1e-3)
    )
    result = sx.eigsh(affine, 2, which=which, method=METHODS[method], key=KEY)
    assert int(result.status) == sx.Status.ADJOINT_MISMATCH


@pytest.mark.parametrize("method", ["lanczos", "block"])
def test_an_operator_of_zeros_and_noise_is_not_certified(method):
    """Products that underflow in a function, where no entries can be looked at: every direction breaks down."""
    matrix = matrix_of("float32")

    def underflowing(v, matrix):
        return matrix @ (v * jnp.float32(1e-38)) * jnp.float32(1e-6)

    operator = sx.aslinearoperator(underflowing, jax.ShapeDtypeStruct((32,), np.float32), matrix)
    result = sx.svds(operator, 2, method=METHODS[method], key=KEY)
    true = 1e-44
    assert not bool(result.converged.all()) or (np.abs(result.s - true) <= result.residuals + 1e-43).all()


def test_a_breakdown_is_named(x64):
    """Of two distinct values the space is full after two steps; more copies are known than there are steps left for."""
    matrix = jnp.diag(jnp.asarray([2.0, 2.0] + [1.0] * 48))
    result = sx.svds(matrix, 2, method=sx.Lanczos(), key=KEY, max_matvecs=2)
    assert int(result.status) == sx.Status.BREAKDOWN
    assert "broke down" in sx.Status.BREAKDOWN.text
    assert not result.converged.any()
    testing.assert_singular_values(result, matrix)
    pair = sx.eigsh(matrix, 2, which="largest", method=sx.Lanczos(), key=KEY, max_matvecs=2)
    assert int(pair.status) == sx.Status.BREAKDOWN
    enough = sx.svds(matrix, 2, method=sx.Lanczos(), key=KEY, max_matvecs=40)
    assert int(enough.status) == sx.Status.CONVERGED


def test_a_preconditioner_of_zeros_makes_no_answer_wrong(x64):
    matrix = matrix_of("float64", (200, 160), condition_number=1e6)
    nothing = jnp.zeros((160, 160))
    method = sx.Davidson(max_steps=30)
    result = sx.svds(matrix, 1, which="smallest", method=method, key=KEY, preconditioner=nothing)
    assert int(result.status) == sx.Status.NOT_CONVERGED
    assert not result.converged.any()
    testing.assert_singular_values(result, matrix, which="smallest")


@pytest.mark.parametrize(
    ("operator", "error", "message"),
    [
        (np.ones(4), ValueError, r"must have two axes \(m, n\), got shape \(4,\)"),
        (np.ones((2, 3, 4)), ValueError, r"must have two axes \(m, n\), got shape \(2, 3, 4\)"),
        (np.float64(1.0), ValueError, r"must have two axes \(m, n\), got shape \(\)"),
        (np.ones((4, 4), np.int32), TypeError, "int32"),
        (np.ones((4, 4), bool), TypeError, "bool"),
        (np.ones((0, 4)), ValueError, r"at least one row and one column, got shape \(0, 4\)"),
        (np.ones((4, 0)), ValueError, r"at least one row and one column, got shape \(4, 0\)"),
        (np.ones((0, 0)), ValueError, "at least one row and one column"),
        ([[1.0, 2.0], [3.0, 4.0]], TypeError, "expected a LinearOperator, a matrix.*got list"),
        ("matrix", TypeError, "expected a LinearOperator"),
        (None, TypeError, "got NoneType"),
        (lambda v: v, TypeError, "needs the structure of its vector"),
        ((lambda v: v[:0], np.ones(3, "f4")), ValueError, "output of a linear operator must have at least one entry"),
        ((lambda v: v, np.ones((0,), "f4")), ValueError, "input of a linear operator must have at least one entry"),
        ((lambda v: {}, np.ones(3, "f4")), ValueError, "output of a linear operator must have at least one entry"),
        ((lambda v: v, np.ones(3, "i4")), TypeError, "int32"),
        ((lambda v: v > 0, np.ones(3, "f4")), TypeError, "bool"),
        ((lambda v: v.astype("c8"), np.ones(3, "f4")), TypeError, "real on both sides or complex on both sides"),
        ((lambda v: v.conj(), np.ones(3, "c8")), TypeError, "must be linear over the complex numbers"),
        ((lambda v: jnp.sin(v), np.ones(3, "f4")), TypeError, "expected a linear function of its first argument"),
        ((lambda v: v * v, np.ones(3, "f4")), TypeError, "expected a linear function of its first argument"),
    ],
)
def test_operators_that_are_refused(operator, error, message):
    for method in (sx.Dense(), sx.Lanczos(), sx.InverseLanczos()):
        with pytest.raises(error, match=message):
            sx.svds(operator, 1, which="smallest", method=method, key=KEY)
    for method in (sx.Dense(), sx.Lanczos()):
        with pytest.raises(error, match=message):
            sx.eigsh(operator, 1, which="largest", method=method, key=KEY)


@pytest.mark.parametrize("k", [0, -1, 33, 10**9])
def test_k_out_of_range(k):
    message = "k must be at least 1" if k < 1 else "k must be at most"
    for method, which in ENDS:
        with pytest.raises(ValueError, match=message):
            sx.svds(jnp.ones(SHAPE), k, which=which, method=METHODS[method], key=KEY)


@pytest.mark.parametrize("k", [1.5, "1", None, np.float32(1), jnp.asarray([1])])
def test_k_that_is_no_integer(k):
    with pytest.raises(TypeError, match="k must be an integer"):
        sx.svds(jnp.eye(3), k)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((3,), "has shape|got shape|two axes"), ((5, 5), "preconditioner must have shape"), ((4, 3), "preconditioner")],
)
def test_preconditioners_of_a_wrong_shape(shape, message):
    with pytest.raises(ValueError, match=message):
        sx.svds(
            jnp.eye(6, 4), which="smallest", method=sx.Davidson(), key=KEY, preconditioner=jnp.ones(shape)
        )  # fmt: skip


@pytest.mark.parametrize("method", [sx.Lanczos(), sx.InverseLanczos(), sx.Davidson(preconditioner="none")])
def test_values_whose_products_lose_their_digits(method):
    """Of a function there are no entries to look at, but there is the largest value."""
    matrix = jnp.asarray(np.diag(np.linspace(1, 0.5, 32)), jnp.float32)
    operator = sx.aslinearoperator(
        lambda v, a: jnp.float32(1e-34) * (a @ v), jax.ShapeDtypeStruct((32,), np.float32), matrix
    )
    result = sx.svds(operator, 1, which="smallest", method=method, key=KEY)
    assert int(result.status) == sx.Status.NOT_FINITE
    assert np.isnan(result.s).all()


@pytest.mark.parametrize("max_matvecs", [1, 10])
def test_davidson_returns_bounds_however_few_its_steps(max_matvecs, x64):
    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(60, 40)))
    method = sx.Davidson(preconditioner="none")
    result = sx.svds(matrix, 3, which="smallest", method=method, key=KEY, max_matvecs=max_matvecs)
    testing.assert_singular_values(result, matrix, which="smallest")
    assert not result.converged.any()
    assert (np.asarray(result.s) <= np.linalg.norm(matrix, 2)).all()


def test_inverse_lanczos_out_of_steps_does_not_claim(x64):
    """Of four copies the challenge finds one that there are no steps left for."""
    values = np.r_[[1e-3] * 4, np.geomspace(2e-3, 1, 296)]
    matrix = jnp.diag(jnp.asarray(values))
    claimed = 0
    for max_matvecs in (24, 26, 30, 36, 400):
        solve = jax.jit(
            lambda key, m=max_matvecs: sx.svds(
                matrix, 2, which="smallest", method=sx.InverseLanczos(), key=key, max_matvecs=m, tol=1e-2
            )
        )
        for seed in range(4):
            result = solve(jax.random.key(seed))
            testing.assert_singular_values(result, matrix, which="smallest")
            claimed += bool(result.converged.all())
    assert claimed >= 4


def test_more_starting_vectors_than_dimensions():
    with pytest.raises(ValueError, match="v0 must hold at most 3 vectors"):
        sx.svds(jnp.ones((3, 60)), 1, method=sx.Lanczos(), key=KEY, v0=jnp.ones((5, 3)))
