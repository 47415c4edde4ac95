"""How tight the bounds of a convolution's norm are: `python benchmarks/conv_bounds.py` prints a table.

Ten kernels on 16 x 16 in float64: Laplacian, box, Sobel, He-random ones of 1 to 16 channels and 3 x 3 to 7 x 7 taps,
and a smooth one of small rank. Each entry is the lowest, the median and the highest ratio to the norm.
"""

import jax
import jax.numpy as jnp
import numpy as np

import spectrax as sx

METHODS = (
    "certified", "grid", "gram", "aol", "tensor_norm", "fantastic_four", "lip_grid", "tap_sum", "schur", "frobenius",
    "circular", "reshaped",
)  # fmt: skip
LAYERS = (("CIRCULAR", 1), ("SAME", 1), ("VALID", 1), ("SAME", 2))
SIZES = (16, 16)


def kernels() -> list[jax.Array]:
    """Return the kernels, by size of the taps and channels as (taps, taps, in, out)."""
    rng = np.random.default_rng(7)

    def he(inputs: int, outputs: int, taps: int) -> np.ndarray:
        return rng.normal(size=(taps, taps, inputs, outputs)) * np.sqrt(2 / (inputs * taps * taps))

    laplacian = np.array([[0.0, -1, 0], [-1, 4, -1], [0, -1, 0]])[:, :, None, None]
    sobel = np.array([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])[:, :, None, None]
    hat = np.array([1.0, 2, 1]) / 4
    smooth = np.multiply.outer(np.multiply.outer(hat, hat), he(8, 2, 1)[0, 0] @ he(2, 8, 1)[0, 0])
    random = [he(1, 1, 3), he(3, 5, 3), he(8, 8, 3), he(8, 16, 3), he(8, 8, 5), he(4, 4, 7)]
    return [jnp.asarray(kernel) for kernel in (laplacian, np.ones((3, 3, 1, 1)) / 9, sobel, *random, smooth)]


def ratio(kernel: jax.Array, method: str, padding: str, strides: int, norm: float) -> float:
    """Return what a method gives over the norm; "certified" without the size of the input."""
    options: dict = {"padding": padding, "strides": strides}
    if method == "certified":
        return float(sx.conv_norm(kernel, certified=True, **options).value) / norm
    options |= {"method": method, "input_shape": SIZES, "key": jax.random.key(0)}
    return float(sx.conv_norm(kernel, **options).value) / norm


def main() -> None:
    """Print the table."""
    jax.config.update("jax_enable_x64", True)
    columns = []
    for padding, strides in LAYERS:
        found: dict[str, list[float]] = {method: [] for method in METHODS}
        for kernel in kernels():
            operator = sx.conv_operator(kernel, SIZES, padding=padding, strides=strides)
            norm = float(sx.svds(operator, key=jax.random.key(0), throw=True).s[0])
            for method in METHODS:
                found[method].append(ratio(kernel, method, padding, strides, norm))
        columns.append(found)
    names = [f"{padding}, stride {strides}" for padding, strides in LAYERS]
    print("| | " + " | ".join(names) + " |")
    print("|---" * (len(names) + 1) + "|")
    for method in METHODS:
        cells = [f"{min(c[method]):.3f} / {np.median(c[method]):.3f} / {max(c[method]):.3f}" for c in columns]
        print(f"| {method} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
