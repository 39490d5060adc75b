"""Save time and memory when libraries are imported; import this module before them."""

from __future__ import annotations

import importlib
import os
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _OnDemand(ModuleType):
    """A placeholder for a module that is imported when one of its attributes is used.

    Unlike `importlib.util.LazyLoader`, a second import statement does not load the module.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


# The libraries import asyncio for functions that are not used here.
sys.modules.setdefault("asyncio", _OnDemand("asyncio"))

# Otherwise pydantic reads the metadata of all installed packages to find plugins.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
