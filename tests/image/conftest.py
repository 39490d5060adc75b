"""Fixtures for a single test: a copy of the built image, and a containerd."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.image.tools import Builds, Containerd


@pytest.fixture
def builds(first_build: Builds, scratch_dir: Path, request: pytest.FixtureRequest) -> Iterator[Builds]:
    """The sources of the image and a copy of the built archive. The test may change them."""
    folder = scratch_dir / request.node.name.replace("/", "-")
    folder.mkdir()
    shutil.copy(first_build.archive.path, folder / "image.tar")
    yield Builds(folder, first_build.sources, first_build.environment)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def containerd(scratch_dir: Path) -> Iterator[Containerd]:
    """A containerd without images."""
    # The name is short, because Linux limits the path of a socket to 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="c", dir=scratch_dir))
    containerd = Containerd(folder)
    containerd.start()
    yield containerd
    containerd.stop()
    shutil.rmtree(folder, ignore_errors=True)
