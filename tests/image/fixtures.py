"""Session fixtures: the image, which Buildah builds once for all tests, and the fixtures that the build needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.image.tools import ACCEPT_OLD_MIRRORS, ROOT, ImageBuild, require_commands, run, run_checked

# The commands that the scripts in build/ run on a cluster node, and the commands that build images.
COMMANDS = ("buildah", "busybox", "containerd", "ctr", "mmdebstrap", "podman", "runc")

BASE = "localhost/debian:test"

ENOUGH_MEMORY = 8 * 2**30
"""If the machine has at least this many bytes of memory, the tests keep their files, about 2 GiB, in memory."""


@pytest.fixture(scope="session")
def scratch_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for large files, in memory if the machine has enough. Without the commands, the test is skipped.

    The folder is deleted after the tests, because pytest would keep the folders of the last three runs.
    """
    require_commands(*COMMANDS)
    folder = tmp_path_factory.mktemp("w")
    if os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >= ENOUGH_MEMORY:
        run_checked(["mount", "-t", "tmpfs", "-o", f"mode=0755,size={ENOUGH_MEMORY // 2}", "tmpfs", folder])
    yield folder
    mount_points = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    # The latest mount is unmounted first, because it can be inside another mount.
    for mount_point in reversed(mount_points):
        if Path(mount_point).is_relative_to(folder):
            run(["umount", "--lazy", mount_point])
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def debian(scratch_dir: Path) -> Mapping[str, Path]:
    """Two root file systems of Debian stable.

    `base` is a tar file that replaces the base image. `tools` is a folder with the programs that the containers of the
    DaemonSet run.
    """
    file_systems = {
        "base": (scratch_dir / "base.tar", "ca-certificates"),
        "tools": (scratch_dir / "tools", "buildah,netavark,containerd"),
    }
    processes = {
        name: subprocess.Popen(
            ["mmdebstrap", "--variant=minbase", ACCEPT_OLD_MIRRORS, f"--include={packages}", "stable", path],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name, (path, packages) in file_systems.items()
    }
    for name, process in processes.items():
        output, _ = process.communicate()
        assert process.returncode == 0, f"mmdebstrap failed for {name}:\n{output}"
    return {name: path for name, (path, _) in file_systems.items()}


@pytest.fixture(scope="session")
def pip_volumes(scratch_dir: Path) -> list[str]:
    """Volumes that give pip in a build the same settings as on this machine."""
    settings = {}
    for line in run_checked([sys.executable, "-m", "pip", "config", "list"]).splitlines():
        # For example "global.timeout='60'".
        key, _, value = line.partition("=")
        name = key.rsplit(".", 1)[-1]
        if name in {"cert", "extra-index-url", "index-url", "proxy", "timeout", "trusted-host"}:
            settings[name] = value.strip("'")
    config = scratch_dir / "pip.conf"
    config.write_text("\n".join(["[global]", *(f"{name} = {value}" for name, value in settings.items()), ""]))
    volumes = [f"{config}:/etc/pip.conf:ro"]
    if "cert" in settings:
        volumes.append(f"{settings['cert']}:{settings['cert']}:ro")
    return volumes


@pytest.fixture(scope="session")
def build_environment(scratch_dir: Path, debian: Mapping[str, Path], pip_volumes: list[str]) -> dict[str, str]:
    """The environment for Buildah: a storage in the scratch folder, which contains the base image."""
    storage = scratch_dir / "storage.conf"
    storage.write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{scratch_dir}/layers"\nrunroot = "{scratch_dir}/layers-run"\n'
    )
    environment = {
        **os.environ,
        "CONTAINERS_STORAGE_CONF": str(storage),
        "BUILDAH_ISOLATION": "chroot",
        "BASE_IMAGE": BASE,
        "BUILD_FLAGS": " ".join(f"--volume {volume}" for volume in pip_volumes),
        "TMPDIR": str(scratch_dir),
    }
    container = run_checked(["buildah", "from", "scratch"], env=environment).strip()
    run_checked(["buildah", "add", "--quiet", container, debian["base"], "/"], env=environment)
    run_checked(["buildah", "commit", "--quiet", "--rm", container, BASE], env=environment)
    return environment


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources of the image, packed with the documented command."""
    archive = tmp_path_factory.mktemp("sources") / "sources.tar.gz"
    run_checked([ROOT / "scripts/image", "--sources", archive])
    return archive


@pytest.fixture(scope="session")
def shared_build(scratch_dir: Path, build_environment: dict[str, str], sources: Path) -> ImageBuild:
    """The image, built once for all tests. Tests must not change it."""
    folder = scratch_dir / "shared"
    folder.mkdir()
    image_build = ImageBuild(folder, sources, build_environment)
    image_build.run_checked()
    return image_build
