"""What a parametrization is: pure functions between a kernel and raw parameters, some with a state beside them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

PyTree = Any


class Parametrization(NamedTuple):
    """A kernel as a function of raw parameters, which are what an optimizer changes.

    Attributes:
        init: `init(kernel) -> raw`: raw parameters, a pytree of arrays, that give a kernel near the given one. How near
            is said by each factory.
        apply: `apply(raw) -> kernel`: the kernel, of the dtype of the given one; pure and differentiable, nothing is
            written back.
        input_sizes: The spatial sizes of the input that the applied kernel is made for and as large as; the layer must
            then have circular padding. None where any input and padding will do.
        strides: Those of the layer that the applied kernel is made for; None where any will do.
        feature_group_count: That of the layer; None where any will do.
    """

    init: Callable[[jax.Array], PyTree]
    apply: Callable[[PyTree], jax.Array]
    input_sizes: tuple[int, ...] | None = None
    strides: int | Sequence[int] | None = None
    feature_group_count: int | None = None


class TrackedParametrization(NamedTuple):
    """A kernel as a function of a raw kernel and of a state, which is followed from step to step and not trained.

    Attributes:
        init: `init(kernel, key) -> state`: what is known of the kernel, a NamedTuple of arrays.
        update: `update(kernel, state) -> state`: the same for a kernel that has moved a little; without derivative. In
            evaluation it is left out.
        apply: `apply(kernel, state) -> kernel`: the kernel that the layer takes, of the dtype of the raw one; pure and
            differentiable in the kernel, with the state as a constant.
    """

    init: Callable[[jax.Array, jax.Array], Any]
    update: Callable[[jax.Array, Any], Any]
    apply: Callable[[jax.Array, Any], jax.Array]
