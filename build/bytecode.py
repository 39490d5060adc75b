"""Compile the modules that the commands import. Compiling all modules would triple the size of the image."""

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

UNREACHABLE = "http://127.0.0.1:9"
"""The discard port, on which nothing listens during a build."""

KUBECONFIG = f"""
apiVersion: v1
kind: Config
current-context: build
contexts: [{{name: build, context: {{cluster: build, user: build}}}}]
clusters: [{{name: build, cluster: {{server: "{UNREACHABLE}"}}}}]
users: [{{name: build, user: {{token: none}}}}]
"""

SETTINGS = {
    "CLOUDFLARE_API_TOKEN": "none",
    "CLOUDFLARE_API_URL": UNREACHABLE,
    "DOMAIN_NAME": "example.com",
    "TS_HOSTNAME": "build",
}

DRY_RUN = """
import sys
from lifecycle.cli import parse_arguments, run
status = run(parse_arguments(["--dry-run"]))
files = {getattr(module, "__file__", None) or "" for module in sys.modules.values()}
print(*files, sep="\\n")
sys.exit(status)
"""


def imported_modules() -> list[str]:
    """Return the names of all modules that the package imports, including imports inside functions."""
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


def loaded_files(**settings: str) -> set[str]:
    """Return the files that a dry run loads. It sends a request, for which libraries import further modules.

    The request fails, because no server listens.
    """
    result = subprocess.run(  # noqa: S603 - a fixed command
        [sys.executable, "-c", DRY_RUN], env=SETTINGS | settings, text=True, stdout=subprocess.PIPE, check=False
    )
    if result.returncode != 1:
        sys.exit(f"a dry run without servers exited with {result.returncode}, expected 1")
    return set(result.stdout.splitlines())


def main() -> None:
    """Run the dry runs, import all modules, and compile every file that was loaded."""
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(KUBECONFIG)
        file.flush()
        files = loaded_files(HEADSCALE_URL=UNREACHABLE, HEADSCALE_API_KEY="none")
        files |= loaded_files(HEADSCALE_ACCESS="exec", KUBECONFIG=file.name)
    for name in imported_modules():
        importlib.import_module(name)
    files |= {getattr(module, "__file__", None) or "" for module in sys.modules.values()}
    for source in sorted(file for file in files if file.startswith("/") and file.endswith(".py")):
        # Python must not compare modification times: the builder can change the time of a file when it creates the
        # layer.
        py_compile.compile(source, doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)


if __name__ == "__main__":
    main()
