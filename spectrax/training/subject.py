"""The network that a report is about: from a checkpoint, or before training; with its own rho, or with another."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from spectrax.integrations import checkpoints
from spectrax.networks import layers
from spectrax.training.configuration import TrainingConfig
from spectrax.training.data import Dataset, load_data
from spectrax.training.experiment import make_experiment
from spectrax.training.run_directory import RunDirectory


@dataclasses.dataclass(frozen=True)
class Subject:
    """The network that a report is about.

    Attributes:
        config: How it is built, and what its data are.
        variables: Its variables.
        data: The data.
        origin: Where the variables come from.
    """

    config: TrainingConfig
    variables: Mapping[str, Any]
    data: Dataset
    origin: str

    @property
    def rho(self) -> float:
        """The network's own rho."""
        rho = self.config.rho
        assert rho is not None  # the configuration has put the model's own
        return rho

    def at(self, rho: float) -> tuple[layers.Layer, Mapping[str, Any]]:
        """Return the network with another rho, and the same weights in the places where it has them."""
        own = self.config.network(num_classes=self.data.num_classes)
        if rho == self.rho:
            return own, self.variables
        other = dataclasses.replace(self.config, rho=rho).network(num_classes=self.data.num_classes)
        return other, transplanted(self.variables, own, other, self.data.input_shape)


def from_run(path: str | Path, /, *, arm: str | None = None) -> Subject:
    """Take the network from the last checkpoint of a run of `spectrax train`.

    Args:
        path: The run's directory.
        arm: "penalty" or "baseline"; None is the first one that the run has.

    Returns:
        The subject.

    Raises:
        FileNotFoundError: If there is no run, or it has no checkpoint of this arm.
        ValueError: If the checkpoint cannot be restored, or the data is not what the run was trained on.
    """
    directory = RunDirectory.open_existing(path)
    arm = arm or directory.config.arms[0]
    checkpoint = directory.last_checkpoint(arm)
    if checkpoint is None:
        raise FileNotFoundError(f"{path} has no checkpoint of the run {arm!r}; it has {directory.config.arms}")
    try:
        restored = checkpoints.restore(checkpoint)
    except Exception as error:  # whatever Orbax and its file formats raise
        raise ValueError(f"{checkpoint} cannot be restored: {type(error).__name__}: {error}") from error
    variables = {"params": restored["params"], "batch_stats": restored.get("batch_stats") or {}}
    data = load_data(directory.config.data, seed=directory.config.seed)
    if data.fingerprint() != directory.data_fingerprint:
        raise ValueError(
            f"{path} was trained on other data: {directory.config.data} has checksum {data.fingerprint()}, and the run "
            f"saw {directory.data_fingerprint}; a relative path is looked up from where the command runs"
        )
    return Subject(directory.config, variables, data, f"step {checkpoint.name} of the run {arm!r}")


def from_model(config: TrainingConfig, /) -> Subject:
    """Take a network before training.

    Args:
        config: Which model and data, and the seed of the weights.

    Returns:
        The subject.
    """
    data = load_data(config.data, seed=config.seed)
    variables = make_experiment(config, data, arm="baseline").init_variables()
    return Subject(config, variables, data, f"initial weights from seed {config.seed}")


def transplanted(
    variables: Mapping[str, Any], own: layers.Layer, other: layers.Layer, input_shape: Sequence[int], /
) -> dict[str, Any]:
    """Give a network the variables of another one that has the same layers, with or without skips around them.

    Args:
        variables: The variables.
        own: The network that they are of.
        other: The other network.
        input_shape: The shape of a sample.

    Returns:
        The variables, in the structure of `other`.

    Raises:
        ValueError: If the networks' layers don't correspond, in their order and shapes.
    """
    expected = jax.eval_shape(lambda: other.init(jax.random.key(0), input_shape))
    pairs = list(zip(_leaves(own, input_shape), _leaves(other, input_shape), strict=True))
    found: dict[str, Any] = {kind: {} for kind in expected}
    for old, new in pairs:
        for kind in found:
            source = _at(variables.get(kind, {}), old)
            if source is not None:
                _put(found[kind], new, source)
    if jax.tree.map(jnp.shape, found) != jax.tree.map(jnp.shape, expected):
        raise ValueError("the two networks have different layers")
    return found


def _leaves(layer: layers.Layer, input_shape: Sequence[int]) -> list[tuple[str, ...]]:
    """Return the paths of the layers that hold no others, in their order."""
    children = layer.children(tuple(input_shape))
    if not children:
        return [()]
    return [(child.name, *path) for child in children for path in _leaves(child.layer, child.input_shape)]


def _at(tree: Any, path: Sequence[str]) -> Any:
    for name in path:
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return tree


def _put(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value
