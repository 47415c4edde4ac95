"""How the states of penalties and transformations lie on meshes with explicit axes.

A state keeps the shardings that it comes with; the first one gets those that follow from the parameters'.
"""

from collections.abc import Callable
from typing import Any

from jax.sharding import PartitionSpec

from spectrax import explicit_axes
from spectrax.regularizers.blocks import Blocks
from spectrax.regularizers.maps import MatrixMaps
from spectrax.regularizers.tracking import Track

PyTree = Any


def updating(update: Callable) -> Callable:
    """Return the update of a gradient transformation for any mesh: updates and state keep the types they come with."""
    return explicit_axes.with_specs(
        update, lambda updates, state, *_, **named: explicit_axes.specs_of((updates, state))
    )


def of_blocks(maps: Any, params: PyTree, blocks: dict[str, Blocks]) -> dict[str, Blocks]:
    """Return the specs of blocks: split as the shorter side of the parameter's matrix, or else copies.

    Args:
        maps: What the penalty acts on. The sides of explicit matrices are known, those of other maps are not.
        params: The parameters.
        blocks: The blocks by name of the map.

    Returns:
        A `PartitionSpec` for each array of the blocks.
    """
    sides = maps.sides(params) if isinstance(maps, MatrixMaps) else {}

    def specs(name: str, block: Blocks) -> Blocks:
        own = sides.get(name) or sides.get(name.rpartition("[")[0])  # a matrix of a stack has its index behind the name
        if own is None:
            return explicit_axes.replicated_specs(block)
        spec: Any = PartitionSpec(None, min(own, key=lambda side: side[0])[1])
        return explicit_axes.replicated_specs(block)._replace(top=spec, bottom=None if block.bottom is None else spec)

    return {name: specs(name, block) for name, block in blocks.items()}


def of_tracks(maps: Any, params: PyTree, tracks: dict[str, Track]) -> dict[str, Track]:
    """Return the specs of tracks: their arrays are split as the first matrix that has a side of their length.

    Args:
        maps: As in `of_blocks`.
        params: The parameters.
        tracks: The tracks by shape of the matrices.

    Returns:
        A `PartitionSpec` for each array of the tracks.
    """
    sides = maps.sides(params) if isinstance(maps, MatrixMaps) else {}
    entries: dict[int, Any] = {}
    for pair in sides.values():
        for length, entry in pair:
            entries.setdefault(length, entry)

    def specs(track: Track) -> Track:
        whole, lower = explicit_axes.replicated_specs(track), track.factor.lower
        if lower is not None:
            spec: Any = PartitionSpec(None, entries.get(lower.shape[-1]))
            whole = whole._replace(factor=whole.factor._replace(lower=spec))
        return whole._replace(sketch=PartitionSpec(None, None, entries.get(track.sketch.shape[-1])))

    return {label: specs(track) for label, track in tracks.items()}
