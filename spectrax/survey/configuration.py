"""What a survey of a checkpoint measures, checked when it is made."""

import dataclasses
from typing import Any

from spectrax import checks

MEASURES = ("top", "extremes", "ranks", "density")
KERNELS = ("flax", "torch")
METHODS = ("auto", "dense", "iterative")
PRECISIONS = ("stored", "float32", "float64")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpectrumConfig:
    """Which matrices of which checkpoint are measured, and what of them.

    Attributes:
        checkpoint: The file or directory, as `open_weights` takes it.
        out: The directory to write.
        measure: Some of "top" (the largest singular values), "extremes" (both ends and the condition number), "ranks"
            (effective and numerical rank) and "density" (how the singular values are distributed). The Frobenius norm
            comes with each, and the stable rank with the largest value.
        k: How many of the largest singular values.
        include: Patterns as of a shell; an array is measured if its name matches one of them.
        exclude: Patterns; an array whose name matches one is left out.
        min_side: Matrices whose shorter side is smaller are left out.
        stacked: Patterns of arrays of more than two axes whose leading axes count matrices.
        kernels: The layout by which other arrays of more than two axes are measured as reshaped kernels, which have not
            the singular values of the convolution: "flax" is (spatial..., in, out), "torch" (out, in, spatial...).
            None leaves them out.
        max_side: Matrices whose shorter side is larger are not factorised: their smallest value, ranks and density are
            not measured.
        method: "dense" decomposes wholly, "iterative" finds both ends by iterations, and "auto" takes the one that is
            faster with its compilation, by how many matrices have the same shape.
        tol: The relative residual to reach; None is 1e-10 in 64 bits and 1e-6 in 32.
        precision: What is computed in: "float32", "float64", or "stored": float64 for what is stored so, else float32.
        seed: Seed of the iterations' starts.
    """

    checkpoint: str
    out: str = "runs/spectrum"
    measure: tuple[str, ...] = MEASURES
    k: int = 1
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    min_side: int = 2
    stacked: tuple[str, ...] = ()
    kernels: str | None = None
    max_side: int = 4096
    method: str = "auto"
    tol: float | None = None
    precision: str = "stored"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every value."""
        for name in ("k", "min_side", "max_side"):
            checks.positive_integer(name, getattr(self, name))
        if not self.measure:
            raise ValueError(f"measure must name at least one of {', '.join(MEASURES)}; got none")
        for measure in self.measure:
            checks.choice("measure", measure, MEASURES)
        if self.kernels is not None:
            checks.choice("kernels", self.kernels, KERNELS)
        checks.choice("method", self.method, METHODS)
        checks.choice("precision", self.precision, PRECISIONS)
        if self.tol is not None:
            checks.number_in("tol", self.tol, 0.0, 1.0, low_open=True)
        checks.number_in("seed", self.seed, 0, 2**32 - 1)

    @property
    def wants_top(self) -> bool:
        """Whether the largest values are wanted."""
        return "top" in self.measure or self.wants_bottom

    @property
    def wants_bottom(self) -> bool:
        """Whether the smallest value is wanted."""
        return "extremes" in self.measure

    @property
    def wants_whole(self) -> bool:
        """Whether all singular values are wanted."""
        return "ranks" in self.measure or "density" in self.measure

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return dataclasses.asdict(self)
