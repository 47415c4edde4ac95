"""How to decompose: frozen, hashable method objects, and the rule by which "auto" chooses one."""

import dataclasses

from spectrax import checks

# The limits of method="auto", on shapes alone: free memory is neither static nor known ahead of time.
DENSE_SIDE = 512  # shorter side up to which an explicit matrix is decomposed wholly
DENSE_OPERATOR_SIDE = 128  # the same for an operator that must be applied to the identity first
FACTORIZED_SIDE = 4096  # shorter side up to which the bottom end is found by a factorisation
FACTORIZED_ENTRIES = 2**24  # entries up to which an operator is made dense


@dataclasses.dataclass(frozen=True)
class Dense:
    """Make the matrix and decompose it wholly.

    Attributes:
        max_bytes: The largest matrix that may be made, in bytes; a larger one is a `ValueError`. None for no limit.
    """

    max_bytes: int | None = None

    def __post_init__(self):
        if self.max_bytes is not None:
            checks.positive_integer("max_bytes", self.max_bytes)


@dataclasses.dataclass(frozen=True)
class Lanczos:
    """Golub-Kahan-Lanczos bidiagonalisation with thick restarts: products with A and A^H only.

    Attributes:
        subspace_size: How far the bases grow before a restart; default max(20, 2 k + 10).
        max_restarts: When to give up, in restarts; default: what `max_matvecs` allows.
        probe: Whether the answer is challenged by a fresh random vector, which finds repeated singular values.
    """

    subspace_size: int | None = None
    max_restarts: int | None = None
    probe: bool = True

    def __post_init__(self):
        if self.subspace_size is not None:
            checks.positive_integer("subspace_size", self.subspace_size)
        if self.max_restarts is not None:
            checks.positive_integer("max_restarts", self.max_restarts)


@dataclasses.dataclass(frozen=True)
class InverseLanczos(Lanczos):
    """Make the matrix, factorise A = Q R once, and iterate on R^-1: for a few of the smallest singular values.

    The smallest singular values of A are the reciprocals of the largest ones of R^-1, which are well separated where
    those of A crowd at the bottom. The accuracy is that of a dense decomposition: errors of eps times the largest
    singular value. Triangular solves take the place of products; the Gram matrix is never formed, since it loses
    everything below sqrt(eps) times the largest singular value.

    Attributes:
        max_bytes: The largest matrix that may be made, in bytes; a larger one is a `ValueError`. None for no limit.
    """

    max_bytes: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.max_bytes is not None:
            checks.positive_integer("max_bytes", self.max_bytes)


Method = Dense | Lanczos


def choose(shape: tuple[int, int], k: int, *, smallest: bool, explicit: bool) -> Method:
    """Return the method that "auto" stands for: a rule on static shapes.

    Args:
        shape: The operator's (m, n).
        k: How many triplets are wanted.
        smallest: Which end.
        explicit: Whether the operator is a matrix already.

    Returns:
        `Dense` for small operators and where a large part of the spectrum is wanted; `InverseLanczos` for the bottom of
        what can be made dense; `Lanczos` otherwise.
    """
    side, entries = min(shape), shape[0] * shape[1]
    can_be_dense = side <= FACTORIZED_SIDE and entries <= FACTORIZED_ENTRIES
    if can_be_dense and (side <= (DENSE_SIDE if explicit else DENSE_OPERATOR_SIDE) or 2 * k + 10 >= side):
        return Dense()
    if smallest and can_be_dense:
        return InverseLanczos()
    return Lanczos()
