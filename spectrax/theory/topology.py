"""The topology of a network as a number, and how near to an isometry its layers are."""

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from spectrax import checks
from spectrax.spectrum import singular_values
from spectrax.spectrum.functions import power_of_two


def nn_density(*, width: int, depth: int, max_skip_channels: int) -> float:
    """Return which share of the possible long-range skips a cell has.

    Layer i + 1 of a cell, for i = 1, ..., depth - 2, sees the layer before it, and of the w i channels that lie further
    back at most t, chosen at random. The density is sum_i min(w i, t) / sum_i w i.

    Args:
        width: The channels w of every layer.
        depth: The layers d of the cell, at least 3.
        max_skip_channels: The most channels t that a layer takes from further back.

    Returns:
        The density, in [0, 1].

    Raises:
        TypeError: If an argument is not an integer.
        ValueError: If an argument is out of its range.

    Example:
        >>> from spectrax.theory.topology import nn_density
        >>> round(nn_density(width=8, depth=8, max_skip_channels=10), 6)
        0.345238

    Source:
        Bhardwaj, Li & Marculescu 2021, How does topology influence gradient propagation and model performance of deep
        networks with DenseNet-type skip connections? (arXiv 1910.00780), section 3.
    """
    _cell(width, depth, max_skip_channels)
    width, depth = int(width), int(depth)  # NumPy's integers would overflow
    links = sum(min(width * i, int(max_skip_channels)) for i in range(1, depth - 1))
    return links / (width * (depth - 1) * (depth - 2) // 2)


def nn_mass(*, width: int | Sequence[int], depth: int | Sequence[int], max_skip_channels: int | Sequence[int]) -> float:
    """Return the NN-Mass of a network with DenseNet-type skips: the sum over its cells of density * width * depth.

    Networks of equal mass and width train alike though their depths and sizes differ, since their layers are equally
    near to isometries. For t <= w the mass of a cell is 2 d t / (d - 1).

    Args:
        width: The channels w of a cell's layers; a sequence for several cells.
        depth: The layers d of a cell, at least 3; a sequence, or one for all cells.
        max_skip_channels: The most channels t that a layer takes from further back; a sequence, or one for all cells.

    Returns:
        The mass.

    Raises:
        TypeError: If an entry is not an integer.
        ValueError: If an entry is out of its range, or sequences differ in length.

    Example:
        >>> from spectrax.theory.topology import nn_mass
        >>> round(nn_mass(width=8, depth=8, max_skip_channels=10), 6)
        22.095238
        >>> round(nn_mass(width=(32, 64, 128), depth=8, max_skip_channels=(10, 20, 40)), 6)
        160.0

    Source:
        As `nn_density`.
    """
    cells = _cells(width=width, depth=depth, max_skip_channels=max_skip_channels)
    return math.fsum(nn_density(width=w, depth=d, max_skip_channels=t) * w * d for w, d, t in cells)


def nn_degree(*, width: int | Sequence[int], depth: int | Sequence[int], num_skip_links: int | Sequence[int]) -> float:
    """Return the NN-Degree of a network: the sum over its cells of w + S / (w d).

    The first term is the degree of the lattice that the layers form one after the other, the second the mean number of
    long-range links at each of the w d nodes.

    Args:
        width: The channels w of a cell's layers; a sequence for several cells.
        depth: The layers d of a cell; a sequence, or one for all cells.
        num_skip_links: The number of skip links S, counted from channel to channel: a channel that is concatenated to
            the input of a layer with w outputs has w links, one that is added to another has one. A sequence, or one
            number for all cells.

    Returns:
        The degree.

    Raises:
        TypeError: If an entry is not an integer.
        ValueError: If an entry is out of its range, or sequences differ in length.

    Example:
        >>> from spectrax.theory.topology import nn_degree
        >>> nn_degree(width=(8, 16), depth=4, num_skip_links=(64, 0))
        26.0

    Source:
        Li, Mandal, Ogras & Marculescu 2021, FLASH: fast neural architecture search with hardware optimization
        (arXiv 2108.00568), section 3.
    """
    total = []
    for w, d, links in _cells(width=width, depth=depth, num_skip_links=num_skip_links):
        checks.positive_integer("width", w)
        checks.positive_integer("depth", d)
        _count("num_skip_links", links)
        total.append(w + int(links) / (int(w) * int(d)))  # NumPy's integers would overflow
    return math.fsum(total)


def _cell(width: Any, depth: Any, max_skip_channels: Any) -> None:
    checks.positive_integer("width", width)
    checks.positive_integer("depth", depth)
    if depth < 3:
        raise ValueError(f"depth must be at least 3, since shorter cells have no place for skips; got {depth}")
    _count("max_skip_channels", max_skip_channels)


def _count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {value!r} of type {type(value).__name__}")
    if value < 0:
        raise ValueError(f"{name} must not be negative, got {value}")


def _cells(**entries: Any) -> list[tuple[Any, ...]]:
    """Return one tuple for each cell; a number stands for all cells."""
    lengths = {name: len(entry) for name, entry in entries.items() if isinstance(entry, Sequence)}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        raise ValueError(f"sequences must have one length, that of the cells, got {lengths}")
    count = next(iter(lengths.values()), 1)
    columns = (entry if isinstance(entry, Sequence) else [entry] * count for entry in entries.values())
    return list(zip(*columns, strict=True))


class LayerIsometry(NamedTuple):
    """The singular values of one layer, in short; all fields are scalars.

    Attributes:
        mean: Their mean: 1 for an isometry.
        std: Their standard deviation: 0 for an isometry.
        s_max: The largest.
        s_min: The smallest of the min(m, n).
        condition_number: s_max / s_min, inf where s_min is 0.
    """

    mean: jax.Array
    std: jax.Array
    s_max: jax.Array
    s_min: jax.Array
    condition_number: jax.Array


class IsometryReport(NamedTuple):
    """How near the layers of a network are to isometries.

    Attributes:
        layers: One `LayerIsometry` by name.
        mean: The mean over the singular values of all layers together.
        std: Their standard deviation, with the divisor count - 1 (0 for a single value).
    """

    layers: dict[str, LayerIsometry]
    mean: jax.Array
    std: jax.Array


def layerwise_dynamical_isometry(operators: Mapping[str, Any], /, **options: Any) -> IsometryReport:
    """Measure how near each layer of a network is to an isometry.

    Layerwise dynamical isometry holds where the singular values of every layer's Jacobian are near 1: then gradients
    keep their length whatever the depth. Its measure at initialisation is the mean singular value over all layers, with
    its spread.

    Args:
        operators: By name the layers' maps or Jacobians, for instance `sx.layers.linear_maps(net, shape)(params)` for
            the weights alone, or `sx.jacobian_operator(layer, x)` for each layer with its activation. Any objects that
            `aslinearoperator` takes as one argument. Operators with a batch axis go by `jax.vmap`, whose reports can
            then be averaged.
        **options: As in `sx.singular_values`.

    Returns:
        The report; NaN where a value did not converge.

    Raises:
        TypeError: If the operators are not a mapping.
        ValueError: If there are none.

    Cost:
        One decomposition of every operator.

    Derivatives:
        Those of singular values, where they are simple.

    Example:
        >>> import jax.numpy as jnp
        >>> from spectrax.theory.topology import layerwise_dynamical_isometry
        >>> report = layerwise_dynamical_isometry({"first": jnp.eye(2), "second": jnp.diag(jnp.array([2.0, 1.0]))})
        >>> float(report.layers["second"].condition_number), float(report.mean)
        (2.0, 1.25)

    Source:
        Bhardwaj, Li & Marculescu 2021 (arXiv 1910.00780), section 3; the autodiff of the operators takes the place of
        formulas for single activations.
    """
    if not isinstance(operators, Mapping):
        raise TypeError(f"operators must be a mapping from names to operators, got {type(operators).__name__}")
    if not operators:
        raise ValueError("operators must hold one operator at least, got none")
    values = {name: singular_values(operator, **options) for name, operator in operators.items()}
    dtype = max((s.dtype for s in values.values()), key=lambda dtype: dtype.itemsize)  # promotion may be strict
    together = jnp.concatenate([s.astype(dtype) for s in values.values()])
    layers = {name: _isometry(s) for name, s in values.items()}
    return IsometryReport(layers, *_mean_and_std(together, ddof=1))


def _isometry(s: jax.Array) -> LayerIsometry:
    safe = jnp.where(s[-1] == 0, 1, s[-1])
    number = jnp.where(s[-1] == 0, jnp.inf, s[0] / safe)
    return LayerIsometry(*_mean_and_std(s, ddof=0), s[0], s[-1], number)


def _mean_and_std(s: jax.Array, *, ddof: int) -> tuple[jax.Array, jax.Array]:
    """Return the mean and the standard deviation, whose squares neither overflow nor vanish; 0 for a single value."""
    unit = power_of_two(s)
    std = jnp.std(s / unit, ddof=ddof) if s.size > 1 else jnp.where(jnp.isnan(s[0]), jnp.nan, 0).astype(s.dtype)
    return jnp.mean(s / unit) * unit, std * unit
