"""Compile what the commands import, and nothing else: the rest would triple the image's size."""

import ast
import importlib
import importlib.util
import pkgutil
import py_compile
import subprocess
import sys
import tempfile
from pathlib import Path

import lifecycle

NOBODY = "http://127.0.0.1:9"
"""The discard port, where nothing listens."""

KUBECONFIG = f"""
apiVersion: v1
kind: Config
current-context: nobody
contexts: [{{name: nobody, context: {{cluster: nobody, user: nobody}}}}]
clusters: [{{name: nobody, cluster: {{server: "{NOBODY}"}}}}]
users: [{{name: nobody, user: {{token: none}}}}]
"""

SETTINGS = {
    "CLOUDFLARE_API_TOKEN": "none",
    "CLOUDFLARE_API_URL": NOBODY,
    "DOMAIN_NAME": "example.com",
    "TS_HOSTNAME": "rehearsal",
}

DRY_RUN = """
import sys
from lifecycle.cli import run
status = run(["--dry-run"])
files = {getattr(module, "__file__", None) or "" for module in sys.modules.values()}
print(*files, sep="\\n")
sys.exit(status)
"""


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


def rehearsed(**settings: str) -> set[str]:
    """Files that are loaded by the time of the first request, where libraries import what they did not at first.

    Nobody answers and nothing is written; a process of its own, since some settings are read only once.
    """
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", DRY_RUN], env=SETTINGS | settings, text=True, stdout=subprocess.PIPE, check=False
    )
    if done.returncode != 1:
        sys.exit(f"a dry run was to end for want of an answer (1), and ended with {done.returncode}")
    return set(done.stdout.splitlines())


def main() -> None:
    """Import and rehearse all of it, then compile what that has loaded."""
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(KUBECONFIG)
        file.flush()
        files = rehearsed(HEADSCALE_URL=NOBODY, HEADSCALE_API_KEY="none")
        files |= rehearsed(HEADSCALE_ACCESS="exec", KUBECONFIG=file.name)
    for name in imported_modules():
        importlib.import_module(name)
    files |= {getattr(module, "__file__", None) or "" for module in sys.modules.values()}
    for source in sorted(file for file in files if file.startswith("/") and file.endswith(".py")):
        # By hash and unchecked: a source's time of change may be set anew when the layer is made.
        py_compile.compile(source, doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)


if __name__ == "__main__":
    main()
