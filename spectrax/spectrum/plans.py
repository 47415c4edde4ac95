"""Everything static about one decomposition, from the arguments that a user gave."""

import dataclasses

import jax.numpy as jnp

from spectrax import checks, vectors
from spectrax.krylov import Task
from spectrax.operators import LinearOperator
from spectrax.operators.conversion import MatrixOperator
from spectrax.spectrum.methods import Davidson, Dense, Fallback, InverseLanczos, Lanczos, Method, block_layout


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is asked for, and how it is carried out.

    Attributes:
        k: How many values.
        which: "largest", "smallest", or for eigenvalues "largest_magnitude".
        method: The method object.
        tol: The relative residual to reach.
        eps: The unit round-off of the products.
        round_off: The residual, over the largest value, that counts as round-off.
        max_steps: How many vectors an iteration may apply the operator to.
        block_size: How many at a time.
        subspace_size: How far bases grow before a restart.
        parts: The two stages of a `Fallback`.
    """

    k: int
    which: str
    method: Method
    tol: float
    eps: float
    round_off: float
    max_steps: int
    block_size: int = 1
    subspace_size: int = 0
    parts: tuple["Plan", ...] = ()

    def task(self, *, tol: float, round_off: float, probe: bool, one_sided: bool = False) -> Task:
        """Return what an iteration is asked for, to tolerances that leave the result room for its own errors."""
        return Task(self.k, self.which, self.subspace_size, self.max_steps, tol, round_off, probe, one_sided)

    @property
    def recurrence_task(self) -> Task:
        """That of a Krylov recurrence: its residuals go on falling below those that its vectors can have."""
        assert isinstance(self.method, Lanczos)
        return self.task(
            tol=self.tol / 2,
            round_off=min(4 * self.eps, self.round_off / 2),
            probe=self.method.probe,
            # which costs some eps of residual; at the bottom left vectors lose orthogonality at once, and products in
            # 16 bits match their adjoint to 3 digits only
            one_sided=self.which == "largest" and self.tol >= 100 * self.eps and self.eps < 1e-6,
        )


def plan_of(
    operator: LinearOperator,
    k: int,
    *,
    which: str,
    method: Method,
    eps: float,
    tol: float | None,
    max_matvecs: int | None,
    start_count: int,
    products_per_step: int,
) -> Plan:
    """Return the plan for a method.

    Args:
        operator: The operator, in the dtype to compute in.
        k: How many values, already checked.
        which: The end of the spectrum, already checked.
        method: The method object.
        eps: The unit round-off of its products, from `own_eps`.
        tol: As the user gave it.
        max_matvecs: As the user gave it.
        start_count: How many starting vectors were given.
        products_per_step: Two of a singular value decomposition, one of an eigendecomposition.

    Returns:
        A plan.

    Raises:
        ValueError: If tol, max_matvecs, the subspace or the blocks are out of range, or the matrix would exceed the
            method's `max_bytes`.
    """
    side = min(operator.shape)
    tol = default_tol(operator) if tol is None else tol
    checks.number_in("tol", tol, 0.0, 1.0, low_open=True)
    max_matvecs = max(2000, 20 * side) if max_matvecs is None else max_matvecs
    checks.positive_integer("max_matvecs", max_matvecs)
    parts = ()
    if isinstance(method, Fallback):
        parts = tuple(
            plan_of(
                operator, k, which=which, method=part, eps=eps, tol=tol, max_matvecs=max_matvecs,
                start_count=start_count, products_per_step=products_per_step,
            )
            for part in (method.first, method.then)
        )  # fmt: skip
    block_size, subspace_size, max_steps = 1, 0, max(max_matvecs // products_per_step, 1)
    if isinstance(method, Dense | InverseLanczos):
        method.check_size(operator)
    if isinstance(method, Davidson):
        subspace_size = max(2 * k + 10, k + 19) if method.subspace_size is None else method.subspace_size
        if subspace_size < k + 4 and subspace_size < side:
            raise ValueError(f"subspace_size must be at least k + 4 = {k + 4}, got {subspace_size}")
        subspace_size = min(subspace_size, side)
        if method.max_steps is not None:
            max_steps = min(max_steps, method.max_steps)
    if isinstance(method, Lanczos):
        count = 0 if isinstance(method, InverseLanczos) else start_count  # which takes the sum of the vectors
        block_size, subspace_size = block_layout(method, k, side, count)
        if method.max_restarts is not None:
            max_steps = min(max_steps, (method.max_restarts + 1) * subspace_size)
    floor = round_off_floor(operator, eps)
    return Plan(int(k), which, method, float(tol), eps, floor, int(max_steps), block_size, subspace_size, parts)


def own_eps(given: LinearOperator, operator: LinearOperator) -> float:
    """Return the unit round-off of the products: of the original dtypes unless an explicit matrix was cast up."""
    source = operator if isinstance(operator, MatrixOperator) else given
    return vectors.eps((source.in_struct, source.out_struct))


def default_tol(operator: LinearOperator) -> float:
    """Return the relative residual to reach if none is asked for."""
    return 1e-10 if jnp.finfo(operator.dtype).bits == 64 else 1e-6


def round_off_floor(operator: LinearOperator, eps: float) -> float:
    """Return the residual, over the largest value, that counts as round-off; eps is that of the products.

    Long sums and rotated bases leave some sqrt(n) of it; LAPACK's decompositions end at max(10, u^(-1/8)) u, with u
    half of eps (xBDSQR).
    """
    working = vectors.eps((operator.in_struct, operator.out_struct))
    floor = (max(8.0, 0.5 * (working / 2) ** -0.125) + 2 * max(operator.shape) ** 0.5) * working
    return floor + 8 * eps if eps > working else floor  # those of products in 16 bits, whose sums have more
