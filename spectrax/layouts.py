"""How vectors lie on the devices of a mesh: named shardings of their leaves, and sums over all of them at once."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import core as jax_core
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from spectrax import explicit_axes

PyTree = Any


class Layout(NamedTuple):
    """The shardings of a vector's leaves on one mesh; hashable, so that it may be static.

    Attributes:
        mesh: The mesh.
        specs: One for each leaf, in the order of the flattened vector.
    """

    mesh: Mesh | AbstractMesh
    specs: tuple[PartitionSpec, ...]

    @property
    def axes(self) -> tuple[str, ...]:
        """The names of the mesh's axes over which some leaf is split, in the order of the mesh."""
        used = {name for spec in self.specs for name in _names(spec)}
        return tuple(name for name in self.mesh.axis_names if name in used)


class Sides(NamedTuple):
    """How right and left vectors lie on devices; None for a side of which that is not known."""

    right: Layout | None = None
    left: Layout | None = None


def sharding_of(array: Any) -> NamedSharding | None:
    """Return the named sharding of an array over more than one device, where it is known; None otherwise.

    That of a traced array is known where the axes of its mesh are explicit. The mesh that is returned has automatic
    axes in either case, so that a structure with the sharding can be traced without being typed by it.
    """
    sharding = jax.typeof(array).sharding if isinstance(array, jax_core.Tracer) else getattr(array, "sharding", None)
    if not isinstance(sharding, NamedSharding) or all(part is None for part in sharding.spec):
        return None
    return on_automatic_axes(sharding)


def on_automatic_axes(sharding: NamedSharding) -> NamedSharding:
    """Return the same sharding on a mesh with automatic axes."""
    mesh, automatic = sharding.mesh, (AxisType.Auto,) * len(sharding.mesh.axis_names)
    if mesh.axis_types != automatic:
        if isinstance(mesh, Mesh):
            mesh = Mesh(mesh.devices, mesh.axis_names, axis_types=automatic)
        else:
            mesh = AbstractMesh(mesh.axis_sizes, mesh.axis_names, axis_types=automatic)
    return NamedSharding(mesh, sharding.spec)


def on_every_device(function: Callable, *arguments: PyTree) -> PyTree:
    """Call a function, and where an argument lies on a mesh with automatic axes, have each device do all of it.

    For factorisations and other decompositions: the compiler would split these into thousands of small exchanges, which
    take longer than the work itself, and minutes to compile.

    Args:
        function: What to call; its arrays are arguments and none that it closes over.
        *arguments: Pytrees of arrays, which are gathered.

    Returns:
        The result of the function, with a copy on each device.
    """
    mesh = _automatic_mesh(arguments)
    if mesh is None:
        return function(*arguments)
    return _by_each(function, mesh)(*arguments)


@functools.lru_cache(maxsize=64)
def _by_each(function: Callable, mesh: Mesh | AbstractMesh) -> Callable:
    """Return a function that each device calls on all; one program outside of `jit`, where each operation would be."""
    none = PartitionSpec()
    mapped = jax.shard_map(function, mesh=mesh, in_specs=none, out_specs=none, check_vma=False)
    return jax.jit(mapped, inline=True)


def piecewise(function: Callable, coefficients: jax.Array, stack: PyTree, layout: Layout | None) -> PyTree | None:
    """Call a function of a matrix and a stack of vectors that keeps to the entries that it is handed on each device.

    Args:
        function: Takes the coefficients and the part of a stack on one device, and returns a stack of the same places.
        coefficients: What each device has a copy of.
        stack: A stack of vectors.
        layout: How the vectors lie; None where that is not known.

    Returns:
        A stack of vectors of the layout, or None where the stack is on several devices and it is not known how.
    """
    if layout is None:
        return None if _automatic_mesh(stack) or explicit_axes.explicit_mesh(stack) else function(coefficients, stack)
    specs = jax.tree.structure(stack).unflatten([_with_lead(spec) for spec in layout.specs])
    return jax.shard_map(
        function, mesh=_inner(layout.mesh), in_specs=(PartitionSpec(), specs), out_specs=specs, check_vma=False
    )(coefficients, stack)


def _automatic_mesh(tree: PyTree) -> Mesh | AbstractMesh | None:
    """Return the mesh of several devices, all of its axes automatic, that arrays lie on; None if there is none."""
    for leaf in jax.tree.leaves(tree):
        sharding = jax.typeof(leaf).sharding if isinstance(leaf, jax_core.Tracer) else getattr(leaf, "sharding", None)
        if not isinstance(sharding, NamedSharding) or sharding.mesh.size <= 1:
            continue
        if all(kind == AxisType.Auto for kind in sharding.mesh.axis_types):
            return _inner(sharding.mesh)
    return None


def stack_specs(struct: PyTree) -> PyTree:
    """Return the specs of a stack of vectors: those of the structure's leaves, with a leading axis."""
    return jax.tree.map(
        lambda leaf: PartitionSpec() if leaf.sharding is None else _with_lead(leaf.sharding.spec), struct
    )


def matrix_shardings(matrix: Any) -> tuple[NamedSharding | None, NamedSharding | None]:
    """Return the shardings of the vectors that index the rows and the columns of a matrix, where its own is known."""
    sharding = sharding_of(matrix)
    if sharding is None:
        return None, None
    rows, columns = (*sharding.spec, None, None)[:2]
    return NamedSharding(sharding.mesh, PartitionSpec(rows)), NamedSharding(sharding.mesh, PartitionSpec(columns))


def placed(struct: PyTree, arrays: PyTree) -> PyTree:
    """Return a structure that also says where its leaves lie: as those of the arrays, where that is known."""

    def leaf_placed(leaf: jax.ShapeDtypeStruct, array: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding_of(array))

    return jax.tree.map(leaf_placed, struct, arrays)


def layout_of(struct: PyTree) -> Layout | None:
    """Return the layout of the vectors of a structure, from the shardings of its leaves.

    Args:
        struct: A pytree of `jax.ShapeDtypeStruct`. A leaf without a sharding has a copy on each device.

    Returns:
        The layout, or None if no leaf has a sharding, or they are on different meshes.
    """
    shardings = [leaf.sharding for leaf in jax.tree.leaves(struct)]
    meshes = {sharding.mesh for sharding in shardings if isinstance(sharding, NamedSharding)}
    if len(meshes) != 1:
        return None
    mesh = meshes.pop()
    layout = Layout(mesh, tuple(PartitionSpec() if sharding is None else sharding.spec for sharding in shardings))
    return layout if layout.axes else None


def sides_of(right: PyTree, left: PyTree) -> Sides:
    """Return the layouts of two structures."""
    return Sides(layout_of(right), layout_of(left))


def constrain(vector: PyTree, layout: Layout | None, *, stacked: bool = False) -> PyTree:
    """Return a vector, or a stack of vectors, that is laid out as said; as it is where nothing is."""
    if layout is None:
        return vector
    mesh = _inner(layout.mesh)
    leaves, treedef = jax.tree.flatten(vector)
    placed = [
        jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, _with_lead(spec) if stacked else spec))
        for leaf, spec in zip(leaves, layout.specs, strict=True)
    ]
    return treedef.unflatten(placed)


def summed(function: Callable[..., jax.Array], layout: Layout | None) -> Callable[..., jax.Array]:
    """Return a function of stacks whose result is a sum over entries, with one all-reduce in all.

    Each device sums up what it holds, leaves that others hold as well once only, and then the devices do. The compiler
    by itself would reduce leaves that are split differently one by one.

    Args:
        function: Takes stacks of vectors of that layout and returns an array that is linear in the entries' products.
        layout: The layout; None to leave it to the compiler.

    Returns:
        The function.
    """
    if layout is None:
        return function
    axes = layout.axes

    def local(*stacks: PyTree) -> jax.Array:
        totals = None
        for place, spec in enumerate(layout.specs):
            part = function(*([jax.tree.leaves(stack)[place]] for stack in stacks))
            absent = [name for name in axes if name not in _names(spec)]
            if absent:
                first = functools.reduce(jnp.logical_and, [jax.lax.axis_index(name) == 0 for name in absent])
                part = jnp.where(first, part, jnp.zeros_like(part))
            totals = part if totals is None else totals + part
        return jax.lax.psum(totals, axes)

    def apply(*stacks: PyTree) -> jax.Array:
        specs = tuple(
            jax.tree.structure(stack).unflatten([_with_lead(spec) for spec in layout.specs]) for stack in stacks
        )
        return jax.shard_map(local, mesh=_inner(layout.mesh), in_specs=specs, out_specs=PartitionSpec())(*stacks)

    return apply


def _inner(mesh: Mesh | AbstractMesh) -> Mesh | AbstractMesh:
    """Return the mesh as the surrounding program sees it, whose axes may be of other types."""
    current = jax.sharding.get_abstract_mesh()
    return current if set(mesh.axis_names) <= set(current.axis_names) else mesh


def _with_lead(spec: PartitionSpec) -> PartitionSpec:
    return PartitionSpec(None, *spec)


def _names(spec: PartitionSpec) -> set[str]:
    return {name for part in spec if part is not None for name in ((part,) if isinstance(part, str) else part)}
