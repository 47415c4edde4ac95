"""Arithmetic of sliding windows: what a padding means in numbers, and how large the output is."""

from collections.abc import Sequence
from typing import Any

from jax import lax

from spectrax import checks

Pairs = tuple[tuple[int, int], ...]


def per_axis(name: str, value: Any, axes: int) -> tuple[int, ...]:
    """Return one positive integer for each spatial axis; a single integer counts for all of them."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        for entry in value:
            checks.positive_integer(f"each entry of {name}", entry)
        if len(value) != axes:
            raise ValueError(
                f"{name} must be an integer or have {axes} entries, one a spatial axis; got {tuple(value)}"
            )
        return tuple(int(entry) for entry in value)
    checks.positive_integer(name, value)
    return (int(value),) * axes


def normalised(padding: Any, names: tuple[str, ...], axes: int | None = None) -> str | Pairs:
    """Return a padding as one of `names` or as a tuple of integer pairs, or raise with the choices.

    Args:
        padding: A name, or a pair `(low, high)` for each spatial axis.
        names: The names that are allowed.
        axes: The number of spatial axes, if it is known.

    Returns:
        A hashable padding.

    Raises:
        ValueError: If it is neither, or has another number of pairs than there are axes.
    """
    if isinstance(padding, str):
        checks.choice("padding", padding, names)
        return padding
    message = (
        f"padding must be one of {', '.join(map(repr, names))} or a pair of integers (low, high) for each spatial axis"
    )
    try:
        pairs = tuple((int(low), int(high)) for low, high in padding)
    except (TypeError, ValueError):
        raise ValueError(f"{message}; got {padding!r}") from None
    if axes is not None and len(pairs) != axes:
        raise ValueError(f"{message}; got {len(pairs)} pairs for {axes} axes")
    return pairs


def pads(
    spatial: Sequence[int], window: Sequence[int], strides: Sequence[int], dilation: Sequence[int], padding: str | Pairs
) -> Pairs:
    """Return how many entries a padding adds at both ends of each spatial axis.

    With the dilated window k = dilation (window - 1) + 1: SAME gives ceil(n / stride) outputs and puts the odd entry
    at the end; VALID adds nothing; FULL adds k - 1 at both ends; CIRCULAR adds floor((k - 1) / 2) in front and
    floor(k / 2) behind, filled by wrapping around.

    Args:
        spatial: The input's spatial sizes.
        window: The window's sizes, not dilated.
        strides: The strides.
        dilation: The dilation of the window.
        padding: A normalised padding.

    Returns:
        A pair `(low, high)` for each axis.
    """
    dilated = [step * (size - 1) + 1 for size, step in zip(window, dilation, strict=True)]
    if padding == "FULL":
        return tuple((size - 1, size - 1) for size in dilated)
    if padding == "CIRCULAR":
        return tuple(((size - 1) // 2, size // 2) for size in dilated)
    if isinstance(padding, str):
        return tuple((int(low), int(high)) for low, high in lax.padtype_to_pads(spatial, dilated, strides, padding))
    return padding


def output_sizes(
    kind: str,
    spatial: Sequence[int],
    window: Sequence[int],
    strides: Sequence[int],
    dilation: Sequence[int],
    padding: str | Pairs,
) -> tuple[int, ...]:
    """Return floor((n + low + high - k) / stride) + 1 for each axis, k being the dilated window.

    Args:
        kind: The layer's kind, for the message.
        spatial: The input's spatial sizes.
        window: The window's sizes, not dilated.
        strides: The strides.
        dilation: The dilation of the window.
        padding: A normalised padding.

    Returns:
        The output's spatial sizes.

    Raises:
        ValueError: If the window is larger than the padded input.
    """
    sizes = []
    for size, width, stride, step, (low, high) in zip(
        spatial, window, strides, dilation, pads(spatial, window, strides, dilation, padding), strict=True
    ):
        room = size + low + high - (step * (width - 1) + 1)
        if room < 0:
            raise ValueError(
                f"{kind}: a window of {tuple(window)} (dilation {tuple(dilation)}) does not fit into the spatial sizes "
                f"{tuple(spatial)} with padding {padding!r}"
            )
        sizes.append(room // stride + 1)
    return tuple(sizes)
