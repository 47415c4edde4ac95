"""Jacobians as dense arrays, of one sample and of many."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from spectrax import checks, explicit_axes
from spectrax.operators.jacobian import JacobianOperator, jacobian_operator
from spectrax.operators.jacobian_chunks import ChunkOptions, Sampled, dense

PyTree = Any

_MODES = ("auto", "forward", "reverse")
_ADVICE = (
    "A Jacobian for each sample is that of inference: call the network with train=False, use_running_average=True or "
    "deterministic=True, or after model.eval(), or what it has for that"
)
_RANDOM = ("random_bits", "threefry2x32", "rng_bit_generator", "rng_uniform", "random_gamma")
_COLLECTIVE = ("psum", "psum2", "psum_invariant", "pmax", "pmin", "all_gather", "all_gather_invariant", "all_to_all")


def jacobian(
    function: Callable, x: PyTree, /, *args: Any, mode: str = "auto", chunk_size: int | None = None,
    max_bytes: int | None = None, allow_training: bool = False,
) -> jax.Array:  # fmt: skip
    """Return the Jacobian of f(x, *args) with respect to x as a matrix of shape (m, n).

    Args:
        function: A function f(x, *args) of pytrees of arrays.
        x: The point.
        *args: Further arguments of f.
        mode: "forward" takes n JVPs, "reverse" m VJPs, "auto" what is cheaper: VJPs for functions with a `custom_vjp`,
            JVPs for those with a `while` loop, which have nothing else; the shorter side where it is eight times
            shorter; otherwise the side whose products, as they are traced, take fewer operations in all.
        chunk_size: How many JVPs or VJPs are taken in one batch; by default what `max_bytes` allows and a cache holds.
        max_bytes: The most memory that the computation may hold beside its arguments and its result, by a count of
            the arrays in its program; None for a tenth of the result, or half a MiB if that is more.
        allow_training: Whether f may draw random numbers, return batch statistics or reduce over a named axis, as
            networks do in training mode.

    Returns:
        The matrix; row i belongs to output entry i, with leaves in the order of `jax.tree.leaves`.

    Raises:
        TypeError: As `jacobian_operator` does; and in forward mode for a function with a `custom_vjp`.
        ValueError: If `mode` is not one of the three, `chunk_size` or `max_bytes` is below one, the smallest chunk
            takes more than `max_bytes`, f looks like a network in training mode, or f closes over an array on a mesh
            with explicit axes.

    Cost:
        min(m, n) products in mode "auto", mostly. The last chunk is a whole one and may take some lines again.

    Derivatives:
        Forward and reverse, any order, in x, in the arguments, and in what f closes over. `max_bytes` holds for the
        Jacobian alone: a derivative in reverse mode keeps what it needs from every chunk.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> sx.jacobian(lambda x: jnp.array([x[0] * x[1]]), jnp.array([2.0, 3.0])).tolist()
        [[3.0, 2.0]]
    """
    options = chunk_options(mode, lines=chunk_size, max_bytes=max_bytes)

    def run(x: PyTree, args: tuple) -> jax.Array:
        operator = checked_operator(function, x, args, mode, allow_training=allow_training)
        one = jax.tree.map(lambda leaf: leaf[None], operator.point)
        return _dense(Sampled(operator, (one, {}), of_point=True), options)[0]

    return explicit_axes.replicated(run, x, args)


def batched_jacobian(
    function: Callable, xs: PyTree, /, *args: Any, mode: str = "auto", chunk_size: int | None = None,
    max_bytes: int | None = None, argnum: int = 0, select: str | Callable[[str], bool] | None = None,
    allow_training: bool = False,
) -> jax.Array:  # fmt: skip
    """Return the Jacobians of f(x, *args) at many points, shape (batch, m, n).

    The function is linearised at many points together, products are taken in smaller chunks, of some rows or columns
    of some samples, and written where they belong in the result. Convolutions are rewritten so that a compiled loop
    runs them fast.

    Args:
        function: A function f(x, *args) of one sample.
        xs: The points, stacked along the leading axis of every leaf.
        *args: Further arguments of f, the same for all samples.
        mode: As in `jacobian`.
        chunk_size: How many samples are worked on at a time, with all their rows or columns (as many as `max_bytes`
            allows, if that is given). By default chunks are chosen: samples together as far as `max_bytes` allows, and
            products of as many of their rows or columns as a cache holds. For samples that are sharded over devices
            give their number: a loop over chunks would fetch each from where it lies.
        max_bytes: As in `jacobian`.
        argnum: Which argument to differentiate by: 0 for x, 1 for the first of `args`, such as the parameters of a
            network, whose Jacobian at each sample has a column for each parameter.
        select: Which leaves of that argument: a path such as "params/dense_0", for all that is below it, or a function
            of paths; None for all.
        allow_training: As in `jacobian`.

    Returns:
        The Jacobians, in the order of the samples, and split over explicit axes as these are. The rows of an output
        that is NaN are NaN, also where a unit counts as switched off, with slope zero, because its comparison with NaN
        failed.

    Raises:
        TypeError: As `jacobian` does.
        ValueError: As `jacobian` does; or if the leading axes differ or `argnum` or `select` chooses nothing. Not
            everything that training mode does can be seen: a model of batches that normalises by the mean of its
            batch, applied to a batch of one, cannot.

    Cost:
        batch times min(m, n) products in mode "auto", mostly, and one linearisation of each sample.

    Derivatives:
        As `jacobian`.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> sx.batched_jacobian(jnp.sin, jnp.zeros((2, 1))).tolist()
        [[[1.0]], [[1.0]]]
    """
    options = chunk_options(mode, samples=chunk_size, max_bytes=max_bytes)

    def run(xs: PyTree, args: tuple) -> jax.Array:
        sampled = sampled_jacobian(
            function, xs, args, mode=mode, argnum=argnum, select=select, allow_training=allow_training
        )
        if sampled.count == 0:
            return jnp.zeros((0, *sampled.operator.shape), sampled.operator.dtype)
        return _dense(sampled, options)

    return explicit_axes.with_automatic_axes(run, explicit_axes.leading_spec(xs), xs, args)


def chunk_options(
    mode: str, *, samples: int | None = None, lines: int | None = None, max_bytes: int | None
) -> ChunkOptions:
    """Return the options of chunks, checked."""
    checks.choice("mode", mode, _MODES)
    for name, value in (("chunk_size", samples), ("chunk_size", lines), ("max_bytes", max_bytes)):
        if value is not None:
            checks.positive_integer(name, value)
    return ChunkOptions(mode, samples, lines, max_bytes)


@dataclasses.dataclass(frozen=True)
class _OfLeaves:
    """A function of some of the leaves of one of its arguments; equal ones share their compiled programs."""

    function: Callable
    argnum: int
    treedef: Any
    chosen: tuple[bool, ...]

    def __call__(self, selected: list[jax.Array], others: list[jax.Array], x: PyTree, *args: PyTree) -> PyTree:
        own, rest = iter(selected), iter(others)
        argument = self.treedef.unflatten([next(own) if taken else next(rest) for taken in self.chosen])
        if self.argnum == 0:
            return self.function(argument, *args)
        return self.function(x, *args[: self.argnum - 1], argument, *args[self.argnum - 1 :])


def sampled_jacobian(
    function: Callable, xs: PyTree, args: tuple, *, mode: str, argnum: int, select: str | Callable[[str], bool] | None,
    allow_training: bool,
) -> Sampled:  # fmt: skip
    """Return the Jacobians of f(x, *args) at many samples, in x or in leaves of one of the arguments.

    Args:
        function: A function f(x, *args) of one sample.
        xs: The samples, along a leading axis.
        args: Further arguments.
        mode: "auto", "forward" or "reverse".
        argnum: The number of the argument to differentiate by, 0 for x.
        select: Which leaves of it, by a path or a predicate of paths; all of them if None.
        allow_training: Whether to let training mode pass.

    Returns:
        The Jacobians.

    Raises:
        TypeError: As `checked_operator`, or if `argnum` is no integer.
        ValueError: As `checked_operator`; or if the leading axes differ, or `argnum` or `select` chooses nothing.
    """
    checks.array_arguments(args)
    xs = jax.tree.map(jnp.asarray, xs)
    count = checks.leading_axis("xs", xs)
    if isinstance(argnum, bool) or not isinstance(argnum, int):
        raise TypeError(f"argnum must be an integer, got {argnum!r} of type {type(argnum).__name__}")
    if not 0 <= argnum <= len(args):
        raise ValueError(f"argnum must lie in [0, {len(args)}], the numbers of x and of the arguments, got {argnum}")

    def first(tree: PyTree) -> PyTree:
        # of no samples, zeros
        return jax.tree.map(lambda leaf: leaf[0] if count else jnp.zeros(leaf.shape[1:], leaf.dtype), tree)

    if argnum == 0 and select is None:
        operator = checked_operator(function, first(xs), args, mode, allow_training=allow_training)
        return Sampled(operator, (xs, {}), of_point=True)
    argument = xs if argnum == 0 else jax.tree.map(jnp.asarray, args[argnum - 1])
    chosen = _chosen(argument, select)
    leaves, treedef = jax.tree.flatten(argument)
    selected = [leaf for leaf, taken in zip(leaves, chosen, strict=True) if taken]
    others = [leaf for leaf, taken in zip(leaves, chosen, strict=True) if not taken]
    for leaf in selected:
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise TypeError(
                f"all leaves that argnum={argnum} and select={select!r} choose must have a floating-point or complex "
                f"dtype, got {leaf.dtype}: leave such leaves out by select="
            )
    of_leaves = _OfLeaves(function, argnum, treedef, chosen)
    if argnum == 0:
        rest = (first(others), (), *args)
        operator = checked_operator(of_leaves, first(selected), rest, mode, allow_training=allow_training)
        return Sampled(operator, (selected, {0: others}), of_point=True)
    rest = (others, first(xs), *args[: argnum - 1], *args[argnum:])
    operator = checked_operator(of_leaves, selected, rest, mode, allow_training=allow_training)
    return Sampled(operator, ((), {1: xs}), of_point=False)


def _chosen(tree: PyTree, select: str | Callable[[str], bool] | None) -> tuple[bool, ...]:
    paths = [
        jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]
    if select is None:
        return (True,) * len(paths)
    if isinstance(select, str):
        chosen = tuple(f"{path}/".startswith(f"{select}/") for path in paths)
    elif callable(select):
        chosen = tuple(bool(select(path)) for path in paths)
    else:
        raise TypeError(f"select must be a path, a predicate of paths or None, got {type(select).__name__}")
    if not any(chosen):
        raise ValueError(f"select chooses none of the leaves {', '.join(paths)}; got {select!r}")
    return chosen


def checked_operator(
    function: Callable, x: PyTree, args: tuple, mode: str, *, allow_training: bool
) -> JacobianOperator:
    """Return the Jacobian at a point as an operator, if it can be taken in this mode and is that of inference.

    Args:
        function: A function f(x, *args).
        x: The point.
        args: Further arguments.
        mode: "auto", "forward" or "reverse".
        allow_training: Whether to let training mode pass.

    Returns:
        The operator.

    Raises:
        TypeError: In forward mode for a function with a `custom_vjp`.
        ValueError: If f draws random numbers, reduces over a named axis, or returns or changes batch statistics; or if
            it closes over an array on a mesh with explicit axes.
    """
    try:
        operator = jacobian_operator(function, x, *args)
    except Exception as error:
        if type(error).__name__ != "TraceContextError":  # of Flax nnx, which counts and averages in place
            raise
        raise ValueError(f"f changes the state of its model, as training mode does: {error}. {_ADVICE}") from error
    assert isinstance(operator, JacobianOperator)
    checks.automatic_axes("f", operator.consts)
    if mode == "forward" and operator.reverse_only:
        raise TypeError("mode 'forward' needs forward-mode derivatives, which a custom_vjp inside f does not have")
    if allow_training:
        return operator
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(operator.out_struct)]
    statistics = [path for path in paths if "batch_stats" in path]
    random = sorted(operator.primitives.intersection(_RANDOM))
    collective = sorted(operator.primitives.intersection(_COLLECTIVE))
    found = (
        f"it returns batch statistics ({statistics[0]} and {len(statistics) - 1} more)" if statistics else
        f"it draws random numbers ({', '.join(random)}), as dropout does" if random else
        f"it reduces over a named axis ({', '.join(collective)}), as batch statistics do" if collective else ""
    )  # fmt: skip
    if found:
        raise ValueError(
            f"f looks like a network in training mode: {found}. {_ADVICE}; allow_training=True takes f as it is"
        )
    return operator


@functools.partial(jax.jit, static_argnames="options")
def _dense(sampled: Sampled, options: ChunkOptions) -> jax.Array:
    return dense(sampled, options)
