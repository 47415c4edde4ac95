"""Checkpoints of Orbax: the tree from its metadata, and then one array at a time."""

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from spectrax.integrations.weights.stored import StoredArray
from spectrax.report.extras import require

_MARKS = ("_METADATA", "manifest.ocdbt")
_PURPOSE = "reading Orbax checkpoints"


def is_tree(path: Path) -> bool:
    """Whether a directory is one pytree as Orbax stores it."""
    return path.is_dir() and any((path / mark).is_file() for mark in _MARKS)


def items(path: Path) -> dict[str, Path]:
    """Find the pytrees of a checkpoint: the directory itself, or those of a `CheckpointManager`'s step by their names.

    Args:
        path: A directory.

    Returns:
        The directories by what their arrays' names begin with; none where there is no checkpoint.
    """
    if is_tree(path):
        return {"": path}
    found = {entry.name: entry for entry in sorted(path.iterdir()) if is_tree(entry) and not entry.name.isdecimal()}
    return {"": next(iter(found.values()))} if len(found) == 1 else found


def read_trees(path: Path) -> list[StoredArray]:
    """List the arrays of a checkpoint from its metadata.

    Args:
        path: The directory.

    Returns:
        The arrays, named by the parts of their paths joined by "/".

    Raises:
        ValueError: If the metadata cannot be read.
    """
    orbax = require("orbax.checkpoint", _PURPOSE)
    found = []
    for prefix, tree in items(path).items():
        try:
            with orbax.PyTreeCheckpointer() as checkpointer:
                metadata = checkpointer.metadata(tree.absolute())
            metadata = getattr(metadata, "item_metadata", metadata)
            content = getattr(metadata, "tree", metadata)
            leaves = jax.tree_util.tree_flatten_with_path(content)[0]
        except Exception as error:  # whatever Orbax and its file formats raise
            raise ValueError(
                f"{tree} cannot be read as an Orbax checkpoint: {error or type(error).__name__}"
            ) from error
        for place, (keys, leaf) in enumerate(leaves):
            shape, dtype = getattr(leaf, "shape", None), getattr(leaf, "dtype", None)
            if shape is None or dtype is None:
                continue  # a string, or nothing
            parts = [_part(key) for key in keys]
            name = "/".join(str(part) for part in ([prefix] if prefix else []) + parts)
            load = functools.partial(_load, tree, content, place)
            found.append(StoredArray(name, tuple(map(int, shape)), str(np.dtype(dtype)), load))
    return found


def _part(key: Any) -> Any:
    return getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))


def _load(path: Path, tree: Any, place: int) -> np.ndarray:
    """Restore the leaf at a place in the order of leaves; the others stay empty."""
    orbax = require("orbax.checkpoint", _PURPOSE)
    structure = jax.tree.structure(tree)
    leaves: list[Any] = [orbax.PLACEHOLDER] * structure.num_leaves
    leaves[place] = 0
    arguments = orbax.RestoreArgs(restore_type=np.ndarray)
    with orbax.PyTreeCheckpointer() as checkpointer:
        found = checkpointer.restore(
            path.absolute(),
            args=orbax.args.PyTreeRestore(
                item=jax.tree.unflatten(structure, leaves),
                restore_args=jax.tree.unflatten(structure, [arguments] * structure.num_leaves),
            ),
        )
    return np.asarray(jax.tree.leaves(found)[place])
