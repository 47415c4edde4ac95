"""Extreme singular triplets of a linear operator, with residuals and derivatives."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spectrax import checks, krylov, vectors
from spectrax.operators import LinearOperator, aslinearoperator
from spectrax.operators.conversion import MatrixOperator
from spectrax.operators.precision import in_working_precision
from spectrax.results import Status, SVDResult, raise_unless_successful
from spectrax.spectrum.derivatives import triplet_tangents
from spectrax.spectrum.methods import Dense, InverseLanczos, Lanczos, Method, choose

PyTree = Any
_MATERIALIZE_CHUNK = 256  # unit vectors in one batched product: bounds the memory of intermediate results
# how large the round-off of the largest value of R^-1 may be, relative to another value, for that one to be kept
_RESOLVED = 1e-3
_MAX_ROUNDS = 6


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Everything static about one call."""

    k: int
    smallest: bool
    method: Method
    tol: float
    eps: float
    max_steps: int
    subspace_size: int
    round_off: float


def svds(
    A: Any,
    /,
    k: int = 1,
    *,
    which: str = "largest",
    method: str | Method = "auto",
    tol: float | None = None,
    max_matvecs: int | None = None,
    key: jax.Array | None = None,
    v0: PyTree | None = None,
    throw: bool = False,
) -> SVDResult:
    r"""Return k singular triplets at one end of the spectrum, A v_i = s_i u_i.

    Every triplet comes with its residual r_i = sqrt(\|A v_i - s_i u_i\|^2 + \|A^H u_i - s_i v_i\|^2), computed from the
    final vectors. Some singular value lies within r_i / sqrt(2) of s_i; that no other value was missed rests on the
    probe of the iterative methods and is not proven by a residual.

    Args:
        A: An operator of shape (m, n), or anything that `aslinearoperator` takes as one argument.
        k: How many values, 1 <= k <= min(m, n).
        which: "largest" or "smallest" (of the min(m, n) singular values).
        method: "auto" (see `docs/how-to-choose`: a rule on static shapes), or a method object: `Dense()`, `Lanczos()`,
            `InverseLanczos()` (smallest only).
        tol: Relative residual to reach; default 1e-10 in 64 bits and 1e-6 in 32.
        max_matvecs: How many single products with A or A^H an iterative method may take, checked at restarts; default
            max(2000, 20 min(m, n)).
        key: A PRNG key; required by every iterative method, and under "auto" for anything but an explicit matrix that
            is small enough to be decomposed wholly.
        v0: Replaces the random start: a stack of vectors in the structure of the shorter side (of the input if
            m >= n); its sum is taken. A little noise from `key` is always added.
        throw: Raise on the host if the result did not converge.

    Returns:
        An `SVDResult` with `u`, `s`, `v`, `residuals`, `converged`, `num_matvecs` and `status`. 16-bit operators give
        32-bit results.

    Raises:
        ValueError: If an argument is out of its range, a needed key is missing, a method's limit is exceeded, or
            `throw` is used under a trace; if an array lies on a mesh with explicit axes.
        TypeError: If A is not an operator or has an integer dtype.
        SpectraxError: With `throw=True`, if the result did not converge.

    Cost:
        `Lanczos`: two matvecs and 8 p (m + n) flops of orthogonalisation a step, subspace p; tens to hundreds of steps.
        `Dense` and `InverseLanczos`: min(m, n) matvecs (none for an explicit matrix) and a factorisation, O(m n^2).
        The results need 2 k matvecs more.

    Derivatives:
        Values: ds_i = Re(u_i^H dA v_i), at the cost of one derivative of the product, and finite at repeated values,
        where it is one of several possible subgradients. Vectors: through the linear system that they satisfy, with
        the phase held fixed; NaN where that system has no unique solution (repeated values) or was not solved. Both in
        forward and reverse mode and to any order. Nothing is differentiated through the iteration.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import spectrax as sx
        >>> result = sx.svds(jnp.diag(jnp.array([3.0, 2.0, 1.0])), k=2)
        >>> [round(float(s), 5) for s in result.s], bool(result.converged.all())
        ([3.0, 2.0], True)

    Source:
        Golub & Kahan 1965; Baglama & Reichel 2005 (doi:10.1137/04060593X) for the restarts.
    """
    given = aslinearoperator(A)
    operator = in_working_precision(given)
    explicit = isinstance(operator, MatrixOperator)
    checks.automatic_axes("the operator", operator)
    chosen = resolve_method(operator, k, which=which, method=method)
    plan = _plan(operator, _own_eps(given, operator), k, which == "smallest", chosen, tol, max_matvecs)
    if key is not None:
        checks.key("key", key)
    elif isinstance(plan.method, Lanczos) or not (explicit or isinstance(method, Dense)):
        raise ValueError(
            f"svds needs key= (for instance jax.random.key(0)) for method {type(plan.method).__name__} on an operator "
            f"of shape {operator.shape}: only explicit matrices of shorter side up to the limit of the dense method go "
            "without"
        )
    if v0 is not None:
        short = operator.in_struct if operator.shape[0] >= operator.shape[1] else operator.out_struct
        v0 = _start(v0, short)
    result = _jitted(plan, operator, key, v0)
    return raise_unless_successful(result) if throw else result


def resolve_method(A: Any, k: int, *, which: str, method: str | Method) -> Method:
    """Return the method that `svds` uses: the one that was given, or what "auto" stands for.

    Args:
        A: An operator, or anything that `aslinearoperator` takes.
        k: How many triplets are wanted.
        which: "largest" or "smallest".
        method: "auto" or a method object.

    Returns:
        A method object.

    Raises:
        ValueError: If `which`, `k` or the name of the method is not valid, or the method is not for this end.
        TypeError: If the method is no method object.
    """
    operator = aslinearoperator(A)
    checks.choice("which", which, ("largest", "smallest"))
    checks.positive_integer("k", k)
    if k > min(operator.shape):
        raise ValueError(
            f"k must be at most min(m, n) = {min(operator.shape)} for an operator of shape {operator.shape}, got {k}"
        )
    if isinstance(method, str):
        checks.choice("method", method, ("auto",))
        explicit = isinstance(operator, MatrixOperator)
        return choose(operator.shape, k, smallest=which == "smallest", explicit=explicit)
    if not isinstance(method, Dense | Lanczos):
        raise TypeError(f"method must be 'auto' or a method object such as Dense() or Lanczos(), got {method!r}")
    if isinstance(method, InverseLanczos) and which == "largest":
        raise ValueError("InverseLanczos finds the smallest singular values: use which='smallest', or Lanczos()")
    return method


def _own_eps(given: LinearOperator, operator: LinearOperator) -> float:
    """The unit round-off of the products: that of the original dtypes unless an explicit matrix was cast up."""
    source = operator if isinstance(operator, MatrixOperator) else given
    return vectors.eps((source.in_struct, source.out_struct))


def _start(v0: PyTree, struct: PyTree) -> PyTree:
    v0 = jax.tree.map(jnp.asarray, v0)
    leaves = jax.tree.leaves(v0)
    lead = leaves[0].shape[:1] if leaves else ()
    want = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(lead + leaf.shape, leaf.dtype), struct)
    checks.same_structure("v0", v0, want)
    return jax.tree.map(lambda leaf: leaf.sum(0), v0)


def _plan(operator, eps, k, smallest, method, tol, max_matvecs) -> _Plan:
    m, n = operator.shape
    side = min(m, n)
    if isinstance(method, Dense | InverseLanczos) and method.max_bytes is not None:
        needed = m * n * jnp.dtype(operator.dtype).itemsize
        if needed > method.max_bytes:
            raise ValueError(
                f"a dense operator of shape {(m, n)} and dtype {operator.dtype.name} takes {needed} bytes, above "
                f"max_bytes={method.max_bytes}"
            )
    if tol is None:
        tol = 1e-10 if jnp.finfo(operator.dtype).bits == 64 else 1e-6
    checks.number_in("tol", tol, 0.0, 1.0, low_open=True)
    if max_matvecs is None:
        max_matvecs = max(2000, 20 * side)
    checks.positive_integer("max_matvecs", max_matvecs)
    subspace_size, max_steps = 0, max(max_matvecs // 2, 1)
    if isinstance(method, Lanczos):
        subspace_size = max(20, 2 * k + 10) if method.subspace_size is None else method.subspace_size
        if subspace_size <= k and subspace_size < side:
            raise ValueError(f"subspace_size must be larger than k = {k}, got {subspace_size}")
        subspace_size = side if subspace_size >= side - 1 else max(subspace_size, k + 2)
        if method.max_restarts is not None:
            max_steps = min(max_steps, (method.max_restarts + 1) * subspace_size)
    working = vectors.eps((operator.in_struct, operator.out_struct))
    round_off = (8 + 2 * math.sqrt(max(m, n))) * working  # errors of long sums and of rotated bases
    if eps > working:
        round_off += 8 * eps  # those of products in 16 bits, whose sums have more
    return _Plan(int(k), smallest, method, float(tol), eps, max_steps, subspace_size, round_off)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _decompose(plan: _Plan, operator: LinearOperator, key: Any, v0: PyTree) -> SVDResult:
    operator = jax.lax.stop_gradient(operator)
    if isinstance(plan.method, InverseLanczos):
        left, s, right, largest, count, finite = _inverse(plan, plan.method, operator, key, v0)
        return _with_residuals(plan, operator, left, s, right, largest, count, finite)
    if isinstance(plan.method, Dense):
        left, s, right, largest, count, finite = _dense(plan, operator)
        return _with_residuals(plan, operator, left, s, right, largest, count, finite)
    wide = operator.shape[0] < operator.shape[1]
    tall = operator.H if wide else operator
    matvec, rmatvec = tall.loop_products()
    found = krylov.singular_triplets(
        matvec, rmatvec, _noisy_start(key, v0, tall.in_struct), tall.out_struct, key,
        k=plan.k, smallest=plan.smallest, subspace_size=plan.subspace_size, max_steps=plan.max_steps,
        tol=plan.tol / 2, round_off=plan.round_off / 2, probe=plan.method.probe,
    )  # fmt: skip
    left, right = (found.right, found.left) if wide else (found.left, found.right)
    usable = found.finite & _is_usable(operator.matrix) if isinstance(operator, MatrixOperator) else found.finite
    return _with_residuals(plan, operator, left, found.values, right, found.largest, 2 * found.num_steps, usable)


def _is_usable(matrix: jax.Array) -> jax.Array:
    """Whether all entries are finite, and not so small that products lose digits by underflow, unless all are zero."""
    peak = jnp.max(jnp.abs(matrix))
    limits = jnp.finfo(matrix.dtype)
    return jnp.isfinite(peak) & ((peak == 0) | (peak >= float(limits.tiny) / float(limits.eps)))


def _noisy_start(key: Any, v0: PyTree, struct: PyTree) -> PyTree:
    """Return a random unit vector, or v0 with 3 % of noise: a start orthogonal to an answer would never find it."""
    noise = vectors.normal(jax.random.fold_in(key, 1), struct)
    if v0 is None:
        return noise
    length = vectors.norm(v0)
    share = 0.03 * jnp.where(length > 0, length, 1) / math.sqrt(vectors.size(struct))
    return vectors.add(v0, vectors.scale(share, noise))


def _dense(plan: _Plan, operator: LinearOperator):
    matrix = operator.to_dense(chunk_size=_MATERIALIZE_CHUNK)
    finite = _is_usable(matrix)
    left, s, right_h = jnp.linalg.svd(jnp.where(finite, matrix, jnp.zeros_like(matrix)), full_matrices=False)
    chosen = slice(s.shape[0] - plan.k, s.shape[0]) if plan.smallest else slice(0, plan.k)
    u = vectors.from_matrix(left.T[chosen], operator.out_struct)
    v = vectors.from_matrix(right_h.conj()[chosen], operator.in_struct)
    count = 0 if isinstance(operator, MatrixOperator) else min(operator.shape)
    return u, s[chosen], v, s[0], jnp.asarray(count, jnp.int32), finite


def _inverse(plan: _Plan, method: InverseLanczos, operator: LinearOperator, key: Any, v0: PyTree):
    """Find the smallest triplets from A = Q R: the largest ones of R^-1, with left and right sides exchanged."""
    matrix = operator.to_dense(chunk_size=_MATERIALIZE_CHUNK)
    m, n = matrix.shape
    wide = m < n
    finite = _is_usable(matrix)
    matrix = jnp.where(finite, matrix, jnp.ones_like(matrix))
    tall = matrix.conj().T if wide else matrix
    struct = jax.ShapeDtypeStruct((tall.shape[1],), tall.dtype)
    q, r, largest = _invertible_factors(tall, key)
    r = r / jnp.where(largest > 0, largest, 1).astype(r.dtype)  # neither R nor R^-1 comes near the ends of the dtype

    def solve(b, *, adjoint=False):
        options = {"left_side": True, "transpose_a": adjoint, "conjugate_a": adjoint}
        return jax.lax.linalg.triangular_solve(r, b, **options)

    def products(b):
        return solve(b[:, None])[:, 0]

    def adjoint_products(b):
        return solve(b[:, None], adjoint=True)[:, 0]

    start = None if v0 is None else vectors.as_matrix(jax.tree.map(lambda leaf: leaf[None], v0))[0]
    if start is not None:  # the start lives on the right of A, hence on the left of R^-1
        start = adjoint_products(start)
    start = _noisy_start(key, start, struct)

    def search(state: _Deflation) -> _Deflation:
        """Find the largest triplets of (I - V V^H) R^-1 (I - U U^H), U and V the vectors kept so far.

        Rounding errors in R^-1 b are relative to the largest value, 1 / sigma_n. Where sigma_n lies far below the other
        wanted values, as it does for a matrix with a column of zeros, theirs would drown in them.
        """
        found = krylov.singular_triplets(
            lambda b: _without(state.right, products(_without(state.left, b))),
            lambda b: _without(state.left, adjoint_products(_without(state.right, b))),
            _without(state.left, start), struct, jax.random.fold_in(key, state.rounds),
            k=plan.k, smallest=False, subspace_size=plan.subspace_size, max_steps=plan.max_steps,
            tol=plan.tol / 4, round_off=plan.round_off / 2, probe=method.probe,
        )  # fmt: skip
        # what is on the left of R^-1 is on the right of R
        place = slots - state.count
        left, right = (
            jnp.where((place >= 0)[:, None], new[jnp.maximum(place, 0)], old)
            for new, old in ((found.right, state.left), (found.left, state.right))
        )
        resolved = plan.round_off * found.values[0] <= _RESOLVED * found.values
        count = jnp.where(found.finite, state.count + jnp.maximum(jnp.sum(resolved, dtype=jnp.int32), 1), plan.k)
        kept = (slots < count)[:, None]
        rounds = state.rounds + 1
        last = (count >= plan.k) | (rounds >= _MAX_ROUNDS)
        return _Deflation(
            left=jnp.where(kept | last, left, 0),
            right=jnp.where(kept | last, right, 0),
            count=jnp.where(last, plan.k, count),
            rounds=rounds,
            finite=state.finite & found.finite,
        )

    slots = jnp.arange(plan.k, dtype=jnp.int32)
    zeros = jnp.zeros((plan.k, struct.shape[0]), r.dtype)
    nothing = _Deflation(zeros, zeros, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), jnp.ones((), bool))
    found = jax.lax.while_loop(lambda state: state.count < plan.k, search, nothing)
    # R^-1 a = sigma b means R b = a / sigma: b is a right vector of R, and a a left one. What an error of b holds of
    # the largest singular vectors is small for R^-1, but not for R; one step of inverse iteration takes it away.
    left_small, _ = jnp.linalg.qr(solve(found.right.T, adjoint=True))
    right, factor = jnp.linalg.qr(solve(left_small))
    inverse = jax.lax.linalg.triangular_solve(factor, jnp.eye(plan.k, dtype=factor.dtype), left_side=True)
    on_left, _, on_right_h = jnp.linalg.svd(inverse)
    right = jnp.matmul(right, on_right_h.conj().T, precision=vectors.HIGHEST)
    left_small = jnp.matmul(left_small, on_left, precision=vectors.HIGHEST)
    s = vectors.stack_norms(jnp.matmul(tall, right, precision=vectors.HIGHEST).T)
    left_long = jnp.matmul(q, left_small, precision=vectors.HIGHEST).T
    right = right.T
    u, v = (right, left_long) if wide else (left_long, right)
    u = vectors.from_matrix(u, operator.out_struct)
    v = vectors.from_matrix(v, operator.in_struct)
    count = 0 if isinstance(operator, MatrixOperator) else min(m, n)
    return u, s, v, jnp.maximum(largest, s[0]), jnp.asarray(count, jnp.int32), finite & found.finite


class _Deflation(NamedTuple):
    """Singular vectors of R that were found already, the smallest values first; rows that are not in use are zero."""

    left: jax.Array
    right: jax.Array
    count: jax.Array
    rounds: jax.Array
    finite: jax.Array


def _without(rows: jax.Array, b: jax.Array) -> jax.Array:
    """Return b without its components along orthonormal rows."""
    coefficients = jnp.matmul(rows.conj(), b, precision=vectors.HIGHEST)
    return b - jnp.matmul(coefficients, rows, precision=vectors.HIGHEST)


def _invertible_factors(tall: jax.Array, key: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return Q and R of a tall matrix, such that solves with R don't overflow, and a lower bound of the norm.

    Where R is singular to working precision, as a solve with a random vector tells, solves can grow without bound: to
    2^n for the n x n matrix with ones on the diagonal and -1 above it. Then Q and R are those of A + E, with a random E
    of norm at most eps |A|, which is the backward error of the factorisation itself. The smallest singular value of
    such a sum is hardly ever far below eps |A| / m (Sankar, Spielman & Teng 2006, doi:10.1137/S0895479803436202,
    Theorem 3.3).
    """
    m, n = tall.shape
    q, r = jnp.linalg.qr(tall)
    eps = jnp.finfo(tall.dtype).eps
    vector = vectors.normal(jax.random.fold_in(key, 2), jax.ShapeDtypeStruct((n, 1), r.dtype))
    solution = jax.lax.linalg.triangular_solve(r, vector, left_side=True)
    for factor in (r, r.conj().T, r):  # power iteration
        vector = jnp.matmul(factor, vectors.divide(vector, vectors.norm(vector)), precision=vectors.HIGHEST)
    largest = jnp.maximum(vectors.norm(vector), vectors.norm(r) / math.sqrt(n))
    regular = vectors.norm(solution) * (eps * largest) < 1  # false for NaN, too

    def perturbed():
        size = eps / (2 * math.sqrt(m)) * jnp.where(largest > 0, largest, 1)
        noise = vectors.normal(jax.random.fold_in(key, 3), jax.ShapeDtypeStruct((m, n), tall.dtype))
        return tuple(jnp.linalg.qr(tall + size.astype(tall.dtype) * noise))

    q, r = jax.lax.cond(regular, lambda: (q, r), perturbed)
    return q, r, largest


def _with_residuals(plan, operator, u, s, v, largest, count, finite) -> SVDResult:
    """Sort, compute the true residuals, and say how it ended."""
    order = jnp.argsort(-s)
    u, v, s = jax.tree.map(lambda rows: rows[order], (u, v, s))
    forward = vectors.subtract(operator.matmat(v), _scaled_rows(s, u))
    backward = vectors.subtract(operator.rmatmat(u), _scaled_rows(s, v))
    residuals = jnp.hypot(vectors.stack_norms(forward), vectors.stack_norms(backward))
    floor = plan.round_off * jnp.maximum(largest, s[0])
    finite = finite & jnp.all(jnp.isfinite(residuals)) & jnp.isfinite(floor)
    by_tol = residuals <= plan.tol * s
    converged = finite & (by_tol | (residuals <= floor))
    status = jnp.where(jnp.all(by_tol), int(Status.CONVERGED), int(Status.AT_ROUND_OFF))
    status = jnp.where(jnp.all(converged), status, int(Status.NOT_CONVERGED))
    status = jnp.where(finite, status, int(Status.NOT_FINITE)).astype(jnp.int32)
    nan = jnp.asarray(jnp.nan, s.dtype)
    s, residuals = jnp.where(finite, s, nan), jnp.where(finite, residuals, nan)
    return SVDResult(u, s, v, residuals, converged, (count + 2 * plan.k).astype(jnp.int32), status)


def _scaled_rows(s: jax.Array, rows: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf * s.reshape((-1,) + (1,) * (leaf.ndim - 1)).astype(leaf.dtype), rows)


@_decompose.defjvp
def _decompose_jvp(plan, primals, tangents):
    operator, key, v0 = primals
    result = _decompose(plan, operator, key, v0)
    materialize = not isinstance(plan.method, Lanczos) or isinstance(plan.method, InverseLanczos)
    u_dot, s_dot, v_dot = triplet_tangents(
        operator, tangents[0], result.u, result.s, result.v, materialize=materialize, tol=plan.tol, eps=plan.eps
    )
    tangent = SVDResult(
        u_dot, s_dot, v_dot, jnp.zeros_like(result.residuals), _float0(result.converged), _float0(result.num_matvecs),
        _float0(result.status),
    )  # fmt: skip
    return result, tangent


def _float0(array: jax.Array) -> Any:
    return np.zeros(array.shape, jax.dtypes.float0)


_jitted = jax.jit(_decompose, static_argnums=0)
