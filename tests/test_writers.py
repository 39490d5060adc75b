"""Test that only lifecycle/apply.py and the writers call the writing methods of the clients and of the key file."""

from __future__ import annotations

import ast
from pathlib import Path

from lifecycle.clients.cloudflare.writer import CloudflareWriter
from lifecycle.clients.headscale.writer import HeadscaleWriter
from lifecycle.keyfile.writer import KeyFileWriter

WRITERS = (HeadscaleWriter, CloudflareWriter, KeyFileWriter)

# The names of writing methods that other objects also have. For example, files have a method `write`.
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


def test_other_modules_call_no_writing_method(repository: Path) -> None:
    for path in (repository / "lifecycle").rglob("*.py"):
        assert path.name in {"apply.py", "writer.py"} or not called_methods(path) & writing_methods(), path
