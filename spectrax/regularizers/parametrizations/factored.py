"""Kernels as U diag(s) V with trained factors, pruned to a low rank."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spectrax import checks, vectors
from spectrax.regularizers.parametrizations.contract import Parametrization

PyTree = Any
FORMS = ("channel", "spatial")


def factored(*, rank: int | None = None, form: str = "channel") -> Parametrization:
    """Return kernels U diag(s) V, whose factors are the raw parameters {"u", "s", "v"}.

    Two layers could stand in for such a kernel: for "channel" the taps to `rank` channels, and a 1 x 1 convolution
    behind; for "spatial" (two spatial axes) a k x 1 convolution and a 1 x k one. A matrix (in, out) has the form
    "channel". While they are trained, U and V should stay near orthonormal (`factor_orthogonality_penalty`), so that s
    are the singular values of the reshaped kernel; `factor_sparsity_penalty` lowers their number, and
    `prune_by_energy` cuts.

    Args:
        rank: How many are kept by `init`, the largest; all by default.
        form: "channel": the matrix (taps * in) x out; "spatial": (height * in) x (width * out).

    Returns:
        The parametrization. "u" has the shape (spatial..., in, rank) or (height, in, rank), "s" (rank,), and "v" (rank,
        out) or (rank, width, out). `init` is exact for kernels of at most that rank, and otherwise the best
        approximation.

    Raises:
        ValueError: If `form` is none of the two or `rank` is not positive; in `init` if the kernel does not have the
            axes of its form.
        TypeError: If `rank` is not an integer.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> form = sx.parametrizations.factored(rank=1)
        >>> raw = form.init(jnp.diag(jnp.array([3.0, 1.0])))
        >>> raw["s"].tolist(), jnp.abs(form.apply(raw)).round(4).tolist()
        ([3.0], [[3.0, 0.0], [0.0, 0.0]])

    Source:
        Yang et al. 2020, arXiv 2004.09031.
    """
    checks.choice("form", form, FORMS)
    if rank is not None:
        checks.positive_integer("rank", rank)

    def init(kernel: jax.Array) -> dict[str, jax.Array]:
        kernel = jnp.asarray(kernel)
        checks.inexact("kernel", kernel.dtype)
        if kernel.ndim < 2 or (form == "spatial" and kernel.ndim != 4):
            wanted = "four axes (height, width, in, out)" if form == "spatial" else "at least two axes"
            raise ValueError(f"kernel must have {wanted} for form={form!r}, got shape {kernel.shape}")
        if form == "spatial":
            kernel = jnp.swapaxes(kernel, 1, 2)  # (height, in, width, out)
        left, right = (
            (kernel.shape[:2], kernel.shape[2:]) if form == "spatial" else (kernel.shape[:-1], kernel.shape[-1:])
        )
        wide = kernel.astype(vectors.working_dtype(kernel.dtype)).reshape(math.prod(left), -1)
        u, s, vh = jnp.linalg.svd(wide, full_matrices=False)
        u, s, vh = u[:, :rank], s[:rank], vh[:rank]
        raw = {"u": u.reshape(*left, -1), "s": s, "v": vh.reshape(-1, *right)}
        return {
            name: leaf.astype(vectors.real_dtype(kernel.dtype) if name == "s" else kernel.dtype)
            for name, leaf in raw.items()
        }

    def apply(raw: dict[str, jax.Array]) -> jax.Array:
        u, v = raw["u"], raw["v"]
        kernel = jnp.tensordot(u * raw["s"].astype(u.dtype), v, ((-1,), (0,)), precision=vectors.HIGHEST)
        return jnp.swapaxes(kernel, 1, 2) if form == "spatial" else kernel

    return Parametrization(init, apply)


class Pruned(NamedTuple):
    """What is left of a factored kernel.

    Attributes:
        raw: The smaller factors.
        kept: The share of the sum of s^2 that they keep.
        rank: How many singular values are kept.
    """

    raw: dict[str, jax.Array]
    kept: float
    rank: int


def prune_by_energy(raw: dict[str, jax.Array], energy: float, /) -> Pruned:
    """Keep the fewest largest |s| whose squares have a share of the whole of at least `energy`.

    While U and V are orthonormal the squared error of the kernel is what is dropped, and no kernel of this rank is
    nearer.

    Args:
        raw: Those of `factored`; concrete, since the shapes change.
        energy: In (0, 1].

    Returns:
        The factors of what is kept, in descending order of |s|; one at least.

    Raises:
        ValueError: If `energy` is out of its range or `s` is not finite.
        TypeError: If `energy` is not a number.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> raw = sx.parametrizations.factored().init(jnp.diag(jnp.array([3.0, 1.0, 0.1])))
        >>> pruned = sx.parametrizations.prune_by_energy(raw, 0.99)
        >>> pruned.rank, round(pruned.kept, 4)
        (2, 0.999)

    Source:
        Yang et al. 2020, arXiv 2004.09031, section 3.3.
    """
    checks.number_in("energy", energy, 0, 1, low_open=True)
    squares = np.square(np.asarray(raw["s"], np.float64))
    if not np.isfinite(squares).all():
        raise ValueError(f"the singular values must be finite, got {np.asarray(raw['s'])}")
    order = np.argsort(-squares, kind="stable")
    shares = np.cumsum(squares[order]) / squares.sum() if squares.any() else np.ones(len(squares))
    rank = min(int(np.searchsorted(shares, energy * (1 - 1e-12))) + 1, len(squares))
    chosen = jnp.asarray(order[:rank])
    kept = {"u": raw["u"][..., chosen], "s": raw["s"][chosen], "v": raw["v"][chosen]}
    return Pruned(kept, float(shares[rank - 1]), rank)


class Flops(NamedTuple):
    """Multiplications and additions of a layer for one position of its output.

    Attributes:
        full: With the kernel.
        factored: With the two layers that its factors are.
    """

    full: int
    factored: int


def low_rank_flops(kernel_shape: Sequence[int], rank: int, /, *, form: str = "channel") -> Flops:
    """Return what a layer costs for one position of its output, as it is and as two layers of a low rank.

    Args:
        kernel_shape: (in, out), or (spatial..., in, out).
        rank: The channels between the two.
        form: As in `factored`.

    Returns:
        Twice the number of multiplications: 2 taps in out, and 2 rank (taps in + out) for "channel" or 2 rank (height
        in + width out) for "spatial", with stride 1.

    Raises:
        ValueError: If the shape does not fit the form, or `rank` is not positive.

    Example:
        >>> import spectrax as sx
        >>> sx.parametrizations.low_rank_flops((3, 3, 64, 64), 16)
        Flops(full=73728, factored=20480)
    """
    checks.choice("form", form, FORMS)
    checks.positive_integer("rank", rank)
    *taps, inputs, outputs = kernel_shape
    if form == "spatial":
        if len(taps) != 2:
            raise ValueError(
                f"kernel_shape must be (height, width, in, out) for form='spatial', got {tuple(kernel_shape)}"
            )
        one = taps[0] * inputs + taps[1] * outputs
    else:
        one = math.prod(taps) * inputs + outputs
    return Flops(2 * math.prod(kernel_shape), 2 * rank * one)
