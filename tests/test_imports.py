"""Test when asyncio is loaded, and that a dry run removes the temporary files of the Kubernetes client."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml

PRINT_WHETHER_ASYNCIO_IS_LOADED = """
import sys
import lifecycle.imports
import httpcore, httpx, pydantic_settings, structlog, tenacity
loaded = "asyncio.events" in sys.modules
import asyncio
async def three():
    return 3
print(loaded, asyncio.run(three()), asyncio is sys.modules["asyncio"])
"""


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)


def test_asyncio_is_loaded_only_when_it_is_used() -> None:
    """`lifecycle.imports` replaces asyncio by a placeholder, which loads asyncio when a function of asyncio is used."""
    done = run_python("-c", PRINT_WHETHER_ASYNCIO_IS_LOADED)
    assert done.stdout.split() == ["False", "3", "False"], done.stderr


def test_dry_run_removes_the_files_of_the_kubernetes_client(tmp_path: Path) -> None:
    """The client writes certificates of a kubeconfig to temporary files, and removes them when Python exits."""
    config = tmp_path / "config"
    cluster = {"server": "https://127.0.0.1:9", "certificate-authority-data": "LS0tCg=="}
    config.write_text(
        yaml.safe_dump(
            {
                "current-context": "a",
                "contexts": [{"name": "a", "context": {"cluster": "b", "user": "c"}}],
                "clusters": [{"name": "b", "cluster": cluster}],
                "users": [{"name": "c", "user": {"token": "none"}}],
            }
        )
    )
    folder = tmp_path / "temporary"
    folder.mkdir()
    settings = {"CLOUDFLARE_API_TOKEN": "none", "DOMAIN_NAME": "example.com", "TS_HOSTNAME": "grafana"}
    access = {"HEADSCALE_ACCESS": "exec", "KUBECONFIG": str(config), "TMPDIR": str(folder)}
    done = run_python("-m", "lifecycle", "--dry-run", **settings, **access)
    assert "certificate" in done.stderr
    assert list(folder.iterdir()) == []
