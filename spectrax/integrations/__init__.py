"""Ways in and out: what other libraries hold, read and written."""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from spectrax.integrations import checkpoints, long_runs, torch_files

if TYPE_CHECKING:
    from spectrax.integrations import linen, nnx

__all__ = ["checkpoints", "linen", "long_runs", "nnx", "torch_files"]


def __getattr__(name: str) -> ModuleType:
    if name in ("linen", "nnx"):  # loaded when they are asked for, since they import Flax
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
