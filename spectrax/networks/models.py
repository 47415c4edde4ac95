"""Builders of small networks for images, from a plain network to a residual one.

The networks are those of the family z_k = phi(W_k z_{k-1} + b_k) + rho z_{k-1}: `convnet` has rho = 0, `resnet`
rho = 1 by default, and `densenet` sets the input beside the output instead of adding it.

Every convolution counts as the linear map that it is, and the dense factorisation of an m x n map costs about
m n min(m, n). So a stem of strided convolutions first halves the image until no side is longer than seven: with the
default width of 16 no layer has min(m, n) above 784 on 28 x 28 x 1 images, nor above 256 on 8 x 8 x 1.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax

from spectrax import checks
from spectrax.networks import layers
from spectrax.networks.layers.activation import Activation
from spectrax.networks.layers.layer import Child, Layer, Shape, Tree, real, sample_shape

NORMALIZATIONS = (None, "batch", "layer")
PADDINGS = ("SAME", "CIRCULAR")
STEM_SIZE = 7


@dataclasses.dataclass(frozen=True)
class Stem(Layer):
    """Convolutions of stride 2 until no side of the image exceeds `STEM_SIZE` (one of stride 1 if none does).

    How many there are follows from the sample's shape: two for 28 x 28, one for 8 x 8. So one builder serves every
    size.
    """

    style: "Style"

    kind: ClassVar[str] = "stem"

    def unrolled(self, input_shape: Shape, /) -> Layer:
        """The chain that the stem is for samples of `input_shape`."""
        if len(input_shape) != 3:
            raise ValueError(f"stem: the input must be one image (H, W, C), got shape {input_shape}")
        size = max(input_shape[:2])
        parts = self.style.convolution((3, 3), strides=2 if size > STEM_SIZE else 1)
        size = -(-size // 2)
        while size > STEM_SIZE:
            parts += self.style.convolution((3, 3), strides=2)
            size = -(-size // 2)
        return layers.chain(*parts)

    def output_shape(self, input_shape: Sequence[int], /) -> Shape:
        """The small image, with the style's width as channels."""
        shape = sample_shape(input_shape)
        return self.unrolled(shape).output_shape(shape)

    def children(self, input_shape: Shape, /) -> tuple[Child, ...]:
        """The layers of the chain."""
        return self.unrolled(input_shape).children(input_shape)

    def create(self, key: Any, input_shape: Shape, /) -> tuple[Tree, Tree]:
        """Create the variables of the chain."""
        return self.unrolled(input_shape).create(key, input_shape)

    def forward(
        self, params: Mapping[str, Any], batch_stats: Mapping[str, Any], x: jax.Array, /, *, train: bool
    ) -> tuple[jax.Array, Tree]:
        """Apply the chain."""
        return self.unrolled(x.shape).forward(params, batch_stats, x, train=train)


@dataclasses.dataclass(frozen=True)
class Style:
    """The hyper-parameters that all layers of a model share."""

    width: int
    activation: Activation
    normalization: str | None
    padding: str

    def convolution(self, size: tuple[int, int], *, strides: int = 1, variance: float = 1.0) -> list[Layer]:
        """A convolution to `width` channels, its normalisation and its activation."""
        linear = layers.convolution(
            self.width,
            size,
            strides=strides,
            padding=self.padding,
            use_bias=self.normalization != "batch",  # Batch norm subtracts whatever a bias adds.
            kernel_init=layers.variance_scaling(variance * self.activation.gain),
        )
        return [linear, *self.normalized(), self.activation]

    def dense(self, *, variance: float = 1.0) -> list[Layer]:
        """A dense layer to `width` features, its normalisation and its activation."""
        linear = layers.dense(
            self.width,
            use_bias=self.normalization != "batch",
            kernel_init=layers.variance_scaling(variance * self.activation.gain),
        )
        return [linear, *self.normalized(), self.activation]

    def normalized(self) -> list[Layer]:
        """The normalisation, if there is one."""
        if self.normalization is None:
            return []
        return [layers.batch_norm() if self.normalization == "batch" else layers.layer_norm()]


def mlp(
    num_classes: int,
    *,
    width: int = 64,
    depth: int = 3,
    activation: str | Activation = "relu",
    rho: float = 0.0,
    normalization: str | None = None,
) -> Layer:
    """A multilayer perceptron: flatten, `depth` hidden layers phi(W z + b) + rho z, and a linear readout.

    The first hidden layer changes the width, so it has no skip; the others have one where rho is not zero. Initial
    weights are those of `resnet`.

    Args:
        num_classes: The number of outputs.
        width: The number of features of each hidden layer.
        depth: The number of hidden layers.
        activation: A name that `layers.activation` knows, or such a layer.
        rho: The fraction of the identity in each skip.
        normalization: `None`, `"batch"` or `"layer"`, between each hidden linear map and its activation.

    Returns:
        A layer for samples of any shape.

    Raises:
        TypeError: If a number is not of its kind.
        ValueError: If a number is out of range, or a name is unknown.

    Example:
        >>> import spectrax as sx
        >>> sx.layers.linear_maps(sx.models.mlp(10, rho=0.5), (8, 8, 1)).names
        ('dense_1', 'skip_3/body/dense_0', 'skip_4/body/dense_0', 'dense_5')
    """
    style = _style(width, activation, normalization, "SAME")
    rho = real("rho", rho)
    checks.positive_integer("depth", depth)
    parts = [layers.flatten(), *style.dense()]
    for _ in range(depth - 1):
        parts += _residual(style.dense(variance=_branch_variance(rho, depth - 1)), rho)
    return layers.chain(*parts, _readout(num_classes))


def convnet(
    num_classes: int,
    *,
    width: int = 16,
    depth: int = 4,
    activation: str | Activation = "relu",
    rho: float = 0.0,
    normalization: str | None = None,
    padding: str = "SAME",
) -> Layer:
    """A plain convolutional network: `resnet` without skips.

    Args:
        num_classes: The number of outputs.
        width: The number of channels.
        depth: The number of layers after the stem.
        activation: A name that `layers.activation` knows, or such a layer.
        rho: Zero; it is here so that the models share their hyper-parameters.
        normalization: `None`, `"batch"` or `"layer"`, between each convolution and its activation.
        padding: `"SAME"` or `"CIRCULAR"`.

    Returns:
        A layer for images (H, W, C).

    Raises:
        TypeError: If a number is not of its kind.
        ValueError: If `rho` is not zero, a number is out of range, or a name is unknown.

    Example:
        >>> import spectrax as sx
        >>> sx.layers.linear_maps(sx.models.convnet(10, depth=2), (28, 28, 1)).names
        ('stem_0/conv_0', 'stem_0/conv_2', 'conv_1', 'conv_3', 'dense_6')
    """
    if real("rho", rho) != 0:
        raise ValueError(f"convnet has no skips, so rho must be 0, got {rho}; resnet takes any rho")
    return resnet(
        num_classes,
        width=width,
        depth=depth,
        activation=activation,
        rho=0.0,
        normalization=normalization,
        padding=padding,
    )


def resnet(
    num_classes: int,
    *,
    width: int = 16,
    depth: int = 4,
    activation: str | Activation = "relu",
    rho: float = 1.0,
    normalization: str | None = None,
    padding: str = "SAME",
) -> Layer:
    """A residual network: a strided stem, `depth` blocks phi(W z + b) + rho z, and a linear readout of all features.

    The stem halves the image with 3 x 3 convolutions of stride 2 until no side is longer than seven (28 x 28 to 7 x 7
    in two, 8 x 8 to 4 x 4 in one); each block is a 3 x 3 convolution at that resolution. With rho = 0 the blocks have
    no skip, and the network is `convnet`.

    Weights start with variance gain / fan_in (He's, with the activation's own gain), so that the signal keeps its
    second moment. A block with a skip adds its branch to rho times its input: its variance is multiplied by
    max(1 - rho^2, 1 / depth). Below rho = 1 the two parts then sum to one; at rho = 1 all the branches together add
    about as much as the input itself, and each block starts near the identity, where it is well conditioned. This is
    what lets the network train without normalisation: on 8 x 8 digits with 32 blocks of ReLUs the outputs start with a
    standard deviation of 5 instead of 1e6. (The factor 1 / depth holds the variance; the means of activations such as
    the ReLU add up too, so some growth, exponential in the square root of the depth, remains.)

    Args:
        num_classes: The number of outputs.
        width: The number of channels.
        depth: The number of blocks.
        activation: A name that `layers.activation` knows, or such a layer.
        rho: The fraction of the identity in each skip.
        normalization: `None`, `"batch"` or `"layer"`, between each convolution and its activation.
        padding: `"SAME"` or `"CIRCULAR"`.

    Returns:
        A layer for images (H, W, C).

    Raises:
        TypeError: If a number is not of its kind.
        ValueError: If a number is out of range, or a name is unknown.

    Example:
        >>> import jax
        >>> import spectrax as sx
        >>> net = sx.models.resnet(10, depth=2)
        >>> maps = sx.layers.linear_maps(net, (28, 28, 1))
        >>> variables = net.init(jax.random.key(0), (28, 28, 1))
        >>> for name, operator in maps(variables["params"]).items():
        ...     print(name, operator.shape)
        stem_0/conv_0 (3136, 784)
        stem_0/conv_2 (784, 3136)
        skip_1/body/conv_0 (784, 784)
        skip_2/body/conv_0 (784, 784)
        dense_4 (10, 784)

    Source:
        He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv 1512.03385; the fraction
        of the identity is that of Riedi, Balestriero, Baraniuk, Constructive Approximation 57(2), 2023, DOI
        10.1007/s00365-022-09601-5; the scale 1 / depth is studied in Marion, Fermanian, Biau, Vert, "Scaling
        ResNets in the Large-depth Regime", JMLR 26, 2025, arXiv 2206.06929.
    """
    style = _style(width, activation, normalization, padding)
    rho = real("rho", rho)
    checks.positive_integer("depth", depth)
    parts: list[Layer] = [Stem(style)]
    for _ in range(depth):
        parts += _residual(style.convolution((3, 3), variance=_branch_variance(rho, depth)), rho)
    return layers.chain(*parts, layers.flatten(), _readout(num_classes))


def densenet(
    num_classes: int,
    *,
    width: int = 16,
    depth: int = 4,
    activation: str | Activation = "relu",
    rho: float = 1.0,
    normalization: str | None = None,
    padding: str = "SAME",
) -> Layer:
    """A densely connected network: layers [rho z ; phi(W z + b)] in two groups with a transition between them.

    The stem is that of `resnet`. Each layer adds `width` channels (the growth rate) by a 3 x 3 convolution. After the
    first half of the layers a 1 x 1 convolution brings the channels back to `width`, and an average over windows of 2
    halves the image. So every convolution has `width` output channels, and min(m, n) is at most 49 x width after the
    stem. A linear readout of all features follows.

    Args:
        num_classes: The number of outputs.
        width: The number of channels that each layer adds.
        depth: The number of layers that add channels.
        activation: A name that `layers.activation` knows, or such a layer.
        rho: The fraction of its input that a layer passes on.
        normalization: `None`, `"batch"` or `"layer"`, between each convolution and its activation.
        padding: `"SAME"` or `"CIRCULAR"`.

    Returns:
        A layer for images (H, W, C).

    Raises:
        TypeError: If a number is not of its kind.
        ValueError: If a number is out of range, or a name is unknown.

    Example:
        >>> import spectrax as sx
        >>> sx.models.densenet(10).output_shape((28, 28, 1))
        (10,)

    Source:
        Huang, Liu, van der Maaten, Weinberger, "Densely Connected Convolutional Networks", CVPR 2017, arXiv 1608.06993.
    """
    style = _style(width, activation, normalization, padding)
    rho = real("rho", rho)
    checks.positive_integer("depth", depth)
    second = depth // 2
    grow = [layers.concatenating_skip(layers.chain(*style.convolution((3, 3))), rho=rho)]
    parts: list[Layer] = [Stem(style), *grow * (depth - second)]
    if second:
        # SAME, without counting the padding: an odd side keeps its border, and an image of one pixel stays one.
        halve = layers.average_pool(2, padding="SAME", count_include_pad=False)
        parts += [*style.convolution((1, 1)), halve, *grow * second]
    return layers.chain(*parts, layers.flatten(), _readout(num_classes))


def _style(width: int, activation: str | Activation, normalization: str | None, padding: str) -> Style:
    checks.positive_integer("width", width)
    checks.choice("normalization", normalization, NORMALIZATIONS)
    checks.choice("padding", padding, PADDINGS)
    if isinstance(activation, str):
        activation = layers.activation(activation)
    if not isinstance(activation, Activation):
        raise TypeError(f"activation must be a name or a layer such as layers.activation('relu'), got {activation!r}")
    return Style(int(width), activation, normalization, padding)


def _branch_variance(rho: float, branches: int) -> float:
    return max(1 - rho * rho, 1 / branches) if rho else 1.0


def _residual(parts: list[Layer], rho: float) -> list[Layer]:
    return [layers.skip(layers.chain(*parts), rho=rho)] if rho else parts


def _readout(num_classes: int) -> Layer:
    checks.positive_integer("num_classes", num_classes)
    return layers.dense(int(num_classes))
