"""Convolutions as a ResNet-50 has them, and what others do for their spectra and norms, written after the papers."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution of a network.

    Attributes:
        taps: The number of taps along both axes.
        channels: Of the input and of the output.
        size: Of the input, along both axes.
        stride: For both axes.
        count: How often the network has it.
    """

    taps: int
    channels: tuple[int, int]
    size: int
    stride: int
    count: int

    @property
    def name(self) -> str:
        step = f", stride {self.stride}" if self.stride > 1 else ""
        return f"{self.taps} x {self.taps}, {self.channels[0]} to {self.channels[1]}, {self.size} x {self.size}{step}"

    @property
    def padding(self) -> tuple[tuple[int, int], ...]:
        return ((self.taps // 2, self.taps // 2),) * 2

    def kernel(self, seed: int = 0) -> np.ndarray:
        """Return a He-random kernel of shape (taps, taps, in, out), float32."""
        rng = np.random.default_rng([seed, self.taps, *self.channels, self.size, self.stride])
        scale = math.sqrt(2 / (self.taps**2 * self.channels[0]))
        return (scale * rng.standard_normal((self.taps, self.taps, *self.channels))).astype(np.float32)


def resnet50(image: int = 224, width: int = 64) -> list[Layer]:
    """Return the distinct shapes of the 53 convolutions, with the strides of the blocks at the 3 x 3 kernels."""
    found: dict[Layer, int] = {}

    def add(taps: int, channels: tuple[int, int], size: int, stride: int) -> None:
        layer = Layer(taps, channels, size, stride, 0)
        found[layer] = found.get(layer, 0) + 1

    add(7, (3, width), image, 2)
    size, before = image // 4, width
    for stage, blocks in enumerate((3, 4, 6, 3)):
        inner = width * 2**stage
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            add(1, (before, inner), size, 1)
            add(3, (inner, inner), size, stride)
            add(1, (inner, 4 * inner), size // stride, 1)
            if not block:
                add(1, (before, 4 * inner), size, stride)
            size, before = size // stride, 4 * inner
    return [dataclasses.replace(layer, count=count) for layer, count in found.items()]


def numpy_spectrum(kernel: np.ndarray, size: int, *, half: bool = False) -> np.ndarray:
    """Return the singular values of a circular convolution, descending: Sedghi, Gupta & Long 2019 (arXiv 1805.10408).

    Args:
        kernel: Shape (taps, taps, in, out), real.
        size: Of the input, along both axes.
        half: Whether only the frequencies of `rfft2` are decomposed, and their values counted twice where the
            conjugate frequency is not among them.
    """
    if not half:
        return np.sort(np.linalg.svd(np.fft.fft2(kernel, (size, size), axes=(0, 1)), compute_uv=False).ravel())[::-1]
    values = np.linalg.svd(np.fft.rfft2(kernel, (size, size), axes=(0, 1)), compute_uv=False)
    twice = values[:, 1 : (size + 1) // 2]
    return np.sort(np.concatenate([values.ravel(), twice.ravel()]))[::-1]


def jax_spectrum(kernel: jax.Array, size: int) -> jax.Array:
    """Return what `numpy_spectrum` does with all frequencies, to be jitted."""
    symbol = jnp.fft.fft2(kernel, (size, size), axes=(0, 1))
    return jnp.sort(jnp.linalg.svd(symbol, full_matrices=False, compute_uv=False).ravel())[::-1]


def interleaved_parts(kernel: np.ndarray, stride: int) -> np.ndarray:
    """Return the kernel of stride 1 that acts on the stride^2 parts of the input as channels."""
    taps, _, channels, out = kernel.shape
    coarse = -(-taps // stride)
    parts = np.zeros((coarse, coarse, stride, stride, channels, out), kernel.dtype)
    for a, b in np.ndindex(taps, taps):
        parts[a // stride, b // stride, a % stride, b % stride] = kernel[a, b]
    return parts.reshape(coarse, coarse, -1, out)


def gram_iteration_circular(kernel: jax.Array, size: int, num_steps: int) -> jax.Array:
    """Return the bound of Delattre et al. 2023 (arXiv 2305.16173) for the circular convolution with stride 1.

    At all frequencies of the full FFT; a kernel of one tap is the same matrix at each, so that one is enough. Not
    certified for zero padding.
    """
    if kernel.shape[:2] == (1, 1):
        size = 1
    gram, log_scale = _narrow(jnp.fft.fft2(kernel, (size, size), axes=(0, 1))), jnp.zeros((size, size))
    for step in range(num_steps):
        length = jnp.linalg.norm(gram, axis=(-2, -1))
        log_scale += jnp.log(length) / 2**step
        gram = gram / length[..., None, None].astype(gram.dtype)
        gram = jnp.matmul(gram.conj().mT, gram, precision=jax.lax.Precision.HIGHEST)
    log_norm = jnp.log(jnp.linalg.norm(gram, axis=(-2, -1))) / 2**num_steps + log_scale
    return jnp.exp(jnp.max(log_norm))


def gram_iteration_padded(kernel: jax.Array, num_steps: int) -> jax.Array:
    """Return the bound of Delattre et al. 2024 (arXiv 2402.00240) for every padding of the convolution with stride 1.

    The kernels K^T * K of all steps are kept at the frequencies of a grid that holds the last of them, which costs less
    than the convolutions of kernels in the paper.
    """
    taps = kernel.shape[0]
    size = (taps - 1) * 2**num_steps + 1
    gram, log_scale = _narrow(jnp.fft.fft2(kernel, (size, size), axes=(0, 1))), jnp.zeros(())
    for step in range(num_steps):
        length = jnp.linalg.norm(gram) / size  # the Frobenius norm of the kernel
        log_scale += jnp.log(length) / 2**step
        gram = gram / length.astype(gram.dtype)
        gram = jnp.matmul(gram.conj().mT, gram, precision=jax.lax.Precision.HIGHEST)
    last = jnp.fft.ifft2(gram, axes=(0, 1)).real
    return jnp.exp(jnp.log(jnp.max(jnp.sum(jnp.abs(last), axis=(0, 1, 2)))) / 2**num_steps + log_scale)


def _narrow(waves: jax.Array) -> jax.Array:
    return waves if waves.shape[-2] >= waves.shape[-1] else waves.mT
