"""Dense Jacobians at many points, in chunks: how large they are, and the loop over them."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from spectrax import vectors
from spectrax.operators.jacobian import JacobianOperator
from spectrax.programs.costs import array_bytes, operations, peak_bytes
from spectrax.programs.equations import equations
from spectrax.programs.separation import Separated

PyTree = Any

CHUNK_BYTES = 2**18  # what the products of one chunk may hold if nobody says more: what stays in a processor's cache,
CHUNK_SHARE = 64  # ... or this part of the result, if that is more
MEMORY_SHARE = 10  # all temporaries together are at most this part of the result if nobody says more,
MEMORY_BYTES = 2**19  # ... or this, if that is more
DECIDED_BY_SHAPE = 8  # how many times shorter a side must be for the costs of the two programs not to matter
OVERHEAD_BYTES = 2**13  # counters, indices and unit vectors


@dataclasses.dataclass(frozen=True)
class ChunkOptions:
    """What was asked for.

    Attributes:
        mode: "auto", "forward" or "reverse".
        samples: How many points at a time, or None.
        lines: How many columns or rows at a time, or None.
        max_bytes: The bound of the temporary memory, or None.
    """

    mode: str = "auto"
    samples: int | None = None
    lines: int | None = None
    max_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class Chunks:
    """How the work is cut up.

    Attributes:
        together: At how many points the function is linearised at once.
        samples: For how many of them products are taken at once.
        lines: With how many unit vectors, for each.
    """

    together: int
    samples: int
    lines: int


@functools.partial(jax.tree_util.register_dataclass, data_fields=("operator", "samples"), meta_fields=("of_point",))
@dataclasses.dataclass(frozen=True)
class Sampled:
    """A Jacobian at many samples.

    Attributes:
        operator: The Jacobian at any of them.
        samples: What differs, along a leading axis: the point (or nothing), and some of the arguments by their number.
        of_point: Whether the point differs.
    """

    operator: JacobianOperator
    samples: tuple[PyTree, dict[int, PyTree]]
    of_point: bool

    def at(self, sample: tuple[PyTree, dict[int, PyTree]]) -> JacobianOperator:
        """Return the operator at one sample."""
        point, changed = sample
        args = tuple(changed.get(place, own) for place, own in enumerate(self.operator.args))
        return self.operator.at(point if self.of_point else self.operator.point, args)

    @property
    def count(self) -> int:
        """The number of samples."""
        return vectors.count(self.samples)

    @property
    def struct(self) -> PyTree:
        """The structure of one sample."""
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), self.samples)


class Lines:
    """The columns (forward) or rows (reverse) of Jacobians as products with unit vectors.

    Attributes:
        reverse: Whether products are taken with the adjoint.
        count: How many unit vectors there are.
        program: The product, apart from what it needs from the sample.
    """

    def __init__(self, sampled: Sampled, mode: str):
        """Trace the products.

        Args:
            sampled: The Jacobians.
            mode: "forward" or "reverse".
        """
        operator = sampled.operator
        self.reverse = mode == "reverse"
        self.shape, self.dtype = operator.shape, operator.dtype
        self.struct = operator.out_struct if self.reverse else operator.in_struct
        self.count = vectors.size(self.struct)
        given = (operator.consts, operator.point, operator.args)
        self.program = Separated(
            lambda sample: sampled.at(sample).products()[int(self.reverse)], sampled.struct, self.struct, given
        )

    @property
    def cost(self) -> float:
        """The operations of all lines of one Jacobian."""
        return self.count * operations(self.program.linear_program)

    @property
    def line_bytes(self) -> int:
        """What one product holds: its program, or its image and a copy of the largest leaf to write into the result."""
        images = [array_bytes(leaf) for leaf in jax.tree.leaves(self.program.out_struct)]
        return max(peak_bytes(self.program.linear_program), sum(images) + max(images))

    def bytes(self, chunks: Chunks, kept: int = 0) -> int:
        """Return about the most temporary memory that the loops take, by shapes alone, with so many bytes a sample."""
        program = self.program
        local = sum(array_bytes(leaf) for leaf in program.local_struct)
        point = sum(array_bytes(variable.aval) for variable in program.point_program.invars)
        sliced = local if chunks.samples < chunks.together else 0
        products = chunks.samples * (chunks.lines * self.line_bytes + sliced)
        return (
            OVERHEAD_BYTES
            + sum(array_bytes(leaf) for leaf in program.made)
            + chunks.together * (point + local + kept + self.shape[0] * (self.dtype.itemsize + 1))
            + max(chunks.together * peak_bytes(program.point_program), products)
        )

    def chunks(self, count: int, options: ChunkOptions, *, default: int, kept: int = 0) -> Chunks:
        """Return the chunks that keep within the bound.

        Args:
            count: The number of samples.
            options: What was asked for.
            default: The bound where `options` has none; what is above it even in the smallest chunks is not an error.
            kept: The bytes that each sample of those that are linearised together takes beside the products.

        Returns:
            As much at a time as the bound allows, but products for no more than `CHUNK_BYTES` (or the result's share of
            that), which a cache holds, unless the numbers of samples or lines were given.

        Raises:
            ValueError: If the smallest chunk is above `options.max_bytes`.
        """
        bound = options.max_bytes
        limit = default if bound is None else bound
        samples = None if options.samples is None else min(options.samples, count)
        lines = None if options.lines is None else min(options.lines, self.count)
        if bound is None and samples is not None:
            return Chunks(samples, samples, lines or self.count)
        least = Chunks(samples or 1, samples or 1, lines or 1)
        if bound is not None and self.bytes(least, kept) > bound:
            what = (
                f"{least.lines} {'row' if self.reverse else 'column'}(s) of the Jacobians of {least.samples} sample(s)"
            )
            raise ValueError(
                f"max_bytes={bound} is too small: {what} take about {self.bytes(least, kept)} bytes of temporary memory"
            )
        result = count * math.prod(self.shape) * self.dtype.itemsize
        at_once = max(max(CHUNK_BYTES, result // CHUNK_SHARE) // self.line_bytes, 1)

        def fits(**sizes: int) -> bool:
            return self.bytes(dataclasses.replace(least, **sizes), kept) <= limit

        if lines is None:
            most = _last(lambda size: fits(lines=size), 1, min(at_once, self.count))
            lines = _even(self.count, most)
        if samples is not None:
            return Chunks(samples, samples, lines)
        most = min(max(at_once // self.count, 1), count) if lines == self.count else 1
        samples = _last(lambda size: fits(lines=lines, samples=size, together=size), 1, most)
        together = _last(lambda size: fits(lines=lines, samples=samples, together=size), samples, count)
        groups = -(-count // together)
        choices = [
            Chunks(-(-count // number), size, lines)
            for number in range(groups, groups + 4)
            for size in range(min(samples, -(-count // number)), samples // 2, -1)
        ]
        return min(choices, key=lambda c: -(-count // c.together) * -(-c.together // c.samples) * c.samples)

    def image(self, local: list[jax.Array], start: Any, samples: int, count: int) -> PyTree:
        """Return the products with unit vectors, from one number on, at the points of a stack."""
        units, offset, leaves = [], 0, jax.tree.leaves(self.struct)
        for leaf in leaves:
            size = math.prod(leaf.shape)
            place = offset + jnp.arange(size, dtype=jnp.int32)
            here = (start + jnp.arange(count, dtype=jnp.int32))[:, None] == place
            units.append(here.astype(leaf.dtype).reshape(count, *leaf.shape))
            offset += size
        stack = jax.tree.structure(self.struct).unflatten(units)

        def of_sample(own: list[jax.Array]) -> PyTree:
            return jax.vmap(lambda unit: self.program.apply(own, unit))(stack)

        return jax.vmap(of_sample, axis_size=samples)(local)

    def write(self, matrices: jax.Array, image: PyTree, sample: Any, start: Any) -> jax.Array:
        """Set lines of Jacobians, from one sample and one line on, to what `image` returned."""
        offset, zero = 0, jnp.zeros((), jnp.int32)
        for leaf in jax.tree.leaves(image):
            block = leaf.reshape(*leaf.shape[:2], -1).astype(self.dtype)
            size = block.shape[-1]
            block = block.conj() if self.reverse else jnp.swapaxes(block, 1, 2)
            place = (start, zero + offset) if self.reverse else (zero + offset, start)
            matrices = jax.lax.dynamic_update_slice(matrices, block, (sample, *place))
            offset += size
        return matrices


def lines_of(sampled: Sampled, mode: str) -> Lines:
    """Return the cheaper way to make Jacobians dense, decided from shapes and traced programs.

    With (m, n) outputs and inputs, "auto" takes rows, by VJPs, where only a `custom_vjp` is known; columns, by JVPs,
    where a `while` that has no reverse mode is in the way; the shorter side where it is `DECIDED_BY_SHAPE` times
    shorter; and otherwise the side whose products together take fewer operations.

    Args:
        sampled: The Jacobians.
        mode: "auto", "forward" or "reverse".

    Returns:
        The columns or the rows.
    """
    operator = sampled.operator
    m, n = operator.shape
    if mode == "auto" and operator.reverse_only:
        mode = "reverse"
    elif mode == "auto" and "while" in operator.primitives:
        forward = Lines(sampled, "forward")
        if any(equation.primitive.name == "while" for equation in equations(forward.program.linear_program)):
            return forward
    if mode == "auto" and DECIDED_BY_SHAPE * min(m, n) <= max(m, n):
        mode = "reverse" if m < n else "forward"
    if mode != "auto":
        return Lines(sampled, mode)
    forward, reverse = Lines(sampled, "forward"), Lines(sampled, "reverse")
    return reverse if reverse.cost < forward.cost else forward


def dense(sampled: Sampled, options: ChunkOptions) -> jax.Array:
    """Return all Jacobians, shape (samples, m, n)."""
    lines = lines_of(sampled, options.mode)
    empty = jnp.zeros((sampled.count, *lines.shape), lines.dtype)
    chunks = lines.chunks(sampled.count, options, default=max(empty.nbytes // MEMORY_SHARE, MEMORY_BYTES))

    def group(matrices: jax.Array, first: Any, local: list[jax.Array], values: jax.Array) -> jax.Array:
        def step(matrices: jax.Array, image: PyTree, sample: Any, line: Any) -> jax.Array:
            return lines.write(matrices, image, first + sample, line)

        undefined = jnp.isnan(values)[:, :, None]

        def with_nan(matrices: jax.Array) -> jax.Array:
            own = jax.lax.dynamic_slice_in_dim(matrices, first, chunks.together)
            own = jnp.where(undefined, jnp.asarray(jnp.nan, lines.dtype), own)
            return jax.lax.dynamic_update_slice_in_dim(matrices, own, first, 0)

        matrices = over_lines(lines, local, chunks, matrices, step)
        # rarely needed, and as a part of each `write` it takes a tenth of the time
        return jax.lax.cond(jnp.any(undefined), with_nan, lambda matrices: matrices, matrices)

    return over_groups(lines, sampled, chunks, empty, group)


def over_groups(lines: Lines, sampled: Sampled, chunks: Chunks, carry: PyTree, group: Callable[..., PyTree]) -> PyTree:
    """Linearise at some samples after the others.

    Args:
        lines: The products.
        sampled: The Jacobians.
        chunks: How many samples together. Where that does not divide the whole, the last group overlaps.
        carry: What is handed on.
        group: Takes it, the number of the first sample, what `lines.image` needs of the samples, and the function's
            values there, shape (samples, m); returns it.

    Returns:
        What the last group returns.
    """

    def body(carry: PyTree, number: Any) -> tuple[PyTree, None]:
        first, whole = _start(number, chunks.together, sampled.count), chunks.together == sampled.count
        own = sampled.samples if whole else vectors.rows(sampled.samples, first, chunks.together)
        values = jax.vmap(lambda sample: _joined(sampled.at(sample).value(), lines.dtype))(own)
        return group(carry, first, jax.vmap(lines.program.at)(own), values), None

    return _loop(body, carry, -(-sampled.count // chunks.together))


def over_lines(
    lines: Lines,
    local: list[jax.Array],
    chunks: Chunks,
    carry: PyTree,
    step: Callable[[PyTree, PyTree, Any, Any], PyTree],
) -> PyTree:
    """Take the products with all unit vectors at the samples of a group, some after the others.

    Args:
        lines: The products.
        local: What they need of the samples.
        chunks: How many samples and lines at a time. Where that does not divide the whole, the last chunk overlaps.
        carry: What is handed on.
        step: Takes it, the images, and the numbers of the first sample in the group and of the first line; returns it.

    Returns:
        What the last step returns.
    """
    rounds = -(-lines.count // chunks.lines)

    def body(carry: PyTree, number: Any) -> tuple[PyTree, None]:
        sample = _start(number // rounds, chunks.samples, chunks.together)
        line = _start(number % rounds, chunks.lines, lines.count)
        here = local if chunks.samples == chunks.together else vectors.rows(local, sample, chunks.samples)
        return step(carry, lines.image(here, line, chunks.samples, chunks.lines), sample, line), None

    return _loop(body, carry, rounds * -(-chunks.together // chunks.samples))


def _joined(vector: PyTree, dtype: Any) -> jax.Array:
    return jnp.concatenate([leaf.reshape(-1).astype(dtype) for leaf in jax.tree.leaves(vector)])


def _loop(body: Callable, carry: PyTree, steps: int) -> PyTree:
    if steps == 1:
        return body(carry, jnp.zeros((), jnp.int32))[0]
    return jax.lax.scan(body, carry, jnp.arange(steps, dtype=jnp.int32))[0]


def _start(number: Any, size: int, count: int) -> Any:
    """Return where a chunk starts; the last one starts early enough to be whole."""
    return jnp.minimum(number * size, count - size)


def _last(holds: Callable[[int], bool], low: int, high: int) -> int:
    """Return the last number from `low` to `high` for which something holds that stops holding once; `low` if none."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def _even(count: int, size: int) -> int:
    """Return a size of chunks not larger than `size`, of which as many are needed, with the least overlap."""
    return -(-count // -(-count // size))
