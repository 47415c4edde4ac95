"""Initial weights as frozen objects, so that two layers with the same initialiser are equal and compile once."""

import dataclasses
from typing import Any

import jax

from spectrax import checks


@dataclasses.dataclass(frozen=True)
class VarianceScaling:
    """The object behind `variance_scaling`: called with `(key, shape, dtype)`."""

    scale: float
    mode: Any
    distribution: Any

    def __call__(self, key: Any, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        """Draw the weights."""
        draw = jax.nn.initializers.variance_scaling(self.scale, self.mode, self.distribution)
        return draw(key, shape, dtype)


def variance_scaling(
    scale: float = 1.0, *, mode: str = "fan_in", distribution: str = "truncated_normal"
) -> VarianceScaling:
    """Random weights of variance scale / fan.

    JAX's own initialisers are fresh closures at every call, so two layers made with them would not be equal and `jit`
    would compile twice; this object compares by its numbers.

    Args:
        scale: The variance times the fan: 1 is LeCun's, 2 is He's. Positive.
        mode: `"fan_in"`, `"fan_out"` or `"fan_avg"`; the fans are those of a kernel (spatial..., in, out).
        distribution: `"truncated_normal"`, `"normal"` or `"uniform"`.

    Returns:
        A frozen callable `(key, shape, dtype) -> array`.

    Raises:
        ValueError: If `scale` is not positive, or a name is unknown.

    Example:
        >>> import spectrax as sx
        >>> sx.layers.variance_scaling(2.0) == sx.layers.variance_scaling(2.0)
        True

    Source:
        He, Zhang, Ren, Sun, "Delving Deep into Rectifiers", ICCV 2015, arXiv 1502.01852, eq. 10.
    """
    checks.number_in("scale", scale, 0.0, 1e30, low_open=True)
    checks.choice("mode", mode, ("fan_in", "fan_out", "fan_avg"))
    checks.choice("distribution", distribution, ("truncated_normal", "normal", "uniform"))
    return VarianceScaling(float(scale), mode, distribution)


LECUN_NORMAL = VarianceScaling(1.0, "fan_in", "truncated_normal")
