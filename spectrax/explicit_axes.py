"""Meshes with explicit axes, on which types tell how arrays lie: functions that work inside on automatic ones."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, cast

import jax
from jax import core as jax_core
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

PyTree = Any


def explicit_mesh(tree: PyTree) -> Mesh | AbstractMesh | None:
    """Return the mesh with explicit axes that arrays lie on, None if there is none; under a trace an abstract one."""
    found = None
    for leaf in jax.tree.leaves(tree):
        mesh = _typed_mesh(leaf)
        if mesh is not None and isinstance(leaf, jax_core.Tracer):
            return mesh
        if mesh is not None and found is None:
            found = cast(NamedSharding, leaf.sharding).mesh
    context = jax.sharding.get_abstract_mesh()  # in which whatever is computed is on that mesh
    return context if found is None and context.explicit_axes else found


def specs_of(tree: PyTree) -> PyTree:
    """Return a `PartitionSpec` for each leaf: that of its type on explicit axes, an empty one for anything else."""

    def spec(leaf: Any) -> PartitionSpec:
        return PartitionSpec() if _typed_mesh(leaf) is None else jax.typeof(leaf).sharding.spec

    return jax.tree.map(spec, tree)


def leading_spec(tree: PyTree) -> PartitionSpec:
    """Return the spec of arrays that are split along their leading axis as the first leaf that is split so."""
    leads = [spec[0] for spec in jax.tree.leaves(specs_of(tree)) if len(spec) and spec[0] is not None]
    return PartitionSpec(*leads[:1])


def with_automatic_axes(function: Callable, out_specs: PyTree | Callable, *arguments: PyTree) -> PyTree:
    """Call a function, and where an argument lies on a mesh with explicit axes, let the compiler place what is inside.

    Args:
        function: What to call. It may not close over arrays on explicit axes.
        out_specs: A `PartitionSpec` for each array of the result, or a prefix of these; or a function of the
            result, whose arrays are on automatic axes then, that returns them.
        *arguments: Pytrees of arrays; what is no array is handed on as it is.

    Returns:
        The result of the function, laid out by `out_specs` where axes are explicit.

    Raises:
        ValueError: If the function closes over an array on explicit axes.
    """
    mesh = explicit_mesh(arguments)
    if mesh is None:
        return function(*arguments)
    abstract = mesh.abstract_mesh if isinstance(mesh, Mesh) else mesh
    automatic = abstract.update_axis_types(dict.fromkeys(abstract.axis_names, AxisType.Auto))
    with _context(mesh):
        with jax.sharding.use_abstract_mesh(automatic):
            inside = jax.tree.map(lambda leaf: _resharded(leaf, PartitionSpec()), arguments)
            try:
                result = function(*inside)
            except ValueError as error:
                if "should match the aval mesh" not in str(error):
                    raise
                raise ValueError(
                    "what a function closes over lies on a mesh with explicit axes, which are automatic inside: give "
                    "the function its arrays as arguments"
                ) from error
        specs = out_specs(result) if callable(out_specs) else out_specs
        specs = jax.tree.map(lambda spec: _explicit_part(spec, mesh), specs)
        return jax.tree.map(_resharded, result, jax.tree.broadcast(specs, result))


def _context(mesh: Mesh | AbstractMesh) -> contextlib.AbstractContextManager:
    """Return the context of a mesh; the abstract one suffices, and is all that JAX allows, inside of a trace."""
    if isinstance(mesh, Mesh):
        try:
            return jax.set_mesh(mesh)
        except ValueError:
            mesh = mesh.abstract_mesh
    return jax.sharding.use_abstract_mesh(mesh)


def _typed_mesh(leaf: Any) -> AbstractMesh | None:
    """Return the mesh with explicit axes that the type of an array tells, None if it tells none."""
    mesh = jax.typeof(leaf).sharding.mesh if isinstance(leaf, jax.Array) else None
    return mesh if getattr(mesh, "explicit_axes", ()) else None


def _explicit_part(spec: PartitionSpec, mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """Return a spec without the axes of a mesh that are not explicit, over which the compiler places arrays."""
    names = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))

    def kept(part: Any) -> Any:
        entries = () if part is None else (part,) if isinstance(part, str) else part
        return tuple(name for name in entries if names[name] == AxisType.Explicit) or None

    return PartitionSpec(*map(kept, spec))


def _resharded(leaf: Any, spec: PartitionSpec) -> Any:
    return jax.sharding.reshard(leaf, spec) if isinstance(leaf, jax.Array) else leaf


def replicated(function: Callable, *arguments: PyTree) -> PyTree:
    """Call a function as `with_automatic_axes` does, with a copy of its results on each device."""
    return with_automatic_axes(function, PartitionSpec(), *arguments)


def replicated_specs(tree: PyTree) -> PyTree:
    """Return the specs of arrays of which each device has a copy."""
    return jax.tree.map(lambda _: PartitionSpec(), tree)


def with_init_specs(
    init: Callable, rule: Callable[[PyTree, PyTree], PyTree] = lambda data, state: replicated_specs(state)
) -> Callable:
    """Return a function init(data, *rest, **named) -> state that takes arrays on any mesh.

    Args:
        init: The function.
        rule: A function of the data and of the state that gives a `PartitionSpec` for each array of the state.

    Returns:
        The function, whose state is laid out so where an argument lies on a mesh with explicit axes.
    """

    @functools.wraps(init)
    def started(data: PyTree, *rest: PyTree, **named: PyTree) -> Any:
        return with_automatic_axes(
            lambda data, rest, named: init(data, *rest, **named), functools.partial(rule, data), data, rest, named
        )

    return started


def with_specs(function: Callable, specs: Callable[..., PyTree]) -> Callable:
    """Return a function that takes arrays on any mesh, and whose results are laid out as arguments of it are.

    Args:
        function: The function.
        specs: A function of the same arguments that gives the specs of the results, or a prefix of them.

    Returns:
        The function, whose results are laid out so where an argument lies on a mesh with explicit axes.
    """

    @functools.wraps(function)
    def stepped(*given: PyTree, **named: PyTree) -> Any:
        return with_automatic_axes(
            lambda given, named: function(*given, **named), lambda _: specs(*given, **named), given, named
        )

    return stepped
