"""Fixtures that are created for each test: a copy of the built image, and a containerd."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.image.tools import Containerd, ImageBuild


@pytest.fixture
def image_build(shared_build: ImageBuild, scratch_dir: Path, request: pytest.FixtureRequest) -> Iterator[ImageBuild]:
    """A build with the shared sources and a copy of the shared archive, which the test may change."""
    folder = scratch_dir / request.node.name.replace("/", "-")
    folder.mkdir()
    shutil.copy(shared_build.archive.path, folder / "image.tar")
    yield ImageBuild(folder, shared_build.sources, shared_build.environment)
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
