"""What the image is built from, packed for the ConfigMap."""

from __future__ import annotations

import gzip
import os
import shutil
import tarfile
from pathlib import Path

import pytest

from tests.image.tools import ROOT, checked

APPLY_LIMIT_BYTES = 256 * 1024
"""What annotations may hold: `kubectl apply` keeps the whole object in one of them. Source: Kubernetes API."""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A clone of a repository like this one, with one commit."""
    folder = tmp_path / "checkout"
    ignored = shutil.ignore_patterns("__pycache__", "*.tar.gz")
    for name in ("lifecycle", "build", "scripts"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in (".containerignore", "Containerfile", "LICENSE", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    for path in ROOT.glob("requirements*.txt"):
        shutil.copy(path, folder)
    git(folder, "init", "--quiet")
    git(folder, "remote", "add", "origin", "https://somebody:secret@example.com/lifecycle.git")
    commit(folder)
    return folder


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.com"]
    return checked(["git", "-C", folder, *identity, *arguments]).strip()


def commit(folder: Path) -> str:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "Change something")
    return git(folder, "rev-parse", "HEAD")


def packed(folder: Path) -> bytes:
    target = folder.parent / "sources.tar.gz"
    checked([folder / "scripts/image", "--sources", target])
    return target.read_bytes()


def content(folder: Path) -> dict[str, bytes]:
    packed(folder)
    with tarfile.open(folder.parent / "sources.tar.gz") as archive:
        files = {member.name: archive.extractfile(member) for member in archive}
        return {name: file.read() for name, file in files.items() if file is not None}


def test_the_same_sources_are_the_same_bytes(checkout: Path) -> None:
    """Also at another time, with files as old as another clone's, and with what Python left beside them."""
    before = packed(checkout)
    for path in checkout.rglob("*.py"):
        os.utime(path, (1, 1))
        path.chmod(0o600)
    (checkout / "lifecycle/__pycache__").mkdir()
    (checkout / "lifecycle/__pycache__/cli.cpython-313.pyc").touch()
    assert packed(checkout) == before


def test_a_commit_elsewhere_changes_nothing(checkout: Path) -> None:
    """Else a mended typing error in the documentation would build the image on every cluster node."""
    before = packed(checkout)
    (checkout / "README.md").write_text("more\n")
    commit(checkout)
    assert packed(checkout) == before


def test_a_changed_source_changes_them(checkout: Path) -> None:
    before = packed(checkout)
    (checkout / "lifecycle/runtime/retry.py").write_text("# changed\n")
    assert packed(checkout) != before


def test_they_name_the_commit_that_changed_them_last(checkout: Path) -> None:
    first = content(checkout)["REVISION"].decode()
    assert first == git(checkout, "rev-parse", "HEAD")
    (checkout / "lifecycle/runtime/retry.py").write_text("# changed\n")
    assert content(checkout)["REVISION"].decode() == f"{first}+changes"
    assert content(checkout)["REVISION"].decode() != commit(checkout) == content(checkout)["REVISION"].decode()


def test_they_say_where_they_are_from_and_never_who_fetched_them(checkout: Path) -> None:
    assert content(checkout)["ORIGIN"] == b"https://example.com/lifecycle.git"
    git(checkout, "remote", "set-url", "origin", "/home/somebody/lifecycle")
    assert content(checkout)["ORIGIN"] == b"unknown"


def test_without_git_the_revision_is_unknown(checkout: Path) -> None:
    shutil.rmtree(checkout / ".git")
    assert content(checkout)["REVISION"] == b"unknown"


def test_a_clone_that_may_not_reach_back_to_the_commit_names_none(checkout: Path, tmp_path: Path) -> None:
    (checkout / "README.md").write_text("more\n")
    commit(checkout)
    shallow = tmp_path / "shallow"
    checked(["git", "clone", "--quiet", "--depth=1", f"file://{checkout}", shallow])
    assert content(shallow)["REVISION"] == b"unknown"


def test_they_are_what_the_image_needs_and_no_more(checkout: Path) -> None:
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "lifecycle").rglob("*.py")}
    others = {".containerignore", "Containerfile", "LICENSE", "ORIGIN", "REVISION", "build/bytecode.py"}
    locked = {"pyproject.toml", "requirements-build.txt", "requirements.txt"}
    assert set(content(checkout)) == modules | others | locked


def test_nothing_in_them_tells_when_or_by_whom_they_were_packed(sources: Path) -> None:
    with tarfile.open(sources) as archive:
        assert {(member.mtime, member.uid, member.gid, member.uname) for member in archive} == {(0, 0, 0, "")}
    # Of the compressed file itself: no name, no time.
    assert sources.read_bytes()[3:8] == bytes(5)
    assert gzip.decompress(sources.read_bytes())


def test_kubectl_can_apply_them(sources: Path) -> None:
    """Encoded they are a third larger; a tenth is left for the scripts beside them and for growth."""
    assert sources.stat().st_size * 4 / 3 < APPLY_LIMIT_BYTES * 0.9
