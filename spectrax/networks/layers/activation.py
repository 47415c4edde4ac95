"""Activations: functions of one number, applied to every entry."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from spectrax import checks
from spectrax.networks.layers.layer import Layer, Tree, real


class Function(NamedTuple):
    """An activation's function `(x, negative_slope)`, whether it is piecewise affine, and 1 / E[phi(g)^2]."""

    function: Callable[[jax.Array, float], jax.Array]
    piecewise_affine: bool
    gain: Callable[[float], float]


# To add an activation, add a row. The gain is 1 / E[phi(g)^2] for a standard normal g: weights of variance gain /
# fan_in keep the second moment of the signal, exactly for the positively homogeneous ones (He et al. for the ReLU).
FUNCTIONS = {
    "abs": Function(lambda x, slope: jnp.abs(x), True, lambda slope: 1.0),
    "gelu": Function(lambda x, slope: jax.nn.gelu(x, approximate=False), False, lambda slope: 1 / 0.4252215),
    "hard_tanh": Function(lambda x, slope: jnp.clip(x, -1, 1), True, lambda slope: 1 / 0.5160586),
    "leaky_relu": Function(lambda x, slope: jax.nn.leaky_relu(x, slope), True, lambda slope: 2 / (1 + slope * slope)),
    "linear": Function(lambda x, slope: x, True, lambda slope: 1.0),
    "relu": Function(lambda x, slope: jax.nn.relu(x), True, lambda slope: 2.0),
    "tanh": Function(lambda x, slope: jnp.tanh(x), False, lambda slope: 1 / 0.3942945),
}
SYNONYMS = {"identity": "linear"}


@dataclasses.dataclass(frozen=True)
class Activation(Layer):
    """The layer behind `activation`."""

    name: str
    negative_slope: float

    kind: ClassVar[str] = "activation"

    @property
    def piecewise_affine(self) -> bool:
        """Whether the function is affine piece by piece, so that a network of such layers is locally exactly affine."""
        return FUNCTIONS[self.name].piecewise_affine

    @property
    def gain(self) -> float:
        """1 / E[phi(g)^2] for a standard normal g: the variance times fan-in that keeps a signal's second moment."""
        return FUNCTIONS[self.name].gain(self.negative_slope)

    def forward(
        self, params: Mapping[str, Any], batch_stats: Mapping[str, Any], x: jax.Array, /, *, train: bool
    ) -> tuple[jax.Array, Tree]:
        """Return phi(x)."""
        return FUNCTIONS[self.name].function(x, self.negative_slope), {}


def activation(name: str, /, *, negative_slope: float = 0.01) -> Activation:
    """An activation, applied to every entry: y = phi(x).

    | name | phi(t) | piecewise affine |
    |---|---|---|
    | `"linear"`, `"identity"` | t | yes |
    | `"relu"` | max(t, 0) | yes |
    | `"leaky_relu"` | t if t >= 0, else negative_slope t | yes |
    | `"abs"` | abs(t) | yes |
    | `"hard_tanh"` | min(max(t, -1), 1) | yes |
    | `"gelu"` | t Phi(t), Phi the normal distribution function (exact, not the tanh fit) | no |
    | `"tanh"` | tanh(t) | no |

    Args:
        name: One of the names above.
        negative_slope: The slope of `"leaky_relu"` below zero; no other name reads it.

    Returns:
        A frozen, hashable layer with the attributes `piecewise_affine` and `gain` (the variance times fan-in that
        keeps a signal's second moment).

    Raises:
        ValueError: If the name is unknown; the message lists the choices.
        TypeError: If `negative_slope` is not a real number.

    Derivatives:
        Of every order. At the kink t = 0 the slope is 0 for `"relu"`, and 1 for `"leaky_relu"` and `"abs"`.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> sx.layers.activation("leaky_relu", negative_slope=0.5).apply({"params": {}}, jnp.array([-2.0, 3.0]))
        Array([-1.,  3.], dtype=float32)
        >>> sx.layers.activation("gelu").piecewise_affine
        False
    """
    checks.choice("activation", name, sorted([*FUNCTIONS, *SYNONYMS]))
    name = SYNONYMS.get(name, name)
    slope = real("negative_slope", negative_slope)
    # What isn't read mustn't make two equal layers differ.
    return Activation(name, slope if name == "leaky_relu" else math.inf)
