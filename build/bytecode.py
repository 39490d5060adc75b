"""Compile what the commands import, and nothing else: the rest would triple the image's size."""

import ast
import importlib
import importlib.util
import os
import pkgutil
import py_compile
import sys
from pathlib import Path

import lifecycle

NOBODY = "http://127.0.0.1:9"
"""The discard port, where nothing listens."""


def imported_modules() -> list[str]:
    """Names that the package imports anywhere, also inside functions, where slow imports wait until needed."""
    names: set[str] = set()
    for module in pkgutil.walk_packages(lifecycle.__path__, "lifecycle."):
        names.add(module.name)
        spec = importlib.util.find_spec(module.name)
        if spec is None or spec.origin is None:
            continue
        for node in ast.walk(ast.parse(Path(spec.origin).read_bytes())):
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module)
    return sorted(names)


def rehearse() -> None:
    """Get as far as the first request, for what libraries import no sooner; nobody answers, and nothing is written."""
    os.environ |= {
        "CLOUDFLARE_API_TOKEN": "none",
        "CLOUDFLARE_API_URL": NOBODY,
        "DOMAIN_NAME": "example.com",
        "HEADSCALE_API_KEY": "none",
        "HEADSCALE_URL": NOBODY,
        "TS_HOSTNAME": "rehearsal",
    }
    run = importlib.import_module("lifecycle.cli").run
    status = run(["--dry-run"])
    if status != 1:
        sys.exit(f"the rehearsal was to end for want of an answer (1), and ended with {status}")


def main() -> None:
    """Import all of it, then compile what that has loaded."""
    for name in imported_modules():
        importlib.import_module(name)
    rehearse()
    for module in list(sys.modules.values()):
        source = getattr(module, "__file__", None)
        if source and source.endswith(".py"):
            # By hash and unchecked: a source's time of change may be set anew when the layer is made.
            py_compile.compile(source, doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)


if __name__ == "__main__":
    main()
