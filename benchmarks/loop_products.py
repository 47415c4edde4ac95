"""What rewriting linear programs gains in a compiled loop: a pair of products with a network's Jacobian.

    taskset -c 0 python benchmarks/loop_products.py

The Jacobian of six 3x3 convolutions of 16 channels on a 16x16 image, float32: as JAX traces it and as `loop_products`
gives it, thirty pairs in one compiled loop, and one pair outside of a loop. Process CPU time of a pair, medians of
interleaved runs after a first one that compiles.
"""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import spectrax as sx

PAIRS, RUNS = 30, 25


def network(x: jax.Array, kernels: list[jax.Array]) -> jax.Array:
    """Return the image after all convolutions, each with a tanh behind it."""
    for kernel in kernels:
        image = jax.lax.conv_general_dilated(
            x[None], kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jnp.tanh(image[0])
    return x


def main() -> None:
    keys = jax.random.split(jax.random.key(0), 7)
    kernels = [jax.random.normal(key, (3, 3, 16, 16)) / 12 for key in keys[1:]]
    x = jax.random.normal(keys[0], (16, 16, 16))
    J = sx.jacobian_operator(network, x, kernels)

    def repeated(fast: bool, count: int) -> Callable[[jax.Array], jax.Array]:
        def run(v: jax.Array) -> jax.Array:
            matvec, rmatvec = J.loop_products() if fast else J.products()
            if count == 1:
                return rmatvec(matvec(v))
            return jax.lax.fori_loop(0, count, lambda _, v: rmatvec(matvec(v)), v)

        return jax.jit(run)

    ways = {
        "as traced, in a loop": (repeated(False, PAIRS), PAIRS),
        "rewritten, in a loop": (repeated(True, PAIRS), PAIRS),
        "as traced, outside of a loop": (repeated(False, 1), 1),
    }
    for run, _ in ways.values():
        jax.block_until_ready(run(x))
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(RUNS):
        for name, (run, count) in ways.items():
            began = time.process_time()
            jax.block_until_ready(run(x))
            seconds[name].append((time.process_time() - began) / count)
    for name, values in seconds.items():
        print(f"{name}: {1e3 * np.median(values):.3f} ms a pair")


if __name__ == "__main__":
    main()
