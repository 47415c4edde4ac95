"""Checkpoints of pytrees by Orbax.

A checkpoint is a directory that plain Orbax restores, without spectrax:
`orbax.checkpoint.StandardCheckpointer().restore(path)`. Orbax writes into a temporary directory and renames it, so a
directory with a checkpoint's name is a whole checkpoint, whatever happened to the process that wrote it.
"""

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectrax.report.extras import require

_PURPOSE = "saving and restoring checkpoints"


def save(path: str | Path, tree: Any, /, *, overwrite: bool = False) -> Path:
    """Save a pytree of arrays as an Orbax checkpoint.

    Typed PRNG keys are stored as their raw `uint32` data.

    Args:
        path: The directory to make; its parents are made where they are missing.
        tree: Nested dicts, lists, tuples and NamedTuples of JAX arrays, NumPy arrays and Python numbers.
        overwrite: Replace a checkpoint that is there; otherwise it is an error.

    Returns:
        The absolute path of the checkpoint. When the function returns, the checkpoint is complete.

    Raises:
        FileExistsError: If `path` exists and `overwrite` is False.
        ImportError: If Orbax is not installed (`pip install "jax-spectrax[demo]"`).

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save(folder + "/first", {"kernel": jnp.ones((2, 3))})
        ...     restore(path)["kernel"].shape
        (2, 3)
    """
    orbax = require("orbax.checkpoint", _PURPOSE)
    path = Path(path).absolute()
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; pass overwrite=True to replace it")
    path.parent.mkdir(parents=True, exist_ok=True)
    with orbax.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, jax.tree.map(_raw, tree), force=overwrite)
    return path  # leaving the context has waited for the write


def restore(path: str | Path, /, *, like: Any = None) -> Any:
    """Restore a pytree from an Orbax checkpoint.

    Args:
        path: The directory of the checkpoint.
        like: A pytree of arrays or `jax.ShapeDtypeStruct` with the structure and shapes that are expected; what comes
            back has its NamedTuples, dtypes and typed PRNG keys, and lies on the default device. Without it,
            NamedTuples come back as dicts or lists and keys as raw `uint32` data.

    Returns:
        The pytree.

    Raises:
        FileNotFoundError: If there is no checkpoint at `path`.
        ValueError: If the checkpoint's structure or a shape is not that of `like`.
        ImportError: If Orbax is not installed (`pip install "jax-spectrax[demo]"`).

    Example:
        >>> import tempfile, jax, jax.numpy as jnp
        >>> tree = {"key": jax.random.key(1), "step": jnp.int32(3)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     back = restore(save(folder + "/first", tree), like=tree)
        >>> bool(back["key"] == tree["key"]), int(back["step"])
        (True, 3)
    """
    orbax = require("orbax.checkpoint", _PURPOSE)
    path = Path(path).absolute()
    if not path.is_dir():
        raise FileNotFoundError(f"there is no checkpoint at {path}")
    with orbax.StandardCheckpointer() as checkpointer:
        if like is None:
            return checkpointer.restore(path)
        restored = checkpointer.restore(path, jax.tree.map(_abstract, like))
    return jax.tree.map(_typed, like, restored)


def checkpoint_steps(directory: str | Path, /) -> list[int]:
    """List the complete checkpoints of a directory whose entries are named by their step.

    Args:
        directory: The directory; it may be missing.

    Returns:
        The steps, ascending. Unfinished checkpoints have other names and are left out.

    Example:
        >>> checkpoint_steps("no/such/directory")
        []
    """
    directory = Path(directory)
    if not directory.is_dir():
        return []
    return sorted(int(entry.name) for entry in directory.iterdir() if entry.is_dir() and entry.name.isdecimal())


def save_step(directory: str | Path, step: int, tree: Any, /, *, keep: int) -> Path:
    """Save a checkpoint named by its step, then delete all but the newest ones.

    The older ones go only when the new one is complete, so there is a good checkpoint at every moment.

    Args:
        directory: The directory that holds one run's checkpoints.
        step: The step, the checkpoint's name. A checkpoint of the same step is left as it is.
        tree: The pytree to save.
        keep: How many checkpoints stay.

    Returns:
        The path of the checkpoint.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for step in (1, 2, 3):
        ...         path = save_step(folder, step, {"w": jnp.ones(2)}, keep=2)
        ...     checkpoint_steps(folder)
        [2, 3]
    """
    directory = Path(directory).absolute()
    path = directory / str(step)
    if not path.exists():
        path = save(path, tree)
    for old in checkpoint_steps(directory)[:-keep]:
        shutil.rmtree(directory / str(old))
    return path


def _is_typed_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _raw(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_typed_key(leaf) else leaf


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    if _is_typed_key(leaf):
        return jax.eval_shape(jax.random.key_data, leaf)
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    array = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def _typed(like: Any, leaf: Any) -> Any:
    if not _is_typed_key(like):
        return leaf
    found = []
    # Only arrays know the name of their generator, and while tracing a shape is one.
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), like)
    return jax.random.wrap_key_data(jnp.asarray(leaf), impl=found[0])
