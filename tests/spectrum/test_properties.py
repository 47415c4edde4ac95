"""What holds of singular values and eigenvalues of every matrix, on matrices drawn by hypothesis."""

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import spectrax as sx

METHODS = {"dense": sx.Dense(), "lanczos": sx.Lanczos(), "inverse": sx.InverseLanczos()}
ENDS = [
    (name, which) for name in METHODS for which in ("largest", "smallest") if (name, which) != ("inverse", "largest")
]
SYMMETRIC = [(name, which) for name in ("dense", "lanczos") for which in ("largest", "smallest", "largest_magnitude")]
SHAPE, K = (9, 7), 2
SOME = settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
MANY = settings(SOME, max_examples=200)

seeds = st.integers(0, 2**31 - 1)
spectra = st.lists(st.floats(0.0, 4.0).map(lambda x: round(x, 3)), min_size=7, max_size=7)
shifts = st.floats(-3.0, 3.0)
scales = st.floats(1e-3, 1e3)
complexity = st.booleans()


def unitary(rng, n, is_complex):
    draw = rng.normal(size=(n, n)) + (1j * rng.normal(size=(n, n)) if is_complex else 0)
    return np.linalg.qr(draw.astype(np.complex128))[0] if is_complex else np.linalg.qr(draw)[0]


def drawn(seed, spectrum, is_complex):
    """A matrix with these singular values, repeated ones and zeros among them, in one dtype for one compilation."""
    rng = np.random.default_rng(seed)
    u, v = unitary(rng, SHAPE[0], is_complex)[:, :7], unitary(rng, 7, is_complex)
    return rng, ((u * np.sort(spectrum)[::-1]) @ v.conj().T).astype(np.complex128)


def close(method, which, one, other, *, factor=1.0, k=K):
    """Both claim to have converged, and the values agree within what they claim."""
    results = [
        sx.svds(matrix, k, which=which, method=METHODS[method], key=jax.random.key(3)) for matrix in (one, other)
    ]
    for result in results:
        assert bool(result.converged.all())
    a, b = (np.asarray(result.s) for result in results)
    allowed = factor * np.asarray(results[0].residuals) + np.asarray(results[1].residuals)
    room = 200 * np.finfo(np.float64).eps * max(np.linalg.norm(other), factor * np.linalg.norm(one))
    assert (np.abs(factor * a - b) <= allowed + room).all(), (a, b)


def unitary_invariance(method, which, seed, spectrum, is_complex, scale, shift):
    rng, matrix = drawn(seed, spectrum, is_complex)
    close(method, which, matrix, unitary(rng, SHAPE[0], is_complex) @ matrix @ unitary(rng, SHAPE[1], is_complex))


def scaling(method, which, seed, spectrum, is_complex, scale, shift):
    _, matrix = drawn(seed, spectrum, is_complex)
    close(method, which, matrix, -scale * matrix, factor=scale)


def transposition(method, which, seed, spectrum, is_complex, scale, shift):
    _, matrix = drawn(seed, spectrum, is_complex)
    close(method, which, matrix, matrix.T)
    close(method, which, matrix, matrix.conj().T)


def padding(method, which, seed, spectrum, is_complex, scale, shift):
    """Rows of zeros change nothing; columns of zeros put that many zeros at the bottom."""
    _, matrix = drawn(seed, spectrum, is_complex)
    close(method, which, matrix, np.pad(matrix, ((1, 2), (0, 0))))
    wider = np.pad(matrix, ((0, 0), (0, 2)))
    result = sx.svds(wider, K, which=which, method=METHODS[method], key=jax.random.key(3))
    assert bool(result.converged.all())
    true = np.sort(spectrum)[::-1][:K] if which == "largest" else np.zeros(K)
    room = 200 * np.finfo(np.float64).eps * max(spectrum) * 3
    assert (np.abs(np.asarray(result.s) - true) <= np.asarray(result.residuals) + room).all()


def interlacing(method, which, seed, spectrum, is_complex, scale, shift):
    """s_i(A) >= s_i(A without a row) >= s_(i + 1)(A)."""
    _, matrix = drawn(seed, spectrum, is_complex)
    whole, less = (
        sx.svds(rows, 7, which=which, method=METHODS[method], key=jax.random.key(3)) for rows in (matrix, matrix[:-1])
    )
    assert bool(whole.converged.all() & less.converged.all())
    a, b = np.asarray(whole.s), np.asarray(less.s)
    room = np.asarray(whole.residuals).max() + np.asarray(less.residuals).max()
    room = room + 200 * np.finfo(np.float64).eps * np.linalg.norm(matrix)
    assert (a >= b - room).all()
    assert (b[:-1] >= a[1:] - room).all()


LAWS = {law.__name__: law for law in (unitary_invariance, scaling, transposition, padding, interlacing)}
DRAWS = given(seed=seeds, spectrum=spectra, is_complex=complexity, scale=scales, shift=shifts)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(
    ("method", "which"),
    [pytest.param(*end, marks=[] if end[0] == "dense" or end == ENDS[-1] else pytest.mark.slow) for end in ENDS],
)
def test_singular_values(method, which, law, x64):
    SOME(DRAWS(lambda **draw: LAWS[law](method, which, **draw)))()


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("method", "which"), ENDS)
def test_singular_values_of_many(method, which, law, x64):
    MANY(DRAWS(lambda **draw: LAWS[law](method, which, **draw)))()


def eigenvalues(method, which, matrix, k=K):
    result = sx.eigsh(matrix, k, which=which, method=METHODS[method], key=jax.random.key(3))
    assert bool(result.converged.all())
    room = np.asarray(result.residuals).max() + 200 * np.finfo(np.float64).eps * np.linalg.norm(matrix)
    return np.asarray(result.eigenvalues), room


def congruent_shifted_scaled(method, which, seed, spectrum, is_complex, scale, shift):
    rng = np.random.default_rng(seed)
    q, other = unitary(rng, 7, is_complex), unitary(rng, 7, is_complex)
    matrix = ((q * (np.asarray(spectrum) - 2)) @ q.conj().T).astype(np.complex128)
    matrix = (matrix + matrix.conj().T) / 2
    turned = other @ matrix @ other.conj().T
    turned = (turned + turned.conj().T) / 2
    values, room = eigenvalues(method, which, matrix)
    sizes = np.abs if which == "largest_magnitude" else np.asarray  # the sign of a tie is open
    same, other_room = eigenvalues(method, which, turned)
    assert (np.abs(sizes(same) - sizes(values)) <= room + other_room).all()
    scaled, other_room = eigenvalues(method, which, scale * matrix)
    assert (np.abs(sizes(scaled) - scale * sizes(values)) <= scale * room + other_room).all()
    if which != "largest_magnitude":
        moved, other_room = eigenvalues(method, which, matrix + shift * np.eye(7))
        assert (np.abs(moved - values - shift) <= room + other_room + 1e-10 * abs(shift)).all()
        mirrored, other_room = eigenvalues(method, "smallest" if which == "largest" else "largest", -matrix)
        assert (np.abs(mirrored[::-1] + values) <= room + other_room).all()


@pytest.mark.parametrize(("method", "which"), SYMMETRIC)
def test_eigenvalues(method, which, x64):
    SOME(DRAWS(lambda **draw: congruent_shifted_scaled(method, which, **draw)))()


@pytest.mark.slow
@pytest.mark.parametrize(("method", "which"), SYMMETRIC)
def test_eigenvalues_of_many(method, which, x64):
    MANY(DRAWS(lambda **draw: congruent_shifted_scaled(method, which, **draw)))()
