"""Test with a real Buildah: the image that build.sh builds, when it builds again, and how it handles a failed build."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

import lifecycle
from tests.image.tools import IMAGE, ROOT, Archive, ImageBuild, blob_path, run, run_checked
from tests.real.programs import eventually

MAX_BYTES = 26_000_000
"""The budget for the compressed size. A larger image probably contains files that it does not need."""

SOURCES_HASH = "tailscale-lifecycle.sources"
"""The label with the hash of the sources from which the image was built."""

BUILD_TOOLS = re.compile(
    r"/s?bin/(apt.*|bash|dash|dpkg.*|gcc.*|git|make|perl.*|pip.*|sh|wheel)$|/(ensurepip|pip|setuptools|tests?|wheel)/|"
    r"^/(debs|root|sources|tmp|wheel|var/cache|var/lib/apt)/|\.(a|deb|whl)$"
)
"""The paths of files that are needed only during the build."""


def test_archive_has_the_full_name_of_the_image(shared_build: ImageBuild) -> None:
    annotations = shared_build.archive.index["manifests"][0]["annotations"]
    assert annotations["org.opencontainers.image.ref.name"] == IMAGE


def test_image_has_oci_labels(shared_build: ImageBuild) -> None:
    labels = shared_build.archive.labels
    assert labels["org.opencontainers.image.title"] == "tailscale-lifecycle"
    assert labels["org.opencontainers.image.version"] == lifecycle.__version__
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert re.fullmatch(r"unknown|[0-9a-f]{40}(\+changes)?", labels["org.opencontainers.image.revision"])
    assert re.fullmatch(r"unknown|https://[^@]+", labels["org.opencontainers.image.source"])
    assert re.fullmatch(r"[0-9a-f]{64}", labels[SOURCES_HASH])


def test_image_size_is_within_budget(shared_build: ImageBuild) -> None:
    assert shared_build.archive.size <= MAX_BYTES


def test_image_contains_no_build_tools(shared_build: ImageBuild) -> None:
    assert [path for path in shared_build.archive.files() if BUILD_TOOLS.search(f"/{path}")] == []


def test_image_contains_no_setuid_programs(shared_build: ImageBuild) -> None:
    setuid = [
        path
        for path, file in shared_build.archive.files().items()
        if file.type == tarfile.REGTYPE and file.mode & (stat.S_ISUID | stat.S_ISGID)
    ]
    assert setuid == []


def test_unchanged_sources_start_no_new_build(image_build: ImageBuild) -> None:
    before = image_build.archive.path.stat()
    assert image_build.is_up_to_date()
    after = image_build.archive.path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_changed_sources_replace_the_archive_atomically(image_build: ImageBuild) -> None:
    def change(sources: Path) -> None:
        (sources / "lifecycle/__init__.py").write_text('"""Changed."""\n\n__version__ = "99.0.0"\n')

    before = image_build.archive.digest
    with image_build.archive.path.open("rb") as open_archive:
        image_build.change_sources(change)
        image_build.run_checked()
        # A process that has opened the old archive can read all of it.
        assert len(open_archive.read()) == os.fstat(open_archive.fileno()).st_size
        assert os.fstat(open_archive.fileno()).st_ino != image_build.archive.path.stat().st_ino
    assert image_build.archive.digest != before
    assert image_build.archive.labels["org.opencontainers.image.version"] == "99.0.0"


def test_same_files_at_another_commit_start_no_new_build(image_build: ImageBuild) -> None:
    def change(sources: Path) -> None:
        (sources / "REVISION").write_text("0" * 40)
        (sources / "ORIGIN").write_text("https://example.com/elsewhere.git")

    image_build.change_sources(change)
    assert image_build.is_up_to_date()


def test_renaming_a_source_file_starts_a_new_build(image_build: ImageBuild) -> None:
    image_build.change_sources(lambda sources: (sources / "lifecycle/cli.py").rename(sources / "lifecycle/renamed.py"))
    assert not image_build.is_up_to_date()


def test_change_without_effect_on_the_layers_is_built_once(image_build: ImageBuild) -> None:
    """Buildah reuses all layers, but the label must get the new hash. Otherwise, each run of build.sh would build."""

    def change(sources: Path) -> None:
        script = sources / "build/bytecode.py"
        script.write_text(f"{script.read_text()}# changed\n")

    image_build.change_sources(change)
    before = image_build.archive.labels[SOURCES_HASH]
    image_build.run_checked()
    assert image_build.archive.labels[SOURCES_HASH] != before
    assert image_build.is_up_to_date()


def test_change_of_the_base_image_starts_a_new_build(image_build: ImageBuild) -> None:
    assert not image_build.is_up_to_date(BASE_IMAGE="localhost/another:base")


def test_failed_build_keeps_the_archive_and_reports_the_reason(image_build: ImageBuild) -> None:
    """The build fails in its last step, because this step imports the installed package."""

    def change(sources: Path) -> None:
        (sources / "lifecycle/cli.py").write_text("import no_such_module\n")

    before = image_build.archive.path.read_bytes()
    image_build.change_sources(change)
    built = image_build.run()
    assert built.returncode == 1
    assert image_build.archive.path.read_bytes() == before
    message = image_build.termination_log.read_text()
    assert "No module named 'no_such_module'" in message
    assert len(message.encode()) <= 4096


@pytest.mark.parametrize(
    ("pattern", "replacement", "reason"),
    [
        pytest.param(r"sha256:[0-9a-f]{64}", f"sha256:{'0' * 64}", "DO NOT MATCH THE HASHES", id="wrong hash"),
        pytest.param(r" \\\n +--hash=\S+", "", "Hashes are required", id="no hash"),
    ],
)
def test_dependency_that_does_not_match_the_lock_is_refused(
    image_build: ImageBuild, pattern: str, replacement: str, reason: str
) -> None:
    def change(sources: Path) -> None:
        locked = sources / "requirements-build.txt"
        locked.write_text(re.sub(pattern, replacement, locked.read_text()))

    before = image_build.archive.path.read_bytes()
    image_build.change_sources(change)
    built = image_build.run()
    assert built.returncode == 1
    assert reason in built.stderr
    assert image_build.archive.path.read_bytes() == before


def test_full_disk_keeps_the_archive(image_build: ImageBuild) -> None:
    """The file system has space for one archive."""
    small = image_build.folder / "small"
    small.mkdir()
    size = image_build.archive.path.stat().st_size + 1_000_000
    run_checked(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", small])
    try:
        archive = Archive(small / "image.tar")
        archive.path.write_bytes(image_build.archive.path.read_bytes())
        before = archive.digest
        image_build.change_sources(lambda sources: (sources / "LICENSE").write_text("changed\n"))
        built = image_build.run(ARCHIVE=str(archive.path))
        assert built.returncode == 1
        assert "no space left on device" in image_build.termination_log.read_text()
        assert archive.digest == before
        assert [file.name for file in small.iterdir()] == ["image.tar"]
    finally:
        run_checked(["umount", small])


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda path: os.truncate(path, path.stat().st_size // 2), id="truncated"),
        pytest.param(lambda path: path.write_text("not an archive"), id="not an archive"),
        pytest.param(lambda path: path.unlink(), id="missing"),
        # A container runtime creates a folder if the file to be mounted is missing.
        pytest.param(lambda path: (path.unlink(), path.mkdir()), id="folder"),
    ],
)
def test_invalid_archive_is_replaced_by_a_new_build(image_build: ImageBuild, damage: Callable[[Path], object]) -> None:
    digest = image_build.archive.digest
    damage(image_build.archive.path)
    image_build.run_checked()
    assert image_build.archive.digest == digest


def test_folder_with_files_is_not_replaced_by_the_archive(image_build: ImageBuild) -> None:
    image_build.archive.path.unlink()
    image_build.archive.path.mkdir()
    (image_build.archive.path / "file").touch()
    assert image_build.run().returncode == 1
    assert str(image_build.archive.path) in image_build.termination_log.read_text()
    assert [path.name for path in image_build.archive.path.iterdir()] == ["file"]


def test_archive_with_a_colon_is_refused_before_the_build(sources: Path, tmp_path: Path) -> None:
    image_build = ImageBuild(tmp_path, sources, {**os.environ})
    path = stub(tmp_path / "bin", "builder", f'touch "{tmp_path}/called"')
    built = image_build.run(ARCHIVE=f"{tmp_path}/image-12:30.tar", PATH=path, BUILDER="builder")
    assert built.returncode == 1
    assert "colon" in image_build.termination_log.read_text()
    assert not (tmp_path / "called").exists()


def stub(folder: Path, name: str, script: str) -> str:
    """Create a shell script in place of a builder, and return a PATH on which it is found first."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@pytest.mark.parametrize("step", ["build", "push"])
@pytest.mark.parametrize(
    "send_signal",
    [
        pytest.param(lambda process: process.terminate(), id="SIGTERM from the kubelet"),
        pytest.param(lambda process: os.killpg(process.pid, signal.SIGINT), id="ctrl-c in a terminal"),
    ],
)
def test_stopped_build_leaves_no_processes_and_no_files(
    sources: Path, tmp_path: Path, send_signal: Callable[[subprocess.Popen[str]], None], step: str
) -> None:
    """A builder that kept running would create files after build.sh has deleted its files."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    image_build = ImageBuild(tmp_path, sources, {**os.environ, "TMPDIR": str(scratch)})
    pid_file = tmp_path / "pid"
    # A builder that hangs after it has written a part of the archive.
    write_pid = f'echo $$ >"{pid_file}.new" && mv "{pid_file}.new" "{pid_file}"'
    hang = f'touch "{image_build.archive.path}.new" && {write_pid} && exec sleep 600'
    path = stub(tmp_path / "bin", "slow", f'[ "$1" != {step} ] || {{ {hang}; }}')
    process = subprocess.Popen(
        # SIGINT gets its default effect, as in a terminal. Processes that run in the background would ignore SIGINT.
        ["env", "--default-signal=INT", "/bin/sh", ROOT / "build/build.sh"],
        env={**image_build.variables, "PATH": path, "BUILDER": "slow"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        eventually(pid_file.exists, "the builder is running")
        send_signal(process)
        # This waits until every process that inherited the pipe has ended.
        process.communicate(timeout=60)
        assert process.returncode == 1
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid_file.read_text()), 0)
    finally:
        run(["kill", "-KILL", "--", f"-{process.pid}"])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bin", "pid", "scratch", "termination-log"]
    assert list(scratch.iterdir()) == []


def test_partial_archive_of_a_killed_build_is_replaced(image_build: ImageBuild) -> None:
    digest = image_build.archive.digest
    image_build.archive.path.rename(f"{image_build.archive.path}.new")
    os.truncate(f"{image_build.archive.path}.new", 1_000_000)
    image_build.run_checked()
    assert image_build.archive.digest == digest
    assert not Path(f"{image_build.archive.path}.new").exists()


def test_archive_of_docker_is_accepted_and_verified(sources: Path, tmp_path: Path) -> None:
    image_build = ImageBuild(tmp_path, sources, {**os.environ})
    simulator = Path(__file__).with_name("docker_simulator.py")
    path = stub(tmp_path / "bin", "docker", f'exec "{sys.executable}" "{simulator}" "{tmp_path}" "$@"')
    image_build.run_checked(BUILDER="docker", PATH=path)
    assert image_build.is_up_to_date()
    layer = blob_path(image_build.archive.manifest["layers"][0]["digest"])
    image_build.archive.rewrite(lambda unpacked: (unpacked / layer).write_bytes(b"damaged"))
    assert not image_build.is_up_to_date()


def test_podman_builds_the_same_files(image_build: ImageBuild) -> None:
    files = image_build.archive.files()
    image_build.archive.path.unlink()
    image_build.run_checked(BUILDER="podman")
    assert image_build.archive.files() == files


def test_image_script_builds_the_same_image_and_reports_its_size(shared_build: ImageBuild, tmp_path: Path) -> None:
    """Every step of the build runs again. Times, random names or the order of files could change the image."""
    archive = Archive(tmp_path / "image.tar")
    flags = f"--no-cache {shared_build.environment['BUILD_FLAGS']}"
    report = run_checked(
        [ROOT / "scripts/image", "--archive", archive.path, "--report"],
        env={**shared_build.environment, "BUILD_FLAGS": flags},
    )
    assert archive.digest == shared_build.archive.digest
    sizes = [layer["size"] / 1e6 for layer in archive.manifest["layers"]]
    layers = " + ".join(f"{size:.1f}" for size in sizes)
    assert report == f"{sum(sizes):.1f} MB compressed, {len(sizes)} layers ({layers} MB)\n"


def test_documented_size_is_current(shared_build: ImageBuild) -> None:
    [documented] = re.findall(r"([\d.]+) MB compressed", (ROOT / "docs/image.md").read_text())
    # The size changes with the releases of the dependencies.
    assert float(documented) == pytest.approx(shared_build.archive.size / 1e6, abs=1)


def test_unknown_option_prints_the_usage() -> None:
    done = run([ROOT / "scripts/image", "--no-such-option"])
    assert done.returncode == 2
    assert "--archive FILE" in done.stderr
