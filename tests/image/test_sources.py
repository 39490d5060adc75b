"""Test that the archive of `scripts/image --sources` is reproducible, complete, and small enough for a ConfigMap."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

import pytest
import yaml

from tests.image.tools import ROOT, run, run_checked

CONFIG_MAP_LIMIT_BYTES = 1024 * 1024
"""Kubernetes' limit for the data of a ConfigMap."""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A Git repository with one commit, which contains the files that the tests need."""
    folder = tmp_path / "checkout"
    ignored = shutil.ignore_patterns("__pycache__", "*.tar.gz")
    for name in ("lifecycle", "build", "scripts"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in (".containerignore", "Containerfile", "LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    for path in ROOT.glob("requirements*.txt"):
        shutil.copy(path, folder)
    git(folder, "init", "--quiet")
    git(folder, "remote", "add", "origin", "https://user:secret@example.com:8443/lifecycle.git")
    commit(folder)
    return folder


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=User", "-c", "user.email=user@example.com"]
    return run_checked(["git", "-C", folder, *identity, *arguments]).strip()


def commit(folder: Path) -> str:
    """Commit all changes, and return the commit's hash."""
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "Change something")
    return git(folder, "rev-parse", "HEAD")


def pack_sources(folder: Path) -> bytes:
    """Return the archive of the packed sources."""
    target = folder.parent / "sources.tar.gz"
    run_checked([folder / "scripts/image", "--sources", target])
    return target.read_bytes()


def pack_and_read(folder: Path) -> dict[str, bytes]:
    """Return the files in the archive of the packed sources."""
    pack_sources(folder)
    with tarfile.open(folder.parent / "sources.tar.gz") as archive:
        files = {member.name: archive.extractfile(member) for member in archive}
        return {name: file.read() for name, file in files.items() if file is not None}


def build_packages(folder: Path) -> dict[str, bytes]:
    """Build the wheel and the source distribution as for a release, and return their content by file name."""
    target = folder.parent / "packages"
    run_checked([ROOT / ".venv/bin/hatchling", "build", "--directory", target], cwd=folder)
    built = {path.name: path.read_bytes() for path in target.iterdir()}
    shutil.rmtree(target)
    return built


def test_same_sources_give_the_same_bytes(checkout: Path) -> None:
    """The bytes do not depend on the times and modes of files, or on byte code."""
    sources, packages = pack_sources(checkout), build_packages(checkout)
    for path in checkout.rglob("*.py"):
        os.utime(path, (1, 1))
        path.chmod(0o600)
    (checkout / "lifecycle/__pycache__").mkdir()
    (checkout / "lifecycle/__pycache__/cli.cpython-313.pyc").touch()
    assert (pack_sources(checkout), build_packages(checkout)) == (sources, packages)
    assert sorted(Path(name).suffix for name in packages) == [".gz", ".whl"]


def test_commit_of_a_file_that_is_not_packed_changes_nothing(checkout: Path) -> None:
    """Otherwise, each change of the documentation would make every cluster node build the image."""
    before = pack_sources(checkout)
    (checkout / "README.md").write_text("more\n")
    commit(checkout)
    assert pack_sources(checkout) == before


def test_changed_source_changes_the_bytes(checkout: Path) -> None:
    before = pack_sources(checkout)
    (checkout / "lifecycle/cli.py").write_text("# changed\n")
    assert pack_sources(checkout) != before


def test_revision_is_the_last_commit_of_the_sources(checkout: Path) -> None:
    first = pack_and_read(checkout)["REVISION"].decode()
    assert first == git(checkout, "rev-parse", "HEAD")
    (checkout / "lifecycle/cli.py").write_text("# changed\n")
    assert pack_and_read(checkout)["REVISION"].decode() == f"{first}+changes"
    second = commit(checkout)
    assert pack_and_read(checkout)["REVISION"].decode() == second != first


def test_origin_is_a_public_address_without_credentials(checkout: Path) -> None:
    assert pack_and_read(checkout)["ORIGIN"] == b"https://example.com:8443/lifecycle.git"
    git(checkout, "remote", "set-url", "origin", "/home/user/lifecycle")
    assert pack_and_read(checkout)["ORIGIN"] == b"unknown"


def test_revision_without_a_git_repository_is_unknown(checkout: Path) -> None:
    shutil.rmtree(checkout / ".git")
    assert pack_and_read(checkout)["REVISION"] == b"unknown"


def test_revision_of_a_shallow_clone_is_unknown(checkout: Path, tmp_path: Path) -> None:
    """The clone lacks the last commit of the sources, because a later commit changes only another file."""
    (checkout / "README.md").write_text("more\n")
    commit(checkout)
    shallow = tmp_path / "shallow"
    run_checked(["git", "clone", "--quiet", "--depth=1", f"file://{checkout}", shallow])
    assert pack_and_read(shallow)["REVISION"] == b"unknown"


def test_only_needed_files_are_packed(checkout: Path) -> None:
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "lifecycle").rglob("*.py")}
    modules |= {"lifecycle/inject/containers.yaml"}
    others = {
        ".containerignore",
        "Containerfile",
        "LICENSE",
        "ORIGIN",
        "REVISION",
        "build/bytecode.py",
        "build/certificates.py",
        "pyproject.toml",
        "requirements-build.txt",
        "requirements.txt",
    }
    assert set(pack_and_read(checkout)) == modules | others


def test_missing_folder_is_reported_in_one_line(tmp_path: Path) -> None:
    target = tmp_path / "missing" / "sources.tar.gz"
    done = run([ROOT / "scripts/image", "--sources", target])
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert str(target) in done.stderr


def test_checkout_on_windows_does_not_change_the_line_ends(checkout: Path) -> None:
    """Git for Windows converts line ends by default, and a shell does not run a script with CRLF."""
    shutil.copy(ROOT / ".gitattributes", checkout)
    script = checkout / "build/build.sh"
    content = script.read_bytes()
    script.unlink()
    git(checkout, "-c", "core.autocrlf=true", "checkout", "build")
    assert script.read_bytes() == content


def test_archive_has_no_times_and_owners(sources: Path) -> None:
    with tarfile.open(sources) as archive:
        assert {(member.mtime, member.uid, member.gid, member.uname) for member in archive} == {(0, 0, 0, "")}
    # Byte 3 of the gzip header has the flags, for example for a file name. Bytes 4 to 7 have the time.
    assert sources.read_bytes()[3:8] == bytes(5)


def test_sources_fit_into_a_config_map(sources: Path, repository: Path) -> None:
    [generator] = yaml.safe_load((repository / "build/kustomization.yaml").read_text())["configMapGenerator"]
    scripts = [name for name in generator["files"] if name != "sources.tar.gz"]
    size = sources.stat().st_size + sum((repository / "build" / name).stat().st_size for name in scripts)
    # Half of the limit is left for later versions.
    assert size < CONFIG_MAP_LIMIT_BYTES / 2
