"""Real Buildah, containerd and runc, started by the tests on sockets and in folders of their own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.image.tools import Builds, Containerd


@pytest.fixture
def builds(first_build: Builds, workshop: Path, request: pytest.FixtureRequest) -> Iterator[Builds]:
    """A cluster node that has the image, to do with as a test likes."""
    folder = workshop / request.node.name.replace("/", "-")
    folder.mkdir()
    shutil.copy(first_build.archive.path, folder / "image.tar")
    yield Builds(folder, first_build.sources, first_build.environment)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def containerd(workshop: Path) -> Iterator[Containerd]:
    """A containerd without images; its folder's name is short, since a socket's path must be."""
    folder = Path(tempfile.mkdtemp(prefix="c", dir=workshop))
    containerd = Containerd(folder)
    containerd.start()
    yield containerd
    containerd.stop()
    shutil.rmtree(folder, ignore_errors=True)
