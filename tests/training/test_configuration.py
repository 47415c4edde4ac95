"""A configuration is checked when it is made."""

import math

import pytest

from spectrax.report import from_json, to_json
from spectrax.training import TrainingConfig
from spectrax.training.configuration import CHOICES, LEARNING_RATES


@pytest.mark.parametrize("name", sorted(CHOICES))
def test_an_unknown_name_lists_the_choices(name):
    with pytest.raises(ValueError, match=f"^{name} must be one of '{CHOICES[name][0]}', .*; got 'nonsense'"):
        TrainingConfig(**{name: "nonsense"})


@pytest.mark.parametrize(
    "values",
    [
        {"depth": 0}, {"width": -1}, {"epochs": 0}, {"batch_size": 0}, {"block_size": 0}, {"measure_every": 0},
        {"renew_every": 0}, {"learning_rate": 0.0}, {"learning_rate": math.inf}, {"penalty_weight": -1.0},
        {"penalty_weight": math.nan}, {"penalty_low": -1.0, "penalty": "band"}, {"penalty_low": 3.0, "penalty": "band"},
        {"penalty_high": 0.2, "penalty": "band"}, {"penalty_low": 0.0, "penalty": "rank"}, {"penalty_low": 0.1},
        {"penalty_high": 0.1, "penalty": "rank"}, {"seed": -1}, {"rho": math.inf}, {"data": "cifar10"},
    ],
)  # fmt: skip
def test_a_number_out_of_range(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        TrainingConfig(**values)


@pytest.mark.parametrize(
    "values",
    [{"depth": 1.5}, {"epochs": "3"}, {"seed": 0.5}, {"rho": "1"}, {"out": ""}, {"data": 3}, {"baseline": 1}],
)
def test_a_value_of_the_wrong_type(values):
    with pytest.raises(TypeError, match=next(iter(values))):
        TrainingConfig(**values)


def test_choices_that_exclude_each_other():
    with pytest.raises(ValueError, match="penalty is 'none' already"):
        TrainingConfig(penalty="none", baseline=True)
    with pytest.raises(ValueError, match="couples the samples"):
        TrainingConfig(penalty_on="jacobian", normalization="batch")
    with pytest.raises(ValueError, match="penalty='conv_norm' acts on weights alone"):
        TrainingConfig(penalty_on="jacobian", penalty="conv_norm")
    with pytest.raises(ValueError, match="convnet has no skips"):
        TrainingConfig(model="convnet", rho=0.5)


def test_defaults_come_from_the_model_and_the_optimiser():
    config = TrainingConfig(model="mlp", optimizer="sgd", width=7)
    assert (config.width, config.rho, config.learning_rate) == (7, 0.0, LEARNING_RATES["sgd"])
    assert TrainingConfig(model="resnet").rho == 1.0


def test_the_runs_in_their_order():
    assert TrainingConfig(baseline=True).arms == ("penalty", "baseline")
    assert TrainingConfig().arms == ("penalty",)
    assert TrainingConfig(penalty="none").arms == ("baseline",)


def test_a_configuration_survives_json_and_is_hashable():
    config = TrainingConfig(seed=3, learning_rate=0.1, renew_every=5)
    assert TrainingConfig(**from_json(to_json(config.to_dict()))) == config
    assert hash(config) == hash(TrainingConfig(**config.to_dict()))
