"""Long computations with checkpoints: run, interrupted, and taken up again, also on another number of processes.

The directory of a run holds `run.json`, which says what is computed, and checkpoints by Orbax, named by the number of
steps. Orbax writes under another name and renames what is complete, and the one before is deleted after that only: at
every moment the newest directory with a number for a name is a whole checkpoint.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from spectrax import checks
from spectrax.integrations import checkpoints
from spectrax.operators import HostOperator, LinearOperator
from spectrax.spectrum import Stepwise

Result = TypeVar("Result")
_KEEP = 2
_NAME = "run.json"
_UNFINISHED = "run.new"  # left behind where a run ended while it was written


def run(
    stepwise: Stepwise[Any, Result],
    directory: str | Path,
    /,
    *,
    every: float = 60.0,
    every_steps: int | None = None,
    progress: Callable[[int, dict[str, Any]], None] | None = None,
) -> Result:
    """Return the result of a stepwise computation, with checkpoints on the way and from the last one on.

    The same call begins a run, goes on with it, and reads the result of one that is over. Under `jax.distributed` all
    processes call it, with the same arguments and a directory that all of them see; a checkpoint restores into the
    shardings that `stepwise.init()` has now, so that another number of processes may go on.

    Args:
        stepwise: From `stepwise_eigsh`, `stepwise_svds` or `stepwise_density`.
        directory: The run's own directory; it is made where it is missing.
        every: Seconds between two checkpoints, by the clock of the first process.
        every_steps: Steps between two checkpoints instead.
        progress: Called after each step as progress(step, metrics), with the number of steps so far and the numbers of
            `stepwise.metrics`; in the first process only.

    Returns:
        What `stepwise.run()` returns, to the bit where neither devices nor programs changed.

    Raises:
        ValueError: If the directory is that of another computation (other arguments, another key, an operator whose
            numbers differ by more than a hundredth), holds something else or cannot be read, or is none; an interval
            is not positive, or there are several processes and the operator lies on no mesh.
        KeyboardInterrupt: After Ctrl-C, which saves a checkpoint first if there is one process; in several, which may
            be interrupted at different steps, the last checkpoint stands. And under `jax.distributed` after SIGTERM in
            any process, by which clusters announce that they take machines away: all processes agree on the next step
            that all of them can reach, and save there.
        ImportError: If Orbax is not installed (`pip install "jax-spectrax[demo]"`).

    Cost:
        That of the computation, one product for the comparison with `run.json`, and what it takes to write the state:
        `subspace_size` + b vectors for a search (as many left ones besides for singular values), and numbers only for a
        density, unless it goes over the batches of an iterator.

    Example:
        >>> import tempfile, jax, jax.numpy as jnp
        >>> import spectrax as sx
        >>> from spectrax.integrations import long_runs
        >>> search = sx.stepwise_eigsh(jnp.diag(jnp.arange(100.0)), which="largest", key=jax.random.key(0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = long_runs.run(search, folder)
        >>> round(float(result.eigenvalues[0]), 3)
        99.0
    """
    checks.number_in("every", every, 0.0, math.inf, low_open=True)
    if jax.process_count() > 1 and _mesh_of(stepwise.operator) is None:
        raise ValueError(
            f"a run of {jax.process_count()} processes needs an operator whose arrays lie on a mesh of all their "
            "devices (jax.sharding.NamedSharding), got one that each process has for itself"
        )
    if every_steps is not None:
        checks.positive_integer("every_steps", every_steps)
    directory = Path(directory).absolute()
    for path in (directory, *directory.parents):
        if path.exists():
            if not path.is_dir():
                raise ValueError(
                    f"directory must be that of the run, or a new one, got {directory}: {path} is no directory"
                )
            break
    _claim(directory, stepwise)
    steps = checkpoints.checkpoint_steps(directory)
    _together("the first look at the directory")
    state = stepwise.init()
    step = saved = steps[-1] if steps else 0
    if steps:
        state = _restored(directory / str(step), state, _mesh_of(stepwise.operator))
    last = time.monotonic()
    try:
        while not stepwise.done(state):
            state, step = stepwise.advance(state), step + 1
            if progress is not None and jax.process_index() == 0:
                progress(step, stepwise.metrics(state))
            due = step - saved >= every_steps if every_steps is not None else time.monotonic() - last >= every
            if _first_says(due):
                saved = _save(directory, step, state)
                last = time.monotonic()
            if _is_preempted(step):
                if step > saved:
                    saved = _save(directory, step, state)
                raise KeyboardInterrupt(f"a process was told to end (SIGTERM); {directory / str(step)} holds the state")
    except KeyboardInterrupt:
        if jax.process_count() == 1 and step > saved:
            _save(directory, step, state)
        raise
    if step > saved:
        _save(directory, step, state)
    return stepwise.result(state)


def _claim(directory: Path, stepwise: Stepwise) -> None:
    """Write down what is computed, or compare it with what is written down."""
    mine = {"description": stepwise.description(), "sample": stepwise.sample()}
    path = directory / _NAME
    if path.exists():
        theirs = _read(path)
        described = theirs["description"]
        other = [name for name, value in mine["description"].items() if described.get(name) != value]
        if other or described.keys() != mine["description"].keys():
            differences = "; ".join(
                f"{name} is {mine['description'][name]}, was {described.get(name)}" for name in other
            )
            raise ValueError(f"{directory} is the directory of another computation: {differences}")
        # several devices take sums in another order, and products may be in 16 bits
        size = abs(mine["sample"][0])
        atol = 1e-3 * size if math.isfinite(size) else 0.0
        if not np.allclose(mine["sample"], theirs["sample"], rtol=1e-2, atol=atol, equal_nan=True):
            raise ValueError(
                f"{directory} is the directory of a computation with another operator: norm and component of an image "
                f"are {mine['sample']}, were {theirs['sample']}"
            )
    elif directory.exists() and any(entry.name != _UNFINISHED for entry in directory.iterdir()):
        raise ValueError(f"{directory} is not empty, and holds no {_NAME}: give each run a directory of its own")
    _together("the comparison with the directory")
    if jax.process_index() == 0 and not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        new = directory / _UNFINISHED
        new.write_text(json.dumps(mine, indent=1))
        os.replace(new, path)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
        if isinstance(found["description"], dict) and isinstance(found["sample"], list):
            return found
    except (KeyError, TypeError, ValueError):
        pass
    raise ValueError(f"{path} cannot be read: give the run a new directory")


def _save(directory: Path, step: int, state: Any) -> int:
    checkpoints.save(directory / str(step), _named(state))
    _together("a checkpoint")
    if jax.process_index() == 0:
        for old in checkpoints.checkpoint_steps(directory)[:-_KEEP]:
            shutil.rmtree(directory / str(old))
    return step


def _restored(path: Path, like: Any, mesh: Mesh | None) -> Any:
    """Return a state from a checkpoint, laid out as another one; what lies on no mesh has a copy on each device."""
    leaves = _named(like)
    everywhere = SingleDeviceSharding(jax.local_devices()[0]) if mesh is None else NamedSharding(mesh, PartitionSpec())

    def placed(leaf: jax.Array) -> jax.ShapeDtypeStruct:
        sharding = leaf.sharding if isinstance(leaf.sharding, NamedSharding) else everywhere
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    found = checkpoints.restore(path, like={name: placed(leaf) for name, leaf in leaves.items()})
    if mesh is None:  # to go where the operator is, as new arrays do
        found = {name: jnp.asarray(np.asarray(leaf)) for name, leaf in found.items()}
    return jax.tree.structure(like).unflatten([found[name] for name in leaves])


def _mesh_of(operator: LinearOperator) -> Mesh | None:
    """Return the mesh that an operator's arrays lie on."""
    arrays = operator.params if isinstance(operator, HostOperator) else operator
    for leaf in jax.tree.leaves(arrays):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
            return sharding.mesh
    return None


def _named(state: Any) -> dict[str, Any]:
    """Return the arrays of a state by the names of their places."""
    return {jax.tree_util.keystr(path).lstrip("."): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def _together(what: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def _is_preempted(step: int) -> bool:
    """Return whether this is the step at which all processes stop, since one of them got SIGTERM."""
    is_watched = jax.config.values.get("jax_enable_preemption_service", False)
    return is_watched and multihost_utils.reached_preemption_sync_point(step)


def _first_says(due: bool) -> bool:
    """Return what the first process says, which all processes have to agree upon."""
    if jax.process_count() == 1:
        return due
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(due)))
