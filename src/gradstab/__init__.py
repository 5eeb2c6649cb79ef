"""gradstab, the workbench for gradient stability in PyTorch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradstab.monitor import watch as watch

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """``watch`` is imported when it is asked for: it needs torch, and most of gradstab starts without."""
    if name == "watch":
        return importlib.import_module("gradstab.monitor").watch
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
