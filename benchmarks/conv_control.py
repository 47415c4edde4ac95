"""What functions for kernels with a wanted spectrum attain: `python benchmarks/conv_control.py` prints it.

He-random kernels of 8 x 8 channels and 3 x 3 taps, ten seeds, inputs of 12 x 12 with circular padding, float64. Each
line is the lowest and the highest number of the ten.
"""

import jax
import jax.numpy as jnp
import numpy as np

import spectrax as sx

SIZES, SEEDS = (12, 12), 10
ROUNDS = (1, 2, 5, 10, 50)


def he(seed: int) -> jax.Array:
    """Return a kernel, shape (3, 3, 8, 8)."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=(3, 3, 8, 8)) * np.sqrt(2 / 72))


def ends(kernel: jax.Array, sizes: tuple[int, int] = SIZES, padding: str = "CIRCULAR", strides: int = 1) -> jax.Array:
    """Return the largest and the smallest singular value of a convolution."""
    values = sx.conv_singular_values(kernel, sizes, padding=padding, strides=strides)
    return values[jnp.array([0, -1])]


def weight_near_the_middle(kernel: jax.Array) -> jax.Array:
    """Return the shares of a large kernel's squared norm within 3 x 3, 5 x 5 and 7 x 7 of its middle tap."""
    middle = [(size - 1) // 2 for size in kernel.shape[:2]]
    inside = [
        jnp.sum(kernel[middle[0] - w : middle[0] + w + 1, middle[1] - w : middle[1] + w + 1] ** 2) for w in (1, 2, 3)
    ]
    return jnp.stack(inside) / jnp.sum(kernel**2)


def measured(kernel: jax.Array) -> list[jax.Array]:
    """Return every number of one kernel, in the order of `NAMES`."""
    top = ends(kernel)[0]
    clipped = [sx.clip_spectral_norm(kernel, top / 2, SIZES, rounds=rounds) for rounds in ROUNDS]
    rows = ends(sx.conv_row_normalize(kernel, SIZES))
    rescaled = sx.aol_rescale(kernel)
    orthogonal = sx.cayley_convolution(kernel, SIZES)
    return [
        *(ends(each)[0] / (top / 2) for each in clipped),
        top,
        *rows,
        ends(rescaled)[0],
        ends(sx.aol_rescale(kernel, strides=2), strides=2)[0],
        ends(rescaled, (8, 8), "SAME")[1],
        jnp.max(jnp.abs(ends(orthogonal) - 1)),
        *weight_near_the_middle(orthogonal),
    ]


NAMES = (
    *(f"clip_spectral_norm, {rounds} rounds: norm / bound" for rounds in ROUNDS),
    "conv_row_normalize: norm before",
    "conv_row_normalize: norm",
    "conv_row_normalize: smallest value",
    "aol_rescale: norm",
    "aol_rescale, stride 2: norm",
    "aol_rescale: smallest value, SAME, 8 x 8",
    "cayley_convolution: largest deviation from one",
    *(f"cayley_convolution: share of the square within {size} x {size}" for size in (3, 5, 7)),
)


def main() -> None:
    """Print the numbers."""
    jax.config.update("jax_enable_x64", True)
    compiled = jax.jit(measured)
    rows = np.array([compiled(he(seed)) for seed in range(SEEDS)])
    for name, low, high in zip(NAMES, rows.min(axis=0), rows.max(axis=0), strict=True):
        print(f"{name}: {low:.4g} to {high:.4g}")


if __name__ == "__main__":
    main()
