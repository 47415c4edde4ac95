"""Both ends of a convolution's spectrum: `python benchmarks/conv_ends.py` prints two tables.

The smallest singular value on 16 x 16 with the padding as it is, over that of the circular convolution of the same
size; and how many Golub-Kahan steps, with full reorthogonalisation, bring each end of the spectrum on 8 x 8 within 1 %
and 1e-6, of the dimension. The kernels of full rank of `conv_bounds.py`, float64.
"""

import jax
import numpy as np
from conv_bounds import kernels

import spectrax as sx

NAMES = ("Laplacian", "box", "Sobel", "1 to 1", "3 to 5", "8 to 8", "8 to 16", "8 to 8, 5 x 5", "4 to 4, 7 x 7")
PADDINGS = ("CIRCULAR", "SAME", "VALID")


def steps_to_the_ends(matrix: np.ndarray) -> list[int | None]:
    """Return after how many steps the largest Ritz value is within 1 % and 1e-6, and then the smallest."""
    matrix = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    exact, dimension = np.linalg.svd(matrix, compute_uv=False), matrix.shape[1]
    right = np.zeros((dimension, dimension))
    left = np.zeros((matrix.shape[0], dimension))
    start = np.random.default_rng(0).normal(size=dimension)
    right[:, 0] = start / np.linalg.norm(start)
    found: list[int | None] = [None] * 4
    for size in range(1, dimension + 1):
        image = matrix @ right[:, size - 1]
        for _ in range(2):
            image -= left[:, : size - 1] @ (left[:, : size - 1].T @ image)
        left[:, size - 1] = image / (np.linalg.norm(image) or 1)
        if size % 2 == 0 or size == dimension:
            ritz = np.linalg.svd(matrix @ right[:, :size], compute_uv=False)
            errors = (abs(ritz[0] / exact[0] - 1), abs(ritz[-1] / exact[-1] - 1))
            for place, (error, bound) in enumerate((e, b) for e in errors for b in (1e-2, 1e-6)):
                if found[place] is None and error <= bound:
                    found[place] = size
        if size < dimension:
            back = matrix.T @ left[:, size - 1]
            for _ in range(2):
                back -= right[:, :size] @ (right[:, :size].T @ back)
            right[:, size] = back / (np.linalg.norm(back) or 1)
    return found


def main() -> None:
    """Print the tables."""
    jax.config.update("jax_enable_x64", True)
    print("| kernel | " + " | ".join(f"{padding}: smallest; circular / it" for padding in PADDINGS[1:]) + " |")
    print("|---|---|---|")
    for name, kernel in zip(NAMES, kernels(), strict=False):
        circular = sx.conv_singular_values(kernel, (16, 16), padding="CIRCULAR")[-1]
        smallest = [sx.conv_singular_values(kernel, (16, 16), padding=padding)[-1] for padding in PADDINGS[1:]]
        print(f"| {name} | " + " | ".join(f"{value:.4g}; {circular / value:.3g}" for value in smallest) + " |")
    print("\n| kernel | padding | dimension | top, 1 % | top, 1e-6 | bottom, 1 % | bottom, 1e-6 |")
    print("|---|---|---|---|---|---|---|")
    for name, kernel in zip(NAMES, kernels(), strict=False):
        if name not in {"3 to 5", "8 to 8", "8 to 16"}:
            continue
        for padding in PADDINGS:
            matrix = np.asarray(sx.conv_operator(kernel, (8, 8), padding=padding).to_dense())
            steps = " | ".join(str(step or "not") for step in steps_to_the_ends(matrix))
            print(f"| {name} | {padding} | {min(matrix.shape)} | {steps} |")


if __name__ == "__main__":
    main()
