"""Test that only lifecycle/apply.py calls the writing methods of the clients and of the key file."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from lifecycle.clients.cloudflare.writer import CloudflareWriter
from lifecycle.clients.headscale.writer import HeadscaleWriter
from lifecycle.keyfile.writer import KeyFileWriter

WRITERS = (HeadscaleWriter, CloudflareWriter, KeyFileWriter)

# Names of methods that other objects, such as files, have, too.
AMBIGUOUS = {"write"}


def writing_methods() -> set[str]:
    """Return the public methods of the writers, without those that they inherit from their readers."""
    return {name for writer in WRITERS for name in vars(writer) if not name.startswith("_")} - AMBIGUOUS


def called_methods(path: Path) -> set[str]:
    """Return the names of all methods that a module calls."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return {node.func.attr for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)}


def test_writing_methods_are_found() -> None:
    assert {"delete_node", "create_pre_auth_key", "change", "write_metadata"} <= writing_methods()


@pytest.mark.parametrize("package", ["cleanup", "dns_watch", "health", "prune", "runtime", "settings", "status"])
def test_commands_call_no_writing_method(repository: Path, package: str) -> None:
    for path in (repository / "lifecycle" / package).rglob("*.py"):
        called = called_methods(path) & writing_methods()
        # A command can call the function of apply.py that has the same name.
        assert {name for name in called if f"apply.{name}(" not in path.read_text()} == set()


def test_other_top_level_modules_call_no_writing_method(repository: Path) -> None:
    for path in (repository / "lifecycle").glob("*.py"):
        assert path.name == "apply.py" or not called_methods(path) & writing_methods()
