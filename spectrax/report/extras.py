"""Optional packages: imported where they are used, with an error that names the extra that brings them."""

import importlib
from types import ModuleType


def require(module: str, purpose: str, *, extra: str = "demo") -> ModuleType:
    """Import an optional module, or say which extra of spectrax installs it.

    Args:
        module: The dotted name of the module.
        purpose: What it is needed for, as the beginning of a sentence ("drawing plots").
        extra: The extra of the distribution that brings it.

    Returns:
        The module.

    Raises:
        ImportError: If the module cannot be found, naming the extra.

    Example:
        >>> require("math", "adding").pi > 3
        True
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{purpose} needs the package {module.partition('.')[0]}, which is not installed: "
            f'python -m pip install "jax-spectrax[{extra}]"'
        ) from error
