"""Extreme singular triplets of a linear operator, with residuals and derivatives."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import PartitionSpec

from spectrax import checks, explicit_axes, layouts, vectors
from spectrax.operators import LinearOperator, aslinearoperator
from spectrax.operators.conversion import MatrixOperator
from spectrax.operators.precision import convolution_of, in_working_precision
from spectrax.results import SVDResult, raise_unless_successful
from spectrax.spectrum.decomposition import decompose, stack_of
from spectrax.spectrum.derivatives import triplet_tangents, without_tangents
from spectrax.spectrum.methods import (
    Davidson,
    Dense,
    Fallback,
    InverseLanczos,
    Method,
    banded_shape,
    can_be_dense,
    choose,
)
from spectrax.spectrum.plans import Plan, own_eps, plan_of

PyTree = Any


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
    preconditioner: Any = None,
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
            `InverseLanczos()` and `Davidson()` (smallest only), or `Fallback(first, then)`.
        tol: Relative residual to reach; default 1e-10 in 64 bits and 1e-6 in 32.
        max_matvecs: How many single products with A or A^H an iterative method may take, checked at restarts; default
            max(2000, 20 min(m, n)).
        key: A PRNG key; required by every iterative method, and under "auto" for anything but an explicit matrix that
            is small enough to be decomposed wholly.
        v0: Replaces the random start: a stack of vectors in the structure of the shorter side (of the input if
            m >= n). `Lanczos` starts with them as a block; with block_size=1, and in the other methods, with their
            sum. A little noise from `key` is always added.
        preconditioner: For `which="smallest"`: an operator M on vectors of the shorter side, or anything that
            `aslinearoperator` takes, that approximates (A^H A)^-1, for m < n (A A^H)^-1; `sx.preconditioners` makes
            some. It proposes directions only: a poor one costs products and makes no answer wrong. Under "auto" it asks
            for `Davidson` with a budget of 60 steps, before anything else is tried. Nothing is differentiated through
            it.
        throw: Raise on the host if the result did not converge.

    Returns:
        An `SVDResult` with `u`, `s`, `v`, `residuals`, `converged`, `num_matvecs` and `status`. 16-bit operators give
        32-bit results.

    Raises:
        ValueError: If an argument is out of its range, a needed key is missing, a method's limit is exceeded, or
            `throw` is used under a trace; if an array lies on a mesh with explicit axes; if a preconditioner is given
            for a method that has no use for it, or does not act on vectors of the shorter side.
        TypeError: If A is not an operator or has an integer dtype; if a circulant preconditioner is asked for and A is
            no convolution.
        SpectraxError: With `throw=True`, if the result did not converge.

    Cost:
        `Lanczos`: two matvecs and 8 p (m + n) flops of orthogonalisation a step, subspace p; tens to hundreds of steps.
        `Davidson`: the same and one product of the preconditioner a step.
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
    chosen = resolve_method(
        operator, k, which=which, method=method, preconditioned=preconditioner is not None, started=v0 is not None
    )
    short = operator.in_struct if operator.shape[0] >= operator.shape[1] else operator.out_struct
    if v0 is not None:
        v0 = stack_of(v0, short)
    start_count = 0 if v0 is None else vectors.count(v0)
    plan = plan_of(
        operator, k, which=which, method=chosen, eps=own_eps(given, operator), tol=tol, max_matvecs=max_matvecs,
        start_count=start_count, products_per_step=2,
    )  # fmt: skip
    if key is not None:
        checks.key("key", key)
    elif not (isinstance(chosen, Dense) and (explicit or isinstance(method, Dense))):
        raise ValueError(
            f"svds needs key= (for instance jax.random.key(0)) for method {type(chosen).__name__} on an operator "
            f"of shape {operator.shape}: only explicit matrices of shorter side up to the limit of the dense method go "
            "without"
        )
    if preconditioner is not None:
        preconditioner = _on_short_side(preconditioner, short)
    one: Any = PartitionSpec()
    u, v = layouts.stack_specs(operator.out_struct), layouts.stack_specs(operator.in_struct)
    specs = SVDResult(u=u, s=one, v=v, residuals=one, converged=one, num_matvecs=one, status=one)
    run = functools.partial(_jitted, plan)
    result = explicit_axes.with_automatic_axes(run, specs, operator, key, v0, preconditioner)
    return raise_unless_successful(result) if throw else result


def resolve_method(
    A: Any, k: int, *, which: str, method: str | Method, preconditioned: bool = False, started: bool = False
) -> Method:
    """Return the method that `svds` uses: the one that was given, or what "auto" stands for.

    Args:
        A: An operator, or anything that `aslinearoperator` takes.
        k: How many triplets are wanted.
        which: "largest" or "smallest".
        method: "auto" or a method object.
        preconditioned: Whether a preconditioner was given.
        started: Whether starting vectors were given, whose number is that of a block.

    Returns:
        A method object.

    Raises:
        ValueError: If `which`, `k` or the name of the method is not valid, or the method is not for this end or has no
            use for a preconditioner that was given.
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
        if preconditioned and which == "largest":
            raise ValueError("a preconditioner is for the smallest singular values: use which='smallest'")
        convolution = convolution_of(operator)
        explicit = isinstance(operator, MatrixOperator)
        return choose(
            operator.shape, k, smallest=which == "smallest", explicit=explicit,
            geometry=None if convolution is None else convolution[1], preconditioned=preconditioned,
            blocks=explicit and not started,
        )  # fmt: skip
    if not isinstance(method, Method):
        raise TypeError(f"method must be 'auto' or a method object such as Dense() or Lanczos(), got {method!r}")
    stages = list(_stages(method))
    for stage in stages:
        if isinstance(stage, InverseLanczos | Davidson) and which == "largest":
            name = type(stage).__name__
            raise ValueError(f"{name} finds the smallest singular values: use which='smallest', or Lanczos()")
    if preconditioned and not any(isinstance(stage, Davidson) for stage in stages):
        raise ValueError(f"a preconditioner is of use for Davidson() only, got method={method!r}")
    return method


def _stages(method: Method) -> Iterator[Method]:
    if isinstance(method, Fallback):
        yield from _stages(method.first)
        yield from _stages(method.then)
    else:
        yield method


def _on_short_side(preconditioner: Any, struct: PyTree) -> LinearOperator:
    preconditioner = aslinearoperator(preconditioner)
    checks.same_structure("the input of the preconditioner", preconditioner.in_struct, struct)
    checks.same_structure("the output of the preconditioner", preconditioner.out_struct, struct)
    return preconditioner


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _decompose(
    plan: Plan, operator: LinearOperator, key: Any, v0: PyTree, preconditioner: LinearOperator | None
) -> SVDResult:
    operator, preconditioner = jax.lax.stop_gradient((operator, preconditioner))
    return decompose(plan, operator, key, v0, preconditioner)


@_decompose.defjvp
def _decompose_jvp(plan, primals, tangents):
    operator = primals[0]
    result = _decompose(plan, *primals)
    stages = list(_stages(plan.method))
    band = any(isinstance(stage, InverseLanczos) for stage in stages) and banded_shape(operator) is not None
    dense = any(isinstance(stage, Dense | InverseLanczos) for stage in stages)
    materialize = dense and (not band or can_be_dense(operator.shape))
    u_dot, s_dot, v_dot = triplet_tangents(
        operator, tangents[0], result.u, result.s, result.v, materialize=materialize, tol=plan.tol, eps=plan.eps
    )
    return result, without_tangents(result)._replace(u=u_dot, s=s_dot, v=v_dot)


_jitted = jax.jit(_decompose, static_argnums=0)
