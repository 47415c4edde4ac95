"""How near followed singular vectors are to the norm of a layer while its kernel walks at random.

    taskset -c 0 python benchmarks/tracked_norm.py

Each kernel begins as He's and moves by 1 % of its Frobenius norm in a random direction at each of 60 steps, with one
update a step. Printed are sigma over the norm after `init`, and its smallest and last value over the walk, the worst of
four seeds.
"""

import jax
import jax.numpy as jnp
import numpy as np

import spectrax as sx

LAYERS = {
    "conv 8 to 8, 12 x 12": ((3, 3, 8, 8), (12, 12)),
    "conv 16 to 16, 8 x 8": ((3, 3, 16, 16), (8, 8)),
    "dense 256 to 128": ((256, 128), None),
}
SEEDS, LENGTH, STEP = range(4), 60, 0.01


def measure(shape, sizes, num_steps):
    """Return the three worst ratios over the seeds."""

    def operator(kernel):
        if sizes is None:
            return sx.aslinearoperator(kernel.T)
        return sx.conv_operator(kernel, sizes, padding="SAME")

    form = sx.parametrizations.tracked_spectral_norm(operator, num_steps=num_steps)
    init, update = jax.jit(form.init), jax.jit(form.update)
    norm = jax.jit(lambda kernel: jnp.linalg.norm(operator(kernel).to_dense(), 2))
    found = []
    for seed in SEEDS:
        generator = np.random.default_rng(seed)
        kernel = np.sqrt(2 / np.prod(shape[:-1])) * generator.normal(size=shape)
        state = init(jnp.asarray(kernel, jnp.float32), jax.random.key(seed))
        ratios = [state.sigma / norm(jnp.asarray(kernel, jnp.float32))]
        for step in range(LENGTH):
            direction = generator.normal(size=shape)
            kernel = kernel + STEP * np.linalg.norm(kernel) / np.linalg.norm(direction) * direction
            state = update(jnp.asarray(kernel, jnp.float32), state)
            if step % 5 == 4:
                ratios.append(state.sigma / norm(jnp.asarray(kernel, jnp.float32)))
        found.append((ratios[0], min(ratios[1:]), ratios[-1]))
    return np.min(np.asarray(found), axis=0)


def main():
    """Print the table."""
    print("| layer | num_steps | after init | smallest | last |\n|---|---|---|---|---|")
    for name, (shape, sizes) in LAYERS.items():
        for num_steps in (1, 2, 4):
            ratios = " | ".join(f"{ratio:.4f}" for ratio in measure(shape, sizes, num_steps))
            print(f"| {name} | {num_steps} | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
