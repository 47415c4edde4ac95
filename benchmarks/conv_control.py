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


def measured(kernel: jax.Array) -> dict[str, jax.Array]:
    """Return every number of one kernel."""
    top = ends(kernel)[0]
    found = {
        f"clip_spectral_norm, {rounds} rounds: norm / bound": ends(
            sx.clip_spectral_norm(kernel, top / 2, SIZES, rounds=rounds)
        )[0]
        / (top / 2)
        for rounds in ROUNDS
    }
    rows = ends(sx.conv_row_normalize(kernel, SIZES))
    found["conv_row_normalize: norm before"] = top
    found["conv_row_normalize: norm"] = rows[0]
    found["conv_row_normalize: smallest value"] = rows[1]
    found["aol_rescale: norm"] = ends(sx.aol_rescale(kernel))[0]
    found["aol_rescale, stride 2: norm"] = ends(sx.aol_rescale(kernel, strides=2), strides=2)[0]
    found["aol_rescale: smallest value, SAME, 8 x 8"] = ends(sx.aol_rescale(kernel), (8, 8), "SAME")[1]
    made = sx.cayley_convolution(kernel, SIZES)
    found["cayley_convolution: largest deviation from one"] = jnp.max(jnp.abs(ends(made) - 1))
    for size, share in zip((3, 5, 7), weight_near_the_middle(made), strict=True):
        found[f"cayley_convolution: share of the square within {size} x {size}"] = share
    return found


def main() -> None:
    """Print the numbers."""
    jax.config.update("jax_enable_x64", True)
    compiled = jax.jit(measured)
    rows = [compiled(he(seed)) for seed in range(SEEDS)]
    for name in rows[0]:
        numbers = [float(row[name]) for row in rows]
        print(f"{name}: {min(numbers):.4g} to {max(numbers):.4g}")


if __name__ == "__main__":
    main()
