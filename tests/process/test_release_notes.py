"""Test that scripts/release-notes prints the changelog of a release, and refuses other tags and undated sections."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HEADING = "## 1.2.0 (2027-01-31)"
CHANGELOG = f"# Changelog\n\n{HEADING}\n\n- New.\n\n## 1.1.0 (2026-12-01)\n\n- Old.\n"


@pytest.fixture
def checkout(repository: Path, tmp_path: Path) -> Path:
    """A checkout of version 1.2.0."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(repository / "scripts/release-notes", tmp_path / "scripts")
    (tmp_path / "lifecycle").mkdir()
    (tmp_path / "lifecycle/__init__.py").write_text('__version__ = "1.2.0"\n')
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    return tmp_path


def run_release_notes(checkout: Path, tag: str) -> subprocess.CompletedProcess[str]:
    command = [str(checkout / "scripts/release-notes"), tag]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_notes_are_the_section_of_the_version(checkout: Path) -> None:
    done = run_release_notes(checkout, "v1.2.0")
    assert (done.returncode, done.stdout.strip()) == (0, "- New.")


@pytest.mark.parametrize(
    ("tag", "heading"),
    [
        pytest.param("v1.1.0", HEADING, id="tag of an older version"),
        pytest.param("1.2.0", HEADING, id="tag without v"),
        pytest.param("v1.2.0rc1", HEADING, id="tag of a release candidate"),
        pytest.param("v1.2", HEADING, id="incomplete tag"),
        pytest.param("v1.2.0", "## 1.2.0 (unreleased)", id="no date"),
        pytest.param("v1.2.0", "## 1.2.0 (2027-01-31) draft", id="text after the date"),
        pytest.param("v1.2.0", "## 1.20 (2027-01-31)", id="another version"),
        pytest.param("v1.2.0", "## 1x2.0 (2027-01-31)", id="version that matches as a regular expression"),
    ],
)
def test_wrong_tag_or_heading_is_refused(checkout: Path, tag: str, heading: str) -> None:
    (checkout / "CHANGELOG.md").write_text(CHANGELOG.replace(HEADING, heading))
    done = run_release_notes(checkout, tag)
    assert (done.returncode, done.stdout) == (1, "")
