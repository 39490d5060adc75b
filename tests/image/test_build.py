"""Test with a real Buildah which image build.sh builds, when it builds again, and how it handles a failed build."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

import lifecycle
from tests.image.tools import IMAGE, ROOT, Archive, Builds, name_as_docker_does, run, run_checked, wait_until

MAX_BYTES = 26_000_000
"""The budget for the compressed size. A larger image probably contains files that it does not need."""

BUILD_TOOLS = re.compile(
    r"/s?bin/(apt.*|bash|dash|dpkg.*|gcc.*|git|make|perl.*|pip.*|sh|wheel)$|/(ensurepip|pip|setuptools|tests?|wheel)/|"
    r"^/(debs|root|sources|tmp|wheel|var/cache|var/lib/apt)/|\.(a|deb|whl)$"
)
"""The paths of files that are needed only during the build."""


def test_archive_has_the_full_name_of_the_image(first_build: Builds) -> None:
    annotations = first_build.archive.index["manifests"][0]["annotations"]
    assert annotations["org.opencontainers.image.ref.name"] == IMAGE


def test_image_has_oci_labels(first_build: Builds) -> None:
    labels = first_build.archive.labels
    assert labels["org.opencontainers.image.title"] == "tailscale-lifecycle"
    assert labels["org.opencontainers.image.version"] == lifecycle.__version__
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert re.fullmatch(r"unknown|[0-9a-f]{40}(\+changes)?", labels["org.opencontainers.image.revision"])
    assert re.fullmatch(r"unknown|https://[^@]+", labels["org.opencontainers.image.source"])
    assert re.fullmatch(r"[0-9a-f]{64}", labels["tailscale-lifecycle.sources"])


def test_image_runs_the_command_as_unprivileged_user(first_build: Builds) -> None:
    config = first_build.archive.config["config"]
    assert config["Entrypoint"] == ["lifecycle"]
    assert config["User"] == "65532:65532"


def test_image_size_is_within_budget(first_build: Builds) -> None:
    assert first_build.archive.size <= MAX_BYTES


def test_image_contains_no_build_tools(first_build: Builds) -> None:
    assert [path for path in first_build.archive.files() if BUILD_TOOLS.search(f"/{path}")] == []


def test_image_contains_no_setuid_programs(first_build: Builds) -> None:
    setuid = [
        path
        for path, file in first_build.archive.files().items()
        if file.type == tarfile.REGTYPE and file.mode & (stat.S_ISUID | stat.S_ISGID)
    ]
    assert setuid == []


def test_unchanged_sources_start_no_new_build(builds: Builds) -> None:
    before = builds.archive.path.stat()
    built = builds.build(BUILDER="no-such-builder")
    assert built.returncode == 0, built.stderr
    after = builds.archive.path.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_changed_sources_replace_the_archive_atomically(builds: Builds) -> None:
    def change(sources: Path) -> None:
        (sources / "lifecycle/__init__.py").write_text('"""Changed."""\n\n__version__ = "99.0.0"\n')

    before = builds.archive.digest
    with builds.archive.path.open("rb") as open_archive:
        builds.change_sources(change)
        built = builds.build()
        assert built.returncode == 0, built.stderr
        # A process that has opened the old archive can read all of it.
        assert len(open_archive.read()) == os.fstat(open_archive.fileno()).st_size
        assert os.fstat(open_archive.fileno()).st_ino != builds.archive.path.stat().st_ino
    assert builds.archive.digest != before
    assert builds.archive.labels["org.opencontainers.image.version"] == "99.0.0"


def test_same_files_at_another_commit_start_no_new_build(builds: Builds) -> None:
    def change(sources: Path) -> None:
        (sources / "REVISION").write_text("0" * 40)
        (sources / "ORIGIN").write_text("https://example.com/elsewhere.git")

    before = builds.archive.labels
    builds.change_sources(change)
    built = builds.build(BUILDER="no-such-builder")
    assert built.returncode == 0, built.stderr
    assert builds.archive.labels == before


def test_renaming_a_source_file_starts_a_new_build(builds: Builds) -> None:
    builds.change_sources(lambda sources: (sources / "lifecycle/cli.py").rename(sources / "lifecycle/renamed.py"))
    assert "no-such-builder" in builds.build(BUILDER="no-such-builder").stderr


def test_change_without_effect_on_the_layers_is_built_once(builds: Builds) -> None:
    """Buildah reuses all layers. Without the new hash of the sources in the label, every start would build again."""

    def change(sources: Path) -> None:
        script = sources / "build/bytecode.py"
        script.write_text(f"{script.read_text()}# changed\n")

    builds.change_sources(change)
    before = builds.archive.labels["tailscale-lifecycle.sources"]
    assert builds.build().returncode == 0
    assert builds.archive.labels["tailscale-lifecycle.sources"] != before
    again = builds.build(BUILDER="no-such-builder")
    assert again.returncode == 0, again.stderr


def test_change_of_the_base_image_starts_a_new_build(builds: Builds) -> None:
    built = builds.build(BASE_IMAGE="localhost/another:base", BUILDER="no-such-builder")
    assert built.returncode == 1
    assert "no-such-builder" in built.stderr


def test_failed_build_keeps_the_archive_and_reports_the_reason(builds: Builds) -> None:
    """The build fails in its last step, because this step imports the installed package."""

    def change(sources: Path) -> None:
        (sources / "lifecycle/cli.py").write_text("import no_such_module\n")

    before = builds.archive.path.read_bytes()
    builds.change_sources(change)
    built = builds.build()
    assert built.returncode == 1
    assert builds.archive.path.read_bytes() == before
    message = builds.termination_log.read_text()
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
    builds: Builds, pattern: str, replacement: str, reason: str
) -> None:
    def change(sources: Path) -> None:
        locked = sources / "requirements-build.txt"
        locked.write_text(re.sub(pattern, replacement, locked.read_text()))

    before = builds.archive.path.read_bytes()
    builds.change_sources(change)
    built = builds.build()
    assert built.returncode == 1
    assert reason in built.stderr
    assert builds.archive.path.read_bytes() == before


def test_full_disk_keeps_the_archive(builds: Builds) -> None:
    """The file system has space for one archive."""
    small = builds.folder / "small"
    small.mkdir()
    size = builds.archive.path.stat().st_size + 1_000_000
    run_checked(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", small])
    try:
        archive = Archive(small / "image.tar")
        archive.path.write_bytes(builds.archive.path.read_bytes())
        before = archive.digest
        builds.change_sources(lambda sources: (sources / "LICENSE").write_text("changed\n"))
        built = builds.build(ARCHIVE=str(archive.path))
        assert built.returncode == 1
        assert "no space left on device" in builds.termination_log.read_text()
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
def test_invalid_archive_is_replaced_by_a_new_build(builds: Builds, damage: Callable[[Path], object]) -> None:
    digest = builds.archive.digest
    damage(builds.archive.path)
    built = builds.build()
    assert built.returncode == 0, built.stderr
    assert builds.archive.digest == digest


def test_folder_with_files_is_not_replaced_by_the_archive(builds: Builds) -> None:
    builds.archive.path.unlink()
    builds.archive.path.mkdir()
    (builds.archive.path / "file").touch()
    assert builds.build().returncode == 1
    assert str(builds.archive.path) in builds.termination_log.read_text()
    assert [path.name for path in builds.archive.path.iterdir()] == ["file"]


def stub(folder: Path, name: str, script: str) -> str:
    """Create a shell script that replaces a builder, and return a PATH that finds it first."""
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
    """A builder that kept running would create files after the script has deleted them."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    builds = Builds(tmp_path, sources, {**os.environ, "TMPDIR": str(scratch)})
    pid = tmp_path / "pid"
    # A builder that hangs after it has written a part of the archive.
    hang = f'touch "{builds.archive.path}.new" && echo $$ >"{pid}.new" && mv "{pid}.new" "{pid}" && exec sleep 600'
    path = stub(tmp_path / "bin", "slow", f'[ "$1" != {step} ] || {{ {hang}; }}')
    process = subprocess.Popen(
        # SIGINT gets its default effect, as in a terminal. Processes that run in the background would ignore SIGINT.
        ["env", "--default-signal=INT", "/bin/sh", ROOT / "build/build.sh"],
        env={**builds.variables, "PATH": path, "BUILDER": "slow"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_until(pid.exists, "the builder is running")
        send_signal(process)
        # This waits until every process that inherited the pipe has ended.
        process.communicate(timeout=60)
        assert process.returncode == 1
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid.read_text()), 0)
    finally:
        run(["kill", "-KILL", "--", f"-{process.pid}"])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bin", "pid", "scratch", "termination-log"]
    assert list(scratch.iterdir()) == []


def test_partial_archive_of_a_killed_build_is_replaced(builds: Builds) -> None:
    digest = builds.archive.digest
    builds.archive.path.rename(f"{builds.archive.path}.new")
    os.truncate(f"{builds.archive.path}.new", 1_000_000)
    built = builds.build()
    assert built.returncode == 0, built.stderr
    assert builds.archive.digest == digest
    assert not Path(f"{builds.archive.path}.new").exists()


def test_archive_of_docker_is_accepted(builds: Builds) -> None:
    """A stub of docker saves an archive that has the annotations of docker."""
    saved = builds.folder / "saved.tar"
    builds.archive.path.rename(saved)
    Archive(saved).rewrite(name_as_docker_does)
    path = stub(builds.folder / "bin", "docker", f'[ "$1 $2" != "save --output" ] || cp "{saved}" "$3"')
    built = builds.build(BUILDER="docker", PATH=path)
    assert built.returncode == 0, built.stderr
    assert builds.archive.path.read_bytes() == saved.read_bytes()
    again = builds.build(BUILDER="no-such-builder")
    assert again.returncode == 0, again.stderr


def test_podman_builds_the_same_files(builds: Builds) -> None:
    files = builds.archive.files()
    builds.archive.path.unlink()
    built = builds.build(BUILDER="podman")
    assert built.returncode == 0, built.stderr
    assert builds.archive.files() == files


def report(first_build: Builds, archive: Archive, **variables: str) -> dict[str, str]:
    """Run `scripts/image --report`, which prints a name and a value in each line. Return the values by name."""
    done = run(
        [ROOT / "scripts/image", "--archive", archive.path, "--report"], env={**first_build.environment, **variables}
    )
    assert done.returncode == 0, done.stderr
    return dict(re.split(r"\s{2,}", line, maxsplit=1) for line in done.stdout.splitlines())


def test_image_script_builds_the_same_image_and_reports_its_size(first_build: Builds, tmp_path: Path) -> None:
    """Every step of the build runs again. Times, random names or the order of files could change the image."""
    archive = Archive(tmp_path / "image.tar")
    reported = report(first_build, archive, BUILD_FLAGS=f"--no-cache {first_build.environment['BUILD_FLAGS']}")
    assert archive.digest == first_build.archive.digest
    sizes = [layer["size"] / 1e6 for layer in archive.manifest["layers"]]
    # "no change" is the time that build.sh takes if the archive is up to date.
    assert set(reported) == {"compressed", "layers", "no change"}
    assert reported["compressed"] == f"{sum(sizes):.1f} MB"
    assert reported["layers"] == f"{len(sizes)} ({' + '.join(f'{size:.1f}' for size in sizes)} MB)"


def test_documented_size_is_current(first_build: Builds) -> None:
    [documented] = re.findall(r"([\d.]+) MB compressed", (ROOT / "docs/image.md").read_text())
    # The size changes with the releases of the dependencies.
    assert float(documented) == pytest.approx(first_build.archive.size / 1e6, abs=1)


def test_report_does_not_need_the_image_in_the_storage_of_the_builder(first_build: Builds, builds: Builds) -> None:
    """The archive is up to date, so nothing is built, and the storage of the builder stays empty."""
    storage = builds.folder / "storage.conf"
    storage.write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{builds.folder}/layers"\nrunroot = "{builds.folder}/run"\n'
    )
    assert "layers" in report(first_build, builds.archive, CONTAINERS_STORAGE_CONF=str(storage))
    run_checked(
        ["buildah", "rmi", "--all", "--force"], env={**first_build.environment, "CONTAINERS_STORAGE_CONF": storage}
    )


def test_unknown_option_prints_the_usage() -> None:
    done = run([ROOT / "scripts/image", "--no-such-option"])
    assert done.returncode == 2
    assert "--archive FILE" in done.stderr
