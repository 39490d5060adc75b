"""The image as Buildah really makes it, and what is left when it does not get that far."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

import lifecycle
from tests.image.tools import IMAGE, ROOT, Archive, Builds, checked, eventually, name_as_docker_does, run

BUDGET_BYTES = 30_000_000

LEFT_BEHIND = re.compile(
    r"/s?bin/(apt.*|bash|dash|dpkg.*|gcc.*|git|make|perl.*|pip.*|sh|wheel)$|/(ensurepip|pip|setuptools|tests?|wheel)/|"
    r"^/(debs|root|sources|tmp|wheel|var/cache|var/lib/apt)/|\.(a|deb|whl)$"
)
"""What only building needs, by path."""


def test_is_named_so_that_containerd_imports_it_under_that_name(first_build: Builds) -> None:
    annotations = first_build.archive.index["manifests"][0]["annotations"]
    assert annotations["org.opencontainers.image.ref.name"] == IMAGE


def test_says_what_it_is(first_build: Builds) -> None:
    labels = first_build.archive.labels
    assert labels["org.opencontainers.image.title"] == "tailscale-lifecycle"
    assert labels["org.opencontainers.image.version"] == lifecycle.__version__
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert re.fullmatch(r"unknown|[0-9a-f]{40}(\+changes)?", labels["org.opencontainers.image.revision"])
    assert re.fullmatch(r"unknown|https://[^@]+", labels["org.opencontainers.image.source"])
    assert re.fullmatch(r"[0-9a-f]{64}", labels["tailscale-lifecycle.sources"])


def test_runs_the_command_as_nobody_in_particular(first_build: Builds) -> None:
    config = first_build.archive.config["config"]
    assert config["Entrypoint"] == ["lifecycle"]
    assert config["User"] == "65532:65532"


def test_keeps_to_its_budget(first_build: Builds) -> None:
    layers = [layer["size"] for layer in first_build.archive.manifest["layers"]]
    assert sum(layers) <= BUDGET_BYTES


def test_holds_nothing_that_only_building_needs(first_build: Builds) -> None:
    assert [path for path in first_build.archive.files() if LEFT_BEHIND.search(f"/{path}")] == []


def test_lets_no_program_change_its_user(first_build: Builds) -> None:
    files = first_build.archive.files()
    assert [
        path for path, (kind, mode, *_) in files.items() if kind == tarfile.REGTYPE and int(str(mode)) & 0o6000
    ] == []


def test_unchanged_sources_are_not_built_again(builds: Builds) -> None:
    """No build and no pull, since there is nothing that could do either."""
    before = builds.archive.path.stat()
    built = builds.build(BUILDER="no-such-builder")
    assert built.returncode == 0, built.stderr
    after = builds.archive.path.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_changed_sources_are_built_and_replace_the_archive_in_one_step(builds: Builds) -> None:
    def change(sources: Path) -> None:
        (sources / "lifecycle/__init__.py").write_text('"""Changed."""\n\n__version__ = "99.0.0"\n')

    before = builds.archive.digest
    with builds.archive.path.open("rb") as being_read:
        builds.change_sources(change)
        built = builds.build()
        assert built.returncode == 0, built.stderr
        # Whoever was reading the old one reads it to its end.
        assert len(being_read.read()) == os.fstat(being_read.fileno()).st_size
        assert os.fstat(being_read.fileno()).st_ino != builds.archive.path.stat().st_ino
    assert builds.archive.digest != before
    assert builds.archive.labels["org.opencontainers.image.version"] == "99.0.0"


def test_the_same_files_at_another_commit_are_not_built_again(builds: Builds) -> None:
    """From a clone of a clone, say, or after a commit of what was built before it; the label stays what it was."""

    def change(sources: Path) -> None:
        (sources / "REVISION").write_text("0" * 40)
        (sources / "ORIGIN").write_text("https://example.com/elsewhere.git")

    before = builds.archive.labels
    builds.change_sources(change)
    built = builds.build(BUILDER="no-such-builder")
    assert built.returncode == 0, built.stderr
    assert builds.archive.labels == before


def test_the_same_contents_under_another_name_are_other_sources(builds: Builds) -> None:
    builds.change_sources(
        lambda sources: (sources / "lifecycle/runtime/retry.py").rename(sources / "lifecycle/runtime/retries.py")
    )
    assert "no-such-builder" in builds.build(BUILDER="no-such-builder").stderr


def test_a_change_that_no_layer_shows_is_built_and_then_known(builds: Builds) -> None:
    """Every layer of it is there already, and its label would be the old one's."""

    def change(sources: Path) -> None:
        script = sources / "build/bytecode.py"
        script.write_text(f"{script.read_text()}# changed\n")

    builds.change_sources(change)
    before = builds.archive.labels["tailscale-lifecycle.sources"]
    assert builds.build().returncode == 0
    assert builds.archive.labels["tailscale-lifecycle.sources"] != before
    again = builds.build(BUILDER="no-such-builder")
    assert again.returncode == 0, again.stderr


def test_another_base_is_a_change_of_the_sources(builds: Builds) -> None:
    built = builds.build(BASE_IMAGE="localhost/another:base", BUILDER="no-such-builder")
    assert built.returncode == 1
    assert "no-such-builder" in built.stderr


def test_a_build_that_fails_half_way_keeps_the_archive_and_says_why(builds: Builds) -> None:
    """It fails late: the dependencies are there, the package is installed, and then does not import."""

    def change(sources: Path) -> None:
        (sources / "lifecycle/runtime/retry.py").write_text("import no_such_module\n")

    before = builds.archive.path.read_bytes()
    builds.change_sources(change)
    built = builds.build()
    assert built.returncode == 1
    assert builds.archive.path.read_bytes() == before
    said = builds.termination_log.read_text()
    assert "previous one" in said
    assert "No module named 'no_such_module'" in said
    assert len(said.encode()) <= 4096


@pytest.mark.parametrize(
    ("pattern", "instead", "reason"),
    [
        pytest.param(r"sha256:[0-9a-f]{64}", f"sha256:{'0' * 64}", "DO NOT MATCH THE HASHES", id="another-hash"),
        pytest.param(r" \\\n +--hash=\S+", "", "Hashes are required", id="no-hash"),
    ],
)
def test_a_dependency_that_is_not_what_was_locked_is_refused(
    builds: Builds, pattern: str, instead: str, reason: str
) -> None:
    def change(sources: Path) -> None:
        locked = sources / "requirements-build.txt"
        locked.write_text(re.sub(pattern, instead, locked.read_text()))

    before = builds.archive.path.read_bytes()
    builds.change_sources(change)
    built = builds.build()
    assert built.returncode == 1
    assert reason in built.stderr
    assert builds.archive.path.read_bytes() == before


def test_a_full_disk_keeps_the_archive(builds: Builds) -> None:
    """Room for the archive that is there, and not for a second one."""
    small = builds.folder / "small"
    small.mkdir()
    size = builds.archive.path.stat().st_size + 1_000_000
    checked(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", small])
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
        checked(["umount", small])


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda path: os.truncate(path, path.stat().st_size // 2), id="cut-short"),
        pytest.param(lambda path: path.write_text("no archive"), id="no-archive"),
        pytest.param(lambda path: path.unlink(), id="gone"),
        # What a container runtime makes of a file that is to be mounted and is not there.
        pytest.param(lambda path: (path.unlink(), path.mkdir()), id="a-folder"),
    ],
)
def test_an_archive_that_is_not_sound_is_built_again(builds: Builds, spoil: object) -> None:
    digest = builds.archive.digest
    assert callable(spoil)
    spoil(builds.archive.path)
    built = builds.build()
    assert built.returncode == 0, built.stderr
    assert builds.archive.digest == digest


def test_a_folder_where_the_archive_goes_is_not_emptied(builds: Builds) -> None:
    builds.archive.path.unlink()
    builds.archive.path.mkdir()
    (builds.archive.path / "somebody's").touch()
    assert builds.build().returncode == 1
    assert "is a folder with something in it" in builds.termination_log.read_text()
    assert [path.name for path in builds.archive.path.iterdir()] == ["somebody's"]


def stub(folder: Path, name: str, script: str) -> str:
    """A program that stands for a builder; the PATH that finds it first."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@pytest.mark.parametrize("step", ["build", "push"])
@pytest.mark.parametrize(
    "send",
    [
        pytest.param(lambda process: process.terminate(), id="kubelet"),
        pytest.param(lambda process: os.killpg(process.pid, signal.SIGINT), id="ctrl-c"),
    ],
)
def test_a_build_that_is_told_to_stop_leaves_nothing_running_and_nothing_behind(
    sources: Path, tmp_path: Path, send: Callable[[subprocess.Popen[str]], None], step: str
) -> None:
    """A builder that went on would put back what was removed."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    builds = Builds(tmp_path, sources, {**os.environ, "TMPDIR": str(scratch)})
    pid = tmp_path / "pid"
    # An image half-way out, by a builder that takes its time.
    hang = f'touch "{builds.archive.path}.new" && echo $$ >"{pid}.new" && mv "{pid}.new" "{pid}" && exec sleep 600'
    path = stub(tmp_path / "bin", "slow", f'[ "$1" != {step} ] || {{ {hang}; }}')
    process = subprocess.Popen(
        # As at a terminal: whatever was started in the background ignores the one of Ctrl-C, and all below it do.
        ["env", "--default-signal=INT", "/bin/sh", ROOT / "build/build.sh"],
        env={**builds.variables, "PATH": path, "BUILDER": "slow"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        eventually(pid.exists, within_s=60, what="the builder runs")
        send(process)
        # Its end comes when nobody is left who could say anything.
        process.communicate(timeout=60)
        assert process.returncode == 1
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid.read_text()), 0)
    finally:
        run(["kill", "-KILL", "--", f"-{process.pid}"])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bin", "pid", "scratch", "termination-log"]
    assert list(scratch.iterdir()) == []


def test_what_an_earlier_build_left_behind_is_no_hindrance(builds: Builds) -> None:
    """As after kill -9 while the archive was being written."""
    digest = builds.archive.digest
    builds.archive.path.rename(f"{builds.archive.path}.new")
    os.truncate(f"{builds.archive.path}.new", 1_000_000)
    built = builds.build()
    assert built.returncode == 0, built.stderr
    assert builds.archive.digest == digest
    assert not Path(f"{builds.archive.path}.new").exists()


def test_docker_does_as_well(builds: Builds) -> None:
    """A docker that says it has built the image, and saves it under the names that docker gives."""
    saved = builds.folder / "saved.tar"
    builds.archive.path.rename(saved)
    Archive(saved).rewrite(name_as_docker_does, builds.folder / "scratch")
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


def figures(first_build: Builds, archive: Archive, **variables: str) -> dict[str, str]:
    """What the report says, by the word at the start of each line."""
    done = run(
        [ROOT / "scripts/image", "--archive", archive.path, "--report"], env={**first_build.environment, **variables}
    )
    assert done.returncode == 0, done.stderr
    return dict(re.split(r"\s{2,}", line, maxsplit=1) for line in done.stdout.splitlines())


def test_the_script_for_people_builds_the_same_image_and_reports_on_it(first_build: Builds, tmp_path: Path) -> None:
    archive = Archive(tmp_path / "image.tar")
    said = figures(first_build, archive)
    assert archive.digest == first_build.archive.digest
    sizes = [layer["size"] / 1e6 for layer in archive.manifest["layers"]]
    assert set(said) == {"compressed", "layers", "start", "nothing new"}
    assert said["compressed"] == f"{sum(sizes):.1f} MB"
    assert said["layers"] == f"{len(sizes)} ({' + '.join(f'{size:.1f}' for size in sizes)} MB)"


def test_the_documented_size_is_right_to_a_megabyte(first_build: Builds) -> None:
    size = sum(layer["size"] for layer in first_build.archive.manifest["layers"]) / 1e6
    [shown] = re.findall(r"([\d.]+) MB compressed", (ROOT / "docs/image.md").read_text())
    assert float(shown) == pytest.approx(size, abs=1)


def test_the_report_needs_no_more_than_the_archive(first_build: Builds, builds: Builds) -> None:
    """Made from these sources already, so nothing is built, and this builder has never seen the image."""
    storage = builds.folder / "storage.conf"
    storage.write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{builds.folder}/layers"\nrunroot = "{builds.folder}/run"\n'
    )
    assert "start" in figures(first_build, builds.archive, CONTAINERS_STORAGE_CONF=str(storage))
    checked(["buildah", "rmi", "--all", "--force"], env={**first_build.environment, "CONTAINERS_STORAGE_CONF": storage})


def test_the_script_for_people_explains_itself() -> None:
    done = run([ROOT / "scripts/image", "--no-such-option"])
    assert done.returncode == 2
    assert "--archive FILE" in done.stderr
