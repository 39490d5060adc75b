"""Fixtures for tests that run the pod: the stand-in image and podman."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.image.tools import Builds
from tests.pod.network import ROOT
from tests.pod.play import Podman, podman

STAND_INS = "localhost/stand-ins:test"

_PACKAGES = "busybox,iproute2,nginx-light,python3-httpx,python3-werkzeug"
_SOURCES = ("__init__.py", "simulators", "pod/__init__.py", "pod/application.py", "pod/tailscale_container.py")


def needs(*commands: str) -> None:
    """Skip the test unless it runs as root on Linux and all commands are installed."""
    missing = [command for command in commands if shutil.which(command) is None]
    if sys.platform != "linux" or os.geteuid() != 0 or missing:
        pytest.skip(f"needs root on Linux and {', '.join(missing or commands)}: as root, scripts/bootstrap --system")


@pytest.fixture(scope="session")
def stand_ins(scratch_dir: Path) -> Path:
    """Build a root file system with Debian's nginx and the stand-ins for the application and tailscale."""
    needs("mmdebstrap")
    archive = scratch_dir / "stand-ins.tar"
    done = subprocess.run(
        [
            *("mmdebstrap", "--variant=essential", '--aptopt=Acquire::Check-Valid-Until "false"'),
            *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "locale", "man")),
            f"--include={_PACKAGES}",
            '--customize-hook=mkdir -p "$1/opt/tests/pod"',
            *(f'--customize-hook=cp -R "{ROOT}/tests/{name}" "$1/opt/tests/{name}"' for name in _SOURCES),
            # The images of nginx and tailscale have the tools of BusyBox too.
            *(f'--customize-hook=ln -s busybox "$1/usr/bin/{name}"' for name in ("netstat", "wget")),
            *("stable", archive),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return archive


@pytest.fixture(scope="session")
def runtime(scratch_dir: Path, stand_ins: Path, first_build: Builds) -> Iterator[Podman]:
    """Start podman with the image of this repository and the stand-in image."""
    needs("catatonit", "conmon", "ip", "nginx", "nsenter", "openssl", "podman", "runc", "unshare")
    folder = scratch_dir / "podman"
    folder.mkdir()
    with podman(folder) as machine:
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        machine.run("import", "--quiet", f"--change=ENV PATH={path}", stand_ins, STAND_INS)
        machine.run("load", "--quiet", "--input", first_build.archive.path)
        yield machine
