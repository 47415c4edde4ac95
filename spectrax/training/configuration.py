"""What a training run is: every choice of `spectrax train`, checked when it is made."""

import dataclasses
import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spectrax import checks
from spectrax.networks import layers, models
from spectrax.training import data as data_sets

MODELS = ("resnet", "convnet", "densenet", "mlp")
ACTIVATIONS = ("relu", "leaky_relu", "abs", "gelu")
NORMALIZATIONS = ("none", "batch", "layer")
OPTIMIZERS = ("adamw", "sgd", "muon")
LOSSES = ("cross_entropy", "squared_error")
# By the names of `spectrax.regularizers`.
PENALTIES = (
    "condition_number", "smooth_condition", "spectral_norm", "unit_norm", "band", "restricted_isometry",
    "orthogonality", "conv_norm", "schatten_norm", "frobenius_norm", "frobenius_product", "effective_rank",
    "stable_rank", "log_determinant", "rank", "none",
)  # fmt: skip
BAND = (0.5, 2.0)  # of the "band" penalty; the lower end is also the threshold of "rank"
WEIGHT_PENALTIES = ("conv_norm", "frobenius_product")  # which act on no Jacobian
PENALTY_TARGETS = ("weights", "jacobian")
# Peak learning rates of the cosine decay, for when none is given: what each optimiser takes on the default model.
LEARNING_RATES: Mapping[str, float] = {"adamw": 3e-3, "sgd": 2e-2, "muon": 1e-2}

# Epochs between two renewals of the penalty's vectors, for when no interval is given.
RENEWAL_EPOCHS = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The whole configuration of a training run; it stands in the run's directory as `config.json`.

    Attributes:
        out: The directory that the run writes.
        data: "mnist5k", "digits", or the path of an `.npz` file.
        model: "resnet", "convnet", "densenet" or "mlp".
        depth: Number of blocks (layers for the mlp); None is the model's own default.
        width: Number of channels (features for the mlp) of a layer; None is the model's own default.
        activation: "relu", "leaky_relu", "abs" or "gelu".
        rho: The fraction of the identity in each skip; None is the model's own default. The convnet has no skips: 0.
        normalization: "none", "batch" or "layer".
        optimizer: "adamw", "sgd" (momentum 0.9) or "muon".
        learning_rate: The learning rate at the start of its cosine decay to zero; None is the optimiser's own default.
        epochs: Passes over the training part.
        batch_size: Samples in a step; what is left of an epoch is dropped.
        loss: "cross_entropy", or "squared_error" from the one-hot labels (summed over classes, averaged over the
            batch).
        seed: Seed of the split, of the initial weights, of the order of the samples and of the penalty's random starts.
        penalty: One of `PENALTIES`: "condition_number", "spectral_norm", "orthogonality" and the like, or "none". Those
            on ranks, Schatten norms and the log-determinant decompose every layer at every step.
        penalty_weight: What the penalty is multiplied by before it is added to the loss.
        penalty_low: Lower end of the "band" that singular values are kept in, or the threshold of "rank" below which
            they are pushed to zero; None is 0.5. For these two only.
        penalty_high: Upper end of the "band"; None is 2.
        penalty_on: "weights" (each layer as the linear map that it is) or "jacobian" (of the network at the batch's
            samples).
        renew_every: Steps between two renewals of the penalty's vectors; None is the steps of four epochs.
        block_size: How many vectors the penalty carries at each end of a spectrum.
        measure_every: Epochs between two measurements of the layers' true spectra; the first and the last are always
            made.
        baseline: Train the same network from the same seed without the penalty, too.

    Raises:
        ValueError: If a name is unknown or a number is out of range, naming the choices or the range.
        TypeError: If a value is of the wrong type.

    Example:
        >>> TrainingConfig(data="digits", model="mlp", epochs=2).learning_rate
        0.003
    """

    out: str = "runs/train"
    data: str = "mnist5k"
    model: str = "resnet"
    depth: int | None = None
    width: int | None = None
    activation: str = "relu"
    rho: float | None = None
    normalization: str = "none"
    optimizer: str = "adamw"
    learning_rate: float | None = None
    epochs: int = 40
    batch_size: int = 256
    loss: str = "cross_entropy"
    seed: int = 0
    penalty: str = "condition_number"
    penalty_weight: float = 0.003
    penalty_low: float | None = None
    penalty_high: float | None = None
    penalty_on: str = "weights"
    renew_every: int | None = None
    block_size: int = 8
    measure_every: int = 4
    baseline: bool = False

    def __post_init__(self) -> None:
        """Check every value, and put the model's and the optimiser's own defaults where none is given."""
        for name in ("out", "data"):
            value = getattr(self, name)
            if not isinstance(value, str | Path) or not str(value):
                raise TypeError(f"{name} must be a path or a name, got {value!r}")
            object.__setattr__(self, name, str(value))
        if self.data not in data_sets.NAMES and not self.data.endswith(".npz"):
            names = ", ".join(map(repr, data_sets.NAMES))
            raise ValueError(f"data must be {names} or the path of an .npz file; got {self.data!r}")
        for name, choices in CHOICES.items():
            checks.choice(name, getattr(self, name), choices)
        for name, default in model_defaults(self.model).items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        for name in ("depth", "width", "epochs", "batch_size", "block_size", "measure_every"):
            checks.positive_integer(name, getattr(self, name))
        if self.renew_every is not None:
            checks.positive_integer("renew_every", self.renew_every)
        checks.number_in("seed", self.seed, 0, 2**32 - 1)
        if int(self.seed) != self.seed:
            raise TypeError(f"seed must be an integer, got {self.seed!r}")
        if self.learning_rate is None:
            object.__setattr__(self, "learning_rate", LEARNING_RATES[self.optimizer])
        checks.number_in("learning_rate", self.learning_rate, 0, math.inf, low_open=True)
        checks.number_in("penalty_weight", self.penalty_weight, 0, math.inf)
        checks.number_in("rho", self.rho, 0, 1)
        self._check_band()
        for name in ("learning_rate", "penalty_weight"):
            if math.isinf(getattr(self, name)):
                raise ValueError(f"{name} must be finite, got {getattr(self, name)}")
        self.network(num_classes=2)  # The builder's own checks, such as that a convnet has no skips.
        if not isinstance(self.baseline, bool):
            raise TypeError(f"baseline must be a boolean, got {self.baseline!r}")
        if self.baseline and self.penalty == "none":
            raise ValueError(
                "baseline is the run without a penalty, and penalty is 'none' already: choose one of the two"
            )
        if self.penalty_on == "jacobian" and self.penalty in WEIGHT_PENALTIES:
            raise ValueError(f"penalty={self.penalty!r} acts on weights alone: choose penalty_on='weights'")
        if self.penalty_on == "jacobian" and self.normalization == "batch" and self.penalty != "none":
            raise ValueError(
                "penalty_on='jacobian' is the Jacobian of one sample's output by its input, and normalization='batch' "
                "couples the samples of a batch: choose normalization 'none' or 'layer'"
            )

    def _check_band(self) -> None:
        users = {"penalty_low": ("band", "rank"), "penalty_high": ("band",)}
        for name, penalties in users.items():
            value = getattr(self, name)
            if value is None:
                continue
            checks.number_in(name, value, 0, math.inf)
            if self.penalty not in penalties:
                raise ValueError(f"{name} is for the penalties {', '.join(penalties)} only, got {self.penalty!r}")
        low, high = self.band
        if self.penalty == "rank" and not 0 < low < math.inf:
            raise ValueError(f"penalty_low must be positive and finite for the penalty 'rank', got {low:g}")
        if self.penalty == "band" and not low < high < math.inf:
            raise ValueError(f"penalty_low must be below penalty_high, which must be finite; got {low:g} and {high:g}")

    @property
    def band(self) -> tuple[float, float]:
        """The numbers of "band" and "rank": the ends, of which the lower one is also the threshold."""
        low = BAND[0] if self.penalty_low is None else self.penalty_low
        return low, BAND[1] if self.penalty_high is None else self.penalty_high

    @property
    def arms(self) -> tuple[str, ...]:
        """The runs that this configuration asks for, in order: "penalty", "baseline" or both."""
        if self.penalty == "none":
            return ("baseline",)
        return ("penalty", "baseline") if self.baseline else ("penalty",)

    def renewal_interval(self, steps_per_epoch: int, /) -> int:
        """Steps between two renewals of the penalty's vectors.

        Args:
            steps_per_epoch: Steps in an epoch.

        Returns:
            `renew_every`, or where there is none the steps of `RENEWAL_EPOCHS` epochs.
        """
        return self.renew_every or RENEWAL_EPOCHS * steps_per_epoch

    def network(self, *, num_classes: int) -> layers.Layer:
        """Build the network.

        Args:
            num_classes: The number of outputs.

        Returns:
            A layer of spectrax, for samples of any shape that the model takes.
        """
        return getattr(models, self.model)(
            num_classes,
            depth=self.depth,
            width=self.width,
            activation=self.activation,
            rho=self.rho,
            normalization=None if self.normalization == "none" else self.normalization,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as a plain dict.

        Returns:
            The values by the names of the attributes.

        Example:
            >>> TrainingConfig(**TrainingConfig(seed=3).to_dict()).seed
            3
        """
        return dataclasses.asdict(self)


def model_defaults(model: str, /) -> dict[str, Any]:
    """Return the depth, the width and the rho that a model has when none is given.

    Args:
        model: The name of the model.

    Returns:
        The values of `depth`, `width` and `rho`.

    Example:
        >>> sorted(model_defaults("resnet"))
        ['depth', 'rho', 'width']
    """
    parameters = inspect.signature(getattr(models, model)).parameters
    return {name: parameters[name].default for name in ("depth", "width", "rho")}


CHOICES: Mapping[str, tuple[str, ...]] = {
    "model": MODELS,
    "activation": ACTIVATIONS,
    "normalization": NORMALIZATIONS,
    "optimizer": OPTIMIZERS,
    "loss": LOSSES,
    "penalty": PENALTIES,
    "penalty_on": PENALTY_TARGETS,
}
