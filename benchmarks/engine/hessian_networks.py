"""A small transformer and a small CNN, each in JAX and in PyTorch with the same weights and data.

The transformer predicts the next byte of this repository's licence: two blocks of causal attention and a GELU MLP with
layer norms in front. The CNN tells scikit-learn's digits apart: six 3x3 convolutions with ReLU. Weights are those after
some steps of Adam. Each framework has its own layouts (channels last and kernels (in, out) in JAX, the reverse in
PyTorch); PyTorch's attention is written with plain products, since its fused kernels have no second derivatives.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

Params = dict[str, Any]
LICENCE = Path(__file__).parents[2] / "LICENSE"
VOCABULARY = 128
EPSILON = 1e-5  # PyTorch's, of a layer norm


@dataclasses.dataclass(frozen=True)
class Transformer:
    """Sizes of the transformer."""

    width: int = 32
    blocks: int = 2
    heads: int = 4
    context: int = 32
    samples: int = 64

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """Return sequences of bytes, and for each byte the next one."""
        text = np.frombuffer(LICENCE.read_bytes(), np.uint8)
        starts = np.linspace(0, len(text) - self.context - 1, self.samples).astype(int)
        windows = text[starts[:, None] + np.arange(self.context + 1)].astype(np.int32)
        assert windows.max() < VOCABULARY
        return windows[:, :-1], windows[:, 1:]

    def initial(self) -> Params:
        rng, width = np.random.default_rng(0), self.width

        def normal(*shape: int, fan: int = 1) -> np.ndarray:
            return rng.normal(size=shape) / math.sqrt(fan)

        params = {"embedding": normal(VOCABULARY, width, fan=25), "positions": normal(self.context, width, fan=25)}
        sizes = {"attention": (width, 3 * width), "mixing": (width, width),
                 "up": (width, 4 * width), "down": (4 * width, width)}  # fmt: skip
        for block in range(self.blocks):
            for name, (n, m) in sizes.items():
                params |= {f"{name}{block}.weight": normal(n, m, fan=n), f"{name}{block}.bias": np.zeros(m)}
        for name in [f"norm{i}" for i in range(2 * self.blocks + 1)]:
            params |= {f"{name}.weight": np.ones(width), f"{name}.bias": np.zeros(width)}
        return params | {"out.weight": normal(width, VOCABULARY, fan=width), "out.bias": np.zeros(VOCABULARY)}

    def logits(self, params: Params, tokens: jax.Array) -> jax.Array:
        def linear(name: str, x: jax.Array) -> jax.Array:
            return x @ params[f"{name}.weight"] + params[f"{name}.bias"]

        def norm(name: str, x: jax.Array) -> jax.Array:
            centred = x - jnp.mean(x, -1, keepdims=True)
            scaled = centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), -1, keepdims=True) + EPSILON)
            return scaled * params[f"{name}.weight"] + params[f"{name}.bias"]

        x = params["embedding"][tokens] + params["positions"]
        causal = np.tri(self.context, dtype=bool)
        for block in range(self.blocks):
            split = linear(f"attention{block}", norm(f"norm{2 * block}", x))
            q, k, v = jnp.moveaxis(split.reshape(*split.shape[:2], 3, self.heads, -1), 2, 0)
            scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
            attention = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf))
            x = x + linear(f"mixing{block}", jnp.einsum("bhqk,bkhd->bqhd", attention, v).reshape(x.shape))
            inner = jax.nn.gelu(linear(f"up{block}", norm(f"norm{2 * block + 1}", x)), approximate=False)
            x = x + linear(f"down{block}", inner)
        return linear("out", norm(f"norm{2 * self.blocks}", x))

    def module(self) -> Any:
        """Return the network in PyTorch, with weights of its own."""
        import torch
        from torch import nn

        sizes = self

        class Norm(nn.LayerNorm):
            # forward over reverse, as in curvlinops, is wrong for PyTorch's own affine one (pytorch issue 196700)
            def forward(self, x):
                return nn.functional.layer_norm(x, self.normalized_shape, eps=self.eps) * self.weight + self.bias

        class Module(nn.Module):
            def __init__(self):
                super().__init__()
                self.embedding = nn.Parameter(torch.zeros(VOCABULARY, sizes.width))
                self.positions = nn.Parameter(torch.zeros(sizes.context, sizes.width))
                for block in range(sizes.blocks):
                    self.add_module(f"attention{block}", nn.Linear(sizes.width, 3 * sizes.width))
                    self.add_module(f"mixing{block}", nn.Linear(sizes.width, sizes.width))
                    self.add_module(f"up{block}", nn.Linear(sizes.width, 4 * sizes.width))
                    self.add_module(f"down{block}", nn.Linear(4 * sizes.width, sizes.width))
                for i in range(2 * sizes.blocks + 1):
                    self.add_module(f"norm{i}", Norm(sizes.width, EPSILON))
                self.out = nn.Linear(sizes.width, VOCABULARY)
                causal = torch.ones(sizes.context, sizes.context, dtype=torch.bool).tril()
                self.register_buffer("causal", causal, persistent=False)

            def forward(self, tokens):
                part = self.get_submodule
                x = nn.functional.embedding(tokens, self.embedding) + self.positions
                for block in range(sizes.blocks):
                    split = part(f"attention{block}")(part(f"norm{2 * block}")(x))
                    split = split.reshape(*split.shape[:2], 3, sizes.heads, -1)
                    q, k, v = (split[:, :, i].transpose(1, 2) for i in range(3))
                    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
                    attention = torch.softmax(scores.masked_fill(~self.causal, -torch.inf), -1)
                    x = x + part(f"mixing{block}")((attention @ v).transpose(1, 2).reshape(x.shape))
                    inner = nn.functional.gelu(part(f"up{block}")(part(f"norm{2 * block + 1}")(x)))
                    x = x + part(f"down{block}")(inner)
                return self.out(part(f"norm{2 * sizes.blocks}")(x)).flatten(0, 1)

        return Module()


@dataclasses.dataclass(frozen=True)
class Convolutional:
    """Channels of the convolutions of the CNN, each with its stride."""

    channels: tuple[int, ...] = (16, 16, 32, 32, 64, 64)
    strides: tuple[int, ...] = (1, 1, 2, 1, 2, 1)
    samples: int = 256

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """Return pictures of 8 x 8 pixels, channels last, and their digits."""
        images, labels = load_digits(return_X_y=True)
        return images[: self.samples].reshape(-1, 8, 8, 1) / 16, labels[: self.samples].astype(np.int32)

    def initial(self) -> Params:
        rng, before, params = np.random.default_rng(0), 1, {}
        for i, after in enumerate(self.channels):
            params[f"conv{i}.weight"] = rng.normal(size=(3, 3, before, after)) * math.sqrt(2 / (9 * before))
            params[f"conv{i}.bias"] = np.zeros(after)
            before = after
        return params | {"out.weight": rng.normal(size=(before, 10)) / math.sqrt(before), "out.bias": np.zeros(10)}

    def logits(self, params: Params, x: jax.Array) -> jax.Array:
        for i, stride in enumerate(self.strides):
            # PyTorch's padding: a pixel on each side, where "SAME" has none in front for stride 2
            x = jax.lax.conv_general_dilated(
                x, params[f"conv{i}.weight"], (stride, stride), ((1, 1), (1, 1)),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )  # fmt: skip
            x = jax.nn.relu(x + params[f"conv{i}.bias"])
        return jnp.mean(x, (1, 2)) @ params["out.weight"] + params["out.bias"]

    def module(self) -> Any:
        """Return the network in PyTorch, with weights of its own."""
        from torch import nn

        sizes = self

        class Module(nn.Module):
            def __init__(self):
                super().__init__()
                before = 1
                for i, (after, stride) in enumerate(zip(sizes.channels, sizes.strides, strict=True)):
                    self.add_module(f"conv{i}", nn.Conv2d(before, after, 3, stride, padding=1))
                    before = after
                self.out = nn.Linear(before, 10)

            def forward(self, x):
                for i in range(len(sizes.channels)):
                    x = nn.functional.relu(self.get_submodule(f"conv{i}")(x))
                return self.out(x.mean((2, 3)))

        return Module()


Network = Transformer | Convolutional


def loss(network: Network, params: Params, inputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Return the mean cross-entropy."""
    logits = network.logits(params, inputs)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, targets))


def loss_of(network: Network) -> Callable[..., jax.Array]:
    """Return loss(params, inputs, targets) of a network; equal networks give equal functions."""
    return functools.partial(loss, network)


def trained(network: Network, steps: int, *, rate: float = 3e-3) -> Params:
    """Return the weights after some steps of Adam on all the data, in NumPy and float32."""
    inputs, targets = (
        jnp.asarray(part, part.dtype if part.dtype == np.int32 else "float32") for part in network.data()
    )
    params = {name: jnp.asarray(leaf, jnp.float32) for name, leaf in network.initial().items()}
    optimizer = optax.adam(rate)

    @jax.jit
    def step(params: Params, state: Any) -> tuple[Params, Any]:
        gradient = jax.grad(loss_of(network))(params, inputs, targets)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return {name: np.asarray(leaf) for name, leaf in params.items()}


def in_torch(name: str, leaf: np.ndarray) -> np.ndarray:
    """Return a weight, or a part of a vector, in PyTorch's layout: output channels first."""
    if name.startswith("conv") and leaf.ndim == 4:
        return leaf.transpose(3, 2, 0, 1)
    return leaf.T if name.endswith(".weight") and leaf.ndim == 2 else leaf


def in_jax(name: str, leaf: np.ndarray) -> np.ndarray:
    """Return a weight, or a part of a vector, in JAX's layout: the inverse of `in_torch`."""
    if name.startswith("conv") and leaf.ndim == 4:
        return leaf.transpose(2, 3, 1, 0)
    return in_torch(name, leaf)


def torch_data(network: Network, dtype: Any) -> tuple[Any, Any]:
    """Return the data as PyTorch's tensors: channels first, targets in one row."""
    import torch

    inputs, targets = network.data()
    if isinstance(network, Convolutional):
        return torch.as_tensor(inputs.transpose(0, 3, 1, 2).copy(), dtype=dtype), torch.as_tensor(targets).long()
    return torch.as_tensor(inputs).long(), torch.as_tensor(targets).long()


def torch_module(network: Network, params: Params, dtype: Any) -> Any:
    """Return the network in PyTorch with these weights."""
    import torch

    module = network.module().to(dtype)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            weight.copy_(torch.as_tensor(in_torch(name, params[name]).copy()))
    return module
