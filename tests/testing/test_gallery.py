"""The gallery is what it says it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import spectrax as sx
from spectrax import testing

GALLERY = {case.name: case for case in testing.gallery(jax.random.key(1))}


def test_names_are_unique_and_the_families_are_there():
    names = [case.name for case in testing.gallery(jax.random.key(1))]
    assert len(set(names)) == len(names)
    assert {"identity", "zero", "low rank", "hilbert", "kahan", "one row", "one column", "transposed"} <= set(names)
    assert any(case.is_complex for case in GALLERY.values())


@pytest.mark.parametrize("name", GALLERY)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "complex64", "float64", "complex128"])
def test_the_values_are_those_of_the_rounded_matrix(name, dtype, x64):
    case = GALLERY[name]
    if case.is_complex and not dtype.startswith("complex"):
        with pytest.raises(TypeError, match="needs a complex dtype"):
            case.operator(dtype)
        return
    operator = case.operator(dtype)
    assert operator.dtype == dtype
    assert operator.shape == case.matrix.shape
    wide = np.asarray(operator.to_dense()).astype(np.complex128)
    values = np.linalg.svd(wide, compute_uv=False)
    assert case.singular_values.dtype == np.float64
    assert values.shape == case.singular_values.shape
    assert (np.diff(case.singular_values) <= 0).all()
    assert np.abs(values - case.singular_values).max() <= case.rounding(dtype)
    eps = float(jnp.finfo(dtype).eps)
    own = 400 * np.finfo(float).eps * case.singular_values[0]
    assert case.rounding(dtype) <= own + eps * np.linalg.norm(case.matrix)


def test_condition_numbers_are_the_ones_in_the_names():
    for name, case in GALLERY.items():
        if " 1e" in name:
            expected = float(name.split()[1])
            assert_allclose(case.singular_values[0] / case.singular_values[-1], expected, rtol=1e-9)


def test_multiplicities():
    for name, count in (("repeated twice", 2), ("repeated three times", 3), ("repeated six times", 6)):
        s = GALLERY[name].singular_values
        assert (s[:count] == s[0]).all()
        assert (s[-count:] == s[-1]).all()
        assert s[count] < s[0]
        assert s[-count - 1] > s[-1]


def test_keys_decide():
    again = {case.name: case for case in testing.gallery(jax.random.key(1))}
    other = {case.name: case for case in testing.gallery(jax.random.key(2))}
    assert_allclose(again["clusters"].matrix, GALLERY["clusters"].matrix, rtol=0)
    assert np.abs(other["clusters"].matrix - GALLERY["clusters"].matrix).max() > 0.01
    assert np.abs(GALLERY["geometric 1e6"].matrix - GALLERY["geometric 1e9"].matrix).max() > 0.01
    raw = testing.with_singular_values(jax.random.PRNGKey(1), [1.0], (2, 2)).to_dense()
    assert_allclose(raw, testing.with_singular_values(jax.random.key(1), [1.0], (2, 2)).to_dense())


def test_closed_forms(x64):
    assert_allclose(testing.hilbert((2, 3), dtype="float64").to_dense(), [[1, 1 / 2, 1 / 3], [1 / 2, 1 / 3, 1 / 4]])
    s, c = np.sin(1.2), np.cos(1.2)
    expected = [[1, -c, -c], [0, s, -s * c], [0, 0, s * s], [0, 0, 0]]
    assert_allclose(testing.kahan((4, 3), dtype="float64").to_dense(), expected, atol=1e-15)
    assert_allclose(testing.linear_decay(3, condition_number=4), [1, 0.625, 0.25])
    assert_allclose(testing.geometric_decay(3, condition_number=100), [1, 0.1, 0.01])
    assert_allclose(testing.repeated(4, multiplicity=2, condition_number=3), [1, 1, 1 / 3, 1 / 3])
    assert_allclose(testing.clustered(5, width=0.5, condition_number=10), [1, 0.75, 0.5, 0.15, 0.1])
    assert_allclose(testing.linear_decay(1, condition_number=4), [1])


def test_prescribed_values(x64):
    A = testing.with_singular_values(jax.random.key(1), [1.0, 3.0], (4, 5), dtype="complex128")
    assert_allclose(np.linalg.svd(A.to_dense(), compute_uv=False), [3, 1, 0, 0], atol=1e-14)
    assert np.abs(np.asarray(A.to_dense()).imag).max() > 0.01


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: testing.with_singular_values(jax.random.key(0), [1.0] * 3, (2, 4)), ValueError, "at most min"),
        (lambda: testing.with_singular_values(jax.random.key(0), [-1.0], (2, 4)), ValueError, "not negative"),
        (lambda: testing.with_singular_values(jax.random.key(0), [np.nan], (2, 4)), ValueError, "finite"),
        (lambda: testing.with_singular_values(jax.random.key(0), 1.0, (2, 4)), ValueError, "must be a list"),
        (lambda: testing.with_singular_values(jax.random.key(0), [1.0], (2, 4), jnp.int32), TypeError, "dtype must"),
        (lambda: testing.with_singular_values(0, [1.0], (2, 4)), TypeError, "key must be a PRNG key"),
        (lambda: testing.with_singular_values(jax.random.key(0), [1.0], (2,)), ValueError, "shape must be a pair"),
        (lambda: testing.with_singular_values(jax.random.key(0), [1.0], (2, 0)), ValueError, "each size of shape"),
        (
            lambda: jax.jit(lambda key: testing.with_singular_values(key, [1.0], (2, 2)))(jax.random.key(0)),
            TypeError,
            "key must be concrete",
        ),
        (lambda: testing.hilbert((2, 2.5)), TypeError, "each size of shape must be an integer"),
        (lambda: testing.hilbert((2, 2), dtype="int32"), TypeError, "floating-point"),
        (lambda: testing.kahan((2, 2), angle=2.0), ValueError, "angle must lie in"),
        (lambda: testing.gallery(jax.random.key(0), shape=(40, 11)), ValueError, "at least 12 rows and columns"),
        (lambda: testing.gallery(0), TypeError, "key must be a PRNG key"),
        (lambda: testing.linear_decay(0, condition_number=2), ValueError, "count must be at least 1"),
        (lambda: testing.geometric_decay(3, condition_number=0.5), ValueError, "condition_number must be at least 1"),
        (lambda: testing.clustered(3, width=0.0), ValueError, "width must lie in"),
        (lambda: testing.repeated(5, multiplicity=3), ValueError, "at most half of count = 5, got 3"),
    ],
)
def test_what_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def lie(result, **changes):
    return result._replace(**{name: jnp.asarray(value, getattr(result, name).dtype) for name, value in changes.items()})


def test_the_assertion_catches_every_kind_of_lie():
    A = jnp.diag(jnp.array([4.0, 3.0, 3.0, 2.0, 1.0]))
    truth = sx.svds(A, 3)
    testing.assert_singular_values(truth, A)
    testing.assert_singular_values(sx.svds(A, 3, which="smallest"), A, which="smallest")
    full, kept = sx.svds(A, 5), jnp.array([0, 1, 3])
    missed = truth._replace(u=full.u[kept], v=full.v[kept], s=full.s[kept])
    cases = {
        "where the largest ones are": missed,
        "not orthonormal": truth._replace(u=2 * truth.u),
        "v is not orthonormal": truth._replace(v=truth.v.at[0].set(truth.v[1])),
        "where they are": lie(truth, residuals=truth.residuals + 1),
        "descending": truth._replace(s=truth.s[::-1], u=truth.u[::-1], v=truth.v[::-1]),
        "status 2 with the flags": lie(truth, status=2),
        "status 0 with the flags": lie(truth, converged=[True, False, True]),
    }
    for message, wrong in cases.items():
        with pytest.raises(AssertionError, match=message):
            testing.assert_singular_values(wrong, A)
    with pytest.raises(AssertionError, match="where the smallest ones are"):
        testing.assert_singular_values(truth, A, which="smallest")
    with pytest.raises(AssertionError, match="not finite"):
        testing.assert_singular_values(truth, A.at[0, 0].set(jnp.nan))
    # a wrong value that is flagged is no lie
    testing.assert_singular_values(lie(missed, converged=[True, False, True], status=2), A)
    with pytest.raises(ValueError, match="which must be one of"):
        testing.assert_singular_values(truth, A, which="both")


@pytest.mark.parametrize("which", ["largest", "smallest", "largest_magnitude"])
def test_the_assertion_on_eigenvalues_catches_every_kind_of_lie(which):
    A = jnp.diag(jnp.array([4.0, 3.0, -4.5, 2.0, 2.0, -1.0]))
    truth = sx.eigsh(A, 3, which=which)
    testing.assert_eigenvalues(truth, A, which=which)
    whole = sx.eigsh(A, 6, which=which)
    kept = jnp.array({"largest": [0, 2, 3], "smallest": [0, 1, 5], "largest_magnitude": [0, 1, 3]}[which])
    missed = truth._replace(eigenvectors=whole.eigenvectors[kept], eigenvalues=whole.eigenvalues[kept])
    cases = {
        f"where the {which} ones are": missed,
        "not orthonormal": truth._replace(eigenvectors=2 * truth.eigenvectors),
        "where they are": lie(truth, residuals=truth.residuals + 1),
        "descending": truth._replace(eigenvalues=truth.eigenvalues[::-1], eigenvectors=truth.eigenvectors[::-1]),
        "status 2 with the flags": lie(truth, status=2),
        "status 0 with the flags": lie(truth, converged=[True, False, True]),
    }
    for message, wrong in cases.items():
        with pytest.raises(AssertionError, match=message):
            testing.assert_eigenvalues(wrong, A, which=which)
    with pytest.raises(AssertionError, match="not finite"):
        testing.assert_eigenvalues(truth, A.at[0, 0].set(jnp.nan), which=which)
    testing.assert_eigenvalues(lie(missed, converged=[True, False, True], status=2), A, which=which)
    with pytest.raises(ValueError, match="which must be one of"):
        testing.assert_eigenvalues(truth, A, which="both")


def test_the_assertions_know_signs_tolerances_and_tiny_matrices():
    H = jnp.diag(jnp.array([-2.0, 1.0]))
    truth = sx.eigsh(H, 1, which="largest_magnitude")
    flipped = lie(truth, eigenvalues=[2.0], residuals=[0.0])
    with pytest.raises(AssertionError, match="where they are"):
        testing.assert_eigenvalues(flipped, H, which="largest_magnitude")
    honest = lie(flipped, residuals=[4.0])
    with pytest.raises(AssertionError, match="where tol is"):
        testing.assert_eigenvalues(honest, H, which="largest_magnitude", tol=1e-6)
    result = sx.svds(H, 1)
    testing.assert_singular_values(result, H, tol=1e-6)
    v, u = np.array([0.8, 0.6]), np.asarray(result.u[0])
    residual = np.hypot(np.linalg.norm(H @ v - 2 * u), np.linalg.norm(H @ u - 2 * v))
    with pytest.raises(AssertionError, match="where tol is"):
        testing.assert_singular_values(lie(result, s=[2.0], v=[v], residuals=[residual]), H, tol=1e-6)
    tiny = 1e-33 * jnp.diag(jnp.array([3.0, 2.0, 1.0]))
    testing.assert_singular_values(sx.svds(tiny), tiny)
