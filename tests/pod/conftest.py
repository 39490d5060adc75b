"""Fixtures for tests that load settings from manifests, and for tests that run a pod with podman."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.image.tools import ACCEPT_OLD_MIRRORS, ImageBuild, require_commands
from tests.pod.kubelet import Podman, podman
from tests.pod.network import ROOT, run

STAND_INS = "localhost/stand-ins:test"
"""The image that replaces the images of the application, nginx and tailscale."""

_PACKAGES = "busybox,iproute2,nginx-light,python3-httpx,python3-werkzeug"
_COPIED_FILES = ("__init__.py", "simulators", "pod/__init__.py", "pod/application.py", "pod/tailscale_container.py")

SetVariables = Callable[[Mapping[str, str | None]], None]


@pytest.fixture
def set_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SetVariables:
    """Return a function that sets environment variables.

    The value None stands for a value that the kubelet reads from the pod or from a Secret. A variable with the path of
    a Secret gets the path of an existing file.
    """
    secret = tmp_path / "secret"
    secret.write_text("made-up")

    def set_all(variables: Mapping[str, str | None]) -> None:
        for name, value in variables.items():
            if name.endswith("_FILE"):
                monkeypatch.setenv(name, str(secret))
            else:
                monkeypatch.setenv(name, "from-the-kubelet" if value is None else value)

    return set_all


@pytest.fixture(scope="session")
def stand_ins(scratch_dir: Path) -> Path:
    """Build a root file system with Debian's nginx and the stand-ins for application and tailscale, as a tar file."""
    archive = scratch_dir / "stand-ins.tar"
    run(
        *("mmdebstrap", "--variant=essential", ACCEPT_OLD_MIRRORS),
        *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "locale", "man")),
        f"--include={_PACKAGES}",
        '--customize-hook=mkdir -p "$1/opt/tests/pod"',
        *(f'--customize-hook=cp -R "{ROOT}/tests/{name}" "$1/opt/tests/{name}"' for name in _COPIED_FILES),
        # Probes and documented commands run these two programs, which BusyBox provides in the real images.
        *(f'--customize-hook=ln -s busybox "$1/usr/bin/{name}"' for name in ("netstat", "wget")),
        *("stable", archive),
    )
    return archive


@pytest.fixture(scope="session")
def runtime(scratch_dir: Path, stand_ins: Path, shared_build: ImageBuild) -> Iterator[Podman]:
    """Set up podman with the image of this repository and the stand-in image."""
    require_commands("catatonit", "conmon", "ip", "nginx", "nsenter", "openssl", "podman", "runc", "unshare")
    folder = scratch_dir / "podman"
    folder.mkdir()
    with podman(folder) as runtime:
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        runtime.run("import", "--quiet", f"--change=ENV PATH={path}", stand_ins, STAND_INS)
        runtime.run("load", "--quiet", "--input", shared_build.archive.path)
        yield runtime
