"""The norm of a convolution: exact values, bounds and estimates, each with its kind."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from spectrax import checks
from spectrax.operators.convolution import checked_kernel, per_axis, shape_of
from spectrax.results import Quantity
from spectrax.spectrum.convolution.grid import CANDIDATES, grid_size
from spectrax.spectrum.convolution.norm_methods import (
    BY_NAME,
    coarse_sizes,
    default_frequencies,
    exact_norm,
    grid_norm,
    is_small,
    structured_flops,
    structured_norm,
)
from spectrax.spectrum.convolution.norm_problem import Geometry, Options, Problem, problem_of

METHODS = ("auto", *BY_NAME)


def conv_norm(
    kernel: jax.Array,
    /,
    *,
    input_shape: Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]],
    strides: int | Sequence[int] = 1,
    method: str = "auto",
    certified: bool = False,
    max_flops: float = 1e10,
    input_dilation: int | Sequence[int] = 1,
    kernel_dilation: int | Sequence[int] = 1,
    feature_group_count: int = 1,
    num_frequencies: int | None = None,
    num_steps: int = 4,
    num_starts: int = 6,
    key: jax.Array | None = None,
) -> Quantity:
    r"""Return the spectral norm of a convolution, or a bound of it, and say which.

    The norm depends on the size of the input and on the padding. As the input grows, that of every padding tends to
    sup_w |F(w)|, the largest norm of the symbol, from below. Most bounds are bounds of that supremum, and so hold for
    every size and padding. Strides enter by the polyphase form of the kernel, groups by the largest of their norms.

    Args:
        kernel: Shape (spatial..., in / groups, out), with 1, 2 or 3 spatial axes.
        input_shape: Spatial sizes of the input, with or without the channels; needed by "exact", "circular" and
            "frobenius" only.
        padding: As in `conv_operator`.
        strides: The step for each spatial axis.
        method: What to compute, with its kind:

            - "auto": with a size and circular padding, or with a size and a `key`, or where the matrix is small,
              "exact"; otherwise "grid".
            - "exact": the norm. Circular, with strides that divide the sizes: the largest of the symbol's norms (kind
              "exact"). Otherwise "exact" where the matrix, or each of the blocks that `conv_singular_values` finds in
              it, is small, or without a `key` not too large for the dense method of `svds`; else by `spectral_norm`
              (kind "lower", with `key`).
            - "circular": the norm of the circular convolution of that size: for other paddings an "estimate" that may
              be below the norm.
            - "grid" (upper): the largest norm on a grid of frequencies over a product of cosines; refined near the
              largest values.
            - "gram" (upper): Gram iteration, at the frequencies of a circular convolution if the size is given, and
              otherwise on the kernel, for all paddings.
            - "aol" (upper): its first step on the kernel, the bound of almost-orthogonal layers.
            - "fantastic_four" (upper): sqrt(taps) times the norms of the kernel's unfoldings.
            - "tensor_norm" (estimate): sqrt(taps) times the spectral norm of the kernel as a tensor, which would be an
              upper bound if the global maximum is found; by `num_starts` runs from random starts, with `key`.
            - "lip_grid" (upper): the largest Frobenius norm on a grid, over 1 - (size - 1) / N.
            - "tap_sum" (upper): the sum of the norms of the taps.
            - "schur" (upper): the largest sums of moduli of rows and columns.
            - "frobenius" (upper): the Frobenius norm of the matrix, or a little more.
            - "reshaped" (lower): the norm of the kernel as a matrix out x (taps * in), which many call the norm of the
              convolution; it can be too small by sqrt(taps). An "estimate" where no window lies within the input.

        certified: Whether only rigorous upper bounds and exact values are allowed. With "auto" the smallest of those
            that `max_flops` pays for is returned; with another method that isn't rigorous it is an error.
        max_flops: How many operations `certified` may take, roughly. The bound by Schur is always there.
        input_dilation: The spacing of input entries, for transposed convolutions.
        kernel_dilation: The spacing of kernel taps.
        feature_group_count: Number of groups.
        num_frequencies: For "grid" and "lip_grid", the number N along each axis of more than one tap; default 8 taps,
            and 32 at least for "lip_grid".
        num_steps: For "gram".
        num_starts: For "tensor_norm".
        key: A PRNG key, for "tensor_norm" and for "exact" where it iterates.

    Returns:
        A `Quantity` whose `kind` is that of its value. Upper bounds are rounded up by several times the error that was
        seen in their computation. NaN with the status NOT_FINITE where the kernel is not finite. Subnormal entries
        count as zero, as XLA has them.

    Raises:
        TypeError: If the kernel has an integer dtype, or the key is none.
        ValueError: If shapes or options don't fit, or what the method needs (a size, a key) is missing.

    Cost:
        With c_out x c_in channels, C = c_out c_in min(c_out, c_in), and T taps: "grid" some ten C for each of N^d / 2
        frequencies, "gram" 8 C for each frequency and step, "fantastic_four" some T^2 C, "tap_sum" some ten T C,
        "schur" c_in c_out T. The others as said above. In memory the kernel of "gram" has (size - 1) 2^num_steps + 1
        taps along each axis.

    Derivatives:
        First derivatives, finite everywhere. Those of "grid" and of `certified` are those of the symbol's norm where it
        is largest, times what the bound adds.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> laplacian = jnp.array([[0.0, -1, 0], [-1, 4, -1], [0, -1, 0]])[:, :, None, None]
        >>> bound = sx.conv_norm(laplacian, padding="SAME", certified=True)
        >>> bound.kind, 8 <= float(bound.value) < 8.02
        ('upper', True)
        >>> circular = sx.conv_norm(laplacian, input_shape=(5, 5), padding="CIRCULAR")
        >>> circular.kind, round(float(circular.value), 3)
        ('exact', 7.236)

    Source:
        Singla & Feizi 2021 ("fantastic_four"), Grishina, Gorbunov & Rakhuba 2024 (arXiv 2409.11859), Delattre et al.
        2023 and 2024 (arXiv 2305.16173, 2402.00240), Prach & Lampert 2022 (arXiv 2208.03160), Araujo et al. 2021
        (arXiv 2006.08391, "lip_grid"), Yi 2020 (arXiv 2006.07117). The cosines of "grid" are derived in the
        documentation, on the page about convolutions.
    """
    checks.choice("method", method, METHODS)
    checks.number_in("max_flops", max_flops, 0, math.inf)
    for name, value in (("num_frequencies", num_frequencies), ("num_steps", num_steps), ("num_starts", num_starts)):
        if value is not None or name != "num_frequencies":
            checks.positive_integer(name, value)
    if key is not None:
        checks.key("key", key)
    if not isinstance(padding, str | Sequence):  # an array cannot be hashed
        raise ValueError(f"padding must be a name or one pair (before, after) for each spatial axis, got {padding!r}")
    kernel = checked_kernel(kernel)
    rank = kernel.ndim - 2
    what = Geometry(
        None if input_shape is None else shape_of(input_shape),
        padding if isinstance(padding, str) else _pairs(padding),
        per_axis("strides", strides, rank),
        per_axis("input_dilation", input_dilation, rank),
        per_axis("kernel_dilation", kernel_dilation, rank),
        feature_group_count,
    )
    options = Options(None if num_frequencies is None else int(num_frequencies), int(num_steps), int(num_starts))
    return _conv_norm(kernel, key, what, options, method, certified, float(max_flops))


def _pairs(padding: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(tuple(pair) if isinstance(pair, Sequence) else pair for pair in padding)


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5, 6))
def _conv_norm(kernel, key, what: Geometry, options: Options, method: str, certified: bool, max_flops: float):
    problem, options = problem_of(kernel, what), dataclasses.replace(options, key=key)
    if certified and method == "auto":
        return _certified(problem, options, max_flops)
    if method == "auto":
        method = "exact" if _exact_at_hand(problem, key) else "grid"
    found = BY_NAME[method](problem, options)
    if certified and found.kind not in {"exact", "upper"}:
        raise ValueError(
            f"method {method!r} gives a value of kind {found.kind!r} here, and certified=True demands a bound"
        )
    return found


def _exact_at_hand(problem: Problem, key: jax.Array | None) -> bool:
    if problem.operator is None:
        return False
    return problem.circular or key is not None or is_small(problem.operator)


def _certified(problem: Problem, options: Options, max_flops: float) -> Quantity:
    """Return the smallest of the rigorous bounds that the operations pay for."""
    groups, taps = problem.kernels.shape[0], math.prod(problem.taps)
    per_frequency = 4.0 * groups * problem.cube  # of a decomposition, or of a product, a factorisation and powers
    if problem.circular and per_frequency * math.prod(coarse_sizes(problem.geometry)) / 2 <= max_flops:
        return exact_norm(problem, options)
    if problem.operator is not None and not problem.circular and structured_flops(problem.operator) <= max_flops:
        return structured_norm(problem)
    per_symbol = 4.0 * problem.kernels.size
    bounds = [BY_NAME["schur"](problem, options)]
    finest = options.num_frequencies or 2 * default_frequencies(problem.taps)
    affordable = [
        (count, refined)
        for refined in (True, False)
        for count in (finest, finest // 2, finest // 4)
        if count > max(problem.taps) - 1
        and (per_frequency + per_symbol) * _points(problem, count, refined) <= max_flops
    ]
    if affordable:
        count, refined = affordable[0]
        bounds.append(grid_norm(problem, count, refined=refined))
    else:
        prices = {
            "fantastic_four": 4.0 * groups * taps**1.5 * problem.cube,
            "tap_sum": groups * taps * problem.cube,
            "aol": 8.0 * groups * taps * problem.cube,
        }
        for name, price in prices.items():
            if price <= max_flops:
                bounds.append(BY_NAME[name](problem, options))
                max_flops -= price
    return min_of(bounds)


def _points(problem: Problem, num_frequencies: int, refined: bool) -> float:
    """How many frequencies a grid has."""
    coarse = math.prod(grid_size(problem.taps, num_frequencies)) / 2
    return coarse + (sum(CANDIDATES) * 2 ** len(problem.taps) if refined else 0)


def min_of(bounds: Sequence[Quantity]) -> Quantity:
    """Return the smallest of upper bounds, which is one."""
    values = jnp.stack([each.value for each in bounds])
    value = jnp.min(values)
    status = functools.reduce(jnp.maximum, (each.status for each in bounds))
    return Quantity(value, jnp.zeros_like(value), value, status, "upper")
