"""Test that the locked requirements have wheels for every architecture of the image."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.image.tools import ROOT, run_checked

PYTHON = "3.13"
"""The version of Python in Debian 13, the base of the image."""

needs_uv = pytest.mark.skipif(
    shutil.which("uv") is None, reason="needs uv: python3 -m pip install -r requirements-uv.txt"
)


@needs_uv
@pytest.mark.parametrize("architecture", ["x86_64", "aarch64"])
@pytest.mark.parametrize("requirements", ["requirements.txt", "requirements-build.txt"])
def test_every_package_has_a_locked_wheel(architecture: str, requirements: str, tmp_path: Path) -> None:
    """uv installs the wheels for this architecture into a folder, and verifies their hashes."""
    platform = ["--python-version", PYTHON, "--python-platform", f"{architecture}-unknown-linux-gnu"]
    options = ["--system-certs", "--only-binary", ":all:", "--require-hashes", *platform]
    run_checked(["uv", "pip", "install", *options, "--target", tmp_path, "--requirement", ROOT / requirements])
