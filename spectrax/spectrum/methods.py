"""How to decompose: frozen, hashable method objects, and the rule by which "auto" chooses one."""

import dataclasses
import math

from spectrax import checks
from spectrax.operators import LinearOperator
from spectrax.operators.banded import Band, band_of
from spectrax.operators.convolution import ConvolutionGeometry
from spectrax.operators.precision import WorkingOperator, convolution_of

# The limits of method="auto", on shapes alone: free memory is neither static nor known ahead of time.
DENSE_SIDE = 512  # shorter side up to which an explicit matrix is decomposed wholly
DENSE_OPERATOR_SIDE = 128  # the same for an operator that must be applied to the identity first
BLOCK_VALUES = 6  # how many of the largest values of an explicit matrix are worth products with blocks of vectors,
BLOCK_SIZE = 4  # of this size
FACTORIZED_SIDE = 4096  # shorter side up to which the bottom end is found by a factorisation
FACTORIZED_ENTRIES = 2**24  # entries up to which an operator is made dense
SKETCHED_SIDE = 4096  # shorter side up to which the bottom of what cannot be made dense is found with a sketch,
SKETCHED_STEPS = 200  # in so many steps for one value; in half as many more for each further one
CIRCULANT_SIDE = 1024  # shorter side above which a convolution is tried with a circulant preconditioner first,
CIRCULANT_STEPS = 200  # for so many steps, likewise: for condition numbers of about 10 in float64, 30 in float32
PRECONDITIONED_STEPS = 60  # how long a given preconditioner is tried, likewise
BANDED_ENTRIES = 2**27  # entries of Q and R up to which a convolution is factorised as a block-banded matrix
BANDED_SHARE = 0.5  # ... if that takes no more than this share of the operations of a dense factorisation


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

    def check_size(self, operator: LinearOperator) -> None:
        """Raise `ValueError` if the dense operator takes more than `max_bytes`."""
        _check_size("a dense operator", operator, math.prod(operator.shape), self.max_bytes)


@dataclasses.dataclass(frozen=True)
class Lanczos:
    """Golub-Kahan-Lanczos bidiagonalisation with thick restarts: products with A and A^H only.

    Attributes:
        block_size: How many vectors the operator is applied to at a time. Default: as many as there are starting
            vectors (`v0`), or one. A block finds as many copies of a repeated value, and takes more products in all: it
            pays where a batch of products costs less than as many single ones.
        subspace_size: How far the bases grow before a restart; default max(24, 2 k + 14), and room for five blocks.
        max_restarts: When to give up, in restarts; default: what `max_matvecs` allows.
        probe: Whether the answer is challenged by a fresh random vector, which finds repeated singular values.
    """

    block_size: int | None = None
    subspace_size: int | None = None
    max_restarts: int | None = None
    probe: bool = True

    def __post_init__(self):
        if self.block_size is not None:
            checks.positive_integer("block_size", self.block_size)
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

    def check_size(self, operator: LinearOperator) -> None:
        """Raise `ValueError` if what is factorised takes more than `max_bytes`."""
        band = banded_shape(operator)
        if band is None:
            _check_size("a dense operator", operator, math.prod(operator.shape), self.max_bytes)
        else:
            _check_size("the factorisation of a convolution", operator, band.entries, self.max_bytes)


@dataclasses.dataclass(frozen=True)
class Davidson:
    """Two-sided Davidson iteration with a preconditioner: for a few of the smallest singular values, matrix-free.

    Each step takes a product with A, one with A^H and one with the preconditioner. With the preconditioners of
    `sx.preconditioners` tens to hundreds of steps suffice at moderate condition numbers; what does not converge is
    flagged. A result has converged only if it stood a challenge by a random vector as well.

    Attributes:
        subspace_size: How far the bases grow before a restart; default max(2 k + 10, k + 19), which leaves room for a
            challenge of 18 steps.
        max_steps: When to give up, in steps; default: what `max_matvecs` allows.
        preconditioner: What to use where `svds` is given no preconditioner: "circulant" (convolutions of stride 1),
            "sketch" (min(m, n) products, a factorisation of a matrix of three times as many rows), "none", or "auto":
            circulant where that is possible, a sketch otherwise.
    """

    subspace_size: int | None = None
    max_steps: int | None = None
    preconditioner: str = "auto"

    def __post_init__(self):
        if self.subspace_size is not None:
            checks.positive_integer("subspace_size", self.subspace_size)
        if self.max_steps is not None:
            checks.positive_integer("max_steps", self.max_steps)
        checks.choice("preconditioner", self.preconditioner, ("auto", "circulant", "sketch", "none"))


@dataclasses.dataclass(frozen=True)
class Fallback:
    """Run one method, and another one where the first did not converge.

    Both are compiled; under `vmap` both run for every member of the batch. Where neither converges, the better bound is
    returned.

    Attributes:
        first: A method object with a budget, such as `Davidson(max_steps=60)` or `Lanczos(max_restarts=3)`.
        then: The method to fall back to, possibly another `Fallback`.
    """

    first: "Dense | Lanczos | Davidson"
    then: "Dense | Lanczos | Davidson | Fallback"

    def __post_init__(self):
        for name, kinds in (("first", Dense | Lanczos | Davidson), ("then", Method)):
            if not isinstance(getattr(self, name), kinds):
                raise TypeError(f"{name} must be a method object, got {getattr(self, name)!r}")


Method = Dense | Lanczos | Davidson | Fallback


def cheaper_band(geometry: ConvolutionGeometry) -> Band | None:
    """Return the shape of a convolution as a block-banded matrix where that is the cheaper one to factorise."""
    band = band_of(geometry)
    if band is None or band.entries > BANDED_ENTRIES:
        return None
    m, n = band.shape
    return band if not can_be_dense((m, n)) or band.flops <= BANDED_SHARE * (2.0 * m * n**2 - 2.0 * n**3 / 3) else None


def is_plain(geometry: ConvolutionGeometry) -> bool:
    """Whether a convolution has stride 1 and an input that is not dilated, so that it has a circular counterpart."""
    return all(step == 1 for step in geometry.strides + geometry.input_dilation)


def can_be_dense(shape: tuple[int, int]) -> bool:
    """Whether a matrix of this shape may be made and factorised under "auto"."""
    return min(shape) <= FACTORIZED_SIDE and shape[0] * shape[1] <= FACTORIZED_ENTRIES


def banded_shape(operator: LinearOperator) -> Band | None:
    """Return the shape as a block-banded matrix if that is how `InverseLanczos` factorises the operator."""
    convolution = convolution_of(operator)
    # what has products in 16 bits is not the convolution with its kernel in 32
    return None if convolution is None or isinstance(operator, WorkingOperator) else cheaper_band(convolution[1])


def _check_size(what: str, operator: LinearOperator, entries: int, max_bytes: int | None) -> None:
    needed = entries * operator.dtype.itemsize
    if max_bytes is not None and needed > max_bytes:
        raise ValueError(
            f"{what} of shape {operator.shape} and dtype {operator.dtype.name} takes {needed} bytes, above "
            f"max_bytes={max_bytes}"
        )


def block_layout(method: Lanczos, k: int, side: int, start_count: int) -> tuple[int, int]:
    """Return the size of a block and of the subspace that a method stands for.

    Args:
        method: The method.
        k: How many values are wanted.
        side: The dimension of the vectors of the shorter side.
        start_count: How many starting vectors were given; zero if none.

    Returns:
        (block_size, subspace_size).

    Raises:
        ValueError: If the block holds some of the starting vectors only, or the subspace no block beside the wanted
            vectors.
    """
    width = min(method.block_size or max(start_count, 1), side)
    if 1 < width < start_count:
        raise ValueError(
            f"block_size must be 1 (for the sum of the starting vectors) or at least as large as their number, "
            f"{start_count}, got {method.block_size}"
        )
    size = method.subspace_size
    if size is None:
        size = max(24, 2 * k + 14) if width == 1 else max(24, 2 * k + 14, k + 5 * width)
    if size < k + width and size < side:
        if width == 1:
            raise ValueError(f"subspace_size must be larger than k = {k}, got {size}")
        raise ValueError(f"subspace_size must be at least k + block_size = {k + width}, got {size}")
    if size >= side - width:
        return width, -(-side // width) * width
    return width, max(size, k + 1 + width)


def choose(
    shape: tuple[int, int],
    k: int,
    *,
    smallest: bool,
    explicit: bool,
    geometry: ConvolutionGeometry | None = None,
    preconditioned: bool = False,
    blocks: bool = False,
) -> Method:
    """Return the method that "auto" stands for: a rule on static shapes.

    Args:
        shape: The operator's (m, n).
        k: How many triplets are wanted.
        smallest: Which end.
        explicit: Whether the operator is a matrix already.
        geometry: The geometry, where the operator is a convolution.
        preconditioned: Whether a preconditioner was given.
        blocks: Whether a product with a block of vectors is cheaper than one with each, and one end only is wanted.

    Returns:
        `Dense` for small operators and where a large part of the spectrum is wanted; for the bottom of what can be made
        dense, and of zero-padded convolutions, `InverseLanczos`; for that of tall operators a sketch; `Lanczos`
        otherwise, with blocks for more than a few of the largest values. Before them `Davidson`, for a limited number
        of steps, where a preconditioner was given or the operator is a large convolution.
    """
    side = min(shape)
    dense = can_be_dense(shape)
    whole = dense and (side <= (DENSE_SIDE if explicit else DENSE_OPERATOR_SIDE) or 2 * k + 10 >= side)
    if not smallest:
        if whole:
            return Dense()
        if blocks and k >= BLOCK_VALUES:
            return Lanczos(block_size=BLOCK_SIZE, subspace_size=2 * k + 10 * BLOCK_SIZE)
        return Lanczos()
    if whole:
        last = Dense()
    elif dense or (geometry is not None and cheaper_band(geometry) is not None):
        last = InverseLanczos()
    elif side <= SKETCHED_SIDE and geometry is None:
        last = Fallback(Davidson(preconditioner="sketch", max_steps=SKETCHED_STEPS * (k + 1) // 2), Lanczos())
    else:
        last = Lanczos()
    if preconditioned:
        return Fallback(Davidson(max_steps=PRECONDITIONED_STEPS * (k + 1) // 2), last)
    if geometry is not None and is_plain(geometry) and side > CIRCULANT_SIDE and not whole:
        return Fallback(Davidson(preconditioner="circulant", max_steps=CIRCULANT_STEPS * (k + 1) // 2), last)
    return last
