"""Parameters of Flax's own layers as raw parameters of a parametrization, and back."""

from collections.abc import Callable, Mapping
from typing import Any

from spectrax.regularizers.parametrizations import Parametrization

PyTree = Any
Forms = Parametrization | Callable[[str], Parametrization | None]


def raw_params(params: Mapping[str, PyTree], forms: Forms, /) -> dict[str, PyTree]:
    """Return the parameters for layers with parametrizations from those of Flax's own layers of the same names.

    Args:
        params: Those of one layer or of a whole network, nested mappings. Only entries named "kernel" change.
        forms: The parametrization for all kernels, or a function of a layer's path, such as "encoder/Conv_0" (empty for
            one layer by itself), that gives its parametrization, or None where the layer has none.

    Returns:
        New nested dicts. How near the layer's function is to the one before is said by each parametrization's `init`.

    Raises:
        TypeError: If `params` is no mapping.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> import spectrax as sx
        >>> from spectrax.integrations.linen import Dense, applied_params, raw_params
        >>> form, x = sx.parametrizations.factored(), jnp.ones(3)
        >>> params = nn.Dense(2).init(jax.random.key(0), x)["params"]
        >>> raw = raw_params(params, form)
        >>> y = Dense(2, parametrization=form).apply({"params": raw}, x)
        >>> back = nn.Dense(2).apply({"params": applied_params(raw, form)}, x)
        >>> bool(jnp.allclose(y, nn.Dense(2).apply({"params": params}, x), atol=1e-6)), bool(jnp.allclose(y, back))
        (True, True)
    """
    return _converted(params, forms, lambda form, kernel: form.init(kernel))


def applied_params(params: Mapping[str, PyTree], forms: Forms, /) -> dict[str, PyTree]:
    """Return the parameters for Flax's own layers from those of layers with parametrizations of the same names.

    Args:
        params: Those of one layer or of a whole network, nested mappings. Only entries named "kernel" change.
        forms: As in `raw_params`.

    Returns:
        New nested dicts, with which Flax's layers give the same values. Where the parametrization makes kernels as
        large as the input, Flax's layer needs that `kernel_size`, and circular padding.

    Raises:
        TypeError: If `params` is no mapping.

    Example:
        >>> import jax.numpy as jnp
        >>> import spectrax as sx
        >>> from spectrax.integrations.linen import applied_params
        >>> params = {"first": {"kernel": jnp.eye(2)}, "last": {"kernel": 4 * jnp.eye(2), "bias": jnp.zeros(2)}}
        >>> form = sx.parametrizations.spectral_normalized()
        >>> made = applied_params(params, lambda path: form if path == "last" else None)
        >>> made["last"]["kernel"].tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    return _converted(params, forms, lambda form, raw: form.apply(raw))


def _converted(
    params: Mapping[str, PyTree], forms: Forms, convert: Callable[[Parametrization, PyTree], PyTree], path: str = ""
) -> dict[str, PyTree]:
    if not isinstance(params, Mapping):
        raise TypeError(f"params must be nested mappings, got {type(params).__name__}")
    made: dict[str, PyTree] = {}
    for name, value in params.items():
        if name == "kernel":
            form = forms if isinstance(forms, Parametrization) else forms(path)
            made[name] = value if form is None else convert(form, value)
        elif isinstance(value, Mapping):
            made[name] = _converted(value, forms, convert, f"{path}/{name}" if path else name)
        else:
            made[name] = value
    return made
