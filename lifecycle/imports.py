"""Save time and memory when libraries are imported. This module has to be imported before the libraries."""

from __future__ import annotations

import importlib
import os
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _OnDemand(ModuleType):
    """A placeholder for a module, which is imported when one of its attributes is used.

    `importlib.util.LazyLoader` is not used, because it loads a module at the second import statement for it.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


# Several libraries import asyncio, but only for functions that this program does not use.
sys.modules.setdefault("asyncio", _OnDemand("asyncio"))

# Without this variable, pydantic would search the metadata of all installed packages for plugins.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
