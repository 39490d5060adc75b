"""Test that asyncio, which `lifecycle.imports` replaces by a placeholder, is loaded only when it is used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
import lifecycle.imports
import httpcore, httpx, pydantic_settings, structlog, tenacity
assert "asyncio.events" not in sys.modules, "a library has used asyncio"

import asyncio
async def return_three():
    return 3
assert asyncio.run(return_three()) == 3
assert sys.modules["asyncio"] is not asyncio, "asyncio was not a placeholder"
"""


def test_asyncio_is_loaded_only_when_it_is_used(repository: Path) -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], cwd=repository, check=True)
