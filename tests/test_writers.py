"""Only apply.py calls the methods that change something."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from lifecycle.clients.cloudflare.writer import CloudflareWriter
from lifecycle.clients.headscale.writer import HeadscaleWriter
from lifecycle.keyfile.writer import KeyFileWriter

WRITERS = (HeadscaleWriter, CloudflareWriter, KeyFileWriter)

# Every file object has a method of this name.
AMBIGUOUS = {"write"}


def writing_methods() -> set[str]:
    """Return the public methods that the writers add to their readers."""
    return {name for writer in WRITERS for name in vars(writer) if not name.startswith("_")} - AMBIGUOUS


def calls(path: Path) -> set[str]:
    """Return the names of all methods that a module calls."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return {node.func.attr for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)}


def test_writers_have_methods() -> None:
    assert {"delete_node", "create_pre_auth_key", "change", "write_metadata"} <= writing_methods()


@pytest.mark.parametrize("package", ["cleanup", "dns_watch", "prune", "report", "health", "runtime", "settings"])
def test_commands_call_no_writing_method(repository: Path, package: str) -> None:
    for path in (repository / "lifecycle" / package).rglob("*.py"):
        # A command may call the function of apply.py that has the same name.
        assert {name for name in calls(path) & writing_methods() if f"apply.{name}(" not in path.read_text()} == set()


def test_modules_beside_apply_call_no_writing_method(repository: Path) -> None:
    for path in (repository / "lifecycle").glob("*.py"):
        assert path.name == "apply.py" or not calls(path) & writing_methods()
